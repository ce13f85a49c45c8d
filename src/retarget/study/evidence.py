"""A claim's measurements as evidence that can be tested at any error rate: over seeds, over sets, over items.

In every class the sign is turned so that positive is good. ``p_above(bound)`` is the one-sided p-value of the
hypothesis "the difference is at most the bound", ``p_below(bound)`` that of "at least the bound". ``lower`` and
``upper`` are the confidence bounds of one-sided error ``alpha``; they exclude exactly what the tests reject.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

from retarget.study.items import Groups, Items, PairedCounts, Resampled, Shares, mcnemar, newcombe_bound
from retarget.study.statistics import RELATIVE_NOISE, SINGLE, mean_and_sd, settled, t_quantile, t_tail


class Evidence(Protocol):
    """One claim's difference, with the sign turned so that positive is good."""

    @property
    def estimate(self) -> float:
        """The measured difference."""
        ...

    @property
    def n(self) -> int:
        """The number of seeds, sets or items."""
        ...

    def p_above(self, bound: float) -> float:
        """Small if the difference is significantly above the bound."""
        ...

    def p_below(self, bound: float) -> float:
        """Small if the difference is significantly below the bound."""
        ...

    def lower(self, alpha: float) -> float:
        """The lower confidence bound of one-sided error ``alpha``."""
        ...

    def upper(self, alpha: float) -> float:
        """The upper confidence bound of one-sided error ``alpha``."""
        ...


class Spread(NamedTuple):
    """Paired differences over seeds (or sets), tested by Student's t."""

    estimate: float
    sd: float
    n: int

    def p_above(self, bound: float) -> float:
        return t_tail((self.estimate - bound) / (self.sd / math.sqrt(self.n)), self.n - 1)

    def p_below(self, bound: float) -> float:
        return t_tail((bound - self.estimate) / (self.sd / math.sqrt(self.n)), self.n - 1)

    def lower(self, alpha: float) -> float:
        return self.estimate - t_quantile(self.n - 1, alpha) * self.sd / math.sqrt(self.n)

    def upper(self, alpha: float) -> float:
        return self.estimate + t_quantile(self.n - 1, alpha) * self.sd / math.sqrt(self.n)


class Student(NamedTuple):
    """As :class:`Spread`, of ``n`` items in groups, with the standard error and degrees of freedom of their mean."""

    estimate: float
    error: float
    freedom: float
    n: int

    def p_above(self, bound: float) -> float:
        return t_tail((self.estimate - bound) / self.error, self.freedom)

    def p_below(self, bound: float) -> float:
        return t_tail((bound - self.estimate) / self.error, self.freedom)

    def lower(self, alpha: float) -> float:
        return self.estimate - t_quantile(self.freedom, alpha) * self.error

    def upper(self, alpha: float) -> float:
        return self.estimate + t_quantile(self.freedom, alpha) * self.error


class Undecided(NamedTuple):
    """A difference that cannot be tested, with the reason."""

    estimate: float
    n: int
    reason: str
    known: bool = False
    """Whether the difference is known and only its spread is unknown."""

    def p_above(self, bound: float) -> float:
        return 1.0

    def p_below(self, bound: float) -> float:
        return 1.0

    def lower(self, alpha: float) -> float:
        return self.estimate

    def upper(self, alpha: float) -> float:
        return self.estimate


class Weakest(NamedTuple):
    """The smallest of several sets' differences: above a bound if all are, below it if any is.

    The first is an intersection-union test (the largest p-value); the second is corrected for the choice of the set.
    """

    parts: tuple[Spread, ...]

    @property
    def estimate(self) -> float:
        return min(part.estimate for part in self.parts)

    @property
    def n(self) -> int:
        return min(part.n for part in self.parts)

    def p_above(self, bound: float) -> float:
        return max(part.p_above(bound) for part in self.parts)

    def p_below(self, bound: float) -> float:
        return min(1.0, len(self.parts) * min(part.p_below(bound) for part in self.parts))

    def lower(self, alpha: float) -> float:
        return min(part.lower(alpha) for part in self.parts)

    def upper(self, alpha: float) -> float:
        return min(part.upper(alpha / len(self.parts)) for part in self.parts)


class Pairs(NamedTuple):
    """Binary items of two models: McNemar's test for no difference, Newcombe's interval for any other bound."""

    both: int
    first: int
    second: int
    neither: int
    scale: float
    exact: bool

    @property
    def estimate(self) -> float:
        return self.scale * (self.first - self.second) / self.n

    @property
    def n(self) -> int:
        return self.both + self.first + self.second + self.neither

    def p_above(self, bound: float) -> float:
        p_value = self._beyond(bound / self.scale)
        # What is not shown to be above 0 is not shown to be above more.
        return max(p_value, mcnemar(self.first, self.second, exact=self.exact)) if bound >= 0 else p_value

    def p_below(self, bound: float) -> float:
        turned = self._replace(first=self.second, second=self.first)
        return turned.p_above(-bound)

    def lower(self, alpha: float) -> float:
        from scipy.special import ndtri

        z = -float(ndtri(alpha))
        low = self.scale * newcombe_bound(self.both, self.first, self.second, self.neither, z)[0]
        return low if mcnemar(self.first, self.second, exact=self.exact) <= alpha else min(low, 0.0)

    def upper(self, alpha: float) -> float:
        return -self._replace(first=self.second, second=self.first).lower(alpha)

    def _beyond(self, bound: float) -> float:
        """The error at which Newcombe's lower bound equals this bound; 1 if the estimate is not above it."""
        from scipy.optimize import brentq
        from scipy.special import ndtr

        counts = (self.both, self.first, self.second, self.neither)
        if (self.first - self.second) / self.n <= bound:
            return 1.0
        if newcombe_bound(*counts, 37.0)[0] > bound:
            return 0.0
        z = cast(float, brentq(lambda z: newcombe_bound(*counts, z)[0] - bound, 0.0, 37.0))
        return float(ndtr(-z))


class SmallestShare(NamedTuple):
    """The smallest of several shares minus a constant: exact binomial tests, with Clopper and Pearson's bounds.

    Score tests and Wilson's bounds err too often where few hits are expected: one hit in one trial would be above 10 %.
    It is above a bound if every share is, below it if any is; the second is corrected for the choice of the share.
    """

    cells: tuple[tuple[int, int], ...]
    against: float
    scale: float

    @property
    def estimate(self) -> float:
        return self.scale * min(hits / trials for hits, trials in self.cells) - self.against

    @property
    def n(self) -> int:
        return sum(trials for _, trials in self.cells)

    def p_above(self, bound: float) -> float:
        share = (self.against + bound) / self.scale
        return max(_at_least(hits, trials, share) for hits, trials in self.cells)

    def p_below(self, bound: float) -> float:
        share = 1 - (self.against + bound) / self.scale
        return min(1.0, len(self.cells) * min(_at_least(trials - hits, trials, share) for hits, trials in self.cells))

    def lower(self, alpha: float) -> float:
        from scipy.special import betaincinv

        ends = [float(betaincinv(hits, trials - hits + 1, alpha)) if hits else 0.0 for hits, trials in self.cells]
        return self.scale * min(ends) - self.against

    def upper(self, alpha: float) -> float:
        from scipy.special import betaincinv

        each = 1 - alpha / len(self.cells)
        ends = [
            float(betaincinv(hits + 1, trials - hits, each)) if hits < trials else 1.0 for hits, trials in self.cells
        ]
        return self.scale * min(ends) - self.against


class Turned(NamedTuple):
    """Evidence for a metric of which lower is better: the sign is turned."""

    inner: Evidence

    @property
    def estimate(self) -> float:
        return -self.inner.estimate

    @property
    def n(self) -> int:
        return self.inner.n

    def p_above(self, bound: float) -> float:
        return self.inner.p_below(-bound)

    def p_below(self, bound: float) -> float:
        return self.inner.p_above(-bound)

    def lower(self, alpha: float) -> float:
        return -self.inner.upper(alpha)

    def upper(self, alpha: float) -> float:
        return -self.inner.lower(alpha)


class Draws(NamedTuple):
    """A percentile bootstrap, whose p-value is the share of resamples on the other side of the bound."""

    draws: tuple[float, ...]
    estimate: float
    n: int

    def p_above(self, bound: float) -> float:
        return (1 + bisect_right(self.draws, bound)) / (len(self.draws) + 1)

    def p_below(self, bound: float) -> float:
        return (1 + len(self.draws) - bisect_left(self.draws, bound)) / (len(self.draws) + 1)

    def lower(self, alpha: float) -> float:
        return self.draws[self._place(alpha)]

    def upper(self, alpha: float) -> float:
        return self.draws[-1 - self._place(alpha)]

    def _place(self, alpha: float) -> int:
        return max(0, math.floor(alpha * (len(self.draws) + 1) + 1e-9) - 1)


class Interval(NamedTuple):
    """An interval at a fixed level: it can be tested at the error of its ends, but at no smaller one."""

    estimate: float
    n: int
    low: float
    high: float
    alpha: float

    def p_above(self, bound: float) -> float:
        return self.alpha if self.low > bound else 1.0

    def p_below(self, bound: float) -> float:
        return self.alpha if self.high < bound else 1.0

    def lower(self, alpha: float) -> float:
        return self.low

    def upper(self, alpha: float) -> float:
        return self.high


class Exact(NamedTuple):
    """The exact difference of a metric that does not depend on the seed; no test is needed.

    A difference from a bound that is at most ``noise``, the rounding error of the values, counts as none.
    """

    estimate: float
    n: int
    noise: float = 0.0

    def p_above(self, bound: float) -> float:
        return 0.0 if self.estimate > bound + self.noise else 1.0

    def p_below(self, bound: float) -> float:
        return 0.0 if self.estimate < bound - self.noise else 1.0

    def lower(self, alpha: float) -> float:
        return self.estimate

    def upper(self, alpha: float) -> float:
        return self.estimate


def over_seeds(good: Sequence[float], scale: float, what: str = "seed") -> Spread | Undecided:
    """Evidence from one or more differences, with the sign turned so that positive is good.

    Args:
        scale: the largest absolute value that was compared. A spread below ``RELATIVE_NOISE`` of it may be rounding: a
            t statistic would divide by it and make anything certain. It is taken for that large.
        what: what the differences are counted in, such as "seed".
    """
    if len(good) == 1:
        return Undecided(settled(good[0], scale), 1, f"one {what} has no spread")
    mean, sd = mean_and_sd(good)
    mean, noise = settled(mean, scale), RELATIVE_NOISE * scale
    if sd <= noise:
        if max(good) - min(good) <= RELATIVE_NOISE * max(map(abs, good)):
            return Undecided(mean, len(good), f"the difference is the same on every {what}", known=True)
        if abs(mean) <= noise:
            reason = "the differences are below a millionth of the values, too small to be told from rounding"
            return Undecided(mean, len(good), reason)
        if max(good) - min(good) <= SINGLE * scale:
            return Undecided(mean, len(good), f"the difference is the same on every {what}, up to rounding", known=True)
    return Spread(mean, max(sd, noise), len(good))


def over_groups(items: Groups) -> Student | Undecided:
    """Evidence from few groups of items; undecided if their differences are as good as equal."""
    if items.error <= RELATIVE_NOISE * abs(items.estimate):
        return Undecided(items.estimate, items.items, "the difference is the same in every group", known=True)
    return Student(items.estimate, items.error, items.freedom, items.items)


def over_items(items: Items, direction: str, against: float | None) -> Evidence:
    """Evidence from items, with the sign turned so that positive is good."""
    match items:
        case PairedCounts():
            found: Evidence = Pairs(items.both, items.treated, items.control, items.neither, items.scale, items.exact)
        case Shares() if direction == "higher":
            return SmallestShare(tuple(items.cells), against or 0.0, items.scale)
        case Shares():  # the worst cell is that of the largest share: of the smallest share of misses
            misses = tuple((trials - hits, trials) for hits, trials in items.cells)
            return SmallestShare(misses, items.scale - (against or 0.0), items.scale)
        case Resampled() if max(items.draws) - min(items.draws) <= RELATIVE_NOISE * abs(items.estimate):
            found = Undecided(items.estimate, items.items, "the difference is the same on every item", known=True)
        case Resampled():
            found = Draws(tuple(sorted(items.draws)), items.estimate, items.items)
        case Groups():
            found = over_groups(items)
    if isinstance(found, Undecided):  # which the reader of the evidence must recognise
        return found if direction == "higher" else found._replace(estimate=-found.estimate)
    return found if direction == "higher" else Turned(found)


def _at_least(hits: int, trials: int, share: float) -> float:
    """The probability of at least so many hits if the true share is ``share``: an exact one-sided p-value."""
    from scipy.special import bdtrc

    if hits == 0 or share >= 1:
        return float(share >= 0)
    return float(bdtrc(hits - 1, trials, max(share, 0.0)))
