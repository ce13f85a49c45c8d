"""Parts of a dataset of labelled images, and the dataset."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from retarget.data.pictures import Picture


@dataclass(frozen=True, eq=False)
class Part:
    """Labelled images: pixels in memory, or encoded images that are decoded later.

    Attributes:
        labels: [N], 0 to the number of classes - 1.
        pixels: [N, C, H, W], or None if ``pictures`` has the images.
    """

    labels: Int[Tensor, "count"]
    pixels: UInt8[Tensor, "count channels height width"] | None = None
    pictures: tuple[Picture, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Part":
        """These images, in this order; ``rows`` are positions."""
        at = torch.from_numpy(rows)
        pixels = None if self.pixels is None else self.pixels[at]
        pictures = tuple(self.pictures[row] for row in rows.tolist()) if self.pictures else ()
        return Part(self.labels[at], pixels, pictures)


@dataclass(frozen=True, eq=False)
class Source:
    """A dataset.

    Attributes:
        names: names of the classes.
        test: None if the dataset has no test part.
        held_out: name of the test part in this layout, whether it is there or not; empty for a layout without one.
        validation: None unless the dataset has a validation part beside its test part.
    """

    names: tuple[str, ...]
    train: Part
    test: Part | None = None
    held_out: str = ""
    validation: Part | None = None

    @classmethod
    def of(cls, names: tuple[str, ...], train: Part, others: Sequence[Part], held_out: str = "") -> "Source":
        """A dataset from its parts: of ``others``, the first is the test part, the second is for validation."""
        test, validation = (*others, None, None)[:2]
        return cls(names, train, test, held_out, validation)
