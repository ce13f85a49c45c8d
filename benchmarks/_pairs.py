"""Time two things in turn, and make a figure of the result.

ours_over_theirs = interleaved(ours, theirs)
yield figure("a step of ours against a step of theirs", ours_over_theirs, "ratio", "<= 1.02")
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Pairs:
    """Seconds that A and B took, pair by pair."""

    a: list[float]
    b: list[float]

    @property
    def ratios(self) -> list[float]:
        """Time of A over time of B within each pair."""
        return [a / b for a, b in zip(self.a, self.b, strict=True)]


def interleaved(
    a: Callable[[], Any],
    b: Callable[[], Any],
    pairs: int = 30,
    warmup: int = 3,
    repeats: int = 1,
    finish: Callable[[], Any] | None = None,
) -> Pairs:
    """Time A B A B …, so that other work on the machine slows both alike.

    Args:
        a: what is measured.
        b: what it is measured against.
        pairs: number of pairs that count.
        warmup: number of pairs before them that do not count.
        repeats: calls per measurement, for something that takes microseconds; the time recorded is that of one call.
        finish: called before the clock is read, to wait for work that outlasts a call (``torch.cuda.synchronize``).
    """
    gc_was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        times = [[_seconds(call, repeats, finish) for call in (a, b)] for _ in range(warmup + pairs)][warmup:]
    finally:
        if gc_was_on:
            gc.enable()
    return Pairs([of_a for of_a, _ in times], [of_b for _, of_b in times])


def figure(
    name: str,
    value: float | Sequence[float] | Pairs,
    unit: str,
    reach: str | None = None,
    detail: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """One figure as ``python -m benchmarks`` prints it, which adds command, hardware and commit.

    Args:
        name: what was measured, in words that a user understands.
        value: a number; or several measurements, whose median becomes the value and whose quartiles go into the
            detail (one disturbed measurement moves neither much); or pairs, whose ratios are the measurements and
            whose median times go into the detail.
        unit: unit of the value: ``"ms"``, ``"ratio"``, ``"bytes"``, …
        reach: ``"<= 1.02"`` or ``">= 20"``, a bound that was set beforehand; None if there was none.
        detail: further numbers and strings.
    """
    found: dict[str, Any] = {}
    if isinstance(value, Pairs):
        found |= {"a_ms": 1000 * float(np.median(value.a)), "b_ms": 1000 * float(np.median(value.b))}
        value = value.ratios
    several = value if isinstance(value, Sequence) else None
    low, middle, high = np.quantile(value, [0.25, 0.5, 0.75]).tolist()
    if several is not None:
        found = {"quartiles": [low, high], **found}
    return {
        "figure": name,
        "value": _rounded(middle),
        "unit": unit,
        "reach": reach,
        "reached": None if reach is None else _reached(middle, reach),
        "pairs": None if several is None else len(several),
        "detail": {key: _rounded(item) for key, item in {**found, **(detail or {})}.items()},
    }


def _reached(value: float, reach: str) -> bool:
    sign, _, limit = reach.partition(" ")
    if sign not in ("<=", ">="):
        raise ValueError(f"reach must read '<= number' or '>= number': got {reach!r}")
    return value <= float(limit) if sign == "<=" else value >= float(limit)


def _rounded(value: Any) -> Any:
    """Round floats, and floats in lists, to four significant digits; leave anything else as it is."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _seconds(call: Callable[[], Any], repeats: int, finish: Callable[[], Any] | None) -> float:
    start = perf_counter()
    for _ in range(repeats):
        call()
    if finish is not None:
        finish()
    return (perf_counter() - start) / repeats
