"""Ranking of confidence against slow loops, exhaustive oracles and scikit-learn."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from sklearn.metrics import roc_auc_score

from retarget.errors import UserError
from retarget.metrics import augrc, aurc, excess_aurc, failure_auroc, risk_coverage_curve

seeds = st.integers(0, 2**32 - 1)


def scored(seed: int, samples: int, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, all distinct or of few levels, and outcomes that depend on them."""
    rng = np.random.default_rng(seed)
    confidence = rng.permutation(samples) / samples if levels is None else rng.integers(1, levels + 1, samples) / levels
    return confidence, rng.random(samples) < confidence


def loop_aurc(confidence: np.ndarray, correct: np.ndarray) -> float:
    order = sorted(range(len(confidence)), key=lambda i: -confidence[i])  # Python's sort is stable
    wrong, total = 0, 0.0
    for k, i in enumerate(order, start=1):
        wrong += not correct[i]
        total += wrong / k
    return total / len(order)


def loop_augrc(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Sum trapezoids between the existing thresholds."""
    points = [(0.0, 0.0)]
    for threshold in sorted(set(confidence.tolist()), reverse=True):
        kept = confidence >= threshold
        points.append((kept.mean(), (kept & ~correct).mean()))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))


def loop_auroc(confidence: np.ndarray, correct: np.ndarray) -> float:
    pairs = [(c > w) + 0.5 * (c == w) for c in confidence[correct] for w in confidence[~correct]]
    return sum(pairs) / len(pairs) if pairs else math.nan


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("samples", [1, 2, 50])
def test_areas_are_the_loops(samples, levels):
    confidence, correct = scored(samples, samples, levels)
    assert aurc(confidence, correct) == pytest.approx(loop_aurc(confidence, correct), abs=1e-14)
    assert augrc(confidence, correct) == pytest.approx(loop_augrc(confidence, correct), abs=1e-14)
    expected = loop_auroc(confidence, correct)
    assert failure_auroc(confidence, correct) == pytest.approx(expected, abs=1e-14, nan_ok=True)


def test_probabilities_and_labels_give_the_same_as_confidence_and_correctness():
    probs = np.array([[0.6, 0.4], [0.1, 0.9], [0.7, 0.3], [0.45, 0.55]])
    labels = np.array([1, 1, 0, 0])
    confidence, correct = probs.max(1), np.array([False, True, True, False])
    for function in (aurc, excess_aurc, augrc, failure_auroc):
        assert function(probs, labels) == function(confidence, correct)


def test_the_oracle_is_the_best_of_all_orders():
    correct = np.array([True, False, True, True, False])
    confidence = np.array([0.1, 0.9, 0.4, 0.6, 0.5])
    best = min(aurc(np.array(order, dtype=float), correct) for order in itertools.permutations(range(5)))
    assert aurc(confidence, correct) - excess_aurc(confidence, correct) == pytest.approx(best, abs=1e-15)


def test_the_oracle_tends_to_the_published_approximation():
    samples, wrong = 20_000, 5_000
    oracle = aurc(-np.arange(samples, dtype=float), np.arange(samples) < samples - wrong)
    rate = wrong / samples
    assert oracle == pytest.approx(rate + (1 - rate) * math.log(1 - rate), abs=2 / samples)


@given(seed=seeds, samples=st.integers(1, 60), levels=st.sampled_from([None, 1, 3, 10]))
def test_ranges(seed, samples, levels):
    confidence, correct = scored(seed, samples, levels)
    assert 0 <= aurc(confidence, correct) <= 1
    assert 0 <= excess_aurc(confidence, correct) <= aurc(confidence, correct)
    assert 0 <= augrc(confidence, correct) <= 0.5


@given(seed=seeds, samples=st.integers(2, 60), levels=st.sampled_from([None, 3]))
def test_augrc_follows_from_accuracy_and_failure_auroc_which_is_scikit_learns(seed, samples, levels):
    confidence, correct = scored(seed, samples, levels)
    assume(0 < correct.sum() < samples)
    auroc, accuracy = failure_auroc(confidence, correct), correct.mean()
    assert auroc == pytest.approx(roc_auc_score(correct, confidence), abs=1e-12)
    closed = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert augrc(confidence, correct) == pytest.approx(closed, abs=1e-12)


@given(seed=seeds, samples=st.integers(1, 60))
def test_without_ties_order_and_scale_do_not_matter(seed, samples):
    confidence, correct = scored(seed, samples)
    order = np.random.default_rng(seed).permutation(samples)
    for function in (aurc, excess_aurc, augrc, failure_auroc):
        expected = pytest.approx(function(confidence, correct), abs=1e-13, nan_ok=True)
        assert function(confidence[order], correct[order]) == expected
        assert function(np.exp(5 * confidence), correct) == expected


@given(seed=seeds, samples=st.integers(1, 60))
def test_with_ties_augrc_and_failure_auroc_do_not_depend_on_order(seed, samples):
    confidence, correct = scored(seed, samples, levels=3)
    order = np.random.default_rng(seed).permutation(samples)
    for function in (augrc, failure_auroc):
        expected = pytest.approx(function(confidence, correct), abs=1e-13, nan_ok=True)
        assert function(confidence[order], correct[order]) == expected


def test_equal_confidences_keep_the_order_in_which_they_were_given():
    confidence = np.full(100, 0.5)
    wrong_first, wrong_last = np.arange(100) >= 50, np.arange(100) < 50
    assert aurc(confidence, wrong_last) == pytest.approx(loop_aurc(confidence, wrong_last), abs=1e-14)
    assert aurc(confidence, wrong_first) == pytest.approx(loop_aurc(confidence, wrong_first), abs=1e-14)
    assert aurc(confidence, wrong_first) > aurc(confidence, wrong_last)


@given(seed=seeds, samples=st.integers(1, 6), levels=st.integers(1, 3))
def test_the_expected_area_is_the_mean_over_all_orders_of_equal_confidences(seed, samples, levels):
    confidence, correct = scored(seed, samples, levels)
    areas = [aurc(confidence[list(at)], correct[list(at)]) for at in itertools.permutations(range(samples))]
    assert aurc(confidence, correct, ties="expected") == pytest.approx(np.mean(areas), abs=1e-12)
    distinct, right = scored(seed, samples)
    assert aurc(distinct, right, ties="expected") == pytest.approx(aurc(distinct, right), abs=1e-14)


def test_an_unknown_way_with_ties_is_refused():
    with pytest.raises((UserError, TypeCheckError), match="ties"):
        aurc(np.array([0.5, 0.5]), np.array([True, False]), ties="random")


def test_without_an_error_or_without_a_hit_nothing_can_be_told_apart():
    confidence = np.array([0.9, 0.4])
    assert math.isnan(failure_auroc(confidence, np.array([True, True])))
    assert math.isnan(failure_auroc(confidence, np.array([False, False])))
    assert aurc(confidence, np.array([True, True])) == 0 == augrc(confidence, np.array([True, True]))
    assert aurc(confidence, np.array([False, False])) == 1
    assert augrc(confidence, np.array([False, False])) == 0.5


def test_the_curve_ends_at_the_error_rate():
    confidence, correct = scored(3, 40)
    curve = risk_coverage_curve(confidence, correct)
    assert curve.coverage[-1] == 1
    assert curve.risk[-1] == curve.generalised_risk[-1] == pytest.approx(1 - correct.mean())
    np.testing.assert_allclose(curve.risk * curve.coverage, curve.generalised_risk, atol=1e-15)
    assert curve.risk.mean() == aurc(confidence, correct)
