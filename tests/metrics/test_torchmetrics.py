"""The Metric classes are the functions: in batches, as logits, in collections, over two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from retarget import metrics as m
from retarget.errors import UserError

PAIRS = [
    (m.ExpectedCalibrationError, m.expected_calibration_error),
    (m.AURC, m.aurc),
    (m.ExcessAURC, m.excess_aurc),
    (m.AUGRC, m.augrc),
    (m.FailureAUROC, m.failure_auroc),
    (m.NegativeLogLikelihood, m.negative_log_likelihood),
    (m.BrierScore, m.brier_score),
]


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(71, 4, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(torch.softmax(logits / 2, 1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize(("metric", "function"), PAIRS)
def test_batches_logits_and_reset(metric, function, data):
    logits, labels = data
    expected = pytest.approx(function(m.softmax(logits), labels), abs=1e-14)
    of_probs, of_logits = metric(), metric(logits=True)
    for part, target in zip(logits.split(16), labels.split(16), strict=True):
        probs = torch.from_numpy(m.softmax(part))
        assert of_probs(probs, target).item() == pytest.approx(function(probs, target), abs=1e-14, nan_ok=True)
        of_logits.update(part, target)
    assert of_probs.compute().item() == expected
    assert of_logits.compute().item() == expected
    of_probs.reset()
    of_probs.update(torch.from_numpy(m.softmax(logits)), labels)
    assert of_probs.compute().item() == expected


def test_the_calibration_error_takes_the_functions_settings(data):
    probs, labels = torch.from_numpy(m.softmax(data[0])), data[1]
    metric = m.ExpectedCalibrationError(bins=15, scheme="equal_mass", debiased=True)
    metric.update(probs, labels)
    expected = m.expected_calibration_error(probs, labels, bins=15, scheme="equal_mass", debiased=True)
    assert metric.compute().item() == pytest.approx(expected, abs=1e-14)
    with pytest.raises(UserError, match="bins must be at least 1"):
        m.ExpectedCalibrationError(bins=0)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16])
def test_the_calibration_error_has_the_functions_bins_in_every_type(kind):
    confidence = torch.tensor([0.6] * 50 + [0.65] * 50, dtype=torch.float64)
    probs = torch.stack([confidence, 1 - confidence], 1).to(kind)
    labels = (torch.arange(100) % 50 >= torch.tensor([20, 42]).repeat_interleave(50)).long()
    metric = m.ExpectedCalibrationError()
    for part, target in zip(probs.split(16), labels.split(16), strict=True):
        metric(part, target)
    assert metric.compute().item() == m.expected_calibration_error(probs, labels)
    assert metric.compute().item() == pytest.approx(0.195, abs=1e-3)
    metric.reset()
    metric.update(probs.double(), labels)
    assert metric.compute().item() == m.expected_calibration_error(probs.double(), labels)


def test_the_likelihood_of_logits_that_are_far_apart_is_finite():
    logits, labels = torch.tensor([[0.0, 800.0, -5.0], [2.0, 1.0, 0.0]]), torch.tensor([0, 0])
    metric = m.NegativeLogLikelihood(logits=True)
    metric.update(logits, labels)
    expected = torch.nn.functional.cross_entropy(logits.double(), labels).item()
    assert metric.compute().item() == pytest.approx(expected, rel=1e-14)
    with pytest.raises(UserError, match="label 3 of row 1 lies outside"):
        metric.update(logits, torch.tensor([0, 3]))
    with pytest.raises(UserError, match="logits of row 0, class 1, are inf"):
        metric.update(logits.where(logits < 800, torch.inf), labels)


def test_a_collection_of_all_of_them(data):
    probs, labels = torch.from_numpy(m.softmax(data[0])), data[1]
    collection = MetricCollection([metric() for metric, _ in PAIRS])
    for part, target in zip(probs.split(16), labels.split(16), strict=True):
        collection.update(part, target)
    values = collection.compute()
    for metric, function in PAIRS:
        assert values[metric.__name__].item() == pytest.approx(function(probs, labels), abs=1e-14)


@pytest.mark.parametrize("order", [1, -1])
def test_losses_that_begin_alike_are_not_taken_for_one(order):
    """A collection merges metrics for good whose states are equal after the first batch; here both losses are 0."""
    probs, labels = torch.tensor([[1.0, 0.0], [0.4, 0.6]]), torch.tensor([0, 0])
    collection = MetricCollection([m.NegativeLogLikelihood(), m.BrierScore()][::order])
    for row in (slice(0, 1), slice(1, 2)):
        collection.update(probs[row], labels[row])
    values = collection.compute()
    assert values["NegativeLogLikelihood"].item() == pytest.approx(-np.log(0.4) / 2)
    assert values["BrierScore"].item() == pytest.approx((0.6**2 + 0.6**2) / 2)


def test_a_bad_batch_is_refused_and_leaves_no_trace(data):
    probs, labels = torch.from_numpy(m.softmax(data[0])), data[1]
    metric = m.AURC()
    metric.update(probs, labels)
    with pytest.raises(UserError, match="label 4 of row 0 lies outside"):
        metric.update(probs, torch.full_like(labels, 4))
    assert metric.compute().item() == pytest.approx(m.aurc(probs, labels))


def test_two_processes_are_one_also_when_one_has_no_samples(data, tmp_path):
    probs, labels = m.softmax(data[0]), data[1].numpy()
    np.savez(tmp_path / "data.npz", probs=probs, labels=labels)
    worker = Path(__file__).with_name("gloo_worker.py")
    processes = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), tmp_path / "meet", tmp_path / "data.npz", tmp_path / f"{rank}.json"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=900) for process in processes] == [0, 0]
    for rank in range(2):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(results) == len(PAIRS)
        for metric, function in PAIRS:
            expected = pytest.approx(function(probs, labels), abs=1e-14)
            assert results[metric.__name__] == [expected, expected]
