"""The task itself: every arm trains, killed and resumed equals uninterrupted, mixed images store no row."""

import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from retarget.pskd.studies.images import run as classification
from retarget.pskd.studies.images.caveats import at_an_end, chosen_at, known_after_temperature, no_temperature, on_data
from retarget.pskd.studies.images.classes import DATA
from retarget.pskd.studies.images.data import split
from retarget.pskd.studies.images.plan import ARMS
from retarget.pskd.studies.images.scores import UNKNOWN
from retarget.pskd.studies.images.settings import Settings
from retarget.pskd.study import plan
from retarget.settings import resolve_settings
from retarget.study.record import Results, Run, read_history, run_directory, write_status
from retarget.study.runner import run_study

QUICK = {"epochs": 4, "train_images": 250, "validation_images": 50}


def settings(arm, **more):
    chosen = next(one for one in plan("demo", {**QUICK, **more}, arms=["all"]).arms if one.name == arm)
    study = plan("demo", {**QUICK, **more}, arms=["all"])
    return study.run_settings(study.conditions[1], chosen)


@pytest.mark.parametrize("arm", [arm.name for arm in ARMS])
def test_every_arm_trains_and_reports_its_metrics(arm, tmp_path):
    run = Run.create(tmp_path, settings=settings(arm), arm=arm, seed=1)
    metrics = classification.run(run)
    named = {metric.name for metric in plan("demo").metrics}
    assert set(metrics) <= named
    later = {"hard_gradient_share", "hard_gradient_middle", "hard_gradient_end", "top1_chance"}
    assert named - set(metrics) - {"identity_error"} == later, "the analysis's"
    assert 10 < metrics["top1"] <= 100
    assert len(read_history(tmp_path / "metrics.jsonl")) == 4
    assert (metrics["store_mb"] > 0) == ("pskd" in settings(arm)["targets"])
    if arm in ("pskd", "past_of_class", "constant_alpha"):
        assert 0 < metrics["identity_error"] < 1e-5


@pytest.mark.parametrize(
    ("question", "arm", "condition"),
    [("past", "previous", "trivial"), ("cutmix", "rows_of_mixed", "default"), ("cutmix", "previous", "default")],
)
def test_arms_that_only_a_question_has(question, arm, condition, tmp_path):
    study = plan("demo", {**QUICK, "question": question})
    arms, conditions = ({one.name: one for one in many} for many in (study.arms, study.conditions))
    run = Run.create(tmp_path, settings=study.run_settings(conditions[condition], arms[arm]))
    metrics = classification.run(run)
    assert 10 < metrics["top1"] <= 100
    assert metrics["store_mb"] > 0


def test_gradients_on_the_same_weights_are_those_of_each_target(tmp_path):
    """The norms add up, and the study shows their shares under the arm whose targets they are."""
    study = plan(
        "demo", {**QUICK, "label_noise": 0.0}, seeds=[0, 1], arms=["cross_entropy", "pskd", "smoothing_schedule"]
    )
    summary = run_study(study, tmp_path, command=["retarget", "study", "pskd"]).summary
    for seed in (0, 1):
        arrays = {
            arm.name: load_file(tmp_path / "runs" / arm.name / f"seed-{seed}" / "predictions.safetensors")
            for arm in study.arms
        }
        assert [name for name, one in arrays.items() if "gradient_same_weights" in one] == ["pskd"]
        middle, end = arrays["pskd"]["gradient_same_weights"]
        seen = ~np.isnan(arrays["pskd"]["gradient_norm"])
        np.testing.assert_array_equal(np.isnan(end), np.broadcast_to(~seen, end.shape))
        np.testing.assert_allclose(end[0, seen], arrays["pskd"]["gradient_norm"][seen], rtol=1e-5)
        # |p - t|_1 of a hard label is 2 (1 - p_y), at most 2; smoothing by a share a moves each row by at most 2a
        assert np.nanmax(end[1]) <= 2 + 1e-6
        assert np.nanmax(np.abs(end[1] - end[2])) <= 2 * 0.8 + 1e-6
        assert np.nanmax(np.abs(middle[1] - middle[2])) <= 2 * 0.4 + 1e-6, "alpha is 0.4 in epoch 2 of 4"
        # Difficulty is 1 - p_y under the cross-entropy model of the other seed.
        other = tmp_path / "runs" / "cross_entropy" / f"seed-{1 - seed}" / "predictions.safetensors"
        order = np.argsort(-load_file(other)["train_p_true"], kind="stable")
        hardest = np.array_split(order, 10)[-1]
        for at, arm in enumerate(("pskd", "cross_entropy", "smoothing_schedule")):
            share = 100 * np.nansum(end[at][hardest]) / np.nansum(end[at])
            found = summary["conditions"]["default"][arm]["hard_gradient_end"]["values"][seed]
            assert found == pytest.approx(share, rel=1e-5)


def test_gradients_on_the_same_weights_agree_where_nothing_is_softened(tmp_path):
    off = Run.create(tmp_path, settings=settings("pskd", alpha_T=0.0))
    classification.run(off)
    pskd, hard, smooth = load_file(tmp_path / "predictions.safetensors")["gradient_same_weights"][1]
    np.testing.assert_allclose(pskd, hard, atol=1e-6)
    np.testing.assert_allclose(smooth, hard, atol=1e-6)


def test_alpha_zero_equals_cross_entropy_bit_for_bit(tmp_path):
    classification.run(Run.create(tmp_path / "off", settings=settings("pskd", alpha_T=0.0)))
    classification.run(Run.create(tmp_path / "control", settings=settings("cross_entropy")))
    weights = [
        torch.load(tmp_path / arm / "checkpoint" / "last.ckpt", weights_only=True)["state_dict"]
        for arm in ("off", "control")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


KILLED = """
import json, os, signal, sys, torch
from retarget.pskd.studies.images import run as classification
from retarget.study.record import Run

class Killed(Run):
    def log(self, step, **metrics):
        super().log(step, **metrics)
        if step + 1 == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
classification.run(Killed.create(sys.argv[1], settings=json.loads(sys.argv[2])))
"""


@pytest.mark.parametrize("arm", ["pskd", "cutmix_pskd"])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(arm, tmp_path):
    straight = classification.run(Run.create(tmp_path / "straight", settings=settings(arm)))
    for epoch in (3, 4):  # once in the middle, once when the last epoch is over but not saved
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path / "killed"), json.dumps(settings(arm)), str(epoch)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL
    run = Run.create(tmp_path / "killed", settings=settings(arm))
    resumed = classification.run(run)
    for name, value in straight.items():
        assert name == "step_ms" or resumed[name] == value, name
    assert read_history(tmp_path / "killed" / "metrics.jsonl") == read_history(tmp_path / "straight" / "metrics.jsonl")
    one, two = ((tmp_path / d / "predictions.safetensors").read_bytes() for d in ("straight", "killed"))
    assert one == two


def test_a_mixed_batch_reads_rows_and_stores_none(tmp_path, monkeypatch):
    written = []
    remember = classification.PSKDCallback.do_not_remember
    monkeypatch.setattr(
        classification.PSKDCallback, "do_not_remember", lambda self: (written.append(self), remember(self))[1]
    )
    run = Run.create(tmp_path, settings=settings("cutmix_pskd", mixing_prob=0.999))
    with pytest.warns(UserWarning, match="had no past row and kept their hard labels"):
        classification.run(run)
    callback = written[0]
    assert len(written) >= 15
    callback.method.past.table.begin(3)
    stored = callback.method.past.table.gather(torch.arange(200))[1].sum()
    assert stored <= 50 * (16 - len(written)), "only batches left alone are stored"


def test_predictions_are_enough_to_compute_every_metric_again(tmp_path):
    from safetensors.numpy import load_file

    from retarget.pskd.studies.images.scores import scores

    metrics = classification.run(Run.create(tmp_path, settings=settings("pskd")))
    again = scores(load_file(Path(tmp_path) / "predictions.safetensors"))
    for name, value in again.items():
        np.testing.assert_equal(value, metrics[name])


def test_a_temperature_at_an_end_of_its_range_is_told_with_arm_and_seeds(tmp_path):
    study = plan("demo", arms=["cross_entropy", "pskd"], seeds=[0, 3])
    fitted = {("cross_entropy", 0): 0.1, ("cross_entropy", 3): 10.0, ("pskd", 0): 1.3, ("pskd", 3): 0.1}
    for (arm, seed), value in fitted.items():
        directory = run_directory(tmp_path, study, "clean", arm, seed)
        directory.mkdir(parents=True)
        write_status(directory, {"state": "complete", "metrics": {"temperature": value}})
    said = at_an_end(Results(tmp_path, study), "clean")
    assert "end of its search range, 0.1 to 10, for cross-entropy (seeds 0, 3), PS-KD (seed 3): no" in said
    assert at_an_end(Results(tmp_path, study), "noisy") == ""


def test_the_page_says_which_images_were_used_and_which_of_them_twice(tmp_path):
    study = plan("demo", arms=["cross_entropy", "pskd"], seeds=[0])
    directory = run_directory(tmp_path, study, "clean", "pskd", 0)
    directory.mkdir(parents=True)
    write_status(directory, {"state": "complete", "metrics": {}})
    assert on_data(Results(tmp_path, study), "clean") == []  # a record of an earlier version
    parts = {"training": 5000, "validation": 200, "test": 359}
    told = {"parts": parts, "classes": 10, "repeated": {"validation": 0, "test": 7}, "unseen": 2}
    (directory / DATA).write_text(json.dumps(told))
    counts, twice, unseen = on_data(Results(tmp_path, study), "clean")
    assert counts == "10 classes; 5,000 training, 200 validation, 359 test images."
    assert twice.startswith("7 of the 359 test images are also training images, pixel by pixel")
    assert unseen == "2 of the test images' classes have no training image, and count as wrong."
    (directory / DATA).write_text(json.dumps({**told, "unseen_in_validation": 3}))
    lost = "3 of the validation images' classes have no training image, and count as wrong."
    assert on_data(Results(tmp_path, study), "clean") == [counts, twice, unseen, lost]


@pytest.mark.parametrize("shared", [None, 0, 150])  # None: a record of an earlier version
def test_a_choice_on_test_images_is_told_and_not_denied(shared, tmp_path):
    study = plan("demo", arms=["cross_entropy", "pskd"], seeds=[0])
    directory = run_directory(tmp_path, study, "noisy", "pskd", 0)
    directory.mkdir(parents=True)
    write_status(directory, {"state": "complete", "metrics": {}})
    parts = {"training": 5000, "validation": 1200, "test": 359}
    told = {"parts": parts, "classes": 10, "repeated": {"validation": 0, "test": 0}, "unseen": 0}
    (directory / DATA).write_text(json.dumps(told if shared is None else {**told, "validation_in_test": shared}))
    results = Results(tmp_path, study)
    said = [
        "150 of the 1,200 validation images are also test images, pixel by pixel: the selected epoch and the "
        "temperature are chosen on the test set there. Leave them out of one of the two parts."
    ]
    assert on_data(results, "noisy")[1:] == (said if shared else [])
    assert chosen_at(results).endswith("validation accuracy." + " No choice is made on the test set." * (not shared))


def test_without_a_wrong_validation_image_nothing_after_temperature_is_decided(tmp_path):
    """Such runs have no temperature: their figures after it are the raw ones, which once decided claims on it."""
    study = plan("demo", arms=["cross_entropy", "pskd"], seeds=[0, 1, 2])
    for condition in study.conditions:
        for arm, level in (("cross_entropy", 0.9), ("pskd", 0.5)):
            for seed in study.seeds:
                directory = run_directory(tmp_path, study, condition.name, arm, seed)
                directory.mkdir(parents=True)
                known = condition.name == "noisy" or seed == 2
                found = dict.fromkeys(("nll", "ece", "nll_scaled", "ece_scaled", "aurc_scaled"), level + 0.01 * seed)
                write_status(directory, {"state": "complete", "metrics": {
                    **found, "temperature": 1.5 if known else UNKNOWN}})  # fmt: skip
    results = Results(tmp_path, study)
    known = known_after_temperature(results, "clean")
    assert {arm: found["nll_scaled"] for arm, found in known.items()} == {
        "cross_entropy": [None, None, pytest.approx(0.92)], "pskd": [None, None, pytest.approx(0.52)]
    }  # fmt: skip
    assert known_after_temperature(results, "noisy") == {}
    said = no_temperature(results, "clean")
    assert "every validation image is right for cross-entropy (seeds 0, 1), PS-KD (seeds 0, 1), so no temp" in said
    assert no_temperature(results, "noisy") == ""
    assert {name for found in known.values() for name in found} == {"nll_scaled", "ece_scaled", "aurc_scaled"}


def test_killed_before_its_predictions_a_run_still_has_its_step_time(tmp_path):
    run = Run.create(tmp_path, settings=settings("pskd"))
    first = classification.run(run)
    (tmp_path / "predictions.safetensors").unlink()
    assert classification.run(Run.create(tmp_path, settings=settings("pskd"))) == first


@pytest.mark.parametrize("classes", [3, 8])
def test_a_validation_part_that_is_all_right_and_few_classes_leave_every_metric_finite(classes):
    from retarget.pskd.studies.images.scores import scores

    labels = np.arange(60) % classes
    sure = 400.0 * np.eye(classes, dtype=np.float32)[labels]
    test = sure.copy()
    test[0] = np.roll(test[0], 1)  # one test image confidently wrong
    arrays = dict(
        test_logits=test, val_logits=sure, test_logits_selected=test, val_logits_selected=sure,
        test_labels=labels, val_labels=labels, selected_epoch=np.array([3]),
    )  # fmt: skip
    found = scores(arrays)
    assert all(np.isfinite(value) for value in found.values())
    assert ("top5" in found) == (classes > 5)


def test_the_training_images_logits_are_not_all_kept_at_once(tmp_path, monkeypatch):
    """ImageNet's are 5 GB on the GPU, and 20 GB more on the host in float64."""
    settings_ = resolve_settings(Settings, settings("cross_entropy", evaluation_batch=20))
    parts, alive = split(settings_), [[]]
    normalise = classification.Normalise(parts.train)
    torch.manual_seed(0)
    module = classification.Classifier(classification.build("small_cnn", 10, 1), settings_)
    module.register_forward_hook(lambda module, args, output: alive[-1].append(weakref.ref(output)))
    plain = classification.evaluation_loader

    def watched(images, *args):
        alive.append([])
        for batch in plain(images, *args):
            if images is parts.train:
                assert sum(one() is not None for one in alive[-1]) <= 2
            yield batch

    monkeypatch.setattr(classification, "evaluation_loader", watched)
    torch.save({"epoch": 0, "state_dict": module.state_dict()}, tmp_path / "selected.ckpt")
    arrays = classification.predict(module, parts, normalise, settings_, tmp_path / "selected.ckpt")
    with torch.no_grad():
        expected = torch.softmax(module(normalise(parts.train.pixels)).double(), 1)
    np.testing.assert_allclose(arrays["train_p_true"], expected[range(len(expected)), parts.clean_labels], rtol=1e-5)
    np.testing.assert_array_equal(arrays["train_correct"], expected.argmax(1) == parts.clean_labels)
