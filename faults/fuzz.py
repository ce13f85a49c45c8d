"""Damage input at random (seeded), and count how it ends: right result, clear error, traceback or hang."""

import contextlib
import io
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from faults.damage import Damage

LIMIT = 60.0
"""Seconds after which an input counts as a hang."""
MEMORY = 6 * 2**30
"""Bytes of address space of a worker; the system refuses more."""


@dataclass(frozen=True)
class Target:
    """Something that reads files.

    Attributes:
        prepare: makes undamaged files in an empty folder; called once per worker.
        files: names of the files to damage, with the ways to damage each.
        use: reads the folder in this process and returns the result; raises what the package raises.
        fits: ``fits(found, expected)`` says whether the result from damaged files is acceptable beside that from the
            undamaged ones (of a journal any part is, since missing lines are sampled again); None if other bytes are
            simply other input (a problem file).
    """

    name: str
    prepare: Callable[[Path], object]
    files: dict[str, tuple[Damage, ...]]
    use: Callable[[Path], Any]
    fits: Callable[[Any, Any], bool] | None = None


@dataclass
class Tally:
    """How the inputs of one target ended; ``examples`` holds tracebacks by their last line."""

    target: str
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)


def fuzz(targets: list[Target], inputs: int, seed: int = 0) -> Iterator[Tally]:
    """Damage files ``inputs`` times in all, equally often for each target; yields each target's tally."""
    each = -(-inputs // len(targets))
    for target in targets:
        yield _fuzz_one(target, each, seed)


def _fuzz_one(target: Target, inputs: int, seed: int) -> Tally:
    """A worker takes the inputs one by one; if it hangs or dies, another one continues after that input."""
    tally, at = Tally(target.name), 0
    context = multiprocessing.get_context("fork")
    while at < inputs:
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(target, seed, at, inputs, theirs))
        worker.start()
        theirs.close()
        while at < inputs:
            if not ours.poll(LIMIT):
                _count(tally, "hang", f"input {at} did not end within {LIMIT:.0f} s")
                break
            try:
                outcome, detail = ours.recv()
            except EOFError:
                worker.join()
                _count(tally, "traceback", f"input {at} ended the process: exit code {worker.exitcode}")
                break
            _count(tally, outcome, detail)
            at += 1
        else:
            worker.join()
            continue
        os.kill(worker.pid or 0, signal.SIGKILL) if worker.is_alive() else None
        worker.join()
        at += 1
    return tally


def _count(tally: Tally, outcome: str, detail: str) -> None:
    tally.counts[outcome] += 1
    if outcome not in ("right result", "clear error"):
        tally.examples.setdefault(detail.strip().splitlines()[-1][:200], detail)


def _work(target: Target, seed: int, begin: int, end: int, results: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        root = Path(folder)
        whole = root / "whole"
        whole.mkdir()
        target.prepare(whole)
        expected = target.use(whole)
        for number in range(begin, end):
            results.send(
                _one(target, whole, root / "damaged", expected, random.Random(f"{seed} {target.name} {number}"))
            )


def _one(target: Target, whole: Path, place: Path, expected: Any, rng: random.Random) -> tuple[str, str]:
    """Try one input; returns its outcome, and the traceback if there was one."""
    import shutil

    from retarget.errors import UserError
    from retarget.extras import MissingExtraError

    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(whole, place)
    name = rng.choice(sorted(target.files))
    path = place / name
    before = path.read_bytes()
    path.write_bytes(rng.choice(target.files[name])(before, rng))
    try:
        found = target.use(place)
    except (UserError, MissingExtraError) as error:
        said = str(error)
        if not said.strip():
            return "traceback", "an error without a message\n" + traceback.format_exc()
        return "clear error", ""
    except MemoryError:
        return "traceback", traceback.format_exc()
    except Exception:  # noqa: BLE001 - any exception is the fault that is sought
        return "traceback", traceback.format_exc()
    if target.fits and not target.fits(found, expected):
        return "edited data taken for whole", f"{target.name}: {name} was damaged and read as if it were whole"
    return "right result", ""
