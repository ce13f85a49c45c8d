"""What ``store=`` may be, and the past that it names."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.past.base import Past
from retarget.pskd.past.files import MemoryMapped
from retarget.pskd.past.in_table import PastInTable
from retarget.pskd.past.previous import PastFromModel, PreviousModel
from retarget.pskd.past.rows import RowFormat
from retarget.pskd.past.table import row_format

Store = Literal["dense"] | RowFormat | MemoryMapped | PreviousModel


def past_of(
    store: Store | Past,
    num_rows: int | None,
    num_classes: int,
    device: torch.device | str | None = None,
    *,
    name: Callable[[int], str] = "sample {}".format,
    to_probs: Callable[[Tensor], Tensor] = lambda logits: F.softmax(logits, 1),
    written: Callable[[RowFormat], RowFormat] = lambda rows: rows,
) -> Past:
    """The past that a ``store=`` argument names; one that is a past already is itself.

    Args:
        store: as the user gave it.
        num_rows: N; None is enough for ``PreviousModel``.
        num_classes: C.
        device: where a table lives; by default where the first batch is.
        name: what a row of a table is called in messages.
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
        raise UserError(f"{store!r} keeps a row a sample: give num_samples; only PreviousModel goes without")
    path = Path(store.path) if isinstance(store, MemoryMapped) else None
    return PastInTable(written(row_format(store)), num_rows, num_classes, device, path, name)
