"""Claims that look mistaken are judged as they stand, and their author is asked."""

import pytest
from runs_for_tests import read, run
from tasks_for_tests import plan

from retarget.study.config import Claim, Metric
from retarget.study.doubts import doubts, doubts_of

CLAIM = dict(id="c", sentence="It helps.", metric="acc", direction="higher", arms=("new", "old"), smallest_effect=0.5)
SHARES = {"default": {"old": {"acc": [0.9, 0.91]}, "new": {"acc": [0.92, None]}, "chance": {"acc": [0.1, 0.1]}}}


def asked(values=SHARES, metrics=(), **change):
    return doubts([Claim.model_validate(CLAIM | change)], metrics, values)


def test_an_effect_in_points_on_values_that_are_fractions_is_asked_about():
    (said,) = asked()
    assert said.startswith("Claim c: its smallest effect is 0.5, but the values of acc lie between 0.9 and 0.92. If")
    (said,) = asked(smallest_effect=0.05, margin=0.3)
    assert said.startswith("Claim c: its margin is 0.3, but the values of acc lie")
    assert asked(smallest_effect=0.05, margin=0.09) == []
    rates = {"default": {"old": {"acc": [0.0, 0.1]}, "new": {"acc": [1.0, 0.9]}}}  # an attack's success
    assert asked(rates) == []
    losses = {"default": {"old": {"acc": [2.9, 3.1]}, "new": {"acc": [2.1, 2.2]}}}
    assert asked(losses, direction="lower") == []


def test_values_in_percent_that_are_all_below_1_are_asked_about():
    percent = Metric(name="acc", label="accuracy", unit="%")
    (said,) = asked(metrics=(percent,), smallest_effect=0.01)
    assert said.startswith("The unit of acc is %, but none of its values is above 1.")
    assert asked(metrics=(percent,), smallest_effect=0.01, direction="lower") == []  # an error of less than 1 %


@pytest.mark.parametrize("effect", [0.5, 50.0])
def test_a_study_of_ones_own_says_so_on_its_page(tmp_path, effect):
    claim = plan().claims[0].model_copy(update={"smallest_effect": effect})
    outcome = run(plan(claims=(claim,)), tmp_path)
    said = [one for one in read(tmp_path / "analysis.json")["notes"] if "its smallest effect is 50, but" in one]
    assert tuple(said) == outcome.doubts
    assert len(said) == (effect == 50.0)


def test_a_seed_that_failed_in_one_arm_is_told_with_the_doubts(tmp_path):
    outcome = run(plan(config={"wrong": "raise", "where": ["treated", 1]}, seeds=[0, 1, 2]), tmp_path)
    assert list(outcome.failed) == ["default/treated/seed-1"]
    (said,) = outcome.doubts
    assert said.startswith("treated has no height on seed 1: the verdict is about the other seeds")
    assert said in read(tmp_path / "analysis.json")["notes"]


def test_the_metrics_of_this_packages_own_studies_are_not_doubted():
    worse = plan().claims[0].model_copy(update={"direction": "lower"})
    summary = {"conditions": {"default": {"control": {"height": {"values": [3.0]}}}}}
    (said,) = doubts_of(plan(claims=(worse,)), summary)
    assert "the treated arm is the worse one" in said
    own = plan(claims=(worse,), task="retarget.pope.studies.run:run")
    assert doubts_of(own, summary) == []
    small = {"conditions": {"default": {arm: {"height": {"values": [0.001]}} for arm in worse.arms}}}
    (said,) = doubts_of(own, small)
    assert said.endswith("no value of height is above 0.001. On these data the claim cannot hold.")
