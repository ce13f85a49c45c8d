"""What identifies a model in journals and in the record of a training run. Free of torch."""

import hashlib
from pathlib import Path
from typing import Any

_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
_BESIDE = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer.json", "chat_template.jinja")


def weights_of(model: str | Path) -> str | None:
    """Hash of a local model's weights, configuration and tokenizer; None for a name of the hub or of a server.

    A path alone does not identify a model: training writes other weights to the same path.

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
    """What a journal's header says of an engine: its name, and the JSON values of its ``identity`` where it has one."""
    return {"model": engine.name, **getattr(engine, "identity", {})}
