"""Do runs for a command on another machine: in a worker process, as this machine would.

So a run is the same everywhere: it has its own process group, log, lock and status, and starts in the same way.
"""

import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import retarget
from retarget.study.environment import environment
from retarget.study.executor import LocalExecutor
from retarget.study.worker import Event, Finished, Job, Progress

TELL_EVERY = 2.0
"""Seconds between two messages about a run's progress from another machine."""


@dataclass(frozen=True)
class Command:
    """The command that sends runs to other machines, as data that is sent along.

    Attributes:
        folder: its working directory, to which paths in settings may be relative; every machine must have it.
        paths: its module search path; searched after the machine's own.
        version: version of this package, which must be the same everywhere.
        threads: number of threads of a worker.
    """

    folder: str
    paths: tuple[str, ...]
    version: str
    threads: int

    @classmethod
    def here(cls, threads: int) -> Self:
        """This process."""
        paths = tuple(str(Path(path).absolute()) for path in sys.path)
        return cls(str(Path.cwd()), paths, retarget.__version__, threads)

    def do(self, job: Job) -> Iterator[Event]:
        """Do one run on this machine; the last event says how it ended.

        The worker and all that it started end with this process, so that nothing is left when a machine is lost.
        """
        problem = self._enter()
        if problem:
            yield Finished(job.key, error=problem)
            return
        here: dict[str, Any] = job.config | environment()
        executor = LocalExecutor(1, self.threads)
        try:
            executor.submit(replace(job, config=here))
            yield from _sparse(executor.events())
        finally:
            executor.close()

    def _enter(self) -> str | None:
        """Take the command's working directory and module path; returns why that is impossible here, or None."""
        where = f"on {platform.node()}"
        if retarget.__version__ != self.version:
            return (
                f"{where} retarget is {retarget.__version__}, and the command's is {self.version}: install the same "
                "version on both"
            )
        try:
            os.chdir(self.folder)
        except OSError as error:
            return (
                f"{where} there is no {self.folder} ({error.strerror}): run the command in a folder that all machines "
                "of the cluster share"
            )
        sys.path += [path for path in self.paths if path not in sys.path]
        return None


def _sparse(events: Iterator[Event]) -> Iterator[Event]:
    """Yield all events, but drop progress that follows too soon after the last."""
    told = float("-inf")
    for event in events:
        if isinstance(event, Progress):
            now = time.monotonic()
            if now - told < TELL_EVERY and event.done < event.total:
                continue
            told = now
        yield event
