"""Show how far a study is: bars on a terminal, lines in a file."""

import sys
import time
from contextlib import suppress
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

LINE_EVERY = 30.0
"""Seconds between two lines about running runs, without a terminal."""
ANALYSING = "analysing, judging the claims"


class Display:
    """What the runner reports; this base class shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to clean up."""

    def start(self, total: int, finished: int) -> None:
        """A study of ``total`` runs begins; ``finished`` were done before."""

    def began(self, key: str) -> None:
        """A run begins."""

    def progressed(self, key: str, done: int, total: int, unit: str) -> None:
        """A run has done ``done`` of ``total`` units."""

    def ended(self, key: str, error: str | None) -> None:
        """A run ended; ``error`` is None if it is complete."""

    def remarked(self, sentence: str) -> None:
        """Show a sentence that the finished runs suggest to the user."""

    def analysing(self) -> None:
        """All runs ended; the analysis, which may take a while too, begins."""


def display(progress: bool = True, stream: TextIO | None = None) -> Display:
    """Bars if ``progress`` is wanted and ``stream`` (by default standard error) is a terminal, else lines."""
    shown = sys.stderr if stream is None else stream
    return Bars(shown) if progress and shown.isatty() else Lines(shown)


class Pace:
    """Tracks how much of a study is done, and estimates the time left.

    A run reports its share phase by phase (train, then search, say), and each phase starts at 0 again. So a share never
    moves a run back, and is used for the time left only until one complete run has shown how long a run takes.
    """

    def __init__(self) -> None:
        self.total = self.finished = self._before = 0
        self.running: dict[str, float] = {}
        self._started = self._ended = time.monotonic()

    def start(self, total: int, finished: int) -> None:
        """Start the clock; runs finished earlier do not count for this call's speed."""
        self.total, self.finished, self._before = total, finished, finished
        self._started = time.monotonic()

    def move(self, key: str, share: float) -> None:
        """A run has reached a share of one of its phases."""
        self.running[key] = max(self.running.get(key, 0.0), share)

    def end(self, key: str, now: float | None = None) -> None:
        """A run ended, complete or failed."""
        self.running.pop(key, None)
        self.finished += 1
        self._ended = time.monotonic() if now is None else now

    def done(self) -> float:
        """The number of finished runs, plus the shares of running ones."""
        return self.finished + sum(self.running.values())

    def left(self, now: float | None = None) -> float | None:
        """Seconds left at the pace so far; None if it cannot be estimated: at first, and when runs take longer."""
        now = time.monotonic() if now is None else now
        whole, fresh = self.finished - self._before, self.done() - self._before
        if whole:
            a_run = (self._ended - self._started) / whole
            rest = a_run * (self.total - self.finished) - (now - self._ended)
        elif fresh > 0:
            rest = (now - self._started) * (self.total - self.done()) / fresh
        else:
            return None
        return rest if rest > 0 else None


def duration(seconds: float | None) -> str:
    """A duration in words.

    >>> duration(None), duration(42), duration(3_700)
    ('', '42 s', '1 h 2 min')
    """
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Lines(Display):
    """Plain lines: one when a run ends, and some in between."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._pace = stream, Pace()
        self._said = time.monotonic()

    def start(self, total: int, finished: int) -> None:
        """Print the number of runs."""
        self._pace.start(total, finished)
        self._say(f"{total} run{'s' * (total != 1)}" + (f", {finished} of them finished before" if finished else ""))

    def progressed(self, key: str, done: int, total: int, unit: str) -> None:
        """Print how far a run is, unless a line was printed recently."""
        self._pace.move(key, done / max(total, 1))
        if time.monotonic() - self._said >= LINE_EVERY:
            self._say(f"{key}: {unit} {done} of {total}{self._left()}")

    def ended(self, key: str, error: str | None) -> None:
        """Print how a run ended."""
        self._pace.end(key)
        how = "complete" if error is None else f"FAILED: {error}"
        self._say(f"[{self._pace.finished}/{self._pace.total}] {key} {how}{self._left()}")

    def remarked(self, sentence: str) -> None:
        """Say it."""
        self._say(sentence)

    def analysing(self) -> None:
        """Say so."""
        self._say(ANALYSING)

    def _left(self) -> str:
        left = duration(self._pace.left())
        return f" (about {left} left)" if left and self._pace.finished < self._pace.total else ""

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        with suppress(BrokenPipeError):  # the reader has gone: training goes on, and the results are in files
            print(line, file=self._stream, flush=True)


class Bars(Display):
    """One bar for the study and one for each running run."""

    def __init__(self, stream: TextIO) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(file=stream),
            transient=False,
        )
        self._pace = Pace()
        self._bars: dict[str, TaskID] = {}
        self._study: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for bar in self._bars.values():
            self._progress.remove_task(bar)
        self._progress.stop()

    def start(self, total: int, finished: int) -> None:
        """Draw the study's bar."""
        self._pace.start(total, finished)
        self._study = self._progress.add_task("study", total=total, completed=finished, note="")
        self._refresh()

    def began(self, key: str) -> None:
        """Draw a run's bar; it moves back and forth until the run reports its length. A run may begin twice."""
        if key in self._bars:
            self._progress.remove_task(self._bars.pop(key))
        self._bars[key] = self._progress.add_task(key, total=None, note="")

    def progressed(self, key: str, done: int, total: int, unit: str) -> None:
        """Move a run's bar and the study's."""
        self._pace.move(key, done / max(total, 1))
        self._progress.update(self._bars[key], completed=done, total=total, note=f"{unit} {done}/{total}")
        self._refresh()

    def ended(self, key: str, error: str | None) -> None:
        """Remove a run's bar; a failure stays on the screen as a line."""
        self._pace.end(key)
        if key in self._bars:
            self._progress.remove_task(self._bars.pop(key))
        if error is not None:
            self._progress.console.print(f"{key} FAILED: {error}", markup=False, highlight=False)
        self._refresh()

    def remarked(self, sentence: str) -> None:
        """Print the sentence; it stays on the screen."""
        self._progress.console.print(sentence, markup=False, highlight=False)

    def analysing(self) -> None:
        """Say so."""
        self._progress.console.print(ANALYSING, markup=False, highlight=False)

    def _refresh(self) -> None:
        pace = self._pace
        left = duration(pace.left()) if pace.finished < pace.total else ""
        note = f"{pace.finished}/{pace.total} runs" + (f", about {left} left" if left else "")
        if self._study is not None:
            self._progress.update(self._study, completed=pace.done(), note=note)
