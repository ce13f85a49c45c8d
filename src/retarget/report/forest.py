"""The forest plot: every measured claim on one scale, in multiples of its own smallest effect."""

import math
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from retarget.report import words
from retarget.report.claims import ClaimGroup, ClaimRow, Scaled
from retarget.report.draw import Drawing

REACH = (2.0, 1000.0)
"""Least and largest reach of the scale to each side, in smallest effects; bars beyond it end in an arrow."""
EVEN = 5.0
"""A scale that reaches further than this is not linear but proportional to log(1 + |x|)."""
CAPTION = (
    "Every measured claim on one scale, with better to the right. Since units differ, each claim is scaled by its own "
    "smallest effect that matters, or by its margin. Dot: estimate. Bar: interval. Line: no difference. Dotted line: "
    "the smallest effect, or the margin at the left."
)
_UNEVEN = " The scale is compressed away from 0, to show small and large effects together."
_ONCE = " Bars are intervals over items: they describe these models on this data, not the method."
MANY = 10
"""With more claims than this the labels are smaller, so that the plot fits on the first screen."""
_APART = 17.0
"""Least distance between the labels of two ticks, in pixels."""
_LETTER = 0.56
"""Width of a letter relative to the font size; generous, because fonts differ."""


_KEY = {
    "holds": ("disc", "holds"),
    "fails": ("square", "does not hold"),
    "lacks": ("lozenge", "not enough evidence"),
}


class Forest(NamedTuple):
    """The plot for a wide and for a narrow screen, with the same content, and its caption.

    ``key`` says what the marks mean, which stand without words on a narrow screen; empty if there is no verdict.
    """

    wide: Drawing
    narrow: Drawing
    caption: str
    key: str


class _Shape(NamedTuple):
    """Measures of a layout, in CSS pixels; the label is beside the bar, or above it if ``beside`` is False."""

    width: int
    label: int
    left: int
    right: int
    amount: int
    verdict: int | None
    size: float
    beside: bool


_WIDE = _Shape(1088, 430, 445, 745, 768, 900, 14.0, True)
_NARROW = _Shape(358, 358, 8, 216, 250, None, 13.0, False)


def forest(groups: Sequence[ClaimGroup]) -> Forest | None:
    """The plot of all claims that have an estimate; None if there are none.

    Args:
        groups: from :func:`retarget.report.claims.claim_groups`.
    """
    shown = [(group.condition, [row for row in group.rows if row.scaled]) for group in groups]
    rows = [row for _, some in shown for row in some]
    if not rows:
        return None
    alt = " ".join([f"Forest plot of {words.plural(len(rows), 'claim')}, better to the right.", *map(_said, rows)])
    uneven = _reach(rows) > EVEN
    once = any(row.scaled.over_items for row in rows if row.scaled)
    wide, narrow = (_Plot(shape, shown).drawn(alt) for shape in (_WIDE, _NARROW))
    key = "; ".join(f"{shape}: {verdict}" for mark, (shape, verdict) in _KEY.items() if mark in {r.mark for r in rows})
    return Forest(wide, narrow, CAPTION + _UNEVEN * uneven + _ONCE * once, f"Marks: {key}." if key else "")


def _said(row: ClaimRow) -> str:
    numbers = " ".join(filter(None, (row.estimate, row.interval)))
    return f"{row.sentence.rstrip('.')}: {numbers}{f', {row.verdict_words}' if row.verdict_words else ''}."


class _Plot:
    """Draws from top to bottom; ``y`` is where the next row begins."""

    def __init__(self, shape: _Shape, groups: Sequence[tuple[str, Sequence[ClaimRow]]]) -> None:
        self.shape, self.groups, self.y = shape, groups, 0.0
        rows = [row for _, some in groups for row in some]
        self.reach = _reach(rows)
        self.many = len(rows) > MANY
        self.alike = {row.sentence for _, some in groups for row in _repeated(some)}
        self.svg = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg")

    def drawn(self, alt: str) -> Drawing:
        """The SVG element with its size; ``alt`` describes it."""
        grid = ElementTree.SubElement(self.svg, "g")
        for heading, rows in self.groups:
            if heading and rows:
                self._text(self.svg, 0, self.y + 17, heading, weight="650")
                self.y += 26
            for row in rows:
                if row.scaled:
                    self._row(row, row.scaled)
        self._grid(grid)
        height = round(self.y + 24)
        self.svg.set("viewBox", f"0 0 {self.shape.width} {height}")
        return Drawing(ElementTree.tostring(self.svg, encoding="unicode"), self.shape.width, height, alt)

    def _grid(self, parent: ElementTree.Element) -> None:
        axis = self.y + 4
        _element(
            parent, "path", d=f"M{self.shape.left} {axis:g}H{self.shape.right}", stroke="currentColor", opacity=".35"
        )
        step = 1 if self.reach <= 3 else 2
        steps = range(step, int(self.reach) + 1, step) if self.reach <= EVEN else (1, 10, 100, 1000)
        ticks = [value for value in steps if value <= self.reach]
        drawn: list[float] = []
        for value in (0, *reversed(ticks), *(-one for one in reversed(ticks))):
            if any(abs(self._x(value) - other) < _APART for other in drawn):
                continue
            drawn.append(self._x(value))
            label = f"{value:g}".replace("-", words.MINUS) if value else "0"
            self._text(parent, self._x(value), axis + 16, label, quiet=True, anchor="middle", size=12)
        unit = "× the claim's smallest effect" if self.shape.beside else "× smallest effect"
        self._text(parent, self.shape.right + 14, axis + 16, unit, quiet=True, size=12)

    def _row(self, row: ClaimRow, scaled: Scaled) -> None:
        shape = self.shape
        label = f"{row.sentence.rstrip('.')} ({row.compared})" if row.sentence in self.alike else row.sentence
        size = 12.0 if self.many and shape.beside else shape.size
        # A letter of Chinese, Japanese or Korean is twice as wide.
        wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in label) / max(1, len(label))
        letters = int(shape.label / (_LETTER * size * (1 + wide)))
        lines = textwrap.wrap(label, letters, max_lines=2, placeholder=" …") or [""]
        line = size + (2 if size < shape.size else 4)
        top = self.y + 4
        for place, text in enumerate(lines):
            whole = label if "…" in text else ""
            self._text(self.svg, 0, top + line * (place + 1) - line / 4, text, size=size, whole=whole)
        middle = top + line * len(lines) / 2 if shape.beside else top + line * len(lines) + 10
        self._bar(row, scaled, middle)
        room = (shape.verdict - 16 if shape.verdict else shape.width) - shape.amount
        fits = len(row.estimate) * _LETTER * size <= room
        self._text(self.svg, shape.amount, middle + 5, row.estimate if fits else row.estimate.split()[0], weight="650")
        if row.verdict_words:
            at = shape.verdict or shape.amount - 16
            group = _element(self.svg, "g", **{"class": row.mark})
            _mark(group, row.mark, at, middle)
            if shape.verdict:
                short = row.verdict_words.removesuffix(" here")
                self._text(group, at + 13, middle + 5, short, weight="600", size=13)
        self.y = middle + (max(line * len(lines) / 2, 10) if shape.beside else 14) + 4
        zero, threshold, above = self._x(0), self._x(scaled.threshold), (top - 4 if shape.beside else middle - 10)
        _element(self.svg, "path", d=f"M{zero} {above:g}V{self.y:g}", stroke="currentColor", opacity=".75")
        dotted = {"stroke-dasharray": "2 3", "opacity": ".75"}
        _element(self.svg, "path", d=f"M{threshold} {above:g}V{self.y - 2:g}", stroke="currentColor", **dotted)

    def _bar(self, row: ClaimRow, scaled: Scaled, y: float) -> None:
        group = _element(self.svg, "g", **{"class": row.mark})
        low, high = self._x(scaled.low), self._x(scaled.high)
        if scaled.high > scaled.low:
            dashes = {"stroke-dasharray": "5 2"} if scaled.over_items else {}
            _element(group, "path", d=f"M{low} {y:g}H{high}", stroke="currentColor", **{"stroke-width": "3"}, **dashes)
        for value, end, way in ((scaled.low, low, -1), (scaled.high, high, 1)):
            if abs(value) > self.reach and value * way > 0:
                tip, back = end + 6 * way, end
                path = f"M{tip:g} {y:g}L{back:g} {y - 5:g}V{y + 5:g}Z"
                _element(group, "path", d=path, fill="currentColor")
        if abs(scaled.estimate) <= self.reach:
            _element(group, "circle", cx=f"{self._x(scaled.estimate)}", cy=f"{y:g}", r="4.6", fill="currentColor")

    def _x(self, value: float) -> float:
        share = max(-1.0, min(1.0, value / self.reach))
        if self.reach > EVEN:
            share = math.copysign(min(1.0, math.log1p(abs(value)) / math.log1p(self.reach)), value)
        left, right = self.shape.left + 8, self.shape.right - 8
        return round((left + right + share * (right - left)) / 2, 1)

    def _text(
        self, parent: ElementTree.Element, x: float, y: float, text: str, *, weight: str = "", quiet: bool = False,
        anchor: str = "", size: float = 0, whole: str = "",
    ) -> None:  # fmt: skip
        given = {"x": f"{x:g}", "y": f"{y:g}", "font-size": f"{size or self.shape.size:g}"}
        given |= {"font-weight": weight} if weight else {}
        given |= {"text-anchor": anchor} if anchor else {}
        given |= {"class": "muted"} if quiet else {}
        element = _element(parent, "text", **given)
        element.text = text
        if whole:
            _element(element, "title").text = whole


def _reach(rows: Iterable[ClaimRow]) -> float:
    """How far the scale reaches to each side of 0."""
    ends = [end for row in rows if row.scaled for end in (row.scaled.low, row.scaled.high, row.scaled.threshold)]
    return min(REACH[1], max(REACH[0], math.ceil(max(map(abs, ends)) * 1.05)))


def _repeated(rows: Iterable[ClaimRow]) -> list[ClaimRow]:
    """Rows of one group that share their sentence."""
    rows = list(rows)
    sentences = [row.sentence for row in rows]
    return [row for row in rows if sentences.count(row.sentence) > 1]


def _mark(parent: ElementTree.Element, mark: str, x: float, y: float) -> None:
    """Draw the verdict's mark, 12 pixels wide: a disc, a square, a lozenge or a ring."""
    match mark:
        case "holds":
            _element(parent, "circle", cx=f"{x:g}", cy=f"{y:g}", r="6", fill="currentColor")
        case "fails":
            _element(parent, "rect", x=f"{x - 5.5:g}", y=f"{y - 5.5:g}", width="11", height="11", fill="currentColor")
        case "lacks":
            _element(parent, "path", d=f"M{x:g} {y - 7:g}l7 7l-7 7l-7 -7Z", fill="currentColor")
        case _:
            ring = {"stroke-width": "2", "stroke-dasharray": "3 2"}
            _element(parent, "circle", cx=f"{x:g}", cy=f"{y:g}", r="5", fill="none", stroke="currentColor", **ring)


def _element(parent: ElementTree.Element, name: str, **attributes: str) -> ElementTree.Element:
    return ElementTree.SubElement(parent, name, attributes)
