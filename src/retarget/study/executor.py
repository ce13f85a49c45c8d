"""Where runs are done: an executor takes jobs and yields events; here on this machine (see ``ray``, ``slurm``)."""

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Protocol

from retarget.errors import UserError
from retarget.study.environment import visible_gpus
from retarget.study.worker import PARENTS, Event, Finished, Job, worker_main

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
LEAVE_WITHIN = 10.0
"""Seconds that an idle worker has to exit by itself, so that its libraries release their resources."""
LOOK_EVERY = 2.0
"""Seconds of silence after which a worker is checked: when it dies, its children may keep the pipe open."""


def hash_seed() -> str:
    """The seed of Python's hashes in all workers: the user's, or 0, so that runs depend on nothing but their seed."""
    given = os.environ.get("PYTHONHASHSEED", "")
    return given if given.isdecimal() else "0"


class Executor(Protocol):
    """Does jobs somewhere. The directories that a job names must be visible where it runs."""

    def submit(self, job: Job) -> None:
        """Queue a job; jobs start in the order of submission."""
        ...

    def events(self) -> Iterator[Event]:
        """Yield events until every submitted job is finished; more jobs may be submitted in between."""
        ...

    def close(self) -> None:
        """Stop at once: kill the running jobs, which can be resumed."""
        ...


class _Worker:
    def __init__(self, place: int) -> None:
        self.place = place
        context = multiprocessing.get_context("spawn")
        self.connection, self._theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=worker_main, args=(self._theirs,))
        self.job: Job | None = None

    def start(self, variables: dict[str, str]) -> None:
        with _environment(variables), _interrupts_held():
            self.process.start()
        self._theirs.close()  # so that the pipe closes when the worker dies

    def give(self, job: Job) -> None:
        self.job = job
        with suppress(BrokenPipeError):  # it died while idle: the next check reports the job as failed
            self.connection.send(job)

    def leave(self) -> None:
        """Tell an idle worker to exit. It is not reaped, so that its process group keeps its number until killed."""
        with suppress(OSError):
            self.connection.send(None)

    def kill(self) -> None:
        """Kill the worker with everything that its task started."""
        if self.process.pid is not None:  # None if an interrupt came before the start
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join()
        self.connection.close()

    def end(self) -> str:
        """How the process ended, in words."""
        self.process.join(1)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        return f"{name}, as when memory ran out" if name == "SIGKILL" else name


class LocalExecutor:
    """Spawned worker processes on this machine, reused for many jobs until one fails.

    Args:
        jobs: how many runs to do at a time, ≥ 1. It never changes a result, since the threads per run are fixed. Each
            sees this machine's GPUs in an order of its own, so that several runs begin with different ones.
        threads: intra-operation threads per worker.
    """

    def __init__(self, jobs: int = 1, threads: int = 1) -> None:
        if jobs < 1:
            raise UserError(f"--jobs must be at least 1, not {jobs}")
        self.jobs, self.threads = jobs, threads
        self._queue: deque[Job] = deque()
        self._workers: list[_Worker] = []

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append(job)

    def events(self) -> Iterator[Event]:
        """Yield the events of all jobs until none is left. A worker that dies fails only its job and is replaced."""
        while True:
            self._assign()
            busy = {worker.connection: worker for worker in self._workers if worker.job}
            if not busy:
                return
            ready = wait(list(busy), timeout=LOOK_EVERY)
            for connection, worker in busy.items():
                if connection in ready or worker.process.exitcode is not None:
                    yield from self._receive(connection, worker)

    def close(self) -> None:
        """Kill all workers (a run may be killed at any time), after giving idle ones time to exit."""
        self._queue.clear()
        idle = [worker for worker in self._workers if not worker.job]
        for worker in idle:
            worker.leave()
        until = time.monotonic() + LEAVE_WITHIN
        for worker in idle:
            wait([worker.process.sentinel], timeout=max(0.0, until - time.monotonic()))
        while self._workers:
            self._workers.pop().kill()

    def _assign(self) -> None:
        for worker in [one for one in self._workers if not one.job and one.process.exitcode is not None]:
            self._workers.remove(worker)  # it died while idle
            worker.kill()
        while self._queue:
            idle = next((worker for worker in self._workers if not worker.job), None)
            if idle is None and len(self._workers) < self.jobs:
                idle = _Worker(min(set(range(self.jobs)) - {worker.place for worker in self._workers}))
                self._workers.append(idle)  # listed before it runs, so that an interrupt in between cannot lose it
                idle.start(self._variables(idle.place))
            if idle is None:
                return
            idle.give(self._queue.popleft())

    def _retire(self, worker: _Worker) -> None:
        """End the worker of a run that failed: an error on a GPU, say, would fail all later runs in its process."""
        worker.leave()
        wait([worker.process.sentinel], timeout=LEAVE_WITHIN)
        self._workers.remove(worker)
        worker.kill()

    def _variables(self, place: int) -> dict[str, str]:
        """The environment variables that libraries read when they load, for the worker at this place of ``jobs``."""
        variables: dict[str, str] = {name: str(self.threads) for name in THREAD_VARIABLES}
        variables["PYTHONHASHSEED"] = hash_seed()  # else the order of a set of texts differs between workers
        gpus = visible_gpus() if self.jobs > 1 else []
        if len(gpus) > 1:  # all of them, since a run may use several, but with another one first
            first = place * len(gpus) // self.jobs
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first:] + gpus[:first])
        return variables

    def _receive(self, connection: Connection, worker: _Worker) -> Iterator[Event]:
        try:
            event = connection.recv() if connection.poll() else None
        except (EOFError, OSError):
            event = None
        if event is not None and (worker.job is None or event.key != worker.job.key):
            return  # of a process that a run has left behind
        if event is not None:
            if isinstance(event, Finished):
                worker.job = None
            yield event
            if isinstance(event, Finished) and event.error:
                self._retire(worker)
        elif worker.job:
            job, how = worker.job, worker.end()
            self._workers.remove(worker)
            worker.kill()
            log = job.directory / "output.log"
            see = f"; see {log}" if log.exists() else " before the run began; its error is on stderr"
            yield Finished(job.key, error=f"the worker process died ({how}){see}")


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a child that starts now."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block Ctrl-C while a child starts: the child inherits the mask until it ignores the signal itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
