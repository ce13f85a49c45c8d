"""The look of each arm in all figures: hue, dash, marker and hatch, so that no reader depends on colour.

The hues are Okabe and Ito's, in one lightness for paper and one for dark screens; each has a contrast of at least 3:1
with its background (a test computes it).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

INK = "#010101"
"""The colour that matplotlib draws ink with; :mod:`retarget.report.svg` turns it into ``currentColor``."""

LIGHT = {"blue": "#0072b2", "vermillion": "#d55e00", "green": "#009e73", "purple": "#b8609a", "orange": "#b27a00"}
DARK = {"blue": "#56b4e9", "vermillion": "#ff8f4a", "green": "#2bc79a", "purple": "#e29cc4", "orange": "#e6b035"}
PAPER = {"light": "#ffffff", "dark": "#15171a"}
MUTED = {"light": "#575b62", "dark": "#a4a8af"}
VERDICTS = {
    "light": {"holds": "#0072b2", "fails": "#b84f00", "lacks": "#6b4e9b", "unmeasured": "#575b62", "once": "#575b62"},
    "dark": {"holds": "#56b4e9", "fails": "#ff8f4a", "lacks": "#b9a2e6", "unmeasured": "#a4a8af", "once": "#a4a8af"},
}
"""Inks of the verdicts' marks, by their names in the style sheet."""
TEXT = {"light": "#1b1c1e", "dark": "#e4e5e7"}

_COLOURS = (INK, *LIGHT.values())
_DASHES = ("solid", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Straight strokes only: a hatch of dots is drawn as some thousand Bézier curves.
_HATCHES = ("", "////", "\\\\\\\\", "xxxx", "----", "||||", "++++")


class Style(NamedTuple):
    """One arm's look: ``colour`` is a hue of the light scheme, ``dash`` a line style of matplotlib."""

    colour: str
    dash: str | tuple[float, tuple[float, ...]]
    marker: str
    hatch: str


def style(index: int) -> Style:
    """The look of arm ``index``: the first 28 already differ in dash or marker, the first 84 in hue, dash or marker."""
    return Style(
        _COLOURS[index % len(_COLOURS)],
        _DASHES[index % len(_DASHES)],
        _MARKERS[index % len(_MARKERS)],
        _HATCHES[index % len(_HATCHES)],
    )


def styles(labels: Iterable[str], known: Mapping[str, int]) -> dict[str, Style]:
    """Looks for one figure: an arm keeps its own in every figure, other labels get the first free ones.

    >>> chosen = styles(["model", "PS-KD"], known={"cross-entropy": 0, "PS-KD": 1})
    >>> chosen["PS-KD"] == style(1), chosen["model"] == style(0)
    (True, True)
    """
    labels = list(labels)
    taken = {known[label] for label in labels if label in known}
    free = (index for index in range(len(labels) + len(taken)) if index not in taken)
    return {label: style(known[label] if label in known else next(free)) for label in labels}
