"""What a past is: where the predictions of earlier epochs are read, and where those of this one are written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from retarget.pskd.checks import Checks
from retarget.pskd.functional import SparseRows


@runtime_checkable
class Past(Protocol):
    """Past predictions of a training run, a row of probabilities for each key; a key is a sample, a pixel, a word.

    A past that keeps no rows has nothing to do in ``end``, ``check_labels`` and ``write``, and may inherit them.

    Attributes:
        kind: what a resumed run must agree on.
        name: what a key is called in a message.
    """

    kind: str
    name: Callable[[int], str]

    @property
    def num_rows(self) -> int | None:
        """N, so that keys lie in [0, N); None for a past that keeps no rows and needs no key."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes that it takes, in memory or on disk."""
        ...

    def begin(self, epoch: int) -> None:
        """Begin an epoch, or begin it again: what it wrote before is forgotten."""
        ...

    def end(self) -> None:
        """Finish the epoch under way; collective under torch.distributed."""
        return

    def locate(self, keys: Tensor, device: torch.device) -> Tensor:
        """A batch's keys [B] where the rows are; logits or targets are on ``device``."""
        ...

    def check_labels(self, checks: Checks, labels: Tensor, keys: Tensor, counted: Tensor) -> None:
        """Refuse labels [B] that their keys did not have in an earlier step, where the rows themselves do not say so.

        Args:
            keys: [B], on the labels' device.
            counted: [B], false where a label is ignored.
        """
        return

    def read(self, keys: Tensor, device: torch.device, inputs: Any) -> tuple[Tensor | SparseRows, Tensor]:
        """Rows from before this epoch, [B, C] or sparse, and 1 or 0 for each key that has one or none, [B]."""
        ...

    def write(
        self, logits: Tensor, labels: Tensor, keys: Tensor, keep: Tensor | None = None, log_norm: Tensor | None = None
    ) -> None:
        """Store the rows of these logits [B, C], where ``keep`` [B] is true; ``log_norm`` is their logsumexp."""
        return

    def save(self) -> dict[str, Tensor]:
        """Tensors for the state's file, by name; every rank calls it, and rank 0 writes them."""
        ...

    def load(self, path: Path, epoch: int | None, saved: dict[str, Tensor]) -> None:
        """Take back what :meth:`save` gave in an epoch; ``path`` names the file in messages."""
        ...
