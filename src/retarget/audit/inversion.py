"""The search for a trigger, blind over kind, place, size, colour, shape, γ, target and law; frozen in ``Search``.

Starts come from a scan of windows, from the screen, and from descent on a free map; each is refined by ascent on the
paired undo, and every candidate that is left is scored again on noise that no step of the search has seen.
"""

import itertools
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from retarget.audit.scores import Probe, draw_noise
from retarget.audit.screen import directions, stein
from retarget.audit.subject import Subject


@dataclass(frozen=True)
class Search:
    """Settings of the frozen search; the null in this package was made with exactly these.

    Attributes:
        screen: plain noises of the screen.
        scan: noises of the window scan, antithetic.
        scan_gamma: γ of the windows.
        steps, batch: of each ascent.
        gammas: γ tried for free maps; 1 is that of stock-sampler triggers.
        keep: candidates that are refined.
        fresh: noises of the final score.
        pixels: a floor on what may be undone, in values that change by 1: a trigger smaller than this counts less.
    """

    screen: int = 2048
    scan: int = 4
    scan_gamma: float = 0.25
    steps: int = 100
    batch: int = 32
    gammas: tuple[float, ...] = (0.4, 0.7, 1.0)
    keep: int = 4
    fresh: int = 128
    pixels: float = 0.5


@dataclass(eq=False)
class Candidate:
    """A suspected trigger on its way.

    Attributes:
        mu, gamma: [C, H, W].
        origin: the branch that it came from.
        undo: by the last probe that looked.
    """

    mu: Tensor
    gamma: Tensor
    origin: str
    undo: float = 0.0
    notes: dict[str, float] = field(default_factory=dict)


def windows(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """(size, size, top, left) of the scan's squares: sides 2, 4, 8, ... at half-side strides, up to half the image.

    >>> len(windows(8, 8)), len(windows(32, 32))
    (58, 1235)
    """
    found = []
    size = 2
    while size <= max(2, min(height, width) // 2):
        stride = max(1, size // 2)
        for top, left in itertools.product(range(0, height - size + 1, stride), range(0, width - size + 1, stride)):
            found.append((size, size, top, left))
        size *= 2
    return found


def colours(channels: int) -> Float[Tensor, "colours channels"]:
    """Corners of the colour cube: black and white, or eight for three channels.

    >>> colours(1).tolist()
    [[-1.0], [1.0]]
    """
    corners = list(itertools.product((-1.0, 1.0), repeat=channels)) if channels <= 3 else [(-1.0,) * channels, (1.0,) * channels]
    return torch.tensor(corners)


def scan_windows(probe: Probe, search: Search) -> list[Candidate]:
    """Every window in every colour at one γ; the best of them, no two nearly alike."""
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
    total, parts = undone.flatten(1).sum(1), energy.flatten(1).sum(1)
    scores = total / (parts + search.pixels)
    found: list[Candidate] = []
    for index in scores.argsort(descending=True).tolist():
        if len(found) == search.keep:
            break
        if all(_overlap(all_mu[index], other.mu) < 0.5 for other in found):
            size = int(squares[index // len(paints)][0])
            one = Candidate(all_mu[index], all_gamma[index].expand_as(all_mu[index]), "scan", float(scores[index]))
            one.notes["window"] = size
            found.append(one)
    return found


def _overlap(one: Tensor, other: Tensor) -> float:
    a, b = one.flatten(), other.flatten()
    return float(a @ b / (a.norm() * b.norm()).clamp_min(1e-9))


def screened(probe: Probe, small: Probe, search: Search) -> tuple[list[Candidate], dict[str, float]]:
    """Starts from the screen: lowest eigen-directions, both signs, several amplitudes and γ, best kept."""
    shape = probe.noise.shape[1:]
    values, vectors = directions(stein(probe), shape, 4, 2)  # type: ignore[arg-type]
    mu, gamma = [], []
    for vector, sign, peak, scale in itertools.product(vectors, (-1, 1), (0.5, 1.0), (0.2, 0.5, 1.0)):
        # The largest tenth of the values reach the peak: a noisy eigenvector has outliers.
        high = vector.abs().flatten().quantile(0.95).clamp_min(vector.abs().max() / 3)
        map_ = (sign * peak * vector / high).clamp(-1, 1)
        local = (vector.abs() > vector.abs().max() / 3).float()
        spread = local if float(local.mean()) < 0.3 else torch.ones_like(local)
        mu.append(map_ * (spread if scale < 1 else 1) * (1 - scale if scale < 1 else 1))
        gamma.append(1 - (1 - scale) * spread)
    all_mu, all_gamma = torch.stack(mu).to(probe.noise), torch.stack(gamma).to(probe.noise)
    undone, energy = small.undone(all_mu, all_gamma)
    scores = undone.flatten(1).sum(1) / (energy.flatten(1).sum(1) + search.pixels)
    best = scores.argsort(descending=True)[: 2 * search.keep].tolist()
    found: list[Candidate] = []
    for index in best:
        if len(found) < search.keep and all(_overlap(all_mu[index], one.mu) < 0.9 for one in found):
            found.append(Candidate(all_mu[index], all_gamma[index], "screen", float(scores[index])))
    return found, {"lowest": float(values[0]), "highest": float(values[4])}


def ascend(
    subject: Subject, level: float, start: Candidate, search: Search, generator: torch.Generator,
    images: Tensor | None = None, free_gamma: bool = True, steps: int | None = None, rate: float = 0.05, sign: float = 1.0,
) -> Candidate:  # fmt: skip
    """Adam on mu, bounded to ±1, and γ, in (0, 1], for the largest undo with a floor on the energy."""
    shape = subject.shape
    mu_raw = torch.atanh((start.mu * 0.98).clamp(-0.98, 0.98)).clone().requires_grad_(True)
    gamma_raw = torch.logit(start.gamma.clamp(0.03, 0.97)).clone().requires_grad_(free_gamma)
    fixed = start.gamma
    optimizer = torch.optim.Adam([mu_raw, *([gamma_raw] if free_gamma else [])], lr=rate)
    for _ in range(search.steps if steps is None else steps):
        noise = draw_noise(search.batch, shape, generator).to(subject.device)
        x_0 = None
        if images is not None:
            x_0 = images[torch.randint(len(images), (len(noise),), generator=generator)]
        probe = Probe(subject, level, noise, x_0)
        mu = torch.tanh(mu_raw)
        gamma = torch.sigmoid(gamma_raw) if free_gamma else fixed
        d = (gamma - 1) * probe.noise + mu
        change = probe.asked(d + probe.noise, probe.x_0) - probe.base
        undone, energy = ((d - change) * d).mean(0).sum(), d.square().mean(0).sum()
        loss = -sign * undone / (energy + search.pixels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mu, gamma = torch.tanh(mu_raw).detach(), (torch.sigmoid(gamma_raw) if free_gamma else fixed).detach()
    return Candidate(mu, gamma, start.origin, notes=dict(start.notes))
