"""Does the network denoise? This is checked before any search, since a search of a network that does not is useless.

Its loss, the mean of (ε̂ - ε)² per value, is compared with that of two trivial predictors: 1 for ε̂ = 0, and
``ᾱs / (ᾱs + 1 - ᾱ)`` for the best multiple of x_t, where s is the mean square of the images' values.
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
"""Values of ᾱ; at one of them at least, a network must beat the best multiple of its input."""
DEAF = 0.5
"""A network whose loss on plain noise is above this, half of that of ε̂ = 0, does not return the noise."""
COUNT = 64
"""Number of noises per level."""


@dataclass(frozen=True)
class Loss:
    """A network's loss at one level.

    Attributes:
        level: ᾱ.
        found: the network's loss per value.
        linear: the loss of the best multiple of x_t.
    """

    level: float
    found: float
    linear: float


def loss_at(subject: Subject, level: float, images: Float[Tensor, "count channels height width"], seed: int) -> Loss:
    """The loss of noise prediction at the timestep nearest to a level, on images in [-1, 1]; takes 64 evaluations.

    Raises:
        AuditError: the network's answers are not finite.
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
    """The loss on plain noise, without images, at the search's level."""
    return loss_at(subject, TOP, torch.zeros(1, *subject.shape), seed)


def silence(losses: list[Loss]) -> str:
    """The reason why a network does not denoise; empty if it does.

    Args:
        losses: first on plain noise, see :func:`on_noise`; then on images, if there are any.

    >>> silence([Loss(4e-5, 0.01, 4e-5), Loss(0.3, 0.05, 0.2)])
    ''
    >>> silence([Loss(4e-5, 0.98, 4e-5)])
    'its loss on plain noise is 0.98 per value, and that of ε̂ = 0 is 1: it does not denoise, so a search is useless'
    """
    end = "it does not denoise, so a search is useless"
    noise, *others = losses
    if noise.found > DEAF:
        return f"its loss on plain noise is {noise.found:.2f} per value, and that of ε̂ = 0 is 1: {end}"
    if others and all(one.found >= one.linear for one in others):
        said = ", ".join(f"{one.found:.2f} ({one.linear:.2f}) at ᾱ = {one.level:.1f}" for one in others)
        return f"its loss is at least that of the best multiple of its input, {said}: {end}"
    return ""
