"""Several targets per sample: a sample's rows are stored together, and a batch of samples becomes a batch of rows."""

from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.checks import Checks, as_index, as_labels, refuse_outputs
from retarget.pskd.form import Form
from retarget.pskd.method import PSKD
from retarget.pskd.past.base import Store, past_of
from retarget.pskd.past.files import MemoryMapped
from retarget.pskd.past.previous import PreviousModel
from retarget.pskd.past.table import table_bytes

MEMORY_LIMIT = 8_000_000_000
"""Largest table in memory, in bytes; a larger one must be stored in files."""


@runtime_checkable
class Layout(Protocol):
    """Maps each target to its row in the table.

    Attributes:
        num_samples: number of training samples.
        num_rows: number of rows in the table.
    """

    num_samples: int
    num_rows: int

    def keys(self, index: Tensor, counted: Tensor, checks: Checks) -> Integer[Tensor, "batch *places"]:
        """The row of each target, after the checks that need the samples' indices.

        Args:
            index: [B], each sample's index in the training set.
            counted: [B, places…], which places have a target.
        """
        ...

    def name(self, row: int) -> str:
        """What messages call the target of a row."""
        ...


class PlacedPSKD(Form):
    """PS-KD for targets [B, places…] (tokens, pixels): wraps a :class:`~retarget.pskd.method.PSKD` of single rows.

    Without a layout the past is ``PreviousModel``, which needs neither rows nor index: last epoch's weights predict
    the same places.
    """

    logits_shape: str
    """How logits are laid out, for messages."""
    classes_dim: int
    """Which dimension of the logits is the classes."""

    def __init__(
        self,
        layout: Layout | None,
        num_classes: int,
        total_epochs: int,
        alpha_T: float,
        *,
        store: Store,
        schedule: Literal["linear", "constant"],
        ignore_index: int,
        device: torch.device | str | None,
        **agreed: Any,
    ) -> None:
        rows = name = None
        if layout:
            rows, name = layout.num_rows, layout.name
            refuse_too_large(rows, num_classes, store)
        self.layout = layout
        past = past_of(store, rows, num_classes, device, name=name, to_probs=self._teacher_rows)
        self.core = PSKD(
            None, num_classes, total_epochs, alpha_T, store=past, schedule=schedule, ignore_index=ignore_index
        )
        super().__init__(self.core.schedule, past, self.core.checks, rows, num_classes, ignore_index, **agreed)

    def loss(
        self,
        logits: Float[Tensor, "batch *rest"],
        targets: Integer[Tensor, "batch *places"],
        index: Integer[Tensor, "batch"] | None = None,
        *,
        inputs: Any = None,
        smoothing: float = 0.0,
        denominator: float | Tensor | None = None,
        remember: bool = True,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy against the softened targets, over the batch's targets; remembers the present prediction.

        Args:
            logits: one prediction for each target, in the shape that the class documents.
            targets: [B, places…], classes or ``ignore_index``.
            index: [B], each sample's index in the training set; not needed with ``PreviousModel``.
            inputs: the model's input, for ``PreviousModel`` only.
            smoothing, denominator, remember: as in :meth:`PSKD.loss`.

        Raises:
            UserError: as :meth:`PSKD.loss`; also if a sample's number of targets differs from its number of rows.
        """
        flat = self._flat_logits(logits, targets)
        labels, rows = self._flat_targets(targets, index)
        shared: dict[str, Any] = dict(inputs=inputs, smoothing=smoothing, denominator=denominator, remember=remember)
        loss = self.core.loss(flat, labels, rows, **shared)
        self._count(targets)
        return loss

    def soften(
        self, targets: Integer[Tensor, "batch *places"], index: Integer[Tensor, "batch"] | None = None, *,
        inputs: Any = None,
    ) -> Float[Tensor, "batch *places classes"]:  # fmt: skip
        """The softened targets as dense rows [B, places…, C]; for few classes, or for inspection."""
        soft = self.core.soften(*self._flat_targets(targets, index), inputs=inputs)
        return soft.view(*targets.shape, self.num_classes)

    def remember(
        self,
        logits: Float[Tensor, "batch *rest"],
        targets: Integer[Tensor, "batch *places"],
        index: Integer[Tensor, "batch"] | None = None,
    ) -> None:
        """Store the present predictions."""
        self.core.remember(self._flat_logits(logits, targets), *self._flat_targets(targets, index))
        self._count(targets)

    # -- inside

    def _count(self, targets: Tensor) -> None:
        self.schedule.count(len(targets), self.layout.num_samples if self.layout else None)

    def _flat(self, logits: Tensor) -> Float[Tensor, "rows classes"]:
        return logits.movedim(self.classes_dim, -1).reshape(-1, self.num_classes)

    def _flat_logits(self, logits: Tensor, targets: Tensor) -> Float[Tensor, "rows classes"]:
        refuse_outputs(logits)
        expected = list(targets.shape)
        expected.insert(self.classes_dim % (targets.ndim + 1), self.num_classes)
        if list(logits.shape) != expected:
            raise UserError(
                f"logits must be {self.logits_shape}, for targets {list(targets.shape)} and {self.num_classes} "
                f"classes: got {list(logits.shape)}"
            )
        return self._flat(logits)

    def _flat_targets(self, targets: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        targets = as_labels(targets)
        if not self.layout or index is None:  # the core refuses a missing index if there is a table
            return targets.reshape(-1), None
        index = as_index(index, self.layout.num_samples, targets.device)
        if index.shape != targets.shape[:1]:
            raise UserError(
                f"targets must be [B, places] and index [B]: got {list(targets.shape)} and {list(index.shape)}"
            )
        keys = self.layout.keys(index, targets != self.ignore_index, self.checks)
        return targets.reshape(-1), keys.reshape(-1)

    def _teacher_rows(self, logits: Tensor) -> Float[Tensor, "rows classes"]:
        return F.softmax(self._flat(logits), 1)


def refuse_too_large(num_rows: int, num_classes: int, store: Store) -> None:
    """Raise if a table in memory would take more than ``MEMORY_LIMIT`` bytes."""
    if isinstance(store, MemoryMapped | PreviousModel):
        return
    nbytes = table_bytes(num_rows, num_classes, store)
    if nbytes > MEMORY_LIMIT:
        raise UserError(
            f"a table of {nbytes / 1e9:.0f} GB ({num_rows:,} targets of {num_classes:,} classes as {store}) is too "
            "large for memory: use MemoryMapped(path, TopK(k)), a smaller k, or PreviousModel(model), which has none"
        )
