"""The files of a table that is larger than memory: one raw file per field, described by layout.json."""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retarget.errors import UserError
from retarget.files import write_text
from retarget.pskd.past.rows import Dense, RowFormat


@dataclass(frozen=True)
class MemoryMapped:
    """A table in files, for tables larger than memory.

    Args:
        path: a directory for this table alone. It is created, or opened if it holds a table of the same shape. With
            several processes each rank has its own copy in ``path/rank-R``.
        rows: ``Dense(...)`` or ``TopK(...)``.
    """

    path: str | os.PathLike[str]
    rows: RowFormat = field(default_factory=lambda: Dense("float16"))


def open_files(
    path: Path, layout: dict[str, tuple[tuple[int, ...], torch.dtype]]
) -> tuple[dict[str, Tensor], list[np.memmap]]:
    """Open or create the files of a memory-mapped table."""
    wanted = {name: [list(shape), str(dtype).removeprefix("torch.")] for name, (shape, dtype) in layout.items()}
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in layout.items()}
    description = path / "layout.json"
    if description.exists():
        found = json.loads(description.read_text())
        if found != wanted:
            raise UserError(f"{path} holds a table of another shape: found {found}, need {wanted}; pass another path")
    else:
        if path.exists() and any(path.iterdir()):
            raise UserError(f"{path} is not empty but holds no table: pass a directory for the table alone")
        path.mkdir(parents=True, exist_ok=True)
        for name, nbytes in sizes.items():
            _allocate(path / f"{name}.bin", nbytes)
        write_text(description, json.dumps(wanted))
    tensors, files = {}, []
    for name, nbytes in sizes.items():
        file = path / f"{name}.bin"
        if not file.exists() or file.stat().st_size != nbytes:
            raise UserError(f"{file} is missing or not {nbytes} bytes long: the table is damaged, so delete {path}")
        shape, dtype = layout[name]
        raw = np.memmap(file, dtype=np.uint8, mode="r+")
        files.append(raw)
        tensors[name] = torch.from_numpy(raw).view(dtype).view(shape)
    return tensors, files


def _allocate(file: Path, nbytes: int) -> None:
    """Create a file of zeros with allocated blocks, so that a full disk is an error here and not a crash later."""
    with file.open("wb") as handle:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle.fileno(), 0, nbytes)
            else:
                handle.truncate(nbytes)
        except OSError as error:
            file.unlink(missing_ok=True)
            raise UserError(f"cannot reserve {nbytes:,} bytes for the table at {file}: {error.strerror}") from error
