"""Read and write a run's records and tensors; a damaged or unexpected file is an error that names it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from retarget.errors import UserError
from retarget.files import in_order, read_json, replace_file

REMEDY = "Delete it and run the same command again"


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: it is unreadable, damaged, or another JSON value.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged: it is not a record of settings. {REMEDY}")
    return record


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all, with a checksum of their values in the header."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # Not save_file: it writes a temporary file beside the path, which a kill would leave there.
    content = in_order(serialise(plain, metadata={**(metadata or {}), "sha256": _digest(plain)}))
    replace_file(path, lambda part: part.write_bytes(content))


def read_tensors(path: Path, shapes: Mapping[str, tuple[int, ...] | None], remedy: str = REMEDY) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Args:
        shapes: the names that it must have, and no others, with their shapes; None for any shape.
        remedy: the last sentence of the message.

    Raises:
        UserError: the file is missing or damaged, or has other names or shapes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged or missing: {error}. {remedy}") from error
    different = sorted(found.keys() ^ shapes.keys())
    different += [name for name, shape in shapes.items() if shape and name in found and found[name].shape != shape]
    if different:
        raise UserError(f"{path} does not fit: its {different[0]!r} is not the expected one. {remedy}")
    if header.get("sha256") not in (None, _digest(found)):
        raise UserError(f"{path} is damaged: its checksum is wrong. {remedy}")
    return found


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
