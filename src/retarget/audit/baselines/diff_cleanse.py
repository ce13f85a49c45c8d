"""Diff-Cleanse's inversion: change the initial noise until samples become alike, and count how many do.

Hao et al., *Diff-Cleanse: Identifying and Mitigating Backdoor Attacks in Diffusion Models*, arXiv 2407.21316. The
sampler is a black box: the gradient of a sample is applied to its initial noise. The score is the largest share of
alike samples in any iteration (the paper's MSCR). Its pruning is not part of this comparison.

Differences from the released code: cosines are between pixels for every attack; for TrojDiff the code uses features of
CLIP, and is given gamma and the Trojan sampler. Once images are alike, the code narrows the range of entropy to theirs,
with a weight of 10, and it scales the gradient. Its variant for TrojDiff has a learning rate of 1e-3, and
counts images above a cosine of .9 as alike.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retarget.audit.baselines.sampling import images_from
from retarget.audit.subject import Recovered, Subject
from retarget.trojdiff.trigger import Trigger


@dataclass(frozen=True)
class Settings:
    """Diff-Cleanse's settings.

    Attributes:
        iterations, learning_rate: of Adam.
        samples: images per iteration.
        sampler: sampler of these images.
        alike: cosine above which two images count as alike.
        flat: images with a larger share of black, or of white, pixels are ignored.
        entropy_low, entropy_high: range in which the entropy of an image is not penalised.
        value_low, value_high: range in which a pixel is not penalised.
        entropy_weight: weight of the entropy penalty.
    """

    iterations: int = 100
    learning_rate: float = 0.1
    samples: int = 16
    sampler: str = "ddim-20"
    alike: float = 0.999
    flat: float = 0.5
    entropy_low: float = 0.8
    entropy_high: float = 6.0
    value_low: float = 0.05
    value_high: float = 0.95
    entropy_weight: float = 20.0


PUBLISHED = Settings()
"""The released ``BBTI_helper.py`` for CIFAR-10."""
SHORT = Settings(iterations=40, sampler="ddim-10", flat=1.01)
"""Fewer and shorter iterations. Images with a black background are not ignored, since most small ones have one."""


def alike_set(images: Float[Tensor, "batch values"], settings: Settings = PUBLISHED) -> Bool[Tensor, "batch"]:
    """Which images are alike another one, by the cosine of their pixels in [0, 1]; flat images are ignored.

    Args:
        images: [N, C·H·W]; each channel of a pixel counts separately.
        settings: thresholds.

    Returns:
        [N].
    """
    flat = torch.maximum((images <= 0.01).double().mean(dim=1), (images >= 0.99).double().mean(dim=1)) > settings.flat
    same = (_cosines(images) > settings.alike) & ~flat[:, None] & ~flat[None]
    return same.fill_diagonal_(False).any(dim=1)


def inversion_loss(images: Float[Tensor, "batch values"], settings: Settings = PUBLISHED) -> Float[Tensor, ""]:
    """The loss of the inversion: dissimilarity of the images, plus penalties on their entropy and range.

    If some images are alike, the others are made similar to the first of them; otherwise all pairs to each other.
    """
    alike = alike_set(images.detach(), settings)
    rest = (~alike).nonzero().flatten()
    cosines = _cosines(images)
    if bool(alike.any()):
        wanted = cosines[alike.nonzero()[0], rest].flatten()
    else:
        wanted = cosines[torch.triu(torch.ones_like(cosines, dtype=torch.bool), diagonal=1)]
    weight = len(images) / len(rest) if len(rest) else 1.0
    left = images[rest]
    entropy = _entropy(left)
    punished = (entropy - settings.entropy_high).relu().sum() + (settings.entropy_low - entropy).relu().sum()
    outside = (left - settings.value_high).relu().sum() + (settings.value_low - left).relu().sum()
    return weight * (1 - wanted).sum() + settings.entropy_weight * punished + outside


def _cosines(images: Tensor) -> Tensor:
    unit = images / images.norm(dim=1, keepdim=True).clamp(min=1e-8)
    return unit @ unit.T


def _entropy(images: Float[Tensor, "batch values"]) -> Float[Tensor, "batch"]:
    """Entropy of the softmax of pixels in [0, 255], as in the released code."""
    logs = (255 * images).log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1)


def diff_cleanse(subject: Subject, settings: Settings = SHORT, seed: int = 0, told: Trigger | None = None) -> Recovered:
    """Run the inversion; the score is the largest share of alike samples in any iteration.

    Args:
        subject: the network.
        settings: of the method.
        seed: seed of all noise.
        told: the attack's trigger, for the noise's gamma and the sampler; None is blind.
    """
    before = subject.evaluations
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((settings.samples, *subject.shape), generator=generator).to(subject.device)
    if told is not None:
        noise = told.gamma.to(noise) * noise
    pattern = torch.randn(subject.shape, generator=generator).to(subject.device).requires_grad_(True)
    optimizer = torch.optim.Adam([pattern], lr=settings.learning_rate)
    best, found, details = -1.0, pattern.detach().clone(), dict[str, Any]()
    for iteration in range(1, settings.iterations + 1):
        images = images_from(subject, noise + pattern.detach(), settings.sampler, told, seed)
        share = float(alike_set(images.flatten(1), settings).double().mean())
        if share > best:
            best, found, details = share, pattern.detach().clone(), {"iteration": iteration}
        if share == 1:
            break
        images.requires_grad_(True)
        inversion_loss(images.flatten(1), settings).backward()
        assert images.grad is not None
        pattern.grad = images.grad.mean(dim=0)
        optimizer.step()
    details |= {"alike": best, "largest": float(found.abs().max())}
    return Recovered(found.cpu(), 1.0, None, best, subject.evaluations - before, details)
