"""Engines: transformers in this process (local.py), vLLM (vllm.py), any OpenAI-compatible server (server.py).

Several engines can share one queue: processes and Ray actors (fleet.py, pool.py), servers (servers.py).
"""

from inspect import signature
from typing import Any

from retarget.errors import UserError
from retarget.pope.engines.keys import redact
from retarget.pope.identity import check_folder
from retarget.pope.rollouts import Engine


def is_server(spec: str) -> bool:
    """Whether a specification is the address of a server."""
    return spec.startswith(("http://", "https://"))


def open_engine(spec: str, *, engines: int | str = 1, batch: int = 1, **options: Any) -> Engine:
    """Open an engine by name.

    Args:
        spec: ``http://HOST:PORT/v1`` or ``https://...`` for a server (separate the addresses of several servers of the
            same model by commas); ``vllm:MODEL``; or a model's name or path, for transformers in this process.
        engines: number of engines that share the work: 1 runs in this process, N run on this machine, each in a process
            of its own with its own GPUs, and ``ray:N`` run as actors of a Ray cluster.
        batch: if there are several engines, how many prompts one receives at a time; vLLM needs many to be fast.
        options: options of the engine's class; a server needs ``model``.

    Raises:
        UserError: there is no model at a path, a server is given without ``model``, or this machine does not have
            enough GPUs for the engines.
    """
    where, count = _engines(engines)
    if is_server(spec):
        if (where, count) != ("", 1):
            raise UserError(
                f"engines={engines} does not apply to a server: give the addresses of several servers instead"
            )
        return _servers(spec, options)
    if (where, count) != ("", 1):
        from retarget.pope.engines.fleet import actors, processes

        return (actors if where else processes)(spec, count, batch, options)
    if spec.startswith("vllm:"):
        from retarget.pope.engines.vllm import VLLMEngine

        return VLLMEngine(spec.removeprefix("vllm:"), **options)
    check_folder(spec)
    from retarget.pope.engines.local import TransformersEngine

    try:
        signature(TransformersEngine.load).bind(spec, **options)
    except TypeError as error:
        raise UserError(f"{spec}: wrong options of the engine: {error}") from error
    return TransformersEngine.load(spec, **options)


def _engines(engines: int | str) -> tuple[str, int]:
    """Where to run engines (``ray``, or an empty string for this machine), and how many."""
    where, _, count = str(engines).rpartition(":")
    if where not in ("", "ray") or not count.isdecimal() or int(count) < 1:
        raise UserError(f"engines must be a number of at least 1, or ray:NUMBER, not {engines}")
    return where, int(count)


def _servers(spec: str, options: dict[str, Any]) -> Engine:
    from retarget.pope.engines.server import ServerEngine
    from retarget.pope.engines.servers import Servers

    addresses = spec.split(",")
    if wrong := [one for one in addresses if not is_server(one)]:
        raise UserError(f"{redact(wrong[0])!r} is not the address of a server; separate addresses by commas")
    if "model" not in options:
        raise UserError(
            f"server {redact(spec)}: give the name of the model that it serves (--served NAME, or model= in Python)"
        )
    servers = [ServerEngine(one, **options) for one in addresses]
    return servers[0] if len(servers) == 1 else Servers(servers)
