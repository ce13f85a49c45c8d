"""Sentences about claims that look mistaken: an effect in another unit, or a direction against the metric's."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retarget.study.config import Claim, Metric, StudyPlan
from retarget.study.measured import Values


def doubts(claims: Sequence[Claim], metrics: Sequence[Metric], values: Values, ours: bool = False) -> list[str]:
    """What to ask the author of claims, which are judged as they stand.

    Args:
        metrics: those whose unit and better direction the author has stated.
        values: ``{condition: {arm: {metric: values}}}``.
        ours: the claims are this package's and known to be right; only the data may not allow such effects.
    """
    lines = [line for claim in claims for line in _of_effects(claim, values, not ours)]
    better = {one.name: one.better for one in metrics}
    for claim in claims:
        if {better.get(claim.metric, "neither"), claim.direction} == {"higher", "lower"}:
            lines.append(
                f"Claim {claim.id} has direction = {claim.direction}, but its metric says that {better[claim.metric]} "
                "is better: if it holds, the treated arm is the worse one."
            )
    gains = {claim.metric for claim in claims if claim.direction == "higher"}
    for metric in metrics:
        found = [abs(value) for arms in values.values() for arm in arms for value in _of(arms, arm, metric.name)]
        if metric.unit == "%" and metric.name in gains and 0 < max(found, default=0.0) <= 1:
            lines.append(
                f"The unit of {metric.name} is %, but none of its values is above 1. Are they fractions? Then multiply "
                "them by 100, or leave the unit out and give the claims' effects as fractions."
            )
    return lines


def doubts_of(plan: StudyPlan, summary: Mapping[str, Any]) -> list[str]:
    """The doubts about a study's claims; the metrics of this package's own studies are known to be right.

    Args:
        summary: the content of its summary.json.
    """
    values = {
        condition: {arm: {name: one["values"] for name, one in found.items()} for arm, found in arms.items()}
        for condition, arms in summary["conditions"].items()
    }
    ours = plan.task.partition(".")[0] == "retarget"
    return doubts(plan.claims, () if ours else plan.metrics, values, ours)


def _of_effects(claim: Claim, values: Values, stated: bool) -> Iterator[str]:
    """A smallest effect or a margin that is as large as the values, or as the room that a share leaves below 1."""
    by_arm = [[value for arms in values.values() for value in _of(arms, arm, claim.metric)] for arm in claim.arms]
    if not all(by_arm):  # one arm alone, such as the control before the treated runs, says little of the scale
        return
    found = [value for some in by_arm for value in some]
    most, least = max(map(abs, found), default=0.0), min(found, default=0.0)
    room = 1 - least if claim.direction == "higher" and least >= 0 and most <= 1 else float("inf")
    for what, value in (("smallest effect", claim.smallest_effect), ("margin", claim.margin)):
        if value is None or not most:
            continue
        if value >= most:
            asked = "Is it in the unit of the values?" if stated else "On these data the claim cannot hold."
            above = f"no value of {claim.metric} is above {most:g}"
            yield f"Claim {claim.id}: its {what} is {value:g}, but {above}. {asked}"
        elif stated and value > room:
            yield (
                f"Claim {claim.id}: its {what} is {value:g}, but the values of {claim.metric} lie between {least:g} "
                f"and {most:g}. If they are fractions, {value:g} means {100 * value:g} points: is that what is meant?"
            )


def _of(arms: Mapping[str, Any], arm: str, metric: str) -> list[float]:
    return [value for value in arms.get(arm, {}).get(metric, ()) if value is not None]
