"""Engines: this process (local.py), any OpenAI-compatible server (server.py), vLLM (vllm.py)."""

from inspect import signature
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.pope.engines.keys import redact
from retarget.pope.rollouts import Engine


def is_server(spec: str) -> bool:
    """Whether a specification is a server's address."""
    return spec.startswith(("http://", "https://"))


def open_engine(spec: str, **options: Any) -> Engine:
    """An engine by name.

    Args:
        spec: ``http://HOST:PORT/v1`` or ``https://...`` for a server, ``vllm:MODEL``, or a model's name or path for
            transformers in this process.
        options: of the engine's class; a server needs ``model``.

    Raises:
        UserError: a path that holds no model, or a server without ``model``.
    """
    if is_server(spec):
        from retarget.pope.engines.server import ServerEngine

        if "model" not in options:
            raise UserError(
                f"the server {redact(spec)} needs the name of the model that it serves: --served NAME, model= in Python"
            )
        return ServerEngine(spec, **options)
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
