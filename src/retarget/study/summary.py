"""Make summary.json: a study's results as one JSON value."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retarget.errors import UserError
from retarget.files import finite_or_none, read_json
from retarget.study import measured
from retarget.study.claims import judge
from retarget.study.config import StudyPlan
from retarget.study.figures import Analysis
from retarget.study.record import Results
from retarget.study.statistics import LARGEST, RELATIVE_NOISE

Values = dict[str, dict[str, dict[str, list[float | None]]]]
"""``{condition: {arm: {metric: values}}}``; values align with the seeds, None if missing."""


def collect(results: Results) -> Values:
    """The final metrics of all finished runs."""
    known = [metric.name for metric in results.plan.metrics]
    values: Values = {}
    for condition in results.plan.conditions:
        arms = values.setdefault(condition.name, {})
        for arm in results.plan.arms:
            runs = results.runs(condition.name, arm.name)
            found = {name for run in runs if run for name in run.metrics}
            names = [name for name in known if name in found] + sorted(found - set(known))
            arms[arm.name] = {name: [run.metrics.get(name) if run else None for run in runs] for name in names}
    return values


def merge(values: Values, analysis: Analysis, seeds: int) -> Values:
    """Merge the runs' own metrics with those that the analysis computed from several runs.

    Raises:
        UserError: the analysis returned a list that does not align with the seeds.
    """
    merged = {c: {arm: dict(metrics) for arm, metrics in arms.items()} for c, arms in values.items()}
    for condition, arms in analysis.metrics.items():
        for arm, metrics in arms.items():
            for name, found in metrics.items():
                if len(found) != seeds:
                    raise UserError(
                        f"the analysis gave {len(found)} values of {name} in {condition}/{arm}, but the study has "
                        f"{seeds} seeds: give one value, or None, for each"
                    )
            judged = {
                name: [None if value is None or abs(value) > LARGEST else value for value in found]
                for name, found in metrics.items()
            }
            merged.setdefault(condition, {}).setdefault(arm, {}).update(judged)
    return merged


def refuse_unknown_names(plan: StudyPlan, analysis: Analysis, claims: Collection[str]) -> None:
    """Refuse an analysis of a user's own that names a condition, claim or figure which does not exist: a typing error.

    Args:
        claims: ids of the claims that it may name.
    """
    conditions = [one.name for one in plan.conditions]
    titles = [one.title for one in analysis.figures]
    for what, field, names, known in (
        ("condition", "metrics", analysis.metrics, conditions),
        ("condition", "remarks", analysis.remarks, conditions),
        ("claim", "item_intervals", analysis.item_intervals, claims),
        ("claim", "items", analysis.items, claims),
        ("figure", "lead", analysis.lead, titles),
    ):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(
                f"{plan.analysis} names the {what} {unknown[0]!r} in {field}, but the study has "
                f"{', '.join(known) or 'none'}"
            )


def looks_of(earlier: Mapping[str, Any], results: Results) -> list[list[int]]:
    """The sets of seeds at which verdicts were given in this directory, the present one last.

    Without a complete run nothing was seen.
    """
    before = [seeds for seeds in earlier.get("looks", []) if seeds]
    cells = [(c.name, arm.name) for c in results.plan.conditions for arm in results.plan.arms]
    now = [seed for seed in results.seeds if any(results.run(*cell, seed) for cell in cells)]
    return before if not now or (before and before[-1] == now) else [*before, now]


def summarise(plan: StudyPlan, values: Values, analysis: Analysis) -> dict[str, Any]:
    """The content of summary.json."""
    return {
        "study": plan.study,
        "preset": plan.preset,
        "seeds": list(plan.seeds),
        "conditions": {
            condition: {arm: {name: spread(v) for name, v in metrics.items()} for arm, metrics in arms.items()}
            for condition, arms in values.items()
        },
        "claims": [one.model_dump(mode="json") for one in judge(plan, values, analysis.item_intervals, analysis.items)],
    }


def unplanned_looks(plan: StudyPlan, looks: Sequence[Sequence[int]]) -> str:
    """A warning for the page if verdicts were given more often than the error rates allow for; else empty.

    Args:
        looks: the sets of seeds at which verdicts were given, the last one last.
    """
    planned = dict(plan.planned_looks)
    if planned:
        first = {count: set(sorted(looks[-1])[:count]) for count in planned} if looks else {}
        other = [seeds for seeds in looks if len(seeds) in planned and set(seeds) != first[len(seeds)]]
        if not other:
            return ""
        return (
            f"A planned look was taken at other seeds than the first ones of this directory ({_counted(other)} seeds), "
            "but the error rates of the verdicts hold only for one set of seeds at each look."
        )
    if len(looks) < 2 or not plan.claims:
        return ""
    return (
        f"Verdicts have been given {len(looks)} times in this directory, at {_counted(looks)} seeds, and these looks "
        "were not planned: the error rates of the verdicts do not account for them. Adding seeds until a claim holds "
        "makes it hold too often; plan the looks before the first run, with --looks."
    )


def earlier_summary(root: Path) -> dict[str, Any]:
    """The content of summary.json, empty if there is none yet."""
    path = root / "summary.json"
    summary = read_json(path) if path.exists() else {}
    if not isinstance(summary, dict) or not isinstance(summary.get("looks", []), list):
        raise UserError(f"{path} is damaged: it is not a summary of a study. Delete it, and run the same command again")
    return summary


def filled_later(before: Mapping[str, Any], seeds: Sequence[int], values: Values) -> str:
    """A warning if a claim was decided before some of the values of its seeds existed; else empty.

    Args:
        before: the content of the earlier summary.json, empty if there was none.
        seeds: today's seeds; those that both have are compared.
        values: today's values, by these seeds.
    """
    decided = [one for one in before.get("claims", []) if one["verdict"] in ("holds", "does not hold")]
    new = [one["id"] for one in decided if any(_gained(*pair) for pair in _then_and_now(before, seeds, values, one))]
    if not new and not before.get("filled_later"):
        return ""
    return (
        "Claims were decided at these seeds before some of their runs were complete, and have been judged again since: "
        "the error rates hold only if it did not depend on the verdict which runs were repeated."
    )


def judged_otherwise(before: Mapping[str, Any], summary: Mapping[str, Any], values: Values, again: bool = True) -> str:
    """A warning if claims were judged before by other values of the same seeds, as after a change of ``analyse``.

    Args:
        before: the content of the earlier summary.json, empty if there was none.
        summary: that of the present one; the seeds that both have are compared.
        values: today's values, by the seeds of ``summary``.
        again: there are no other seeds than before, so that the estimates must be the same, too.
    """
    now = {claim["id"]: claim for claim in summary["claims"]}
    changed = []
    for claim in before.get("claims", []):
        pairs = list(_then_and_now(before, summary["seeds"], values, claim))
        if any(_gained(*pair) for pair in pairs):
            continue  # runs were completed, which filled_later tells
        if again:  # items are not by seed
            pairs.append(([claim.get("estimate")], [now.get(claim["id"], {}).get("estimate")]))
        if any(_replaced(*pair) for pair in pairs):
            changed.append(claim["id"])
    if not changed and not before.get("judged_otherwise"):
        return ""
    which = f" ({', '.join(changed)})" if changed else ""
    return (
        f"Claims{which} were judged in this directory before, at the same seeds, by other values, and have been judged "
        "again by another analysis, or from repeated runs or other files: the error rates hold only for what was fixed "
        "before the results were seen."
    )


def unpaired(
    plan: StudyPlan, values: measured.Values, failed: Mapping[tuple[str, str, str], Collection[int]] | None = None
) -> list[str]:
    """For each claim by seeds, the seeds on which an arm has no value: the verdict is about the others.

    Args:
        failed: of runs made elsewhere, the seeds whose value was left empty, by (condition, arm, metric): not every arm
            was meant to have every seed, so that another one may never have been run. None if every arm was.
    """

    def is_lost(place: tuple[str, str, str], seed: int, at: int, row: Sequence[float | None]) -> bool:
        alone = seed in failed.get(place, ()) if failed is not None else len(row) == 1
        return row[at] is None and (alone or any(value is not None for value in row))

    lines = []
    several = len(plan.conditions) > 1
    for claim, condition in [(one, name) for one in plan.claims for name in plan.conditions_of(one)]:
        label = next((one.label or one.name for one in plan.conditions if one.name == condition), condition)
        where = f" in {label}" if several else ""
        sides = [values.get(condition, {}).get(arm, {}).get(claim.metric, []) for arm in claim.arms]
        rows = list(zip(plan.seeds, *sides, strict=True)) if all(sides) else []
        for at, arm in enumerate(claim.arms):
            place = (condition, arm, claim.metric)
            lost = [seed for seed, *row in rows if is_lost(place, seed, at, row)]
            label = next((one.label for one in plan.arms if one.name == arm), arm)
            if rows and all(row[at] is None for _, *row in rows):
                lines.append(f"{label} has no {claim.metric} on any seed{where}: no claim on it is measured.")
            elif 0 < len(lost) < len(rows) and any(None not in row for _, *row in rows):
                lines.append(
                    f"{label} has no {claim.metric} on {'seed' if len(lost) == 1 else 'seeds'} "
                    f"{', '.join(map(str, lost))}{where}: the verdict is about the other seeds, and it is biased if it "
                    "depends on the arm which runs fail."
                )
    return list(dict.fromkeys([*lines, *_unshared(plan, values)]))


def _unshared(plan: StudyPlan, values: measured.Values) -> Iterator[str]:
    """For each claim about the average over sets, the seeds that only some sets have: the average is of the others.

    Seeds that every set has in one arm or the other are not told: ``unpaired`` has told which arm failed.
    """
    for claim in plan.claims:
        if claim.across != "average":
            continue
        complete, begun = [], []
        for condition in plan.conditions_of(claim):
            sides = [values.get(condition, {}).get(arm, {}).get(claim.metric, []) for arm in claim.arms]
            rows = list(zip(plan.seeds, *sides, strict=True)) if all(sides) else []
            complete.append({seed for seed, *row in rows if None not in row})
            begun.append({seed for seed, *row in rows if any(value is not None for value in row)})
        if not all(complete):
            continue
        shared = set.intersection(*complete)
        some = sorted(set.union(*complete) - shared - set.intersection(*begun))
        if not shared:
            yield (
                f"Claim {claim.id} averages the sets seed by seed, and no seed is on all of them: run the same seeds "
                "on every set."
            )
        elif some:
            yield (
                f"Claim {claim.id} averages the sets seed by seed: its verdict is about the seeds that every set has "
                f"({', '.join(map(str, sorted(shared)))}), and not about the others "
                f"({', '.join(map(str, some))}). Run the same seeds on every set."
            )


def _then_and_now(
    before: Mapping[str, Any], seeds: Sequence[int], values: Values, claim: Mapping[str, Any]
) -> Iterator[tuple[Sequence[float | None], Sequence[float | None]]]:
    """The values of an earlier summary's claim, then and now, for each of its conditions and arms.

    Only seeds that were there then and are there now have a place in both.
    """
    earlier = before.get("conditions", {})
    for condition in [claim["condition"]] if claim["condition"] else earlier:
        for arm in claim["arms"]:
            then = earlier.get(condition, {}).get(arm, {}).get(claim["metric"], {}).get("values", ())
            found = dict(zip(seeds, values.get(condition, {}).get(arm, {}).get(claim["metric"], ()), strict=False))
            pairs = [
                (value, found[seed])
                for seed, value in zip(before.get("seeds", ()), then, strict=False)
                if seed in found
            ]
            yield [value for value, _ in pairs], [value for _, value in pairs]


def _replaced(before: Sequence[float | None], now: Sequence[float | None]) -> bool:
    """Whether a value that was there is another one now, beyond rounding, or is gone."""
    return any(
        then is not None and (value is None or not math.isclose(then, value, rel_tol=RELATIVE_NOISE))
        for then, value in zip(before, now, strict=False)
    )


def _gained(before: Sequence[float | None], now: Sequence[float | None]) -> bool:
    """Whether a value that was missing is there now."""
    return any(then is None and value is not None for then, value in zip(before, now, strict=False))


def _counted(looks: Sequence[Sequence[int]]) -> str:
    return ", ".join(str(len(seeds)) for seeds in looks)


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and sample standard deviation of the values that are not missing.

    >>> spread([1.0, None, 3.0])
    {'mean': 2.0, 'sd': 1.4142135623730951, 'values': [1.0, None, 3.0]}
    >>> spread([0.1, 0.1, 0.1])["sd"]
    0.0
    """
    there = [value for value in values if value is not None]
    mean = finite_or_none(float(np.mean(there))) if there else None
    same = len(set(there)) == 1  # numpy would return the rounding error of their mean
    sd = finite_or_none(0.0 if same else float(np.std(there, ddof=1))) if len(there) > 1 else None
    return {"mean": mean, "sd": sd, "values": list(values)}
