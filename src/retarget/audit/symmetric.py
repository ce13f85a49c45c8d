"""Triggers that look like themselves: symmetric figures, stripes, checkerboards.

Such a trigger's shift by half an image is undone like the trigger, so that the contrast of its own maps is low, and few
random maps are near enough to it for an ascent to find it. Here symmetric and periodic maps are starting points, and
candidates are compared with shifts that look unlike them.
"""

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from retarget.audit.inversion import Candidate, Search, best_maps, tinted
from retarget.audit.scores import Probe

GRIDS = ((4, False), (4, True), (6, False), (6, True), (8, True))
"""Sides of the grids of random values, which are mirrored left to right and top to bottom; if True, diagonally, too."""


def symmetric_maps(
    count: int, shape: tuple[int, int, int], generator: torch.Generator
) -> Float[Tensor, "maps channels height width"]:
    """Random maps in [-1, 1] that are their own mirror images, ``count`` of each grid; colours as in ``tinted``.

    If a grid's side does not divide the image's, a few pixels between two of its cells are not mirrored.
    """
    found = []
    for side, diagonal in GRIDS:
        grid = torch.randn(count, 1, side, side, generator=generator)
        grid = grid + grid.flip(-1)
        grid = grid + grid.flip(-2)
        found.append(functional.interpolate(grid + grid.mT if diagonal else grid, shape[1:], mode="nearest-exact"))
    return tinted(torch.cat(found), shape[0], generator)


def periodic_maps(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Stripes along rows, columns and diagonals, and checkerboards, of every whole number of cycles and two phases.

    Each is grey, and, for several channels, in two random colours, too: [M, C, H, W] in [-1, 1].

    >>> periodic_maps((1, 8, 8), torch.Generator()).shape
    torch.Size([35, 1, 8, 8])
    """
    _, height, width = shape
    found = []
    for cycles, phase in itertools.product(range(1, max(height, width) // 2 + 1), (0.0, math.pi / 2)):
        down, right = (2 * math.pi * cycles * (torch.arange(size) + 0.5) / size for size in (height, width))
        rows, columns = down[:, None].expand(height, width), right.expand(height, width)
        angles = [rows + phase, columns + phase, rows + columns + phase, rows - columns + phase]
        found += [*map(torch.sin, angles), torch.sin(rows + phase) * torch.sin(columns + phase)]
    maps = torch.stack([one for one in found if float(one.std()) > 0.1])[:, None]
    return tinted(maps if shape[0] == 1 else maps.repeat_interleave(2, 0), shape[0], generator)


def map_count(shape: tuple[int, int, int], search: Search) -> int:
    """Number of maps that ``scan_symmetric`` tries, each with both signs.

    >>> map_count((1, 8, 8), Search()), map_count((3, 8, 8), Search())
    (275, 310)
    """
    return len(GRIDS) * search.symmetric + len(periodic_maps(shape, torch.Generator()))


def scan_symmetric(probe: Probe, check: Probe, search: Search, generator: torch.Generator) -> list[Candidate]:
    """Starting points for a trigger that looks like itself.

    Args:
        probe: noises for comparing all maps, each with its mirror.
        check: noises for the contrast of the best ones.
        search: the search's settings.
        generator: of the maps.
    """
    shape: tuple[int, int, int] = tuple(probe.noise.shape[1:])  # type: ignore[assignment]
    half = torch.cat([symmetric_maps(search.symmetric, shape, generator), periodic_maps(shape, generator)])
    return best_maps(half, "symmetric", probe, check, search)
