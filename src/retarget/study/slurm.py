"""Do runs as jobs of Slurm, through submitit, whose ``local`` and ``debug`` clusters do the same without Slurm."""

import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from retarget.errors import UserError
from retarget.extras import require
from retarget.files import read_json, write_json
from retarget.study.executor import LOOK_EVERY
from retarget.study.machines import Command
from retarget.study.worker import Event, Finished, Job, Progress, Remark, Started

Cluster = Literal["slurm", "local", "debug"]
LOST = ("NODE_FAIL", "BOOT_FAIL")
"""States in which a job was lost without a result of its run."""
RETRIES = 3
"""How often a run is tried again when its job is lost; some lost jobs are requeued by Slurm itself first."""
DEFAULTS = {"name": "retarget", "timeout_min": 240}
PROGRESS = ".progress.json"
END_WITHIN = 900.0
"""Seconds that a job waits, when a run has failed after the queue announced the job's end, until it is ended."""


class Task:
    """The work of a job, also after it was preempted or ran out of time and was queued again."""

    def __init__(self, command: Command, job: Job) -> None:
        self.command, self.job = command, job

    def __call__(self) -> Finished:
        """Do the run; its progress is written to a file in its directory."""
        with _announced() as announced:
            for event in self.command.do(self.job):
                if isinstance(event, Progress):
                    write_json(self.job.directory / PROGRESS, [event.done, event.total, event.unit])
                elif isinstance(event, Finished):
                    if event.error and announced.is_set():  # no failure of the run: it is done again if this job ends
                        time.sleep(END_WITHIN)
                    return event
            raise AssertionError("a worker's last event is that it finished")

    def checkpoint(self) -> Any:
        """What to do when queued again: the same, since a run continues from its checkpoint."""
        return require("submitit.helpers", "cluster").DelayedSubmission(self)


class SlurmExecutor:
    """Does each run in a job of the queue, in a worker process on the job's machine.

    A job that is preempted or runs out of time is queued again by submitit and continues from the run's checkpoint; one
    whose machine is lost is submitted again. If a job ends for another reason, its run fails with the job's state.

    Args:
        folder: the study's directory, which all machines see; submitit keeps its own files in ``.slurm`` there.
        options: ``cluster`` (slurm, local, debug), and parameters of submitit by its own names:
            ``slurm_partition``, ``timeout_min``, ``mem_gb``, ``gpus_per_node``, ``slurm_account``, ...
        threads: number of threads of each worker, and of CPUs of a job unless ``cpus_per_task`` sets another.
        jobs: most jobs in the queue at a time; by default all with Slurm, and one with ``local`` and ``debug``.

    Raises:
        MissingExtraError: submitit is not installed.
        UserError: there is no Slurm here, or submitit does not know a parameter.
    """

    def __init__(
        self, folder: Path, options: Mapping[str, Any] | None = None, threads: int = 1, jobs: int | None = None
    ) -> None:
        given = dict(options or {})
        self.cluster: Cluster = given.pop("cluster", "slurm")
        if self.cluster not in ("slurm", "local", "debug"):
            raise UserError(f"--cluster cluster={self.cluster} is none of slurm, local, debug")
        for name in ("nodes", "tasks_per_node", "slurm_nodes", "slurm_ntasks_per_node"):
            if given.get(name, 1) != 1:
                raise UserError(f"--cluster {name}={given[name]}: a run is one task on one machine")
        minutes = given.get("timeout_min", DEFAULTS["timeout_min"])
        if not isinstance(minutes, int) or minutes < 1:
            raise UserError(f"--cluster timeout_min={minutes}: a job needs a whole number of minutes, at least 1")
        self.threads, self.jobs = threads, jobs or (None if self.cluster == "slurm" else 1)
        self.parameters = {**DEFAULTS, "cpus_per_task": threads, **given}
        self._folder = folder / ".slurm"
        self._submitit: Any = require("submitit", "cluster")
        with tempfile.TemporaryDirectory() as nowhere:  # wrong parameters are refused before anything is written
            self._queue_at(Path(nowhere))
        self._queue: deque[tuple[Job, int]] = deque()
        self._running: dict[str, _Queued] = {}
        self._executor: Any = None

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append((job, 0))

    def events(self) -> Iterator[Event]:
        """Yield the events of all jobs until none is left; the queue is polled every two seconds."""
        if self._queue and self._executor is None:
            self._executor = self._queue_at(self._folder)
        while True:
            while self._queue and (self.jobs is None or len(self._running) < self.jobs):
                self._hand_in(*self._queue.popleft())
            if not self._running:
                return
            found = [event for queued in list(self._running.values()) for event in self._look(queued)]
            yield from found
            if not any(isinstance(event, Finished) for event in found):
                time.sleep(LOOK_EVERY)

    def close(self) -> None:
        """Cancel the jobs that are in the queue or running."""
        self._queue.clear()
        for queued in self._running.values():
            queued.handle.cancel(check=False)
        if self.cluster == "local":
            for queued in self._running.values():
                queued.handle.wait()
        self._running.clear()

    def _queue_at(self, folder: Path) -> Any:
        try:
            executor = self._submitit.AutoExecutor(folder=folder, cluster=self.cluster)
            executor.update_parameters(**self.parameters)
        except (RuntimeError, NameError, ValueError, AssertionError) as error:
            what = str(error).partition("\n")[0]
            raise UserError(f"--executor slurm: {what} (--cluster cluster=local is a queue on this machine)") from error
        return executor

    def _hand_in(self, job: Job, lost: int) -> None:
        (job.directory / PROGRESS).unlink(missing_ok=True)
        try:
            with _interrupts_heard():
                handle = self._executor.submit(Task(Command.here(self.threads), job))
        except self._submitit.core.utils.FailedJobError as error:
            raise UserError(f"the queue refused a job: {error}") from error
        self._running[job.key] = _Queued(job, handle, lost)

    def _look(self, queued: "_Queued") -> Iterator[Event]:
        """Yield the new events of a job."""
        yield from queued.progress()
        if not queued.handle.done():
            return
        del self._running[queued.job.key]
        (queued.job.directory / PROGRESS).unlink(missing_ok=True)
        error = queued.handle.exception()
        if error is None:
            yield queued.handle.result()
            return
        state = str(queued.handle.state).partition(" ")[0]
        if state in LOST and queued.lost < RETRIES:
            self._queue.appendleft((queued.job, queued.lost + 1))
            yield Remark(f"{queued.job.key} lost its machine ({state}) and is submitted again")
            return
        where = f"job {queued.handle.job_id} ended without a result (state {state})"
        yield Finished(queued.job.key, error=f"{where}; see {queued.handle.paths.stderr}")


@contextmanager
def _announced() -> Iterator[threading.Event]:
    """An event that SIGTERM sets. Slurm sends it to all processes of a job whose machine it will take back.

    submitit ignores it, but the processes of the run end.
    """
    event, before = threading.Event(), signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def heard(number: int, frame: Any) -> None:
        event.set()
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, heard)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _interrupts_heard() -> Iterator[None]:
    """Let a child receive Ctrl-C even if this process ignores it, as in the background of a shell script.

    submitit cancels local jobs with it, and a process inherits which signals are ignored.
    """
    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread()
    if deaf:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Queued:
    """A job in the queue."""

    def __init__(self, job: Job, handle: Any, lost: int) -> None:
        self.job, self.handle, self.lost = job, handle, lost
        self._begun = False
        self._told: list[Any] | None = None

    def progress(self) -> Iterator[Event]:
        """Events of its start and its progress, if they are new."""
        path = self.job.directory / PROGRESS
        if not path.exists():
            return
        if not self._begun:
            self._begun = True
            yield Started(self.job.key)
        told = read_json(path)
        if told != self._told:
            self._told = told
            yield Progress(self.job.key, *told)
