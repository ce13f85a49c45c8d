"""A study that is judged again: what its summary remembers, tells and refuses."""

import json

import pytest
from runs_for_tests import read, run
from tasks_for_tests import plan

from retarget.errors import UserError
from retarget.files import write_json
from retarget.study.figures import Analysis
from retarget.study.record import Results, run_directory, write_status
from retarget.study.runner import analyse
from retarget.study.summary import looks_of

CONTROL, TREATED = [0.0, 0.1, 0.2], [3.0, 3.2, 3.1]
OTHERWISE = "Claims (higher) were judged in this directory before, at the same seeds, by other values"


def study(**more):
    return plan(seeds=[0, 1, 2], analysis="tasks_for_tests:analyse_by_file", **more)


def finish(root, *seeds, arms=("control", "treated"), **metrics):
    """Write complete runs, as workers do."""
    for arm in arms:
        for seed in seeds:
            directory = run_directory(root, study(), "default", arm, seed)
            directory.mkdir(parents=True, exist_ok=True)
            write_status(directory, {"state": "complete", "run_hash": "x", "attempts": 1, "metrics": metrics})


def judge(root, control=CONTROL, treated=TREATED, later=(), **more):
    """Judge by an analysis that gives these values; returns the summary and the notes."""
    metrics = {"default": {"control": {"height": list(control)}, "treated": {"height": list(treated)}}}
    (root / ".analysis-for-tests.json").write_text(json.dumps({"metrics": metrics} | more))
    return analyse(root, study(), later), read(root / "analysis.json")["notes"]


def test_a_verdict_that_another_analysis_gives_is_told_of_from_then_on(tmp_path):
    finish(tmp_path, 0, 1, 2)
    first, notes = judge(tmp_path)
    assert (first["claims"][0]["verdict"], notes) == ("holds", [])
    assert judge(tmp_path, treated=[value + 1e-12 for value in TREATED])[1] == [], "rounding is no other analysis"
    second, notes = judge(tmp_path, treated=[value - 3 for value in TREATED])
    assert second["claims"][0]["verdict"] != "holds"
    assert notes[0].startswith(OTHERWISE)
    for _ in range(2):
        again, notes = judge(tmp_path, treated=[value - 3 for value in TREATED])
        assert again["judged_otherwise"]
        assert notes[0].startswith("Claims were judged in this directory before")


def test_a_verdict_over_items_that_changes_without_its_values_is_told_of(tmp_path):
    finish(tmp_path, 0, 1, 2)
    about = study().claims[0].model_copy(update={"about": "models"})
    counts = {"kind": "pairs", "both": 50, "treated": 40, "control": 5, "neither": 5}
    for change, told in (({}, False), ({}, False), ({"treated": 5, "control": 40}, True)):
        (tmp_path / ".analysis-for-tests.json").write_text(json.dumps({"items": {"higher": counts | change}}))
        found = analyse(tmp_path, study(claims=(about,)))
        assert found.get("judged_otherwise", False) == told


def test_values_that_came_later_are_no_other_analysis(tmp_path):
    finish(tmp_path, 0, 1, 2)
    judge(tmp_path, treated=[*TREATED[:2], None])
    summary, notes = judge(tmp_path)
    assert (summary["filled_later"], "judged_otherwise" in summary) == (True, False)
    assert notes[0].startswith("Claims were decided at these seeds before some of their runs were complete")


def test_an_attempt_in_which_every_run_failed_is_no_look(tmp_path):
    assert judge(tmp_path)[0]["looks"] == []
    finish(tmp_path, 0, 1)
    assert judge(tmp_path)[0]["looks"] == [[0, 1]]
    summary, notes = judge(tmp_path)
    assert (summary["looks"], notes) == ([[0, 1]], [])
    finish(tmp_path, 2)
    assert judge(tmp_path)[0]["looks"] == [[0, 1], [0, 1, 2]]


def test_a_look_without_runs_that_an_earlier_version_recorded_is_forgotten(tmp_path):
    finish(tmp_path, 0, 1, 2)
    judge(tmp_path)
    write_json(tmp_path / "summary.json", read(tmp_path / "summary.json") | {"looks": [[]]})
    assert judge(tmp_path)[0]["looks"] == [[0, 1, 2]]
    assert looks_of({"looks": [[], [3]]}, Results(tmp_path / "none", study())) == [[3]]


def test_an_analysis_may_give_values_of_an_arm_that_is_not_run(tmp_path):
    finish(tmp_path, 0, 1, 2, arms=("control",))
    metrics = {"default": {"control": {"height": CONTROL}, "treated": {"height": [None, *TREATED[1:]]}}}
    (tmp_path / ".analysis-for-tests.json").write_text(json.dumps({"metrics": metrics}))
    analyse(tmp_path, study(arms=study().arms[:1]))
    (note,) = read(tmp_path / "analysis.json")["notes"]
    assert note.startswith("treated has no height on seed 0")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"metrics": {"defualt": {}}}, "names the condition 'defualt' in metrics, but the study has default"),
        ({"remarks": {"noisy": {}}}, "names the condition 'noisy' in remarks, but the study has default"),
        (
            {"item_intervals": {"hihger": [0, 1]}},
            "names the claim 'hihger' in item_intervals, but the study has higher",
        ),
        ({"lead": ["A"]}, "names the figure 'A' in lead, but the study has none"),
    ],
)
def test_an_analysis_that_names_what_is_not_there_is_refused(tmp_path, more, message):
    finish(tmp_path, 0, 1, 2)
    with pytest.raises(UserError, match=message):
        judge(tmp_path, **more)


def test_an_analysis_may_name_claims_that_were_added_later(tmp_path):
    finish(tmp_path, 0, 1, 2)
    _, notes = judge(tmp_path, item_intervals={"new": [0, 1]}, later=["new"])
    assert [note.startswith("Not judged here: new.") for note in notes] == [True]
    assert Analysis.model_validate(read(tmp_path / "analysis.json"))


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ((), "the study toy has no seeds: give it at least one"),
        ((0, 20240101123456), "seeds must be integers from 0 to 4294967295, not 20240101123456"),
        ((-1,), "seeds must be integers from 0 to 4294967295, not -1"),
    ],
)
def test_seeds_that_no_run_can_have_are_refused_beforehand(tmp_path, seeds, message):
    with pytest.raises(UserError, match=message):
        run(plan().model_copy(update={"seeds": seeds}), tmp_path / "s")
    assert not (tmp_path / "s").exists()
