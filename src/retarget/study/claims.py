"""Verdicts: what was measured says of each claim that it holds, that it does not, or that it cannot tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retarget.study.config import Claim, Metric, StudyPlan
from retarget.study.evidence import (
    Evidence,
    Exact,
    Interval,
    Spread,
    Undecided,
    Weakest,
    over_items,
    over_seeds,
)
from retarget.study.items import Items
from retarget.study.power import seeds_for
from retarget.study.results import ClaimResult, Shown
from retarget.study.statistics import holm, paired_differences, t_interval

Values = Mapping[str, Mapping[str, Mapping[str, Sequence[float | None]]]]


def judge(
    plan: StudyPlan,
    metrics: Values,
    item_intervals: Mapping[str, tuple[float, float]] | None = None,
    items: Mapping[str, Items] | None = None,
) -> list[ClaimResult]:
    """Judge every claim of a study.

    Let d be the paired difference, treated - control, turned so that positive is good. Two chains of one-sided tests
    are made in each family of claims, each by Holm's procedure with an error of (1 - level) / 2 in all:

    - *holds* tests that d ≤ 0; for a non-inferiority claim that d ≤ -margin.
    - *does not hold* tests that d ≥ the smallest effect; for a non-inferiority claim that d ≥ -margin.

    So the probability that any claim of a family is wrongly said to hold is at most (1 - level) / 2, and so is that of
    any being wrongly said not to. Each end of an interval is the bound of its own chain's test.

    - *not enough evidence*: neither test rejects; always with fewer than two seeds, or when all differences are equal:
      their spread is then 0 by coarse metrics or by identical arms, and a t interval of no width would claim
      certainty. Only a metric declared ``deterministic`` is judged by its difference as it is, and in no family.
    - *not measured*: no seed has both arms, or the control misses the claim's floor. The latter stays in its family.
    - A difference that both tests reject, surely positive and surely below the smallest effect, holds, and carries
      ``below_smallest_effect``.

    With planned looks the verdict is given at these numbers of seeds (the first ones of the plan) alone: look k spends
    its share w_k of the error, so that a claim's p-value is the smallest p_k / w_k so far, before Holm's procedure. By
    the union bound the error rates hold whenever one stops. The verdict of a look stands, and names it.

    A share measured against a constant can be the same on every seed because it is perfect (100 % of the images). Such
    a claim is tested over its items, in its family like any other. One seed still decides nothing.

    Args:
        metrics: ``{condition: {arm: {metric: values}}}``; values align with the plan's seeds, None where missing.
        item_intervals: by claim, over items and at the study's level; shown beside, and tested in the case above.
        items: by claim, what was counted or resampled over items: decides the claims about models, and takes the
            place of an interval in the case above.

    Returns:
        One result for each claim, in order.
    """
    study = _Study(plan, metrics, dict(item_intervals or {}), dict(items or {}))
    found = [study.measure(claim) for claim in plan.claims]
    for family in ("primary", "secondary"):
        _test([one for one in found if one.claim.family == family and one.tested], plan)
    return [study.result(one) for one in found]


@dataclass
class _Chain:
    """One of a claim's two tests as it stands at one look.

    Attributes:
        alpha: the error that it may make itself.
        p_value: the smallest so far of each look's p-value over its weight, at most 1; ``look`` is whose that is.
        rejected_at: the look at which it first rejected.
    """

    alpha: float
    p_value: float
    look: int
    adjusted: float
    rejected_at: int | None


@dataclass
class _Found:
    """A claim as it was measured: the evidence at each look that was reached, None where it had none yet.

    ``exact`` evidence is in no family; ``missing`` says why there is no verdict at all.
    """

    claim: Claim
    stages: tuple[Evidence | None, ...] = ()
    latest: float | None = None
    n: int = 0
    exact: Exact | None = None
    missing: str = ""
    measured: bool = True
    decided_by_items: bool = False
    holds: list[_Chain] = field(default_factory=list)
    fails: list[_Chain] = field(default_factory=list)

    @property
    def tested(self) -> bool:
        """Whether it belongs to its family: what was measured, but cannot be rejected, still counts."""
        return self.measured and self.exact is None

    @property
    def bounds(self) -> tuple[float, float]:
        """What "holds" and what "does not hold" are tested against."""
        claim = self.claim
        return (0.0, claim.smallest_effect) if claim.margin is None else (-claim.margin, -claim.margin)


def _test(family: list[_Found], plan: StudyPlan) -> None:
    """Both chains of one family, at every look that was reached."""
    if not family:
        return
    error = (1 - plan.level) / 2
    weights = [weight for _, weight in plan.planned_looks] or [1.0]
    stages = len(family[0].stages)
    for name in ("holds", "fails"):
        smallest, whose = [1.0] * len(family), [0] * len(family)
        rows: list[list[_Chain]] = [[] for _ in family]
        for stage in range(stages):
            for place, one in enumerate(family):
                evidence = one.stages[stage]
                if evidence is None or one.missing:
                    continue
                above, below = one.bounds
                p_value = (evidence.p_above(above) if name == "holds" else evidence.p_below(below)) / weights[stage]
                if p_value < smallest[place]:
                    smallest[place], whose[place] = p_value, stage
            tests = holm(smallest, error)
            for place, chains in enumerate(rows):
                first = chains[-1].rejected_at if chains else None
                if first is None and tests.rejected[place]:
                    first = stage
                chains.append(_Chain(tests.alphas[place], smallest[place], whose[place], tests.adjusted[place], first))
        for one, chains in zip(family, rows, strict=True):
            setattr(one, name, chains)


class _Study:
    """What a study measured, read claim by claim."""

    def __init__(
        self,
        plan: StudyPlan,
        metrics: Values,
        item_intervals: dict[str, tuple[float, float]],
        items: dict[str, Items],
    ) -> None:
        self.plan, self.metrics, self.intervals, self.items = plan, metrics, item_intervals, items
        self.by_name = {metric.name: metric for metric in plan.metrics}
        seeds = len(plan.seeds)
        self.looks = [count for count, _ in plan.planned_looks if count <= seeds] if plan.looks else [seeds]

    def measure(self, claim: Claim) -> _Found:
        """The evidence of one claim."""
        if claim.about == "models":
            return self._measure_models(claim)
        whole = self._over_seeds(claim, len(self.plan.seeds))
        if whole is None:
            return _Found(claim, measured=False)
        metric = self.by_name.get(claim.metric)
        found = _Found(claim, latest=whole.estimate, n=whole.n, missing=self._floor_missed(claim))
        if metric and metric.deterministic and isinstance(whole, Undecided):
            found.exact = Exact(whole.estimate, whole.n)
            return found
        stages = [self._over_seeds(claim, count) if self.plan.looks else whole for count in self.looks]
        if stages and isinstance(stages[-1], Undecided) and stages[-1].interval:
            instead = self._items_of(claim, stages[-1])
            if instead is not None and claim.against is not None:
                stages[-1], found.decided_by_items = instead, True
        found.stages = tuple(stages)
        return found

    def _measure_models(self, claim: Claim) -> _Found:
        """A claim about these models: its items decide, at the latest look."""
        items = self.items.get(claim.id)
        if items is None:
            return _Found(claim, measured=False, missing="It is about models, and no values of single items were given")
        evidence = over_items(items, claim.direction, claim.against)
        stages = (None,) * (len(self.looks) - 1) + (evidence,) * bool(self.looks)
        missing = self._floor_missed(claim)
        return _Found(claim, stages, evidence.estimate, evidence.n, missing=missing, decided_by_items=True)

    def _items_of(self, claim: Claim, same: Undecided) -> Evidence | None:
        """Evidence over items of a claim whose difference is the same on every seed."""
        if claim.id in self.items:
            return over_items(self.items[claim.id], claim.direction, claim.against)
        if claim.id not in self.intervals:
            return None
        sign = _sign(claim)
        low, high = sorted(sign * end for end in self.intervals[claim.id])
        return Interval(same.estimate, same.n, low, high, (1 - self.plan.level) / 2)

    def _conditions(self, claim: Claim) -> Sequence[str]:
        if not claim.across:
            return (claim.condition,)
        return claim.conditions or tuple(one.name for one in self.plan.conditions)

    def _pairs(self, claim: Claim, condition: str, count: int) -> tuple[list[float | None], float] | None:
        """Differences seed by seed, turned so that positive is good, and the largest value that was compared."""
        arms = self.metrics.get(condition, {})
        values = [arms.get(arm, {}).get(claim.metric) for arm in claim.arms]
        if any(one is None for one in values):
            return None
        treated = list(values[0] or ())[:count]
        control = [claim.against] * len(treated) if claim.against is not None else list(values[1] or ())[:count]
        sign, scale, good = _sign(claim), 0.0, []
        for t, c in zip(treated, control, strict=True):
            if t is None or c is None:
                good.append(None)
            else:
                good.append(sign * (t - c))
                scale = max(scale, abs(t), abs(c))
        return good, scale

    def _over_seeds(self, claim: Claim, count: int) -> Evidence | None:
        """Evidence of the first ``count`` seeds; None where no seed (or not every set) has both arms."""
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
        """Why the claim cannot be tested here, or nothing."""
        if claim.floor is None:
            return ""
        name, bound = claim.floor
        metric = self.by_name.get(name, Metric(name=name, label=name))
        for condition in self._conditions(claim):
            values = self.metrics.get(condition, {}).get(claim.arms[-1], {}).get(name, ())
            there = [value for value in values if value is not None]
            if not there:
                return f"Whether it is a test of the claim is not known: {metric.label} of {claim.arms[-1]} is missing"
            mean, most = sum(there) / len(there), metric.better == "lower"
            if mean > bound if most else mean < bound:
                limit = "most" if most else "least"
                return (
                    f"Not a test of the claim: {metric.label} of {claim.arms[-1]} is {mean:.4g}, and a test needs at "
                    f"{limit} {bound:g}"
                )
        return ""

    def result(self, found: _Found) -> ClaimResult:
        """The claim's entry in summary.json."""
        claim = found.claim
        entry = self._described(claim) | self._judged(found)
        beside = self._beside(found)
        if entry["interval"] and beside and list(beside) == list(entry["interval"]):
            beside = None  # an interval that decided stands as the claim's own, not among what decides nothing
        shown = self._shown(claim) if claim.shown else None
        return ClaimResult(**entry, shown=shown, item_interval=beside)

    def _described(self, claim: Claim) -> dict[str, Any]:
        metric = self.by_name.get(claim.metric)
        return dict(
            id=claim.id, sentence=claim.sentence, condition="" if claim.across else claim.condition, arms=claim.arms,
            metric=claim.metric, direction=claim.direction, margin=claim.margin, against=claim.against,
            smallest_effect=claim.smallest_effect, unit=metric.unit if metric else "", family=claim.family,
            about=claim.about, across=claim.across,
        )  # fmt: skip

    def _judged(self, found: _Found) -> dict[str, Any]:
        """Estimate, interval and verdict."""
        claim = found.claim
        entry: dict[str, Any] = dict(estimate=None, interval=None, level=self.plan.level, n=0, verdict="not measured")
        if not found.measured or found.missing:
            return entry | dict(reason=found.missing, n=found.n)
        sign = _sign(claim)
        entry |= dict(verdict="not enough evidence", n=found.n)
        entry["estimate"] = None if found.latest is None else sign * found.latest
        if found.exact is not None:
            return entry | _as_it_is(found.exact, found.bounds) | dict(interval=[entry["estimate"]] * 2)
        then, shown, verdict = _deciding(found)
        evidence = found.stages[shown] if shown is not None else None
        if shown is None or evidence is None or not found.holds or not found.fails:
            return entry | dict(reason=f"the first planned look is at {self.plan.looks[0]} seeds")
        holds, fails = found.holds[then], found.fails[then]
        entry |= dict(estimate=sign * evidence.estimate, n=evidence.n, verdict=verdict)
        if self.plan.looks:
            entry["look"] = self.looks[shown]
            if found.latest is not None and self.looks[shown] < len(self.plan.seeds):
                entry["latest"] = sign * found.latest
        weight = self.plan.planned_looks[shown][1] if self.plan.looks else 1.0
        ends = [evidence.lower(weight * holds.alpha), evidence.upper(weight * fails.alpha)]
        entry["level"] = 1 - weight * (holds.alpha + fails.alpha)
        if isinstance(evidence, Undecided):
            return entry | dict(reason=evidence.reason, interval=[entry["estimate"]] * 2 if evidence.interval else None)
        entry |= dict(
            interval=sorted(sign * end for end in ends), p_holds=holds.p_value, p_fails=fails.p_value,
            p_holds_adjusted=holds.adjusted, p_fails_adjusted=fails.adjusted,
            below_smallest_effect=verdict == "holds" and claim.margin is None
            and found.fails[-1].rejected_at is not None,
        )  # fmt: skip
        if found.decided_by_items and claim.about == "method":
            entry["reason"] = "the same on every seed: decided by the interval over items"
        if verdict == "not enough evidence":
            entry |= self._outlook(found, evidence, weight * holds.alpha, weight * fails.alpha, shown)
        return entry

    def _outlook(self, found: _Found, evidence: Evidence, holds: float, fails: float, shown: int) -> dict[str, Any]:
        """What would decide: the next look, more seeds, or something else than seeds."""
        if found.claim.about == "models":
            return dict(reason="these items cannot tell")
        if found.claim.across == "new":
            return dict(reason="these sets cannot tell what happens on new ones")
        if self.plan.looks:
            later = self.plan.looks[shown + 1 :]
            next_look = f"the next planned look is at {later[0]} seeds" if later else "all planned looks are used"
            return dict(reason=next_look)
        if isinstance(evidence, Weakest):
            return dict(reason="not sure on every set")
        if not isinstance(evidence, Spread):
            return {}
        above, below = found.bounds
        up, down = evidence.estimate - above, below - evidence.estimate
        distance, alpha = (up, holds) if up >= down else (down, fails)
        return dict(seeds_needed=seeds_for(distance, evidence.sd, alpha, more_than=evidence.n))

    def _beside(self, found: _Found) -> tuple[float, float] | None:
        """An interval over items that is shown, at the study's plain level."""
        claim = found.claim
        if claim.id in self.intervals:
            return self.intervals[claim.id]
        if claim.id not in self.items or claim.about == "models" or found.decided_by_items:
            return None
        evidence, alpha, sign = (
            over_items(self.items[claim.id], claim.direction, claim.against), (1 - self.plan.level) / 2, _sign(claim)
        )  # fmt: skip
        low, high = sorted(sign * end for end in (evidence.lower(alpha), evidence.upper(alpha)))
        return low, high

    def _shown(self, claim: Claim) -> Shown:
        """The second metric's difference, at the study's plain level; it decides nothing."""
        name = claim.shown or ""
        if claim.across:
            return Shown(metric=name)
        arms = self.metrics.get(claim.condition, {})
        values = [arms.get(arm, {}).get(name) for arm in claim.arms]
        if any(one is None for one in values):
            return Shown(metric=name)
        treated = values[0] or []
        control = [claim.against] * len(treated) if claim.against is not None else values[1] or []
        differences = paired_differences(treated, control)
        if not differences:
            return Shown(metric=name)
        interval = t_interval(differences, self.plan.level) if len(differences) > 1 else None
        return Shown(metric=name, estimate=sum(differences) / len(differences), interval=interval)


def _sign(claim: Claim) -> int:
    return 1 if claim.direction == "higher" else -1


def _as_it_is(exact: Exact, bounds: tuple[float, float]) -> dict[str, Any]:
    above, below = bounds
    if exact.estimate > above:
        return dict(verdict="holds", below_smallest_effect=exact.estimate < below)
    return dict(verdict="does not hold" if exact.estimate < below else "not enough evidence")


def _deciding(found: _Found) -> tuple[int, int | None, str]:
    """The look of the verdict, the look whose evidence is shown for it, and the verdict itself.

    The first look that decided, with the evidence that did; else the latest that was reached. They differ where an
    earlier look's evidence decided later, when other claims of the family had made room.
    """
    if not found.holds or not found.fails:
        return 0, None, "not enough evidence"
    held, failed = found.holds[-1].rejected_at, found.fails[-1].rejected_at
    first = min((one for one in (held, failed) if one is not None), default=None)
    if first is None:
        there = [stage for stage, evidence in enumerate(found.stages) if evidence is not None]
        return len(found.holds) - 1, (there[-1] if there else None), "not enough evidence"
    if held == first:
        return first, found.holds[first].look, "holds"
    return first, found.fails[first].look, "does not hold"
