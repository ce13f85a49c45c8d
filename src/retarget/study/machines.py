"""Do runs for a command on another machine: in a worker process, as this machine would.

So a run is the same everywhere: it has its own process group, log, lock and status, and starts in the same way.
"""

import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import retarget
from retarget.study.environment import environment
from retarget.study.executor import LocalExecutor, hash_seed
from retarget.study.worker import Event, Finished, Job, Progress

TELL_EVERY = 2.0
"""Seconds between two messages about a run's progress from another machine."""
_OF_A_MACHINE = ("PATH", "HOME", "PREFIX", "PROXY", "VISIBLE_DEVICES")
"""Ends of the names of variables that say where things are on a machine."""
_OF_A_CLUSTER = ("RAY_", "SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_", "LD_", "DYLD_", "SSH_", "XDG_", "DBUS_")
"""Beginnings of the names of variables that a cluster, a loader or a session sets."""
_OF_A_SESSION = frozenset({
    "USER", "LOGNAME", "SHELL", "SHLVL", "PWD", "OLDPWD", "_", "HOSTNAME", "HOST", "MAIL", "TERM", "DISPLAY", "TMPDIR",
    "TEMP", "TMP", "VIRTUAL_ENV",
})  # fmt: skip
_SECRET = re.compile(r"TOKEN|SECRET|PASS|KEY|CREDENTIAL|AUTH|COOKIE|(^|_)(PAT|PWD)$")
_LOGIN = re.compile(r"://[^/\s]*@")
"""A password or a token in an address."""


@dataclass(frozen=True)
class Command:
    """The command that sends runs to other machines, as data that is sent along.

    Attributes:
        folder: its working directory, to which paths in settings may be relative; every machine must have it.
        paths: its module search path; searched after the machine's own.
        version: version of this package, which must be the same everywhere.
        threads: number of threads of a worker.
        variables: environment variables that its runs get, whatever the machine's own values are.
    """

    folder: str
    paths: tuple[str, ...]
    version: str
    threads: int
    variables: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @classmethod
    def here(cls, threads: int, *, environment: bool = False) -> Self:
        """This process.

        Args:
            threads: number of threads of a worker.
            environment: whether to take along the environment, as far as :func:`carried` says, for a cluster that does
                not do that itself; the seed of Python's hashes is always taken along.
        """
        paths = tuple(str(Path(path).absolute()) for path in sys.path)
        variables = {**(carried(os.environ) if environment else {}), "PYTHONHASHSEED": hash_seed()}
        return cls(str(Path.cwd()), paths, retarget.__version__, threads, tuple(sorted(variables.items())))

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
        """Take the command's working directory, module path and variables; returns why that is impossible, or None."""
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
        os.environ.update(self.variables)
        return None


def carried(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a command takes along to other machines.

    Left out are those that belong to a machine or a cluster (``..._HOME``, ``...PATH``, ``RAY_...``), and secrets:
    names with TOKEN, SECRET, PASS, KEY, CREDENTIAL, AUTH or COOKIE, and addresses with a login.

    >>> carried({"MY_SCALE": "2", "HF_HOME": "/disk/hf", "CUDA_VISIBLE_DEVICES": "0", "HF_TOKEN": "hf_"})
    {'MY_SCALE': '2'}
    """
    return {
        name: value
        for name, value in environment.items()
        if not name.upper().endswith(_OF_A_MACHINE)
        and not name.upper().startswith(_OF_A_CLUSTER)
        and name.upper() not in _OF_A_SESSION
        and not _SECRET.search(name.upper())
        and not _LOGIN.search(value)
    }


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
