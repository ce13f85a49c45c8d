"""Arms that need the runs of other arms."""

import pytest
from runs_for_tests import Seen, run, status
from tasks_for_tests import plan

from retarget.errors import UserError
from retarget.study.config import Arm


def chain(**more):
    """third needs second needs first; the order of the list is the wrong one."""
    arms = (
        Arm(name="third", label="3", needs=("second",)),
        Arm(name="second", label="2", needs=("first",)),
        Arm(name="first", label="1"),
    )
    return plan(task="tasks_for_tests:follow", analysis=None, seeds=[0, 1], claims=(), metrics=()).model_copy(
        update={"arms": arms, **more}
    )


def test_an_arm_starts_when_what_it_needs_is_finished(tmp_path):
    study = chain()
    second = study.arms[1].model_copy(update={"needs": ("first",)})
    third = study.arms[0].model_copy(update={"needs": ("first",)})
    seen = Seen()
    outcome = run(study.model_copy(update={"arms": (third, second, study.arms[2])}), tmp_path, jobs=2, display=seen)
    assert outcome.failed == {}
    order = [key for key, _ in seen.all("ended")]
    for seed in (0, 1):
        assert order.index(f"default/first/seed-{seed}") < order.index(f"default/second/seed-{seed}")
    heights = {arm: cell["height"]["values"] for arm, cell in outcome.summary["conditions"]["default"].items()}
    assert heights == {"third": [11, 12], "second": [11, 12], "first": [10, 11]}


def test_what_needs_a_failed_run_fails_because_of_it(tmp_path):
    """``second`` asks for what its needs do not name, so it fails; ``third`` needs it."""
    study = chain()
    arms = (study.arms[0], study.arms[1].model_copy(update={"needs": ()}), study.arms[2])
    outcome = run(study.model_copy(update={"arms": arms, "seeds": (0,)}), tmp_path)
    assert "which is missing in its needs" in outcome.failed["default/second/seed-0"]
    assert outcome.failed["default/third/seed-0"] == "it needs default/second/seed-0, which failed"
    assert status(tmp_path, "third/seed-0")["state"] == "failed"
    assert status(tmp_path, "first/seed-0")["state"] == "complete"


def test_needs_that_cannot_be_met_are_refused_before_anything_runs(tmp_path):
    study = chain()
    with pytest.raises(UserError, match="arm second needs the run of arm first with seed 0, which is not finished"):
        run(study.model_copy(update={"arms": (study.arms[1],)}), tmp_path / "a")
    circle = study.arms[2].model_copy(update={"needs": ("third",)})
    with pytest.raises(UserError, match="arms need one another in a circle"):
        run(study.model_copy(update={"arms": (*study.arms[:2], circle)}), tmp_path / "b")
    assert not list(tmp_path.glob("*/runs"))
    run(study.model_copy(update={"arms": (study.arms[2],)}), tmp_path / "a")
    outcome = run(study.model_copy(update={"arms": (study.arms[1],)}), tmp_path / "a")
    assert outcome.failed == {}, "a finished run of an earlier call serves"
