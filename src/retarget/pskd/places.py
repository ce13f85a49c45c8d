"""Several targets a sample: the rows of a sample's targets lie together, and a batch is a batch of rows."""

from typing import Any

from jaxtyping import Float, Integer
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.memory import Store
from retarget.pskd.method import PSKD
from retarget.pskd.past.previous import PreviousModel
from retarget.pskd.past.table import MemoryMapped, table_bytes

MEMORY_LIMIT = 8_000_000_000
"""Bytes of a table in memory above which the user must ask for files."""


class PlacedPSKD(PSKD):
    """PS-KD whose targets are [B, places…]; what a place is, and which row is its own, is said by the classes below.

    ``PreviousModel`` needs neither rows nor index: the past is what last epoch's weights say of the same places.
    """

    logits_shape: str
    """How logits are laid out, for messages."""

    def loss(
        self,
        logits: Float[Tensor, "batch *rest"],
        targets: Integer[Tensor, "batch *places"],
        index: Integer[Tensor, "batch"] | None = None,
        *,
        inputs: Any = None,
        smoothing: float = 0.0,
        denominator: float | Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """Mean over the batch's targets of the cross-entropy against the softened ones; remembers the present.

        Args:
            logits: one prediction for each target, laid out as the class says.
            targets: [B, places…], classes or ``ignore_index``.
            index: [B], each sample's place in the training set; ``PreviousModel`` needs none.
            inputs: the model's input, for ``PreviousModel`` only.
            smoothing, denominator: as in :meth:`PSKD.loss`.

        Raises:
            UserError: as :meth:`PSKD.loss`; also for a sample with other targets than it has rows.
        """
        flat = self._flat_logits(logits, targets)
        labels, rows = self._flat_targets(targets, index)
        return super().loss(flat, labels, rows, inputs=inputs, smoothing=smoothing, denominator=denominator)

    def soften(
        self, targets: Integer[Tensor, "batch *places"], index: Integer[Tensor, "batch"] | None = None, *,
        inputs: Any = None,
    ) -> Float[Tensor, "batch *places classes"]:  # fmt: skip
        """The softened targets as dense rows [B, places…, C]: for few classes and for looking at them."""
        soft = super().soften(*self._flat_targets(targets, index), inputs=inputs)
        return soft.view(*targets.shape, self.num_classes)

    def remember(
        self,
        logits: Float[Tensor, "batch *rest"],
        targets: Integer[Tensor, "batch *places"],
        index: Integer[Tensor, "batch"] | None = None,
    ) -> None:
        """Store the present predictions."""
        super().remember(self._flat_logits(logits, targets), *self._flat_targets(targets, index))

    # -- for the classes below

    def _classes_last(self, logits: Tensor) -> Tensor:
        """Logits as [B, places…, C]."""
        return logits

    def _find(self, targets: Tensor, index: Tensor) -> Integer[Tensor, "batch *places"]:
        """The row of each target, after the checks that need to know samples."""
        raise NotImplementedError

    # -- inside

    def _flat_logits(self, logits: Tensor, targets: Tensor) -> Float[Tensor, "rows classes"]:
        expected = (*targets.shape, self.num_classes)
        if logits.ndim != len(expected) or (last := self._classes_last(logits)).shape != expected:
            raise UserError(
                f"logits are {self.logits_shape}, one for each of the targets {list(targets.shape)} and each of the "
                f"{self.num_classes} classes: got {list(logits.shape)}"
            )
        return last.reshape(-1, self.num_classes)

    def _flat_targets(self, targets: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        self._batch = len(targets)
        if self.teacher or index is None:  # without a table PSKD refuses a missing index
            return targets.reshape(-1), None
        if index.shape != targets.shape[:1]:
            raise UserError(
                f"targets are [B, places] and index is [B]: got {list(targets.shape)} and {list(index.shape)}"
            )
        return targets.reshape(-1), self._find(targets, index).reshape(-1)

    def _samples_of(self, at: Tensor) -> int:
        return self._batch

    def _teacher_rows(self, logits: Tensor) -> Tensor:
        return super()._teacher_rows(self._classes_last(logits).reshape(-1, self.num_classes))


def refuse_too_large(num_rows: int, num_classes: int, store: Store) -> None:
    """Raise where a table in memory would take more than ``MEMORY_LIMIT`` bytes."""
    if isinstance(store, MemoryMapped | PreviousModel):
        return
    nbytes = table_bytes(num_rows, num_classes, store)
    if nbytes > MEMORY_LIMIT:
        raise UserError(
            f"a table of {nbytes / 1e9:.0f} GB ({num_rows:,} targets of {num_classes:,} classes as {store}) is too "
            "large for memory; use MemoryMapped(path, TopK(k)), a smaller k, or PreviousModel(model), which keeps none"
        )
