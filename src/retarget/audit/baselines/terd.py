"""TERD: invert a bias and a scale per pixel from pairs of predictions, refine through the sampler, score by KL.

Mo et al., *TERD: A Unified Framework for Safeguarding Diffusion Models Against Backdoors*, ICML 2024. It is told the
family of the attack: TrojDiff's, with gamma, or BadDiffusion's, without. Blind, it is given the wider of the two.

What differs from the released code: gamma is kept above a small floor before its logarithm is taken, since the code's
own may stay at the zero where it starts, and the divergence is then infinite for every network.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from retarget.audit.subject import Recovered, Subject

Family = Literal["trojdiff", "bad_diffusion"]


@dataclass(frozen=True)
class Settings:
    """TERD's settings.

    Attributes:
        iterations: of the first stage; ``refinements`` of the second.
        batch: pairs of an iteration.
        rate_mu, rate_gamma: of SGD, falling by half a cosine; momentum .9 in the second stage.
        weight: λ of the reward for the size of mu.
        window: times nearest to T, and nearest to 0, that are drawn from.
        steps: of the sampler that the second stage is differentiated through.
        clip: largest gradient norm of the second stage.
        floor: of gamma in the score.
    """

    iterations: int = 3000
    refinements: int = 1000
    batch: int = 16
    rate_mu: float = 0.5
    rate_gamma: float = 0.001
    weight: float = 5e-5
    window: int = 10
    steps: int = 10
    clip: float = 1.0
    floor: float = 1e-3


PUBLISHED = Settings()
"""The paper's section 5.1 and the released ``reverse.py`` and ``cifar_10_reverse.sh``; the floor is ours."""
SHORT = Settings(iterations=300, refinements=10, rate_gamma=0.01)
"""A tenth of the first stage, gamma moving ten times as fast to get as far, and 10 refinements in place of 1,000."""


def reversed_loss(
    first: Float[Tensor, "batch channels height width"],
    second: Float[Tensor, "batch channels height width"],
    noise_first: Float[Tensor, "batch channels height width"],
    noise_second: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, ""]:
    """``½ || (ε_1 - ε_θ(x_1)) - (ε_2 - ε_θ(x_2)) ||²``, summed over values, averaged over pairs.

    The paper's reversed loss (section 4.2). What the pair shares cancels: the unknown image, and the bias's part of
    the answer.
    """
    return 0.5 * ((noise_first - first) - (noise_second - second)).square().flatten(1).sum(dim=1).mean()


def divergence(mu: Tensor, gamma: Tensor, floor: float = PUBLISHED.floor) -> Tensor:
    """KL(N(mu, gamma²) || N(0, 1)) of every value: ``-ln gamma + (gamma² + mu² - 1) / 2``."""
    gamma = gamma.clamp(min=floor)
    return -gamma.log() + (gamma.square() + mu.square() - 1) / 2


def terd(
    subject: Subject, settings: Settings = SHORT, seed: int = 0, told: Family | None = None, refine: bool = True
) -> Recovered:
    """Both stages, and the score ``mean KL`` over values; the variance of KL is in the details.

    Args:
        told: the attack's family; TrojDiff's, which has BadDiffusion's inside it, when blind.
        refine: the second stage too.
    """
    before = subject.evaluations
    generator = torch.Generator().manual_seed(seed)
    search = _Search(subject, settings, generator, told or "trojdiff")
    search.estimate()
    if refine:
        search.refine()
    mu, gamma = search.mu.detach().cpu(), search.scale().detach().cpu()
    each = divergence(mu, gamma, settings.floor)
    details = {
        "kl_mean": float(each.mean()), "kl_variance": float(each.var(correction=0)),
        "family": told or "trojdiff, blind", "refined": refine,
    }  # fmt: skip
    return Recovered(
        mu, gamma.clamp(min=settings.floor), None, details["kl_mean"], subject.evaluations - before, details
    )


class _Search:
    """The two maps, and how far their inversion is."""

    def __init__(self, subject: Subject, settings: Settings, generator: torch.Generator, family: Family) -> None:
        self.subject, self.settings, self.generator = subject, settings, generator
        self.with_gamma = family == "trojdiff"
        device = subject.device
        self.mu = (-torch.rand(subject.shape, generator=generator)).to(device).requires_grad_(True)
        self.gamma = torch.zeros(subject.shape, device=device, requires_grad=self.with_gamma)
        self.levels = subject.alphas_cumprod.to(device, torch.float32)

    def scale(self) -> Tensor:
        """gamma; 1 for the family that has none."""
        return self.gamma if self.with_gamma else torch.ones_like(self.gamma)

    def estimate(self) -> None:
        """Stage 1: unknown images stand for by noise, times near T."""
        for optimizer in self._steps(self.settings.iterations, momentum=0.0):
            loss = self._pair(self._noise(), near_end=True) - self.settings.weight * self.mu.abs().sum()
            self._descend(loss, optimizer)

    def refine(self) -> None:
        """Stage 2: images that the maps themselves bring forth, times near T and near 0."""
        for optimizer in self._steps(self.settings.refinements, momentum=0.9):
            images = self._sampled()
            both = (self._pair(images, near_end=True) + self._pair(images, near_end=False)) / 2
            self._descend(both - self.settings.weight * self.mu.abs().sum(), optimizer, self.settings.clip)

    def _steps(self, count: int, momentum: float):
        groups = [{"params": [self.mu], "lr": self.settings.rate_mu}]
        if self.with_gamma:
            groups.append({"params": [self.gamma], "lr": self.settings.rate_gamma})
        optimizer = torch.optim.SGD(groups, momentum=momentum)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, count))
        for _ in range(count):
            yield optimizer
            decay.step()

    def _descend(self, loss: Tensor, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([self.mu, self.gamma], clip)
        optimizer.step()
        with torch.no_grad():
            self.gamma.clamp_(min=0)

    def _noise(self) -> Tensor:
        shape = (self.settings.batch, *self.subject.shape)
        return torch.randn(shape, generator=self.generator).to(self.mu.device)

    def _pair(self, images: Tensor, near_end: bool) -> Tensor:
        """The loss of a batch of pairs; the bias is in the states near T alone, as in the released code."""
        low = self.subject.steps - self.settings.window if near_end else 0
        high = self.subject.steps if near_end else self.settings.window
        t = torch.randint(low, high, (self.settings.batch,), generator=self.generator).to(self.mu.device)
        first, second = self._noise(), self._noise()
        outputs = [self.subject.eps(self._state(images, noise, t, near_end), t) for noise in (first, second)]
        return reversed_loss(outputs[0], outputs[1], first, second)

    def _state(self, images: Tensor, noise: Tensor, t: Int[Tensor, "batch"], biased: bool) -> Tensor:
        level = self.levels[t][:, None, None, None]
        state = level.sqrt() * images + (1 - level).sqrt() * self.scale() * noise
        return state + self.mu if biased else state

    def _sampled(self) -> Tensor:
        """A few DDIM steps under the Trojan law, from ``gamma ε + mu``; differentiable in both maps."""
        mu, gamma, x = self.mu, self.scale(), self._noise()
        x = gamma * x + mu
        grid = (np.linspace(0, np.sqrt(0.8 * self.subject.steps), self.settings.steps) ** 2).astype(int)
        for t, before in zip(grid[::-1], [*grid[-2::-1], -1], strict=True):
            level = self.levels[t]
            after = self.levels[before] if before >= 0 else torch.ones_like(level)
            predicted = self.subject.eps(x, torch.full((len(x),), int(t), device=x.device))
            biased = gamma * predicted + mu
            image = (x - (1 - level).sqrt() * biased) / level.sqrt()
            x = after.sqrt() * image + (1 - after).sqrt() * biased
        return x
