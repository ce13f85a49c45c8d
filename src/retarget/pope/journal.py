"""An append-only JSONL journal: survives a kill at any byte, and refuses to mix two configurations."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from retarget.errors import UserError
from retarget.files import cannot_write, lock, make_directory, replace_file
from retarget.identity import Extends, fingerprint, refuse_other

FORMAT = 2
_SUM = ',"sum":"'
_SUM_LENGTH = 16
_REMEDY = "Give another file, or the settings that it was started with"


class Journal:
    """Records of finished units of work.

    The first line is a header that identifies the work. Every line ends with its own checksum, so that edited or
    damaged lines are detected. Records contain no times, and :meth:`settle` sorts them, so an interrupted and resumed
    run leaves the same bytes as an uninterrupted one. An incomplete last line, left by a killed process, is cut off on
    opening. Journals without checksums, written by earlier versions, are read too.

    Args:
        path: the file, created with its directory if missing. None keeps the journal in memory.
        header: JSON values that decide the records (model, seed, ...).
        extends: see :func:`retarget.identity.refuse_other`.
        former: returns the additional header entries of a journal without checksums; called only for such a journal.

    Raises:
        UserError: the file belongs to other work, is damaged before its last line (the message names the line), cannot
            be opened, or is being written by another process.
    """

    def __init__(
        self,
        path: Path | None,
        header: dict[str, Any],
        *,
        extends: Mapping[str, Extends] | None = None,
        former: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        self._lines: list[bytes] = []
        self._file: int | None = None
        if path is None:
            return
        make_directory(path.parent)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            self._recover(path, self._file, header, extends, former)
        except BaseException:
            self.close()
            raise

    def _recover(
        self,
        path: Path,
        file: int,
        header: dict[str, Any],
        extends: Mapping[str, Extends] | None,
        former: Callable[[], Mapping[str, Any]] | None,
    ) -> None:
        try:
            lock(file, wait=False)
        except BlockingIOError as error:
            raise UserError(f"{path}: another process is writing this journal; wait until it ends") from error
        try:
            raw = path.read_bytes()
            whole = raw[: raw.rfind(b"\n") + 1]
            if len(whole) < len(raw):
                os.ftruncate(file, len(whole))
        except OSError as error:
            raise cannot_write(path, error) from error
        self._lines = whole.split(b"\n")[:-1]
        if not self._lines:
            self._write({"format": FORMAT, **header})
            return
        found, checked = _read_header(path, self._lines[0])
        if checked:
            refuse_other(path, found, header, extends=extends, remedy=_REMEDY)
        else:
            if found.pop("work", None) != fingerprint(found):
                raise _damaged(path, 1, "its fingerprint does not match")
            added = former() if former else {}
            had = {name: value for name, value in found.items() if name in header or name in added}
            refuse_other(path, had, {**header, **added}, extends=extends, remedy=_REMEDY)
        self.records += _read_records(path, self._lines, checked)

    def append(self, record: dict[str, Any]) -> None:
        """Add one record. When this returns, the record is in the file."""
        self.records.append(record)
        self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is None or self.path is None:
            return
        line = _line(record)
        self._lines.append(line)
        try:
            view = memoryview(line + b"\n")
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def settle(self, key: Callable[[dict[str, Any]], Any]) -> None:
        """Sort the records by ``key``, so that the order in which they were finished does not matter.

        The file is replaced as a whole, and only if the order changes.
        """
        order = sorted(range(len(self.records)), key=lambda index: key(self.records[index]))
        if order == list(range(len(self.records))):
            return
        self.records = [self.records[index] for index in order]
        if self.path is not None:
            self._lines = [self._lines[0], *(self._lines[1 + index] for index in order)]
            content = b"".join(line + b"\n" for line in self._lines)
            replace_file(self.path, lambda temporary: temporary.write_bytes(content))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                os.fsync(file)
            except OSError as error:
                assert self.path is not None
                raise cannot_write(self.path, error) from error
            finally:
                os.close(file)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class Shard:
    """The content of a journal, read without changing the file.

    Attributes:
        path: the file.
        header: the first line, without the format.
        records: the records of the other lines.
        lines: all lines, without line ends.
    """

    path: Path
    header: dict[str, Any]
    records: list[dict[str, Any]]
    lines: list[bytes]

    @classmethod
    def read(cls, path: Path) -> "Shard":
        """Read a journal. An incomplete last line, left by a killed process, is ignored.

        Raises:
            UserError: the file is missing, empty, damaged (the message names the line), written by an earlier version
                in another format, or being written by another process.
        """
        try:
            with path.open("rb") as file:
                lock(file.fileno(), wait=False)
                raw = file.read()
        except BlockingIOError as error:
            raise UserError(f"{path}: another process is writing this journal; wait until it ends") from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        lines = raw[: raw.rfind(b"\n") + 1].split(b"\n")[:-1]
        if not lines:
            raise UserError(f"{path}: the file is empty; a journal has at least a header")
        header, checked = _read_header(path, lines[0])
        if not checked:
            earlier = "an earlier version wrote this journal, without checksums: finish its work in this file instead"
            raise UserError(f"{path}: {earlier if 'work' in header else 'not a journal of retarget pope'}")
        return cls(path, header, _read_records(path, lines, checked), lines)


def _read_header(path: Path, line: bytes) -> tuple[dict[str, Any], bool]:
    """A journal's first line without the format, and whether every line must have a checksum."""
    found, summed = _read(path, 1, line)
    if "format" not in found:
        return found, False
    if not summed:
        raise _damaged(path, 1, "it has no checksum")
    if found.pop("format") != FORMAT:
        raise UserError(f"{path}: this version of retarget cannot read the journal's format; give another file")
    return found, True


def _read_records(path: Path, lines: Sequence[bytes], checked: bool) -> list[dict[str, Any]]:
    """The records of all lines but the first."""
    records, first = [], {lines[0]: 1}
    for number, line in enumerate(lines[1:], 2):
        record, summed = _read(path, number, line)
        if checked and not summed:
            raise _damaged(path, number, "it has no checksum")
        if checked and first.setdefault(line, number) != number:
            raise _damaged(path, number, f"it repeats line {first[line]}")
        records.append(record)
    return records


def _line(record: dict[str, Any]) -> bytes:
    body = json.dumps(record, ensure_ascii=True, separators=(",", ":"), allow_nan=False)[:-1].encode()
    return body + f'{_SUM}{_sum(body)}"}}'.encode()


def _sum(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:_SUM_LENGTH]


def _read(path: Path, number: int, line: bytes) -> tuple[dict[str, Any], bool]:
    """A line's record without its checksum, and whether it had one."""
    tail = len(_SUM) + _SUM_LENGTH + 2
    body, end = line[:-tail], line[-tail:]
    summed = end.startswith(_SUM.encode()) and end.endswith(b'"}')
    if summed and end[len(_SUM) : -2] != _sum(body).encode():
        raise _damaged(path, number, "its checksum does not match")
    try:
        record = json.loads(body + b"}" if summed else line)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, number, str(error)) from error
    if not isinstance(record, dict):
        raise _damaged(path, number, "it is not a JSON object")
    return record, summed


def _damaged(path: Path, number: int, why: str) -> UserError:
    return UserError(f"{path}: line {number} is damaged ({why}); move the file away, or delete it from that line on")
