"""PS-KD for segmentation: one row for each (image, pixel), or the previous model's prediction for the same view.

A row belongs to the same pixel in every epoch only if the augmentation does not move pixels, as a random crop, flip or
scale does. If it does, and for more rows than ``MOST_ROWS``, use ``PreviousModel``.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.checks import Checks
from retarget.pskd.past.base import Store
from retarget.pskd.past.previous import PreviousModel
from retarget.pskd.places import PlacedPSKD

MOST_ROWS = 2**28
"""Most pixels in a training set that a table accepts: 16,384 images of 128 x 128, which take 13 GB as ``TopK(5)``."""


class PixelPSKD(PlacedPSKD):
    """PS-KD for targets [B, H, W] and logits [B, C, H, W].

    Args:
        num_images: number of training images, so that indices lie in [0, N); None with ``PreviousModel``.
        size: (H, W) of the targets, the same for all; None with ``PreviousModel``, which accepts any sizes.
        num_classes: number of classes, C.
        store: ``PreviousModel(model)``, needed if an augmentation moves pixels; or ``TopK(k)`` and the other tables of
            :class:`~retarget.pskd.method.PSKD`.
        ignore_index: label of pixels that have no loss and no row; 255 is common, -100 the default.

    Other arguments as in :class:`~retarget.pskd.method.PSKD`.

    >>> from retarget.pskd.past.rows import TopK
    >>> method = PixelPSKD(10, (4, 4), num_classes=3, total_epochs=2, store=TopK(2))
    >>> method.set_epoch(0)
    >>> labels = torch.zeros(2, 4, 4, dtype=torch.long)
    >>> round(method.loss(torch.zeros(2, 3, 4, 4), labels, torch.tensor([0, 1])).item(), 3)
    1.099

    Raises:
        UserError: more rows than ``MOST_ROWS``, or a table in memory above ``MEMORY_LIMIT`` bytes.
    """

    logits_shape, classes_dim = "[B, C, H, W]", 1

    def __init__(
        self,
        num_images: int | None,
        size: tuple[int, int] | None,
        num_classes: int,
        total_epochs: int,
        alpha_T: float = 0.8,
        *,
        store: Store,
        schedule: Literal["linear", "constant"] = "linear",
        ignore_index: int = -100,
        device: torch.device | str | None = None,
    ) -> None:
        grid = None
        if not isinstance(store, PreviousModel):
            if num_images is None or size is None:
                raise UserError("a table needs num_images and the targets' size (H, W); PreviousModel needs neither")
            grid = Grid(num_images, size)
        super().__init__(
            grid,
            num_classes,
            total_epochs,
            alpha_T,
            store=store,
            schedule=schedule,
            ignore_index=ignore_index,
            device=device,
        )


class Grid:
    """The rows of images of one size: one for each pixel, line after line.

    Args:
        num_images: N.
        size: (H, W).

    Raises:
        UserError: more rows than ``MOST_ROWS``.
    """

    def __init__(self, num_images: int, size: tuple[int, int]) -> None:
        self.num_samples, (self.height, self.width) = num_images, size
        self.num_rows = num_images * self.height * self.width
        if self.num_rows > MOST_ROWS:
            raise UserError(
                f"{num_images:,} images of {self.height} x {self.width} have {self.num_rows:,} pixels, but a table "
                f"holds at most {MOST_ROWS:,}: use PreviousModel(model), which stores no rows, or smaller targets"
            )

    def keys(
        self, index: Integer[Tensor, "batch"], counted: Bool[Tensor, "batch height width"], checks: Checks
    ) -> Integer[Tensor, "batch height width"]:
        """The row of each pixel."""
        if counted.shape[1:] != (self.height, self.width):
            raise UserError(f"targets must be [B, {self.height}, {self.width}]: got {list(counted.shape)}")
        checks.require(
            (index >= 0) & (index < self.num_samples),
            lambda row: f"image index {int(index[row])} in row {row} of the batch lies outside [0, {self.num_samples})",
        )
        pixels = torch.arange(self.height * self.width, device=counted.device)
        first = index.clamp(0, self.num_samples - 1).to(counted.device) * len(pixels)
        return first[:, None, None] + pixels.view(1, self.height, self.width)

    def name(self, row: int) -> str:
        """What messages call a row."""
        image, pixel = divmod(row, self.height * self.width)
        return f"pixel {divmod(pixel, self.width)} of image {image}"
