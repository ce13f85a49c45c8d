"""Optimisers, schedules, weights that were trained before, divergence, and several devices within a run."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from retarget.errors import DivergedError, UserError
from retarget.pskd.studies.images import peers_run
from retarget.pskd.studies.images import run as classification
from retarget.pskd.studies.images.networks import build
from retarget.pskd.studies.images.optimisers import share_of_lr
from retarget.pskd.studies.images.prepare import check
from retarget.pskd.study import plan
from retarget.study.record import Run
from retarget.study.worker import Job, perform

QUICK = {"epochs": 2, "train_images": 120, "validation_images": 20, "test_images": 60, "batch_size": 20}


def settings(arm="cross_entropy", **more):
    study = plan("demo", {**QUICK, "label_noise": 0.0, **more})
    return study.run_settings(study.conditions[0], next(one for one in study.arms if one.name == arm))


# -- schedules


@pytest.mark.parametrize(("steps", "warmup"), [(20, 0), (20, 5), (7, 7), (1, 0)])
def test_cosine_is_torchs_own_after_a_linear_warm_up(steps, warmup):
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps - warmup, 1))
    for step in range(steps):
        if step < warmup:
            assert share_of_lr(step, steps, warmup, None) == pytest.approx((step + 1) / warmup)
        else:
            assert share_of_lr(step, steps, warmup, None) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
            optimizer.step()
            reference.step()


def test_steps_after_a_warm_up_are_the_official_ones():
    epochs, per_epoch = 8, 3
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 6], gamma=0.1)
    for epoch in range(epochs):
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            assert share_of_lr(step, epochs * per_epoch, 0, (0.5, 0.75)) == pytest.approx(
                optimizer.param_groups[0]["lr"]
            )
        optimizer.step()
        reference.step()


class Stopped(Run):
    def log(self, step, **metrics):
        super().log(step, **metrics)
        if step == 0:
            raise InterruptedError


def test_adamw_with_cosine_and_warm_up_trains_and_resumes_to_the_same_bytes(tmp_path):
    chosen = settings("pskd", epochs=3, optimizer="adamw", lr=3e-3, lr_schedule="cosine", warmup_epochs=0.5)
    metrics = classification.run(Run.create(tmp_path / "straight", settings=chosen))
    assert metrics["top1"] > 25
    with pytest.raises(InterruptedError):
        classification.run(Stopped.create(tmp_path / "stopped", settings=chosen))
    classification.run(Run.create(tmp_path / "stopped", settings=chosen))
    one, two = ((tmp_path / d / "predictions.safetensors").read_bytes() for d in ("straight", "stopped"))
    assert one == two


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(optimizer="adam"), "optimizer must be 'sgd' or 'adamw', not 'adam'"),
        (dict(devices=3), "batch_size = 20 is not a multiple of devices = 3"),
        (dict(warmup_epochs=9), "warmup_epochs = 9 exceeds epochs = 2"),
        (dict(devices=2, strategy="ddp"), "strategy must be .*, not 'ddp'"),
        (dict(model="there", network="small_cnn"), "model and network both name the network"),
    ],
)
def test_settings_that_do_not_fit(given, message):
    with pytest.raises(UserError, match=message):
        settings(**given)


# -- divergence


@pytest.mark.parametrize("arm", ["cross_entropy", "pskd"])
def test_a_run_that_diverges_is_recorded_as_failed_with_its_epoch(arm, tmp_path):
    chosen = settings(arm, lr=1e30)
    with pytest.raises(
        DivergedError, match=r"not finite in epoch 1 of 2, step \d+: training has diverged\. Set lr low"
    ):
        classification.run(Run.create(tmp_path / "alone", settings=chosen))
    config = dict(settings=chosen, arm=arm, condition="default", seed=0, threads=1, run_hash="0")
    (tmp_path / "job").mkdir()
    job = Job("default/a/seed-0", tmp_path / "job", "retarget.pskd.studies.images.run:run", config)
    assert perform(job, lambda event: None).error.startswith("DivergedError: the ")
    status = json.loads((tmp_path / "job" / "status.json").read_text())
    assert (status["state"], status["epoch"]) == ("failed", 1)


# -- weights


@pytest.fixture
def trained(tmp_path):
    """Weights of the demo's network for seven classes."""
    torch.manual_seed(0)
    save_file(build("small_cnn", 7, 1).state_dict(), tmp_path / "seven.safetensors")
    return tmp_path / "seven.safetensors"


def test_weights_are_taken_and_the_layer_of_classes_is_new(trained):
    given, network = load_file(trained), build("small_cnn", 10, 1, str(trained))
    for name, value in network.state_dict().items():
        assert (value.shape == given[name].shape) == (name not in ("8.weight", "8.bias"))
        assert value.shape != given[name].shape or torch.equal(value, given[name])
    same = build("small_cnn", 7, 1, str(trained))
    assert all(torch.equal(value, given[name]) for name, value in same.state_dict().items())


def test_timm_weights_are_fine_tuned_and_their_bytes_belong_to_the_run(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet", in_chans=1).state_dict(), tmp_path / "t.safetensors")
    given = dict(network="timm:test_resnet", weights=str(tmp_path / "t.safetensors"), image_size=32, lr=0.01)
    study = plan("demo", {**QUICK, **given})
    assert study.data == (given["weights"],)
    check(study)
    metrics = classification.run(Run.create(tmp_path / "run", settings=settings(**given)))
    assert 0 < metrics["top1"] <= 100


def test_weights_that_do_not_fit_are_refused(trained, tmp_path):
    def refused(match, path, network="small_cnn", channels=1):
        with pytest.raises(UserError, match=match):
            build(network, 10, channels, str(path))

    refused("there is no such file", tmp_path / "none.safetensors")
    refused("there is no such file", tmp_path)
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04K\x01.")
    refused("is not a safetensors file .*Pickles are never read", tmp_path / "pickle.safetensors")
    refused(r"0\.weight is \[32, 1, 3, 3\] there and \[32, 3, 3, 3\] in the network", trained, channels=3)
    refused("belong to another network: it lacks classify.bias, classify.weight, .* and has 0.weight", trained,
            "preact_resnet10_w12")  # fmt: skip


def test_an_image_classifier_of_transformers_is_fine_tuned(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        num_channels=1, num_labels=3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    given = dict(model=str(tmp_path / "vit"), optimizer="adamw", lr=1e-2, epochs=2)
    study = plan("demo", {**QUICK, **given})
    assert study.data == (given["model"],)
    check(study)
    metrics = classification.run(Run.create(tmp_path / "run", settings=settings("pskd", **given)))
    assert 0 < metrics["top1"] <= 100
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"it has no config\.json"):
        build(f"hf:{tmp_path / 'empty'}", 10, 1)
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="is not an image classifier of transformers"):
        build(f"hf:{tmp_path / 'empty'}", 10, 1)


# -- several devices


FLAT = """from torch import nn

def build(num_classes, channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, num_classes))
"""
"""No batch norm, so that two halves of a batch give the whole one's gradient."""


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["pskd", "online_label_smoothing", "temporal_ensembling", "mean_teacher"])
def test_two_devices_train_what_one_does(arm, tmp_path, monkeypatch):
    (tmp_path / "own_flat.py").write_text(FLAT)
    monkeypatch.syspath_prepend(tmp_path)
    found = {}
    for devices in (1, 2):
        more = {} if arm == "pskd" else {"peers": True, "shift": {"kinds": [], "ood": ""}}
        chosen = settings(arm, network="own_flat:build", devices=devices, **more)
        run = Run.create(tmp_path / str(devices), settings=chosen)
        metrics = classification.run(run) if arm == "pskd" else peers_run.run(run)
        predictions = load_file(tmp_path / str(devices) / "predictions.safetensors")
        found[devices] = (metrics, predictions["test_logits"].numpy())
        assert len((tmp_path / str(devices) / "metrics.jsonl").read_text().splitlines()) == 2
    np.testing.assert_allclose(found[1][1], found[2][1], atol=1e-4)
    assert found[2][0]["store_mb"] == found[1][0]["store_mb"] > 0
    assert math.isfinite(found[2][0]["step_ms"])
    assert math.isclose(found[1][0]["train_loss"], found[2][0]["train_loss"], rel_tol=1e-3)


@pytest.mark.parametrize(("arm", "why"), [("cs_kd", "CSKD .*same class pairs"), ("dlb", "DLB .*last batch")])
def test_peers_that_compare_samples_of_a_batch_train_on_one_device(arm, why, tmp_path):
    chosen = settings(arm, devices=2, peers=True)
    with pytest.raises(UserError, match=f"devices = 2, but {why}.*set devices = 1"):
        peers_run.run(Run.create(tmp_path, settings=chosen))
