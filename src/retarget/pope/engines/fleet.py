"""Make pools of engines in processes or Ray actors, and assign GPUs to each."""

import os
from typing import Any

from retarget.errors import UserError
from retarget.pope.engines.pool import EnginePool
from retarget.pope.engines.processes import ProcessWorker


def processes(spec: str, count: int, batch: int, options: dict[str, Any]) -> EnginePool:
    """Engines in processes of this machine.

    Raises:
        UserError: they need more GPUs than there are.
    """
    gpus = devices(count, gpus_of_one(options), visible_gpus()) if options.get("device") != "cpu" else [None] * count
    return EnginePool([ProcessWorker(spec, options, gpus=one) for one in gpus], batch)


def actors(spec: str, count: int, batch: int, options: dict[str, Any]) -> EnginePool:
    """Engines in actors of a Ray cluster, each with its own GPUs if the cluster has any.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    from retarget.pope.engines.actors import ActorWorker, cluster

    gpus = gpus_of_one(options) if cluster(count) and options.get("device") != "cpu" else 0
    return EnginePool([ActorWorker(spec, options, gpus=gpus) for _ in range(count)], batch)


def gpus_of_one(options: dict[str, Any]) -> int:
    """Number of GPUs of one engine; vLLM can divide a model over several.

    >>> gpus_of_one({"tensor_parallel_size": 2, "max_model_len": 8}), gpus_of_one({})
    (2, 1)
    """
    return int(options.get("tensor_parallel_size", 1)) * int(options.get("pipeline_parallel_size", 1))


def visible_gpus() -> list[str]:
    """The GPUs of this machine that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    named = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    found = torch.cuda.device_count()  # asks the driver without claiming a GPU
    return named[:found] if named else [str(at) for at in range(found)]


def devices(count: int, each: int, gpus: list[str]) -> list[list[str] | None]:
    """The GPUs of each engine; None for every engine if the machine has no GPU.

    Raises:
        UserError: there are GPUs, but too few.

    >>> devices(2, 2, ["0", "1", "2", "3"]), devices(2, 1, [])
    ([['0', '1'], ['2', '3']], [None, None])
    """
    if not gpus:
        return [None] * count
    if count * each > len(gpus):
        raise UserError(
            f"{count} engines with {each} GPUs each need {count * each} GPUs, but {len(gpus)} are visible: lower "
            "--engines, or use the CPU (--engine-options device=cpu)"
        )
    return [gpus[at * each : (at + 1) * each] for at in range(count)]
