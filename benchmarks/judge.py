"""Time ``retarget judge``: the whole command, from the file of runs to the page."""

import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._pairs import figure

CLAIM = """
[[claims]]
sentence = "{arm} is better on {condition}."
metric = "accuracy"
direction = "higher"
smallest_effect = {effect}
arms = ["{arm}", "arm-0"]
condition = "{condition}"
about = "{about}"
"""


def figures(smallest: bool = False) -> Iterator[dict[str, Any]]:
    """Seconds for 20 data sets × 5 seeds × 4 arms, and for two models on 100,000 items, start-up included."""
    sets, seeds, arms, items = (2, 3, 2, 500) if smallest else (20, 5, 4, 100_000)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            (f"set-{one}", f"arm-{arm}", seed, "accuracy", float(rng.normal(80 + arm, 1)))
            for one in range(sets) for arm in range(arms) for seed in range(seeds)
        ]  # fmt: skip
        table(folder / "runs.csv", ("condition", "arm", "seed", "metric", "value"), rows)
        pairs = [(f"set-{one}", f"arm-{arm}") for one in range(sets) for arm in range(1, arms)]
        claims(folder / "runs.toml", pairs, 1.0, "method")
        seconds = judged(folder, "runs")
        size = {"claims": len(pairs)}
        yield figure(f"judge {sets} data sets × {seeds} seeds × {arms} arms", seconds, "s", "<= 2", size)
        right = rng.random(items) < 0.5
        rows = [
            ("default", f"arm-{arm}", item, "accuracy", int(right[item] ^ (rng.random() < 0.1 * arm)))
            for arm in range(2) for item in range(items)
        ]  # fmt: skip
        table(folder / "items.csv", ("condition", "arm", "item", "metric", "value"), rows)
        claims(folder / "items.toml", [("default", "arm-1")], 0.01, "models")
        yield figure(f"judge 2 × {items:,} items", judged(folder, "items"), "s", "<= 10")


def table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def claims(path: Path, pairs: Sequence[tuple[str, str]], effect: float, about: str) -> None:
    """Write one claim per condition and arm."""
    texts = [CLAIM.format(condition=condition, arm=arm, effect=effect, about=about) for condition, arm in pairs]
    path.write_text("".join(texts), encoding="utf-8")


def judged(folder: Path, name: str) -> float:
    """Seconds of one call of the command."""
    words = [
        "judge",
        str(folder / f"{name}.csv"),
        "--claims",
        str(folder / f"{name}.toml"),
        "--out",
        str(folder / name),
    ]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "retarget", *words], check=True, capture_output=True)
    return time.perf_counter() - began
