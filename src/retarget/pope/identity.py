"""Values that identify a model in journals and in the ``work.json`` of a training. Free of torch."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.identity import content, fingerprint
from retarget.own import sources
from retarget.pope.graders import BUILT_IN, RULES

_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
_BESIDE = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer.json", "chat_template.jinja")
_TOKENIZER = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json",
    "merges.txt", "spiece.model",
)  # fmt: skip

ADDED = ("wording", "tokenizer", "base", "dtype", "options", "grader_source")
"""Entries that earlier versions did not record in a journal; one that lacks them is continued."""


def check_folder(model: str) -> None:
    """Raise UserError if a model's path is not a folder with a model; a name of the hub is not a path."""
    held = any((Path(model) / name).exists() for name in ("config.json", "adapter_config.json"))
    if (model.startswith((".", "/")) or Path(model).is_dir()) and not held:
        lacks = "this directory contains no model" if Path(model).is_dir() else "no such directory"
        raise UserError(f"{model}: {lacks} (neither config.json nor adapter_config.json)")


def weights_of(model: str | Path) -> str | None:
    """Hash of a local model's weights, configuration and tokenizer; None for a name on the hub or a server.

    A path alone does not identify a model: training writes new weights to the same path.

    >>> weights_of("someone/a-model-of-the-hub") is None
    True
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    return _hash(path for path in folder.iterdir() if path.suffix in _WEIGHTS or path.name in _BESIDE)


def tokenizer_of(model: str | Path) -> dict[str, str]:
    """An entry ``tokenizer`` for a local model whose tokenizer has files that :func:`weights_of` leaves out.

    ``tokenizer_config.json`` often has the chat template. Earlier versions did not record these files, and what lacks
    the entry is continued.
    """
    files = [path for path in map(Path(model).joinpath, _TOKENIZER) if path.is_file()]
    return {"tokenizer": _hash(files)} if files else {}


def base_of(model: str | Path) -> dict[str, str]:
    """An entry ``base`` for a local adapter of a local model: the hash of that model's weights.

    Earlier versions recorded the adapter alone.
    """
    named = base_name(model)
    weights = weights_of(named) if named else None
    return {"base": weights} if weights else {}


def base_name(model: str | Path) -> str | None:
    """Name or path of the model that a local adapter was trained on; None for whole models and names on the hub."""
    path = Path(model) / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        named = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):  # loading the adapter reports that
        return None
    return named if isinstance(named, str) else None


def grader_of(spec: str) -> dict[str, Any]:
    """What identifies a grader in journals and trainings: its name, its rules' version, and a user's own source.

    >>> grader_of("exact") == {"grader": "exact", "grader_rules": RULES["exact"]}
    True
    """
    rules = {"grader_rules": RULES[spec]} if spec in RULES else {}
    module = spec.partition(":")[0]
    if spec in BUILT_IN or module.partition(".")[0] == "retarget":  # this package's are identified by their rules
        return {"grader": spec, **rules}
    files = {name: content(path) for name, path in sources(module).items()}
    return {"grader": spec, **rules, **({"grader_source": fingerprint(files)} if files else {})}


def _hash(files: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for path in sorted(files):
        if path.is_file():
            with path.open("rb") as file:
                whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def unknown_before(had: Any, now: Any) -> bool:
    """Whether an entry was not recorded by the version that began the work: then it continues."""
    return had is None


def engine_header(engine: Any) -> dict[str, Any]:
    """An engine's entry in a journal's header: its name, and its ``identity`` (JSON values) if it has one."""
    return {"model": engine.name, **getattr(engine, "identity", {})}
