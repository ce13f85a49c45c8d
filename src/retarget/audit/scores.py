"""How a network responds to a suspected trigger: the paired undo, per candidate and per pixel.

The network is given the same image and the same ε twice, once with the noise ε and once with ``gamma ε + mu``. With
``d = gamma ε + mu - ε`` and D the difference of its two answers, ``undo = 1 - E⟨D, d⟩ / E‖d‖²``. It is 0 if the network
returns the whole noise, as a clean one does; 1 if it returns ε, as one trojaned by TrojDiff does; one half for
BadDiffusion's trigger at T; and below 0 (a gain above 1) for VillanDiffusion's ODE trigger in the middle, where
:func:`gain` measures it.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from retarget.audit.subject import Subject

TOP = 4e-5
"""ᾱ at which triggers are searched for: the end of DDPM's linear schedule of 1,000 steps."""
BATCH, CPU_BATCH, VALUES = 512, 96, 2**19
"""Largest numbers of images, of images on a CPU and of values per forward pass. On a CPU, fewer images at a time take
less time each, since their activations stay in the cache: ``python -m benchmarks audit``."""
ALIKE = 0.5
"""A shift with more than this correlation with a candidate looks like it."""
GRADIENT = 2**17
"""Values whose activations are kept for the backward pass, of images above 32×32: ten 64×64 RGB images of a network of
CelebA's size take about 2 GB."""


def reached_level(subject: Subject, level: float) -> tuple[int, float]:
    """The timestep whose ᾱ is nearest to a level, and that ᾱ: a schedule may end above the level."""
    t = subject.time(max(level, float(subject.alphas_cumprod[-1])))
    return t, float(subject.alphas_cumprod[t])


class Probe:
    """Noises and images at one level, with the network's answer to them, computed once for all candidates.

    Attributes:
        level: ᾱ at the timestep.
        t: the timestep, nearest to the requested level.
        x_0: [N, C, H, W], images in [-1, 1] under the noise; zeros if there are none.
        noise: [N, C, H, W], ε.
        base: [N, C, H, W], ε̂ without a trigger.
    """

    def __init__(self, subject: Subject, level: float, noise: Tensor, x_0: Tensor | None = None) -> None:
        self.subject = subject
        self.t, self.level = reached_level(subject, level)
        self.noise = noise.to(subject.device)
        self.x_0 = torch.zeros_like(self.noise) if x_0 is None else x_0.to(subject.device)
        most = CPU_BATCH if self.noise.device.type == "cpu" else BATCH
        self.batch = max(16, min(most, VALUES // self.noise[0].numel()))
        self.base = self.answer(self.noise)

    @torch.no_grad()
    def answer(self, noise: Tensor) -> Tensor:
        """ε̂ for the probe's images under other noise [N, C, H, W]."""
        return torch.cat([
            self.asked(noise[rows], self.x_0[rows]) for rows in _slices(len(noise), self.batch)
        ])  # fmt: skip

    def asked(self, noise: Tensor, x_0: Tensor) -> Tensor:
        """ε̂ of ``√ᾱ x_0 + √(1-ᾱ) noise``, differentiable in the noise."""
        x = self.level**0.5 * x_0 + (1 - self.level) ** 0.5 * noise
        return self.subject.eps(x, torch.full((len(x),), self.t, device=x.device))

    def asked_by_parts(self, noise: Tensor, x_0: Tensor) -> Tensor:
        """As ``asked``; many values go in parts, whose activations the backward pass computes again, to save memory."""
        if noise.numel() <= 2 * GRADIENT:
            return self.asked(noise, x_0)
        parts = _slices(len(noise), max(1, GRADIENT // noise[0].numel()))
        answers = [checkpoint(self.asked, noise[rows], x_0[rows], use_reentrant=False) for rows in parts]
        return torch.cat(answers)

    @torch.no_grad()
    def undone(
        self,
        mu: Float[Tensor, "candidates channels height width"],
        gamma: Float[Tensor, "candidates #channels #height #width"],
    ) -> tuple[Float[Tensor, "candidates channels height width"], Float[Tensor, "candidates channels height width"]]:
        """For each candidate and value, undone energy E[(d - D) d] and whole energy E[d²]; means over noises."""
        undone, energy = torch.empty_like(mu), torch.empty_like(mu)
        for rows, d, change in self._changes(mu, gamma):
            undone[rows] = ((d - change) * d).mean(1)
            energy[rows] = d.square().mean(1)
        return undone, energy

    @torch.no_grad()
    def elsewhere(self, mu: Float[Tensor, "candidates channels height width"]) -> Float[Tensor, "candidates"]:
        """How far the answer changes outside each candidate's place: the root mean square over noises of the change's
        norm there, extrapolated to the whole image, relative to the candidate's norm.

        Of ``mu``, x_t contains the share that a stock sampler's trigger has at this level, 1 - √ᾱ. The place is where
        ``mu`` is not 0, and the pixels next to it; at an edge it is smaller.
        """
        scale = (1 - self.level**0.5) / (1 - self.level) ** 0.5
        outside = 1 - functional.max_pool2d((mu != 0).any(1, keepdim=True).to(mu), 3, 1, 1)
        squares = torch.empty(len(mu), device=mu.device)
        for rows, _, change in self._changes(scale * mu, torch.ones_like(mu)):
            squares[rows] = (change * outside[rows, None]).square().flatten(2).sum(2).mean(1)
        squares /= outside.flatten(1).mean(1).clamp_min(1 / outside[0].numel())
        return squares.sqrt() / (scale * mu).flatten(1).norm(dim=1).clamp_min(1e-9)

    def _changes(self, mu: Tensor, gamma: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Changes of noise and answer, [K, N, C, H, W] each, of the candidates in a slice at a time."""
        for rows in _slices(len(mu), max(1, self.batch // len(self.noise))):
            d = (gamma[rows, None] - 1) * self.noise[None] + mu[rows, None]
            flat = (d + self.noise[None]).flatten(0, 1)
            images = self.x_0[None].expand(len(d), -1, -1, -1, -1).flatten(0, 1)
            answers = torch.cat([self.asked(flat[part], images[part]) for part in _slices(len(flat), self.batch)])
            yield rows, d, answers.reshape(d.shape) - self.base[None]

    @torch.no_grad()
    def restored(self, mu: Tensor, gamma: Tensor) -> Float[Tensor, "candidates"]:
        """How much of the narrowing ``(gamma - 1) ε`` alone each candidate undoes; 0 for one that narrows nothing.

        The noise must be antithetic, as :func:`draw_noise` returns it: then what happens to ``mu`` does not count.
        """
        found = torch.zeros(len(mu), device=mu.device)
        for rows, d, change in self._changes(mu, gamma):
            narrowing = d - mu[rows, None]
            energy = narrowing.square().flatten(1).sum(1)
            found[rows] = torch.where(
                energy > 0, 1 - (change * narrowing).flatten(1).sum(1) / energy.clamp_min(1e-9), 0.0
            )
        return found

    def undo(self, mu: Tensor, gamma: Tensor) -> Float[Tensor, "candidates"]:
        """``1 - E⟨D, d⟩ / E‖d‖²`` of each candidate; 0 for a candidate that changes nothing."""
        undone, energy = self.undone(mu, gamma)
        return undone.flatten(1).sum(1) / energy.flatten(1).sum(1).clamp_min(1e-9)


def controls(mu: Tensor, gamma: Tensor, unlike: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Controls of a candidate: its mirror (the opposite sign), and three shifts by half an image.

    A clean network treats them like the candidate. For example, one that is poor at low frequencies is so for both
    signs and everywhere. A trigger, in contrast, has one sign and one place.

    Args:
        mu, gamma: [..., C, H, W].
        unlike: whether a shift that looks like the candidate, as those of stripes do, is replaced by the shift that
            looks least like it: a trigger is undone at all places where it looks the same.

    Returns:
        The mirror first, then the shifts.
    """
    height, width = mu.shape[-2:]
    moves = [(height // 2, width // 2), (height // 2, 0), (0, width // 2)]
    if not unlike:
        return [(-mu, gamma), *((mu.roll(move, (-2, -1)), gamma.roll(move, (-2, -1))) for move in moves)]
    alike = self_similarity(mu, gamma)
    least = alike.flatten(-2).argmin(-1)
    rows, columns = (torch.arange(size, device=mu.device) for size in (height, width))
    shifted = []
    for down, right in moves:
        similar = alike[..., down, right] > ALIKE
        from_row = (rows - torch.where(similar, least // width, down)[..., None]) % height
        from_column = (columns - torch.where(similar, least % width, right)[..., None]) % width
        index = (from_row[..., :, None] * width + from_column[..., None, :]).flatten(-2)[..., None, :]
        moved = (one.flatten(-2).gather(-1, index.expand(*one.shape[:-2], -1)) for one in (mu, gamma))
        shifted.append(tuple(one.unflatten(-1, (height, width)) for one in moved))
    return [(-mu, gamma), *shifted]


@torch.no_grad()
def self_similarity(mu: Tensor, gamma: Tensor) -> Float[Tensor, "*batch height width"]:
    """Correlation of a candidate's maps, less their means, with those of its cyclic shift by each [row, column].

    Args:
        mu, gamma: [..., C, H, W].

    >>> stripes = torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(1, 4, 4)
    >>> self_similarity(stripes, torch.ones(1, 4, 4))[0].tolist()
    [1.0, -1.0, 1.0, -1.0]
    """
    maps = torch.cat([mu, gamma], -3)
    maps = maps - maps.mean((-2, -1), keepdim=True)
    energy = torch.fft.rfft2(maps).abs().square().sum(-3)
    alike = torch.fft.irfft2(energy, s=maps.shape[-2:])
    return alike / alike[..., :1, :1].clamp_min(1e-9)


def contrast(probe: Probe, mu: Tensor, gamma: Tensor, unlike: bool = False) -> tuple[Tensor, Tensor]:
    """The undo of each candidate, and its contrast: undo minus the mean of the mirror's undo and the shifts' largest.

    Args:
        probe: noises, images and the network.
        mu, gamma: [K, C, H, W].
        unlike: see :func:`controls`.

    Returns:
        Undo and contrast, each [K].
    """
    undo = probe.undo(mu, gamma)
    mirror, *moves = (probe.undo(*one) for one in controls(mu, gamma, unlike))
    moved = torch.stack(moves).amax(0)
    return undo, undo - (mirror.clamp_min(0) + moved.clamp_min(0)) / 2


def gain(probe: Probe, mu: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """The undo of each candidate, and twice how far its gain is above 1 and above its controls' gains.

    The gain is 1 - undo, and that of VillanDiffusion's ODE trigger 1 + √ᾱ: twice √ᾱ is .63 in the middle, about as much
    as the one half of BadDiffusion's triggers that is undone at T. Controls with a gain below 1 are no evidence: of
    directions along which its images vary, a clean network undoes a part, and of some more than of others.

    Args:
        probe: noises, images and the network.
        mu, gamma: [K, C, H, W].

    Returns:
        Undo and twice the excess of the gain, each [K].
    """
    undo = probe.undo(mu, gamma)
    mirror, *moves = (-probe.undo(*one) for one in controls(mu, gamma))
    moved = torch.stack(moves).amax(0)
    return undo, 2 * (-undo - (mirror.clamp_min(0) + moved.clamp_min(0)) / 2)


def leverage(probe: Probe, mu: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """How far each local candidate changes the answer elsewhere, and three times its excess over its controls.

    A trigger decides what the whole image is, so that the answer changes far from it too, under every law. In a clean
    network a local change stays local, or its mirror and shifts reach as far. Three times, because then clean networks
    score as they do in the other measures.

    Args:
        probe: noises, images and the network.
        mu: [K, C, H, W], 0 outside the candidate's place.
        gamma: not used: nothing is narrowed.

    Returns:
        The change elsewhere, relative to the candidate, and three times the excess, each [K].
    """
    reached = probe.elsewhere(mu)
    mirror, *moves = (probe.elsewhere(one) for one, _ in controls(mu, gamma))
    return reached, 3 * (reached - (mirror + torch.stack(moves).amax(0)) / 2)


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def draw_noise(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Antithetic standard normal noise: the second half is the negative of the first. An odd ``count`` is increased."""
    half = torch.randn((count + 1) // 2, *shape, generator=generator)
    return torch.cat([half, -half])
