"""Sentences about claims that look mistaken: an effect in another unit, or a direction against the metric's."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retarget.study.config import Claim, Metric, StudyPlan
from retarget.study.measured import Values

COPIES = 0.6
"""Share of the seeds with values of their own up to which the others look like copies."""
FEWEST_COPIES = 4


def doubts(claims: Sequence[Claim], metrics: Sequence[Metric], values: Values, ours: bool = False) -> list[str]:
    """What to ask the author of claims, which are judged as they stand.

    Args:
        metrics: those whose unit and better direction the author has stated.
        values: ``{condition: {arm: {metric: values}}}``.
        ours: the claims are this package's and known to be right; only the data may not allow such effects.
    """
    lines = [line for claim in claims for line in _of_effects(claim, values, not ours)]
    exact = {metric.name for metric in metrics if metric.deterministic}
    if not ours:
        lines += [line for claim in claims if claim.metric not in exact for line in _of_copies(claim, values)]
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
    ours = plan.task.partition(".")[0] == "retarget"
    return doubts(plan.claims, () if ours else plan.metrics, values_of(summary), ours)


def values_of(summary: Mapping[str, Any]) -> Values:
    """``{condition: {arm: {metric: values}}}`` of the content of a summary.json."""
    return {
        condition: {arm: {name: one["values"] for name, one in found.items()} for arm, found in arms.items()}
        for condition, arms in summary["conditions"].items()
    }


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


def _of_copies(claim: Claim, values: Values) -> Iterator[str]:
    """Copies of seeds, a single value written for every seed, and fractions beside percentages."""
    for condition, arms in values.items():
        where = f" in {condition}" if len(values) > 1 else ""
        sides = [arms.get(arm, {}).get(claim.metric, ()) for arm in claim.arms]
        rows = [row for row in zip(*sides, strict=True) if None not in row] if all(sides) else []
        distinct = len(set(rows))
        whole = all(float(value).is_integer() for row in rows for value in row if value is not None)
        if len(rows) >= FEWEST_COPIES and 1 < distinct <= COPIES * len(rows) and not whole:
            yield (
                f"Claim {claim.id}: of {len(rows)} seeds{where} only {distinct} have values of their own. Are the "
                "others copies? Then they count too often, and the verdict is too sure."
            )
        if len(sides) < 2 or len(rows) < 2:
            continue
        found = [[value for value in side if value is not None] for side in zip(*rows, strict=True)]
        for at, arm in enumerate(claim.arms):
            alone = set(found[at])
            if len(alone) == 1 and len(set(found[1 - at])) > 1 and not float(found[at][0]).is_integer():
                yield (
                    f"Claim {claim.id}: {arm} has the same {claim.metric} on all {len(rows)} seeds{where}. Is it one "
                    "run or a figure from elsewhere? Then its own spread is not counted: use against."
                )
        low, high = sorted(found, key=max)
        if min(low) > 0 and max(low) <= 1 < min(high) and max(high) <= 100 and min(high) > 20 * max(low):
            yield (
                f"Claim {claim.id}: one arm's values of {claim.metric} lie between 0 and 1, the other's between 1 and "
                f"100{where}. Are they fractions and percentages?"
            )


def _of(arms: Mapping[str, Any], arm: str, metric: str) -> list[float]:
    return [value for value in arms.get(arm, {}).get(metric, ()) if value is not None]
