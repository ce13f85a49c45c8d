"""The rows of the claims table: what was compared, the difference, and the verdict."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from retarget.report import words
from retarget.report.source import Study
from retarget.study.config import Metric
from retarget.study.results import ClaimResult

MARKS = {"holds": "holds", "does not hold": "fails", "not enough evidence": "lacks", "not measured": "unmeasured"}
"""Names of the verdicts' marks in the style sheet and the template."""


@dataclass(frozen=True)
class Scaled:
    """A claim's numbers as multiples of its smallest effect, with better to the right.

    ``threshold`` is 1, or -1 for a margin. ``over_items`` marks an interval over items, which decides nothing here;
    without an interval ``low`` and ``high`` are the estimate.
    """

    estimate: float
    low: float
    high: float
    threshold: float
    over_items: bool


@dataclass(frozen=True)
class ClaimRow:
    """One row of the claims table, in final texts; ``missing`` is the reason if there is no estimate.

    ``verdict`` is empty if each arm was run once, which decides nothing about the method.
    """

    id: str
    sentence: str
    compared: str
    metric: str
    threshold: str
    estimate: str
    interval: str
    level: str
    n: str
    missing: str
    verdict: str
    verdict_words: str
    symbol: str
    mark: str
    remark: str
    beside: str
    scaled: Scaled | None


@dataclass(frozen=True)
class ClaimGroup:
    """The claims under one condition, in the study's order; ``condition`` is empty if the study has only one."""

    condition: str
    rows: tuple[ClaimRow, ...]


def was_run(claim: ClaimResult, study: Study) -> bool:
    """Whether the study ran the claim's arms and condition; claims that it only states are not findings."""
    if claim.n or claim.estimate is not None:
        return True
    there = {arm.name for arm in study.plan.arms}
    for arms in study.summary.conditions.values():
        there |= {
            arm for arm, found in arms.items() if any(v is not None for one in found.values() for v in one.values)
        }
    return set(claim.arms) <= there and (bool(claim.across) or claim.condition in study.summary.conditions)


def only_models(study: Study) -> bool:
    """Whether all claims that were run are about these models: their items are paired, and no seeds."""
    claims = [claim for claim in study.summary.claims if was_run(claim, study)]
    return bool(claims) and all(claim.about == "models" for claim in claims)


def is_exact(claim: ClaimResult, study: Study) -> bool:
    """Whether a claim is on a metric that does not depend on the seed, and so decided without a test."""
    metrics = {metric.name for metric in study.plan.metrics if metric.deterministic}
    return claim.metric in metrics and claim.p_holds is None


def run_once(study: Study) -> bool:
    """Whether nothing can be decided because each arm was run once and no claim is about these models."""
    claims = [claim for claim in study.summary.claims if was_run(claim, study)]
    values = [
        one.values for arms in study.summary.conditions.values() for found in arms.values() for one in found.values()
    ]
    if max((sum(value is not None for value in some) for some in values), default=0) > 1:
        return False  # some arms were run more often, and other runs failed
    undecided = all(claim.verdict in ("not enough evidence", "not measured") for claim in claims)
    once = [claim.n == 1 and claim.about == "method" and claim.across != "new" for claim in claims if claim.n]
    return undecided and bool(once) and all(once)


def claim_groups(study: Study) -> tuple[ClaimGroup, ...]:
    """The claims that were run, by condition, in the order in which they were stated, never sorted by verdict."""
    labels = _conditions(study)
    claims = [claim for claim in study.summary.claims if was_run(claim, study)]
    stated = list(dict.fromkeys(claim.condition for claim in claims))
    claims.sort(key=lambda claim: stated.index(claim.condition))
    once = run_once(study)
    groups = []
    for name, some in groupby(claims, key=lambda claim: claim.condition):
        heading = labels.get(name, "") if len(labels) > 1 else ""
        heading = heading if name or len(labels) < 2 else "Over several conditions"
        groups.append(ClaimGroup(heading, tuple(_row(claim, study, once) for claim in some)))
    return tuple(groups)


def not_run(study: Study) -> tuple[str, ...]:
    """The sentences of claims that the study states but does not run, without repetition."""
    return tuple(dict.fromkeys(claim.sentence for claim in study.summary.claims if not was_run(claim, study)))


def arm_labels(study: Study) -> dict[str, str]:
    """Labels of the arms, and readable names for arms that only the analysis knows."""
    labels = {arm.name: arm.label for arm in study.plan.arms}
    beyond = {arm for arms in study.summary.conditions.values() for arm in arms} - set(labels)
    return labels | {arm: arm.replace("_", " ") for arm in sorted(beyond)}


def _conditions(study: Study) -> dict[str, str]:
    return {condition.name: condition.label or condition.name for condition in study.plan.conditions}


def _row(claim: ClaimResult, study: Study, once: bool) -> ClaimRow:
    metrics = {metric.name: metric for metric in study.plan.metrics}
    arms = arm_labels(study)
    metric = metrics.get(claim.metric, Metric(name=claim.metric, label=claim.metric, unit=claim.unit))
    ends = claim.item_interval if once else claim.interval
    if ends and ends[0] == ends[1] and claim.p_holds is None:
        ends = None  # a difference that needs no test is exact
    decimals = words.difference_decimals(ends or (), metric.decimals)
    item_label = study.analysis.item_label
    level = words.percent(study.plan.level if once else claim.level or 0)
    return ClaimRow(
        id=claim.id,
        sentence=claim.sentence,
        compared=f"{arms[claim.arms[0]]} against {against(claim, arms)}",
        metric=f"{words.with_unit(metric.label, metric.unit)}; {claim.direction} is better",
        threshold=_threshold(claim, metric, study),
        estimate="" if claim.estimate is None else _amount(claim.estimate, decimals, metric.unit),
        interval=words.interval(*ends, decimals) if ends else "",
        level=(f"{level} {item_label}" if once else f"{level} interval") if ends and (once or claim.level) else "",
        n=_counted(claim),
        missing=_missing(claim),
        verdict="" if once else claim.verdict,
        verdict_words="" if once else words.VERDICT_WORDS[claim.verdict],
        symbol="" if once else words.VERDICT_SYMBOLS[claim.verdict],
        mark="once" if once else MARKS[claim.verdict],
        remark="" if once else _remark(claim),
        beside=_beside(claim, metrics, metric, "" if once else item_label),
        scaled=_scaled(claim, once),
    )


def _amount(value: float, decimals: int, unit: str) -> str:
    return words.amount(words.number(value, decimals, signed=True), unit)


def _counted(claim: ClaimResult) -> str:
    """The number of seeds, or of items or sets, with the noun."""
    if not claim.n:
        return words.MISSING
    if claim.about == "models":
        return words.plural(claim.n, "item")
    return words.plural(claim.n, "set") if claim.across == "new" else str(claim.n)


def against(claim: ClaimResult, arms: Mapping[str, str]) -> str:
    """What a claim's first arm is compared with: the label of the other, or a constant."""
    return arms[claim.arms[-1]] if claim.against is None else f"the constant {words.fixed(claim.against)}"


def across(claim: ClaimResult, study: Study) -> str:
    """Over which data sets a claim is judged, in words; they are named if it leaves some of the study's out."""
    labels = _conditions(study)
    stated = next((one.conditions for one in study.plan.claims if one.id == claim.id), ())
    some = words.listed(labels.get(name, name) for name in stated) if 0 < len(stated) < len(labels) else ""
    return words.ACROSS[claim.across or "every"].format(some or "these data sets", some or "these")


def judged_by_earlier_rules(study: Study) -> bool:
    """Whether an earlier version gave the verdicts, by two-sided tests."""
    claims = [claim for claim in study.summary.claims if was_run(claim, study)]
    decided = [claim for claim in claims if claim.interval and claim.interval[0] < claim.interval[1]]
    return bool(decided) and all(claim.p_holds is None for claim in decided)


def _threshold(claim: ClaimResult, metric: Metric, study: Study) -> str:
    parts = ["secondary claim"] if claim.family == "secondary" else []
    if claim.across:
        parts.append(across(claim, study))
    if claim.margin is not None:
        by = f"may be worse by up to {words.fixed(claim.margin, metric.unit)}"
        parts.append(by if claim.margin else "may not be worse")
    else:
        parts.append(f"smallest effect that matters: {words.fixed(claim.smallest_effect, metric.unit)}")
    return "; ".join(parts)


def _missing(claim: ClaimResult) -> str:
    if claim.reason:
        return f"{claim.reason}."
    return "No seed has both values in all of its conditions." if claim.across else "No seed has both values."


def _remark(claim: ClaimResult) -> str:
    parts = []
    if claim.about == "models" and claim.verdict != "not measured":
        parts.append(f"for {words.models(len(claim.arms))} on this data")
    if claim.verdict == "holds" and claim.below_smallest_effect:
        parts.append("but by less than the smallest effect that matters")
    if claim.look and claim.verdict in ("holds", "does not hold"):
        parts.append(f"since the planned look at {words.plural(claim.look, 'seed')}")
    if claim.verdict == "not enough evidence":
        parts.append(_lacking(claim))
    return "; ".join(parts)


def _lacking(claim: ClaimResult) -> str:
    if claim.reason:
        return claim.reason
    if claim.seeds_needed is None:
        return "more than 10,000 seeds would be needed"
    return f"{words.plural(claim.seeds_needed, 'seed')} would decide with 80 % power, if mean and spread stay the same"


def _beside(claim: ClaimResult, metrics: Mapping[str, Metric], metric: Metric, item_label: str) -> str:
    """Numbers that decide nothing, marked as such; without ``item_label`` no interval over items is among them."""
    parts = []
    if claim.latest is not None:
        decimals = words.difference_decimals([claim.latest], metric.decimals)
        parts.append(f"over all seeds {_amount(claim.latest, decimals, metric.unit)}")
    if claim.item_interval and item_label:
        low, high = claim.item_interval
        decimals = words.difference_decimals([low, high], metric.decimals)
        parts.append(f"{item_label} {words.interval(low, high, decimals)}")
    shown = claim.shown
    if shown is not None and claim.against is not None and not shown.value:
        shown = None  # of an earlier version, which subtracted the constant from the second metric, too
    if shown is not None:
        other = metrics.get(shown.metric, Metric(name=shown.metric, label=shown.metric))
        if shown.estimate is None:
            parts.append(f"{other.label}: no value")
        else:
            decimals = words.difference_decimals(shown.interval or (), other.decimals)
            bounds = f" {words.interval(*shown.interval, decimals, signed=not shown.value)}" if shown.interval else ""
            if shown.value:
                amount = f"{words.number(shown.estimate, decimals)} {other.unit}".strip()
            else:
                amount = _amount(shown.estimate, decimals, other.unit)
            fewer = shown.n is not None and claim.about != "models" and shown.n != claim.n
            over = f", over {shown.n} seed{'s' * (shown.n != 1)}" if fewer else ""
            parts.append(f"{other.label} {amount}{bounds}{over}")
    return f"Decides nothing: {'; '.join(parts)}" if parts else ""


def _scaled(claim: ClaimResult, once: bool) -> Scaled | None:
    """None without an estimate."""
    if claim.estimate is None:
        return None
    unit = claim.margin or claim.smallest_effect
    sign = (1 if claim.direction == "higher" else -1) / unit
    ends = (claim.item_interval if once else claim.interval) or (claim.estimate, claim.estimate)
    low, high = sorted(sign * end for end in ends)
    threshold = 1.0 if claim.margin is None else -1.0 if claim.margin else 0.0
    return Scaled(sign * claim.estimate, low, high, threshold, once and claim.item_interval is not None)
