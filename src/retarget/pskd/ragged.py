"""PS-KD on sequences: one row for each (sentence, target position), as many as the sentence has targets.

A sentence's rows lie one after another in the table, from its offset on; everything else (two slots with the epoch
that wrote each, the first write counts, the exchange between ranks, the state) is the table's. The position is the
number of targets before it in the sentence, so padding on either side, and prompts that are not trained on, change
nothing and take no row.
"""

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.method import PSKD, Store
from retarget.pskd.rows import Dense, TopK
from retarget.pskd.store import MemoryMapped, row_format
from retarget.pskd.teacher import PreviousModel

MEMORY_LIMIT = 8_000_000_000
"""Bytes of a table in memory above which the user must ask for files."""


class Offsets:
    """Where the rows of each sequence lie.

    Args:
        lengths: targets of each sequence, 0 or more.

    >>> where = Offsets([2, 0, 3])
    >>> where.num_rows, where.find(3)
    (5, (2, 1))
    """

    def __init__(self, lengths: Iterable[int]) -> None:
        self.lengths = torch.as_tensor(list(lengths), dtype=torch.long)
        if len(self.lengths) == 0 or self.lengths.amin() < 0 or self.lengths.sum() < 1:
            raise UserError("lengths are the numbers of targets of the sequences: none is negative, some are above 0")
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.num_rows = int(self.lengths.sum())

    def find(self, row: int) -> tuple[int, int]:
        """The sequence that a row belongs to, and the position in it."""
        sequence = int(torch.searchsorted(self.starts + self.lengths, row, right=True))
        return sequence, row - int(self.starts[sequence])

    def rows(
        self, index: Integer[Tensor, "batch"], counted: Bool[Tensor, "batch positions"]
    ) -> Integer[Tensor, "batch positions"]:
        """The row of each counted target; for the others some row of the table.

        Args:
            index: [B], each sequence's place in the training set, in [0, number of sequences).
            counted: [B, T], which positions have a target.
        """
        if self.starts.device != counted.device:
            self.starts, self.lengths = self.starts.to(counted.device), self.lengths.to(counted.device)
        position = (counted.long().cumsum(1) - 1).clamp_min(0)
        return (self.starts[index.to(counted.device)][:, None] + position).clamp_max(self.num_rows - 1)


class SequencePSKD(PSKD):
    """PS-KD for targets [B, T]: translation, language models, tagging.

    Args:
        lengths: number of targets (labels that are not ``ignore_index``) of each training sequence.
        num_classes: C, size of the vocabulary.
        store: ``TopK(k)`` by default, with k = 10; ``MemoryMapped(path, TopK(k))`` for what does not fit in memory.

    Other arguments as in :class:`~retarget.pskd.method.PSKD`.

    >>> method = SequencePSKD([2, 1], num_classes=50, total_epochs=2)
    >>> method.set_epoch(0)
    >>> labels = torch.tensor([[7, 2], [4, -100]])
    >>> round(method.loss(torch.zeros(2, 2, 50), labels, torch.tensor([0, 1])).item(), 3)
    3.912

    Raises:
        UserError: a table in memory above ``MEMORY_LIMIT`` bytes; ``PreviousModel``, which needs no sequence keys.
    """

    def __init__(
        self,
        lengths: Iterable[int],
        num_classes: int,
        total_epochs: int,
        alpha_T: float = 0.8,
        *,
        store: Store | None = None,
        schedule: Literal["linear", "constant"] = "linear",
        ignore_index: int = -100,
        device: torch.device | str | None = None,
    ) -> None:
        self.offsets = Offsets(lengths)
        if isinstance(store, PreviousModel):
            raise UserError("PreviousModel is not available for sequences; use TopK(k) or MemoryMapped(path, TopK(k))")
        if store is None:
            store = TopK(10) if num_classes >= 40 else Dense()
        nbytes = table_bytes(self.offsets.num_rows, num_classes, store)
        if nbytes > MEMORY_LIMIT and not isinstance(store, MemoryMapped):
            raise UserError(
                f"a table of {nbytes / 1e9:.0f} GB ({self.offsets.num_rows:,} targets of {num_classes:,} classes as "
                f"{store}) is too large for memory; use MemoryMapped(path, TopK(k)), or a smaller k"
            )
        super().__init__(
            self.offsets.num_rows,
            num_classes,
            total_epochs,
            alpha_T,
            store=store,
            schedule=schedule,
            ignore_index=ignore_index,
            device=device,
        )
        self._checks.name = self._name

    def loss(
        self,
        logits: Float[Tensor, "batch positions classes"],
        targets: Integer[Tensor, "batch positions"],
        index: Integer[Tensor, "batch"],
        *,
        inputs: Any = None,
        smoothing: float = 0.0,
        denominator: float | Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """Mean over the batch's targets of the cross-entropy against the softened ones; remembers the present.

        Args:
            logits: [B, T, C]; the prediction *of* the target at the same place (shift a causal model's labels first).
            targets: [B, T], classes or ``ignore_index``.
            index: [B], each sequence's place in the training set.
            smoothing, denominator: as in :meth:`PSKD.loss`.

        Raises:
            UserError: as :meth:`PSKD.loss`; also for a sequence with another number of targets than ``lengths`` says.
        """
        flat = self._flatten(logits, targets, index)
        return super().loss(*flat, smoothing=smoothing, denominator=denominator)

    def soften(
        self, targets: Integer[Tensor, "batch positions"], index: Integer[Tensor, "batch"], *, inputs: Any = None
    ) -> Float[Tensor, "batch positions classes"]:
        """The softened targets as dense rows [B, T, C]: for small vocabularies and for looking at them."""
        _, flat, rows = self._flatten(None, targets, index)
        return super().soften(flat, rows).view(*targets.shape, self.num_classes)

    def remember(
        self,
        logits: Float[Tensor, "batch positions classes"],
        targets: Integer[Tensor, "batch positions"],
        index: Integer[Tensor, "batch"],
    ) -> None:
        """Store the present predictions."""
        super().remember(*self._flatten(logits, targets, index))

    def state_dict(self) -> dict[str, Any]:
        """As :meth:`PSKD.state_dict`, with a fingerprint of the lengths: rows of other sentences are refused."""
        lengths = self.offsets.lengths.cpu().numpy().astype("<i8").tobytes()
        return {**super().state_dict(), "lengths": hashlib.sha256(lengths).hexdigest()[:16]}

    # -- inside

    def _flatten(self, logits: Tensor | None, targets: Tensor, index: Tensor) -> Any:
        """Logits [B·T, C], targets [B·T] and rows [B·T], after the checks that need to know sequences."""
        if targets.ndim != 2 or index.shape != targets.shape[:1]:
            raise UserError(f"targets are [B, T] and index is [B]: got {list(targets.shape)} and {list(index.shape)}")
        if logits is not None and logits.shape != (*targets.shape, self.num_classes):
            expected = [*targets.shape, self.num_classes]
            raise UserError(f"logits are [B, T, C] = {expected}, as the targets are [B, T]: got {list(logits.shape)}")
        sequences = len(self.offsets.lengths)
        self._checks.require(
            (index >= 0) & (index < sequences),
            lambda row: f"sequence index {int(index[row])} in row {row} of the batch lies outside [0, {sequences})",
        )
        index = index.clamp(0, sequences - 1).to(targets.device)
        counted = targets != self.ignore_index
        rows = self.offsets.rows(index, counted)
        here = counted.sum(1)
        self._checks.require(
            here == self.offsets.lengths[index],
            lambda row: (
                f"sequence {int(index[row])} has {int(here[row])} targets, and {int(self.offsets.lengths[index[row]])} "
                "rows in the table: lengths must be those of the training set, the same in every epoch"
            ),
        )
        flat = None if logits is None else logits.reshape(-1, self.num_classes)
        return flat, targets.reshape(-1), rows.reshape(-1)

    def _name(self, row: int) -> str:
        sequence, position = self.offsets.find(row)
        return f"target {position} of sequence {sequence}"


def table_bytes(num_rows: int, num_classes: int, store: Store) -> int:
    """Bytes of a table, both slots and stamps, before it is made.

    >>> table_bytes(1000, 10_000, TopK(10))  # against 40 MB for one buffer of dense float32
    88088
    """
    fields = row_format(store).fields(num_classes)  # type: ignore[arg-type]
    return 2 * (num_rows + 1) * (4 + sum(width * dtype.itemsize for width, dtype in fields.values()))
