"""What makes two pieces of work the same: fingerprints of values and of data, and the refusal of other work."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.files import read_json, write_json

Extends = Callable[[Any, Any], bool]
"""Whether what is asked for now continues what was there: ``(had, now) -> bool``."""


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
    """Refuse to go on with work that was begun under other values; every value that differs is named.

    Args:
        where: what holds the earlier work: a file, a folder, a state.
        had: its values.
        now: the values asked for. A key that one side lacks counts as ``None``.
        extends: for a key, when a differing value continues the earlier work and is let through: more problems, a
            larger k, more seeds, more cycles.
        remedy: the last sentence of the message, without its full stop.

    Raises:
        UserError: a value differs and does not extend what was there.

    >>> import operator
    >>> refuse_other("journal.jsonl", {"k": 16}, {"k": 32}, extends={"k": operator.le})
    >>> refuse_other("journal.jsonl", {"k": 16, "seed": 0}, {"k": 8, "seed": 1})
    Traceback (most recent call last):
    ...
    retarget.errors.UserError: journal.jsonl was made with k = 16 (now 8), seed = 0 (now 1). Give another place, \
or the settings that it was made with
    """
    differing = []
    for key in dict.fromkeys((*now, *had)):
        old, new = had.get(key), now.get(key)
        if old != new and not (extends and key in extends and extends[key](old, new)):
            differing.append(f"{key} = {_short(old)} (now {_short(new)})")
    if differing:
        raise UserError(f"{where} was made with {', '.join(differing)}. {remedy}")


def _short(value: Any) -> str:
    """A value as a message shows it."""
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def content(path: str | Path, cache: Path | None = None) -> str:
    """Fingerprint of the bytes of a file, or of the names and bytes of everything below a folder.

    Args:
        path: a file or a folder; links are followed.
        cache: a JSON file that remembers the fingerprints of files by their size and time of change, so that large
            data are read once; made if missing, and disregarded where it cannot be read.

    Returns:
        16 hexadecimal digits.

    Raises:
        UserError: the path is missing or cannot be read.
    """
    path = Path(path)
    known = _known(cache)
    fresh = dict(known)
    try:
        if path.is_dir():
            files = sorted(one for one in path.rglob("*") if one.is_file())
            found = fingerprint([[str(file.relative_to(path)), _digest(file, fresh)] for file in files])
        else:
            found = _digest(path, fresh)[:16]
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    if cache is not None and fresh != known:
        write_json(cache, fresh)
    return found


def _digest(file: Path, known: dict[str, list[Any]]) -> str:
    status = file.stat()
    entry = known.get(str(file.resolve()))
    if entry and entry[:2] == [status.st_size, status.st_mtime_ns]:
        return entry[2]
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    known[str(file.resolve())] = [status.st_size, status.st_mtime_ns, digest]
    return digest


def _known(cache: Path | None) -> dict[str, list[Any]]:
    if cache is None or not cache.exists():
        return {}
    try:
        found = read_json(cache)
    except UserError:  # a cache that is damaged is made anew
        return {}
    return found if isinstance(found, dict) else {}
