"""Figures as data: a method's analysis returns them, ``report/`` draws them. Does not import torch."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, NonNegativeInt, model_validator

from retarget.settings import Strict
from retarget.study.items import Items


def _missing(value: Any) -> Any:
    """Turn a number that is not finite into None: JSON cannot hold it, and it cannot be drawn."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Value = Annotated[float | None, BeforeValidator(_missing)]
"""One measured number; None (also for NaN and infinity) if it is missing, which is drawn as a gap."""


class Series(Strict):
    """One arm's values: ``y[i]`` belongs to seed i and is as long as ``x``; pooled data has only ``y[0]``.

    ``counts``, in the shape of ``y``, gives the number of items that each value is a mean of: it weights the mean over
    seeds, and values of few items are drawn faint.

    >>> Series(label="PS-KD", x=[0, 1], y=[[2.3, 0.4], [2.4, float("nan")]]).y
    [[2.3, 0.4], [2.4, None]]
    """

    label: str
    x: list[FiniteFloat]
    y: list[list[Value]]
    counts: list[list[NonNegativeInt]] | None = None

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        for index, seed in enumerate(self.y):
            if len(seed) != len(self.x):
                raise ValueError(f"series {self.label!r}: y[{index}] has {len(seed)} values for {len(self.x)} of x")
        if self.counts is not None and [*map(len, self.counts)] != [*map(len, self.y)]:
            raise ValueError(f"series {self.label!r}: counts have another shape than y")
        return self


class Lines(Strict):
    """Curves, each seed thin and the mean thick; ``diagonal`` draws y = x (reliability diagrams).

    ``counted`` names what the series' counts count, such as images; the counts are drawn below the curves.
    """

    kind: Literal["lines"] = "lines"
    title: str
    caption: str
    x_label: str
    y_label: str
    series: list[Series]
    diagonal: bool = False
    log_x: bool = False
    log_y: bool = False
    counted: str = "items"


class Bars(Strict):
    """Grouped bars: ``values[series][group]`` has one number per seed; bars show means, dots seeds."""

    kind: Literal["bars"] = "bars"
    title: str
    caption: str
    x_label: str
    y_label: str
    groups: list[str]
    labels: list[str]
    values: list[list[list[Value]]]

    @model_validator(mode="after")
    def _same_shape(self) -> Self:
        _same_count(self.title, "labels", self.labels, "values", self.values)
        for label, series in zip(self.labels, self.values, strict=True):
            _same_count(f"{self.title}: {label}", "groups", self.groups, "values", series)
        return self


class Table(Strict):
    """A table of formatted cells; the first column names the row.

    Attributes:
        shades: how dark to draw each cell after a row's first, from 0 to 1 (a confusion table); none for no shading.
        folded: show it only after a click.
    """

    kind: Literal["table"] = "table"
    title: str
    caption: str
    columns: list[str]
    rows: list[list[str]]
    shades: list[list[Annotated[float, Field(ge=0, le=1)]]] | None = None
    folded: bool = False

    @model_validator(mode="after")
    def _same_width(self) -> Self:
        for index, row in enumerate(self.rows):
            _same_count(f"{self.title}: row {index}", "columns", self.columns, "cells", row)
        if self.shades is not None and [len(one) + 1 for one in self.shades] != [*map(len, self.rows)]:
            raise ValueError(f"{self.title}: shades have another shape than the cells")
        return self


class Images(Strict):
    """PNG files, shown side by side and embedded in the page; paths are relative to the study's directory."""

    kind: Literal["images"] = "images"
    title: str
    caption: str
    files: list[Path]
    labels: list[str]

    @model_validator(mode="after")
    def _one_label_each(self) -> Self:
        _same_count(self.title, "files", self.files, "labels", self.labels)
        return self


class Text(Strict):
    """Labelled verbatim texts (prompts, rollouts), shown in fixed width, always escaped."""

    kind: Literal["text"] = "text"
    title: str
    caption: str
    labels: list[str]
    blocks: list[str]

    @model_validator(mode="after")
    def _one_label_each(self) -> Self:
        _same_count(self.title, "labels", self.labels, "blocks", self.blocks)
        return self


Figure = Annotated[Lines | Bars | Table | Images | Text, Field(discriminator="kind")]


class Analysis(Strict):
    """What a method's analysis returns.

    Attributes:
        metrics: ``{condition: {arm: {metric: values}}}`` computed from several runs; values align with the seeds,
            None where missing. They join the runs' own metrics before the claims are judged.
        item_intervals: ``{claim id: (low, high)}``, intervals over items of treated - control (or ``against``) to show.
        items: ``{claim id: what was counted or resampled over items}``; decides claims about models.
        item_label: what the page calls these intervals.
        figures: the page's figures, in order.
        lead: titles of the most important figures, which the page shows first.
        notes: sentences for the page (what was not measured and why, caveats, ...).
        left_out: why the claims that were not run here were left out and what measures them: one sentence.
        remarks: ``{condition: {arm: words}}``, shown beside the arm's name with its numbers ("undertrained").
    """

    metrics: dict[str, dict[str, dict[str, list[Value]]]] = Field(default_factory=dict)
    item_intervals: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(default_factory=dict)
    items: dict[str, Items] = Field(default_factory=dict)
    item_label: str = "item bootstrap"
    figures: list[Figure] = Field(default_factory=list)
    lead: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    left_out: str = ""
    remarks: dict[str, dict[str, str]] = Field(default_factory=dict)


def _same_count(where: str, left: str, left_items: list[Any], right: str, right_items: list[Any]) -> None:
    if len(left_items) != len(right_items):
        raise ValueError(f"{where}: {len(left_items)} {left} but {len(right_items)} {right}")
