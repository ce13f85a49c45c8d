"""Calibration against slow float64 loops written from the definitions, and against scikit-learn and torchmetrics."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error

from retarget.errors import UserError
from retarget.metrics import (
    accuracy,
    apply_temperature,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_diagram,
    top_k_error,
)

SCHEMES = ["equal_width", "equal_mass"]


def predictions(seed: int, samples: int = 300, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose label is drawn from a flatter distribution: over-confident."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(samples, classes))
    probs = apply_temperature(logits, 1.0)
    labels = np.array([rng.choice(classes, p=row) for row in apply_temperature(logits, 2.0)])
    return probs, labels


def loop_edges(confidence: list[float], bins: int, scheme: str) -> list[float]:
    if scheme == "equal_width":
        return [i / bins for i in range(bins + 1)]
    ordered = sorted(confidence)
    return [0.0] + [ordered[math.ceil(i * len(ordered) / bins) - 1] for i in range(1, bins + 1)]


def loop_debiased_gap(right: float, confidence: float, count: int) -> float:
    """2 |gap| minus the mean of |redrawn accuracy - confidence|, the integral done numerically."""
    spread = math.sqrt(right * (1 - right) / count)
    if spread == 0:
        return abs(right - confidence)
    normal = stats.norm(right, spread)
    low, high = right - 12 * spread, right + 12 * spread
    middle = min(max(confidence, low), high)
    redrawn = sum(
        integrate.quad(lambda x: abs(x - confidence) * normal.pdf(x), a, b, limit=200)[0]
        for a, b in ((low, middle), (middle, high))
    )
    return 2 * abs(right - confidence) - redrawn


def loop_ece(probs: np.ndarray, labels: np.ndarray, bins: int, scheme: str, debiased: bool) -> float:
    confidence, correct = [], []
    for row, label in zip(probs.tolist(), labels.tolist(), strict=True):
        confidence.append(max(row))
        correct.append(row.index(max(row)) == label)
    edges = loop_edges(confidence, bins, scheme)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        members = [i for i, value in enumerate(confidence) if low < value <= high]
        if members:
            mean = sum(confidence[i] for i in members) / len(members)
            right = sum(correct[i] for i in members) / len(members)
            gap = loop_debiased_gap(right, mean, len(members)) if debiased else abs(right - mean)
            total += len(members) / len(confidence) * gap
    return total


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_is_the_loops(bins, scheme, debiased):
    probs, labels = predictions(seed=bins)
    expected = loop_ece(probs, labels, bins, scheme, debiased)
    assert expected_calibration_error(probs, labels, bins, scheme, debiased) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 0.02)],
)
def test_tensors_of_every_type_give_the_value_of_arrays(dtype, tolerance):
    probs, labels = predictions(seed=3)
    tensor = torch.from_numpy(probs).to(dtype).requires_grad_()
    value = expected_calibration_error(tensor, torch.from_numpy(labels), bins=1)
    assert value == pytest.approx(expected_calibration_error(probs, labels, bins=1), abs=tolerance)


def test_bins_are_open_below_and_closed_above_where_torchmetrics_has_it_the_other_way():
    probs = np.array([[0.5, 0.5], [0.9, 0.1]])
    labels = np.array([1, 0])
    assert expected_calibration_error(probs, labels, bins=2) == pytest.approx((0.5 + 0.1) / 2)
    theirs = multiclass_calibration_error(torch.tensor(probs), torch.tensor(labels), num_classes=2, n_bins=2)
    assert theirs.item() == pytest.approx(abs(0.5 - 0.7))


@pytest.mark.parametrize("bins", [10, 15])
def test_torchmetrics_agrees_where_no_confidence_lies_on_an_edge(bins):
    probs, labels = predictions(seed=5, samples=2000)
    theirs = multiclass_calibration_error(torch.tensor(probs), torch.tensor(labels), num_classes=5, n_bins=bins)
    assert expected_calibration_error(probs, labels, bins) == pytest.approx(theirs.item(), abs=1e-6)


def test_reliability_diagram_is_scikit_learns_also_on_edges():
    confidence = np.array([0.25, 0.5, 0.75, 0.3, 0.6, 0.99, 1.0, 0.5])
    correct = np.array([True, False, True, False, True, True, True, True])
    right, mean = calibration_curve(correct, confidence, n_bins=4, strategy="uniform")
    diagram = reliability_diagram(confidence, correct, bins=4)
    filled = diagram.count > 0
    np.testing.assert_allclose(diagram.accuracy[filled], right)
    np.testing.assert_allclose(diagram.confidence[filled], mean)
    assert diagram.count.tolist() == [1, 3, 2, 2]


def test_bins_of_equal_mass_keep_ties_together_and_hold_equally_many_otherwise():
    ties = reliability_diagram(np.array([0.9] * 6 + [0.2, 0.3]), np.ones(8, bool), bins=4, scheme="equal_mass")
    assert ties.count.tolist() == [2, 6, 0, 0]
    probs, labels = predictions(seed=1, samples=307)
    assert set(reliability_diagram(probs, labels, 15, "equal_mass").count.tolist()) == {20, 21}
    few = reliability_diagram(np.array([0.4, 0.8]), np.array([True, True]), bins=15, scheme="equal_mass")
    assert few.count.sum() == 2


def test_a_confidence_of_zero_falls_into_the_first_bin():
    assert reliability_diagram(np.array([0.0, 0.05]), np.array([False, True])).count[0] == 2


KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bins", [5, 10, 15, 100])
def test_a_confidence_on_an_edge_falls_into_the_bin_below_in_every_type(kind, bins):
    edges = torch.arange(1, bins + 1, dtype=torch.float64) / bins
    diagram = reliability_diagram(edges.to(kind), torch.ones(bins, dtype=torch.bool), bins)
    assert diagram.count.tolist() == [1] * bins
    assert diagram.upper.tolist() == edges.tolist()


def test_confidences_on_an_edge_have_one_calibration_error_in_every_type():
    """(0.5, 0.6] has 50 samples, 20 of them right, and (0.6, 0.7] 50, 42 of them right."""
    confidence = np.array([0.6] * 50 + [0.65] * 50)
    correct = np.arange(100) % 50 < np.repeat([20, 42], 50)
    expected = (0.2 + 0.19) / 2
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-12)
    assert expected_calibration_error(confidence.astype(np.float32), correct) == pytest.approx(expected, abs=1e-6)
    assert expected_calibration_error(confidence.astype(np.float16), correct) == pytest.approx(expected, abs=1e-3)
    two = np.stack([confidence, 1 - confidence], 1).astype(np.float32)
    assert expected_calibration_error(two, 1 - correct.astype(int)) == pytest.approx(expected, abs=1e-6)


def test_random_confidences_in_float32_have_the_bins_of_the_same_numbers_in_float64():
    confidence = np.random.default_rng(0).random(100_000).astype(np.float32)
    for bins in (10, 15):
        one, two = (
            reliability_diagram(c, np.ones(100_000, bool), bins) for c in (confidence, confidence.astype(float))
        )
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


@given(seed=st.integers(0, 2**32 - 1), scheme=st.sampled_from(SCHEMES), debiased=st.booleans())
def test_ece_does_not_depend_on_the_order_of_samples_even_with_ties(seed, scheme, debiased):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(1, 8, size=40) / 7
    correct = rng.random(40) < confidence
    order = rng.permutation(40)
    value = expected_calibration_error(confidence, correct, 5, scheme, debiased)
    assert expected_calibration_error(confidence[order], correct[order], 5, scheme, debiased) == pytest.approx(value)
    assert value <= 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_perfect_calibration_has_no_error(scheme):
    confidence = np.repeat([0.25, 0.5, 0.75], 8)
    correct = np.concatenate([np.arange(8) < 8 * c for c in (0.25, 0.5, 0.75)])
    assert expected_calibration_error(confidence, correct, 10, scheme) == pytest.approx(0, abs=1e-15)


def test_debiasing_removes_two_fifths_of_the_bias_at_perfect_calibration_and_moves_a_large_error_little():
    rng = np.random.default_rng(0)
    plain, debiased = [], []
    for _ in range(200):
        confidence = rng.uniform(0.3, 1, size=600)
        correct = rng.random(600) < confidence
        plain.append(expected_calibration_error(confidence, correct, 15, "equal_mass"))
        debiased.append(expected_calibration_error(confidence, correct, 15, "equal_mass", debiased=True))
    assert 0.5 < np.mean(debiased) / np.mean(plain) < 0.66  # 2 - sqrt 2 for a normal accuracy
    confidence, correct = np.full(600, 0.9), np.arange(600) < 300
    assert expected_calibration_error(confidence, correct, debiased=True) == pytest.approx(0.4, abs=1e-12)


def test_likelihood_brier_and_top_k_are_the_loops_and_the_libraries():
    probs, labels = predictions(seed=7, samples=200)
    rows = list(zip(probs.tolist(), labels.tolist(), strict=True))
    nll = sum(-math.log(row[label]) for row, label in rows) / len(rows)
    brier = sum(sum((p - (c == label)) ** 2 for c, p in enumerate(row)) for row, label in rows) / len(rows)
    assert negative_log_likelihood(probs, labels) == pytest.approx(nll, rel=1e-12)
    assert negative_log_likelihood(probs, labels) == pytest.approx(log_loss(labels, probs), rel=1e-12)
    assert brier_score(probs, labels) == pytest.approx(brier, rel=1e-12)
    for k in (1, 2, 4):
        theirs = top_k_accuracy_score(labels, probs, k=k, labels=range(5))
        assert top_k_error(probs, labels, k) == pytest.approx(1 - theirs, abs=1e-12)
    assert accuracy(probs, labels) == np.mean(probs.argmax(1) == labels)


def test_brier_score_is_twice_the_binary_one():
    probs, labels = predictions(seed=2, classes=2)
    assert brier_score(probs, labels) == pytest.approx(2 * brier_score_loss(labels, probs[:, 1]), rel=1e-12)


def test_equal_probabilities_rank_by_class_number():
    probs = np.full((4, 4), 0.25)
    labels = np.arange(4)
    assert [top_k_error(probs, labels, k) for k in (1, 2, 3, 4)] == [0.75, 0.5, 0.25, 0.0]
    assert accuracy(probs, labels) == 0.25


def test_a_label_of_probability_zero_makes_the_likelihood_infinite():
    assert negative_log_likelihood(np.array([[1.0, 0.0]]), np.array([1])) == math.inf


@pytest.mark.parametrize(("bins", "message"), [(0, "bins must be at least 1: got 0"), (-3, "got -3")])
def test_bins_below_one_are_refused(bins, message):
    with pytest.raises(UserError, match=message):
        expected_calibration_error(*predictions(seed=0), bins=bins)


@pytest.mark.parametrize("k", [0, 6])
def test_k_outside_the_classes_is_refused(k):
    with pytest.raises(UserError, match=rf"k must lie in \[1, 5\], the number of classes: got {k}"):
        top_k_error(*predictions(seed=0), k=k)
