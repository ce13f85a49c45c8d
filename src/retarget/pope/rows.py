"""The rows of files, directories and data sets of the hub, before anything is known of their fields. Free of torch."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.extras import require


@dataclass(frozen=True)
class Reject:
    """An invalid row: the number of its line or row, from 1, the reason, and its text."""

    line: int
    reason: str
    text: str


def rows_of(source: str | Path, split: str) -> Iterator[tuple[int, Any]]:
    """Numbers and contents of the rows of a source (see :func:`retarget.pope.problems.read_problems`).

    A line that is not JSON comes as a :class:`Reject`.

    Raises:
        UserError: the source is missing or cannot be read.
    """
    name = str(source)
    path = Path(source)
    try:
        if name.startswith("hf:"):
            hub, _, config = name[3:].partition(":")
            yield from enumerate(require("datasets", "rl").load_dataset(hub, config or None, split=split), 1)
        elif path.is_dir():
            yield from enumerate(_directory(path, split), 1)
        elif not path.exists():
            raise UserError(
                f"{path}: no such file or directory (for a data set of the hub, write hf:NAME or hf:NAME:CONFIG)"
            )
        elif path.suffix == ".parquet":
            yield from enumerate(require("pyarrow.parquet", "rl").read_table(path).to_pylist(), 1)
        elif path.name.endswith((".jsonl", ".json", ".jsonl.gz", ".json.gz")):
            yield from _json_rows(path)
        else:
            raise UserError(f"{path}: the name of a problem file must end in .jsonl, .json (or with .gz) or .parquet")
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:  # pyarrow's and datasets' errors are kinds of these
        raise UserError(f"{source} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _directory(path: Path, split: str) -> Iterable[Any]:
    datasets = require("datasets", "rl")
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        loaded = datasets.load_from_disk(str(path))
        if not hasattr(loaded, "keys"):
            return loaded
        if split not in loaded:
            raise UserError(f"{path}: no split {split!r}; it has {', '.join(loaded)}")
        return loaded[split]
    return datasets.load_dataset(str(path), split=split)


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """One object per line; a ``.json`` file may also be one object, or an array of objects."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    raw = raw.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that some editors write
    if ".jsonl" not in path.suffixes and raw.lstrip().startswith(b"{"):
        with suppress(ValueError, RecursionError):  # a file of lines has text behind its first object
            yield 1, json.loads(raw.decode("utf-8"))
            return
    if ".jsonl" in path.suffixes or not raw.lstrip().startswith(b"["):
        yield from _json_lines(raw)
        return
    try:
        rows = json.loads(raw.decode("utf-8"))
    except RecursionError as error:
        raise UserError(f"{path}: this JSON cannot be parsed: {error}") from None
    yield from enumerate(rows, 1)


def _json_lines(raw: bytes) -> Iterator[tuple[int, Any]]:
    # Only \\n ends a line: splitlines would also split at characters that occur inside texts.
    for line, content in enumerate(raw.split(b"\n"), 1):
        if not content.strip():
            continue
        shown = content.decode("utf-8", errors="backslashreplace")
        try:
            row = json.loads(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            row = Reject(line, f"not UTF-8 at byte {error.start}", shown)
        except json.JSONDecodeError as error:
            row = Reject(line, f"not JSON: {error.msg} at column {error.colno}", shown)
        except (ValueError, RecursionError) as error:  # a number with thousands of digits, or too deep nesting
            row = Reject(line, f"this JSON cannot be parsed: {error}", shown)
        yield line, row
