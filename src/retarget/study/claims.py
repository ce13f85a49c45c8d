"""Verdicts: what the paired differences over seeds say about each claim."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from retarget.study.config import Claim, Metric, StudyPlan
from retarget.study.results import ClaimResult, Shown, Verdict
from retarget.study.statistics import (
    Holm,
    PairedTest,
    holm,
    paired_differences,
    paired_test,
    seeds_needed,
    t_interval,
)

Values = Mapping[str, Mapping[str, Mapping[str, list[float | None]]]]


class _Measured(NamedTuple):
    """A claim's differences: as measured, and oriented so that positive is good."""

    differences: list[float]
    good: list[float]
    scale: float
    test: PairedTest
    exact: bool


def judge(
    plan: StudyPlan, metrics: Values, item_intervals: Mapping[str, tuple[float, float]] | None = None
) -> list[ClaimResult]:
    """Judge every claim of a study.

    Let d be the paired difference over seeds, treated - control, turned so that positive is good, and [lo, hi] its t
    interval at the level that Holm's procedure over the measured claims gives it.

    - *holds*: lo > 0; for a non-inferiority claim lo > -margin.
    - *does not hold*: hi < smallest effect; for a non-inferiority claim hi < -margin. A difference that is surely
      positive and surely below the smallest effect holds, and carries ``below_smallest_effect``.
    - *not enough evidence*: else, and always with fewer than two seeds, or when all differences are equal: their
      spread is then 0 by coarse metrics or by identical arms, and a t interval of no width would claim certainty.
      Only a metric declared ``deterministic`` is judged by its difference as it is.
    - *not measured*: no seed has both arms.

    A share measured against a constant can be the same on every seed because it is perfect (100 % of the images). If
    such a claim has an item interval, that interval takes the place of [lo, hi]: the items are then all the spread
    there is. One seed still decides nothing.

    Args:
        metrics: ``{condition: {arm: {metric: values}}}``; values align with the plan's seeds, None where missing.
        item_intervals: by claim, over items; shown, and decides only in the case above.

    Returns:
        One result for each claim, in order.
    """
    by_name = {metric.name: metric for metric in plan.metrics}
    found = [_measure(claim, metrics, by_name.get(claim.metric)) for claim in plan.claims]
    tested = [index for index, one in enumerate(found) if one and not one.exact]
    family = holm([_p_value(found[index]) for index in tested], plan.level)
    places = {index: place for place, index in enumerate(tested)}
    judged = []
    for index, (claim, measured) in enumerate(zip(plan.claims, found, strict=True)):
        shown = None
        if claim.shown:
            shown = _shown(claim, metrics, by_name.get(claim.shown), plan.level)
        items = (item_intervals or {}).get(claim.id)
        entry = _described(claim, by_name.get(claim.metric)) | _verdict(
            claim, measured, places.get(index), family, plan, items
        )
        # An interval that decided stands as the claim's own, not among what decides nothing.
        beside = items if items and entry["interval"] != list(items) else None
        judged.append(ClaimResult(**entry, shown=shown, item_interval=beside))
    return judged


def _measure(claim: Claim, metrics: Values, metric: Metric | None) -> _Measured | None:
    arms = metrics.get(claim.condition, {})
    values = [arms.get(arm, {}).get(claim.metric) for arm in claim.arms]
    if any(one is None for one in values):
        return None
    treated = values[0] or []
    control = [claim.against] * len(treated) if claim.against is not None else values[1] or []
    differences = paired_differences(treated, control)
    if not differences:
        return None
    sign = 1 if claim.direction == "higher" else -1
    good = [sign * one for one in differences]
    pairs = [(t, c) for t, c in zip(treated, control, strict=True) if t is not None and c is not None]
    scale = max(abs(value) for pair in pairs for value in pair)
    test = paired_test(good, scale, null=-(claim.margin or 0.0))
    exact = bool(metric and metric.deterministic) and test.sd in (None, 0.0)
    return _Measured(differences, good, scale, test, exact)


def _p_value(measured: _Measured | None) -> float:
    """A claim that cannot be tested yet stays in the family and can never be rejected."""
    return 1.0 if measured is None or measured.test.p_value is None else measured.test.p_value


def _described(claim: Claim, metric: Metric | None) -> dict[str, Any]:
    return {
        "id": claim.id,
        "sentence": claim.sentence,
        "condition": claim.condition,
        "arms": list(claim.arms),
        "metric": claim.metric,
        "direction": claim.direction,
        "margin": claim.margin,
        "smallest_effect": claim.smallest_effect,
        "against": claim.against,
        "unit": metric.unit if metric else "",
    }


def _verdict(
    claim: Claim,
    measured: _Measured | None,
    place: int | None,
    family: Holm,
    plan: StudyPlan,
    items: tuple[float, float] | None,
) -> dict[str, Any]:
    level = plan.level if place is None else family.levels[place]
    entry: dict[str, Any] = dict(
        estimate=None, interval=None, level=level, n=0, verdict="not measured", p_value=None, p_adjusted=None,
        seeds_needed=None, below_smallest_effect=False, reason="",
    )  # fmt: skip
    if measured is None:
        return entry
    test = measured.test
    sign = 1 if claim.direction == "higher" else -1
    entry |= dict(estimate=sign * test.estimate, n=test.n, p_value=test.p_value)
    if place is not None:
        entry["p_adjusted"] = family.adjusted[place] if test.p_value is not None else None
    if test.sd is None and not measured.exact:
        return entry | dict(verdict="not enough evidence", reason="one seed has no spread")
    if test.sd in (None, 0.0):
        low = high = test.estimate
        entry["interval"] = [entry["estimate"]] * 2
        if not measured.exact and items is not None and claim.against is not None:
            entry["interval"] = list(items)
            low, high = sorted(sign * one for one in items)
            place = None
            entry["reason"] = "the same on every seed: decided by the interval over items"
        elif not measured.exact:
            return entry | dict(verdict="not enough evidence", reason="the difference is the same on every seed")
    else:
        low, high = t_interval(measured.good, level)
        entry["interval"] = sorted([sign * low, sign * high])
    verdict = _decide(claim, low, high, rejected=place is None or family.rejected[place])
    entry["verdict"] = verdict
    if verdict == "holds" and claim.margin is None:
        entry["below_smallest_effect"] = high < claim.smallest_effect
    if verdict == "not enough evidence" and test.sd:
        entry["seeds_needed"] = seeds_needed(_distance(claim, test.estimate), test.sd, test.n, level)
    return entry


def _decide(claim: Claim, low: float, high: float, rejected: bool) -> Verdict:
    """The verdict of an oriented interval; Holm's own decision settles a bound that touches the null in rounding."""
    null = -(claim.margin or 0.0)
    if low > null and rejected:
        return "holds"
    if high < (null if claim.margin is not None else claim.smallest_effect):
        return "does not hold"
    return "not enough evidence"


def _distance(claim: Claim, estimate: float) -> float:
    """How far an oriented estimate lies from the bound whose passing decides."""
    if claim.margin is not None:
        return abs(estimate + claim.margin)
    return max(estimate, claim.smallest_effect - estimate)


def _shown(claim: Claim, metrics: Values, metric: Metric | None, level: float) -> Shown:
    """The second metric's difference, at the study's plain level; it decides nothing."""
    beside = claim.model_copy(update={"metric": claim.shown})
    measured = _measure(beside, metrics, metric)
    if measured is None:
        return Shown(metric=beside.metric)
    sign = 1 if claim.direction == "higher" else -1
    interval = t_interval(measured.differences, level) if measured.test.n > 1 else None
    return Shown(metric=beside.metric, estimate=sign * measured.test.estimate, interval=interval)
