"""The files of a table that is larger than memory: one raw file per field, described by layout.json."""

import json
import math
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retarget.errors import UserError
from retarget.files import cannot_write, lock, make_directory, read_json, write_text
from retarget.pskd.past.rows import Dense, RowFormat

LOCK = ".lock"
OTHER_PROCESSES = (
    "holds a table that another number of processes wrote: each of them has a copy of its own, so start with the same "
    "number (if it is the same, call load() and set_epoch() after the process group is there, made by "
    "init_process_group or Accelerator), or give a new run another path. A run with a table in memory (Dense, TopK) "
    "resumes on any number"
)
_HELD: dict[str, tuple[int, int]] = {}
"""The locked directories of this process: its id, since a forked child has a copy, and the open file."""


@dataclass(frozen=True)
class MemoryMapped:
    """A table in files, for tables larger than memory.

    Args:
        path: a directory for this table alone. It is created, or opened if it holds a table of the same shape. With
            several processes each rank has its own copy in ``path/rank-R``, so a run is resumed on the same number.
        rows: ``Dense(...)`` or ``TopK(...)``.

    A saved state does not hold the rows. So a state of the middle of an epoch can be resumed from only until the next
    epoch overwrites rows that the rest of it reads, which is refused; one of an epoch's end during all of the next.
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
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: pass a directory for the table alone")
    make_directory(path)
    _hold(path)
    if description.exists():
        found = read_json(description)
        if found != wanted:
            raise UserError(f"{path} holds a table of another shape: found {found}, need {wanted}; pass another path")
    else:
        begun = {LOCK, f".{description.name}.tmp", *(f"{name}.bin" for name in sizes)}  # of a kill, or a full disk
        if any(path.glob("rank-*/layout.json")):
            raise UserError(f"{path} {OTHER_PROCESSES}")
        if any(one.name not in begun for one in path.iterdir()):
            raise UserError(f"{path} is not empty but holds no table: pass a directory for the table alone")
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


def has_rows(path: Path) -> bool:
    """Whether a directory holds a table in which a row was written."""
    stamps = path / "stamps.bin"
    return stamps.is_file() and stamps.stat().st_size > 0 and bool(np.memmap(stamps, np.int32, mode="r").any())


def _hold(path: Path) -> None:
    """Keep other processes out of a table's directory until this one ends: each would read the other's rows."""
    name = str(path.resolve())
    if _HELD.get(name, (0, 0))[0] == os.getpid():
        return
    try:
        file = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot_write(path / LOCK, error) from error
    try:
        lock(file, wait=False)
    except BlockingIOError as error:
        os.close(file)
        raise UserError(
            f"the table at {path} is in use by another process: give each run a path of its own. If it is another "
            "process of this run, the process group was made too late: call load() and set_epoch() after "
            "init_process_group, or Accelerator()"
        ) from error
    except UserError as error:  # the lock only guards against a mistake
        warnings.warn(f"{path}: {error}. Make sure that no other run uses it", stacklevel=2)
    _HELD[name] = os.getpid(), file


def _allocate(file: Path, nbytes: int) -> None:
    """Create a file of zeros with allocated blocks, so that a full disk is an error here and not a crash later."""
    try:
        opened = file.open("wb")
    except OSError as error:
        raise cannot_write(file, error) from error
    with opened as handle:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle.fileno(), 0, nbytes)
            else:
                handle.truncate(nbytes)
        except OSError as error:
            file.unlink(missing_ok=True)
            raise UserError(f"cannot reserve {nbytes:,} bytes for the table at {file}: {error.strerror}") from error
