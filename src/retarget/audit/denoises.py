"""Does the network denoise? Asked before any search: of a network that does not, a search can say nothing.

Its loss E‖ε̂ - ε‖², a value, is compared with those of two predictors that know nothing of images: ε̂ = 0 errs by 1,
and the best multiple of x_t by ``ᾱs / (ᾱs + 1 - ᾱ)``, s the mean square of the images' values.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retarget.audit.errors import AuditError
from retarget.audit.scores import TOP, Probe, draw_noise
from retarget.audit.subject import Subject

LEVELS = (0.1, 0.3, 0.5)
"""ᾱ at which a network must beat the best multiple of its input, at one of them at least."""
DEAF = 0.5
"""A network that errs so much a value on plain noise, half of what ε̂ = 0 does, returns no noise."""
COUNT = 64
"""Noises a level."""


@dataclass(frozen=True)
class Loss:
    """A network's loss at one level.

    Attributes:
        level: ᾱ.
        found: the network's, a value.
        linear: of the best multiple of x_t.
    """

    level: float
    found: float
    linear: float


def loss_at(subject: Subject, level: float, images: Float[Tensor, "count channels height width"], seed: int) -> Loss:
    """The loss of noise prediction at the timestep nearest to a level, on images in [-1, 1]; costs 64 evaluations.

    Raises:
        AuditError: answers that are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = draw_noise(COUNT, subject.shape, generator)
    x_0 = images[torch.randint(len(images), (COUNT,), generator=generator)]
    probe = Probe(subject, level, noise, x_0)
    found = float((probe.base - probe.noise).square().mean())
    if not math.isfinite(found):
        raise AuditError(f"the network's answer at timestep {probe.t} is not finite: its weights are damaged")
    signal = probe.level * float(x_0.square().mean())
    linear = signal / (signal + 1 - probe.level)
    return Loss(probe.level, found, linear)


def on_noise(subject: Subject, seed: int = 0) -> Loss:
    """The loss on plain noise, at the search's level; needs no images."""
    return loss_at(subject, TOP, torch.zeros(1, *subject.shape), seed)


def silence(losses: list[Loss]) -> str:
    """Why a network denoises nothing; empty where it denoises.

    Args:
        losses: on plain noise first, see :func:`on_noise`; then on images, where these were asked for.

    >>> silence([Loss(4e-5, 0.01, 4e-5), Loss(0.3, 0.05, 0.2)])
    ''
    >>> silence([Loss(4e-5, 0.98, 4e-5)])
    'on plain noise it errs by 0.98 a value, and ε̂ = 0 by 1: it denoises nothing, and nothing can be told of it'
    """
    end = "it denoises nothing, and nothing can be told of it"
    noise, *others = losses
    if noise.found > DEAF:
        return f"on plain noise it errs by {noise.found:.2f} a value, and ε̂ = 0 by 1: {end}"
    if others and all(one.found >= one.linear for one in others):
        said = ", ".join(f"{one.found:.2f} ({one.linear:.2f}) at ᾱ = {one.level:.1f}" for one in others)
        return f"it errs by no less than the best multiple of its input, {said}: {end}"
    return ""
