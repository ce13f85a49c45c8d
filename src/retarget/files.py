"""Write files atomically, and lock them until the process ends."""

import json
import math
import os
import platform
import shutil
import tempfile
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
    """Write ``path`` through a temporary file beside it, so that a reader or a kill never finds half of it.

    Args:
        path: the file to create or replace; its directory must exist.
        write: called with a path, to which it writes the whole content.
        apart: pass a path in a separate folder, for libraries that write temporary files beside the path, which would
            stay there after a kill, as safetensors' ``save_file`` does.

    Raises:
        UserError: the file cannot be written (a full disk, missing rights); a former file is intact.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one fixed name, so that kills leave at most one such file
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


def in_order(content: bytes) -> bytes:
    """The content of a safetensors file with its metadata sorted by key, so that equal tensors give equal bytes.

    safetensors writes metadata in the order of a hash map, which differs from process to process.

    Args:
        content: what ``safetensors.*.save`` returned; the header is padded to 8 bytes, as the format asks.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    tensors = memoryview(content)[8 + length :]  # no copy: a table may have ten gigabytes
    return b"".join((len(text).to_bytes(8, "little"), text, tensors))


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Fill a new folder under a temporary name and rename it, so that it is complete or absent.

    Args:
        path: the folder to create; it must be missing or empty.
        write: called with an empty folder, which it fills.

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
    """Turn a failure to write into a UserError; remove the temporary file after any failure."""
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
    """Flush a file's content, or (on POSIX) a folder's entries, to disk."""
    if os.name != "posix" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cannot_write(path: Path, error: Exception) -> UserError:
    """The UserError for a path that cannot be written."""
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, FileExistsError | NotADirectoryError):
        file = next((one for one in (path, *path.parents) if one.exists() and not one.is_dir()), path)
        return UserError(f"cannot write {path}: {file} is a file, not a directory. Choose another place")
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
        UserError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def check_writable(folder: Path, shown: Path | None = None) -> None:
    """Check that files can be created in this folder, or, if there is none, in the nearest one above.

    Args:
        folder: the folder.
        shown: the path that is to be written, for the message; the folder by default.

    Raises:
        UserError: they cannot.
    """
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".retarget-"):
            pass
    except OSError as error:
        raise cannot_write(shown or folder, error) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented; NaN and infinities raise ValueError, since JSON has none."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if any("\ud800" <= one <= "\udfff" for one in text):  # a file name that is not UTF-8
        text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, atomically."""
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
        raise UserError(f"{path} is damaged: {error}. Delete it, or its directory, to start again") from error


def finite_or_none(value: float) -> float | None:
    """A number for JSON: None instead of NaN and infinities.

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
        UserError: this system, or this file system, has no such locks.
    """
    if fcntl is None:
        raise UserError(
            "this system has no file locks that end with their process (flock), so two commands could work in the same "
            "place. Run this on Linux, macOS, or under WSL"
        )
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        raise UserError(
            f"this file system has no file locks (flock: {error.strerror}), so two commands could work in the same "
            "place: choose one on another disk, or have this one mounted with locks"
        ) from error


@contextmanager
def locked(path: Path, *, wait: bool, what: str) -> Iterator[None]:
    """Hold the lock file ``path``; the operating system frees it when the holder ends, however it ends.

    Args:
        path: the lock file; it is created if missing and never removed, since removing a held one would let a third
            process lock a new file of the same name.
        wait: wait for the holder instead of raising.
        what: what the error calls it.

    Who holds it, on which machine and since when stays written in the file.

    Raises:
        HeldError: another process holds it; the message names its id, and its machine where that is another one.
        UserError: the file cannot be opened.
    """
    try:
        handle = path.open("ab+", buffering=0)  # unbuffered: closing must not write again on a full disk
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
                f"{what} is in use by process {holder}. Wait until it ends, stop it, or choose another --out"
            ) from error
        try:
            handle.truncate(0)
            now = datetime.now(UTC).isoformat()
            handle.write(f"{os.getpid()} on {platform.node()} since {now}\n".encode())
            os.fsync(handle.fileno())  # other machines read it while it is held
        except OSError as error:
            raise cannot_write(path, error) from error
        yield
