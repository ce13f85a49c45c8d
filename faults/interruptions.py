"""Kill every verb that writes, fill its disk, start it many times at once; in the end its bytes must be the same."""

import contextlib
import hashlib
import importlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from faults.fuzz import Tally
from faults.verbs import VERBS, Verb, model_server

LIMIT = 900.0
"""Seconds after which a command counts as a hang."""
KINDS = ("killed", "full disk", "2 at once", "10 at once")
SAME, REFUSED = "same bytes", "clear error"
_LEFT = (".*.tmp", ".tmp*")
"""Names of half-written files: allowed while a writer works, not after the last one has ended."""


def interrupt(name: str, kills: int, seed: int = 0) -> Iterator[Tally]:
    """Disturb the verbs whose target's name contains ``name``; yields a tally for each.

    Args:
        name: part of "killed: VERB", "full disk: VERB" or "N at once: VERB".
        kills: SIGKILLs per verb; a verb that takes seconds gets an eighth of them.
        seed: decides the moments of the kills.
    """
    with model_server() as server:
        for verb in VERBS:
            kinds = [kind for kind in KINDS if name in f"{kind}: {verb.name}" and (kind == "killed" or not verb.heavy)]
            if not kinds or not kills:
                continue
            with tempfile.TemporaryDirectory() as folder:
                bench = _Bench(verb, Path(folder), server)
                for kind in kinds:
                    bench.tally = Tally(f"{kind}: {verb.name}")
                    match kind:
                        case "killed":
                            times = max(2, kills // 8) if verb.heavy else kills
                            bench.killed(times, random.Random(f"{seed} {verb.name}"))
                        case "full disk":
                            bench.full_disk()
                        case _:
                            bench.crowded(int(kind.split()[0]))
                    if bench.tally.counts:
                        yield bench.tally


class _Bench:
    """One verb with its inputs and its result when nothing disturbs it."""

    def __init__(self, verb: Verb, folder: Path, server: str) -> None:
        for module in ("retarget.cli", *verb.modules):
            importlib.import_module(module)
        self.verb, self.folder, self.server, self.tally = verb, folder, server, Tally(verb.name)
        self.here = folder / "here"
        self.here.mkdir()
        verb.prepare(self.here)
        begun = time.monotonic()
        code, said = self.run(folder / "whole")
        self.seconds = time.monotonic() - begun
        if code:
            raise RuntimeError(f"{verb.name} fails undisturbed: {said}")
        self.whole = self.digests(folder / "whole")
        if not self.whole:
            raise RuntimeError(f"{verb.name} leaves nothing to compare")

    def killed(self, kills: int, rng: random.Random) -> None:
        """Send SIGKILL one to three times at random moments, then let the command end."""
        done = 0
        while done < kills:
            out = self.folder / f"killed-{done}"
            for _ in range(min(kills - done, rng.randint(1, 3))):
                process, _ = self.start(out)
                process.join(rng.uniform(0.0, self.seconds))
                _kill(process)
                done += 1
            self.count(*self.run(out), out)

    def full_disk(self, size: str = "2m") -> None:
        """On a file system of 2 MB or less: expect a clear error, and the same bytes once there is room again."""
        place = self.folder / "small"
        place.mkdir()
        if not _mounted(place, size):
            return
        try:
            for left in (0, 8, 64):  # KiB
                out = place / f"out-{left}"
                _fill(place, 1024 * left)
                code, said = self.run(out)
                if code:
                    self.count(code, said, out, may_refuse=True)
                (place / "filler").unlink()
                subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
                self.count(*self.run(out), out)
                subprocess.run(["rm", "-rf", str(out)], check=True)
                subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)
        finally:
            subprocess.run(["umount", str(place)], check=True)

    def crowded(self, processes: int) -> None:
        """Several processes on one directory: each succeeds or is refused, and the bytes are the same."""
        out = self.folder / f"crowd-{processes}"
        started = [self.start(out, number) for number in range(processes)]
        for process, log in started:
            code, said = _ended(process, log)
            if code:
                self.count(code, said, out, may_refuse=True)
        self.count(*self.run(out), out)

    def start(self, out: Path, number: int = 0) -> tuple[multiprocessing.Process, Path]:
        """Start the command in its own process and process group; returns it and the file of its output."""
        words = self.verb.words.format(here=self.here, out=out, server=self.server).split()
        log = self.folder / f"log-{number}"
        process = multiprocessing.get_context("fork").Process(target=_run, args=(words, log, self.folder))
        process.start()
        return process, log

    def run(self, out: Path) -> tuple[int, str]:
        """Run the command to its end; returns its exit code and its output."""
        return _ended(*self.start(out))

    def count(self, code: int, said: str, out: Path, *, may_refuse: bool = False) -> None:
        """Count how a command that nobody killed ended."""
        outcome = SAME
        if code == _HUNG:
            outcome = "hang"
        elif "Traceback (most recent call last)" in said or code not in (0, 1):
            outcome = "traceback"
        elif code:
            outcome = REFUSED if may_refuse and "retarget: " in said else "does not go on"
        elif found := sorted({name for name, _ in self.digests(out).items() ^ self.whole.items()}):
            outcome, said = "other bytes", f"other bytes: {', '.join(found)}"
        elif left := [str(path) for pattern in _LEFT for path in out.rglob(pattern)]:
            outcome, said = "left over", f"left over: {left[0]}"
        self.tally.counts[outcome] += 1
        if outcome not in (SAME, REFUSED):
            last = (said.strip().splitlines() or ["no word"])[-1][:200]
            self.tally.examples.setdefault(last, f"{self.tally.target}: exit {code}\n{said[-4000:]}")

    def digests(self, out: Path) -> dict[str, str]:
        """Hashes of the files that must be the same, without this bench's own addresses and paths."""
        found = {}
        for pattern in self.verb.same:
            for path in sorted(one for one in out.glob(pattern) if one.is_file()):
                data = path.read_bytes().replace(str(out).encode(), b"OUT").replace(out.name.encode(), b"OUT")
                found[str(path.relative_to(out))] = hashlib.sha256(data).hexdigest()
        return found


_HUNG = -1000


def _run(words: list[str], log: Path, folder: Path) -> None:
    """In the child: run the command line; its output goes to a file."""
    os.setpgid(0, 0)
    os.chdir(folder)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = sys.stderr = os.fdopen(handle, "w", buffering=1)  # the caller may have redirected its own streams
    from retarget import cli

    cli.METHODS["toy"] = "faults.toy"
    code = 99
    try:
        code = cli.main(words)
    except BaseException:  # noqa: BLE001 - any exception is the fault that is sought
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _ended(process: multiprocessing.Process, log: Path) -> tuple[int, str]:
    process.join(LIMIT)
    hung = process.is_alive()
    if hung:
        _kill(process)
    code = process.exitcode
    return _HUNG if hung else (0 if code is None else code), log.read_text(errors="replace")


def _kill(process: multiprocessing.Process) -> None:
    """Kill the process alone, as a person would; what it started must end by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid or 0, signal.SIGKILL)
    process.join()


def _mounted(place: Path, size: str) -> bool:
    """Whether this machine allows mounting a small file system."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _fill(place: Path, left: int) -> None:
    """Fill a file system, leaving this many bytes free."""
    free = os.statvfs(place)
    (place / "filler").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - left)))
