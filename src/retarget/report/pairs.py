"""Compare any arm with any arm: paired differences over the seeds that both have. They decide nothing."""

from dataclasses import dataclass
from itertools import combinations

from retarget.report import words
from retarget.report.measurements import Head, metrics_of, that_matter
from retarget.report.source import Study
from retarget.study.config import Metric
from retarget.study.results import Spread
from retarget.study.statistics import paired_differences, t_interval


@dataclass(frozen=True)
class Difference:
    """The mean of one metric's paired differences, and its interval if there are two seeds or more that differ."""

    estimate: str = ""
    interval: str = ""


@dataclass(frozen=True)
class PairTable:
    """Differences of every pair of arms under one condition: the later arm in the plan minus the earlier one."""

    condition: str
    level: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[str, tuple[Difference, ...]], ...]


def pair_tables(study: Study) -> tuple[PairTable, ...]:
    """One table per condition in which two arms or more have a metric in common."""
    tables = []
    for condition in study.plan.conditions:
        found = study.summary.conditions.get(condition.name, {})
        arms = [arm for arm in study.plan.arms if arm.name in found]
        measured = [
            metric
            for metric in metrics_of(study)
            if sum(any(value is not None for value in _values(found[arm.name], metric)) for arm in arms) > 1
        ]
        metrics = that_matter(study, measured)
        rows = []
        for control, treated in combinations(arms, 2):
            cells = tuple(
                _difference(found[treated.name], found[control.name], metric, study.plan.level) for metric in metrics
            )
            if any(cell.estimate for cell in cells):
                rows.append((f"{treated.label} − {control.label}", cells))
        if rows:
            label = condition.label or ("" if condition.name == "default" else condition.name)
            heads = tuple(Head(words.with_unit(one.label, one.unit), one.better) for one in metrics)
            tables.append(PairTable(label, words.percent(study.plan.level), heads, tuple(rows)))
    return tuple(tables)


def _values(arm: dict[str, Spread], metric: Metric) -> list[float | None]:
    return arm.get(metric.name, Spread()).values


def _difference(treated: dict[str, Spread], control: dict[str, Spread], metric: Metric, level: float) -> Difference:
    both = _values(treated, metric), _values(control, metric)
    differences = paired_differences(*both) if all(both) else []
    if not differences:
        return Difference()
    estimate = sum(differences) / len(differences)
    ends = metric.possible(*t_interval(differences, level)) if len(set(differences)) > 1 else ()
    decimals = words.difference_decimals(ends or [estimate], metric.decimals)
    return Difference(words.number(estimate, decimals, signed=True), words.interval(*ends, decimals) if ends else "")
