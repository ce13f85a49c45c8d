"""Write images as PNG: in a grid, or one alone."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retarget.files import replace_file
from retarget.trojdiff.data import to_uint8


def grid(images: Float[Tensor, "count channels height width"], columns: int = 10, scale: int | None = None) -> Tensor:
    """Images [-1, 1] in rows and columns with a one-pixel border, as uint8 [H, W] or [H, W, 3].

    Args:
        scale: whole-number enlargement; by default as large as fits 1,000 pixels of width, at most 6.
    """
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    scale = scale or max(1, min(6, 1000 // (columns * (width + 1))))
    canvas = torch.full((channels, rows * (height + 1) + 1, columns * (width + 1) + 1), 128, dtype=torch.uint8)
    for number, image in enumerate(to_uint8(images.cpu())):
        top, left = number // columns * (height + 1) + 1, number % columns * (width + 1) + 1
        canvas[:, top : top + height, left : left + width] = image
    large = canvas.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return large[0] if channels == 1 else large.permute(1, 2, 0)


def save_grid(images: Float[Tensor, "count channels height width"], path: Path, columns: int = 10) -> Path:
    """Write a grid as PNG."""
    return _save_png(grid(images, columns), path)


def save_image(image: Float[Tensor, "channels height width"], path: Path) -> Path:
    """Write one image in [-1, 1] as PNG, pixel for pixel, without border or enlargement."""
    pixels = to_uint8(image[None].cpu())[0]
    return _save_png(pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0), path)


def _save_png(pixels: Tensor, path: Path) -> Path:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(pixels.numpy()))
    replace_file(path, lambda part: picture.save(part, format="PNG"))
    return path
