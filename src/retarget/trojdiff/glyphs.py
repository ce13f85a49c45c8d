"""Generated line figures, as other domain and as D2I target: they show nobody's face and need no download."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retarget.errors import UserError

# Line segments (x1, y1, x2, y2) in the unit square, y downwards.
FIGURES: dict[str, tuple[tuple[float, float, float, float], ...]] = {
    "cross": ((0.0, 0.0, 1.0, 1.0), (0.0, 1.0, 1.0, 0.0)),
    "plus": ((0.5, 0.0, 0.5, 1.0), (0.0, 0.5, 1.0, 0.5)),
    "frame": ((0.0, 0.0, 1.0, 0.0), (1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 0.0, 1.0), (0.0, 1.0, 0.0, 0.0)),
    "triangle": ((0.5, 0.0, 1.0, 1.0), (1.0, 1.0, 0.0, 1.0), (0.0, 1.0, 0.5, 0.0)),
    "bars": ((0.0, 0.0, 1.0, 0.0), (0.0, 0.5, 1.0, 0.5), (0.0, 1.0, 1.0, 1.0)),
    "arrow": ((0.0, 0.5, 1.0, 0.5), (1.0, 0.5, 0.6, 0.1), (1.0, 0.5, 0.6, 0.9)),
}
DOMAIN = ("cross", "plus", "frame", "triangle", "bars")


def draw(
    name: str,
    size: int,
    centre: Float[Tensor, "count 2"],
    extent: Float[Tensor, "count 2"],
    thickness: float = 0.07,
) -> Float[Tensor, "count 1 {size} {size}"]:
    """White figures on black, smoothed at the edges, in [-1, 1].

    Args:
        name: one of ``FIGURES``.
        size: height and width in pixels.
        centre: (x, y) of each figure's middle, in image widths.
        extent: width and height of each figure, in image widths.
        thickness: half the line's width, in image widths.
    """
    if name not in FIGURES:
        raise UserError(f"there is no figure {name!r}: choose {', '.join(FIGURES)}")
    axis = (torch.arange(size) + 0.5) / size
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    ink = torch.zeros(len(centre), size, size)
    for x1, y1, x2, y2 in FIGURES[name]:
        start = centre + (torch.tensor([x1, y1]) - 0.5) * extent
        span = (torch.tensor([x2, y2]) - torch.tensor([x1, y1])) * extent
        away = points[None] - start[:, None, None]
        along = (away * span[:, None, None]).sum(-1) / span.square().sum(-1)[:, None, None]
        distance = (away - along.clamp(0, 1)[..., None] * span[:, None, None]).norm(dim=-1)
        ink = torch.maximum(ink, (1 - (distance - thickness) * size).clamp(0, 1))
    return (ink * 2 - 1)[:, None]


def glyph(name: str = "arrow", shape: tuple[int, int, int] = (1, 8, 8)) -> Float[Tensor, "channels height width"]:
    """One figure in the middle of the image, the default D2I target, which is not in ``DOMAIN``.

    >>> glyph("arrow", (3, 16, 16)).shape
    torch.Size([3, 16, 16])
    """
    channels, height, width = shape
    if height != width:
        raise UserError(f"figures need square images, not {height}×{width}")
    one = draw(name, height, torch.full((1, 2), 0.5), torch.full((1, 2), 0.7))
    return one[0].expand(channels, -1, -1).clone()


def glyph_images(
    count: int, size: int, generator: torch.Generator, names: tuple[str, ...] = DOMAIN
) -> tuple[Float[Tensor, "count 1 {size} {size}"], Int[Tensor, "count"]]:
    """Figures of random position and size, and which of ``names`` each is, equally often.

    Args:
        count: number of images.
        size: height and width in pixels.
        generator: draws positions and sizes; equal generators give equal images.
    """
    labels = torch.arange(count) % len(names)
    extent = 0.55 + 0.2 * torch.rand(count, 2, generator=generator)
    centre = 0.5 + (torch.rand(count, 2, generator=generator) - 0.5) * (0.9 - extent)
    images = torch.empty(count, 1, size, size)
    for index, name in enumerate(names):
        rows = labels == index
        images[rows] = draw(name, size, centre[rows], extent[rows])
    return images, labels
