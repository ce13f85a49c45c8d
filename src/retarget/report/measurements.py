"""Tables of numbers: metrics by arm under each condition, and what the runs cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from retarget.report import words
from retarget.report.source import Study
from retarget.study.config import Metric
from retarget.study.results import Spread

COST_UNITS = frozenset({"µs", "ms", "s", "min", "h", "B", "kB", "KB", "MB", "GB", "KiB", "MiB", "GiB"})
"""A metric in one of these units is a cost, and is shown in the cost table too."""


@dataclass(frozen=True)
class Cell:
    """One arm's mean and sd of one metric; ``missing`` tells how many seeds are missing."""

    mean: str = ""
    sd: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Head:
    """A row's or column's name: a metric, whose ``better`` is "higher", "lower" or "neither", or an arm."""

    label: str
    better: str = "neither"
    description: str = ""


@dataclass(frozen=True)
class MetricTable:
    """Means and deviations: metrics by arms, or arms by metrics if there are many arms."""

    corner: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[Head, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class ConditionMetrics:
    """The shown and the folded metrics under one condition; ``condition`` is empty if there is only one without a
    label."""

    condition: str
    seeds: str
    shown: MetricTable
    more: MetricTable | None

    @property
    def more_count(self) -> int:
        """Number of folded metrics."""
        return len(self.more.rows if self.more.corner == "Metric" else self.more.heads) if self.more else 0


MATTER = 8
"""Number of metrics that are shown; the others are folded."""
COLUMNS = 6
"""Most arms side by side; with more, the table has one row per arm."""


def metric_tables(study: Study) -> tuple[ConditionMetrics, ...]:
    """The tables of each condition; arms and metrics without any value are left out."""
    tables = []
    for condition in study.plan.conditions:
        found = study.summary.conditions.get(condition.name, {})
        arms = [arm for arm in study.plan.arms if any(_present(one) for one in found.get(arm.name, {}).values())]
        metrics = [
            metric
            for metric in metrics_of(study)
            if any(_present(found[arm.name].get(metric.name, Spread())) for arm in arms)
        ]
        if not metrics:
            continue
        remarks = study.analysis.remarks.get(condition.name, {})
        heads = [Head(f"{arm.label} ({remarks[arm.name]})" if arm.name in remarks else arm.label) for arm in arms]
        cells = {
            metric.name: _cells(
                [found[arm.name].get(metric.name, Spread()) for arm in arms], metric, len(study.plan.seeds)
            )
            for metric in metrics
        }
        matter = {metric.name for metric in that_matter(study, metrics)}
        parts = [[metric for metric in metrics if (metric.name in matter) == wanted] for wanted in (True, False)]
        shown, more = (_table(heads, part, cells) if part else None for part in parts)
        if shown:
            label = condition.label or ("" if condition.name == "default" else condition.name)
            tables.append(ConditionMetrics(label, words.plural(len(study.plan.seeds), "seed"), shown, more))
    return tuple(tables)


def that_matter(study: Study, metrics: Sequence[Metric]) -> list[Metric]:
    """At most ``MATTER`` metrics: those of the claims that were run, then the first of the others."""
    run = [claim for claim in study.summary.claims if claim.n]
    claimed = dict.fromkeys(
        name for claim in run for name in (claim.metric, claim.shown and claim.shown.metric) if name
    )
    first = [metric for name in claimed for metric in metrics if metric.name == name]
    return [*first, *(metric for metric in metrics if metric.name not in claimed)][:MATTER]


def _table(heads: Sequence[Head], metrics: Sequence[Metric], cells: dict[str, tuple[Cell, ...]]) -> MetricTable:
    names = [Head(words.with_unit(one.label, one.unit), one.better, one.description) for one in metrics]
    rows = [cells[metric.name] for metric in metrics]
    if len(heads) <= COLUMNS:
        return MetricTable("Metric", tuple(heads), tuple(zip(names, rows, strict=True)))
    turned = tuple(zip(*rows, strict=True))
    return MetricTable("Arm", tuple(names), tuple(zip(heads, turned, strict=True)))


def cost_table(study: Study) -> tuple[tuple[str, ...], ...]:
    """Rows of text, the first one the header: each arm's runs and their time, and metrics in units of time or memory.

    The time of an interrupted run is not known.
    """
    costs = [metric for metric in study.plan.metrics if metric.unit in COST_UNITS]
    conditions = study.summary.conditions.values()
    rows = []
    for arm in study.plan.arms:
        seconds = [run.seconds for run in study.runs if run.arm == arm.name and run.seconds is not None]
        cells = [words.duration(median(seconds)), words.duration(sum(seconds))] if seconds else [words.MISSING] * 2
        for metric in costs:
            spreads = [found.get(arm.name, {}).get(metric.name, Spread()) for found in conditions]
            values = [value for spread in spreads for value in _present(spread)]
            cells.append(words.number(fmean(values), metric.decimals) if values else words.MISSING)
        if any(cell != words.MISSING for cell in cells):
            rows.append((arm.label, str(len(seconds)), *cells))
    if not rows:
        return ()
    total = [run.seconds for run in study.runs if run.seconds is not None]
    if total:
        rows.append(("all arms", str(len(total)), "", words.duration(sum(total)), *[""] * len(costs)))
    heads = [words.with_unit(f"mean {metric.label}", metric.unit) for metric in costs]
    return (("Arm", "Runs timed", "Median time of a run", "Time in all", *heads), *rows)


def metrics_of(study: Study) -> list[Metric]:
    """The plan's metrics, then others that runs report."""
    known = list(study.plan.metrics)
    names = {metric.name for metric in known}
    for arms in study.summary.conditions.values():
        for metrics in arms.values():
            for name in metrics:
                if name not in names:
                    names.add(name)
                    known.append(Metric(name=name, label=name))
    return known


def _present(spread: Spread) -> list[float]:
    return [value for value in spread.values if value is not None]


def _cells(spreads: Sequence[Spread], metric: Metric, seeds: int) -> tuple[Cell, ...]:
    """One row's cells; its standard deviations share their decimals, more than the means' if one would read 0."""
    some = [spread.sd for spread in spreads if spread.sd]
    decimals = min(words.difference_decimals(some, metric.decimals), metric.decimals + 2)
    return tuple(_cell(spread, metric, decimals, seeds) for spread in spreads)


def _cell(spread: Spread, metric: Metric, sd_decimals: int, seeds: int) -> Cell:
    present = _present(spread)
    if not present or spread.mean is None:
        return Cell()
    missing = f"{len(present)} of {seeds} seeds" if len(present) < seeds else ""
    sd = "" if spread.sd is None else words.number(spread.sd, sd_decimals)
    return Cell(words.number(spread.mean, metric.decimals), sd, missing)
