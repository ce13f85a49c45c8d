"""TERD: invert a bias and a scale per pixel from pairs of predictions, refine them through the sampler, score by KL.

Mo et al., *TERD: A Unified Framework for Safeguarding Diffusion Models Against Backdoors*, ICML 2024. TERD is told the
family of the attack: TrojDiff's, with gamma, or BadDiffusion's, without. The blind version uses the wider one.

Differences from the released code: gamma is kept above a small floor before its logarithm is taken. In the code it can
remain at its initial value of zero, which makes the divergence infinite for every network.
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
        iterations, refinements: iterations of the first and of the second stage.
        batch: pairs per iteration.
        rate_mu, rate_gamma: learning rates of SGD, with a cosine decay; the second stage has momentum 0.9.
        weight: λ, weight of the reward for the size of mu.
        window: number of timesteps nearest to T, and nearest to 0, from which timesteps are drawn.
        steps: steps of the sampler that the second stage differentiates through.
        clip: largest gradient norm in the second stage.
        floor: smallest gamma in the score.
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
"""As in the paper's section 5.1 and the released ``reverse.py`` and ``cifar_10_reverse.sh``; ``floor`` is ours."""
SHORT = Settings(iterations=300, refinements=10, rate_gamma=0.01)
"""A tenth of the first stage, with ten times the learning rate of gamma, and 10 refinements instead of 1,000."""


def reversed_loss(
    first: Float[Tensor, "batch channels height width"],
    second: Float[Tensor, "batch channels height width"],
    noise_first: Float[Tensor, "batch channels height width"],
    noise_second: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, ""]:
    """``½ || (ε_1 - ε_θ(x_1)) - (ε_2 - ε_θ(x_2)) ||²``, summed over values, averaged over pairs.

    The paper's reversed loss (section 4.2). The parts that both share cancel: the unknown image, and the bias's effect
    on the answer.
    """
    return 0.5 * ((noise_first - first) - (noise_second - second)).square().flatten(1).sum(dim=1).mean()


def divergence(mu: Tensor, gamma: Tensor, floor: float = PUBLISHED.floor) -> Tensor:
    """KL(N(mu, gamma²) || N(0, 1)) per value: ``-ln gamma + (gamma² + mu² - 1) / 2``."""
    gamma = gamma.clamp(min=floor)
    return -gamma.log() + (gamma.square() + mu.square() - 1) / 2


def terd(
    subject: Subject, settings: Settings = SHORT, seed: int = 0, told: Family | None = None, refine: bool = True
) -> Recovered:
    """Invert the trigger; the score is the mean KL over values. The variance of KL is in the details.

    Args:
        subject: the network.
        settings: of the method.
        seed: seed of all noise.
        told: the attack's family; None is blind, and uses TrojDiff's, which includes BadDiffusion's.
        refine: whether to run the second stage.
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
    """The two maps during their inversion."""

    def __init__(self, subject: Subject, settings: Settings, generator: torch.Generator, family: Family) -> None:
        self.subject, self.settings, self.generator = subject, settings, generator
        self.with_gamma = family == "trojdiff"
        device = subject.device
        self.mu = (-torch.rand(subject.shape, generator=generator)).to(device).requires_grad_(True)
        self.gamma = torch.zeros(subject.shape, device=device, requires_grad=self.with_gamma)
        self.levels = subject.alphas_cumprod.to(device, torch.float32)

    def scale(self) -> Tensor:
        """gamma; 1 for the family without gamma."""
        return self.gamma if self.with_gamma else torch.ones_like(self.gamma)

    def estimate(self) -> None:
        """Stage 1: noise stands for the unknown images; timesteps near T."""
        for optimizer in self._steps(self.settings.iterations, momentum=0.0):
            loss = self._pair(self._noise(), near_end=True) - self.settings.weight * self.mu.abs().sum()
            self._descend(loss, optimizer)

    def refine(self) -> None:
        """Stage 2: images that the network samples with the present maps; timesteps near T and near 0."""
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
        """The loss of a batch of pairs. As in the released code, only states near T have the bias."""
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
        """Images after a few DDIM steps under the Trojan law, from ``gamma ε + mu``; differentiable in both maps."""
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
