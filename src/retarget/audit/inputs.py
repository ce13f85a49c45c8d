"""Does a noise tensor contain a trigger? Three tests of inputs, two of which do not need to know the trigger."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import ndtr
from torch import Tensor

from retarget.errors import UserError


def histogram_score(noise: Float[Tensor, "batch channels height width"], bins: int = 20) -> Float[Tensor, "batch"]:
    """χ² per degree of freedom of each tensor's values against N(0, 1), in bins of equal probability.

    This is the distribution test of DisDet. It detects whole-image triggers, but hardly those of a few pixels. Near 1
    for plain noise; larger is more suspicious.

    Args:
        noise: [B, C, H, W].
        bins: number of bins, at least 2 and at most the values of one tensor.

    Raises:
        UserError: there are too few or too many bins, or values that are not finite.
    """
    _refuse_not_finite(noise)
    if not 2 <= bins <= noise[0].numel():
        raise UserError(f"bins = {bins}: give 2 to {noise[0].numel()}, the number of values of one tensor")
    ranks = torch.from_numpy(ndtr(noise.flatten(1).double().cpu().numpy()))
    places = (ranks * bins).long().clamp(0, bins - 1)
    counts = torch.zeros(len(noise), bins, dtype=torch.float64).scatter_add_(1, places, torch.ones_like(ranks))
    expected = ranks.shape[1] / bins
    return ((counts - expected).square() / expected).sum(1) / (bins - 1)


def window_score(noise: Float[Tensor, "batch channels height width"], size: int = 2) -> Float[Tensor, "batch"]:
    """``-log`` of the smallest variance in any window, mean over channels.

    A patch under TrojDiff's law with a small γ has little variance; a box that is only added to the noise has no less
    than plain noise.

    Args:
        noise: [B, C, H, W].
        size: side of the windows, in pixels; at least 2, and at most the smaller side of the tensors.

    Raises:
        UserError: the windows are too small or too large, or values are not finite.
    """
    _refuse_not_finite(noise)
    if not 2 <= size <= min(noise.shape[2:]):
        raise UserError(f"size = {size}: give 2 to {min(noise.shape[2:])}, the smaller side of the tensors")
    patches = torch.nn.functional.unfold(noise, size, stride=1)
    count, channels = noise.shape[:2]
    values = patches.reshape(count, channels, size * size, -1)
    variance = values.var(dim=2, unbiased=False).mean(1)
    return -variance.amin(1).clamp_min(1e-12).log()


def likelihood_score(
    noise: Float[Tensor, "batch channels height width"],
    mu: Float[Tensor, "channels height width"],
    gamma: Float[Tensor, "channels height width"],
) -> Float[Tensor, "batch"]:
    """Mean log-likelihood ratio of N(mu, gamma²) against N(0, 1) per value: TERD's test, for a known trigger.

    Raises:
        UserError: a value of ``gamma``, a standard deviation, is not above 0, or values are not finite.
    """
    mu, gamma = mu.to(noise), gamma.to(noise).expand_as(mu)
    for one in (noise, mu, gamma):
        _refuse_not_finite(one)
    if gamma.amin() <= 0:
        raise UserError(f"gamma must be above 0 everywhere, but its smallest value is {float(gamma.amin()):g}")
    ratio = -gamma.log() - ((noise - mu) / gamma).square() / 2 + noise.square() / 2
    return ratio.flatten(1).mean(1)


def roc(plain: np.ndarray, triggered: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """False-positive and true-positive rates at all thresholds, from (0, 0) to (1, 1), and the area under the curve.

    Ties count one half, as in Mann and Whitney's statistic.

    Raises:
        UserError: there are no scores of one kind, or scores that are not finite.

    >>> roc(np.array([0.0, 1.0]), np.array([2.0, 3.0]))[2]
    1.0
    """
    if not plain.size or not triggered.size:
        raise UserError("scores of plain and of triggered tensors are needed, at least one of each")
    if not np.isfinite(plain).all() or not np.isfinite(triggered).all():
        raise UserError("scores must be finite: a tensor that gives NaN has no place in an order")
    thresholds = np.unique(np.concatenate([plain, triggered]))[::-1]
    false = np.concatenate([[0.0], (plain[None] >= thresholds[:, None]).mean(1)])
    true = np.concatenate([[0.0], (triggered[None] >= thresholds[:, None]).mean(1)])
    return false, true, float(((true[1:] + true[:-1]) / 2 * np.diff(false)).sum())


def _refuse_not_finite(values: Tensor) -> None:
    wrong = int((~values.isfinite()).sum())
    if wrong:
        raise UserError(f"{wrong} of {values.numel()} values are not finite: no trigger can be looked for among them")
