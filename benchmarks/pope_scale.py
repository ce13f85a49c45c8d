"""What mining costs beside its engines, measured with 64 that answer at once, and from it the cost of 200,000 × 128.

Times are processor times, so other work on the machine does not count.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from benchmarks._pairs import figure
from retarget.pope.commands.options import Cost
from retarget.pope.engines.pool import Answer, EnginePool, Opened
from retarget.pope.grading import Grader
from retarget.pope.mining import mine
from retarget.pope.problems import Problem
from retarget.pope.prompts import Prompt, Prompts
from retarget.pope.rollouts import Rollout, Sampling
from retarget.pope.sampler import Sampler

ENGINES, K, CHUNK = 64, 128, 16
PROBLEMS = 200_000
TEXT = "Let $x = 5$ and add \\frac{1}{2} of it, then see what is left. "
COST = Cost()
"""Tokens per rollout, and tokens per second of one engine, as ``retarget pope mine --dry-run`` assumes them."""


class _Instant:
    """A remote engine that answers at once, with completions of a realistic length."""

    def __init__(self, characters: int) -> None:
        self._texts = [f"{TEXT * (characters // len(TEXT))}\n#### {wrong}" for wrong in range(50, 50 + CHUNK)]

    def start(self, over: Event) -> Opened:
        return Opened("instant", {})

    def ask(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[Answer]:
        tokens = COST.mean_tokens
        return [[Rollout(text, tokens, False) for text in self._texts[:n]] for _ in prompts]

    def kill(self) -> None:
        """Nothing to end."""

    def end(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True)
class _Measured:
    """A mining that solves nothing: seconds and bytes per unit of ``CHUNK`` rollouts, and the memory in all."""

    units: int
    sampling: float
    journal: float
    reading: float
    memory: int


def figures(smallest: bool = False) -> Iterator[dict[str, Any]]:
    """Every figure of this module."""
    few, many, characters = (8, 16, 1_000) if smallest else (250, 1_000, 4 * COST.mean_tokens)
    least, most = _mine(few, characters), _mine(many, characters)
    memory = (most.memory - least.memory) / (most.units - least.units)
    detail = {"problems": many, "engines": ENGINES, "characters_a_rollout": characters}
    yield figure("scheduling, grading (exact) and keeping a rollout", 1000 * most.sampling / CHUNK, "ms", detail=detail)
    yield figure(f"the same among {many:,} problems over {few:,}", most.sampling / least.sampling, "ratio", "<= 1.5")
    yield figure("journal of a rollout", most.journal / CHUNK, "bytes")
    yield figure("reading a rollout back from the journal", 1000 * most.reading / CHUNK, "ms")
    grading = _grading(8 if smallest else 200, characters)
    yield figure("grading a rollout by math-verify, one after another", 1000 * grading, "ms", detail=detail)
    yield from _reckoned(most, grading, memory)


def _mine(count: int, characters: int) -> _Measured:
    """Mine ``count`` hard problems, then again with all of them in the journal."""
    problems = [Problem(id=f"p{at}", prompt=f"{TEXT}{at}", answer="4") for at in range(count)]
    units = count * K // CHUNK
    with tempfile.TemporaryDirectory() as folder, Grader("exact") as grader:
        path = Path(folder) / "mine.jsonl"
        workers = [_Instant(characters) for _ in range(ENGINES)]
        with EnginePool(workers) as pool:
            sampler = Sampler(pool, grader, Prompts("{problem}", "{problem} {prefix}", chat=False), chunk=CHUNK)
            sampling = _seconds(sampler, problems, path)
            reading = _seconds(sampler, problems, path)
        return _Measured(units, sampling / units, path.stat().st_size / units, reading / units, _memory())


def _seconds(sampler: Sampler, problems: list[Problem], path: Path) -> float:
    start = time.process_time()
    found = mine(problems, sampler, K, journal=path)
    taken = time.process_time() - start
    assert (len(found.hard), found.rollouts) == (len(problems), K * len(problems))
    return taken


def _memory() -> int:
    """The most memory that this process has held, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _grading(count: int, characters: int) -> float:
    """Seconds per grade of the default grader."""
    texts = [f"{TEXT * (characters // len(TEXT))}\n#### {wrong}" for wrong in range(50, 50 + count)]
    with Grader("math", workers=0) as grader:
        grader.grade(texts[:1], ["4"], [{}])  # loads the library
        start = time.process_time()
        grader.grade(texts, ["4"] * count, [{}] * count)
        return (time.process_time() - start) / count


def _reckoned(each: _Measured, grading: float, memory: float) -> Iterator[dict[str, Any]]:
    """The cost table: the engines by the assumptions of ``--dry-run``, the rest as measured per unit."""
    what = f"{PROBLEMS:,} problems × {K} on {ENGINES} engines"
    units = PROBLEMS * K // CHUNK
    asked = COST.of(PROBLEMS * K)
    hours = asked["gpu_hours"] / ENGINES
    assumed = {"tokens_per_rollout": COST.mean_tokens, "tokens_per_second_and_engine": COST.throughput}
    yield figure(f"{what}: rollouts", asked["rollouts_at_most"] / 1e6, "million")
    yield figure(f"{what}: tokens", asked["tokens"] / 1e9, "billion", detail=assumed)
    yield figure(f"{what}: GPU-hours", asked["gpu_hours"], "h", detail=assumed)
    yield figure(f"{what}: hours of the engines", hours, "h", detail=assumed)
    own = units * each.sampling / 3600
    judged = PROBLEMS * K * grading / 3600
    yield figure(f"{what}: scheduler and journal over the engines' time", own / hours, "share", "<= 0.05",
                 {"hours": own})  # fmt: skip
    yield figure(
        f"{what}: math-verify in one process over the engines' time", judged / hours, "share", detail={"hours": judged}
    )
    yield figure(f"{what}: journal", units * each.journal / 1e9, "GB")
    yield figure(f"{what}: going on after a stop", units * each.reading / 60, "min")
    if memory:  # none, if the process had held more before: run this module alone
        yield figure(f"{what}: memory of the command", units * memory / 2**30, "GiB")
