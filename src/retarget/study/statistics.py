"""Intervals, Holm's correction, sample sizes and the item bootstrap: pure functions of numbers."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from retarget.errors import UserError

MOST_SEEDS = 10_000
RELATIVE_NOISE = 1e-6
"""Differences that spread by less than this share of the compared values spread by rounding, not by the seed."""


class PairedTest(NamedTuple):
    """A paired difference and its two-sided t test against ``null``; ``p_value`` is None where none can be made."""

    estimate: float
    sd: float | None
    n: int
    p_value: float | None


class Holm(NamedTuple):
    """Holm's step-down procedure; everything in the order of the p-values that were given."""

    rejected: tuple[bool, ...]
    adjusted: tuple[float, ...]
    levels: tuple[float, ...]


def paired_differences(treated: Sequence[float | None], control: Sequence[float | None]) -> list[float]:
    """``treated - control`` of the seeds that both have.

    >>> paired_differences([3.0, None, 5.0], [1.0, 2.0, None])
    [2.0]
    """
    return [t - c for t, c in zip(treated, control, strict=True) if t is not None and c is not None]


def t_interval(differences: Sequence[float], level: float) -> tuple[float, float]:
    """The interval ``mean ± t_{(1 + level) / 2, n - 1} · sd / sqrt(n)``.

    Raises:
        UserError: fewer than two differences, or a level outside (0, 1).

    >>> low, high = t_interval([1.0, 2.0, 3.0], 0.95)
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    if len(differences) < 2:
        raise UserError(f"an interval needs at least two differences, not {len(differences)}")
    if not 0 < level < 1:
        raise UserError(f"a level lies between 0 and 1, not at {level}")
    values = np.asarray(differences, float)
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    half = half_width(sd, len(values), level)
    return mean - half, mean + half


def paired_test(differences: Sequence[float], scale: float, null: float = 0.0) -> PairedTest:
    """Two-sided t test of the mean difference against ``null``.

    Args:
        differences: at least one.
        scale: largest absolute value that was compared. A spread below ``RELATIVE_NOISE`` of it counts as none: the
            t statistic would then divide by rounding errors and call anything certain.
        null: 0, or minus the margin of a non-inferiority claim.
    """
    from scipy.special import stdtr

    values = np.asarray(differences, float)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return PairedTest(mean, None, n, None)
    sd = float(values.std(ddof=1))
    if sd <= RELATIVE_NOISE * scale:
        return PairedTest(mean, 0.0, n, None)
    statistic = (mean - null) / (sd / math.sqrt(n))
    return PairedTest(mean, sd, n, float(2 * stdtr(n - 1, -abs(statistic))))


def holm(p_values: Sequence[float], level: float = 0.95) -> Holm:
    """Holm's step-down test, and for each hypothesis the level at which its interval says the same.

    In order of p, hypothesis k of m is tested at ``alpha / (m - k + 1)``; from the first that is not rejected on, none
    is, and all of these take that one's level. So a two-sided interval at ``levels[i]`` excludes the null exactly when
    hypothesis i is rejected.

    >>> holm([0.01, 0.5, 0.04]).rejected
    (True, False, False)
    >>> [round(one, 4) for one in holm([0.01, 0.5, 0.04]).levels]
    [0.9833, 0.975, 0.975]
    """
    if not p_values:
        return Holm((), (), ())
    alpha, m = 1 - level, len(p_values)
    order = np.argsort(np.asarray(p_values, float), kind="stable")
    levels, adjusted, rejected = np.empty(m), np.empty(m), np.zeros(m, bool)
    share, largest, stopped = alpha, 0.0, False
    for k, index in enumerate(order):
        if not stopped:
            share = alpha / (m - k)
            stopped = p_values[index] > share
        largest = max(largest, min(1.0, p_values[index] * (m - k)))
        rejected[index], adjusted[index], levels[index] = not stopped, largest, 1 - share
    return Holm(tuple(rejected.tolist()), tuple(adjusted.tolist()), tuple(levels.tolist()))


def seeds_needed(distance: float, sd: float, n: int, level: float) -> int | None:
    """How many seeds would decide, if the mean and the spread stay as they are.

    Args:
        distance: how far the estimate lies from the bound that would decide; the half width must fall below it.
        sd: sample standard deviation of the paired differences, > 0.
        n: seeds so far; the answer is larger.
        level: of the interval.

    Returns:
        The smallest number of seeds, or None beyond ``MOST_SEEDS``.

    >>> seeds_needed(1.0, 1.0, 3, 0.95)
    7
    """
    counts = range(max(n + 1, 2), MOST_SEEDS + 1)
    place = bisect_left(counts, True, key=lambda count: half_width(sd, count, level) < distance)
    return counts[place] if place < len(counts) else None


def half_width(sd: float, n: int, level: float) -> float:
    """Half of the t interval's width, ``t_{(1 + level) / 2, n - 1} · sd / sqrt(n)``: it falls with n ≥ 2."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, (1 + level) / 2)) * sd / math.sqrt(n)


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share.

    Raises:
        UserError: counts that are no share.

    >>> [round(one, 3) for one in wilson_interval(0, 10)]
    [0.0, 0.278]
    """
    from scipy.stats import binomtest

    if trials < 1 or not 0 <= successes <= trials:
        raise UserError(f"{successes} of {trials} is not a share")
    found = binomtest(successes, trials).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def bootstrap_difference(
    statistic: Callable[..., float],
    treated: Sequence[Sequence[np.ndarray]],
    control: Sequence[Sequence[np.ndarray]],
    resamples: int = 1000,
    rng: np.random.Generator | None = None,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval, over items, of the mean over seeds of ``statistic(treated) - statistic(control)``.

    Items are drawn with replacement once a resample, the same for both arms and all seeds, as they are the same items;
    the seeds are held fixed. So it says how far another test set would move the result, not how far another training.

    Args:
        statistic: of the arrays of one run, with the drawn items along their first axis.
        treated: for each seed, a tuple of arrays; item i of all of them is the same item, in every seed and arm.
        control: likewise.

    Raises:
        UserError: no seed, or arrays of different lengths.
    """
    if not treated or len(treated) != len(control):
        raise UserError(f"the bootstrap needs the same seeds of both arms, not {len(treated)} and {len(control)}")
    lengths = {len(array) for run in (*treated, *control) for array in run}
    if len(lengths) != 1:
        raise UserError(f"the bootstrap needs the same items in every run, and they have {sorted(lengths)}")
    rng = rng or np.random.default_rng(0)
    (items,) = lengths
    differences = np.empty(resamples)
    for resample in range(resamples):
        drawn = rng.integers(items, size=items)
        pairs = [
            statistic(*(array[drawn] for array in t)) - statistic(*(array[drawn] for array in c))
            for t, c in zip(treated, control, strict=True)
        ]
        differences[resample] = np.mean(pairs)
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
