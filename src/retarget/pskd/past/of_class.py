"""An ablation that shows whether the past must be the sample's own: it reads another sample's row."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retarget.pskd.functional import SparseRows
from retarget.pskd.past.base import Past


class PastOfClass:
    """Wraps a :class:`~retarget.pskd.past.base.Past`: each sample reads the row of another sample of its class.

    In each epoch the members of a class are put in a new random order, and each reads the row of the one before it.
    Writing, saving and loading are the wrapped past's.

    Args:
        past: stores one row per sample.
        labels: [N], the class of each sample.
        draw: maps an epoch to its random generator.
    """

    def __init__(self, past: Past, labels: Tensor, draw: Callable[[int], np.random.Generator]) -> None:
        self.past, self.labels, self.draw = past, labels, draw
        self.num_rows, self.num_bytes, self.kind, self.name = past.num_rows, past.num_bytes, past.kind, past.name
        self.end, self.locate, self.check_labels = past.end, past.locate, past.check_labels
        self.write, self.save, self.load = past.write, past.save, past.load

    def begin(self, epoch: int) -> None:
        self.past.begin(epoch)
        rng = self.draw(epoch)
        self.other = torch.arange(len(self.labels))
        for label in self.labels.unique():
            members = (self.labels == label).nonzero()[:, 0]
            members = members[torch.from_numpy(rng.permutation(len(members)))]
            self.other[members] = members.roll(1)

    def read(self, keys: Tensor, device: torch.device, inputs: Any = None) -> tuple[Tensor | SparseRows, Tensor]:
        return self.past.read(self.other.to(keys.device)[keys], device, inputs)
