"""Files that are whole or absent, and locks that end with their process."""

import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retarget.errors import UserError


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write ``path`` through a temporary name beside it, so that a reader or a killed process never sees half of it.

    Args:
        path: the file to make or replace; its directory exists.
        write: writes the whole content to the path that it is given.

    Raises:
        UserError: the file cannot be written (a full disk, missing rights); what stood there before still does.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """The error that a user sees for a path that cannot be written."""
    return UserError(
        f"cannot write {path}: {error.strerror or error}. Finished runs are kept: make room or give another --out, "
        "then run the same command again"
    )


def make_directory(path: Path) -> None:
    """Make a directory and its parents.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented; NaN and infinities are refused with ValueError, since JSON has none."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace_file(path, lambda temporary: _write_text(temporary, text))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing, unreadable or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Delete it, or its directory, to measure again") from error


def finite_or_none(value: float) -> float | None:
    """A number as JSON can hold it: None in place of NaN and infinities.

    >>> finite_or_none(float("nan")), finite_or_none(2.5)
    (None, 2.5)
    """
    return float(value) if math.isfinite(value) else None


@contextmanager
def locked(path: Path, *, wait: bool, what: str) -> Iterator[None]:
    """Hold the lock file ``path``; the operating system frees it when the holder ends, however it ends.

    Args:
        path: the lock file; it is made if missing and never removed, since removing one that is held would let a
            third process lock a new file of the same name.
        wait: wait for the holder, in place of an error.
        what: named in the error.

    Raises:
        UserError: another process holds it (the message names its id), or the file cannot be opened.
    """
    try:
        handle = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise UserError(
                f"{what} is in use by process {holder}. Wait until it ends, stop it, or give another --out"
            ) from error
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
