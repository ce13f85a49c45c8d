"""Intervals, Holm's correction and the bootstrap over items, as pure functions."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from retarget.errors import UserError

RELATIVE_NOISE = 1e-6
"""A spread of differences below this share of the compared values is taken for rounding error."""
SINGLE = 2.0**-22
"""Differences of values in single precision are the same if they differ by no more than this share of the values: each
value is off by up to 2^-24 of itself."""
ROUNDING = 1e-12
"""A difference below this share of the compared values is rounding error, and is 0."""
FEWEST_ITEMS = 100
"""Fewest items for a percentile bootstrap; with 30, an interval of 95 % covers only 88 %."""


class Holm(NamedTuple):
    """The result of Holm's step-down procedure, in the order of the given p-values."""

    rejected: tuple[bool, ...]
    adjusted: tuple[float, ...]
    alphas: tuple[float, ...]


def paired_differences(treated: Sequence[float | None], control: Sequence[float | None]) -> list[float]:
    """``treated - control`` for the seeds that both have.

    >>> paired_differences([3.0, None, 5.0], [1.0, 2.0, None])
    [2.0]
    """
    return [t - c for t, c in zip(treated, control, strict=True) if t is not None and c is not None]


def settled(difference: float, scale: float) -> float:
    """A difference, which is 0 if it is no more than the rounding error of values up to ``scale``.

    >>> settled(0.3 - 0.1 - 0.2, 0.3), settled(1e-15, 1e-15)
    (0.0, 1e-15)
    """
    return 0.0 if abs(difference) <= ROUNDING * scale else difference


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
        raise UserError(f"a level must lie between 0 and 1, not {level}")
    mean, sd = mean_and_sd(differences)
    half = t_quantile(len(differences) - 1, (1 - level) / 2) * sd / math.sqrt(len(differences))
    return mean - half, mean + half


LARGEST = 1e100
"""Largest value that is judged: squares of differences must be numbers."""


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of at least two numbers.

    >>> mean_and_sd([1.0, 3.0])
    (2.0, 1.4142135623730951)
    """
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


@lru_cache(maxsize=4096)
def t_quantile(freedom: float, alpha: float) -> float:
    """The upper ``alpha`` quantile of Student's t, > 0 for alpha < .5.

    >>> round(t_quantile(4, 0.025), 3)
    2.776
    """
    from scipy.special import stdtrit

    return -float(stdtrit(freedom, alpha))


def t_tail(statistic: float, freedom: float) -> float:
    """``P(T >= statistic)`` of Student's t: a one-sided p-value."""
    from scipy.special import stdtr

    return float(stdtr(freedom, -statistic))


def holm(p_values: Sequence[float], alpha: float) -> Holm:
    """Holm's step-down test, and the error of each hypothesis's own confidence bound.

    In order of p, hypothesis k of m is tested at ``alpha / (m - k + 1)``. From the first one that is not rejected, none
    is rejected, and all of these get that one's error. So the bound of error ``alphas[i]`` excludes the null exactly if
    hypothesis i is rejected. The probability of any wrong rejection is at most ``alpha``, whatever the dependence
    between the tests.

    Args:
        p_values: one-sided, each from 0 to 1.
        alpha: the total error of the family.

    >>> holm([0.01, 0.5, 0.04], 0.05).rejected
    (True, False, False)
    >>> [round(one, 4) for one in holm([0.01, 0.5, 0.04], 0.05).alphas]
    [0.0167, 0.025, 0.025]
    """
    m = len(p_values)
    alphas, adjusted, rejected = [alpha] * m, [1.0] * m, [False] * m
    share, largest, stopped = alpha, 0.0, False
    for k, index in enumerate(sorted(range(m), key=p_values.__getitem__)):
        if not stopped:
            share = alpha / (m - k)
            stopped = p_values[index] > share
        largest = max(largest, min(1.0, p_values[index] * (m - k)))
        rejected[index], adjusted[index], alphas[index] = not stopped, largest, share
    return Holm(tuple(rejected), tuple(adjusted), tuple(alphas))


def wilson_interval(successes: float, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a share; ``successes`` may be a sum of shares.

    Raises:
        UserError: the counts do not form a share.

    >>> [round(one, 3) for one in wilson_interval(0, 10)]
    [0.0, 0.278]
    """
    from scipy.stats import norm

    if trials < 1 or not 0 <= successes <= trials:
        raise UserError(f"{successes} of {trials} is not a share")
    share, z2 = successes / trials, float(norm.ppf((1 + level) / 2)) ** 2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = (z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) ** 0.5 / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_difference(
    statistic: Callable[..., float],
    treated: Sequence[Sequence[np.ndarray]],
    control: Sequence[Sequence[np.ndarray]],
    resamples: int = 1000,
    rng: np.random.Generator | None = None,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Percentile interval, over items, of the mean over seeds of ``statistic(treated) - statistic(control)``.

    Each resample draws items with replacement, the same ones for both arms and all seeds; the seeds are held fixed. So
    the result tells how much another test set would change the difference, not how much another training would.

    Args:
        statistic: a function of one run's arrays, with the drawn items along their first axis.
        treated: one tuple of arrays per seed; item i is the same item in all arrays, seeds and arms.
        control: likewise.

    Returns:
        The interval; None with fewer than ``FEWEST_ITEMS`` items, for which it would be too narrow.

    Raises:
        UserError: there is no seed, or the arrays differ in length.
    """
    if treated and treated[0] and len(treated[0][0]) < FEWEST_ITEMS:
        return None
    if not treated or len(treated) != len(control):
        raise UserError(f"the bootstrap needs the same seeds of both arms, not {len(treated)} and {len(control)}")
    lengths = {len(array) for run in (*treated, *control) for array in run}
    if len(lengths) != 1:
        raise UserError(f"the bootstrap needs the same items in every run, but their numbers are {sorted(lengths)}")
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
