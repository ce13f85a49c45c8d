"""The detection task: every arm trains, off equals control bit for bit, killed and resumed equals uninterrupted."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from retarget.errors import UserError
from retarget.pskd.past.state import read_state, write_state
from retarget.pskd.studies.detection import run as detection
from retarget.pskd.studies.detection.analysis import analyse
from retarget.pskd.studies.detection.plan import ARMS, METRICS, PRESETS, plan
from retarget.pskd.studies.detection.run import BACKBONE, Backbone, build_detector
from retarget.pskd.studies.detection.settings import Settings
from retarget.pskd.studies.images.networks import build
from retarget.pskd.study import plan as pskd_plan
from retarget.study.record import Results, Run, read_history
from retarget.study.runner import run_study
from retarget.study.worker import perform

QUICK = {
    "train_images": 16, "validation_images": 4, "test_images": 4, "min_size": 48, "max_size": 48, "strides": [4, 8],
    "network": "timm:test_resnet", "fpn_channels": 16, "head_channels": 16, "roi_size": 3, "epochs": 3, "batch_size": 4,
    "warmup_steps": 2, "pictures": 2,
    "pretrain": {"epochs": 2, "batch_size": 16, "validation_images": 10, "crop_size": 16},
}  # fmt: skip
DETECTORS = [arm.name for arm in ARMS if not arm.name.startswith("classifier")]


class Here:
    """Does jobs in this process, which has imported all they need."""

    def __init__(self):
        self.jobs = []

    def submit(self, job):
        self.jobs.append(job)

    def events(self):
        while self.jobs:
            job = self.jobs.pop(0)
            job.directory.mkdir(parents=True)
            yield perform(job, lambda event: None)

    def close(self):
        self.jobs.clear()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study of every arm with one seed."""
    folder = tmp_path_factory.mktemp("study")
    outcome = run_study(plan("demo", QUICK, seeds=[0]), folder, executor=Here())
    assert outcome.failed == {}
    return Results.load(folder)


def new_run(folder, study, arm, kind=Run, **more):
    """A run of this process, which finds its classifier among the study's."""
    chosen = next(one for one in study.plan.arms if one.name == arm)
    settings = {**study.plan.run_settings(study.plan.conditions[0], chosen), **more}
    needs = {need: study.run("default", need, 0).directory for need in chosen.needs}
    return kind.create(folder, settings=settings, arm=arm, seed=0, needs=needs)


def weights(folder):
    return torch.load(folder / "checkpoint" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("arm", DETECTORS)
def test_every_detector_trains_and_reports_its_metrics(arm, study):
    run = study.run("default", arm, 0)
    wanted = {metric.name for metric in METRICS if not metric.name.startswith("classifier")}
    assert set(run.metrics) <= wanted
    assert wanted - set(run.metrics) <= {"ece", "ece_scaled", "nll_scaled", "confidence", "precision"}  # nothing found
    history = run.history()
    assert [line["step"] for line in history] == [0, 1, 2]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert (run.metrics["store_mb"] > 0) == arm.startswith("direct")
    assert (run.directory / "detections.png").read_bytes().startswith(b"\x89PNG")
    arrays = run.predictions()
    assert len(arrays["test_boxes"]) == len(arrays["test_scores"]) == len(arrays["test_image"])
    assert (arrays["test_scores"] > 0.05).all()
    data = json.loads((run.directory / "data.json").read_text())
    assert data["parts"]["train"]["images"] == 16
    assert data["others"] == {}


def test_classifiers_report_theirs_and_differ_by_their_targets(study):
    runs = [study.run("default", arm, 0) for arm in ("classifier_ce", "classifier_pskd")]
    for run in runs:
        names = {"classifier_top1", "classifier_nll", "classifier_ece", "train_loss", "step_ms", "store_mb"}
        assert set(run.metrics) == names
        held = load_file(run.directory / "backbone.safetensors")
        assert held["mean"].shape == (3,)
    assert [run.metrics["store_mb"] > 0 for run in runs] == [False, True]
    first = [read_history(run.directory / "metrics.jsonl")[0]["train_loss"] for run in runs]
    assert first[0] == first[1], "epoch 0 is cross-entropy"
    assert runs[0].metrics["train_loss"] != runs[1].metrics["train_loss"]


def test_a_detector_begins_with_its_classifiers_weights_and_the_other_arms_head(study):
    settings = Settings.model_validate(study.plan.settings)
    files = [
        study.run("default", arm, 0).directory / "backbone.safetensors" for arm in ("classifier_ce", "classifier_pskd")
    ]
    ce, pskd, none = (build_detector(settings, 10, 0, file) for file in (*files, None))
    kept = load_file(files[1])
    own = pskd.backbone.network.state_dict()
    assert all(torch.equal(value, kept[f"network.{name}"]) for name, value in own.items())
    for name, value in ce.state_dict().items():
        pre_trained = name.startswith("backbone.network.")
        if not pre_trained:
            assert torch.equal(value, pskd.state_dict()[name]), name
            assert torch.equal(value, none.state_dict()[name]), name
    assert ce.transform.image_mean == pytest.approx(kept["mean"].tolist())
    assert not torch.equal(ce.backbone.network.conv1[0].weight, pskd.backbone.network.conv1[0].weight)
    assert not torch.equal(
        ce.rpn.head.cls_logits.weight, build_detector(settings, 10, 1, None).rpn.head.cls_logits.weight
    )


@pytest.mark.parametrize("arm", ["direct_instance", "direct_previous"])
def test_alpha_zero_trains_as_the_control_does(arm, study, tmp_path):
    off = detection.run(new_run(tmp_path, study, arm, alpha_T=0.0))
    control = study.run("default", "ce_backbone", 0)
    assert off["map"] == control.metrics["map"]
    a, b = weights(tmp_path), weights(control.directory)
    assert all(torch.equal(a[name], b[name]) for name in b)
    c = weights(study.run("default", arm, 0).directory)
    assert not all(torch.equal(c[name], b[name]) for name in b), "and with alpha it does not"


@pytest.mark.parametrize("arm", ["direct_instance", "direct_previous"])
def test_a_run_stopped_in_the_middle_goes_on_to_the_same_end(arm, study, tmp_path):
    class Stopped(Run):
        def log(self, step, **metrics):
            if step == 2:
                raise RuntimeError("killed")
            super().log(step, **metrics)

    whole = study.run("default", arm, 0)
    with pytest.raises(RuntimeError, match="killed"):
        detection.run(new_run(tmp_path, study, arm, Stopped))
    again = detection.run(new_run(tmp_path, study, arm))
    assert {**again, "step_ms": 0} == {**whole.metrics, "step_ms": 0}
    a, b = weights(tmp_path), weights(whole.directory)
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert [{**one} for one in read_history(tmp_path / "metrics.jsonl")] == whole.history()


def test_top_k_rows_are_kept_for_objects(study, tmp_path):
    metrics = detection.run(new_run(tmp_path, study, "direct_instance", store="topk:3:uniform", epochs=2))
    assert 0 < metrics["store_mb"] < study.run("default", "direct_instance", 0).metrics["store_mb"]


def test_the_page_shows_curves_reliability_and_every_arms_detections(study):
    analysis = analyse(study)
    assert [figure.kind for figure in analysis.figures] == ["lines", "lines", "images"]
    assert len(analysis.figures[0].series) == len(DETECTORS)
    assert analysis.figures[2].labels == [arm.label for arm in ARMS if arm.name in DETECTORS]
    assert all((study.directory / file).is_file() for file in analysis.figures[2].files)
    assert any("no digit appears in two parts" in note for note in analysis.notes)
    assert any("train 16 images" in note for note in analysis.notes)


def test_the_page_counts_objects_of_classes_that_were_left_out(study, tmp_path):
    shutil.copytree(study.directory, tmp_path / "study")
    file = (
        tmp_path / "study" / study.run("default", "ce_backbone", 0).directory.relative_to(study.directory) / "data.json"
    )
    others = dict(zip("abcdefg", range(9, 2, -1), strict=True))
    file.write_text(json.dumps({**json.loads(file.read_text()), "others": others}))
    listed = "a 9, b 8, c 7, d 6, e 5 and 2 more classes"
    assert f"Objects of other classes left out: 42 ({listed})." in analyse(Results.load(tmp_path / "study")).notes
    assert not any("other classes" in note for note in analyse(study).notes)


def test_a_frozen_norm_stays_as_pre_trained():
    backbone = Backbone(build("timm:test_resnet", 2, 3), [4, 8], 8, freeze_norm=True).train()
    before = backbone.network.bn1.running_mean.clone()
    maps = backbone(torch.rand(2, 3, 32, 32))
    assert [list(one.shape) for one in maps.values()] == [[2, 8, 8, 8], [2, 8, 4, 4], [2, 8, 2, 2]]
    assert torch.equal(backbone.network.bn1.running_mean, before)
    assert not backbone.network.bn1.weight.requires_grad
    assert backbone.network.conv1[0].weight.requires_grad


def test_what_does_not_fit_is_refused(study, tmp_path):
    with pytest.raises(UserError, match=r"strides = \[4, 64\], but the network has feature maps of strides \[2, 4, 8"):
        Backbone(build("timm:test_resnet", 2, 3), [4, 64], 8, freeze_norm=True)
    settings = Settings.model_validate(study.plan.settings)
    file = study.run("default", "classifier_ce", 0).directory / "backbone.safetensors"
    with pytest.raises(UserError, match="belongs to the network 'timm:test_resnet', but 'timm:resnet18' is needed"):
        build_detector(settings.model_copy(update={"network": "timm:resnet18"}), 10, 0, file)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other.safetensors is not a classifier of this study"):
        build_detector(settings, 10, 0, tmp_path / "other.safetensors")
    state, tensors = read_state(file, BACKBONE, "")
    write_state(tmp_path / "grey.safetensors", BACKBONE, state, {**tensors, "mean": torch.zeros(1)})
    with pytest.raises(UserError, match=r"images of pretrain.dataset have 1 channels, but a detector needs 3"):
        build_detector(settings, 10, 0, tmp_path / "grey.safetensors")
    with pytest.raises(UserError, match="timm's Linear has no feature maps"):
        Backbone(torch.nn.Linear(1, 1), [4], 8, freeze_norm=True)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_and_its_claims_name_its_metrics_and_arms(preset):
    resolved = pskd_plan(preset, {"task": "detection"})
    assert resolved == plan(preset, {"task": "detection"})
    metrics, arms = {metric.name for metric in METRICS}, {arm.name for arm in ARMS}
    for claim in resolved.claims:
        assert {claim.metric, claim.shown} <= metrics
        assert set(claim.arms) <= arms
    for arm in resolved.arms:
        assert arm.settings.get("backbone") in (None, *arm.needs)
    assert np.isfinite(resolved.minutes_per_run)


@pytest.mark.parametrize(
    ("preset", "config", "message"),
    [
        ("tiny", {}, "no preset 'tiny' for detection: choose demo, small, paper"),
        ("demo", {"epoch": 3}, "there is no setting epoch, did you mean epochs[?]"),
        ("demo", {"pretrain": {"epoch": 3}}, "there is no setting pretrain.epoch"),
        ("demo", {"pretrain": 3}, "pretrain must be a table, not 3"),
        ("demo", {"dataset": "cifar"}, "dataset = 'cifar'"),
        ("demo", {"max_size": 32}, "max_size = 32 is below min_size = 64"),
    ],
)
def test_bad_settings_are_refused(preset, config, message):
    with pytest.raises(UserError, match=message):
        plan(preset, config)


def test_an_unknown_arm_is_refused():
    with pytest.raises(UserError, match="no arm ce in this study: choose classifier_ce"):
        plan("demo", arms=["ce"])
