"""The study as data: presets, overrides, refusals."""

import pytest

from retarget.errors import UserError
from retarget.pskd.questions import QUESTIONS
from retarget.pskd.study import ARMS, METRICS, PRESETS, Settings, plan


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_and_its_claims_name_its_metrics_and_arms(preset):
    study = plan(preset)
    metrics, arms = {metric.name for metric in METRICS}, {arm.name for arm in ARMS}
    conditions = {condition.name for condition in study.conditions}
    for claim in study.claims:
        if claim.id in ("detection", "translation"):
            continue  # shown as not measured
        assert {claim.metric, claim.shown or claim.metric} <= metrics
        assert set(claim.arms) <= arms
        assert claim.condition in conditions


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_resolves_and_its_claims_name_its_arms_and_conditions(name):
    study = plan("small", {"question": name})
    assert study.claims
    for claim in study.claims:
        assert {claim.metric, claim.shown or claim.metric} <= {metric.name for metric in METRICS}
        assert set(claim.arms) <= {arm.name for arm in study.arms}
        assert claim.condition in {condition.name for condition in study.conditions}
    for condition in study.conditions:
        for arm in study.arms:
            Settings.model_validate(study.run_settings(condition, arm))
    assert study.minutes_per_run == QUESTIONS[name].minutes


def test_a_data_set_of_ones_own_is_not_cut_to_the_presets_subset():
    assert plan("demo").settings["train_images"] == 700
    assert plan("demo", {"dataset": "npz:mine.npz"}).settings["train_images"] is None


@pytest.mark.parametrize(
    ("preset", "config", "message"),
    [
        ("tiny", {}, "no preset 'tiny' for pskd: choose demo, small, paper"),
        ("demo", {"epoch": 3}, "there is no setting epoch, did you mean epochs?"),
        ("demo", {"alpha_T": 2}, "alpha_T = 2: Input should be less than or equal to 1"),
        ("demo", {"question": "topk"}, "more than the ten classes of digits: choose --preset small or paper"),
        ("demo", {"question": "alpha", "peers": True}, "question and peers are two studies: choose one"),
        ("demo", {"question": "beta"}, "no question 'beta' for pskd: choose topk, alpha, past"),
    ],
)
def test_what_cannot_be_studied_is_refused(preset, config, message):
    with pytest.raises(UserError, match=message.replace("?", "[?]")):
        plan(preset, config)


def test_an_unknown_arm_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="no arm ce in this study: choose cross_entropy, pskd"):
        plan("demo", arms=["ce"])


def test_the_estimate_follows_the_epochs_and_is_not_guessed_for_another_network():
    assert plan("demo", {"epochs": 80}).minutes_per_run == pytest.approx(2 * plan("demo").minutes_per_run)
    assert plan("demo", {"network": "preact_resnet18"}).minutes_per_run is None
