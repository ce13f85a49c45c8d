"""Verdicts: decide from the measurements whether each claim holds, does not hold, or cannot be decided."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from retarget.study.config import Claim, StudyPlan
from retarget.study.evidence import Evidence, Exact, Spread, Undecided, Weakest, over_items
from retarget.study.items import Items
from retarget.study.measured import Chain, Found, Measuring, Values, sign_of
from retarget.study.power import Outlook, outlook, seeds_for
from retarget.study.results import ClaimResult, Shown
from retarget.study.statistics import holm, paired_differences, settled, t_interval


def judge(
    plan: StudyPlan,
    metrics: Values,
    item_intervals: Mapping[str, tuple[float, float]] | None = None,
    items: Mapping[str, Items] | None = None,
) -> list[ClaimResult]:
    """Judge every claim of a study.

    Let d be the paired difference, treated - control, with its sign turned so that positive is good. In each family of
    claims there are two chains of one-sided tests, each by Holm's procedure with a total error of (1 - level) / 2:

    - *holds* tests that d ≤ 0; for a non-inferiority claim that d ≤ -margin.
    - *does not hold* tests that d ≥ the smallest effect; for a non-inferiority claim that d ≥ -margin.

    So the probability that any claim of a family is wrongly found to hold is at most (1 - level) / 2, and so is the
    probability that any is wrongly found not to hold. Each end of an interval is the bound of its own chain's test.

    - *not enough evidence*: neither test rejects. Always so with fewer than two seeds, and if all differences are
      equal: their spread is then 0 because the metric is coarse or the arms are identical, and a t interval of no width
      would claim certainty. Only a metric declared ``deterministic`` is judged by its exact difference, outside any
      family.
    - *not measured*: no seed has both arms, or the control misses the claim's floor. In the latter case the claim
      still counts in its family.
    - If both tests reject, the difference is significantly positive and significantly below the smallest effect: the
      claim holds, with ``below_smallest_effect``.

    With planned looks, verdicts are given only at these numbers of seeds (the first ones of the plan). Look k spends
    its share w_k of the error, so that a claim's p-value, before Holm's procedure, is the smallest p_k / w_k so far. By
    the union bound the error rates hold whenever one stops. A verdict from a look is final, and names the look.

    A share compared with a constant can be the same on every seed because it is perfect (0 or 100 % of the images on
    all of them). Such a claim is tested over its items, in its family like any other. A single seed still decides
    nothing, and neither do seeds that agree on any other value: there is no spread to judge by.

    Args:
        metrics: ``{condition: {arm: {metric: values}}}``; values align with the plan's seeds, None where missing.
        item_intervals: for claims, intervals over items at the study's level; shown beside the verdict, and tested
            only in the case above.
        items: for claims, what was counted or resampled over items: decides the claims about models, and is used
            instead of an interval in the case above.

    Returns:
        One result for each claim, in order.
    """
    study = Measuring(plan, metrics, dict(item_intervals or {}), dict(items or {}))
    found = [study.measure(claim) for claim in plan.claims]
    for family in ("primary", "secondary"):
        _test([one for one in found if one.claim.family == family and one.tested], plan)
    writer = _Writer(study)
    return [writer.result(one) for one in found]


def outlooks(plan: StudyPlan, values: Values, pilot: int, n: int) -> list[Outlook]:
    """What ``n`` seeds can decide, estimated from a pilot's spread, for each claim over seeds that has one.

    The assumed truth is no effect, or the smallest effect: the probability of a verdict is the same in both cases. For
    a non-inferiority claim it is no difference. With planned looks the figure is the power of the last look reached,
    taken alone.

    Args:
        values: the pilot's values, as for :func:`judge`.
        pilot: number of seeds in the pilot.
    """
    before = plan.model_copy(update={"seeds": tuple(range(pilot)), "looks": (), "look_weights": ()})
    found = [one for one in map(Measuring(before, values, {}, {}).measure, plan.claims) if one.tested]
    sizes = Counter(one.claim.family for one in found)
    error = (1 - plan.level) / 2
    if plan.looks:
        reached = [look for look in plan.planned_looks if look[0] <= n]
        n, weight = reached[-1] if reached else (0, plan.planned_looks[0][1])
        error *= weight
    return [
        outlook(one.claim.id, spread.sd, spread.n, one.distance, n, error,
                sizes[one.claim.family])
        for one in found
        for spread in one.stages
        if isinstance(spread, Spread) and one.claim.about == "method" and one.claim.across != "new"
    ]  # fmt: skip


def _test(family: list[Found], plan: StudyPlan) -> None:
    """Test both chains of one family at every look that was reached."""
    if not family:
        return
    error = (1 - plan.level) / 2
    weights = [weight for _, weight in plan.planned_looks] or [1.0]
    stages = len(family[0].stages)
    for name in ("holds", "fails"):
        smallest, whose = [1.0] * len(family), [0] * len(family)
        rows: list[list[Chain]] = [[] for _ in family]
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
                chains.append(Chain(tests.alphas[place], smallest[place], whose[place], tests.adjusted[place], first))
        for one, chains in zip(family, rows, strict=True):
            setattr(one, name, chains)


class _Writer:
    """Turns measurements and tests into entries of summary.json."""

    def __init__(self, study: Measuring) -> None:
        self.study, self.plan = study, study.plan
        self.by_name, self.intervals, self.items = study.by_name, study.intervals, study.items

    def result(self, found: Found) -> ClaimResult:
        """The claim's entry in summary.json."""
        claim = found.claim
        entry = self._described(claim) | self._judged(found)
        beside = self._beside(found)
        if entry["interval"] and beside and list(beside) == list(entry["interval"]):
            beside = None  # an interval that decided is shown as the claim's own
        shown = self._shown(claim) if claim.shown and not claim.across else None
        return ClaimResult(**entry, shown=shown, item_interval=beside)

    def _described(self, claim: Claim) -> dict[str, Any]:
        metric = self.by_name.get(claim.metric)
        return dict(
            id=claim.id, sentence=claim.sentence, condition="" if claim.across else claim.condition, arms=claim.arms,
            metric=claim.metric, direction=claim.direction, margin=claim.margin, against=claim.against,
            smallest_effect=claim.smallest_effect, unit=metric.unit if metric else "", family=claim.family,
            about=claim.about, across=claim.across,
        )  # fmt: skip

    def _judged(self, found: Found) -> dict[str, Any]:
        """Estimate, interval and verdict."""
        claim = found.claim
        entry: dict[str, Any] = dict(estimate=None, interval=None, level=self.plan.level, n=0, verdict="not measured")
        if not found.measured or found.missing:
            return entry | dict(reason=found.missing, n=found.n)
        sign = sign_of(claim)
        entry |= dict(verdict="not enough evidence", n=found.n)
        entry["estimate"] = None if found.latest is None else sign * found.latest + 0.0  # no negative zero
        if found.exact is not None:
            return entry | _as_it_is(found.exact, claim, found.bounds) | dict(interval=[entry["estimate"]] * 2)
        then, shown, verdict = _deciding(found)
        evidence = found.stages[shown] if shown is not None else None
        if shown is None or evidence is None or not found.holds or not found.fails:
            if claim.about == "models" and self.plan.looks:
                return entry | dict(
                    reason=f"about models, judged at the last planned look, at {self.plan.looks[-1]} seeds"
                )
            return entry | dict(reason=f"the first planned look is at {self.plan.looks[0]} seeds")
        holds, fails = found.holds[then], found.fails[then]
        entry |= dict(estimate=sign * evidence.estimate + 0.0, n=evidence.n, verdict=verdict)
        if self.plan.looks:
            entry["look"] = self.study.looks[shown]
            if found.latest is not None and self.study.looks[shown] < len(self.plan.seeds):
                entry["latest"] = sign * found.latest
        weight = self.plan.planned_looks[shown][1] if self.plan.looks else 1.0
        ends = [evidence.lower(weight * holds.alpha), evidence.upper(weight * fails.alpha)]
        entry["level"] = 1 - weight * (holds.alpha + fails.alpha)
        if isinstance(evidence, Undecided):
            return entry | dict(reason=evidence.reason)  # an interval of no width would claim certainty
        entry |= dict(
            interval=self._possible(claim, claim.metric, sorted(sign * end for end in ends)),
            p_holds=holds.p_value, p_fails=fails.p_value,
            p_holds_adjusted=holds.adjusted, p_fails_adjusted=fails.adjusted,
            below_smallest_effect=verdict == "holds" and claim.margin is None
            and found.fails[-1].rejected_at is not None,
        )  # fmt: skip
        if found.decided_by_items and claim.about == "method":
            entry["reason"] = "the same on every seed: decided by the interval over items"
            entry["n"] = found.n
        if verdict == "not enough evidence":
            entry |= self._outlook(found, evidence, weight * holds.alpha, weight * fails.alpha, shown)
        return entry

    def _outlook(self, found: Found, evidence: Evidence, holds: float, fails: float, shown: int) -> dict[str, Any]:
        """What would decide the claim: the next look, more seeds, or something other than seeds."""
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

    def _beside(self, found: Found) -> tuple[float, float] | None:
        """An interval over items to show beside the verdict, at the study's level, unadjusted."""
        claim = found.claim
        if claim.id in self.intervals:
            return self.intervals[claim.id]
        if claim.id not in self.items or claim.about == "models" or found.decided_by_items:
            return None
        evidence, alpha, sign = (
            over_items(self.items[claim.id], claim.direction, claim.against), (1 - self.plan.level) / 2, sign_of(claim)
        )  # fmt: skip
        low, high = sorted(sign * end for end in (evidence.lower(alpha), evidence.upper(alpha)))
        return low, high

    def _shown(self, claim: Claim) -> Shown:
        """The second metric's difference with its interval at the study's level, unadjusted; it decides nothing.

        A constant is one of the claim's own metric: beside it stands the second metric's value.
        """
        name = claim.shown or ""
        arms = self.study.metrics.get(claim.condition, {})
        values = [arms.get(arm, {}).get(name) for arm in claim.arms]
        if any(one is None for one in values):
            return Shown(metric=name)
        treated = values[0] or []
        alone = claim.against is not None
        control = [0.0] * len(treated) if alone else values[1] or []
        differences = paired_differences(treated, control)
        if not differences:
            return Shown(metric=name, value=alone)
        interval = t_interval(differences, self.plan.level) if len(set(differences)) > 1 else None
        metric = self.by_name.get(name)
        if interval and metric:
            interval = metric.possible(*interval, 0.0 if alone else None)
        scale = max(abs(one) for one in (*treated, *control) if one is not None)
        estimate = settled(sum(differences) / len(differences), scale)
        return Shown(metric=name, value=alone, estimate=estimate, interval=interval, n=len(differences))

    def _possible(self, claim: Claim, name: str, interval: Sequence[float]) -> tuple[float, float]:
        low, high = interval
        metric = self.by_name.get(name)
        return metric.possible(low, high, claim.against) if metric else (low, high)


def _as_it_is(exact: Exact, claim: Claim, bounds: tuple[float, float]) -> dict[str, Any]:
    above, below = bounds
    reaches, lacks = exact.p_above(above) == 0, exact.p_below(below) == 0
    if reaches or (claim.margin is not None and not lacks):
        return dict(verdict="holds", below_smallest_effect=lacks)
    return dict(verdict="does not hold" if lacks else "not enough evidence")


def _deciding(found: Found) -> tuple[int, int | None, str]:
    """The look of the verdict, the look whose evidence is shown for it, and the verdict.

    It is the first look that decided, or else the latest that was reached. The two looks differ if evidence of an
    earlier look became decisive only later, after other claims of the family had been rejected.
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
