"""The peers study's task: every arm trains, off equals control, killed and resumed equals uninterrupted."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from retarget.errors import UserError
from retarget.pskd.studies.images import peers_run as peers
from retarget.pskd.studies.images import run as classification
from retarget.pskd.studies.images.analysis import analyse
from retarget.pskd.studies.images.data import Normalise, TrainingSet, split
from retarget.pskd.studies.images.peers_plan import ARMS, PeerSettings
from retarget.pskd.studies.images.shift import shift_scores
from retarget.pskd.study import plan
from retarget.study.claims import judge
from retarget.study.record import Results, Run, read_history
from retarget.study.runner import run_study
from retarget.study.summary import collect, merge

QUICK = {"peers": True, "epochs": 4, "train_images": 250, "validation_images": 50, "shift": {"images": 30}}


def settings(arm, **more):
    study = plan("demo", {**QUICK, **more})
    chosen = next(one for one in study.arms if one.name == arm)
    return study.run_settings(study.conditions[0], chosen)


def model(chosen):
    return PeerSettings.model_validate(chosen)


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """A finished run of the control, for the arms that need a teacher."""
    directory = tmp_path_factory.mktemp("cross_entropy")
    run = Run.create(directory, settings=settings("cross_entropy"), arm="cross_entropy", seed=1)
    metrics = peers.run(run)
    (directory / "status.json").write_text(json.dumps({"state": "complete", "metrics": metrics}))
    return directory, metrics


def weights(directory):
    return torch.load(directory / "checkpoint" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("arm", [arm.name for arm in ARMS])
def test_every_arm_trains_and_reports_its_metrics(arm, tmp_path, control):
    run = Run.create(tmp_path, settings=settings(arm), arm=arm, seed=1, needs={"cross_entropy": control[0]})
    metrics = peers.run(run)
    named = {metric.name for metric in plan("demo", {"peers": True}).metrics}
    of_the_analysis = {"hard_gradient_share", "hard_gradient_middle", "hard_gradient_end", "top1_chance"}
    assert named - set(metrics) == {*of_the_analysis, "identity_error"}
    assert set(metrics) <= named
    assert len(read_history(tmp_path / "metrics.jsonl")) == 4
    assert metrics["top1"] > 10
    assert metrics["step_ms"] > 0
    if arm != "margin_label_smoothing":  # no logits are ten apart so early
        assert metrics["nll"] != control[1]["nll"], "the method changes something"
    keeps = {
        "online_label_smoothing", "tf_kd_self", "born_again", "dlb", "temporal_ensembling", "self_adaptive_training",
        "bsd", "mean_teacher", "weight_ema",
    }  # fmt: skip
    assert (metrics["store_mb"] > 0) == (arm in keeps)
    arrays = load_file(tmp_path / "predictions.safetensors")
    again = shift_scores(arrays)
    for name, value in again.items():
        np.testing.assert_equal(value, metrics[name])


def test_the_control_is_the_classification_studys(control, tmp_path):
    chosen = settings("cross_entropy")
    plain = classification.train(Run.create(tmp_path, settings=chosen, seed=1), model(chosen))
    for name, value in plain.items():
        assert name == "step_ms" or control[1][name] == value, name
    assert control[1]["forwards"] == 1
    assert 0 <= control[1]["ood_auroc"] <= 100


@pytest.mark.parametrize(
    "off",
    [
        {"method": "LabelSmoothing", "smoothing": 0.0},
        {"method": "CSKD", "weight": 0.0},
        {"method": "TemporalEnsembling", "weight": 0.0},
        {"method": "BSD", "weight": 0.0},
        {"method": "WeightEMA", "decay": 0.0},
        {"method": "Mixup", "prob": 0.0},
    ],
    ids=lambda off: off["method"],
)
def test_off_equals_the_control_bit_for_bit(off, tmp_path, control):
    run = Run.create(tmp_path, settings={**settings("cross_entropy"), "peer": off}, seed=1)
    metrics = peers.run(run)
    found, expected = weights(tmp_path), weights(control[0])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert metrics["nll_scaled"] == control[1]["nll_scaled"]


def test_a_weight_average_leaves_the_trained_weights_alone(tmp_path, control):
    peers.run(Run.create(tmp_path, settings=settings("weight_ema"), seed=1))
    found, expected = weights(tmp_path), weights(control[0])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(found[name.replace("network.", "average.")], expected[name]) for name in expected)


def test_an_averages_reach_is_the_published_share_of_the_run(tmp_path):
    def made(arm, **own):
        asked = settings(arm, batch_size=50)
        run = Run.create(tmp_path / arm, settings={**asked, "peer": {**asked["peer"], **own}}, seed=1)
        return peers.make(run, model(run.settings), 50_000, 10, torch.nn.Linear(2, 2), 1)

    teacher = made("mean_teacher")  # 4 epochs of 1,000 steps
    assert teacher.decay_in_ramp == teacher.decay_after == made("weight_ema").decay == pytest.approx(0.9625)
    assert made("weight_ema", decay=0.5).decay == 0.5


def test_a_student_is_not_its_teachers_twin(tmp_path, control):
    """At a learning rate of almost 0 the weights are those that the run began with."""
    first = {}
    for arm in ("label_smoothing", "born_again"):
        still = settings(arm, lr=1e-30, weight_decay=0.0, epochs=1)
        needs = {"cross_entropy": control[0]}
        run = Run.create(tmp_path / arm, settings=still, arm=arm, seed=1, needs=needs)
        peers.run(run)
        first[arm] = weights(run.directory)
    kernels = [name for name, value in first["born_again"].items() if value.ndim > 1]
    assert kernels
    assert not any(torch.equal(*(own[name] for own in first.values())) for name in kernels)


KILLED = """
import json, os, signal, sys, torch
from retarget.pskd.studies.images import peers_run as peers
from retarget.study.record import Run

class Killed(Run):
    def log(self, step, **metrics):
        super().log(step, **metrics)
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
arms = json.loads(sys.argv[2])
for arm in arms:
    if os.fork() == 0:
        peers.run(Killed.create(sys.argv[1] + "/" + arm, settings=arms[arm]))
    assert os.WTERMSIG(os.wait()[1]) == signal.SIGKILL
"""


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    """Methods with a table and one with an average of weights."""
    arms = ("temporal_ensembling", "bsd", "mean_teacher")
    chosen = {arm: settings(arm, epochs=4, shift={"kinds": [], "ood": ""}) for arm in arms}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed"), json.dumps(chosen)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == 0, killed.stderr
    for arm in arms:
        straight = peers.run(Run.create(tmp_path / "straight" / arm, settings=chosen[arm]))
        resumed = peers.run(Run.create(tmp_path / "killed" / arm, settings=chosen[arm]))
        for name, value in straight.items():
            assert name == "step_ms" or resumed[name] == value, (arm, name)
        one, two = ((tmp_path / way / arm / "predictions.safetensors").read_bytes() for way in ("straight", "killed"))
        assert one == two


def test_batches_hold_what_the_method_needs(tmp_path):
    chosen = settings("dlb", augmentation="crop_flip", epochs=3)
    parts = split(model(chosen))
    normalise = Normalise(parts.train)
    run = Run.create(tmp_path, settings=chosen, seed=1)
    control = classification.Data(model(chosen), run.seed, parts, normalise).train_dataloader()
    control.sampler.set_epoch(1)
    plain = [batch[2] for batch in control]
    size = chosen["batch_size"]
    for kind in ("DLB", "CSKD"):
        asked = model({**chosen, "peer": {"method": kind}})
        method = peers.make(run, asked, len(parts.train), 10, torch.nn.Identity(), 1)
        loader = peers.PeerData(asked, run.seed, parts, normalise, method).train_dataloader()
        loader.batch_sampler.sampler.set_epoch(1)
        found = list(loader)
        assert len(found) == len(plain)
        for step, (x, y, index) in enumerate(found):
            assert torch.equal(index[:size], plain[step]), "the new half is the control's batch"
            assert torch.equal(y, parts.train.labels[index])
            data = TrainingSet(parts.train, normalise, "crop_flip", run.seed)
            assert torch.equal(x[:size], data.__getitems__([(1, int(i)) for i in index[:size]])[0])
            if kind == "CSKD":
                assert torch.equal(y[:size], y[size:])
                assert (index[:size] != index[size:]).all()
            elif step:
                assert torch.equal(index[size:], plain[step - 1])
                other = data.__getitems__([(1 + chosen["epochs"], int(i)) for i in index[size:]])[0]
                assert torch.equal(x[size:], other), "the repeated half stands in another augmentation"


def test_an_unknown_method_and_a_missing_teacher_are_refused(tmp_path):
    chosen = {**settings("focal"), "peer": {"method": "Needs"}}
    with pytest.raises(UserError, match="no peer 'Needs'"):
        peers.run(Run.create(tmp_path / "a", settings=chosen))
    with pytest.raises(UserError, match="asks for the run of arm cross_entropy"):
        peers.run(Run.create(tmp_path / "b", settings=settings("born_again")))


def test_the_study_is_resolved_and_the_others_stay_as_they_were():
    study = plan("demo", {"peers": True, "shift": {"severity": 5}})
    assert study.settings["shift"]["severity"] == 5
    assert [arm.name for arm in study.arms][:2] == ["cross_entropy", "pskd"]
    assert len(study.arms) == 20
    assert {claim.arms[1] for claim in study.claims} == {arm.name for arm in ARMS}
    assert {arm.name for arm in study.arms if arm.needs} == {"tf_kd_self", "born_again"}
    assert "shift" not in plan("demo").settings
    with pytest.raises(UserError, match="severity must be at most 5, not 6"):
        plan("demo", {"peers": True, "shift": {"severity": 6}})
    with pytest.raises(UserError, match="there is no setting shift"):
        plan("demo", {"shift": {}})


def test_the_page_ranks_every_method_by_its_mean(tmp_path):
    study = plan("demo", QUICK, seeds=[0, 1], arms=["cross_entropy", "pskd", "label_smoothing", "focal"])
    run_study(study, tmp_path)
    results = Results.load(tmp_path)
    analysis = analyse(results)
    (table,) = [one for one in analysis.figures if one.title.startswith("clean labels: Ranks among 4")]
    means = {
        arm.label: np.mean([results.run("clean", arm.name, seed).metrics["nll"] for seed in (0, 1)])
        for arm in study.arms
    }
    column = table.columns.index("NLL")
    places = {row[0]: int(row[column].split()[0]) for row in table.rows}
    assert sorted(means, key=means.get) == sorted(places, key=places.get)
    heading = "clean labels: Top-1 accuracy (%) under each corruption"
    (table,) = [one for one in analysis.figures if one.title == heading]
    assert table.columns == ["method", "brightness", "contrast", "gaussian blur", "gaussian noise", "jpeg"]
    rows = {method: np.mean([float(value) for value in values]) for method, *values in table.rows}
    for arm in study.arms:
        each = [results.run("clean", arm.name, seed).metrics["corrupt_top1"] for seed in (0, 1)]
        assert rows[arm.label] == pytest.approx(np.mean(each), abs=0.005)
    labels = results.run("noisy", "pskd", 1).predictions()["test_labels"]
    share = np.bincount(labels).max() / len(labels)
    chance = 100 * (share + 3 * (share * (1 - share) / len(labels)) ** 0.5)
    assert analysis.metrics["noisy"]["pskd"]["top1_chance"] == pytest.approx([chance] * 2)
    values = merge(collect(results), analysis, 2)
    values["clean"]["focal"]["top1"] = [chance - 0.1] * 2
    reasons = {one.id: one.reason for one in judge(study, values)}
    assert reasons["calibration_against_focal"].startswith("Not a test of the claim: top-1 accuracy of focal")
    assert not reasons["calibration_against_label_smoothing"].startswith("Not a test")
    fitted = np.mean([results.run("clean", "cross_entropy", seed).metrics["temperature"] for seed in (0, 1)])
    (note,) = [one for one in analysis.notes if one.startswith("clean labels: cross-entropy is")]
    assert f"temperature {fitted:.2f}" in note
    assert ("over-confident" in note) == (fitted >= 1.05)
