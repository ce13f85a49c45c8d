"""Merge journals of the same work that were sampled on several machines."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.files import make_directory, replace_file
from retarget.identity import refuse_unlike
from retarget.pope.identity import ADDED
from retarget.pope.journal import ANSWERED_BY, VARIES, Shard, opened, same_weights
from retarget.pope.work import Record

_REMEDY = "Only journals of the same work can be merged"
_SHOWN = 5
"""How many contradictions a message lists."""


@dataclass(frozen=True)
class Merged:
    """The result of a merge.

    Attributes:
        path: the merged journal.
        verb: the verb that wrote the journals: ``mine``, ``search``, ``evaluate`` or ``oracle``.
        problems, units, rollouts: how many the merged journal contains.
        duplicates: how many copies of units, with the same content, were dropped.
    """

    path: Path
    verb: str
    problems: int
    units: int
    rollouts: int
    duplicates: int


def merge(journals: Sequence[Path], directory: Path) -> Merged:
    """Write the units of several journals into one, ``DIRECTORY/VERB.jsonl``.

    Run the verb again with all problems and the merged journal: it samples only what is missing, and sorts the units as
    a single machine would have. The model may have another path on each machine if its weights have the same hash.

    Args:
        journals: journals of the same work. They may be of different problems, of different units of the same problems,
            or contain the same units.
        directory: directory for the merged journal. A journal that is already there must be among ``journals``.

    Raises:
        UserError: there are no journals; one cannot be read; two are of different work (the message lists the settings
            that differ, with both values); or two contradict each other (the message names the units).
    """
    if not journals:
        raise UserError("no journals to merge: give at least one file")
    with ExitStack() as holding:  # until the merged journal is there, so that no other process writes an old one
        shards = _held(journals, holding)
        first = shards[0]
        for other in shards[1:]:
            refuse_unlike(first.path, _settings(first, other), other.path, _settings(other, first), _REMEDY)
        lines, records, duplicates = _united(shards)
        verb = str(first.header["verb"])
        path = directory / f"{verb}.jsonl"
        content = b"".join(line + b"\n" for line in [first.lines[0], *lines])
        make_directory(directory)
        if path.resolve() not in [one.resolve() for one in journals]:
            holding.callback(os.close, opened(path))
            if path.read_bytes() not in (b"", content):
                raise UserError(f"{path} already exists: give another --out, or list it among the journals")
        replace_file(path, lambda temporary: temporary.write_bytes(content))
    rollouts = sum(record.n for record in records)
    return Merged(path, verb, len({record.problem for record in records}), len(lines), rollouts, duplicates)


def _held(journals: Sequence[Path], holding: ExitStack) -> list[Shard]:
    """The journals, which no other process can write while ``holding`` is open. A file may be given several times."""
    found: dict[tuple[int, int], Shard] = {}
    shards = []
    for path in journals:
        file = path.stat() if path.exists() else None
        at = (file.st_dev, file.st_ino) if file else (0, 0)
        if at not in found:
            found[at] = holding.enter_context(Shard.held(path))
        shards.append(found[at])
    return shards


def _settings(shard: Shard, other: Shard) -> dict[str, Any]:
    """A header's settings, one entry per setting.

    If both have the same weights, the model's path is left out; the name of a server's answers always; probes if one of
    them varies; and what the other does not know because an earlier version wrote it.
    """
    left_out = {ANSWERED_BY, *(("model",) if same_weights(shard.header, other.header) else ())}
    if VARIES in (shard.header.get("probe"), other.header.get("probe")):
        left_out.add("probe")
    left_out |= {name for name in ADDED if name not in other.header}
    found: dict[str, Any] = {}
    for key, value in shard.header.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": one for name, one in value.items()}
        elif key not in left_out:
            found[key] = value
    return found


def _united(shards: Sequence[Shard]) -> tuple[list[bytes], list[Record], int]:
    """The lines to keep, their records, and the number of duplicates."""
    lines: list[bytes] = []
    records: list[Record] = []
    seen: dict[tuple[Any, ...], tuple[str, Record]] = {}
    asked: dict[tuple[Any, ...], tuple[str, Record]] = {}
    wrong: list[str] = []
    for shard in shards:
        for number, (line, value) in enumerate(zip(shard.lines[1:], shard.records, strict=True), 2):
            where = f"{shard.path}: line {number}"
            record = Record.read(where, value)
            before = seen.setdefault(record.key, (where, record))
            prompt = asked.setdefault((record.problem, record.end), (where, record))
            if prompt[1].asks != record.asks:
                wrong.append(f"{_name(record)} has another prompt, answer or meta in {prompt[0]} than in {where}")
            elif before[1] != record:
                wrong.append(f"{_name(record)} differs in {_fields(before[1], record)} between {before[0]} and {where}")
            elif before[1] is record:  # the places are equal if a journal is given twice
                lines.append(line)
                records.append(record)
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"the journals contradict each other: {'; '.join(wrong[:_SHOWN])}{more}. Leave one of them out. If an "
            "engine does not reproduce its samples from equal seeds, do not let two machines do the same units"
        )
    return lines, records, sum(len(shard.records) for shard in shards) - len(lines)


def _name(record: Record) -> str:
    cut = "" if record.end is None else f", prefix of {record.end} characters"
    unit = "" if record.chunk is None else f", unit {record.chunk}"
    return f"problem {record.problem!r}{cut}{unit}"


def _fields(one: Record, other: Record) -> str:
    """The fields that differ, numbers with both values."""
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in Record.model_fields}
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return ", ".join(
        f"{name} ({pair[0]} and {pair[1]})" if all(isinstance(value, int) for value in pair) else name
        for name, pair in differing.items()
    )
