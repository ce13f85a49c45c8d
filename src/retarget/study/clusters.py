"""Open an executor by name; what it needs is checked before anything starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from retarget.errors import UserError
from retarget.settings import resolve_settings
from retarget.study.executor import Executor, LocalExecutor

Name = Literal["local", "ray", "slurm"]


def open_executor(
    name: Name, options: Mapping[str, Any], *, out: str | Path, threads: int = 1, jobs: int | None = None
) -> Executor:
    """An executor for :func:`retarget.study.run_study`; it starts nothing until runs are submitted.

    Args:
        name: local processes, a Ray cluster, or Slurm's queue.
        options: settings of the cluster, as ``--cluster`` takes them.
        out: the study's directory; for a cluster, under a path that all its machines see.
        threads: threads per run, as in the study's plan.
        jobs: how many runs at a time: 1 by default on this machine, all that fit on a cluster.

    Raises:
        UserError: an option is unknown or has a wrong value, or there is no such cluster.
        MissingExtraError: the cluster's package is not installed.
    """
    if name == "local":
        if options:
            raise UserError(f"--cluster {' '.join(options)} is for --executor ray or slurm")
        return LocalExecutor(jobs or 1, threads)
    if name == "ray":
        from retarget.study.ray import RayExecutor, RayOptions

        return RayExecutor(resolve_settings(RayOptions, dict(options), "the settings of --cluster"), threads, jobs)
    from retarget.study.slurm import SlurmExecutor

    return SlurmExecutor(Path(out).resolve(), options, threads, jobs)
