"""Files that are whole or absent, and locks that end with their process."""

import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retarget.errors import UserError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None


def replace_file(path: Path, write: Callable[[Path], object], *, apart: bool = False) -> None:
    """Write ``path`` through a temporary name beside it, so that a reader or a killed process never sees half of it.

    Args:
        path: the file to make or replace; its directory exists.
        write: writes the whole content to the path that it is given.
        apart: give it a path in a folder of its own: for libraries that themselves write beside the path, under names
            that nobody would find again after a kill, as safetensors' ``save_file`` does.

    Raises:
        UserError: the file cannot be written (a full disk, missing rights); what stood there before still does.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one name, so that kills leave one such file at most
    with _written(path, lambda: _remove(temporary)):
        _remove(temporary)
        target = temporary
        if apart:
            temporary.mkdir()
            target = temporary / path.name
        write(target)
        _sync(target)
        target.replace(path)
        if apart:
            _remove(temporary)
        _sync(path.parent)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Fill a new folder under a temporary name beside it, then give it its own name: whole or absent.

    Args:
        path: the folder to make; it is missing or empty.
        write: fills the empty folder that it is given.

    Raises:
        UserError: it cannot be written, or ``path`` exists and is not empty.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with _written(path, lambda: shutil.rmtree(temporary, ignore_errors=True)):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        for file in temporary.rglob("*"):
            _sync(file)
        temporary.replace(path)
        _sync(path.parent)


@contextmanager
def _written(path: Path, remove: Callable[[], None]) -> Iterator[None]:
    """Turn a failure to write into the error that a user sees, and remove what was begun, whatever the failure."""
    from safetensors import SafetensorError

    try:
        yield
    except BaseException as error:
        with suppress(OSError):
            remove()
        if isinstance(error, (OSError, SafetensorError)):
            raise cannot_write(path, error) from error
        raise


def _sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk; elsewhere than on POSIX folders have none to bring."""
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cannot_write(path: Path, error: Exception) -> UserError:
    """The error that a user sees for a path that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    return UserError(
        f"cannot write {path}: {reason}. What was finished before is kept: free some space or choose another place, "
        "then run the same command again"
    )


def is_there(path: str | Path) -> bool:
    """Whether a path that a user typed exists; one that is too long for the system, or holds a null byte, does not.

    >>> is_there("x" * 10_000)
    False
    """
    try:
        return Path(path).exists()
    except OSError:
        return False


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
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing, unreadable or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}. Delete it, or its directory, to measure again") from error


def finite_or_none(value: float) -> float | None:
    """A number as JSON can hold it: None in place of NaN and infinities.

    >>> finite_or_none(float("nan")), finite_or_none(2.5)
    (None, 2.5)
    """
    return float(value) if math.isfinite(value) else None


class HeldError(UserError):
    """Another process holds a lock."""


def lock(file: int, *, wait: bool) -> None:
    """Lock an open file for this process; the operating system frees it when the process ends, however it ends.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is false.
        UserError: this system has no such locks.
    """
    if fcntl is None:
        raise UserError(
            "this system has no locks of files that end with their process (flock): two commands at one place could "
            "not be told from each other. Run this on Linux, macOS, or under WSL"
        )
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


@contextmanager
def locked(path: Path, *, wait: bool, what: str) -> Iterator[None]:
    """Hold the lock file ``path``; the operating system frees it when the holder ends, however it ends.

    Args:
        path: the lock file; it is made if missing and never removed, since removing one that is held would let a
            third process lock a new file of the same name.
        wait: wait for the holder, in place of an error.
        what: named in the error.

    Who holds it, on which machine and since when stays written in the file.

    Raises:
        HeldError: another process holds it; the message names its id, and its machine where that is another one.
        UserError: the file cannot be opened.
    """
    try:
        handle = path.open("ab+", buffering=0)  # what a full disk refuses must not be written again when it is closed
    except OSError as error:
        raise cannot_write(path, error) from error
    with handle:
        try:
            lock(handle.fileno(), wait=wait)
        except BlockingIOError as error:
            handle.seek(0)
            holder = handle.read().decode("ascii", "replace").strip().partition(" since ")[0]
            holder = holder.removesuffix(f" on {platform.node()}") or "unknown"
            raise HeldError(
                f"{what} is in use by process {holder}. Wait until it ends, stop it, or give another --out"
            ) from error
        try:
            handle.truncate(0)
            now = datetime.now(UTC).isoformat()
            handle.write(f"{os.getpid()} on {platform.node()} since {now}\n".encode())
            os.fsync(handle.fileno())  # other machines read it while it is held
        except OSError as error:
            raise cannot_write(path, error) from error
        yield
