"""Sample images of a subject from a given initial noise, for Elijah and Diff-Cleanse. Every evaluation is counted."""

import torch
from jaxtyping import Float
from torch import Tensor

from retarget.audit.subject import Subject
from retarget.trojdiff.sample import Sampler
from retarget.trojdiff.trigger import Trigger


@torch.no_grad()
def images_from(
    subject: Subject,
    first: Float[Tensor, "batch channels height width"],
    sampler: str,
    trigger: Trigger | None = None,
    seed: int = 0,
) -> Float[Tensor, "batch channels height width"]:
    """Denoise ``first`` with a sampler; returns images in [0, 1].

    Args:
        subject: the network.
        first: [B, C, H, W], the initial noise.
        sampler: ``NAME-STEPS``, see :class:`retarget.trojdiff.sample.Sampler`.
        trigger: trigger of the sampler, if the detector is told it; None is the stock sampler.
        seed: seed of the sampler's own noise.
    """
    scheduler = Sampler.parse(sampler).scheduler(subject.scheduler.config, trigger or Trigger.none(subject.shape))
    noise, x = torch.Generator().manual_seed(seed), first.clone()
    for t in scheduler.timesteps:
        predicted = subject.eps(x, torch.full((len(x),), int(t), dtype=torch.long, device=x.device))
        x = scheduler.step(predicted, t, x, generator=noise).prev_sample
    return (x.clamp(-1, 1) + 1) / 2
