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


def two(old, new, name="acc"):
    return {"default": {"old": {name: old}, "new": {name: new}}}


ERRORS = two([0.62, 0.61, 0.63], [0.52, 0.5, 0.54])


@pytest.mark.parametrize(
    ("values", "change", "what", "between", "points"),
    [
        (ERRORS, dict(direction="lower"), "smallest effect is 0.5", "0.5 and 0.63", 50),
        (ERRORS, dict(direction="lower", smallest_effect=0.01, margin=0.4), "margin is 0.4", "0.5 and 0.63", 40),
        (two([0.4, 0.41], [0.55, 0.54]), {}, "smallest effect is 0.5", "0.4 and 0.55", 50),
        (two([], [0.55, 0.54]), dict(arms=("new",), against=0.45), "smallest effect is 0.5", "0.54 and 0.55", 50),
    ],
)
def test_an_effect_that_fractions_hardly_allow_is_asked_about(values, change, what, between, points):
    (said,) = asked(values, **change)
    assert said.startswith(f"Claim c: its {what}, but the values of acc lie between {between}. If they are fractions, ")
    assert said.endswith(f"means {points} points: is that what is meant?")


@pytest.mark.parametrize(
    ("values", "change"),
    [
        (two([0.95, 0.9], [0.02, 0.05]), dict(direction="lower")),  # an attack's success, removed
        (two([0.95, 0.9], [0.6, 0.55]), dict(direction="lower")),  # or not quite
        (two([0.6, 0.61], [0.62, 0.63]), dict(smallest_effect=0.1)),  # not reached, but plainly a fraction
        (two([0.4, 0.41], [0.41, 0.42]), dict(smallest_effect=0.01, margin=0.1)),
        (two([2.6, 2.7], [2.5, 2.6]), dict(direction="lower")),
        (two([0.62, 0.61], [0.52, 0.5], "val_loss"), dict(direction="lower", metric="val_loss")),
        (two([0.62, 0.61], [0.52, 0.5], "seconds"), dict(direction="lower", metric="seconds")),
    ],
)
def test_a_large_effect_that_may_be_meant_is_not_asked_about(values, change):
    assert asked(values, **change) == []


BOTH = "Are they fractions and percentages?"
ONE = "Is one a fraction and the other a percentage?"


@pytest.mark.parametrize(
    ("old", "new", "change", "question"),
    [
        ([], [75.1, 74.8, 75.5], dict(against=0.8), ONE),
        ([], [0.911, 0.905, None], dict(against=80, smallest_effect=0.005), ONE),
        ([], [0.031, 0.033], dict(against=5, smallest_effect=0.005, direction="lower"), ONE),
        ([0.5], [54.0], {}, BOTH),  # as the means of items without a seed
        ([52.0, None], [0.53, 0.54], {}, BOTH),
        ([0.5, 0.51, 0.52, 53.0, 54.0], [0.52, 0.532, 0.544, 55.6, 56.8], dict(smallest_effect=0.01), BOTH),
    ],
)
def test_fractions_beside_percentages_are_asked_about_wherever_they_are(old, new, change, question):
    arms = ("new",) if "against" in change else ("new", "old")
    (said,) = asked(two(old, new), arms=arms, **change)
    assert said.startswith("Claim c: ")
    assert said.endswith(question)
    for silent in (dict(metric="nll"), dict(metric="FID")):
        assert asked(two(old, new, silent["metric"]), arms=arms, **change | silent) == []
    seconds = Metric(name="acc", label="time", unit="s")
    assert asked(two(old, new), metrics=(seconds,), arms=arms, **change) == []
    elsewhere = {"default": two([0.5, 0.51], [0.53, 0.54])["default"], "other": two(old, new)["default"]}
    assert asked(elsewhere, smallest_effect=0.01) == [], "the claim is not about that condition"


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ([], [30.5, 31.2], dict(against=1.0)),  # times as fast
        ([], [3.2, 3.1], dict(against=0.1)),  # a gain in points
        ([], [3.2, 3.1], dict(against=0.0)),
        ([], [0.91, 0.92], dict(against=0.8, smallest_effect=0.005)),
        ([], [91.1, 92.0], dict(against=80)),
        ([], [120.5, 130.0], dict(against=0.5)),
        ([0.9], [15.3], {}),  # perplexities in one unit
        ([1.0], [45.0], {}),  # counts
        ([0.31], [0.0], dict(direction="lower", smallest_effect=0.01)),
        ([91.0, 95.0, 0.9], [92.0, 94.0, 93.0], {}),  # one run that collapsed
        ([91.0, 95.0, 4.0], [92.0, 94.0, 3.0], {}),  # two that did
        ([91.0, 95.0, 0.1], [92.0, 94.0, 0.12], {}),
        ([95.0, 94.0, 96.0], [0.9, 75.0, 0.7], dict(direction="lower")),  # an attack, removed twice of three times
    ],
)
def test_values_that_may_be_in_one_unit_are_not_asked_about(old, new, change):
    assert asked(two(old, new), arms=("new",) if "against" in change else ("new", "old"), **change) == []


@pytest.mark.parametrize(
    ("name", "told"), [("sentiment", 1), ("confidence", 1), ("token_accuracy", 1), ("run time", 0)]
)
def test_only_whole_words_of_a_metrics_name_tell_what_it_is(name, told):
    assert len(asked(two([0.5, 0.51], [54.0, 54.5], name), metric=name)) == told


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
