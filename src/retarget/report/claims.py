"""The claims table's rows: what was compared, by how much it differed, and the verdict."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

from retarget.report import words
from retarget.report.source import Study
from retarget.study.config import Metric
from retarget.study.results import ClaimResult

MARKS = {"holds": "holds", "does not hold": "fails", "not enough evidence": "lacks", "not measured": "unmeasured"}
"""Names of the verdicts' shapes in the style sheet and the template."""


@dataclass(frozen=True)
class Strip:
    """A claim's interval as places from 0 to 100, turned so that better is to the right."""

    zero: float
    threshold: float
    low: float
    estimate: float
    high: float


@dataclass(frozen=True)
class ClaimRow:
    """One row of the claims table; every text is final, ``missing`` says why there is no estimate."""

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
    strip: Strip | None


@dataclass(frozen=True)
class ClaimGroup:
    """Claims of one condition, in the study's order; ``condition`` is empty where the study has only one."""

    condition: str
    rows: tuple[ClaimRow, ...]


def claim_groups(study: Study) -> tuple[ClaimGroup, ...]:
    """The study's claims in the order they were stated in, never sorted by verdict."""
    labels = {condition.name: condition.label or condition.name for condition in study.plan.conditions}
    groups = []
    for name, claims in groupby(study.summary.claims, key=lambda claim: claim.condition):
        heading = labels.get(name, "Stated, not part of this study") if len(labels) > 1 else ""
        heading = heading if name else "Over several conditions"
        groups.append(ClaimGroup(heading, tuple(_row(claim, study) for claim in claims)))
    return tuple(groups)


def _row(claim: ClaimResult, study: Study) -> ClaimRow:
    metrics = {metric.name: metric for metric in study.plan.metrics}
    arms = {arm.name: arm.label for arm in study.plan.arms}
    metric = metrics.get(claim.metric, Metric(name=claim.metric, label=claim.metric, unit=claim.unit))
    decimals = words.difference_decimals(claim.interval or (), metric.decimals)
    against = (
        f"the constant {claim.against:g}" if claim.against is not None else arms.get(claim.arms[-1], claim.arms[-1])
    )
    return ClaimRow(
        sentence=claim.sentence,
        compared=f"{arms.get(claim.arms[0], claim.arms[0])} against {against}",
        metric=f"{words.with_unit(metric.label, metric.unit)}; {claim.direction} is better",
        threshold=_threshold(claim, metric),
        estimate="" if claim.estimate is None else _amount(claim.estimate, decimals, metric.unit),
        interval=words.interval(*claim.interval, decimals) if claim.interval else "",
        level=f"{words.percent(claim.level)} interval" if claim.level and claim.interval else "",
        n=_counted(claim),
        missing=_missing(claim, study, arms),
        verdict=claim.verdict,
        verdict_words=words.VERDICT_WORDS[claim.verdict],
        symbol=words.VERDICT_SYMBOLS[claim.verdict],
        mark=MARKS[claim.verdict],
        remark=_remark(claim),
        beside=_beside(claim, metrics, metric, study.analysis.item_label),
        strip=_strip(claim),
    )


def _amount(value: float, decimals: int, unit: str) -> str:
    return words.amount(words.number(value, decimals, signed=True), unit)


def _counted(claim: ClaimResult) -> str:
    """How many seeds, or items or sets by their name."""
    if not claim.n:
        return words.MISSING
    if claim.about == "models":
        return words.plural(claim.n, "item")
    return words.plural(claim.n, "set") if claim.across == "new" else str(claim.n)


def _threshold(claim: ClaimResult, metric: Metric) -> str:
    parts = ["secondary claim"] if claim.family == "secondary" else []
    if claim.across:
        parts.append(words.ACROSS[claim.across])
    if claim.margin is not None:
        parts.append(f"may be worse by up to {words.amount(f'{claim.margin:g}', metric.unit)}")
    else:
        parts.append(f"smallest effect that matters: {words.amount(f'{claim.smallest_effect:g}', metric.unit)}")
    return "; ".join(parts)


def _missing(claim: ClaimResult, study: Study, arms: Mapping[str, str]) -> str:
    if claim.reason:
        return f"{claim.reason}."
    absent = [arm for arm in claim.arms if arm not in arms]
    if absent:
        return f"Not run here: {', '.join(absent)}."
    if claim.across:
        return "One of its conditions has no seed with a value of both."
    if claim.condition not in study.summary.conditions:
        return "This study does not have its condition."
    return "No seed has a value of both."


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
    return f"{words.plural(claim.seeds_needed, 'seed')} would decide with 80 % power, if mean and spread stay"


def _beside(claim: ClaimResult, metrics: Mapping[str, Metric], metric: Metric, item_label: str) -> str:
    """Numbers that decide nothing, and say so."""
    parts = []
    if claim.latest is not None:
        decimals = words.difference_decimals([claim.latest], metric.decimals)
        parts.append(f"over all seeds {_amount(claim.latest, decimals, metric.unit)}")
    if claim.item_interval:
        low, high = claim.item_interval
        decimals = words.difference_decimals([low, high], metric.decimals)
        parts.append(f"{item_label} {words.interval(low, high, decimals)}")
    shown = claim.shown
    if shown is not None:
        other = metrics.get(shown.metric, Metric(name=shown.metric, label=shown.metric))
        if shown.estimate is None:
            parts.append(f"{other.label}: no value")
        else:
            decimals = words.difference_decimals(shown.interval or (), other.decimals)
            amount = _amount(shown.estimate, decimals, other.unit)
            bounds = f" {words.interval(*shown.interval, decimals)}" if shown.interval else ""
            parts.append(f"{other.label} {amount}{bounds}")
    return f"Decides nothing: {'; '.join(parts)}" if parts else ""


def _strip(claim: ClaimResult) -> Strip | None:
    """Places on a scale that holds zero, the interval and the threshold; None without an interval."""
    if claim.estimate is None or claim.interval is None:
        return None
    sign = 1 if claim.direction == "higher" else -1
    low, high = sorted(sign * end for end in claim.interval)
    threshold = -claim.margin if claim.margin is not None else claim.smallest_effect
    marks = (0.0, threshold, low, sign * claim.estimate, high)
    start, end = min(marks), max(marks)
    return Strip(*(round(6 + 88 * (mark - start) / (end - start), 2) for mark in marks)) if end > start else None
