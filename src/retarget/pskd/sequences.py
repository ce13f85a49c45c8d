"""PS-KD on sequences: one row for each target of each sentence.

A sentence's rows are stored one after another, beginning at the sentence's offset. Everything else (two slots with
the epoch that wrote each, the rule that the first write counts, the exchange between ranks, the state) is the table's.
Targets are counted within the sentence, so padding on either side, and prompts that are not trained on, change nothing
and take no row.
"""

import hashlib
from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.checks import Checks
from retarget.pskd.past.base import Store
from retarget.pskd.past.previous import PreviousModel
from retarget.pskd.past.rows import Dense, TopK
from retarget.pskd.places import PlacedPSKD


class Offsets:
    """The rows of each sequence in the table.

    Args:
        lengths: number of targets of each sequence, 0 or more.

    >>> where = Offsets([2, 0, 3])
    >>> where.num_rows, where.find(3)
    (5, (2, 1))
    """

    def __init__(self, lengths: Iterable[int]) -> None:
        self.lengths = torch.as_tensor(list(lengths), dtype=torch.long)
        if len(self.lengths) == 0 or self.lengths.amin() < 0 or self.lengths.sum() < 1:
            raise UserError("lengths must be the sequences' numbers of targets: none negative, at least one above 0")
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.num_samples, self.num_rows = len(self.lengths), int(self.lengths.sum())

    def find(self, row: int) -> tuple[int, int]:
        """The sequence that a row belongs to, and the number of targets before it in the sequence."""
        sequence = int(torch.searchsorted(self.starts + self.lengths, row, right=True))
        return sequence, row - int(self.starts[sequence])

    def rows(
        self, index: Integer[Tensor, "batch"], counted: Bool[Tensor, "batch positions"]
    ) -> Integer[Tensor, "batch positions"]:
        """The row of each counted target; an arbitrary row for the others.

        Args:
            index: [B], each sequence's index in the training set, in [0, number of sequences).
            counted: [B, T], which places have a target.
        """
        if self.starts.device != counted.device:
            self.starts, self.lengths = self.starts.to(counted.device), self.lengths.to(counted.device)
        position = (counted.long().cumsum(1) - 1).clamp_min(0)
        return (self.starts[index.to(counted.device)][:, None] + position).clamp_max(self.num_rows - 1)

    def keys(
        self, index: Integer[Tensor, "batch"], counted: Bool[Tensor, "batch positions"], checks: Checks
    ) -> Integer[Tensor, "batch positions"]:
        """Check that the sequences exist and have as many targets as rows; then as :meth:`rows`."""
        checks.require(
            (index >= 0) & (index < self.num_samples),
            lambda row: (
                f"sequence index {int(index[row])} in row {row} of the batch lies outside [0, {self.num_samples})"
            ),
        )
        at = index.clamp(0, self.num_samples - 1).to(counted.device)
        rows = self.rows(at, counted)
        here, expected = counted.sum(1), self.lengths[at]
        lacking = self.lacking(counted, expected - here)
        checks.require(
            here + lacking == expected,
            lambda row: (
                f"sequence {int(at[row])} has {int(here[row])} targets but {int(expected[row])} rows in the table: "
                "lengths must be the numbers of targets in the training set, the same in every epoch. If a causal "
                "language model is padded on the left, the collator must return attention_mask. If the targets are "
                "drawn anew in every epoch (masked language models, random truncation), use store=PreviousModel()"
            ),
        )
        return (rows + lacking[:, None]).clamp_max(self.num_rows - 1)

    def lacking(
        self, counted: Bool[Tensor, "batch positions"], short: Integer[Tensor, "batch"]
    ) -> Integer[Tensor, "batch"]:
        """Number of targets that are rightly missing before a sequence's first, of the ``short`` that are missing."""
        return torch.zeros_like(short)

    def name(self, row: int) -> str:
        """What messages call a row."""
        return "target {1} of sequence {0}".format(*self.find(row))


class LeftPadded(Offsets):
    """The rows of a causal language model's sequences that are padded on the left.

    Where there is padding before it, a sequence's first token is a target too, predicted from the padding. In the
    longest sequence of a batch it is none. ``lengths`` count it; where it is missing its row is left out.
    """

    def lacking(
        self, counted: Bool[Tensor, "batch positions"], short: Integer[Tensor, "batch"]
    ) -> Integer[Tensor, "batch"]:
        """1 for a sequence that fills its row of the batch and has one target less than rows."""
        return ((short == 1) & (counted[:, 0] | ~counted.any(1))).long()


def lengths_fingerprint(offsets: Offsets | None) -> str:
    """A fingerprint of all lengths, which a resumed run must share."""
    lengths = offsets.lengths.cpu().numpy().astype("<i8").tobytes() if offsets else b""
    return hashlib.sha256(lengths).hexdigest()[:16]


class SequencePSKD(PlacedPSKD):
    """PS-KD for targets [B, T]: translation, language models, tagging.

    Args:
        lengths: number of targets (labels that are not ``ignore_index``) of each training sequence, or its
            :class:`Offsets`; None with ``PreviousModel``.
        num_classes: C, size of the vocabulary.
        store: by default ``TopK(10)``, with fewer than 40 classes dense; ``MemoryMapped(path, TopK(k))`` for a table
            that does not fit in memory.

    Logits are [B, T, C]: ``logits[b, t]`` predicts ``targets[b, t]``, so shift a causal model's labels first. Other
    arguments as in :class:`~retarget.pskd.method.PSKD`.

    >>> method = SequencePSKD([2, 1], num_classes=50, total_epochs=2)
    >>> method.set_epoch(0)
    >>> labels = torch.tensor([[7, 2], [4, -100]])
    >>> round(method.loss(torch.zeros(2, 2, 50), labels, torch.tensor([0, 1])).item(), 3)
    3.912

    Raises:
        UserError: the table in memory would exceed ``MEMORY_LIMIT`` bytes.
    """

    logits_shape, classes_dim = "[B, T, C]", -1

    def __init__(
        self,
        lengths: Iterable[int] | Offsets | None,
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
        offsets = None
        if not isinstance(store, PreviousModel):
            if lengths is None:
                raise UserError("a table needs lengths, the number of targets of each training sequence")
            offsets = lengths if isinstance(lengths, Offsets) else Offsets(lengths)
        super().__init__(
            offsets,
            num_classes,
            total_epochs,
            alpha_T,
            store=store,
            schedule=schedule,
            ignore_index=ignore_index,
            device=device,
            lengths=lengths_fingerprint(offsets),  # refuses the rows of other sentences
        )
