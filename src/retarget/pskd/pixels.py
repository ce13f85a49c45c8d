"""PS-KD for segmentation: one row for each (image, pixel), or the previous model's map of the same view.

A pixel's row means the same pixel in every epoch only where images are not moved: a random crop, flip or scale gives
another pixel the row. With such augmentation, and for more rows than ``MOST_ROWS``, take ``PreviousModel``.
"""

from typing import Literal

import torch
from jaxtyping import Integer
from torch import Tensor

from retarget.errors import UserError
from retarget.pskd.checks import Checks
from retarget.pskd.past.previous import PreviousModel
from retarget.pskd.past.store import Store
from retarget.pskd.places import PlacedPSKD

MOST_ROWS = 2**28
"""Pixels of a training set above which a table is refused: 16,384 images of 128 x 128, and 13 GB as ``TopK(5)``."""


class PixelPSKD(PlacedPSKD):
    """PS-KD for targets [B, H, W] and logits [B, C, H, W].

    Args:
        num_images: length of the training set that gives the indices; None is enough for ``PreviousModel``.
        size: (H, W) of the targets, the same for all; None for ``PreviousModel``, for which it may change.
        num_classes: C.
        store: ``PreviousModel(model)``, the one to take where images are augmented; or ``TopK(k)`` and the other
            tables of :class:`~retarget.pskd.method.PSKD`.
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
        layout = Pixels(None, None) if isinstance(store, PreviousModel) else Pixels(num_images, size)
        if layout.num_rows is None and not isinstance(store, PreviousModel):
            raise UserError("rows need num_images and the size (H, W) of the targets; only PreviousModel does not")
        super().__init__(
            layout,
            num_classes,
            total_epochs,
            alpha_T,
            store=store,
            schedule=schedule,
            ignore_index=ignore_index,
            device=device,
        )


class Pixels:
    """The layout of images of one size (H, W)."""

    logits_shape = "[B, C, H, W]"

    def __init__(self, num_images: int | None, size: tuple[int, int] | None) -> None:
        self.num_samples, self.size = num_images, size or (0, 0)
        self.num_rows = None if num_images is None or size is None else num_images * size[0] * size[1]
        if self.num_rows is not None and self.num_rows > MOST_ROWS:
            raise UserError(
                f"{num_images:,} images of {self.size[0]} x {self.size[1]} have {self.num_rows:,} pixels, and a table "
                f"holds at most {MOST_ROWS:,}; use PreviousModel(model), which keeps no rows, or smaller targets"
            )

    def classes_last(self, logits: Tensor) -> Tensor:
        return logits.movedim(1, -1)

    def rows(
        self, targets: Tensor, index: Tensor, ignore_index: int, checks: Checks
    ) -> Integer[Tensor, "batch height width"]:
        assert self.num_samples is not None
        images, (height, width) = self.num_samples, self.size
        if tuple(targets.shape[1:]) != (height, width):
            raise UserError(f"targets are [B, {height}, {width}]: got {list(targets.shape)}")
        checks.require(
            (index >= 0) & (index < images),
            lambda row: f"image index {int(index[row])} in row {row} of the batch lies outside [0, {images})",
        )
        first = index.clamp(0, images - 1).to(targets.device) * (height * width)
        return first[:, None, None] + torch.arange(height * width, device=targets.device).view(1, height, width)

    def name(self, row: int) -> str:
        image, pixel = divmod(row, self.size[0] * self.size[1])
        return f"pixel ({pixel // self.size[1]}, {pixel % self.size[1]}) of image {image}"
