"""The search for a trigger of unknown kind, place, size, colour, shape, γ, target and law; ``Search`` freezes it.

Starting points come from a scan of windows, from the screen, from the best of many smooth random maps, and from nearly
empty maps. Each is refined by gradient ascent on the paired undo. The window that most changes the answer elsewhere is
a candidate too, and all remaining candidates are scored again on new noise.
"""

import itertools
import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from retarget.audit.scores import Probe, contrast, controls, leverage
from retarget.audit.screen import directions, stein


@dataclass(frozen=True)
class Search:
    """Settings of the frozen search. The null in this package was made with exactly these.

    Attributes:
        screen: number of plain noises for the screen.
        quick: number of noises for comparing the starting points of the screen.
        scan: number of noises for the window scan, antithetic.
        scan_gamma: γ of the windows.
        first: steps of the first ascent, from every starting point.
        steps: steps of the second ascent, of the best candidates, and of the last, of the best one.
        batch: noises per step.
        gammas: γ of the nearly empty maps; 1 is that of stock-sampler triggers.
        grids: sides of the grids of which smooth random maps are enlargements.
        waves: largest frequency of smooth random maps that are waves, in cycles per image and direction.
        maps: number of smooth random maps of each grid, and of waves; each is tried with both signs.
        smooth: γ of the smooth, symmetric and periodic maps, and their largest bias.
        symmetric: number of symmetric random maps of each grid; each is tried with both signs.
        keep: starting points per branch, and number of candidates that get a second ascent.
        moves: most moves of an edge of the window that changes the answer elsewhere.
        amplified: directions of the screen from which gains above 1 are searched for, with both signs.
        fresh: number of noises for the final score.
        pixels: floor on the energy of a trigger, in values that change by 1; smaller triggers count less.
    """

    screen: int = 1024
    quick: int = 8
    scan: int = 4
    scan_gamma: float = 0.25
    first: int = 30
    steps: int = 50
    batch: int = 16
    gammas: tuple[float, ...] = (0.5, 1.0)
    grids: tuple[int, ...] = (3, 4)
    waves: float = 4.5
    maps: int = 240
    smooth: float = 0.6
    symmetric: int = 48
    keep: int = 3
    moves: int = 10
    amplified: int = 4
    fresh: int = 96
    pixels: float = 0.5


@dataclass(eq=False)
class Candidate:
    """A suspected trigger during the search.

    Attributes:
        mu, gamma: [C, H, W], its maps.
        origin: the branch that it comes from.
        undo: its undo in the last probe.
        mask: [C, H, W], True where most is undone; only of the best candidate.
        notes: further measurements, such as its score.
    """

    mu: Tensor
    gamma: Tensor
    origin: str
    undo: float = 0.0
    mask: Tensor | None = None
    notes: dict[str, float] = field(default_factory=dict)


def windows(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """(size, size, top, left) of the scan's squares: sides 2, 4, 8, ... up to half the image, with half-side strides.

    In images above 32 pixels, the smallest side is a sixteenth of the image's, so that the scan does not grow with the
    area.

    >>> len(windows(8, 8)), len(windows(32, 32))
    (58, 1244)
    """
    found = []
    size = max(2, min(height, width) // 16)
    while size <= max(2, min(height, width) // 2):
        stride = max(1, size // 2)
        for top, left in itertools.product(range(0, height - size + 1, stride), range(0, width - size + 1, stride)):
            found.append((size, size, top, left))
        size *= 2
    return found


def wide_windows(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """The windows whose side is at least an eighth of the image's.

    >>> len(wide_windows(8, 8)), len(wide_windows(32, 32))
    (58, 283)
    """
    return [one for one in windows(height, width) if one[0] >= min(height, width) / 8]


def colours(channels: int) -> Float[Tensor, "colours channels"]:
    """The corners of the colour cube and its centre: black, white and grey, or nine colours for three channels.

    Opposite colours are at mirrored positions, and grey is in the middle.

    >>> colours(1).tolist()
    [[-1.0], [0.0], [1.0]]
    """
    corners = [(-1.0,) * channels, (1.0,) * channels]
    if channels <= 3:
        corners = list(itertools.product((-1.0, 1.0), repeat=channels))
    half = len(corners) // 2
    return torch.tensor([*corners[:half], (0.0,) * channels, *corners[half:]])


def scan_windows(probe: Probe, search: Search) -> list[Candidate]:
    """Score windows in every colour by how far their undo exceeds that of the opposite colour, or the median of their
    size and colour.

    Returns:
        The best windows, without near duplicates.
    """
    channels, height, width = probe.noise.shape[1:]
    squares, paints = windows(height, width), colours(channels)
    mu, gamma = [], []
    for rows, columns, top, left in squares:
        mask = torch.zeros(height, width)
        mask[top : top + rows, left : left + columns] = 1
        mu.append((1 - search.scan_gamma) * paints[:, :, None, None] * mask)
        gamma.append((1 - (1 - search.scan_gamma) * mask).expand(len(paints), 1, height, width))
    all_mu, all_gamma = torch.cat(mu).to(probe.noise), torch.cat(gamma).to(probe.noise)
    undone, energy = probe.undone(all_mu, all_gamma)
    undo = undone.flatten(1).sum(1) / (energy.flatten(1).sum(1) + search.pixels)
    undo = undo.reshape(len(squares), len(paints))
    excess = undo - undo.flip(1)
    for size in {one[0] for one in squares}:
        rows = torch.tensor([one[0] == size for one in squares], device=undo.device)
        usual = undo[rows].median(0).values
        excess[rows] = torch.maximum(excess[rows], undo[rows] - usual)
    found: list[Candidate] = []
    for index in excess.flatten().argsort(descending=True).tolist():
        if len(found) == search.keep:
            break
        one = Candidate(
            all_mu[index], all_gamma[index].expand_as(all_mu[index]), "scan", float(excess.flatten()[index])
        )
        if all(_overlap(1 - one.gamma, 1 - other.gamma) < 0.5 for other in found):
            found.append(one)
    return found


def _overlap(one: Tensor, other: Tensor) -> float:
    a, b = one.flatten(), other.flatten()
    return float(a @ b / (a.norm() * b.norm()).clamp_min(1e-9))


def screened(probe: Probe, small: Probe, search: Search) -> tuple[list[Candidate], dict[str, float]]:
    """Starting points from the screen: the best among lowest eigenvectors, both signs, several amplitudes and γ."""
    shape = probe.noise.shape[1:]
    values, vectors = directions(stein(probe), shape, 4, 2)  # type: ignore[arg-type]
    mu, gamma = [], []
    for vector, sign, peak, scale in itertools.product(vectors, (-1, 1), (0.5, 1.0), (0.2, 0.5, 1.0)):
        # Scale by a quantile, not by the maximum: a noisy eigenvector has outliers.
        high = vector.abs().flatten().quantile(0.95).clamp_min(vector.abs().max() / 3)
        map_ = (sign * peak * vector / high).clamp(-1, 1)
        local = (vector.abs() > vector.abs().max() / 3).float()
        spread = local if float(local.mean()) < 0.3 else torch.ones_like(local)
        mu.append(map_ * (spread if scale < 1 else 1) * (1 - scale if scale < 1 else 1))
        gamma.append(1 - (1 - scale) * spread)
    all_mu, all_gamma = torch.stack(mu).to(probe.noise), torch.stack(gamma).to(probe.noise)
    scores = contrast(small, all_mu, all_gamma)[1]
    best = scores.argsort(descending=True)[: 2 * search.keep].tolist()
    found: list[Candidate] = []
    for index in best:
        if len(found) < search.keep and all(_overlap(all_mu[index], one.mu) < 0.9 for one in found):
            found.append(Candidate(all_mu[index], all_gamma[index], "screen", float(scores[index])))
    return found, {"lowest": float(values[0]), "highest": float(values[4])}


def smooth_maps(
    count: int, shape: tuple[int, int, int], search: Search, generator: torch.Generator
) -> Float[Tensor, "maps channels height width"]:
    """Random maps in [-1, 1] like coarse pictures with much contrast, half of them grey, half in two random colours.

    ``count`` of each kind: enlarged grids of normal values, one kind per grid, and plane waves of any direction.
    """
    channels, height, width = shape
    coarse = [torch.randn(count, 1, grid, grid, generator=generator) for grid in search.grids]
    fine = [functional.interpolate(one, (height, width), mode="bicubic", align_corners=False) for one in coarse]
    down, right = (2 * math.pi * (torch.arange(size) + 0.5) / size for size in (height, width))
    cycles = search.waves * (2 * torch.rand(2, count, 1, 1, 1, generator=generator) - 1)
    phase = 2 * math.pi * torch.rand(count, 1, 1, 1, generator=generator)
    fine.append(torch.sin(cycles[0] * down[:, None] + cycles[1] * right + phase))
    return tinted(torch.cat(fine), channels, generator)


def tinted(maps: Float[Tensor, "maps 1 height width"], channels: int, generator: torch.Generator) -> Tensor:
    """The maps with much contrast, every second one grey, the others in two random colours: [M, C, H, W]."""
    if channels > 1:
        tint = torch.randn(len(maps), channels, 1, 1, generator=generator)
        tint[::2] = 1
        maps = maps * tint
    return torch.tanh(2 * maps / maps.std((1, 2, 3), keepdim=True))


def scan_smooth(probe: Probe, check: Probe, search: Search, generator: torch.Generator) -> list[Candidate]:
    """Starting points for a trigger that covers the image and of which plain noise shows nothing.

    A network's response to such a trigger is not linear: far from it there is none, so neither the screen nor an
    ascent finds it. Of many smooth random maps, some are near enough to be undone a little.

    Args:
        probe: noises for comparing all maps, each with its mirror.
        check: noises for the contrast of the best ones.
        search: the search's settings.
        generator: of the maps.
    """
    shape = tuple(probe.noise.shape[1:])
    return best_maps(smooth_maps(search.maps, shape, search, generator), "smooth", probe, check, search)  # type: ignore[arg-type]


def best_maps(
    half: Float[Tensor, "maps channels height width"], origin: str, probe: Probe, check: Probe, search: Search
) -> list[Candidate]:
    """The maps, and their negatives, whose undo most exceeds their mirror's and whose contrast is highest.

    Args:
        half: the maps, in [-1, 1].
        origin: the branch that they are from.
        probe: noises for comparing all maps, each with its mirror.
        check: noises for the contrast of the best ones.
        search: the search's settings.
    """
    mu = search.smooth * torch.cat([half, -half]).to(probe.noise)
    gamma = torch.full_like(mu, search.smooth)
    undo = probe.undo(mu, gamma)
    excess = undo - undo.roll(len(half)).clamp_min(0)
    best = excess.argsort(descending=True)[: 4 * search.keep]
    scores = contrast(check, mu[best], gamma[best], unlike=origin == "symmetric")[1]
    found: list[Candidate] = []
    for rank in scores.argsort(descending=True).tolist():
        one = Candidate(mu[best[rank]], gamma[best[rank]], origin, float(scores[rank]))
        if len(found) < search.keep and all(_overlap(one.mu, other.mu) < 0.9 for other in found):
            found.append(one)
    return found


def scan_elsewhere(probe: Probe, check: Probe, search: Search) -> Candidate:
    """The rectangle that most changes the answer elsewhere, compared with its mirror and shifts.

    Args:
        probe: noises and images in the middle of the schedule, for comparing all windows.
        check: others, for comparing the best windows, and for moving the best one's edges.
        search: the search's settings.
    """
    channels, height, width = probe.noise.shape[1:]
    squares = wide_windows(height, width)
    boxes = [(top, left, top + rows, left + columns) for rows, columns, top, left in squares]
    paints = [one for one in colours(channels).to(probe.noise) if bool(one.any())]
    shape = (channels, height, width)
    mu = torch.stack([painted(box, paint, shape) for box in boxes for paint in paints])
    reached = probe.elsewhere(mu)
    sizes = torch.tensor([one[0] for one in squares for _ in paints], device=reached.device)
    for size in sizes.unique():
        reached[sizes == size] -= reached[sizes == size].median()
    first = reached.argsort(descending=True)[: 4 * search.keep]
    scores = leverage(check, mu[first], torch.ones_like(mu[first]))[1]
    best = int(first[int(scores.argmax())])
    box, paint, score = boxes[best // len(paints)], paints[best % len(paints)], float(scores.max())
    for _ in range(search.moves):
        near = neighbours(box, height, width)
        mu = torch.stack([painted(one, paint, shape) for one in near])
        scores = leverage(check, mu, torch.ones_like(mu))[1]
        if float(scores.max()) <= score:
            break
        box, score = near[int(scores.argmax())], float(scores.max())
    mu = painted(box, paint, shape)
    return Candidate(mu, torch.ones_like(mu), "elsewhere", score, (mu != 0).any(0).expand_as(mu))


Box = tuple[int, int, int, int]
"""Top, left, bottom and right of a rectangle; bottom and right are excluded."""


def painted(box: Box, paint: Float[Tensor, "channels"], shape: tuple[int, int, int]) -> Tensor:
    """[C, H, W], a colour within a rectangle and 0 elsewhere."""
    mu = torch.zeros(shape).to(paint)
    mu[:, box[0] : box[2], box[1] : box[3]] = paint[:, None, None]
    return mu


def neighbours(box: Box, height: int, width: int) -> list[Box]:
    """The rectangles of which one edge is moved by a pixel.

    >>> neighbours((0, 0, 1, 2), 4, 4)
    [(0, 1, 1, 2), (0, 0, 2, 2), (0, 0, 1, 1), (0, 0, 1, 3)]
    """
    moved = []
    for edge, step in itertools.product(range(4), (-1, 1)):
        top, left, bottom, right = (value + step * (edge == place) for place, value in enumerate(box))
        if 0 <= top < bottom <= height and 0 <= left < right <= width:
            moved.append((top, left, bottom, right))
    return moved


def ascend(
    pool: Probe, start: Candidate, search: Search, generator: torch.Generator,
    support: Tensor | None = None, free_gamma: bool = True, rate: float = 0.08, sign: float = 1.0,
    steps: int | None = None, finish: bool = False,
) -> Candidate:  # fmt: skip
    """Maximise the undo beyond that of a control, by Adam on mu, within ±1, and γ, in (0, 1].

    Args:
        pool: noises and images from which batches are drawn, with the network's benign answers.
        start: the starting point.
        search: the search's settings.
        generator: of the batches and controls.
        support: [C, H, W] or [H, W], 1 where the candidate may act; None is everywhere.
        free_gamma: whether to optimise γ too.
        rate: learning rate.
        sign: -1 maximises the gain beyond 1 and beyond a control's instead, which VillanDiffusion's ODE triggers have.
        steps: number of steps; None is ``search.steps``.
        finish: use a quarter of the learning rate and twice the batch, for the maps that are reported.
    """
    inside = torch.ones_like(start.mu) if support is None else support.expand_as(start.mu).to(start.mu)
    mu_raw = torch.atanh((start.mu * 0.98).clamp(-0.98, 0.98)).clone().requires_grad_(True)
    gamma_raw = torch.logit(start.gamma.clamp(0.05, 0.95)).clone().requires_grad_(free_gamma)

    def maps() -> tuple[Tensor, Tensor]:
        gamma = 1 - inside * (1 - torch.sigmoid(gamma_raw)) if free_gamma else start.gamma
        return torch.tanh(mu_raw) * inside, gamma

    batch = search.batch * (2 if finish else 1)
    optimizer = torch.optim.Adam(
        [mu_raw, *([gamma_raw] if free_gamma else [])], lr=rate / (4 if finish else 1), betas=(0.9, 0.95)
    )
    for _ in range(search.steps if steps is None else steps):
        rows = torch.randint(len(pool.noise), (batch,), generator=generator)
        noise = pool.noise[rows]
        mu, gamma = maps()
        which = int(torch.randint(4, (1,), generator=generator))
        other_mu, other_gamma = controls(mu, gamma, unlike=start.origin == "symmetric")[which]
        x_0, base = pool.x_0[rows], pool.base[rows]
        d = torch.cat([(gamma - 1) * noise + mu, (other_gamma - 1) * noise + other_mu])
        change = pool.asked_by_parts(d + torch.cat([noise, noise]), torch.cat([x_0, x_0])) - torch.cat([base, base])
        undone = ((d - change) * d).reshape(2, -1).sum(1) / batch
        energy = d.square().reshape(2, -1).sum(1) / batch
        undo = undone / (energy + search.pixels)
        loss = (undo[1].clamp_min(0) - undo[0]) if sign > 0 else undo[0] - undo[1].clamp_max(0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mu, gamma = (one.detach() for one in maps())
    return Candidate(mu, gamma, start.origin, notes=dict(start.notes))
