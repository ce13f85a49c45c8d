"""The past in a table: one row per key, in memory or in files, exchanged between ranks."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.checks import Checks, check_unchanged, incomparable
from retarget.pskd.functional import SparseRows
from retarget.pskd.past.exchange import WriteLog, communication_device, exchange, world_size
from retarget.pskd.past.files import OTHER_PROCESSES, has_rows
from retarget.pskd.past.rows import Dense, RowFormat
from retarget.pskd.past.state import restore
from retarget.pskd.past.table import Table, table_bytes

_ENDS = "ends"
"""In the state of a table in files: the latest epochs of which it had rows, before the state's own and in all."""


class PastInTable:
    """A :class:`~retarget.pskd.past.base.Past` that stores predictions; the table is created at the first batch.

    Args:
        rows: the format of a row.
        num_rows: N.
        num_classes: number of classes, C.
        device: where the table lives; by default where the first batch is.
        path: a directory for a table in files, which the CPU reads and writes.
        name: gives the name of a row for messages.
    """

    def __init__(
        self,
        rows: RowFormat,
        num_rows: int,
        num_classes: int,
        device: torch.device | str | None = None,
        path: Path | None = None,
        name: Callable[[int], str] = "sample {}".format,
    ) -> None:
        self.num_bytes, self.kind = table_bytes(num_rows, num_classes, rows), repr(rows)
        self.rows, self.num_rows, self.num_classes, self.name = rows, num_rows, num_classes, name
        self.device, self.path = None if device is None else torch.device(device), path
        self.table: Table | None = None
        self._epoch: int | None = None
        self._log = WriteLog()
        self._placed = False  # a table loaded before the first batch is moved to the device of the batches
        self._rejoined: Path | None = None  # the loaded state, while the files hold rows of the epoch after its own
        self._older: str = ""  # why the files lack rows that the loaded state's own epoch had written, if they do
        self._known: Tensor | None = None  # [N + 1], the number that each key was last seen with; -1: not yet

    def begin(self, epoch: int) -> None:
        if epoch in (0, self._epoch):  # begun again: forget what was seen in it
            self._known = None
        if self.path and not self.table:
            self._make(torch.device("cpu"))  # now that each process knows its rank
        if self.table:
            if self._older and epoch > self.table.epoch:  # begun again, the state's own epoch writes them anew
                raise UserError(self._older)
            if self._rejoined and 0 < epoch <= self.table.epoch:
                self._refuse_overwritten(torch.arange(self.num_rows))
            self.table.begin(epoch)
        self._epoch, self._rejoined, self._older = epoch, None, ""

    def found(self) -> Path | None:
        """The files of this table, if they hold rows already before the first batch."""
        if self.path is None:
            return None
        table = self.table or self._make(torch.device("cpu"))
        return self.path if table.newest >= 0 else None

    def end(self) -> None:
        if not self.table and self._epoch is not None and world_size() > 1:
            self._make(self.device or communication_device())  # every rank must take part in the exchange
        if self.table:
            exchange(self.table, self._log, self._known, self.name)

    def locate(self, keys: Tensor, device: torch.device) -> Tensor:
        if self._older:
            raise UserError(self._older)
        device = self.device or device
        table = self.table or self._make(device)
        if not self._placed and not table.path and table.device != device:
            table.move(device)
        self._placed = True
        # From a GPU to the CPU the host must wait: it reads the keys at once, and not what was in their memory before.
        return keys.to(table.device, non_blocking=table.device.type != "cpu")

    def check_labels(self, checks: Checks, labels: Tensor, keys: Tensor, counted: Tensor) -> None:
        """A dense row does not tell the label that its key had; this does, for what this process has seen."""
        if isinstance(self.rows, Dense):
            self.compare(labels.int(), keys, counted, lambda same: check_unchanged(checks, same, labels, keys))

    def compare(self, numbers: Tensor, keys: Tensor, counted: Tensor, refuse: Callable[[Tensor], None]) -> None:
        """Compare a number of each key with the one that this process has last seen, and note it.

        Args:
            numbers: [B] integers from 0 on, always of the same type: labels, or fingerprints of targets.
            keys: [B], on any device.
            counted: [B], False where a number says nothing.
            refuse: gets whether each number is the same as before, [B], and raises if one is not.
        """
        if self._known is None:
            self._known = torch.full((self.num_rows + 1,), -1, dtype=numbers.dtype)
        known = self._known = self._known.to(numbers.device)
        keys = keys.to(numbers.device, non_blocking=True)
        before = known[keys]
        refuse((before < 0) | (before == numbers) | incomparable(before, numbers) | ~counted)
        known[keys.masked_fill(~counted, self.num_rows)] = numbers  # the last entry belongs to no key

    def read(self, keys: Tensor, device: torch.device, inputs: Any = None) -> tuple[Tensor | SparseRows, Tensor]:
        if not self.table:
            raise UserError("there are no past predictions yet: no batch has been seen, and no state was loaded")
        keys = keys.to(self.table.device)
        if self._rejoined:
            self._refuse_overwritten(keys)
        fields, written = self.table.gather(keys)
        if device != self.table.device:
            pin = device.type == "cuda" and self.table.device.type == "cpu"
            fields = {n: (f.pin_memory() if pin else f).to(device, non_blocking=True) for n, f in fields.items()}
            written = (written.pin_memory() if pin else written).to(device, non_blocking=True)
        return self.rows.decode(fields, self.num_classes), written.float()

    def write(
        self, logits: Tensor, labels: Tensor, keys: Tensor, keep: Tensor | None = None, log_norm: Tensor | None = None
    ) -> None:
        with torch.no_grad():
            fields = self.rows.encode(logits.detach(), labels, log_norm)
        self.put(keys, fields, torch.ones_like(labels, dtype=torch.bool) if keep is None else keep)

    def put(self, keys: Tensor, fields: dict[str, Tensor], keep: Tensor) -> None:
        """Store encoded rows for keys that :meth:`locate` returned."""
        assert self.table is not None
        self.table.write(keys, fields, keep)
        self._log.add(keys, keep)

    def save(self) -> dict[str, Tensor]:
        """The table; one in files is flushed to its own files instead, and only how far it is is returned."""
        if self.table and self.path:
            self.table.persist()  # each rank has its own files
            return {_ENDS: torch.tensor([self.table.latest(self.table.epoch), self.table.latest()])}
        return self.table.tensors() if self.table else {}

    def load(self, path: Path, epoch: int | None, saved: dict[str, Tensor]) -> None:
        self._epoch, self._known, self._rejoined, self._older = epoch, None, None, ""
        ends = saved.get(_ENDS)
        if saved and ends is None:
            table = self.table or self._make(self.device or torch.device("cpu"))
            restore(path, table.tensors(), saved)
            table.epoch = epoch or 0
        elif self.path:
            self._rejoin(path, -1 if epoch is None else epoch, None if ends is None else ends.tolist())
        elif epoch:
            raise UserError(
                f"{path} was saved in epoch {epoch} and has no rows: those of a MemoryMapped table stay in its own "
                "files, so pass MemoryMapped with the same path"
            )

    # -- inside

    def _rejoin(self, state: Path, saved: int, ends: list[int] | None) -> None:
        """Open the files that a saved state belongs to, and check that they hold what its next epoch reads.

        Whether they also hold what the rest of its own epoch reads is checked when that is read, and whether they hold
        what the state's own epoch had written when it goes on or the next one begins: begun again, it needs none of it.

        Args:
            saved: the epoch in which the state was saved; -1 before the first.
            ends: the latest epochs of which there were rows then, before ``saved`` and in all. They may be much
                earlier, as an epoch may remember nothing; None in a state of version 0.1, which does not tell.
        """
        table = self.table or self._make(torch.device("cpu"))
        table.flush()
        newest = table.newest
        if newest < 0 <= saved:
            if world_size() > 1 and self.path and (has_rows(self.path) or has_rows(self.path / "rank-0")):
                raise UserError(f"{table.path} is empty, but {self.path} {OTHER_PROCESSES}")
            raise UserError(f"{state} belongs to a memory-mapped table, but the table at {table.path} is empty")
        if newest > saved + 1:
            raise UserError(
                f"{state} was saved in epoch {saved}, but the table at {table.path} has been through epoch {newest}: "
                "the rows of that time are overwritten, so resume from a later state"
            )
        latest = table.latest()

        def older(than: int) -> str:
            return (
                f"{state} was saved in epoch {saved}, when the table had rows of epoch {than}, but the latest in the "
                f"table at {table.path} are of epoch {latest}: its files are older than the state, so put back those "
                "of its time, or resume from a state that is as old as they are"
            )

        if ends and latest < ends[0]:
            raise UserError(older(ends[0]))
        if not ends and newest < saved - 1:
            warnings.warn(
                f"{state} was saved in epoch {saved}, but the latest rows in the table at {table.path} are of epoch "
                f"{newest}: unless the epochs between remembered nothing, its files are older than the state, so put "
                "back those of its time",
                stacklevel=4,
            )
        self._older = older(ends[1]) if ends and latest < ends[1] else ""
        table.epoch = max(saved, 0)
        self._rejoined = state if newest > saved else None

    def _refuse_overwritten(self, keys: Tensor) -> None:
        """Raise if the state's own epoch reads rows of these keys that the epoch after it has overwritten."""
        assert self.table is not None
        lost = keys[self.table.overwritten(keys)]
        if len(lost):
            epoch = self.table.epoch
            raise UserError(
                f"{self._rejoined} was saved in epoch {epoch}, and going on within it needs the past of "
                f"{self.name(int(lost[0]))}, which epoch {epoch + 1} has overwritten in the table at "
                f"{self.table.path}: resume from a later state, saved at the end of epoch {epoch} or after it. A table "
                "in memory (Dense, TopK) is saved whole in every state, so a run with one resumes from any of them"
            )

    def _make(self, device: torch.device) -> Table:
        path = self.path / f"rank-{torch.distributed.get_rank()}" if self.path and world_size() > 1 else self.path
        self.table = Table(self.rows, self.num_rows, self.num_classes, device, path)
        self.table.epoch = self._epoch or 0
        return self.table
