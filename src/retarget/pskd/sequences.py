"""PS-KD on sequences: one row for each (sentence, target position), as many as the sentence has targets.

A sentence's rows lie one after another in the table, from its offset on; everything else (two slots with the epoch
that wrote each, the first write counts, the exchange between ranks, the state) is the table's. The position is the
number of targets before it in the sentence, so padding on either side, and prompts that are not trained on, change
nothing and take no row.
"""

import hashlib
from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.checks import Checks
from retarget.pskd.past.previous import PreviousModel
from retarget.pskd.past.rows import Dense, TopK
from retarget.pskd.past.store import Store
from retarget.pskd.places import PlacedPSKD


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


def lengths_fingerprint(offsets: Offsets | None) -> str:
    """What a resumed run must agree on: the length of each sequence."""
    lengths = offsets.lengths.cpu().numpy().astype("<i8").tobytes() if offsets else b""
    return hashlib.sha256(lengths).hexdigest()[:16]


class SequencePSKD(PlacedPSKD):
    """PS-KD for targets [B, T]: translation, language models, tagging.

    Args:
        lengths: number of targets (labels that are not ``ignore_index``) of each training sequence; None is enough
            for ``PreviousModel``.
        num_classes: C, size of the vocabulary.
        store: ``TopK(k)`` by default, with k = 10; ``MemoryMapped(path, TopK(k))`` for what does not fit in memory.

    Logits are [B, T, C], the prediction *of* the target at the same place: shift a causal model's labels first. Other
    arguments as in :class:`~retarget.pskd.method.PSKD`.

    >>> method = SequencePSKD([2, 1], num_classes=50, total_epochs=2)
    >>> method.set_epoch(0)
    >>> labels = torch.tensor([[7, 2], [4, -100]])
    >>> round(method.loss(torch.zeros(2, 2, 50), labels, torch.tensor([0, 1])).item(), 3)
    3.912

    Raises:
        UserError: a table in memory above ``MEMORY_LIMIT`` bytes.
    """

    def __init__(
        self,
        lengths: Iterable[int] | None,
        num_classes: int,
        total_epochs: int,
        alpha_T: float = 0.8,
        *,
        store: Store | None = None,
        schedule: Literal["linear", "constant"] = "linear",
        ignore_index: int = -100,
        device: torch.device | str | None = None,
    ) -> None:
        if store is None:
            store = TopK(10) if num_classes >= 40 else Dense()
        layout = Sequences(None if isinstance(store, PreviousModel) else lengths)
        if lengths is None and not isinstance(store, PreviousModel):
            raise UserError("rows need lengths, the number of targets of each training sequence")
        super().__init__(
            layout,
            num_classes,
            total_epochs,
            alpha_T,
            store=store,
            schedule=schedule,
            ignore_index=ignore_index,
            device=device,
            lengths=lengths_fingerprint(layout.offsets),  # rows of other sentences are refused
        )


class Sequences:
    """The layout of sequences of these lengths."""

    logits_shape = "[B, T, C]"

    def __init__(self, lengths: Iterable[int] | None) -> None:
        self.offsets = None if lengths is None else Offsets(lengths)
        self.num_rows = self.offsets.num_rows if self.offsets else None
        self.num_samples = len(self.offsets.lengths) if self.offsets else None

    def classes_last(self, logits: Tensor) -> Tensor:
        return logits

    def rows(
        self, targets: Tensor, index: Tensor, ignore_index: int, checks: Checks
    ) -> Integer[Tensor, "batch positions"]:
        assert self.offsets is not None
        lengths = self.offsets.lengths
        checks.require(
            (index >= 0) & (index < len(lengths)),
            lambda row: f"sequence index {int(index[row])} in row {row} of the batch lies outside [0, {len(lengths)})",
        )
        at = index.clamp(0, len(lengths) - 1).to(targets.device)
        counted = targets != ignore_index
        rows = self.offsets.rows(at, counted)
        here, expected = counted.sum(1), self.offsets.lengths[at]
        checks.require(
            here == expected,
            lambda row: (
                f"sequence {int(at[row])} has {int(here[row])} targets, and {int(expected[row])} rows in the "
                "table: lengths must be those of the training set, the same in every epoch"
            ),
        )
        return rows

    def name(self, row: int) -> str:
        assert self.offsets is not None
        sequence, position = self.offsets.find(row)
        return f"target {position} of sequence {sequence}"
