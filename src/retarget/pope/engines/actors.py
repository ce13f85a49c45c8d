"""An engine in an actor of a Ray cluster (``pip install 'retarget[cluster]'``): the side of its starter."""

import contextlib
import logging
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from threading import Event
from typing import Any

from retarget.cluster import address_of, join
from retarget.errors import UserError
from retarget.extras import require
from retarget.pope.engines.pool import LOOK_EVERY, OPENER, Answer, Died, Opened
from retarget.pope.engines.worker import Held, received
from retarget.pope.prompts import Prompt
from retarget.pope.rollouts import Sampling

_LOG = logging.getLogger(__name__)


def cluster(engines: int) -> bool:
    """Join the Ray cluster of this process or of ``RAY_ADDRESS``, or start a local one; return whether it has GPUs.

    If the cluster is too small, some engines wait while the others work. That is only a warning, since clusters grow.

    Raises:
        MissingExtraError: Ray is not installed.
        UserError: the cluster cannot be used.
    """
    ray = join(address_of(), remedy="unset RAY_ADDRESS for one on this machine")
    has = ray.cluster_resources()
    if has.get("CPU", 0) < engines:
        _LOG.warning("the cluster has %g CPUs for %d engines: some of them will wait", has.get("CPU", 0), engines)
    return has.get("GPU", 0) > 0


class Placed(Held):
    """An engine in an actor, opened in the command's working directory, to which paths may be relative.

    Args:
        folder: the directory.
        needed: whether the model's path is relative to it; otherwise a machine may lack it.
        opener, spec, options: as in :class:`.worker.Held`.
    """

    def __init__(self, folder: str, needed: bool, opener: str, spec: str, options: dict[str, Any]) -> None:
        super().__init__(opener, spec, options)
        self.folder, self.needed = folder, needed

    def open(self) -> dict[str, Any]:
        """See :meth:`.worker.Held.open`."""
        try:
            os.chdir(self.folder)
        except OSError as error:
            if self.needed:
                return {
                    "failed": f"{self.spec}: on {platform.node()} there is no {self.folder} ({error.strerror}): run "
                    "the command in a folder that all machines of the cluster share, or give an absolute path"
                }
        return super().open()


class ActorWorker:
    """An actor with its own CPU and GPUs; see :class:`.pool.Worker`. Ray ends it when this process ends.

    Args:
        spec, options, opener: as in :class:`.processes.ProcessWorker`.
        gpus: number of GPUs.
    """

    def __init__(self, spec: str, options: dict[str, Any], *, opener: str = OPENER, gpus: int = 0) -> None:
        self._ray = require("ray", "cluster")
        model = Path(spec.removeprefix("vllm:"))
        needed = model.is_dir() and not model.is_absolute()
        self._what, self._gpus = (str(Path.cwd()), needed, opener, spec, options), gpus
        self._actor: Any = None
        self._opening: Any = None

    def start(self, over: Event) -> Opened | None:
        """See :meth:`.pool.Worker.start`; an actor may have to wait for a free CPU or GPU."""
        if self._opening is None:
            self.end()
            made = self._ray.remote(num_cpus=1, num_gpus=self._gpus, max_restarts=0)(Placed)
            self._actor = made.remote(*self._what)
            self._opening = self._actor.open.remote()
        while not self._ray.wait([self._opening], timeout=LOOK_EVERY)[0]:
            if over.is_set():
                return None
        opening, self._opening = self._opening, None
        found = self._told(opening)
        if "failed" in found:
            raise UserError(found["failed"])
        return Opened(found["name"], found["identity"])

    def ask(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[Answer]:
        """See :meth:`.pool.Worker.ask`."""
        found = self._told(self._actor.sample.remote(list(prompts), n, params.model_dump(mode="json")))
        if "failed" in found:
            raise UserError(found["failed"])
        return [received(one) for one in found["answers"]]

    def kill(self) -> None:
        """End the actor, whatever it is doing. A thread that waits for its answer then raises ``Died``."""
        if self._actor is not None:
            with contextlib.suppress(self._ray.exceptions.RaySystemError):  # the cluster has already ended
                self._ray.kill(self._actor)

    def end(self) -> None:
        """End the actor while no thread waits for its answer."""
        if self._ray.is_initialized():
            self.kill()
        self._actor = self._opening = None

    def _told(self, answer: Any) -> dict[str, Any]:
        try:
            return self._ray.get(answer)
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError) as error:
            # An answer above 100 kB stays on the actor's machine until it is fetched, and may be lost with that.
            raise Died(f"a Ray actor ended ({type(error).__name__}: {_reason(error)})") from error


def _reason(error: Exception) -> str:
    """What Ray says of an end, in one line: its error's text has a heading, fields and, of a constructor, a trace."""
    said = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    return shorten(said[-1] if getattr(error, "actor_init_failed", False) else " ".join(said[1:2] or said), 300)
