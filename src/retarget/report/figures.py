"""What a page can show, as data. A method's analysis returns these; ``report/`` draws them. Free of torch."""

from pathlib import Path
from typing import Literal

from retarget.study.config import Strict


class Series(Strict):
    """One arm's values: ``y[i]`` belongs to seed i and has the length of ``x`` (a list of one for pooled data)."""

    label: str
    x: list[float]
    y: list[list[float | None]]


class Lines(Strict):
    """Curves with every seed drawn thin and the mean thick; ``diagonal`` draws y = x (reliability diagrams)."""

    kind: Literal["lines"] = "lines"
    title: str
    caption: str
    x_label: str
    y_label: str
    series: list[Series]
    diagonal: bool = False
    log_x: bool = False
    log_y: bool = False


class Bars(Strict):
    """Grouped bars: ``values[series][group]`` lists one number a seed; the bar is the mean, the dots are the seeds."""

    kind: Literal["bars"] = "bars"
    title: str
    caption: str
    x_label: str
    y_label: str
    groups: list[str]
    labels: list[str]
    values: list[list[list[float | None]]]


class Table(Strict):
    """A plain table; cells are already formatted."""

    kind: Literal["table"] = "table"
    title: str
    caption: str
    columns: list[str]
    rows: list[list[str]]


class Images(Strict):
    """PNG files side by side, embedded in the page."""

    kind: Literal["images"] = "images"
    title: str
    caption: str
    files: list[Path]
    labels: list[str]


class Text(Strict):
    """Verbatim text samples (prompts, rollouts) under labels; shown in fixed width, always escaped."""

    kind: Literal["text"] = "text"
    title: str
    caption: str
    labels: list[str]
    blocks: list[str]


Figure = Lines | Bars | Table | Images | Text


class Analysis(Strict):
    """What a method's analysis returns.

    Attributes:
        metrics: ``{condition: {arm: {metric: values}}}`` computed from several runs; values align with the seeds,
            None where missing. They join the runs' own metrics before the claims are judged.
        item_intervals: ``{claim id: (low, high)}``, bootstrap over items of treated - control, shown and labelled.
        figures: what the page shows below the claims, in order.
        notes: sentences for the page (what was not measured and why, an undertrained baseline, ...).
    """

    metrics: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    item_intervals: dict[str, tuple[float, float]] = {}
    figures: list[Figure] = []
    notes: list[str] = []
