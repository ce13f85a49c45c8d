"""The table of past predictions: two slots per sample, in memory or in files.

Every slot is stamped with the epoch that wrote it. An epoch reads the newest slot written *before* it and writes into
the other one. So it never reads its own rows, whatever samples the sampler repeats or drops, and a run killed in the
middle of an epoch finds the rows of the earlier epochs intact. If an epoch writes a sample several times, the first
write counts, also across processes.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.past.files import MemoryMapped, open_files
from retarget.pskd.past.rows import Dense, RowFormat, TopK


class Table:
    """Two slots per sample, with epoch stamps.

    Args:
        rows: the format of a row.
        num_samples: N.
        num_classes: number of classes, C.
        device: where the table lives; with ``path`` always the CPU.
        path: directory for a memory-mapped table.

    Each slot has one extra row, number N, into which values are written that must not be stored: unlike a mask, this
    needs no synchronisation with the host.
    """

    def __init__(
        self,
        rows: RowFormat,
        num_samples: int,
        num_classes: int,
        device: torch.device | str = "cpu",
        path: Path | None = None,
    ) -> None:
        self.rows, self.num_samples, self.num_classes, self.path = rows, num_samples, num_classes, path
        self.device = torch.device("cpu" if path else device)
        self.epoch = 0
        size = 2 * (num_samples + 1)
        layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            name: ((size, width), dtype) for name, (width, dtype) in rows.fields(num_classes).items()
        }
        layout["stamps"] = ((size,), torch.int32)  # the writing epoch + 1; 0: never written
        self._files: list[np.memmap] = []
        if path:
            self._tensors, self._files = open_files(path, layout)
        else:
            self._tensors = {n: torch.zeros(s, dtype=t, device=self.device) for n, (s, t) in layout.items()}
        self.device = self._tensors["stamps"].device  # "cuda" becomes "cuda:0", say
        self._pending: list[tuple[torch.cuda.Event, Tensor, dict[str, Tensor], Tensor]] = []

    @property
    def bytes_per_row(self) -> int:
        """Size of one row in one slot, in bytes, its stamp included."""
        return sum(t[:1].numel() * t.element_size() for t in self._tensors.values())

    @property
    def num_bytes(self) -> int:
        """Size of the whole table in bytes."""
        return sum(t.numel() * t.element_size() for t in self._tensors.values())

    def begin(self, epoch: int) -> None:
        """Begin an epoch. Rows of this epoch or a later one, left by an aborted attempt, are forgotten."""
        self.flush(wait=True)
        stamps = self._tensors["stamps"]
        stamps.masked_fill_(stamps > epoch, 0)
        self.epoch = epoch

    def gather(self, index: Integer[Tensor, "batch"]) -> tuple[dict[str, Tensor], Bool[Tensor, "batch"]]:
        """The fields of each sample's newest row from before this epoch, and which samples have one."""
        slot, written, _ = self._newest(index)
        at = slot * (self.num_samples + 1) + index
        fields = {name: tensor.index_select(0, at) for name, tensor in self._tensors.items() if name != "stamps"}
        return fields, written

    def write(self, index: Integer[Tensor, "batch"], fields: dict[str, Tensor], keep: Bool[Tensor, "batch"]) -> None:
        """Store rows of this epoch, except where ``keep`` is False and for samples that it has written already.

        ``index`` is on the table's device. Fields and ``keep`` on another device are copied through pinned memory
        without waiting; the copies are complete before the next epoch begins.
        """
        source = next(iter(fields.values())).device
        if source.type == "cuda" and self.device.type == "cpu":
            self.flush(wait=False)
            staged = {name: _to_host(value) for name, value in fields.items()}
            keep = _to_host(keep)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(source))
            self._pending.append((event, index, staged, keep))
        else:
            moved = {name: value.to(self.device) for name, value in fields.items()}
            self._put(index, moved, keep.to(self.device))

    def overwrite(self, index: Integer[Tensor, "batch"], fields: dict[str, Tensor]) -> None:
        """Replace rows that this process wrote in this epoch by those of another rank, which came first."""
        slot, _, own = self._newest(index)
        self._assign(torch.where(own, self._own_at(index), (1 - slot) * (self.num_samples + 1) + index), fields)

    def overwritten(self, index: Integer[Tensor, "batch"]) -> Bool[Tensor, "batch"]:
        """Which samples have no slot from before this epoch left, since a later one has taken it."""
        return (self._tensors["stamps"].view(2, -1)[:, index] > self.epoch).all(0)

    def own_rows(self, index: Integer[Tensor, "batch"]) -> dict[str, Tensor]:
        """The fields that this epoch wrote for these samples."""
        at = self._own_at(index)
        return {name: tensor.index_select(0, at) for name, tensor in self._tensors.items() if name != "stamps"}

    @property
    def newest(self) -> int:
        """The latest epoch that has written a row; -1 if none has."""
        return int(self._tensors["stamps"].max()) - 1

    def latest(self, before: int | None = None) -> int:
        """The latest epoch, of those before ``before``, of which a sample has a row; -1 if there is none."""
        stamps = self._tensors["stamps"].view(2, -1)[:, : self.num_samples]  # the last row belongs to no sample
        return int((stamps if before is None else stamps.masked_fill(stamps > before, 0)).max()) - 1

    def move(self, device: torch.device) -> None:
        """Move a table in memory to another device."""
        self.flush()
        self._tensors = {name: tensor.to(device) for name, tensor in self._tensors.items()}
        self.device = self._tensors["stamps"].device

    def tensors(self) -> dict[str, Tensor]:
        """The table's own tensors by field, which a checkpoint saves and restores in place."""
        self.flush(wait=True)
        return self._tensors

    def persist(self) -> None:
        """Wait for pending copies and, for a table in files, until the system has written them to disk."""
        self.flush(wait=True)
        for file in self._files:
            file.flush()

    def flush(self, wait: bool = True) -> None:
        """Store rows whose copy from another device is complete; with ``wait``, wait for all of them."""
        while self._pending and (wait or self._pending[0][0].query()):
            event, index, staged, keep = self._pending.pop(0)
            event.synchronize()
            self._put(index, staged, keep)

    def _own_at(self, index: Tensor) -> Tensor:
        """Position of the row that this epoch wrote, for samples that it has written."""
        second = self.num_samples + 1 + index
        return torch.where(self._tensors["stamps"][second] == self.epoch + 1, second, index)

    def _newest(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Slot of the newest row from before this epoch; whether there is one; whether this epoch wrote one."""
        stamps = self._tensors["stamps"].view(2, -1)[:, index]
        own = stamps == self.epoch + 1
        before = stamps.masked_fill(stamps > self.epoch, 0)
        return (before[1] > before[0]).long(), before.amax(0) > 0, own.any(0)

    def _put(self, index: Tensor, fields: dict[str, Tensor], keep: Tensor) -> None:
        keep = keep & first_occurrence(index, keep)
        slot, _, own = self._newest(index)
        target = (1 - slot) * (self.num_samples + 1) + index
        self._assign(torch.where(keep & ~own, target, self.num_samples), fields)

    def _assign(self, at: Tensor, fields: dict[str, Tensor]) -> None:
        for name, value in fields.items():
            self._tensors[name][at] = value
        self._tensors["stamps"].index_fill_(0, at, self.epoch + 1)  # an assignment would copy the number from the host


def first_occurrence(index: Integer[Tensor, "batch"], among: Bool[Tensor, "batch"]) -> Bool[Tensor, "batch"]:
    """Which positions of a batch hold a sample for the first time, counting only positions in ``among``.

    >>> first_occurrence(torch.tensor([4, 7, 4]), torch.tensor([True, True, True])).tolist()
    [True, True, False]
    """
    key = torch.where(among, index, -1)
    ordered, order = key.sort(stable=True)
    first = torch.ones_like(among)
    first[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(among).scatter_(0, order, first) & among


def row_format(store: "str | RowFormat | MemoryMapped") -> RowFormat:
    """The row format that a ``store=`` argument names."""
    if store == "dense":
        return Dense()
    if isinstance(store, MemoryMapped):
        if not isinstance(store.rows, Dense | TopK):
            raise UserError(f"the rows of MemoryMapped must be Dense(dtype) or TopK(k): got {store.rows!r}")
        return store.rows
    if isinstance(store, Dense | TopK):
        return store
    raise UserError(
        f"store must be 'dense', Dense(dtype), TopK(k), MemoryMapped(path) or PreviousModel(model): got {store!r}"
    )


def table_bytes(num_rows: int, num_classes: int, store: "str | RowFormat | MemoryMapped") -> int:
    """Size of a table in bytes, both slots and stamps, before it is created.

    >>> from retarget.pskd.past.rows import TopK
    >>> table_bytes(1000, 10_000, TopK(10))  # against 40 MB for one buffer of dense float32
    88088
    """
    fields = row_format(store).fields(num_classes)
    return 2 * (num_rows + 1) * (4 + sum(width * dtype.itemsize for width, dtype in fields.values()))


def _to_host(value: Tensor) -> Tensor:
    """Start a copy to pinned memory."""
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
