"""Draw results/map.svg: when does PS-KD pay?

Each recorded setting in which PS-KD and cross-entropy were trained on the same seeds gives one point: the control's
fitted temperature (above 1: over-confident) against PS-KD's gain in NLL, ECE and accuracy, with a 95 % t interval
over seeds.
"""

import io
import math
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from records import Record, names, record
from scipy import stats

from retarget.report.palette import INK, style
from retarget.report.svg import standalone, tidy

PAIRS = (("pskd", "cross_entropy"), ("alpha_0.8", "cross_entropy"))
"""Treated arm and control."""
GAINS = (("nll", "NLL", -1.0), ("ece", "ECE, points", -1.0), ("top1", "accuracy, points", 1.0))
"""A metric, its label, and the factor that turns a difference into a gain."""
WIDTH, HEIGHT = 860, 400


class Point(NamedTuple):
    """One setting: each gain's mean and the half width of its interval (0 for one seed).

    ``scaled`` has the means of the gains in NLL and ECE after a temperature was fitted to both arms, where measured;
    ``runs`` the temperature and the gains of each seed.
    """

    record: str
    condition: str
    temperature: float
    seeds: int
    gains: dict[str, tuple[float, float]]
    scaled: dict[str, float]
    runs: frozenset[tuple[float, ...]]


def points() -> list[Point]:
    """Every setting once, also if several records share its runs, or one has some of another's."""
    found: list[Point] = []
    for name in names():
        one = record(name)
        if not one.finished:
            continue
        for condition, arms in one.summary["conditions"].items():
            for treated, control in PAIRS:
                point = _point(one, condition, arms.get(treated), arms.get(control))
                if point and not any(point.runs <= other.runs for other in found):
                    found = [other for other in found if not other.runs <= point.runs] + [point]
    return sorted(found, key=lambda point: point.temperature)


def table(these: list[Point]) -> str:
    """The numbers of the map as a Markdown table."""
    gained = " | ".join(f"gain in {name}" for _, name, _ in GAINS)
    rows = [f"| | setting | control's temperature | seeds | {gained} | |", "|---" * (5 + len(GAINS)) + "|"]
    for number, point in enumerate(these, start=1):
        gains = " | ".join(_words(point.gains.get(metric)) for metric, _, _ in GAINS)
        where = f"[{record(point.record).words}](../docs/results/{point.record}.md)"
        condition = record(point.record).condition(point.condition)
        where += f": {condition}" if condition else ""
        rows.append(
            f"| {number} | {where} | {point.temperature:.2f} | {point.seeds} | {gains} | {record(point.record).kind} |"
        )
    said = " and ".join(_kept(these, metric, name.partition(",")[0]) for metric, name, _ in GAINS[:2])
    return "\n".join(rows) + f"\n\nAfter a temperature is fitted to both arms, {said}."


def _kept(these: list[Point], metric: str, name: str) -> str:
    """How many of the points keep the sign of their gain after a temperature."""
    both = [(point.gains[metric][0], point.scaled[metric]) for point in these
            if metric in point.gains and metric in point.scaled]  # fmt: skip
    kept = sum((before > 0) == (after > 0) for before, after in both)
    return f"{kept} of {len(both)} points keep the sign of their gain in {name}"


def draw(these: list[Point]) -> str:
    """The map as SVG: three panels that share their horizontal axis, points numbered as in the table."""
    settings = {"svg.fonttype": "none", "svg.hashsalt": "map", "font.family": "DejaVu Sans", "font.size": 12.5,
                "axes.spines.top": False, "axes.spines.right": False, "text.color": INK, "axes.labelcolor": INK,
                "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK}  # fmt: skip
    with rc_context(settings):
        canvas = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72, layout="constrained")
        for place, ((metric, name, _), axes) in enumerate(zip(GAINS, canvas.subplots(1, len(GAINS)), strict=True)):
            axes.axhline(0, color=INK, linewidth=0.8)
            axes.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
            for number, point in enumerate(these, start=1):
                if metric not in point.gains:
                    continue
                gain, half = point.gains[metric]
                colour = style(1).colour if gain > 0 else style(2).colour
                axes.errorbar(point.temperature, gain, half or None, fmt="o", color=colour, markersize=6, linewidth=1.4,
                              mfc=colour if half else "none")  # fmt: skip
                axes.annotate(str(number), (point.temperature, gain), (6, 5 if number % 2 else -13),
                              textcoords="offset points", fontsize=10.5)  # fmt: skip
            axes.set_title(f"gain in {name}", loc="left", fontsize=12.5)
            axes.margins(x=0.12)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator([0.5, 1, 2, 4, 8]))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
            if place == 1:
                axes.set_xlabel("fitted temperature of the control (above 1: over-confident)")
        out = io.StringIO()
        canvas.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    said = f"PS-KD's gain over cross-entropy in {len(these)} settings against the control's fitted temperature."
    if all(point.gains["nll"][0] < 0 for point in these if point.temperature < 1 and "nll" in point.gains):
        said += " Below 1 no setting gains in NLL."
    return standalone(tidy(out.getvalue(), "map"), WIDTH, HEIGHT, said)


def _point(one: Record, condition: str, treated: Any, control: Any) -> Point | None:
    if not treated or not control or "temperature" not in control:
        return None
    gains: dict[str, tuple[float, float]] = {}
    paired: set[int] = set()
    for metric, _, sign in GAINS:
        if metric not in treated or metric not in control:
            continue
        pairs = enumerate(zip(treated[metric]["values"], control[metric]["values"], strict=True))
        both = {seed: sign * (t - c) for seed, (t, c) in pairs if t is not None and c is not None}
        gained = list(both.values())
        if gained:
            paired |= both.keys()
            gains[metric] = (float(np.mean(gained)), half_width(gained))
    found = control["temperature"]["values"]
    temperatures = [found[seed] for seed in sorted(paired) if found[seed] is not None]
    if not temperatures or not gains:
        return None
    scaled = {metric: _mean_gain(treated, control, f"{metric}_scaled", sign) for metric, _, sign in GAINS}
    scaled = {metric: gain for metric, gain in scaled.items() if gain is not None}
    first = next(iter(gains))
    runs = frozenset(
        (round(found[seed], 6), round(treated[first]["values"][seed], 6), round(control[first]["values"][seed], 6))
        for seed in sorted(paired)
        if found[seed] is not None
    )
    return Point(one.name, condition, float(np.mean(temperatures)), len(temperatures), gains, scaled, runs)


def _mean_gain(treated: Any, control: Any, metric: str, sign: float) -> float | None:
    """The mean gain over the seeds of both arms; None if they have none."""
    if metric not in treated or metric not in control:
        return None
    pairs = zip(treated[metric]["values"], control[metric]["values"], strict=True)
    gained = [sign * (t - c) for t, c in pairs if t is not None and c is not None]
    return float(np.mean(gained)) if gained else None


def half_width(gained: list[float]) -> float:
    """Half the width of a 95 % t interval; 0 for one seed."""
    if len(gained) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(gained) - 1) * np.std(gained, ddof=1) / math.sqrt(len(gained)))


def _words(gain: tuple[float, float] | None) -> str:
    if gain is None:
        return "–"
    return f"{gain[0]:+.2f} ± {gain[1]:.2f}" if gain[1] else f"{gain[0]:+.2f}"
