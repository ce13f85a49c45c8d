"""The study as data: presets, overrides, refusals."""

import pytest

from retarget.errors import UserError
from retarget.pskd.studies.detection import plan as detection
from retarget.pskd.studies.images import peers_plan
from retarget.pskd.studies.images import settings as images
from retarget.pskd.studies.images.plan import ARMS, METRICS
from retarget.pskd.studies.images.questions import QUESTIONS
from retarget.pskd.studies.images.settings import PRESETS, Settings
from retarget.pskd.study import plan


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
        ("demo", {"alpha_T": 2}, "alpha_T must be at most 1, not 2"),
        ("demo", {"question": "topk"}, "more than the ten classes of digits: choose --preset small or paper"),
        ("demo", {"question": "alpha", "peers": True}, "question and peers ask for two different studies"),
        ("demo", {"store": "topk"}, "store = 'topk': it is dense, topk:K:uniform or topk:K:renormalise"),
        ("demo", {"peers": "no"}, "peers must be true or false, not 'no'"),
        ("demo", {"task": "translate"}, "no task 'translate' for pskd: choose translation, detection"),
        ("demo", {"task": "detection", "question": "alpha"}, "question is a setting of image classification"),
        ("demo", {"question": "beta"}, "no question 'beta' for pskd: choose topk, alpha, past"),
    ],
)
def test_what_cannot_be_studied_is_refused(preset, config, message):
    with pytest.raises(UserError, match=message.replace("?", "[?]")):
        plan(preset, config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"targets": "pskd"}, "targets is set by arm pskd, arm label_smoothing, arm cutmix_pskd and others"),
        ({"smoothing": 0.3}, "smoothing is set by arm label_smoothing of this study"),
        ({"peers": True, "mixing": "cutmix"}, "mixing is set by arm cutmix"),
        ({"question": "confidence", "epochs": 100}, "epochs is set by condition epochs_2"),
        ({"task": "translation", "smoothing": 0.1}, "smoothing is set by arm label_smoothing"),
        ({"task": "detection", "backbone": "x"}, "backbone is set by arm ce_backbone"),
    ],
)
def test_what_arms_or_conditions_decide_is_not_set_for_all(config, message):
    with pytest.raises(UserError, match=message):
        plan("demo", config)


def test_wrong_labels_are_named_where_the_user_asks_for_them():
    (condition,) = plan("demo", {"label_noise": 0.4}).conditions
    assert condition.label == "40 % of the training labels wrong"
    assert [one.label for one in plan("demo").conditions] == ["clean labels", "20 % of the training labels wrong"]


def test_an_unknown_arm_is_refused_with_those_there_are():
    with pytest.raises(UserError, match="no arm ce in this study: choose cross_entropy, pskd"):
        plan("demo", arms=["ce"])


def test_the_estimate_follows_the_epochs_and_is_not_guessed_for_another_network():
    assert plan("demo", {"epochs": 80}).minutes_per_run == pytest.approx(2 * plan("demo").minutes_per_run)
    assert plan("demo", {"network": "preact_resnet18"}).minutes_per_run is None


def test_a_translation_s_estimate_follows_the_epochs_and_is_not_guessed_for_other_data():
    def minutes(preset, **config):
        return plan(preset, {"task": "translation", **config}).minutes_per_run

    assert minutes("small", epochs=1) == pytest.approx(minutes("small") / 5)
    assert minutes("small", dataset="files:mine", epochs=10) == 2 * minutes("small")
    assert minutes("small", dataset="grammar") is None
    assert minutes("demo", layers=3) is None


def test_a_detection_s_estimate_follows_the_epochs_and_is_not_guessed_for_what_was_not_timed():
    def minutes(preset, **config):
        return plan(preset, {"task": "detection", **config}).minutes_per_run

    assert minutes("small", epochs=12) == pytest.approx(minutes("small") / 2)
    assert minutes("small", dataset="voc:mine") is None
    assert minutes("small", network="timm:resnet152") is None
    assert minutes("small", min_size=800, max_size=1333) is None
    assert minutes("demo", train_images=2400) is None
    assert minutes("demo", pretrain={"epochs": 150}) is None


def test_the_files_of_a_run_follow_from_its_settings(tmp_path):
    assert images.Settings(**PRESETS["demo"]).data_paths() == ()
    mine = peers_plan.PeerSettings(**PRESETS["demo"] | {"dataset": "npz:a.npz", "shift": {"ood": "hf:b"}})
    assert mine.data_paths() == ("a.npz", "b")
    chosen = {"dataset": "voc:a+b", "pretrain": {**detection.PRESETS["demo"]["pretrain"], "dataset": "folder:c"}}
    voc = detection.Settings(**detection.PRESETS["demo"] | chosen)
    folders = ("Annotations", "ImageSets/Main", "JPEGImages")
    assert detection.data_paths(voc) == (*(f"{root}/{one}" for root in "ab" for one in folders), "c")
    coco = voc.model_copy(update={"dataset": "coco:a", "validation_split": None})
    found = ("a/annotations/instances_train.json", "a/train", "a/annotations/instances_test.json", "a/test", "c")
    assert detection.data_paths(coco) == found
    assert detection.data_paths(detection.Settings(**detection.PRESETS["demo"])) == ()


def test_loader_processes_are_no_part_of_a_runs_identity():
    for config in ({}, {"peers": True}, {"question": "alpha"}, {"task": "detection"}):
        few, many = (plan("demo", {**config, "workers": workers}) for workers in (0, 3))
        cell = few.conditions[0], few.arms[0], 0
        assert few.run_hash(*cell) == many.run_hash(*cell)


def test_a_backbone_is_trained_with_the_official_alpha_in_every_preset():
    """The official code has no other for ImageNet; 0.3 is only quoted."""
    for preset in ("demo", "small", "paper"):
        assert plan(preset, {"task": "detection"}).settings["pretrain"]["alpha_T"] == 0.8
