"""Calibration: is a classifier as confident as it is accurate? Takes NumPy arrays or tensors, computes in float64.

This module has calibration proper (ECE, NLL, Brier score, reliability diagram) and error rates. It also re-exports the
ranking of confidences (:mod:`retarget.metrics._ranking`) and temperature scaling
(:mod:`retarget.metrics._temperature`). The same metrics as ``torchmetrics.Metric`` classes are in
:mod:`retarget.metrics.torchmetrics`.

Probabilities are [N, C], finite, not negative, and each row sums to 1. The confidence of a sample is its largest
probability, its prediction the first class with that probability. Functions that need only confidence and correctness
also accept ``confidence`` [N] and ``correct`` [N] (booleans) instead of ``probs`` and ``labels``.
"""

from math import erf, exp, pi, sqrt
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Integer

from retarget.errors import UserError
from retarget.metrics._inputs import (
    Judged,
    Labels,
    Predictions,
    checked_integer,
    checked_labels,
    checked_probs,
    judge,
)
from retarget.metrics._ranking import (
    RiskCoverage,
    augrc,
    aurc,
    excess_aurc,
    failure_auroc,
    risk_coverage_curve,
)
from retarget.metrics._temperature import TEMPERATURE_RANGE, apply_temperature, fit_temperature, softmax

__all__ = [
    "TEMPERATURE_RANGE",
    "ReliabilityBins",
    "RiskCoverage",
    "accuracy",
    "apply_temperature",
    "augrc",
    "aurc",
    "brier_score",
    "excess_aurc",
    "expected_calibration_error",
    "failure_auroc",
    "fit_temperature",
    "negative_log_likelihood",
    "reliability_diagram",
    "risk_coverage_curve",
    "softmax",
    "top_k_error",
]

Scheme = Literal["equal_width", "equal_mass"]


class ReliabilityBins(NamedTuple):
    """One entry per bin, from the least to the most confident.

    Attributes:
        lower: [B]; a bin contains confidences in (lower, upper].
        upper: [B].
        count: [B], number of samples.
        confidence: [B], their mean confidence; NaN in an empty bin.
        accuracy: [B], the share of correct predictions among them; NaN in an empty bin.
    """

    lower: Float[np.ndarray, "bins"]
    upper: Float[np.ndarray, "bins"]
    count: Integer[np.ndarray, "bins"]
    confidence: Float[np.ndarray, "bins"]
    accuracy: Float[np.ndarray, "bins"]


def reliability_diagram(
    probs: Predictions, labels: Labels, bins: int = 10, scheme: Scheme = "equal_width"
) -> ReliabilityBins:
    """Mean confidence and accuracy in bins of confidence.

    Args:
        probs: probabilities [N, C], or confidences [N] in [0, 1].
        labels: labels [N] in [0, C), or for confidences whether each prediction is correct, [N] booleans.
        bins: number of bins, ≥ 1.
        scheme: ``"equal_width"`` cuts at i / bins. ``"equal_mass"`` cuts at the confidence of rank ceil(i N / bins),
            so that bins have equally many samples; samples of equal confidence stay together, in the lower bin, which
            can leave others smaller or empty. A confidence of 0 falls into the first bin. An edge is compared with
            confidences in their own type, so that 0.6 lies on the edge 6 / 10 in float32 as in float64.

    Raises:
        UserError: there are no samples, a shape does not fit, a value is bad (the message names its row), or ``bins``
            or ``scheme`` is not allowed.

    >>> diagram = reliability_diagram(np.array([0.55, 0.9, 0.95]), np.array([True, False, True]), bins=2)
    >>> diagram.count.tolist(), diagram.accuracy.round(3).tolist()
    ([0, 3], [nan, 0.667])
    """
    return binned(judge(probs, labels), bins, scheme)


def binned(judged: Judged, bins: int, scheme: Scheme) -> ReliabilityBins:
    """:func:`reliability_diagram` of confidences that have been checked."""
    bins = check_binning(bins, scheme)
    edges = _edges(judged, bins, scheme)
    # side="left" gives the first edge that is not below the confidence: (lower, upper]
    uppers = _rounded(edges[1:], judged.digits)
    bin_of = np.minimum(np.searchsorted(uppers, judged.confidence, side="left"), bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    filled = np.where(count > 0, count, np.nan)
    confidence = np.bincount(bin_of, judged.confidence, bins) / filled
    right = np.bincount(bin_of, judged.correct, bins) / filled
    return ReliabilityBins(edges[:-1], edges[1:], count, confidence, right)


def expected_calibration_error(
    probs: Predictions,
    labels: Labels,
    bins: int = 10,
    scheme: Scheme = "equal_width",
    debiased: bool = False,
) -> float:
    """ECE: ``sum over bins of (n_b / N) |accuracy_b - confidence_b|`` (Naeini et al. 2015; Guo et al. 2017).

    The defaults are the PS-KD paper's: ten bins (lo, hi] of equal width, on the largest probability.
    ``bins=15, scheme="equal_mass", debiased=True`` depends far less on the bins and on N.

    A bin's accuracy is noisy, so the plain value is too high; the bias is larger for better calibration and for fewer
    samples. ``debiased`` subtracts the bias as estimated by Kumar et al. (*Verified Uncertainty Calibration*, NeurIPS
    2019) for the absolute error: accuracies are redrawn from Normal(accuracy_b, s_b²) with
    ``s_b² = accuracy_b (1 - accuracy_b) / n_b``, and the result is ``2 ECE - mean of the redrawn ECEs``. Here this mean
    is computed in closed form (of a folded normal), so nothing is random. It does not remove all of the bias: about two
    fifths in a perfectly calibrated bin, nearly all in one that is off by more than 2 s_b.

    Args:
        probs: probabilities [N, C], or confidences [N] in [0, 1].
        labels: labels [N] in [0, C), or for confidences whether each prediction is correct, [N] booleans.
        bins: number of bins, ≥ 1.
        scheme: see :func:`reliability_diagram`.
        debiased: see above. The value may be slightly negative; it is not clipped, to keep means over runs unbiased.

    Returns:
        A fraction, lower is better; papers print it times 100.

    Raises:
        UserError: see :func:`reliability_diagram`.

    >>> round(expected_calibration_error(np.array([0.55, 0.9, 0.95]), np.array([True, False, True])), 4)
    0.4667
    """
    return calibration_error(judge(probs, labels), bins, scheme, debiased)


def calibration_error(judged: Judged, bins: int, scheme: Scheme, debiased: bool) -> float:
    """:func:`expected_calibration_error` of confidences that have been checked."""
    diagram = binned(judged, bins, scheme)
    filled = diagram.count > 0
    count, right = diagram.count[filled], diagram.accuracy[filled]
    gap = np.abs(right - diagram.confidence[filled])
    if debiased:
        spread = np.sqrt(right * (1 - right) / count)
        gap = 2 * gap - np.array(
            [_folded_normal_mean(g, s) for g, s in zip(gap.tolist(), spread.tolist(), strict=True)]
        )
    return float((count * gap).sum() / count.sum())


def negative_log_likelihood(probs: Float[Any, "samples classes"], labels: Integer[Any, "samples"]) -> float:
    """Mean of ``-log p(label)``, in nats, lower is better.

    Args:
        probs: probabilities [N, C]. One of 0 at a label makes the result infinite. Softmax rounds a probability to 0
            where the label's logit is about 100 below the largest in float32, or 745 in float64, as in
            ``apply_temperature``; ``NegativeLogLikelihood(logits=True)`` takes the logits themselves and stays finite.
        labels: [N], in [0, C).

    Raises:
        UserError: no samples, a shape that does not fit, or a bad value with its row.

    >>> round(negative_log_likelihood(np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([0, 1])), 4)
    0.4904
    """
    return float(log_losses(probs, labels).mean())


def brier_score(probs: Float[Any, "samples classes"], labels: Integer[Any, "samples"]) -> float:
    """Mean of ``sum_c (p_c - y_c)²``, where y is the one-hot label (Brier, 1950): in [0, 2], lower is better.

    Args and errors as in :func:`negative_log_likelihood`. For two classes it is twice the score of only the positive
    class, which some libraries return.

    >>> brier_score(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0, 1]))
    1.25
    """
    return float(brier_losses(probs, labels).mean())


def top_k_error(probs: Float[Any, "samples classes"], labels: Integer[Any, "samples"], k: int = 1) -> float:
    """Share of samples whose label is not among the k most probable classes; ties are ordered by class number.

    Args:
        probs: probabilities [N, C].
        labels: [N], in [0, C).
        k: in [1, C].

    Raises:
        UserError: k outside [1, C], or see :func:`negative_log_likelihood`.

    >>> top_k_error(np.array([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]), np.array([1, 2]), k=1)
    0.5
    """
    return float(1 - _among_top(probs, labels, k).mean())


def accuracy(probs: Float[Any, "samples classes"], labels: Integer[Any, "samples"]) -> float:
    """Share of samples whose most probable class is the label: ``1 - top_k_error(probs, labels, 1)``.

    >>> accuracy(np.array([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]), np.array([1, 2]))
    0.5
    """
    return float(_among_top(probs, labels, 1).mean())


def _among_top(probs: Any, labels: Any, k: int) -> Bool[np.ndarray, "samples"]:
    """Whether each label is among the k most probable classes, [N]."""
    probs = checked_probs(probs)[0]
    labels = checked_labels(labels, *probs.shape)
    k = checked_integer(k, "k")
    if not 1 <= k <= probs.shape[1]:
        raise UserError(f"k must lie in [1, {probs.shape[1]}], the number of classes: got {k}")
    of_label = probs[np.arange(len(labels)), labels][:, None]
    before = (probs == of_label) & (np.arange(probs.shape[1]) < labels[:, None])
    return ((probs > of_label) | before).sum(1) < k


def log_losses(probs: Any, labels: Any) -> Float[np.ndarray, "samples"]:
    """``-log p(label)`` of each sample, [N]; infinite if the probability is 0. Errors as in :func:`top_k_error`."""
    probs = checked_probs(probs)[0]
    labels = checked_labels(labels, *probs.shape)
    with np.errstate(divide="ignore"):
        return -np.log(probs[np.arange(len(labels)), labels].astype(np.float64))


def brier_losses(probs: Any, labels: Any) -> Float[np.ndarray, "samples"]:
    """``sum_c (p_c - y_c)²`` of each sample, [N]. Errors as in :func:`top_k_error`."""
    probs = checked_probs(probs)[0].astype(np.float64)
    labels = checked_labels(labels, *probs.shape)
    of_label = probs[np.arange(len(labels)), labels]
    return np.einsum("nc,nc->n", probs, probs) - 2 * of_label + 1


def check_binning(bins: Any, scheme: str) -> int:
    """The number of bins; refuse one that is no integer or below 1, and an unknown scheme."""
    bins = checked_integer(bins, "bins")
    if bins < 1:
        raise UserError(f"bins must be at least 1: got {bins}")
    if scheme not in get_args(Scheme):
        raise UserError(f"scheme must be one of {', '.join(get_args(Scheme))}: got {scheme!r}")
    return bins


def _edges(judged: Judged, bins: int, scheme: Scheme) -> Float[np.ndarray, "edges"]:
    """The ``bins + 1`` edges of the bins, in increasing order."""
    if scheme == "equal_width":
        return np.arange(bins + 1) / bins
    rank = -(-np.arange(1, bins + 1) * len(judged.confidence) // bins)
    return np.append(0.0, np.sort(judged.confidence)[rank - 1])


def _rounded(edges: Float[np.ndarray, "edges"], digits: int) -> Float[np.ndarray, "edges"]:
    """The edges, rounded to the nearest number of so many binary digits; in float64 they stay what they are."""
    fraction, exponent = np.frexp(edges)
    return np.ldexp(np.rint(np.ldexp(fraction, digits)), exponent - digits)


def _folded_normal_mean(mean: float, spread: float) -> float:
    """Mean of ``|x|`` for x drawn from Normal(mean, spread²), mean ≥ 0."""
    if spread == 0:
        return mean
    ratio = mean / spread
    return spread * sqrt(2 / pi) * exp(-(ratio**2) / 2) + mean * erf(ratio / sqrt(2))
