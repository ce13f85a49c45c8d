"""An append-only JSONL journal: survives a kill at any byte, and refuses to mix two configurations."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

from retarget.errors import UserError
from retarget.files import cannot_write, lock, make_directory, replace_file
from retarget.identity import Extends, fingerprint, refuse_other

FORMAT = 2
_SUM = ',"sum":"'
_SUM_LENGTH = 16
_REMEDY = "Give another file (--out), or the settings (wording: templates and --chat) that it was started with"
VARIES = "varies"
"""Stands for the probe of a server whose completion at temperature 0 varies, which tells nothing."""
ANSWERED_BY = "answered_by"
"""The entry of a header with the name under which a server answered, if it is another than that of the model."""


class Journal:
    """Records of finished units of work.

    The first line is a header that identifies the work. Every line ends with its own checksum, so that edited or
    damaged lines are detected. Records contain no times, and :meth:`settle` sorts them, so an interrupted and resumed
    run leaves the same bytes as an uninterrupted one. An incomplete last line, left by a killed process, is cut off on
    opening, and a file with a header alone begins again. Journals without checksums, written by earlier versions, are
    read too.

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
        self._lines: list[bytes] = []  # of a journal in memory; a file's lines stay in the file
        self._count = 0
        self._file: int | None = None
        if path is None:
            return
        make_directory(path.parent)
        self._file = opened(path)
        try:
            self._recover(path, self._file, header, extends, former)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return self._count

    def _recover(
        self,
        path: Path,
        file: int,
        header: dict[str, Any],
        extends: Mapping[str, Extends] | None,
        former: Callable[[], Mapping[str, Any]] | None,
    ) -> None:
        try:
            with path.open("rb") as reading:
                first = reading.readline()
                if not first.endswith(b"\n"):
                    _refuse_foreign(path, first)
                    os.ftruncate(file, 0)
                    self._write({"format": FORMAT, **header})
                    return
                if _read_header(path, first[:-1])[1] and not reading.readline().endswith(b"\n"):
                    os.ftruncate(file, 0)  # without a record it can begin again, with other settings too
                    self._write({"format": FORMAT, **header})
                    return
                reading.seek(len(first))
                checked = _belongs(path, first[:-1], header, extends, former)
                whole = _Whole(reading, len(first))
                for _ in _read_records(path, first[:-1], whole, checked):
                    self._count += 1
                if whole.incomplete:
                    os.ftruncate(file, whole.length)
        except OSError as error:
            raise cannot_write(path, error) from error

    def append(self, record: dict[str, Any]) -> None:
        """Add one record. When this returns, the record is in the file."""
        self._write(record)
        self._count += 1

    def _write(self, record: dict[str, Any]) -> None:
        line = _line(record)
        if self.path is None:
            self._lines.append(line)
            return
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        try:
            view = memoryview(line + b"\n")
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def read(self) -> Iterator[dict[str, Any]]:
        """The records in order, one after another: a large journal need not fit into memory."""
        if self.path is None:
            yield from (_read(Path("memory"), number, line)[0] for number, line in enumerate(self._lines, 1))
            return
        try:
            with self.path.open("rb") as file:
                file.readline()
                for number, line in enumerate(file, 2):
                    yield _read(self.path, number, line[:-1])[0]
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from error

    def settle(self, key: Callable[[dict[str, Any]], Any]) -> None:
        """Sort the records by ``key``, so that the order in which they were finished does not matter.

        The file is replaced as a whole, and only if the order changes.
        """
        keys = [key(record) for record in self.read()]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        if order == list(range(len(order))):
            return
        if self.path is None:
            self._lines = [self._lines[index] for index in order]
            return
        with self.path.open("rb") as source:
            ends = list(accumulate(map(len, source)))

            def write(temporary: Path) -> None:
                with temporary.open("wb") as target:
                    for index in [-1, *order]:
                        source.seek(ends[index] if index >= 0 else 0)
                        target.write(source.readline())

            replace_file(self.path, write)

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
    @contextmanager
    def held(cls, path: Path) -> "Iterator[Shard]":
        """Read a journal, and let no other process write it inside the ``with`` statement.

        An incomplete last line, left by a killed process, is ignored.

        Raises:
            UserError: the file is missing, empty, damaged (the message names the line), written by an earlier version
                in another format, or being written by another process.
        """
        file = _opened(path, os.O_RDONLY, lambda error: UserError(f"cannot read {path}: {error.strerror or error}"))
        try:
            try:
                raw = path.read_bytes()
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror or error}") from error
            yield cls._of(path, raw)
        finally:
            os.close(file)

    @classmethod
    def _of(cls, path: Path, raw: bytes) -> "Shard":
        lines = raw[: raw.rfind(b"\n") + 1].split(b"\n")[:-1]
        if not lines:
            what = "its first line is cut off" if raw else "the file is empty"
            raise UserError(f"{path}: {what}; a journal has at least a header")
        header, checked = _read_header(path, lines[0])
        if not checked:
            earlier = "an earlier version wrote this journal, without checksums: finish its work in this file instead"
            raise UserError(f"{path}: {earlier if 'work' in header else 'not a journal of retarget pope'}")
        return cls(path, header, list(_read_records(path, lines[0], lines[1:], checked)), lines)


def opened(path: Path) -> int:
    """A descriptor of the file at a path, created if missing, to read and to append; it is locked until it is closed.

    Raises:
        UserError: it cannot be opened, or another process is writing it.
    """
    return _opened(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, lambda error: cannot_write(path, error))


def _opened(path: Path, how: int, failed: Callable[[OSError], UserError]) -> int:
    """A locked descriptor of the file that is at a path once it is locked: a merge may have replaced it before."""
    while True:
        try:
            file = os.open(path, how, 0o644)
        except OSError as error:
            raise failed(error) from error
        try:
            lock(file, wait=False)
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        except BlockingIOError as error:
            os.close(file)
            raise UserError(f"{path}: another process is writing this journal; wait until it ends") from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)


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


def _belongs(
    path: Path,
    line: bytes,
    header: dict[str, Any],
    extends: Mapping[str, Extends] | None,
    former: Callable[[], Mapping[str, Any]] | None,
) -> bool:
    """Refuse a journal of other work by its first line; returns whether every line must have a checksum."""
    found, checked = _read_header(path, line)
    if same_weights(found, header):  # they may be in a folder of another name on each machine
        extends = {**(extends or {}), "model": lambda had, now: True}
    remedy = _REMEDY
    if found.get("probe") and header.get("probe") and found["probe"] != header["probe"]:
        remedy += ", or --fingerprint if the weights are the same and only the server's rounding is not"
    if checked:
        refuse_other(path, found, header, extends=extends, remedy=remedy)
        return True
    if found.pop("work", None) != fingerprint(found):
        raise _damaged(path, 1, "its fingerprint does not match")
    added = former() if former else {}
    had = {name: value for name, value in found.items() if name in header or name in added}
    refuse_other(path, had, {**header, **added}, extends=extends, remedy=remedy)
    return False


def same_weights(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two headers have the weights of their models, and the same."""
    return one.get("weights") is not None and one["weights"] == other.get("weights")


def _refuse_foreign(path: Path, first: bytes) -> None:
    """Refuse a file without a whole line, unless a killed process had begun a journal's header in it."""
    begun = f'{{"format":{FORMAT}'.encode()
    if first[: len(begun)] != begun[: len(first)]:
        raise UserError(f"{path} is not a journal: it has no line that ends. Give another file, or move it away")


class _Whole:
    """The lines of a file without their ends, but for an incomplete last one, which a killed process has left."""

    def __init__(self, lines: Iterable[bytes], length: int) -> None:
        self._lines, self.length, self.incomplete = lines, length, False

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            if not line.endswith(b"\n"):
                self.incomplete = True
                return
            self.length += len(line)
            yield line[:-1]


def _read_records(path: Path, header: bytes, lines: Iterable[bytes], checked: bool) -> Iterator[dict[str, Any]]:
    """The records of all lines but the first."""
    first = {hash(header): 1}
    for number, line in enumerate(lines, 2):
        record, summed = _read(path, number, line)
        if checked and not summed:
            raise _damaged(path, number, "it has no checksum")
        if checked and first.setdefault(hash(line), number) != number:
            raise _damaged(path, number, f"it repeats line {first[hash(line)]}")
        yield record


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
