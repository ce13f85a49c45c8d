"""Measurements over the items (images, sentences, problems) of two models: binary pairs, shares, resamples."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, FiniteFloat, NonNegativeInt

from retarget.errors import UserError
from retarget.settings import Strict
from retarget.study.statistics import FEWEST_ITEMS, RELATIVE_NOISE


class PairedCounts(Strict):
    """Binary items of two models: how many are correct in both, only in the treated, only in the control, in neither.

    Attributes:
        scale: value of one correct answer in the metric's unit: 1, or 100 if the metric is a percentage.
        exact: use the exact conditional test instead of its mid-p variant.
    """

    kind: Literal["pairs"] = "pairs"
    both: NonNegativeInt
    treated: NonNegativeInt
    control: NonNegativeInt
    neither: NonNegativeInt
    scale: float = 1.0
    exact: bool = False


class Shares(Strict):
    """Hits and trials in several cells; the claim compares the worst share with a constant: the smallest, or the
    largest if lower is better.

    Attributes:
        cells: ``(hits, trials)`` of each cell.
        scale: 100 if the constant is a percentage.
    """

    kind: Literal["shares"] = "shares"
    cells: list[tuple[NonNegativeInt, Annotated[int, Field(ge=1)]]] = Field(min_length=1)
    scale: float = 100.0


class Resampled(Strict):
    """Treated - control in resamples of the items, with the same items for both.

    Attributes:
        draws: one difference per resample, or for a studentised bootstrap the estimate minus each resample's t times
            its standard error: their quantiles are the interval's ends either way.
        estimate: the difference over the original items.
        items: number of items.
    """

    kind: Literal["resampled"] = "resampled"
    draws: list[FiniteFloat] = Field(min_length=1)
    estimate: FiniteFloat
    items: Annotated[int, Field(ge=FEWEST_ITEMS)]


class Groups(Strict):
    """Groups of items (documents, subjects) that are too few for the bootstrap, and are judged by a t test over groups.

    So are items, or groups of any number, of which all but a few have the same difference.

    Attributes:
        estimate: the mean over items of treated - control.
        error: its standard error.
        freedom: degrees of freedom of the t test, below the number of groups if these are of unequal size; if only a
            few units differ from all others, their number.
        groups, items: number of each.
    """

    kind: Literal["groups"] = "groups"
    estimate: FiniteFloat
    error: FiniteFloat
    freedom: Annotated[FiniteFloat, Field(gt=0)]
    groups: Annotated[int, Field(ge=2)]
    items: Annotated[int, Field(ge=FEWEST_ITEMS)]


Items = Annotated[PairedCounts | Shares | Resampled | Groups, Field(discriminator="kind")]


def mcnemar(treated: int, control: int, *, exact: bool = False) -> float:
    """One-sided p-value of McNemar's conditional test that the treated model is not better.

    The null hypothesis: of the items that only one model gets right, the treated model's share is at most 1/2. The
    mid-p variant counts half of the probability of the observed result (Fagerland, Lydersen and Laake, 2013): its error
    rate is as stated, while the exact test errs less often but has less power.

    Args:
        treated, control: number of items that only this model gets right.

    >>> round(2 * mcnemar(7, 1, exact=True), 4), round(2 * mcnemar(7, 1), 4)
    (0.0703, 0.0391)
    """
    from scipy.special import bdtrc

    n = treated + control
    if n == 0:
        return 1.0
    beyond = float(bdtrc(treated, n, 0.5)) if treated < n else 0.0
    at = math.exp(math.lgamma(n + 1) - math.lgamma(treated + 1) - math.lgamma(control + 1) - n * math.log(2))
    return min(1.0, beyond + (at if exact else at / 2))


def newcombe_bound(both: int, first: int, second: int, neither: int, z: float) -> tuple[float, float]:
    """Newcombe's interval for a difference of paired proportions: method 10, Statistics in Medicine 17 (1998), 2635.

    Args:
        both, first, second, neither: counts of pairs; ``first`` those with only the first right.
        z: the normal quantile of each side, ≥ 0.

    Returns:
        Low and high of first - second, within [-1, 1].

    >>> [round(end, 3) for end in newcombe_bound(1, 1, 7, 12, 1.959964)]
    [-0.507, -0.026]
    """
    n = both + first + second + neither
    p, q = (both + first) / n, (both + second) / n
    (p_low, p_high), (q_low, q_high) = wilson_bound(p, n, z), wilson_bound(q, n, z)
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    together = both * neither - first * second
    if together > 0:
        together = max(together - n / 2, 0.0)
    phi = together / math.sqrt(product) if product else 0.0
    below = (p - p_low) ** 2 - 2 * phi * (p - p_low) * (q_high - q) + (q_high - q) ** 2
    above = (p_high - p) ** 2 - 2 * phi * (p_high - p) * (q - q_low) + (q - q_low) ** 2
    difference = (first - second) / n
    return difference - math.sqrt(max(below, 0.0)), difference + math.sqrt(max(above, 0.0))


def wilson_bound(share: float, trials: int, z: float) -> tuple[float, float]:
    """Wilson's interval for a share, ``z`` standard errors to each side."""
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    whole = 1 + z * z / trials
    return max(0.0, (centre - half) / whole), min(1.0, (centre + half) / whole)


def paired_items(
    treated: Sequence[float],
    control: Sequence[float],
    groups: Sequence[Any] | None = None,
    *,
    scale: float | None = None,
    resamples: int = 2000,
    exact: bool = False,
    seed: int = 0,
) -> PairedCounts | Resampled | Groups:
    """The evidence of two models' items about their mean difference.

    Binary items (all 0 or 1, or all 0 or 100) without groups are counted; for other values the bootstrap is
    studentised, since a percentile interval of skewed differences is too narrow, and groups are resampled whole. Fewer
    than ``FEWEST_ITEMS`` groups get a t test over groups, and so do items of which only a few differ from the others.

    Args:
        treated, control: [N], value of each item; entry i of both is the same item.
        groups: [N], group of each item (a document, a subject, a prompt asked again): items of a group are not
            independent of each other.
        scale: value of a right binary item, 1 or 100; by default the largest value, which does not tell if all are 0.
        resamples: number of bootstrap draws.

    Raises:
        UserError: the lengths differ, fewer than ``FEWEST_ITEMS`` items that are not binary, or only one group.
    """
    t, c = np.asarray(treated, float), np.asarray(control, float)
    if t.shape != c.shape or t.ndim != 1 or not len(t) or (groups is not None and len(groups) != len(t)):
        raise UserError(f"the items of both models must be lists of equal length, not {t.shape} and {c.shape}")
    kinds = set(np.unique(np.concatenate([t, c])).tolist())
    if groups is None and (kinds <= {0.0, 1.0} or kinds <= {0.0, 100.0}):
        scale = max(1.0, *kinds) if scale is None else scale
        right, also = t > 0, c > 0
        counts = [int(one.sum()) for one in (right & also, right & ~also, ~right & also, ~right & ~also)]
        return PairedCounts(both=counts[0], treated=counts[1], control=counts[2], neither=counts[3], scale=scale,
                            exact=exact)  # fmt: skip
    if len(t) < FEWEST_ITEMS:
        raise UserError(
            f"{len(t)} items are too few for an interval over items that are not binary: {FEWEST_ITEMS} are needed"
        )
    difference = t - c
    if groups is None:
        sizes, sums = np.ones(len(t)), difference
    else:
        _, places = np.unique(np.asarray([str(one) for one in groups]), return_inverse=True)
        sizes, sums = np.bincount(places).astype(float), np.bincount(places, weights=difference)
    estimate, items = float(difference.mean()), len(t)
    if len(sums) < 2:
        raise UserError("all items are in one group, so the spread between groups is unknown")
    if len(sums) < FEWEST_ITEMS:
        error, freedom = _over_groups(sums, sizes)
        return Groups(estimate=estimate, error=error, freedom=freedom, groups=len(sums), items=items)
    if few := _few(sums, sizes, float(max(np.abs([t, c]).max(), np.ptp([t, c])))):
        return Groups(estimate=estimate, error=few[0], freedom=few[1], groups=len(sums), items=items)
    draws = _resample(sums, sizes, resamples, np.random.default_rng(seed))
    return Resampled(draws=draws, estimate=estimate, items=items)


def _over_groups(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Standard error of the mean over items and its degrees of freedom, from groups of any size.

    The residual of group g with the share w of the items, r = sum - size · mean, has the variance τ² N² w² (1 - 2 w +
    Σ w²) if the items of a group are all alike. So its square is divided by that factor, which makes the error unbiased
    in the case that matters most, and too large in others (Bell and McCaffrey, 2002, with this working model). A group
    that holds most of the items leaves little freedom, by Satterthwaite's formula, and one of all items none.
    """
    share = sizes / sizes.sum()
    squares = float((share**2).sum())
    residuals = (sums - sizes * (sums.sum() / sizes.sum())) / sizes.sum()
    factor = 1 - 2 * share + squares
    covariance = np.outer(share, share) * (np.eye(len(share)) - share - share[:, None] + squares)
    covariance /= np.sqrt(np.outer(factor, factor))
    freedom = float(np.trace(covariance) ** 2 / (covariance**2).sum())
    return math.sqrt(float((residuals**2 / factor).sum())), freedom


_FEW = 20
"""Fewer units than this that differ from the others are too few for a bootstrap: its resamples have hardly any."""


def _few(sums: np.ndarray, sizes: np.ndarray, largest: float) -> tuple[float, float] | None:
    """Standard error and degrees of freedom if all but a few units have the same difference; otherwise None.

    For the error two units are added, one of each sign, as Agresti and Min (2005) add halves to the cells of binary
    pairs. They are as large as ``largest``, the largest value of an item or the range of all: a large loss may be too
    rare to be among the few. There are as many degrees of freedom as units that differ. If none differs, there is no
    spread at all.
    """
    each = sums / sizes
    values, counts = np.unique(each, return_counts=True)
    rest = sums - sizes * values[counts.argmax()]
    rest[np.abs(rest) <= RELATIVE_NOISE * np.abs(sums).max()] = 0.0
    differing = np.count_nonzero(rest)
    if not 0 < differing < _FEW:
        return None
    centred = rest - sizes * (rest.sum() / sizes.sum())
    added = max(float(np.abs(rest).max()), largest * float(sizes.mean()))
    return math.sqrt(float((centred**2).sum()) + 2 * added**2) / float(sizes.sum()), float(differing)


_LEAST_ERROR = 0.1
"""A resample's standard error is taken for at least this share of that of all items: one of equal items has none."""


def _resample(sums: np.ndarray, sizes: np.ndarray, resamples: int, rng: np.random.Generator) -> list[float]:
    """The estimate minus t times its error, for the t of each resample of units (Efron and Tibshirani, 1993, ch. 12).

    Unit i has ``sizes[i]`` items whose values add up to ``sums[i]``.
    """
    kinds, counts = np.unique(np.stack([sums, sizes], 1), axis=0, return_counts=True)
    moments = np.stack([kinds[:, 0], kinds[:, 1], kinds[:, 0] ** 2, kinds[:, 0] * kinds[:, 1], kinds[:, 1] ** 2], 1)
    estimate, error = _ratio(counts @ moments, len(sums))
    draws: list[float] = []
    for at in range(0, resamples, 100):  # not all at once, for the memory's sake
        drawn = rng.multinomial(len(sums), counts / len(sums), size=min(100, resamples - at))
        means, errors = _ratio(drawn @ moments, len(sums))
        t = (means - estimate) / np.maximum(errors, _LEAST_ERROR * error) if error else np.zeros(len(means))
        draws += (estimate - t * error).tolist()
    return draws


def _ratio(moments: np.ndarray, units: int) -> tuple[Any, Any]:
    """Mean over items and its linearised standard error, from the moments [..., 5] of the units."""
    total, items, square, product, size = np.moveaxis(moments, -1, 0)
    mean = total / items
    spread = np.maximum(square - 2 * mean * product + mean**2 * size, 0.0)
    return mean, np.sqrt(spread * units / (units - 1)) / items
