"""Values that identify a model in journals and in the ``work.json`` of a training. Free of torch."""

import hashlib
from pathlib import Path
from typing import Any

_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
_BESIDE = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer.json", "chat_template.jinja")


def weights_of(model: str | Path) -> str | None:
    """Hash of a local model's weights, configuration and tokenizer; None for a name on the hub or a server.

    A path alone does not identify a model: training writes new weights to the same path.

    >>> weights_of("someone/a-model-of-the-hub") is None
    True
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and (path.suffix in _WEIGHTS or path.name in _BESIDE):
            with path.open("rb") as file:
                whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def engine_header(engine: Any) -> dict[str, Any]:
    """An engine's entry in a journal's header: its name, and its ``identity`` (JSON values) if it has one."""
    return {"model": engine.name, **getattr(engine, "identity", {})}
