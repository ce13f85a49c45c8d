"""An append-only JSONL journal that survives being killed at any byte and refuses to mix two configurations."""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from retarget.errors import UserError
from retarget.files import cannot_write, make_directory
from retarget.identity import fingerprint, refuse_other


class Journal:
    """Records of finished units of work, in the order in which they were finished.

    The first line is a header that identifies the work. Records carry no time, so an interrupted and resumed run
    leaves the same bytes as an uninterrupted one. A line that a killed process left incomplete is cut off on opening.

    Args:
        path: the file; made with its directory where it is missing. None keeps the journal in memory.
        header: JSON values that decide the records (model, seed, k, a fingerprint of the problems, ...).

    Raises:
        UserError: the file belongs to other work, is damaged before its last line, or another process writes it.
    """

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        self._file: int | None = None
        if path is None:
            return
        make_directory(path.parent)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._file)
            raise UserError(f"{path}: another process writes this journal") from error
        try:
            self._recover(path, self._file, header)
        except UserError:
            self.close()
            raise

    def _recover(self, path: Path, file: int, header: dict[str, Any]) -> None:
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.ftruncate(file, len(whole))
        lines = whole.split(b"\n")[:-1]
        for number, line in enumerate(lines, 1):
            try:
                self.records.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path}: line {number} is damaged; move the file away or cut it there") from error
        if not self.records:
            self._write({**header, "work": fingerprint(header)})
            return
        found = self.records.pop(0)
        if found.pop("work", None) != fingerprint(found):
            raise UserError(f"{path}: line 1 is damaged; move the file away")
        refuse_other(path, found, header, remedy="Give another file, or the settings that it was begun with")

    def append(self, record: dict[str, Any]) -> None:
        """Add one record; it is in the file when this returns."""
        self.records.append(record)
        self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            line = json.dumps(record, ensure_ascii=True, separators=(",", ":"), allow_nan=False) + "\n"
            view = memoryview(line.encode())
            while view:
                view = view[os.write(self._file, view) :]

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
