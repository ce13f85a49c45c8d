"""Sentences about claims that look mistaken: an effect in another unit, or a direction against the metric's."""

import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from retarget.study.config import Claim, Metric, StudyPlan
from retarget.study.measured import Values

COPIES = 0.6
"""Share of the seeds with values of their own up to which the others look like copies."""
FEWEST_COPIES = 4
NO_SHARES = re.compile(
    r"loss|entropy|perplex|(?<![a-z])(nll|ppl|bits|bp[bc]|r?mse|mae|fid|kid|kl|divergence|distance|(run)?times?|"
    r"sec(ond)?s?|latency|speed(up)?|memory|bytes|epochs|steps|tokens|counts?)(?![a-z])"
)
"""In names of metrics whose honest values lie between 0 and 1 as well as between 1 and 100."""
LARGE = 0.2
"""An effect of 20 points, from which on it is seldom meant as a fraction."""


def doubts(claims: Sequence[Claim], metrics: Sequence[Metric], values: Values, ours: bool = False) -> list[str]:
    """What to ask the author of claims, which are judged as they stand.

    Args:
        metrics: those whose unit and better direction the author has stated.
        values: ``{condition: {arm: {metric: values}}}``.
        ours: the claims are this package's and known to be right; only the data may not allow such effects.
    """
    other = {metric.name for metric in metrics if metric.unit not in ("", "%")}
    shares = {claim.metric for claim in claims if not NO_SHARES.search(claim.metric.lower())} - other
    lines = [line for claim in claims for line in _of_effects(claim, values, not ours, claim.metric in shares)]
    exact = {metric.name for metric in metrics if metric.deterministic}
    for claim in claims:
        if not ours and claim.metric not in exact:
            lines += _of_copies(claim, values)
            lines += _of_units(claim, values) if claim.metric in shares else ()
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


def _of_effects(claim: Claim, values: Values, stated: bool, share: bool) -> Iterator[str]:
    """A smallest effect or a margin that is as large as the values, or as the room that a share leaves below 1.

    Args:
        share: the metric may be one, so that an effect of half that room is asked about, too, if it is nowhere near.
    """
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
        elif stated and (value > room or (share and _far(claim, by_arm, value, what == "margin"))):
            yield (
                f"Claim {claim.id}: its {what} is {value:g}, but the values of {claim.metric} lie between {least:g} "
                f"and {most:g}. If they are fractions, {value:g} means {100 * value:g} points: is that what is meant?"
            )


def _far(claim: Claim, by_arm: Sequence[Sequence[float]], asked: float, worse: bool) -> bool:
    """Whether an effect is more than half of the change that fractions allow, and twice the one that was measured.

    Args:
        worse: it is a margin, a change for the worse.
    """
    base = fmean(by_arm[-1]) if claim.against is None else claim.against
    if not all(0 <= value <= 1 for value in (base, *(value for some in by_arm for value in some))):
        return False
    room = base if (claim.direction == "lower") != worse else 1 - base
    return asked >= LARGE and asked > room / 2 and asked > 2 * abs(fmean(by_arm[0]) - base)


def _of_copies(claim: Claim, values: Values) -> Iterator[str]:
    """Copies of seeds, and a single value written for every seed."""
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


def _of_units(claim: Claim, values: Values) -> Iterator[str]:
    """Fractions beside percentages: in the other arm, in the constant, or on other seeds."""
    for condition, arms in values.items():
        if condition not in (claim.conditions or ([*values] if claim.across else [claim.condition])):
            continue
        where = f" in {condition}" if len(values) > 1 else ""
        sides = [arms.get(arm, {}).get(claim.metric, ()) for arm in claim.arms]
        if not all(sides):
            continue
        rows = [[one for one in row if one is not None] for row in zip(*sides, strict=True) if None not in row]
        found = [*zip(*rows, strict=True)]
        if not rows:
            continue
        if claim.against is not None:
            least, most = min(found[0]), max(found[0])
            little = claim.direction == "higher" and max(most, claim.against) <= 10  # as gains in points are
            if _beside(found[0], [claim.against]) and not little:
                yield (
                    f"Claim {claim.id}: against is {claim.against:g}, but the values of {claim.metric} lie between "
                    f"{least:g} and {most:g}{where}. Is one a fraction and the other a percentage?"
                )
        elif _beside(*found):
            yield (
                f"Claim {claim.id}: one arm's values of {claim.metric} lie between 0 and 1, the other's between 1 and "
                f"100{where}. Are they fractions and percentages?"
            )
        else:
            low = [row for row in rows if max(row) <= 1]
            high = [row for row in rows if min(row) > 1]
            if (
                low
                and high
                and len(low) + len(high) == len(rows)
                and all(map(_alike, zip(*low, strict=True), zip(*high, strict=True)))
            ):
                yield (
                    f"Claim {claim.id}: on some seeds the values of {claim.metric} lie between 0 and 1, on the others "
                    f"between 1 and 100{where}. Are they fractions and percentages?"
                )


def _beside(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the values of one side look like fractions, and those of the other like percentages."""
    low, high = sorted((one, other), key=max)
    apart = min(low) > 0 and max(low) <= 1 < min(high) and max(high) <= 100 and min(high) > 20 * max(low)
    return apart and not all(float(value).is_integer() for value in low)  # a ratio's 1, or counts


def _alike(low: Sequence[float], high: Sequence[float]) -> bool:
    """Whether an arm's values look like fractions on some seeds, and on others like percentages of about that size."""
    return _beside(low, high) and 0.5 <= fmean(high) / (100 * fmean(low)) <= 2


def _of(arms: Mapping[str, Any], arm: str, metric: str) -> list[float]:
    return [value for value in arms.get(arm, {}).get(metric, ()) if value is not None]
