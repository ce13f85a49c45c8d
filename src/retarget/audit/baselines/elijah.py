"""Elijah: invert a shift of the noise at the last step, then check whether samples under this shift are alike.

An et al., *Elijah: Eliminating Backdoors Injected in Diffusion Models via Distribution Shift*, AAAI 2024. It was
designed for stock-sampler attacks with one target image; for TrojDiff the authors give the sampler the true trigger.

Differences from the released code: pairwise distances are Euclidean, as in the paper's equation; the code uses LPIPS,
which is not made for such small images, and leaves out four values at each end of the uniformity score. No threshold
was released, so studies derive one from clean models.
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
        noises: number of fixed noises for the inversion.
        iterations, learning_rate: of Adam.
        share: λ, the share of the shift that the network is expected to return; BadDiffusion's at T.
        samples: number of images that are compared.
        sampler: sampler of these images.
        floor: a shift within this distance of the one that cancels the mean of the noises is a shortcut, not a trigger:
            that shift makes the loss of *every* network almost zero. With infinitely many noises, it would itself be 0.
        starts: maximum number of inversions, if they end in the shortcut.
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
"""As in the paper's section 4 and the released ``elijah_helper.py``; ``floor`` and ``starts`` are ours."""
SHORT = Settings(sampler="ddpm-50", starts=1)
"""The same inversion without restarts, and samples in 50 steps instead of 1,000."""


def inversion_loss(
    predicted: Float[Tensor, "batch channels height width"], tau: Float[Tensor, "channels height width"], share: float
) -> Float[Tensor, ""]:
    """``|| mean ε_θ(z + τ, T) - λ τ ||₁``, averaged over the values (the paper's equation 6)."""
    return (predicted.mean(dim=0) - share * tau).abs().mean()


def uniformity(images: Float[Tensor, "batch channels height width"]) -> float:
    """Mean Euclidean distance between all pairs of images in [0, 1]; near 0 if all samples are the same image."""
    return float(torch.pdist(images.flatten(1).double()).mean())


def total_variation(images: Float[Tensor, "batch channels height width"]) -> float:
    """Mean over images of the sum of absolute differences between neighbours."""
    down = images.diff(dim=2).abs().flatten(1).sum(dim=1)
    across = images.diff(dim=3).abs().flatten(1).sum(dim=1)
    return float((down + across).double().mean())


def invert(subject: Subject, settings: Settings = SHORT, seed: int = 0) -> tuple[Tensor, dict[str, Any]]:
    """Invert the shift τ.

    Returns:
        τ, [C, H, W], of the first inversion that did not end in the shortcut, or else of the last; and its loss, the
        number of inversions, and whether it ended in the shortcut.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((settings.noises, *subject.shape), generator=generator).to(subject.device)
    last = torch.full((settings.noises,), subject.steps - 1, device=subject.device)
    alone = -noise.mean(dim=0) / (1 - settings.share)
    tau, found = torch.zeros(subject.shape), {}
    for start in range(1, settings.starts + 1):
        # The released code starts below zero for BadDiffusion and above it for TrojDiff; the blind version alternates.
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
    """Invert the shift, sample from shifted noise, and score how alike the samples are.

    Args:
        subject: the network.
        settings: of the method.
        seed: seed of all noise.
        told: the attack's trigger, which the released code gives to the Trojan sampler; None is blind.

    Returns:
        The shift; its score is minus the mean pairwise distance of the samples.
    """
    before = subject.evaluations
    tau, found = invert(subject, settings, seed)
    noise = torch.randn((settings.samples, *subject.shape), generator=torch.Generator().manual_seed(seed + 1))
    images = images_from(subject, noise.to(tau) + tau, settings.sampler, told, seed)
    details = {**found, "uniformity": uniformity(images), "total_variation": total_variation(images)}
    cost = subject.evaluations - before
    return Recovered(tau.cpu(), 1.0, None, -details["uniformity"], cost, details)
