"""Statistical power: how likely a study is to decide its claims, by the noncentral t distribution."""

import math
from typing import NamedTuple

from retarget.errors import UserError
from retarget.study.statistics import t_quantile

POWER = 0.8
MOST_SEEDS = 10_000


class Outlook(NamedTuple):
    """How likely a number of seeds is to decide one claim whose effect is the smallest that matters (or none at all).

    Attributes:
        sd: standard deviation of the pilot's differences; ``inflated`` is used instead, since few seeds estimate a
            spread poorly.
        pilot: number of seeds in the pilot.
        effect: the distance between "no effect" and "the smallest effect", or the margin.
        alone, in_family: probability of a verdict if the claim is tested at the whole error, and at the share that
            Holm's procedure leaves it if no other claim of its family is decided.
        seeds_alone, seeds_in_family: seeds for a probability of 80 %; None beyond ``MOST_SEEDS``.
    """

    claim: str
    sd: float
    inflated: float
    pilot: int
    effect: float
    n: int
    alone: float
    in_family: float
    seeds_alone: int | None
    seeds_in_family: int | None


FAR = 30.0
"""Noncentrality above which ``nctdtr`` may return NaN."""


def power(distance: float, sd: float, n: int, alpha: float) -> float:
    """Probability that a one-sided t test of error ``alpha`` rejects if the truth is ``distance`` beyond its null.

    Args:
        distance: from the null hypothesis to the truth, ≥ 0, in the unit of ``sd``.
        sd: standard deviation of the paired differences, > 0.
        n: number of pairs, ≥ 2.

    >>> round(power(1.0, 1.0, 10, 0.025), 3)
    0.803
    """
    from scipy.special import nctdtr

    noncentrality, critical = distance * math.sqrt(n) / sd, t_quantile(n - 1, alpha)
    if noncentrality > FAR:
        from scipy.stats import nct  # correct at any distance, but slow to import

        return float(nct.sf(critical, n - 1, noncentrality))
    return float(1 - nctdtr(n - 1, noncentrality, critical))


def seeds_for(distance: float, sd: float, alpha: float, *, more_than: int = 1, wanted: float = POWER) -> int | None:
    """The smallest number of seeds above ``more_than`` that gives a one-sided test the wanted power.

    Returns:
        The number; None beyond ``MOST_SEEDS``, or if the distance is 0.

    >>> seeds_for(1.0, 1.0, 0.025), seeds_for(0.001, 1.0, 0.025)
    (10, None)
    """
    from scipy.special import ndtri

    if distance <= 0:
        return None
    normal = ((float(ndtri(1 - alpha)) + float(ndtri(wanted))) * sd / distance) ** 2  # a t test needs a little more
    count = max(more_than + 1, 2, math.floor(min(normal, 2.0 * MOST_SEEDS)))
    while count <= MOST_SEEDS and power(distance, sd, count, alpha) < wanted:
        count += 1
    return count if count <= MOST_SEEDS else None


def inflation(n: int) -> float:
    """The factor by which a pilot's standard deviation is enlarged: ``sqrt((n - 1) / chi2_{.2, n - 1})``.

    The enlarged spread is below the true one in only one of five pilots, instead of in more than half of them.

    >>> [round(inflation(n), 2) for n in (3, 5, 10)]
    [2.12, 1.56, 1.29]
    """
    from scipy.special import chdtri

    if n < 2:
        raise UserError(f"a pilot needs at least two seeds, not {n}")
    return math.sqrt((n - 1) / float(chdtri(n - 1, 0.8)))


def outlook(claim: str, sd: float, pilot: int, effect: float, n: int, alpha: float, family: int) -> Outlook:
    """How likely ``n`` seeds are to decide one claim, from a pilot.

    Args:
        sd: standard deviation of the pilot's paired differences over ``pilot`` seeds, > 0.
        effect: the smallest effect, or the margin, > 0.
        alpha: one-sided error of the whole family.
        family: number of claims in the family.
    """
    wide, share = sd * inflation(pilot), alpha / family
    alone, in_family = (power(effect, wide, n, error) if n > 1 else 0.0 for error in (alpha, share))
    return Outlook(
        claim, sd, wide, pilot, effect, n, alone, in_family,
        seeds_for(effect, wide, alpha), seeds_for(effect, wide, share),
    )  # fmt: skip
