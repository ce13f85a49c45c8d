"""Do runs on a Ray cluster: an existing one, or one started on this machine for the command."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from pydantic import Field

from retarget.cluster import address_of, join
from retarget.extras import require
from retarget.settings import Strict
from retarget.study.executor import LOOK_EVERY
from retarget.study.machines import Command
from retarget.study.worker import Event, Finished, Job, Remark


class RayOptions(Strict):
    """Settings of ``--cluster`` for a Ray cluster."""

    address: str = Field(
        default="", description="the cluster's; by default RAY_ADDRESS, a cluster on this machine, or a new one"
    )
    cpus: float | None = Field(default=None, gt=0, description="CPUs reserved per run; by default the study's threads")
    gpus: float = Field(default=0, ge=0, description="GPUs reserved per run; it sees no others")
    memory_gib: float | None = Field(default=None, gt=0, description="memory reserved per run, GiB")
    resources: dict[str, float] = Field(default_factory=dict, description="other resources of Ray per run, by name")
    retries: int = Field(default=3, ge=0, description="how often a run is tried again if its machine is lost")


class RayExecutor:
    """Does each run in a Ray task, in a worker process on the task's machine.

    A run that fails is reported, as on one machine; a run whose machine or Ray process is lost is tried again and
    continues from its checkpoint. When this process ends, Ray ends its tasks.

    Args:
        options: the cluster, and the resources reserved per run.
        threads: number of threads of each worker.
        jobs: how many runs at a time; by default as many as the cluster has room for.

    Raises:
        MissingExtraError: ray is not installed.
        UserError: the address is one of Ray Client.
    """

    def __init__(self, options: RayOptions | None = None, threads: int = 1, jobs: int | None = None) -> None:
        self.options, self.threads, self.jobs = options or RayOptions(), threads, jobs
        self.address = address_of(self.options.address)
        self._ray: Any = require("ray", "cluster")
        self._queue: deque[tuple[Job, int]] = deque()
        self._running: dict[Any, tuple[Job, int]] = {}
        self._task: Callable[[Job], Any] | None = None
        self._ours = False

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.append((job, 0))

    def events(self) -> Iterator[Event]:
        """Yield the events of all jobs until none is left.

        Raises:
            UserError: no cluster answers.
        """
        if self._queue and self._task is None:
            yield from self._connect()
        while True:
            self._start()
            if not self._running:
                return
            ready, _ = self._ray.wait(list(self._running), timeout=LOOK_EVERY, fetch_local=False)
            for stream in ready:
                yield self._next(stream)

    def close(self) -> None:
        """Stop the running jobs, and the cluster if it was started for this command."""
        self._queue.clear()
        for stream in self._running:
            with suppress(self._ray.exceptions.RayError):  # the cluster itself may have been lost
                self._ray.cancel(stream, force=True)
        self._running.clear()
        if self._ours:
            self._ray.shutdown()
        self._task, self._ours = None, False

    def _start(self) -> None:
        while self._task and self._queue and (self.jobs is None or len(self._running) < self.jobs):
            job, lost = self._queue.popleft()
            self._running[self._task(job)] = (job, lost)

    def _connect(self) -> Iterator[Event]:
        ray, options = self._ray, self.options
        if not ray.is_initialized():
            join(self.address, remedy="give --cluster address=local for one on this machine only")
            self._ours = True
        wanted = {"CPU": options.cpus or self.threads, "GPU": options.gpus, **options.resources}
        memory = None if options.memory_gib is None else int(options.memory_gib * 2**30)
        task = ray.remote(
            num_cpus=wanted["CPU"], num_gpus=wanted["GPU"], memory=memory, resources=options.resources or None,
            max_retries=0, num_returns="streaming",
        )(_do)  # fmt: skip
        self._task = partial(task.remote, Command.here(self.threads, environment=True), options.gpus)
        lacking = _lacking(wanted, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        if lacking:
            yield Remark(f"no machine of the Ray cluster has {lacking} now: the runs wait until one joins")

    def _next(self, stream: Any) -> Event:
        """The next event of a run; if its machine was lost, the run is queued again or given up."""
        job, lost = self._running[stream]
        errors = self._ray.exceptions
        try:
            event = self._ray.get(next(stream))
        except errors.RayTaskError as error:  # an error of the code around the run: another machine would not do better
            event = Finished(job.key, error=f"{type(error.cause).__name__}: {error.cause}")
        except errors.RayError as error:
            reason = f"{type(error).__name__}: {_first_line(error)}"
            if lost < self.options.retries:
                del self._running[stream]
                self._queue.appendleft((job, lost + 1))
                return Remark(f"{job.key} lost its machine and is tried again ({reason})")
            event = Finished(job.key, error=f"its machine was lost {lost + 1} times, last by {reason}")
        if isinstance(event, Finished):
            del self._running[stream]
        return event


def _do(command: Command, gpus: float, job: Job) -> Iterator[Event]:
    if not gpus:  # Ray names a run's GPUs only if it has some: without this it would see those of other runs
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    yield from command.do(job)


def _lacking(wanted: dict[str, float], nodes: list[dict[str, float]]) -> str:
    """The resources that no single machine has, in words; empty if one machine has all of them.

    >>> _lacking({"CPU": 1, "GPU": 2}, [{"CPU": 8.0}, {"CPU": 8.0, "GPU": 1.0}]), _lacking({"CPU": 1}, [{"CPU": 2.0}])
    ('1 CPU and 2 GPU', '')
    """
    if any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
        return ""
    return " and ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
