"""What a past is: where the predictions of earlier epochs are read, and where those of this one are written."""

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
    """Past predictions of a training run, a row of probabilities for each key; a key is a sample, a pixel, a word.

    Attributes:
        kind: what a resumed run must agree on.
    """

    kind: str

    @property
    def num_rows(self) -> int | None:
        """N, so that keys lie in [0, N); None for a past that keeps no rows and needs no key."""

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes, in memory or on disk."""
        ...

    def name(self, key: int, /) -> str:
        """What a key is called in a message."""
        ...

    def begin(self, epoch: int) -> None:
        """Begin an epoch, or begin it again: what it wrote before is forgotten."""

    def end(self) -> None:
        """Finish the epoch under way; collective under torch.distributed."""

    def locate(self, keys: Tensor, device: torch.device) -> Tensor:
        """A batch's keys [B] where the rows are; logits or targets are on ``device``."""
        ...

    def check_labels(self, checks: Checks, labels: Tensor, keys: Tensor, counted: Tensor) -> None:
        """Refuse labels [B] that their keys did not have in an earlier step, where the rows themselves do not say so.

        Args:
            keys: [B], on any device.
            counted: [B], false where a label is ignored.
        """

    def read(self, keys: Tensor, device: torch.device, inputs: Any) -> tuple[Tensor | SparseRows, Tensor]:
        """Rows from before this epoch, and which keys have one.

        Returns:
            [B, C], made anew so that the caller may change them, or sparse; and [B], 1 for a key that has a row and 0
            for one that has none.
        """
        ...

    def write(
        self, logits: Tensor, labels: Tensor, keys: Tensor, keep: Tensor | None = None, log_norm: Tensor | None = None
    ) -> None:
        """Store the rows of these logits [B, C], where ``keep`` [B] is true; ``log_norm`` is their logsumexp."""

    def save(self) -> dict[str, Tensor]:
        """Tensors for the state's file, by name; every rank calls it, and rank 0 writes them."""
        ...

    def load(self, path: Path, epoch: int | None, saved: dict[str, Tensor]) -> None:
        """Take back what :meth:`save` gave in an epoch; ``path`` names the file in messages."""


def past_of(
    store: Store | Past,
    num_rows: int | None,
    num_classes: int,
    device: torch.device | str | None = None,
    *,
    name: Callable[[int], str] | None = None,
    to_probs: Callable[[Tensor], Tensor] = lambda logits: F.softmax(logits, 1),
    written: Callable[[RowFormat], RowFormat] = lambda rows: rows,
) -> Past:
    """The past that a ``store=`` argument names; one that is a past already is itself.

    Args:
        store: as the user gave it.
        num_rows: N; None is enough for ``PreviousModel``.
        num_classes: number of classes, C.
        device: where a table lives; by default where the first batch is.
        name: what a row of a table is called in messages; by default a sample.
        to_probs: from what a previous model gives to rows [B, C].
        written: from the row format that the store names to the one in use.

    Raises:
        UserError: no store, rows that do not fit the classes, or a table without a number of rows.
    """
    if isinstance(store, Past):
        return store
    if isinstance(store, PreviousModel):
        return PastFromModel(store, num_classes, to_probs)
    if num_rows is None:
        raise UserError(f"{store!r} stores one row per sample: give num_samples (optional only with PreviousModel)")
    path = Path(store.path) if isinstance(store, MemoryMapped) else None
    return PastInTable(written(row_format(store)), num_rows, num_classes, device, path, name or "sample {}".format)
