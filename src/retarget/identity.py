"""Identity of work: fingerprints of values and of data, and the refusal to continue other work."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from retarget.errors import UserError

Extends = Callable[[Any, Any], bool]
"""Whether a new value continues work that was done with an old one: ``(had, now) -> bool``."""


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON value, 16 hexadecimal digits, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def refuse_other(
    where: str | Path,
    had: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    extends: Mapping[str, Extends] | None = None,
    remedy: str = "Give another place, or the settings that it was made with",
) -> None:
    """Refuse to continue work that was started with other values; the message names every value that differs.

    Args:
        where: what messages call the earlier work: a file, a folder, a state.
        had: its values.
        now: the requested values. A key that one side lacks counts as ``None``.
        extends: by key, when a different value continues the earlier work and is accepted: more problems, a larger k,
            more seeds, more cycles.
        remedy: the last sentence of the message, without its full stop.

    Raises:
        UserError: a value differs and does not continue the earlier work.

    >>> import operator
    >>> refuse_other("journal.jsonl", {"k": 16}, {"k": 32}, extends={"k": operator.le})
    >>> refuse_other("journal.jsonl", {"k": 16, "seed": 0}, {"k": 8, "seed": 1})
    Traceback (most recent call last):
    ...
    retarget.errors.UserError: journal.jsonl was made with k = 16 (now 8), seed = 0 (now 1). Give another place, \
or the settings that it was made with
    """
    differing = [
        f"{key} = {_short(old)} (now {_short(new)})"
        for key, old, new in _differing(had, now)
        if not (extends and key in extends and extends[key](old, new))
    ]
    if differing:
        raise UserError(f"{where} was made with {', '.join(differing)}. {remedy}")


def refuse_unlike(
    first: str | Path, of_first: Mapping[str, Any], second: str | Path, of_second: Mapping[str, Any], remedy: str
) -> None:
    """Refuse two things that must be of the same work and are not; every value that differs is named.

    Args:
        first, second: what holds them.
        of_first, of_second: their values. A key that one side lacks counts as ``None``.
        remedy: the last sentence of the message, without its full stop.

    Raises:
        UserError: a value differs.

    >>> refuse_unlike("a.jsonl", {"seed": 0}, "b.jsonl", {"seed": 1}, "Merge those of one work")
    Traceback (most recent call last):
    ...
    retarget.errors.UserError: b.jsonl is of other work than a.jsonl: seed = 1, not 0. Merge those of one work
    """
    differing = [f"{key} = {_short(new)}, not {_short(old)}" for key, old, new in _differing(of_first, of_second)]
    if differing:
        raise UserError(f"{second} is of other work than {first}: {'; '.join(differing)}. {remedy}")


def _differing(had: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Keys whose values differ, with both values."""
    return [(key, had.get(key), now.get(key)) for key in dict.fromkeys((*now, *had)) if had.get(key) != now.get(key)]


def _short(value: Any) -> str:
    """A value, shortened for a message."""
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


LEFT_BY_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")
"""Files that file managers leave in folders that one looks at; they are no data."""


def content(path: str | Path, known: dict[str, list[Any]] | None = None) -> str:
    """The fingerprint of a file's bytes, or of the names and bytes of everything below a folder.

    Args:
        path: a file or a folder; links are followed.
        known: a cache of fingerprints by size and modification time, so that large data are read once; new ones are
            added. It is a JSON value that the caller may store.

    Returns:
        16 hexadecimal digits.

    Raises:
        UserError: the path is missing or cannot be read.
    """
    path, known = Path(path), {} if known is None else known
    try:
        if not path.is_dir():
            return _digest(path, known)[:16]
        files = sorted(one for one in path.rglob("*") if one.is_file() and one.name not in LEFT_BY_SYSTEMS)
        return fingerprint([[str(file.relative_to(path)), _digest(file, known)] for file in files])
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror or error}") from error


def _digest(file: Path, known: dict[str, list[Any]]) -> str:
    status = file.stat()
    entry = known.get(str(file.resolve()))
    if entry and entry[:2] == [status.st_size, status.st_mtime_ns]:
        return entry[2]
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    known[str(file.resolve())] = [status.st_size, status.st_mtime_ns, digest]
    return digest
