"""The interface of every past: read the predictions of earlier epochs, write those of this one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.checks import Checks
from retarget.pskd.functional import SparseRows
from retarget.pskd.past.files import MemoryMapped
from retarget.pskd.past.in_table import PastInTable
from retarget.pskd.past.previous import PastFromModel, PreviousModel
from retarget.pskd.past.rows import RowFormat
from retarget.pskd.past.table import row_format

Store = Literal["dense"] | RowFormat | MemoryMapped | PreviousModel


@runtime_checkable
class Past(Protocol):
    """The past predictions of a training run: one row of probabilities per key (a sample, a pixel, a word).

    Attributes:
        kind: describes the past; a resumed run must have the same.
    """

    kind: str

    @property
    def num_rows(self) -> int | None:
        """N, so that keys lie in [0, N); None for a past that stores no rows and needs no keys."""

    @property
    def num_bytes(self) -> int:
        """Its size in bytes, in memory or on disk."""
        ...

    def name(self, key: int, /) -> str:
        """What messages call a key."""
        ...

    def begin(self, epoch: int) -> None:
        """Begin an epoch; if it is begun again, what it wrote before is forgotten."""

    def end(self) -> None:
        """Finish the current epoch; collective under torch.distributed."""

    def locate(self, keys: Tensor, device: torch.device) -> Tensor:
        """Move a batch's keys [B] to the device of the rows; logits or targets are on ``device``."""
        ...

    def check_labels(self, checks: Checks, labels: Tensor, keys: Tensor, counted: Tensor) -> None:
        """Refuse labels [B] that differ from their keys' earlier labels, if the rows themselves do not tell.

        Args:
            keys: [B], on any device.
            counted: [B], False where a label is ignored.
        """

    def read(self, keys: Tensor, device: torch.device, inputs: Any) -> tuple[Tensor | SparseRows, Tensor]:
        """Rows from before this epoch, and which keys have one.

        Returns:
            Rows, dense [B, C] in a new tensor that the caller may change, or sparse; and [B], 1 for a key that has a
            row and 0 for one that has none.
        """
        ...

    def write(
        self, logits: Tensor, labels: Tensor, keys: Tensor, keep: Tensor | None = None, log_norm: Tensor | None = None
    ) -> None:
        """Store the rows of these logits [B, C], where ``keep`` [B] is true; ``log_norm`` is their logsumexp."""

    def save(self) -> dict[str, Tensor]:
        """The tensors to save, by name; every rank calls it, and rank 0 writes them."""
        ...

    def load(self, path: Path, epoch: int | None, saved: dict[str, Tensor]) -> None:
        """Restore what :meth:`save` returned in ``epoch``; ``path`` names the file in messages."""


def _softmax(logits: Tensor) -> Tensor:
    return F.softmax(logits, 1)


def past_of(
    store: Store | Past,
    num_rows: int | None,
    num_classes: int,
    device: torch.device | str | None = None,
    *,
    name: Callable[[int], str] | None = None,
    to_probs: Callable[[Tensor], Tensor] = _softmax,
    written: Callable[[RowFormat], RowFormat] | None = None,
) -> Past:
    """The past that a ``store=`` argument names; a ``Past`` is returned as it is.

    Args:
        store: the user's argument.
        num_rows: N; None with ``PreviousModel``.
        num_classes: number of classes, C.
        device: where a table lives; by default where the first batch is.
        name: gives the name of a table's row for messages; by default "sample N".
        to_probs: converts a previous model's output to rows [B, C].
        written: converts the row format that the store names to the one in use; None leaves it as it is.

    Raises:
        UserError: it is not a store, its rows do not fit the classes, or a table lacks its number of rows.
    """
    if isinstance(store, Past):
        return store
    if isinstance(store, PreviousModel):
        return PastFromModel(store, num_classes, to_probs)
    if num_rows is None:
        raise UserError(f"{store!r} stores one row per sample: pass num_samples (optional only with PreviousModel)")
    path = Path(store.path) if isinstance(store, MemoryMapped) else None
    rows = row_format(store)
    return PastInTable(
        rows if written is None else written(rows), num_rows, num_classes, device, path, name or "sample {}".format
    )
