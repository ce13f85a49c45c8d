"""How likely a study is to decide, before it is run and after: the noncentral t distribution."""

import math
from typing import NamedTuple

from retarget.errors import UserError
from retarget.study.statistics import t_quantile

POWER = 0.8
MOST_SEEDS = 10_000


class Outlook(NamedTuple):
    """What a number of seeds can show of one claim if its effect is the smallest that matters (or is none at all).

    Attributes:
        sd: of the pilot's differences; ``inflated`` is what is reckoned with, since few seeds tell a spread poorly.
        pilot: number of its seeds.
        effect: the distance between "no effect" and "the smallest effect", or the margin.
        alone, in_family: probability of a verdict when the claim is tested at the whole error, and at the share that
            Holm's procedure gives it if no other claim of its family is decided.
        seeds_alone, seeds_in_family: seeds for 80 % of it; None beyond ``MOST_SEEDS``.
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
"""Noncentrality above which ``nctdtr`` may be NaN."""


def power(distance: float, sd: float, n: int, alpha: float) -> float:
    """Probability that a one-sided t test of error ``alpha`` rejects when the truth lies ``distance`` beyond its null.

    Args:
        distance: ≥ 0, in the unit of ``sd``.
        sd: of the paired differences, > 0.
        n: pairs, ≥ 2.

    >>> round(power(1.0, 1.0, 10, 0.025), 3)
    0.803
    """
    from scipy.special import nctdtr

    noncentrality, critical = distance * math.sqrt(n) / sd, t_quantile(n - 1, alpha)
    if noncentrality > FAR:
        from scipy.stats import nct  # right at any distance, and slow to import

        return float(nct.sf(critical, n - 1, noncentrality))
    return float(1 - nctdtr(n - 1, noncentrality, critical))


def seeds_for(distance: float, sd: float, alpha: float, *, more_than: int = 1, wanted: float = POWER) -> int | None:
    """The smallest number of seeds, above ``more_than``, with which a one-sided test has the power that is wanted.

    Returns:
        None beyond ``MOST_SEEDS``, or where the distance is 0.

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
    """By how much a pilot's standard deviation is enlarged: ``sqrt((n - 1) / chi2_{.2, n - 1})``.

    So the spread that is reckoned with is below the true one in one of five pilots only, in place of more than half.

    >>> [round(inflation(n), 2) for n in (3, 5, 10)]
    [2.12, 1.56, 1.29]
    """
    from scipy.special import chdtri

    if n < 2:
        raise UserError(f"a pilot has at least two seeds, not {n}")
    return math.sqrt((n - 1) / float(chdtri(n - 1, 0.8)))


def outlook(claim: str, sd: float, pilot: int, effect: float, n: int, alpha: float, family: int) -> Outlook:
    """What ``n`` seeds can show of one claim, from a pilot.

    Args:
        sd: of the pilot's paired differences, > 0, over ``pilot`` seeds.
        effect: > 0.
        alpha: one-sided error of the whole family.
        family: number of its claims.
    """
    wide, share = sd * inflation(pilot), alpha / family
    alone, in_family = (power(effect, wide, n, error) if n > 1 else 0.0 for error in (alpha, share))
    return Outlook(
        claim, sd, wide, pilot, effect, n, alone, in_family,
        seeds_for(effect, wide, alpha), seeds_for(effect, wide, share),
    )  # fmt: skip
