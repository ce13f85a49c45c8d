"""An ablation: does it matter that the past is the sample's own?"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retarget.pskd.functional import SparseRows
from retarget.pskd.past.base import Past


class PastOfClass:
    """A :class:`~retarget.pskd.past.base.Past` around another: each sample reads the row of another of its class.

    The members of a class are put in a random order, anew each epoch, and each reads the row of the one before it.
    What is written, saved and loaded is the wrapped past's.

    Args:
        past: keeps a row for each sample.
        labels: [N], the class of each sample.
        draw: gives the random numbers of an epoch.
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
