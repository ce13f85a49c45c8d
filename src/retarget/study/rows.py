"""Read files of runs made elsewhere, row by row: CSV, JSON lines, Parquet."""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from retarget.errors import UserError
from retarget.extras import require
from retarget.study.statistics import LARGEST

NEEDED = ("arm", "metric", "value")
KNOWN = (*NEEDED, "seed", "item", "condition", "group")


class Row(NamedTuple):
    """One measured number; messages name its line by ``where``. ``value`` is None for a failed run.

    Either ``seed`` or ``item`` may be missing; ``group`` is the group of the item.
    """

    where: str
    condition: str
    arm: str
    metric: str
    value: float | None
    seed: int | None
    item: str | None
    group: str | None


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV, JSON-lines or Parquet file: columns arm, metric, value, and seed or item.

    The columns condition (a dataset, say) and group (of an item) are optional; others are ignored.

    Raises:
        UserError: the file cannot be read, a column is missing or has its name in other letters (``Group``), or a row
            has no number; the message names the line.
    """
    readers = {".csv": _csv, ".jsonl": _json_lines, ".ndjson": _json_lines, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: runs can be read from {', '.join(readers)}")
    try:
        found = [_row(where, given) for where, given in reader(path)]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}): save it as UTF-8, which Excel calls CSV UTF-8") from error
    if not found:
        raise UserError(f"{path} has no rows")
    return found


def _csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)  # else a quote that is never closed swallows the rows after it
        try:
            columns = [one.strip() for one in reader.fieldnames or ()]
            reader.fieldnames = columns
            for mark, name in ((";", "semicolons"), ("\t", "tabs")):
                if len(columns) == 1 and mark in columns[0]:
                    raise UserError(f"{path}: its columns are separated by {name}: save it with commas")
            _has_columns(path, columns)
            twice = [one for one, count in Counter(columns).items() if count > 1 and one]
            if twice:
                raise UserError(f"{path}: the column {twice[0]} is there twice: keep one of them")
            for given in reader:
                where = f"{path}, line {reader.line_num}"
                if None in given or None in given.values():
                    raise UserError(f"{where}: {'more' if None in given else 'fewer'} cells than columns")
                if any(value.strip() for value in given.values()):  # tables end with empty rows and columns
                    yield where, given
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: {error}; is a quote not closed?") from error


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                given = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON: {error}") from error
            if not isinstance(given, dict):
                raise UserError(f"{where} is not an object with arm, metric, value and seed or item")
            _has_columns(where, given)
            yield where, given


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    pyarrow = require("pyarrow", "text")
    parquet = require("pyarrow.parquet", "text")
    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a readable Parquet file: {error}") from error
    _has_columns(path, table.column_names)
    for number, given in enumerate(table.to_pylist(), start=1):
        yield f"{path}, row {number}", given


def _has_columns(where: object, columns: Iterable[str]) -> None:
    there = set(columns)
    missing = [name for name in NEEDED if name not in there]
    if not there & {"seed", "item"}:
        missing.append("seed or item")
    renamed = _in_small_letters(there)
    if missing:
        raise UserError(
            f"{where}: {', '.join(missing)} missing; it has {', '.join(sorted(map(str, there))) or 'nothing'}"
            f"{f' ({renamed})' if renamed else ''}. The "
            "columns are arm, metric, value and seed (or item, with one row per item); condition and group are optional"
            f"{_in_rows(missing, there)}"
        )
    if renamed:  # an optional column, without which the verdicts would be others
        raise UserError(f"{where}: columns are known by their names in small letters: {renamed}, or to another name")


def _in_small_letters(there: Collection[object]) -> str:
    """What to rename, if a column that is not there is there in other letters."""
    small = {str(one).strip().lower(): one for one in there}
    renamed = [f"{small[name]} to {name}" for name in KNOWN if name in small and name not in there]
    return f"rename {', '.join(renamed)}" if renamed else ""


def _in_rows(missing: Iterable[str], there: set[Any]) -> str:
    """How to turn a table with one column per metric into one with one row per value."""
    keys = [name for name in ("arm", "condition", "seed", "item", "group") if name in there]
    if list(missing) != ["metric", "value"] or len(keys) == len(there):
        return ""
    return f". With one column per metric, write pandas' table.melt(id_vars={keys}, var_name='metric')"


def _row(where: str, given: Mapping[str, Any]) -> Row:
    texts = {}
    for name in ("arm", "metric"):
        texts[name] = _text(given.get(name))
        if texts[name] is None:
            raise UserError(f"{where}: {name} is empty")
    item = _text(given.get("item"))
    return Row(
        where, _text(given.get("condition")) or "default", str(texts["arm"]), str(texts["metric"]),
        _number(where, given.get("value")), _seed(where, given.get("seed"), item), item, _text(given.get("group")),
    )  # fmt: skip


def _text(value: Any) -> str | None:
    text = "" if value is None else str(value).strip()
    return text or None


def _number(where: str, value: Any) -> float | None:
    text = _text(value)
    if text is None or text.lower() in ("nan", "none", "null", "na"):
        return None
    try:
        if "_" in text:  # which Python reads as a separator of thousands
            raise ValueError
        number = float({"true": "1", "false": "0"}.get(text.lower(), text))
    except ValueError:
        raise UserError(f"{where}: value {text!r} is not a number; {_as_number(text)}") from None
    if not math.isfinite(number):
        raise UserError(f"{where}: value {text} is not finite; leave it empty if the run failed")
    if abs(number) > LARGEST:
        raise UserError(f"{where}: value {text} is too large: values go up to {LARGEST:g}")
    return number


def _as_number(text: str) -> str:
    """How to write a text as a number."""
    if re.fullmatch(r"[-+]?\d+(?:[.,]\d+)?\s*%", text):
        return "leave out the % sign"
    if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        return "leave out the separators of thousands"
    if re.fullmatch(r"[-+]?\d+,\d+", text):
        return "write a decimal point, not a comma"
    return "leave it empty if the run failed"


def _seed(where: str, value: Any, item: str | None) -> int | None:
    text = _text(value)
    if text is None or text.lower() == "nan":
        if item is None:
            raise UserError(f"{where}: it has neither a seed nor an item, so it cannot be paired")
        return None
    if text.isdecimal():
        return int(text)
    try:
        number = float(text)  # a table of floats holds 3.0 for the seed 3
        if number != int(number) or not 0 <= number < 2**53:
            raise ValueError
    except (ValueError, OverflowError):
        raise UserError(f"{where}: seed {text!r} is not an integer of 0 or above") from None
    return int(number)
