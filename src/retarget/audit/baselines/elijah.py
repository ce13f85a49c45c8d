"""Elijah: invert a shift of the noise at the last step, then see whether its samples are alike.

An et al., *Elijah: Eliminating Backdoors Injected in Diffusion Models via Distribution Shift*, AAAI 2024. It was
written for stock-sampler attacks on one image; for TrojDiff the authors give the sampler the true trigger.

What differs from the released code: pairwise distances are Euclidean, as in the paper's equation, where the code has
LPIPS, whose weights a small image has no use for; no threshold was released, so a study takes one from clean models.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retarget.audit.baselines.sampling import images_from
from retarget.audit.subject import Recovered, Subject
from retarget.trojdiff.trigger import Trigger


@dataclass(frozen=True)
class Settings:
    """Elijah's settings.

    Attributes:
        noises: fixed noises of the inversion.
        iterations, learning_rate: of Adam.
        share: λ, the part of the shift that the network is expected to answer; BadDiffusion's at T.
        samples: images that are compared.
        sampler: they are made with it.
        floor: a shift that differs by less from the one that undoes the noises' own mean is none: that one makes the
            loss of *every* network almost zero, and with endless noises it is zero itself.
        starts: how often the inversion begins anew after it fell to that shortcut.
    """

    noises: int = 100
    iterations: int = 100
    learning_rate: float = 0.1
    share: float = 0.5
    samples: int = 16
    sampler: str = "ddpm-1000"
    floor: float = 0.3
    starts: int = 3


PUBLISHED = Settings()
"""The paper's section 4 and the released ``elijah_helper.py``; floor and restarts are ours."""
SHORT = Settings(sampler="ddpm-50", starts=1)
"""The same inversion, begun once; samples in 50 steps in place of 1,000."""


def inversion_loss(
    predicted: Float[Tensor, "batch channels height width"], tau: Float[Tensor, "channels height width"], share: float
) -> Float[Tensor, ""]:
    """``|| mean ε_θ(z + τ, T) - λ τ ||₁``, averaged over the values (the paper's equation 6)."""
    return (predicted.mean(dim=0) - share * tau).abs().mean()


def uniformity(images: Float[Tensor, "batch channels height width"]) -> float:
    """Mean Euclidean distance of all pairs of images in [0, 1]: near 0 where one image comes out each time."""
    return float(torch.pdist(images.flatten(1).double()).mean())


def total_variation(images: Float[Tensor, "batch channels height width"]) -> float:
    """Mean over images of the sum of absolute differences between neighbours."""
    down = images.diff(dim=2).abs().flatten(1).sum(dim=1)
    across = images.diff(dim=3).abs().flatten(1).sum(dim=1)
    return float((down + across).double().mean())


def invert(subject: Subject, settings: Settings = SHORT, seed: int = 0) -> tuple[Tensor, dict[str, Any]]:
    """The shift τ, and what became of the inversion: its loss, the starts it took, whether it took the shortcut.

    Returns:
        [C, H, W]; of the last start, where all of them fell to zero.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((settings.noises, *subject.shape), generator=generator).to(subject.device)
    last = torch.full((settings.noises,), subject.steps - 1, device=subject.device)
    alone = -noise.mean(dim=0) / (1 - settings.share)
    tau, found = torch.zeros(subject.shape), {}
    for start in range(1, settings.starts + 1):
        # The released code starts below zero for BadDiffusion and above it for TrojDiff: blind, it takes turns.
        sign = -1.0 if start % 2 else 1.0
        tau = (sign * torch.rand(subject.shape, generator=generator)).to(subject.device).requires_grad_(True)
        optimizer = torch.optim.Adam([tau], lr=settings.learning_rate)
        value = torch.zeros(())
        for _ in range(settings.iterations):
            value = inversion_loss(subject.eps(noise + tau, last), tau, settings.share)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        tau = tau.detach()
        shortcut = bool((tau - alone).abs().max() < settings.floor)
        found = {"loss": float(value.detach()), "starts": start, "shortcut": shortcut}
        if not shortcut:
            break
    return tau, found


def elijah(subject: Subject, settings: Settings = SHORT, seed: int = 0, told: Trigger | None = None) -> Recovered:
    """Invert, sample from the shifted noise, and score how alike the samples are.

    Args:
        told: the attack's own trigger, which the released code hands to the Trojan sampler; blind without.

    Returns:
        Score: minus the mean pairwise distance. A shift that is none recovers nothing, and its samples are ordinary.
    """
    before = subject.evaluations
    tau, found = invert(subject, settings, seed)
    noise = torch.randn((settings.samples, *subject.shape), generator=torch.Generator().manual_seed(seed + 1))
    images = images_from(subject, noise.to(tau) + tau, settings.sampler, told, seed)
    details = {**found, "uniformity": uniformity(images), "total_variation": total_variation(images)}
    cost = subject.evaluations - before
    return Recovered(tau.cpu(), 1.0, None, -details["uniformity"], cost, details)
