"""Risk-coverage curves and their areas: how well confidence ranks correct predictions before wrong ones.

Notation: N samples sorted by decreasing confidence, samples of equal confidence in the given order; ``errors(k)`` is
the number of wrong predictions among the k most confident.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from retarget.metrics._inputs import Judged, Labels, Predictions, judge
from retarget.settings import choose

Ties = Literal["in order", "expected"]


class RiskCoverage(NamedTuple):
    """Points k = 1 … N of a risk-coverage curve.

    Attributes:
        coverage: [N], the share ``k / N`` of samples that are answered, which rises to 1.
        risk: [N], the error rate ``errors(k) / k`` among them; its mean is the AURC.
        generalised_risk: [N], ``errors(k) / N``, the share of all samples that are answered wrongly.
    """

    coverage: Float[np.ndarray, "samples"]
    risk: Float[np.ndarray, "samples"]
    generalised_risk: Float[np.ndarray, "samples"]


def risk_coverage_curve(probs: Predictions, labels: Labels) -> RiskCoverage:
    """Error rate among the k most confident predictions, for every k.

    Args:
        probs: probabilities [N, C], or any confidence score [N] (higher is more confident).
        labels: labels [N] in [0, C); or, with scores, whether each prediction is correct, [N] booleans.

    Raises:
        UserError: there are no samples, a shape does not fit, or a value is bad; the message names its row.

    >>> curve = risk_coverage_curve(np.array([0.9, 0.8, 0.6]), np.array([True, False, True]))
    >>> curve.risk.round(3).tolist()
    [0.0, 0.5, 0.333]
    """
    errors = _errors(judge(probs, labels, probabilities=False))
    k = np.arange(1, len(errors) + 1)
    return RiskCoverage(k / len(errors), errors / k, errors / len(errors))


def aurc(probs: Predictions, labels: Labels, ties: Ties = "in order") -> float:
    """Area under the risk-coverage curve: ``mean over k of errors(k) / k`` (Geifman and El-Yaniv, 2017).

    Args:
        probs, labels: as in :func:`risk_coverage_curve`.
        ties: samples of equal confidence keep their order, on which the value then depends; or the value is its
            ``expected`` one over all of their orders, for confidences of which many are equal.

    Returns:
        In [0, 1], lower is better; the PS-KD paper prints it times 1000.

    Raises:
        UserError: as :func:`risk_coverage_curve`, or ``ties`` is neither of the two.

    >>> round(aurc(np.array([0.9, 0.8, 0.6]), np.array([True, False, True])), 4)
    0.2778
    >>> aurc(np.array([0.5, 0.5]), np.array([True, False])), aurc(np.array([0.5, 0.5]), np.array([False, True]))
    (0.25, 0.75)
    >>> aurc(np.array([0.5, 0.5]), np.array([True, False]), ties="expected")
    0.5
    """
    choose("ties", ties, Ties)
    if ties == "in order":
        return float(risk_coverage_curve(probs, labels).risk.mean())
    correct, wrong = _ties(judge(probs, labels, probabilities=False))
    size = correct + wrong
    above = np.repeat(np.cumsum(wrong) - wrong, size)
    place = np.arange(1, len(above) + 1) - np.repeat(np.cumsum(size) - size, size)  # from 1 within equal confidences
    errors = above + place * np.repeat(wrong / size, size)
    return float((errors / np.arange(1, len(errors) + 1)).mean())


def excess_aurc(probs: Predictions, labels: Labels) -> float:
    """AURC minus the AURC of an oracle that makes the same number of errors and is least confident in them.

    The oracle's area is exact for N samples, so the excess is never negative, and 0 for a perfect ranking. The
    approximation ``e + (1 - e) log(1 - e)`` of Geifman et al. (2019), where e is the error rate, differs by O(1/N).
    Args and errors as in :func:`risk_coverage_curve`.

    >>> excess_aurc(np.array([0.9, 0.8, 0.6]), np.array([True, True, False]))
    0.0
    """
    judged = judge(probs, labels, probabilities=False)
    errors = _errors(judged)
    k = np.arange(1, len(errors) + 1)
    oracle = np.maximum(k - judged.correct.sum(), 0)
    return float(((errors - oracle) / k).mean())


def augrc(probs: Predictions, labels: Labels) -> float:
    """Area under the generalised risk-coverage curve (Traub et al., NeurIPS 2024).

    The curve runs from (0, 0) through ``(k / N, errors(k) / N)``, in a straight line over samples of equal confidence,
    whose order therefore does not matter. The area is half the probability that, of two random samples, the more
    confident one is wrong: with accuracy a it equals ``(1 - failure_auroc) a (1 - a) + (1 - a)² / 2``.
    Args and errors as in :func:`risk_coverage_curve`.

    Returns:
        In [0, 0.5], lower is better.

    >>> round(augrc(np.array([0.9, 0.8, 0.6]), np.array([True, False, True])), 4)
    0.1667
    """
    correct, wrong = _ties(judge(probs, labels, probabilities=False))
    total = int(correct.sum() + wrong.sum())
    above = np.cumsum(wrong) - wrong
    return float(((correct + wrong) * (2 * above + wrong)).sum() / (2 * total**2))


def failure_auroc(probs: Predictions, labels: Labels) -> float:
    """AUROC of separating correct from wrong predictions by confidence: 1 is perfect, 0.5 is chance.

    It is the share of (correct, wrong) pairs in which the correct prediction is more confident; ties count half.
    Args and errors as in :func:`risk_coverage_curve`.

    Returns:
        In [0, 1], higher is better; NaN if all predictions are correct or all are wrong, so that there are no pairs.

    >>> failure_auroc(np.array([0.9, 0.8, 0.6]), np.array([True, False, True]))
    0.5
    """
    correct, wrong = _ties(judge(probs, labels, probabilities=False))
    pairs = int(correct.sum()) * int(wrong.sum())
    if not pairs:
        return float("nan")
    above = np.cumsum(correct) - correct
    return float((wrong * (2 * above + correct)).sum() / (2 * pairs))


def _errors(judged: Judged) -> Integer[np.ndarray, "samples"]:
    """``errors(k)`` for k = 1 … N."""
    order = np.argsort(-judged.confidence)  # several times faster than a stable sort; equal if there are no ties
    ordered = judged.confidence[order]
    if (ordered[1:] == ordered[:-1]).any():
        order = np.argsort(-judged.confidence, kind="stable")
    return np.cumsum(~judged.correct[order])


def _ties(judged: Judged) -> tuple[Integer[np.ndarray, "values"], Integer[np.ndarray, "values"]]:
    """Numbers of correct and of wrong predictions at each distinct confidence, the highest first."""
    order = np.argsort(-judged.confidence)
    confidence = judged.confidence[order]
    first = np.flatnonzero(np.concatenate([[True], confidence[1:] != confidence[:-1]]))
    correct = np.add.reduceat(judged.correct[order].astype(np.int64), first)
    return correct, np.diff(np.append(first, len(order))) - correct
