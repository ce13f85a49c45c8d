"""Does the suspected trigger fire? The network draws under it, and is then asked about its own drawings.

A clean network that is given ``√ᾱ y + √(1-ᾱ) (gamma ε + mu)``, y its own image, returns all of the noise, at every
level. A trojaned one returns ε at all of them, since that is what it was trained for with such images; this is asked in
the middle of the schedule, where no statistic of the search has looked, with images and noise that it has not seen.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retarget.audit.inversion import Candidate
from retarget.audit.scores import Probe, contrast, draw_noise
from retarget.audit.seek import own_samples
from retarget.audit.subject import Subject
from retarget.trojdiff.trigger import Trigger

LEVELS = (0.02, 0.1, 0.3)
"""ᾱ at which the network is asked about its own drawings."""
LEAST, STRONG = 0.18, 0.3
"""So much strength is a trigger that fires, and one that fires strongly enough to decide without a null."""


@dataclass(eq=False)
class Firing:
    """What the network draws under a suspected trigger, and what it then says of it.

    Attributes:
        trojan: [N, C, H, W], by the Trojan sampler from the biased noise.
        stock: [N, C, H, W], by a stock sampler from the biased noise.
        plain: [N, C, H, W], by a stock sampler from plain noise.
        trojan_undo, stock_undo: by level, contrast of the undo with the network's own images in their place.
    """

    trojan: Float[Tensor, "count channels height width"]
    stock: Float[Tensor, "count channels height width"]
    plain: Float[Tensor, "count channels height width"]
    trojan_undo: list[float]
    stock_undo: list[float]

    @property
    def strength(self) -> float:
        """The contrast that two of three levels reach under the Trojan sampler, or twice that under a stock one.

        A stock-sampler trigger is undone by half at most, or amplified, and either counts.
        """
        return max(sorted(self.trojan_undo)[-2], self._stock)

    @property
    def _stock(self) -> float:
        return 2 * sorted(abs(one) for one in self.stock_undo)[-2]

    @property
    def fires(self) -> bool:
        """Under either sampler."""
        return self.strength >= LEAST

    @property
    def fires_trojan(self) -> bool:
        """With the Trojan sampler."""
        return sorted(self.trojan_undo)[-2] >= LEAST

    @property
    def fires_stock(self) -> bool:
        """With a stock sampler."""
        return self._stock >= LEAST


def fire(subject: Subject, one: Candidate, seed: int, count: int = 32) -> Firing:
    """Draw under a suspected trigger and ask about the drawings.

    Args:
        count: images a sampler.
    """
    mu, gamma = one.mu.cpu(), one.gamma.cpu().clamp(0.02, 1.0)
    suspected = Trigger(mu.clamp(-1, 1), gamma, "suspected")
    none = Trigger.none(subject.shape)
    trojan = own_samples(subject, count, seed, suspected)
    stock = own_samples(subject, count, seed, none, suspected)
    plain = own_samples(subject, count, seed)
    generator = torch.Generator().manual_seed(seed + 101)

    def asked(images: Tensor, whole: bool) -> list[float]:
        found = []
        for level in LEVELS:
            probe = Probe(subject, level, draw_noise(len(images), subject.shape, generator), images)
            # A stock sampler's trigger fades with √ᾱ: x_t holds (1 - √ᾱ) of it.
            scale = 1.0 if whole else (1 - probe.level**0.5) / (1 - probe.level) ** 0.5
            narrow = gamma if whole else torch.ones_like(gamma)
            found.append(float(contrast(probe, (scale * mu)[None].to(probe.noise), narrow[None].to(probe.noise))[1]))
        return found

    return Firing(trojan, stock, plain, asked(trojan, True), asked(stock, False))
