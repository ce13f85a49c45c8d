"""Draw figures with matplotlib, as SVG with real text."""

import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from matplotlib import style as matplotlib_style
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.legend_handler import HandlerTuple
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from retarget.report.describe import describe_bars, describe_lines, items_of, mean, mean_of
from retarget.report.palette import INK, Style, styles
from retarget.report.svg import tidy
from retarget.study.figures import Bars, Lines, Series

TOGETHER = 4
"""Most series in one pair of axes; with more, each gets a panel, with the others behind it in grey."""
THIN = 20
"""A point that is the mean of fewer items, all seeds together, is drawn hollow and faint, without a line to it."""

_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "retarget",
    "text.parse_math": False,  # labels are plain text: "$" is a dollar sign
    "font.family": "DejaVu Sans",
    "font.size": 12.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 12.5,
    "axes.labelsize": 12.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.color": INK,
    "grid.alpha": 0.16,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 12.5,
    "legend.handlelength": 2.8,
    "legend.columnspacing": 1.4,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "hatch.linewidth": 0.8,
    "path.simplify": True,
    "path.simplify_threshold": 0.3,
}


class Drawing(NamedTuple):
    """One SVG element, its size in CSS pixels, and a sentence that describes it."""

    svg: str
    width: int
    height: int
    alt: str


def draw(figure: Lines | Bars, prefix: str, arms: Mapping[str, int] | None = None) -> list[Drawing]:
    """Draw a figure: one drawing, or one per series if there are too many for one pair of axes.

    Equal input gives equal bytes: no dates, no random ids. Labels are plain text, never mathematics.

    Args:
        figure: what to draw.
        prefix: prefix of every id in the SVG; unique among the figures of one page.
        arms: maps an arm's label to its number in the study, so that the arm looks the same in every figure.
    """
    arms = arms or {}
    with matplotlib_style.context(["default", _RC]), warnings.catch_warnings():
        # The bundled font only lays the text out; the reader's fonts draw it, and may have glyphs that it lacks.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from font")
        if isinstance(figure, Lines):
            looks = styles((series.label for series in figure.series), arms)
            if len(figure.series) <= TOGETHER:
                return [_lines(figure, looks, prefix)]
            return [
                _lines_panel(figure, shown, looks, f"{prefix}-{index}") for index, shown in enumerate(figure.series)
            ]
        looks = styles(figure.labels, arms)
        if len(figure.labels) <= TOGETHER or _lying(figure.groups, 360):
            return [_bars(figure, looks, prefix)]
        return [_bars_panel(figure, index, looks, f"{prefix}-{index}") for index in range(len(figure.labels))]


def _lines(figure: Lines, looks: Mapping[str, Style], prefix: str) -> Drawing:
    counted = any(map(items_of, figure.series))
    canvas, axes = _canvas(400, 300 + 18 * _legend_rows([series.label for series in figure.series], 392) + 80 * counted)
    if counted:
        canvas.clear()
        axes, below = canvas.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        _counts(below, figure, looks)
    _axes(axes, figure)
    if counted:
        axes.set_xlabel("")
    for series in figure.series:
        _curve(axes, series, looks[series.label])
    _diagonal(axes, figure)
    _legend(canvas, axes, 392)
    return _finish(canvas, prefix, describe_lines(figure, figure.series))


def _lines_panel(figure: Lines, shown: Series, looks: Mapping[str, Style], prefix: str) -> Drawing:
    canvas, axes = _canvas(280, 230)
    _axes(axes, figure)
    for series in figure.series:
        if series is not shown and series.y:
            axes.plot(series.x, _gaps(_solid(series, mean_of(series))), color=INK, alpha=0.22, linewidth=0.9)
    _curve(axes, shown, looks[shown.label])
    every = [
        (x, y) for one in figure.series for seed in one.y for x, y in zip(one.x, seed, strict=True) if y is not None
    ]
    if every:  # one scale for all panels
        axes.update_datalim(every)
    _diagonal(axes, figure)
    canvas.suptitle(_wrap(shown.label, 40), x=0.01, ha="left", fontsize=13, fontweight="bold")
    return _finish(canvas, prefix, describe_lines(figure, [shown]))


def _curve(axes: Axes, series: Series, look: Style) -> None:
    """Each seed thin, the mean thick with its dash and about six markers; pooled data is drawn as a mean.

    A series without a seed, of an arm whose runs all failed, has only its entry in the legend.
    """
    if not series.y:
        axes.plot([], [], color=look.colour, linestyle=look.dash, marker=look.marker, label=_named(series.label))
        return
    means, items = mean_of(series), items_of(series)
    if len(series.y) > 1:
        for seed in series.y:
            axes.plot(series.x, _gaps(_solid(series, seed)), color=look.colour, alpha=0.4, linewidth=0.8)
    axes.plot(
        series.x,
        _gaps(_solid(series, means)),
        color=look.colour,
        linestyle=look.dash,
        linewidth=2.1,
        marker=look.marker,
        markersize=5,
        markevery=1 if items or _has_lone_point(means) else max(1, math.ceil(len(series.x) / 6)),
        label=_named(series.label),
        dash_capstyle="butt",
    )
    thin = [None if not items or items[at] >= THIN else value for at, value in enumerate(means)]
    if any(value is not None for value in thin):
        hollow: dict[str, Any] = dict(linestyle="none", marker=look.marker, markersize=4, markerfacecolor="none")
        axes.plot(series.x, _gaps(thin), color=look.colour, alpha=0.45, **hollow)


def _named(label: str) -> str:
    """A label of the legend; matplotlib would leave out one that begins with an underscore."""
    return ("\u200b" if label.startswith("_") else "") + _wrap(label, 56)


def _solid(series: Series, values: Sequence[float | None]) -> list[float | None]:
    """The values, without those of few items (all seeds together)."""
    items = items_of(series)
    return [None if items and items[at] < THIN else value for at, value in enumerate(values)]


def _counts(axes: Axes, figure: Lines, looks: Mapping[str, Style]) -> None:
    """Draw the number of items behind each point, all seeds together, on a logarithmic scale."""
    for series in filter(items_of, figure.series):
        items = [count or None for count in items_of(series)]
        look = looks[series.label]
        axes.plot(series.x, _gaps(items), color=look.colour, linestyle=look.dash, linewidth=1.5, drawstyle="steps-mid")
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(numticks=4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(visible=True, axis="y")
    axes.set_xlabel(_wrap(figure.x_label, 60))
    axes.set_title(f"{figure.counted}, all seeds", loc="left")


def _axes(axes: Axes, figure: Lines) -> None:
    axes.grid(visible=True, axis="y")
    axes.set_xlabel(_wrap(figure.x_label, 60))
    axes.set_title(_wrap(figure.y_label, 60), loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    for is_log, scale, axis in (
        (figure.log_x, axes.set_xscale, axes.xaxis),
        (figure.log_y, axes.set_yscale, axes.yaxis),
    ):
        values = figure_values(figure, axis is axes.xaxis)
        if is_log and any(value > 0 for value in values):
            scale("log", nonpositive="mask")
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(x=0.02)


def figure_values(figure: Lines, horizontal: bool) -> list[float]:
    """All values of the curves on one of the two axes."""
    rows = [row for one in figure.series for row in ([one.x] if horizontal else one.y)]
    return [value for row in rows for value in row if value is not None]


def _has_lone_point(values: Sequence[float | None]) -> bool:
    """Whether a value has gaps or ends on both sides, so that no line leads to it."""
    padded = [None, *values, None]
    return any(
        padded[at] is not None and padded[at - 1] is None and padded[at + 1] is None for at in range(1, len(padded) - 1)
    )


def _diagonal(axes: Axes, figure: Lines) -> None:
    if figure.diagonal and (figure.log_x or figure.log_y):  # axline draws no slope on a logarithmic scale
        values = [x for one in figure.series for x in one.x if x > 0]
        if values:
            ends = [min(values), max(values)]
            axes.plot(ends, ends, color=INK, linewidth=0.9, linestyle=(0, (1, 2)), label="y = x")
    elif figure.diagonal:
        axes.axline((0, 0), slope=1, color=INK, linewidth=0.9, linestyle=(0, (1, 2)), label="y = x")


def _bars(figure: Bars, looks: Mapping[str, Style], prefix: str) -> Drawing:
    rows = _legend_rows(figure.labels, 392) if len(figure.labels) > 1 else 0
    lying = _lying(figure.groups, 360)
    bars = len(figure.groups) * (len(figure.labels) + 0.6)
    canvas, axes = _canvas(400, (70 + 17 * bars if lying else 290) + 18 * rows)
    width = 0.8 / max(1, len(figure.labels))
    for index, label in enumerate(figure.labels):
        offset = (index - (len(figure.labels) - 1) / 2) * width
        _bar_series(axes, figure.values[index], offset, width, looks[label], lying, label)
    _bar_axes(axes, figure, lying)
    if len(figure.labels) > 1:
        _legend(canvas, axes, 392)
    return _finish(canvas, prefix, describe_bars(figure, range(len(figure.labels))))


def _bars_panel(figure: Bars, shown: int, looks: Mapping[str, Style], prefix: str) -> Drawing:
    canvas, axes = _canvas(280, 230)
    label = figure.labels[shown]
    _bar_series(axes, figure.values[shown], 0, 0.8, looks[label], False, label)
    _bar_axes(axes, figure, False)
    every = [value for series in figure.values for group in series for value in group if value is not None]
    if every:  # one scale for all panels
        axes.set_ylim(min(0, *every) * 1.05, max(0, *every) * 1.05 or (0 if min(every) < 0 else 1))
    canvas.suptitle(_wrap(label, 40), x=0.01, ha="left", fontsize=13, fontweight="bold")
    return _finish(canvas, prefix, describe_bars(figure, [shown]))


def _bar_series(
    axes: Axes,
    groups: Sequence[Sequence[float | None]],
    offset: float,
    width: float,
    look: Style,
    lying: bool,
    label: str,
) -> None:
    draw_bar = axes.barh if lying else axes.bar
    places = [place + offset for place in range(len(groups))]
    means = [mean([[value] for value in seeds])[0] if seeds else None for seeds in groups]
    heights = [value if value is not None else 0.0 for value in means]
    thickness = 0.9 * width
    fill: dict[str, Any] = dict(color=look.colour, alpha=0.3, linewidth=0)
    edge: dict[str, Any] = dict(facecolor="none", edgecolor=look.colour, hatch=look.hatch or None, linewidth=1.1)
    for part in (fill, edge):
        draw_bar(places, heights, thickness, label=_named(label), **part)
    for place, seeds in zip(places, groups, strict=True):
        if len(seeds) > 1:
            step = 0.7 * thickness / len(seeds)
            along = [place + (index - (len(seeds) - 1) / 2) * step for index in range(len(seeds))]
            x, y = (_gaps(seeds), along) if lying else (along, _gaps(seeds))
            axes.plot(x, y, linestyle="none", marker="o", markersize=2.6, color=INK, alpha=0.8)


def _bar_axes(axes: Axes, figure: Bars, lying: bool) -> None:
    axes.grid(visible=True, axis="x" if lying else "y")
    ticks, labels = range(len(figure.groups)), [_wrap(group, 28) for group in figure.groups]
    if lying:
        axes.set_yticks(ticks, labels)
        axes.invert_yaxis()
        axes.set_xlabel(_wrap(figure.y_label, 60))
        axes.set_title(_wrap(figure.x_label, 60), loc="left")
        axes.axvline(0, color=INK, linewidth=0.8)
    else:
        axes.set_xticks(ticks, labels)
        axes.set_xlabel(_wrap(figure.x_label, 60))
        axes.set_title(_wrap(figure.y_label, 60), loc="left")
        axes.axhline(0, color=INK, linewidth=0.8)


def _canvas(width: float, height: float) -> tuple[Canvas, Axes]:
    """A canvas measured in CSS pixels, and its axes."""
    canvas = Canvas(figsize=(width / 72, round(height) / 72), dpi=72, layout="constrained")
    return canvas, canvas.add_subplot()


def _finish(canvas: Canvas, prefix: str, alt: str) -> Drawing:
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    canvas.savefig(out, format="svg", transparent=True, metadata=nothing)
    width, height = (round(inches * 72) for inches in canvas.get_size_inches())
    return Drawing(tidy(out.getvalue(), prefix), width, height, alt)


def _legend(canvas: Canvas, axes: Axes, width: float) -> None:
    """Draw a legend above the axes; parts with the same label (a bar's filling and hatch) share one key."""
    keys: dict[str, Any] = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        keys[label] = (*keys.get(label, ()), handle)
    if keys:
        columns = math.ceil(len(keys) / _legend_rows(list(keys), width))
        overlaid = {tuple: HandlerTuple(ndivide=1)}
        canvas.legend(list(keys.values()), list(keys), loc="outside upper left", ncols=columns, handler_map=overlaid)


def _legend_rows(labels: Sequence[str], width: float) -> int:
    """The fewest rows whose columns fit, at about 7 pixels per letter and 62 for the key and its space."""
    widths = [62 + 7 * max(map(len, _wrap(label, 56).split("\n"))) for label in labels]
    for rows in range(1, len(widths)):
        if sum(max(widths[start : start + rows]) for start in range(0, len(widths), rows)) <= width:
            return rows
    return max(1, len(widths))


def _lying(groups: Sequence[str], width: float) -> bool:
    """Whether neighbouring names of groups would touch, so that bars must be horizontal, with names at the left."""
    room = width / max(1, len(groups)) - 8
    if len(groups) < 2:
        return any(7 * len(group) > room for group in groups)
    return any(7 * (len(one) + len(other)) / 2 > room for one, other in pairwise(groups))


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _wrap(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width)) or text
