"""Collect the evidence for each claim from a study's values, at each look, or the reason why there is none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from retarget.study.config import Claim, Metric, StudyPlan
from retarget.study.evidence import Evidence, Exact, Interval, Spread, Undecided, Weakest, over_items, over_seeds
from retarget.study.items import Items, Shares
from retarget.study.statistics import RELATIVE_NOISE

Values = Mapping[str, Mapping[str, Mapping[str, Sequence[float | None]]]]


@dataclass
class Chain:
    """The state of one of a claim's two tests at one look.

    Attributes:
        alpha: the error that this test may spend.
        p_value: the smallest p-value over weight of all looks so far, at most 1; ``look`` is the look that it is from.
        rejected_at: the look at which the test first rejected.
    """

    alpha: float
    p_value: float
    look: int
    adjusted: float
    rejected_at: int | None


@dataclass
class Found:
    """What was measured for a claim: its evidence at each look that was reached, None while there was none.

    ``exact`` evidence belongs to no family; ``missing`` is the reason why there is no verdict at all.
    """

    claim: Claim
    stages: tuple[Evidence | None, ...] = ()
    latest: float | None = None
    n: int = 0
    exact: Exact | None = None
    missing: str = ""
    measured: bool = True
    decided_by_items: bool = False
    holds: list[Chain] = field(default_factory=list)
    fails: list[Chain] = field(default_factory=list)

    @property
    def tested(self) -> bool:
        """Whether it counts in its family: a measured claim does, even if nothing can be rejected."""
        return self.measured and self.exact is None

    @property
    def bounds(self) -> tuple[float, float]:
        """The bounds against which "holds" and "does not hold" are tested."""
        claim = self.claim
        return (0.0, claim.smallest_effect) if claim.margin is None else (-claim.margin, -claim.margin)

    @property
    def distance(self) -> float:
        """From "no effect" to "the smallest effect", or to the margin: what more seeds must tell apart."""
        return self.claim.smallest_effect if self.claim.margin is None else self.claim.margin


class Measuring:
    """Reads a study's measurements, claim by claim."""

    def __init__(
        self,
        plan: StudyPlan,
        metrics: Values,
        item_intervals: dict[str, tuple[float, float]],
        items: dict[str, Items],
    ) -> None:
        self.plan, self.metrics, self.intervals, self.items = plan, metrics, item_intervals, items
        self.by_name = {metric.name: metric for metric in plan.metrics}
        self.floors = [metric for metric in plan.metrics if metric.floor is not None]
        seeds = len(plan.seeds)
        self.looks = [count for count, _ in plan.planned_looks if count <= seeds] if plan.looks else [seeds]

    def measure(self, claim: Claim) -> Found:
        """The evidence for one claim."""
        if claim.about == "models":
            return self._measure_models(claim)
        whole = self._over_seeds(claim, len(self.plan.seeds))
        if whole is None:
            return Found(claim, measured=False)
        metric = self.by_name.get(claim.metric)
        found = Found(claim, latest=whole.estimate, n=whole.n, missing=self._floor_missed(claim))
        if metric and metric.deterministic and isinstance(whole, Undecided):
            noise = self._noise(claim)
            found.exact = Exact(0.0 if abs(whole.estimate) <= noise else whole.estimate, whole.n, noise)
            found.latest = found.exact.estimate
            return found
        stages = [self._over_seeds(claim, count) if self.plan.looks else whole for count in self.looks]
        if stages and isinstance(stages[-1], Undecided) and stages[-1].known and self._perfect(claim):
            instead = self._items_of(claim, stages[-1])
            if instead is not None:
                stages[-1], found.decided_by_items = instead, True
        found.stages = tuple(stages)
        return found

    def _measure_models(self, claim: Claim) -> Found:
        """Evidence for a claim about these models: its items, at the last planned look.

        Before that these are not yet the models that the claim is about, and their items are not kept look by look.
        """
        items = self.items.get(claim.id)
        if items is None:
            return Found(claim, measured=False, missing=self._no_items(claim))
        evidence = over_items(items, claim.direction, claim.against)
        last = bool(self.looks) and len(self.looks) >= len(self.plan.looks)
        stages = tuple(evidence if last and look == self.looks[-1] else None for look in self.looks)
        missing = self._floor_missed(claim)
        return Found(claim, stages, evidence.estimate, evidence.n, missing=missing, decided_by_items=True)

    def _no_items(self, claim: Claim) -> str:
        """Why a claim about models has no items."""
        if len(claim.arms) < 2:
            return "It is about models, and compares one with a constant: only two models are compared by their items"
        if claim.condition not in self.metrics:
            there = ", ".join(self.metrics) or "none"
            return f"There are no values in the condition {claim.condition}, only in {there}"
        return "It is about models, but there are no values of single items"

    def _perfect(self, claim: Claim) -> bool:
        """Whether a share that is compared with a constant was at the same end of its range everywhere: 0 or 100 %.

        The range is that of the metric's ``bounds``; without them, that of the shares of items.
        """
        metric, items = self.by_name.get(claim.metric), self.items.get(claim.id)
        ends = (0.0, items.scale) if isinstance(items, Shares) else None
        ends = metric.bounds if metric and metric.bounds else ends
        if claim.against is None or ends is None:
            return False
        arms = [self.metrics.get(condition, {}).get(claim.arms[0], {}) for condition in self._conditions(claim)]
        values = [value for arm in arms for value in arm.get(claim.metric, ()) if value is not None]
        noise = RELATIVE_NOISE * (ends[1] - ends[0])
        return any(all(abs(value - end) <= noise for value in values) for end in ends)

    def _items_of(self, claim: Claim, same: Undecided) -> Evidence | None:
        """Evidence over items for a claim on a share that is perfect on every seed."""
        if claim.id in self.items:
            return over_items(self.items[claim.id], claim.direction, claim.against)
        if claim.id not in self.intervals:
            return None
        sign = sign_of(claim)
        low, high = sorted(sign * end for end in self.intervals[claim.id])
        return Interval(same.estimate, same.n, low, high, (1 - self.plan.level) / 2)

    def _conditions(self, claim: Claim) -> Sequence[str]:
        if not claim.across:
            return (claim.condition,)
        return claim.conditions or tuple(one.name for one in self.plan.conditions)

    def _pairs(self, claim: Claim, condition: str, count: int) -> tuple[list[float | None], float] | None:
        """Differences by seed, with positive as good, and the largest absolute value that was compared."""
        arms = self.metrics.get(condition, {})
        values = [arms.get(arm, {}).get(claim.metric) for arm in claim.arms]
        if any(one is None for one in values):
            return None
        treated = list(values[0] or ())[:count]
        control = [claim.against] * len(treated) if claim.against is not None else list(values[1] or ())[:count]
        sign, scale, good = sign_of(claim), 0.0, []
        for t, c in zip(treated, control, strict=True):
            if t is None or c is None:
                good.append(None)
            else:
                good.append(sign * (t - c))
                scale = max(scale, abs(t), abs(c))
        return good, scale

    def _noise(self, claim: Claim) -> float:
        """The rounding error of a claim's values; whole numbers (bytes, parameters, steps) have none."""
        arms = [self.metrics.get(condition, {}).get(arm, {}) for condition in self._conditions(claim)
                for arm in claim.arms]  # fmt: skip
        values = [value for arm in arms for value in arm.get(claim.metric, ()) if value is not None]
        values += [claim.against] if claim.against is not None else []
        if all(float(value).is_integer() for value in values):
            return 0.0
        return RELATIVE_NOISE * max(map(abs, values))

    def _over_seeds(self, claim: Claim, count: int) -> Evidence | None:
        """Evidence from the first ``count`` seeds; None if no seed (or not every set) has both arms."""
        sets = [self._pairs(claim, condition, count) for condition in self._conditions(claim)]
        found = [([one for one in pairs[0] if one is not None], pairs[1]) for pairs in sets if pairs]
        if len(found) < len(sets) or not found or not all(good for good, _ in found):
            return None
        if claim.across is None:
            return over_seeds(*found[0])
        scale = max(scale for _, scale in found)
        if claim.across == "new":
            return over_seeds([sum(good) / len(good) for good, _ in found], scale, "set")
        if claim.across == "average":
            rows = zip(*(pairs[0] for pairs in sets if pairs), strict=True)
            means = [sum(row) / len(row) for row in rows if None not in row]
            return over_seeds(means, scale) if means else None
        parts = [over_seeds(good, scale) for good, scale in found]
        spreads = tuple(part for part in parts if isinstance(part, Spread))
        if len(spreads) < len(parts):
            weakest = min(part.estimate for part in parts)
            reason = next(part.reason for part in parts if isinstance(part, Undecided))
            return Undecided(weakest, min(part.n for part in parts), f"on one of the sets, {reason}")
        return Weakest(spreads)

    def _floor_missed(self, claim: Claim) -> str:
        """Why the claim cannot be tested here, by its own floor or its metrics' floors; empty if it can."""
        if claim.floor is not None:
            missed = self._below(claim, *claim.floor, arm=claim.floor_arm, needed=True)
            if missed:
                return missed
            every = claim.floor_arm is None and claim.floor[0] != claim.metric
            if every and (missed := self._below(claim, *claim.floor, arm=claim.arms[0])):
                return missed
        own = self.by_name.get(claim.metric)
        if claim.against is not None:
            return self._below(claim, *own.needs) if own and own.needs else ""
        for metric in self.floors:
            every = metric.floor_for == "every arm" and metric.name != claim.metric  # worse in it is a finding
            for arm in reversed(claim.arms) if every else claim.arms[-1:]:
                missed = self._below(claim, metric.name, metric.floor, arm=arm)
                if missed:
                    return missed
        return ""

    def _below(
        self, claim: Claim, name: str, floor: float | str | None, *, arm: str | None = None, needed: bool = False
    ) -> str:
        """How an arm, by default the control (or only arm), misses a floor; ``needed``: also report a missing value."""
        metric = self.by_name.get(name, Metric(name=name, label=name))
        judged = arm or claim.arms[-1]
        label = next((one.label for one in self.plan.arms if one.name == judged), judged)
        for condition in self._conditions(claim):
            mean = self._mean(condition, judged, name)
            if mean is None and needed:
                return f"The claim cannot be tested: {metric.label} of {label} is missing, and it must reach a floor"
            bound = self._mean(condition, judged, floor) if isinstance(floor, str) else floor
            if mean is None or bound is None:
                continue
            most = metric.better == "lower"
            if mean > bound if most else mean < bound:
                unit = f" {metric.unit}" if metric.unit else ""
                limit = f"at {'most' if most else 'least'} {bound:.4g}{unit}"
                limit += f" ({self.by_name[floor].label})" if isinstance(floor, str) and floor in self.by_name else ""
                said = (
                    f"Not a test of the claim: {metric.label} of {label} is {mean:.4g}{unit}, but a test needs {limit}"
                )
                if metric.bounds and not most and bound >= metric.bounds[1]:
                    said += ", which no arm can exceed: there are too few items to tell from chance; use more"
                return said
        return ""

    def _mean(self, condition: str, arm: str, name: str) -> float | None:
        """A metric's mean over the seeds that have it."""
        values = self.metrics.get(condition, {}).get(arm, {}).get(name, ())
        there = [value for value in values if value is not None]
        return sum(there) / len(there) if there else None


def sign_of(claim: Claim) -> int:
    """-1 if lower is better, else 1: a difference times this is positive if it is good."""
    return 1 if claim.direction == "higher" else -1
