"""Prepare a study's figures for the HTML page and the Markdown."""

import base64
import re
import struct
from dataclasses import dataclass
from functools import partial

from retarget.report.draw import THIN, Drawing, draw, figure_values
from retarget.report.source import Study
from retarget.study.figures import Bars, Figure, Images, Lines, Table, Text

_TINY = 140
"""Images narrower than this, in pixels, are enlarged by a whole factor to about twice it."""


@dataclass(frozen=True)
class Picture:
    """A PNG with its label and its size in pixels; ``scale`` enlarges tiny ones."""

    label: str
    data: bytes
    width: int
    height: int
    scale: int

    @property
    def uri(self) -> str:
        """The image as a ``data:`` address."""
        return "data:image/png;base64," + base64.b64encode(self.data).decode()


@dataclass(frozen=True)
class FigureView:
    """One figure; its kind decides which of drawings, table, pictures and blocks has content.

    ``name`` is unique in the study and valid as an id and a file name.
    """

    kind: str
    name: str
    title: str
    caption: str
    reading: str = ""
    drawings: tuple[Drawing, ...] = ()
    table: Table | None = None
    pictures: tuple[Picture, ...] = ()
    blocks: tuple[tuple[str, str], ...] = ()
    lead: bool = False

    def files(self, key: str) -> list[str]:
        """Names of its drawings' or pictures' files in the folder beside the page."""
        suffix, count = "png" if self.pictures else "svg", len(self.pictures or self.drawings)
        places = [""] if count == 1 else [f"-{place}" for place in range(1, count + 1)]
        return [f"{key}-{self.name}{place}.{suffix}" for place in places]


def figure_views(study: Study, key: str) -> tuple[FigureView, ...]:
    """Draw the figures and read the images of a study.

    Args:
        study: the study.
        key: prefix of every id, unique among the studies of the page.

    Raises:
        UserError: an image is missing, outside the study's directory, or not a PNG file.
    """
    arms = {arm.label: place for place, arm in enumerate(study.plan.arms)}
    return tuple(
        _view(figure, f"{number:02d}-{slug(figure.title)}", key, study, arms)
        for number, figure in enumerate(study.analysis.figures, start=1)
    )


def slug(text: str) -> str:
    """
    >>> slug("Risk-coverage: all arms (α)")
    'risk-coverage-all-arms'
    """
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))[:48].strip("-") or "figure"


def _view(figure: Figure, name: str, key: str, study: Study, arms: dict[str, int]) -> FigureView:
    lead = figure.title in study.analysis.lead
    framed = partial(FigureView, figure.kind, name, figure.title, figure.caption, lead=lead)
    match figure:
        case Lines() | Bars():
            drawings = tuple(draw(figure, f"{key}-{name[:2]}", arms))
            return framed(drawings=drawings, reading=_reading(figure, len(drawings)))
        case Table():
            return framed(table=figure)
        case Images():
            files = zip(figure.files, figure.labels, strict=True)
            return framed(pictures=tuple(_picture(study.image(file), label) for file, label in files))
        case Text():
            return framed(blocks=tuple(zip(figure.labels, figure.blocks, strict=True)))


def _reading(figure: Lines | Bars, panels: int) -> str:
    """How to read the drawing: how seeds are drawn, unless the caption tells, and what the panels share."""
    said = "seeds" in figure.caption.lower()
    if isinstance(figure, Bars):
        seeds = max((len(group) for series in figure.values for group in series), default=0)
        each, shared = "Bars are means, dots are seeds.", "One panel per series, with one scale for all."
        lost = False
    else:
        seeds = max((len(series.y) for series in figure.series), default=0)
        logs = [
            figure_values(figure, horizontal)
            for horizontal, log in ((True, figure.log_x), (False, figure.log_y))
            if log
        ]
        lost = any(min(values, default=1) <= 0 < max(values, default=1) for values in logs)
        each = "Thin lines are seeds, thick lines their means."
        shared = "One panel per curve, with one scale for all; the other means are behind it in grey."
        if any(series.counts for series in figure.series):
            means = f"Means are weighted by the number of {figure.counted} of each point"
            faint = f"a point of fewer than {THIN}, all seeds together, is hollow and faint, without a line to it."
            each, said = f"{each * (seeds > 1)} {means}; {faint}".strip(), False
            seeds = 2
    left_out = "Values of 0 or less are not drawn on a logarithmic axis."
    return " ".join([each] * (seeds > 1 and not said) + [shared] * (panels > 1) + [left_out] * lost)


def _picture(data: bytes, label: str) -> Picture:
    width, height = struct.unpack(">II", data[16:24])
    scale = max(1, round(2 * _TINY / width)) if 0 < width < _TINY else 1
    return Picture(label, data, width, height, scale)
