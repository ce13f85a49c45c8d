"""Journals of one work, sampled in several places, as one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.files import make_directory, replace_file
from retarget.identity import refuse_unlike
from retarget.pope.journal import Shard
from retarget.pope.work import Record

_REMEDY = "Merge journals of one work; others go on by themselves"
_SHOWN = 5
"""Contradictions that a message names."""


@dataclass(frozen=True)
class Merged:
    """What was merged.

    Attributes:
        path: the journal.
        verb: what was done: ``mine``, ``search``, ``evaluate``, ``oracle``.
        problems, units, rollouts: in it.
        duplicates: units that were in several journals, with the same content.
    """

    path: Path
    verb: str
    problems: int
    units: int
    rollouts: int
    duplicates: int


def merge(journals: Sequence[Path], directory: Path) -> Merged:
    """Write the units of several journals into one, ``DIRECTORY/VERB.jsonl``.

    Each problem's units go on where they are: the verb, given all problems and this journal, samples only what is
    missing, and brings the units into the order that one machine would have left. That the model's path is another on
    another machine does not matter where its weights have the same hash.

    Args:
        journals: of one work, each of other problems, of other units of the same ones, or of the same units.
        directory: of the merged journal; one that stands there already must be among ``journals``.

    Raises:
        UserError: no journals; one cannot be read; two are of other work (every setting that differs is named with both
            values); or two contradict each other: the units are named.
    """
    if not journals:
        raise UserError("no journals: give at least one file")
    shards = [Shard.read(path) for path in journals]
    first = shards[0]
    for other in shards[1:]:
        refuse_unlike(first.path, _settings(first, other), other.path, _settings(other, first), _REMEDY)
    lines, records, duplicates = _united(shards)
    verb = str(first.header["verb"])
    path = directory / f"{verb}.jsonl"
    content = b"".join(line + b"\n" for line in [first.lines[0], *lines])
    make_directory(directory)
    if path.exists() and path.resolve() not in [one.resolve() for one in journals] and path.read_bytes() != content:
        raise UserError(f"{path} is there already: give another --out, or name it among the journals")
    replace_file(path, lambda temporary: temporary.write_bytes(content))
    rollouts = sum(record.n for record in records)
    return Merged(path, verb, len({record.problem for record in records}), len(lines), rollouts, duplicates)


def _settings(shard: Shard, other: Shard) -> dict[str, Any]:
    """A header without what differs for no reason that matters, every setting by itself."""
    weights = shard.header.get("weights")
    same = weights is not None and weights == other.header.get("weights")
    found: dict[str, Any] = {}
    for key, value in shard.header.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": one for name, one in value.items()}
        elif not (same and key == "model"):
            found[key] = value
    return found


def _united(shards: Sequence[Shard]) -> tuple[list[bytes], list[Record], int]:
    """The lines to keep, their records, and how many were there twice."""
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
                wrong.append(f"{_name(record)} is another prompt, answer or meta in {prompt[0]} than in {where}")
            elif before[1] != record:
                wrong.append(f"{_name(record)} differs in {_fields(before[1], record)} between {before[0]} and {where}")
            elif before[0] == where:
                lines.append(line)
                records.append(record)
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"the journals contradict each other: {'; '.join(wrong[:_SHOWN])}{more}. Leave one of them out; where an "
            "engine does not repeat itself at equal seeds, no two machines may do the same units"
        )
    return lines, records, sum(len(shard.records) for shard in shards) - len(lines)


def _name(record: Record) -> str:
    cut = "" if record.end is None else f", prefix of {record.end} characters"
    unit = "" if record.chunk is None else f", unit {record.chunk}"
    return f"problem {record.problem!r}{cut}{unit}"


def _fields(one: Record, other: Record) -> str:
    """Which fields differ, numbers with both values."""
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in Record.model_fields}
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return ", ".join(
        f"{name} ({pair[0]} and {pair[1]})" if all(isinstance(value, int) for value in pair) else name
        for name, pair in differing.items()
    )
