"""Engines: this process (local.py), any OpenAI-compatible server (server.py), vLLM (vllm.py).

Many of them behind one queue: processes and Ray actors (fleet.py, pool.py), servers (servers.py).
"""

from inspect import signature
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.pope.engines.keys import redact
from retarget.pope.rollouts import Engine


def is_server(spec: str) -> bool:
    """Whether a specification is a server's address."""
    return spec.startswith(("http://", "https://"))


def open_engine(spec: str, *, engines: int | str = 1, batch: int = 1, **options: Any) -> Engine:
    """An engine by name.

    Args:
        spec: ``http://HOST:PORT/v1`` or ``https://...`` for a server, with commas between the addresses of several that
            serve the same model; ``vllm:MODEL``; or a model's name or path for transformers in this process.
        engines: how many share the work, each in a process of its own with GPUs of its own: a number for this machine,
            ``ray:N`` for actors of a Ray cluster. 1 is this process.
        batch: prompts that one of several is given at a time; vLLM wants many.
        options: of the engine's class; a server needs ``model``.

    Raises:
        UserError: a path that holds no model, a server without ``model``, or engines that this machine cannot hold.
    """
    where, count = _engines(engines)
    if is_server(spec):
        if (where, count) != ("", 1):
            raise UserError(
                f"engines = {engines} are for a model that is opened here: give the addresses of the servers"
            )
        return _servers(spec, options)
    if (where, count) != ("", 1):
        from retarget.pope.engines.fleet import actors, processes

        return (actors if where else processes)(spec, count, batch, options)
    if spec.startswith("vllm:"):
        from retarget.pope.engines.vllm import VLLMEngine

        return VLLMEngine(spec.removeprefix("vllm:"), **options)
    held = [name for name in ("config.json", "adapter_config.json") if (Path(spec) / name).exists()]
    if (spec.startswith((".", "/")) or Path(spec).is_dir()) and not held:
        raise UserError(f"{spec}: no model there (neither config.json nor adapter_config.json)")
    from retarget.pope.engines.local import TransformersEngine

    try:
        signature(TransformersEngine.load).bind(spec, **options)
    except TypeError as error:
        raise UserError(f"{spec}: options of the engine: {error}") from error
    return TransformersEngine.load(spec, **options)


def _engines(engines: int | str) -> tuple[str, int]:
    """Where engines are to run, ``ray`` or nothing for here, and how many."""
    where, _, count = str(engines).rpartition(":")
    if where not in ("", "ray") or not count.isdecimal() or int(count) < 1:
        raise UserError(f"engines are a number from 1 or ray:NUMBER, not {engines}")
    return where, int(count)


def _servers(spec: str, options: dict[str, Any]) -> Engine:
    from retarget.pope.engines.server import ServerEngine
    from retarget.pope.engines.servers import Servers

    addresses = spec.split(",")
    if wrong := [one for one in addresses if not is_server(one)]:
        raise UserError(f"{redact(wrong[0])!r}: not an address; commas stand between the addresses of servers")
    if "model" not in options:
        raise UserError(
            f"the server {redact(spec)} needs the name of the model that it serves: --served NAME, model= in Python"
        )
    servers = [ServerEngine(one, **options) for one in addresses]
    return servers[0] if len(servers) == 1 else Servers(servers)
