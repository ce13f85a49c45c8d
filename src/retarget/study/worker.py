"""The worker process: takes jobs one after another and does the runs.

A worker is its own process group. So Ctrl-C in a terminal reaches only the parent, which decides what to do, and all
processes that a task starts (loaders, ranks) are killed together with the worker.
"""

import faulthandler
import math
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

from retarget.errors import DivergedError, UserError
from retarget.files import cannot_write, locked, make_directory, write_json
from retarget.own import load
from retarget.study.record import Run, read_status, write_status
from retarget.study.start import Start
from retarget.study.statistics import LARGEST, RELATIVE_NOISE
from retarget.study.tracking import Track


@dataclass(frozen=True)
class Ticket:
    """What a command wrote into the lock of its study's directory; every machine must read the same there.

    So a machine that does not see the directory does nothing. Neither does a job that a queue starts after its command
    has gone, while another command works in the directory.
    """

    path: Path
    text: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """The ticket of the lock that this process holds."""
        return cls(path, path.read_text(encoding="ascii"))

    def check(self) -> None:
        """Refuse to work on another command's directory.

        Raises:
            UserError: the lock cannot be read here, or another command has taken it since.
        """
        here = f"on {platform.node()}"
        try:
            found = self.path.read_text(encoding="ascii", errors="replace")
        except OSError as error:
            raise UserError(
                f"{here} {self.path.parent} is not the study's directory ({error.strerror}): all machines of a cluster "
                "must see it under the same path. Give an --out on a disk that they share"
            ) from error
        if found != self.text:
            raise UserError(f"{here}: another command works in {self.path.parent} since this run was sent off")


@dataclass(frozen=True)
class Job:
    """One run to do, as plain data that can be sent to another process or machine.

    Attributes:
        key: ``CONDITION/ARM/seed-N``, the run's name in messages.
        config: the content of config.json, with run_hash.
        optional: metrics that may be missing or not finite.
        required: metrics that the run must return.
        bounds: the smallest and the largest value of metrics that have them.
        track: the tracker, if any, to which the run's log is sent.
        needs: directories of the finished runs that the task may read, by arm.
        ticket: identifies the command whose run this is; checked before anything is written.
        parts: import paths of the user's own code, whose sources ``config["content"]`` fingerprints.
    """

    key: str
    directory: Path
    task: str
    config: dict[str, Any]
    optional: tuple[str, ...] = ()
    needs: dict[str, Path] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    track: Track | None = None
    ticket: Ticket | None = None
    parts: tuple[str, ...] = ()
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Started:
    """A worker began a job."""

    key: str


@dataclass(frozen=True)
class Progress:
    """How far a running job is."""

    key: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True)
class Finished:
    """A job ended. ``error`` is None if it is complete; ``unusable`` means that no run of this task can work."""

    key: str
    error: str | None = None
    unusable: bool = False


@dataclass(frozen=True)
class Remark:
    """Something that the user should know now: a machine was lost, say, and its run is tried again."""

    sentence: str


Event = Started | Progress | Finished | Remark


PARENTS = {signal.SIGINT, signal.SIGUSR2}
"""Signals that also reach workers, but are left to the parent: Ctrl-C, and a queue that takes its machine back."""


class MetricsError(ValueError):
    """A task returned something that cannot be recorded as a number."""


def worker_main(connection: Connection) -> None:
    """Take jobs from ``connection`` and send events back, until None arrives or the parent ends."""
    os.setpgid(0, 0)
    for number in PARENTS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PARENTS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start = Start()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        if job is None:
            return
        connection.send(Started(job.key))
        try:
            if job.ticket:
                job.ticket.check()
            _redirect(job.directory)
            finished = perform(job, connection.send, start)
        except UserError as error:  # its directory cannot be read or written, or is another's: the parent records it
            finished = Finished(job.key, error=str(error))
        connection.send(finished)


def perform(job: Job, send: Callable[[Event], None], start: Start | None = None) -> Finished:
    """Do one run in this process, unless it is finished; writes its status.json.

    It waits for the run's lock, which may still be held by a worker whose parent was killed a moment ago.

    Args:
        start: this process's, if it does several runs.
    """
    with locked(job.directory / ".lock", wait=True, what=str(job.directory)):
        status = read_status(job.directory)
        if status and status["state"] == "complete" and status["run_hash"] == job.config["run_hash"]:
            return Finished(job.key)
        write_json(job.directory / "config.json", job.config)
        attempts = (status or {}).get("attempts", 0) + 1
        record = {"state": "running", "run_hash": job.config["run_hash"], "attempts": attempts}
        write_status(job.directory, record)
        started = time.monotonic()
        try:
            function = load(job.task)
        except Exception as error:  # noqa: BLE001 - importing a module may raise anything
            return _failed(job, record, error, unusable=True)
        try:
            with _told(_run(job, send, start or Start())) as run, _without_forks():
                metrics = _checked(function(run), job)
                run.close(metrics)
                logged = run.logged()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a task raises is the run's error
            return _failed(job, record, error)
        seconds = round(time.monotonic() - started, 3) if attempts == 1 else None  # that of a killed attempt is lost
        done = {"state": "complete", "metrics": metrics, "seconds": seconds, "logged": logged}
        write_status(job.directory, record | done)
        return Finished(job.key)


@contextmanager
def _without_forks() -> Iterator[None]:
    """End a process that a task has forked and that returns from it: it must not write the run's files."""
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != process:
            os._exit(1)


@contextmanager
def _told(run: Run) -> Iterator[Run]:
    """Close the run's tracker when the run ends, even if it fails."""
    try:
        yield run
    finally:
        run.close()


def _run(job: Job, send: Callable[[Event], None], start: Start) -> Run:
    config = job.config
    start.take(config["seed"], config["threads"])
    start.refuse_changed(job.parts, config.get("content", {}))
    return Run.create(
        job.directory,
        settings=config["settings"],
        arm=config["arm"],
        condition=config["condition"],
        seed=config["seed"],
        threads=config["threads"],
        needs=job.needs,
        report=lambda done, total, unit: send(Progress(job.key, done, total, unit)),
        track=job.track,
    )


def _checked(metrics: Any, job: Job) -> dict[str, float]:
    if not isinstance(metrics, dict):
        raise MetricsError(f"{job.task} returned {type(metrics).__name__}, not a dictionary of metrics")
    returned = {str(name): _number(str(name), value) for name, value in metrics.items()}
    numbers = {name: value if abs(value) <= LARGEST else math.nan for name, value in returned.items()}
    bad = [f"{n} = {returned[n]}" for n, v in numbers.items() if not math.isfinite(v) and n not in job.optional]
    if bad:
        raise MetricsError(f"the run's final metrics are not finite or above {LARGEST:g}: {', '.join(bad)}")
    for name, (least, most) in job.bounds.items():
        value, rounding = numbers.get(name, math.nan), RELATIVE_NOISE * (most - least)
        if value < least - rounding or value > most + rounding:
            raise MetricsError(
                f"the metric {name} is {value:g}, but the plan's bounds of it are [{least:g}, {most:g}]: is it in "
                "another unit?"
            )
    missing = [name for name in job.required if name not in numbers]
    if missing:
        raise MetricsError(
            f"{job.task} returned {', '.join(numbers) or 'nothing'} but not {', '.join(missing)}, which are among the "
            "plan's metrics: return them, or declare them optional"
        )
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _number(name: str, value: Any) -> float:
    """A metric's value as a number; a text is refused, even if it spells a number."""
    if not isinstance(value, str | bytes):
        try:
            return float(value)
        except OverflowError:  # an integer with hundreds of digits
            return math.inf if value > 0 else -math.inf
        except (TypeError, ValueError, RuntimeError):  # a tensor of several numbers raises RuntimeError
            pass
    raise MetricsError(f"the metric {name} is {_shown(value)}, not a number")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"a {type(value).__name__}" + (f", {text}" if len(text) <= 40 else "")


def _failed(job: Job, record: dict[str, Any], error: BaseException, unusable: bool = False) -> Finished:
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, DivergedError):
        record = record | {"epoch": error.epoch}
    text = "".join(traceback.format_exception(error))
    write_status(job.directory, record | {"state": "failed", "error": message, "traceback": text})
    return Finished(job.key, error=message, unusable=unusable)


def _redirect(directory: Path) -> None:
    """Redirect output to the run's own log, which also gets the stack of a crash in native code."""
    make_directory(directory)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # an earlier run may have put a stream of its own there, and closed it
            stream.flush()
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    path = directory / "output.log"
    try:
        with path.open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    except OSError as error:
        raise cannot_write(path, error) from error
    faulthandler.enable(file=2)


def _end_with_parent() -> None:
    """Kill this process group when the parent ends for any reason, so that no training continues unseen."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.killpg(os.getpgrp(), signal.SIGKILL)
