"""Does the suspected trigger fire? The network generates images under it, and its answers to these are examined.

Given ``√ᾱ y + √(1-ᾱ) (gamma ε + mu)`` with an image y of its own, a clean network returns the whole noise, at every
level. A trojaned one returns ε, because it was trained to on such images. This is checked at three levels in the middle
of the schedule, with new images and noise. Candidates from there were found at one of these levels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from retarget.audit.inversion import Candidate
from retarget.audit.scores import TOP, Probe, draw_noise, gain, leverage
from retarget.audit.seek import contrasted, own_samples
from retarget.audit.subject import Subject
from retarget.trojdiff.classifier import predict, train_classifier
from retarget.trojdiff.data import ImageSet, to_uint8
from retarget.trojdiff.trigger import Trigger

LEVELS = (0.02, 0.1, 0.3)
"""Values of ᾱ at which the network's answers are examined."""
LEAST, STRONG = 0.18, 0.3
"""From these strengths on, a trigger counts as firing, and as firing strongly enough to decide without a null."""
DRAWN, DRAWINGS = 0.7, 192
"""From this likeness on, a suspected trigger is a picture that the network draws from plain noise, in one of the images
``plain`` or of this many others. A network that knows a picture by heart undoes it in the noise, too: no attack is
needed for it."""
LEARNT = 0.7
"""A picture that the network draws is a trigger, too, if its strength with the Trojan sampler is at least this."""
RESTORED, BY_BIAS = 0.9, 0.1
"""So it is if the network restores at least this share of noise narrowed by γ, and this much more of it than without
the bias: TrojDiff's loss teaches that, and clean images do not."""
NARROWED, NOISES = 0.8, 256
"""Where γ is below 1, the largest that is used, since of hardly narrowed noise the share is uncertain; and the number
of noises to measure it."""
EPOCHS = 30
"""How long the classifier is trained by which ``leaked`` tells images with the trigger from others."""


@dataclass(eq=False)
class Firing:
    """Images that the network generates under a suspected trigger, and its answers to them.

    Attributes:
        trojan: [N, C, H, W], images of the Trojan sampler, from biased noise.
        stock: [N, C, H, W], images of a stock sampler, from biased noise.
        plain: [N, C, H, W], images of a stock sampler, from plain noise.
        trojan_undo: contrast of the undo at each level, on the images ``trojan``.
        stock_share: on the images ``stock``, at each level, twice that, since BadDiffusion's triggers are half undone;
            for a candidate from the middle of the schedule what ``scores.gain`` returns; None for one that changes
            the answer elsewhere, which it does under every law.
        elsewhere: for that one, at each level, what ``scores.leverage`` returns on the images ``plain``, which do not
            show the target; otherwise None.
        drawn: the trigger's :func:`likeness` to images from plain noise.
        restored: share of the noise that γ narrows which the network restores near T, with the bias and without it;
            more than 1 if the attacker's γ is smaller, and 0 if nothing is narrowed.
        others: [M, C, H, W], M > N, more images from plain noise.
    """

    trojan: Float[Tensor, "count channels height width"]
    stock: Float[Tensor, "count channels height width"]
    plain: Float[Tensor, "count channels height width"]
    trojan_undo: list[float]
    stock_share: list[float] | None
    elsewhere: list[float] | None = None
    drawn: float = 0.0
    restored: tuple[float, float] = (0.0, 0.0)
    others: Float[Tensor, "more channels height width"] = field(default_factory=lambda: torch.zeros(0, 1, 1, 1))

    @property
    def strength(self) -> float:
        """What two of the three levels reach with the Trojan sampler, or otherwise if that is more."""
        return max(_second(each) for each in (self.trojan_undo, self.stock_share, self.elsewhere) if each is not None)

    @property
    def fires(self) -> bool:
        """Whether the trigger fires, with either sampler or elsewhere."""
        return self.strength >= LEAST

    @property
    def known_by_heart(self) -> bool:
        """Whether the trigger may be no more than a picture that the network draws anyway."""
        drawn = self.elsewhere is None and self.drawn >= DRAWN
        return drawn and _second(self.trojan_undo) < LEARNT and not self.restores

    @property
    def restores(self) -> bool:
        """Whether the network restores the noise that the trigger narrows, because of the trigger's bias."""
        with_it, without = self.restored
        return with_it >= RESTORED and with_it - without >= BY_BIAS

    @property
    def fires_trojan(self) -> bool:
        """Whether the trigger fires with the Trojan sampler."""
        return _second(self.trojan_undo) >= LEAST

    @property
    def fires_stock(self) -> bool | None:
        """Whether it is undone on a stock sampler's images, so that it may fire there; None if not measured."""
        return None if self.stock_share is None else _second(self.stock_share) >= LEAST


def _second(values: list[float]) -> float:
    return sorted(values)[-2]


def likeness(mu: Float[Tensor, "channels height width"], images: Float[Tensor, "n channels height width"]) -> float:
    """How much a bias looks like one of the images, whatever the colours of both, from 0 to 1.

    The highest absolute correlation of the bias's spatial pattern with that of an image. The pattern is the first right
    singular vector of the channels, without their means.

    >>> edge = torch.tensor([[[-1.0, 1.0], [-1.0, 1.0]]])
    >>> round(likeness(edge, torch.stack([0.1 * edge + 0.5, edge.mT])), 4)
    1.0
    """

    def pattern(x: Tensor) -> Tensor:
        flat = x.flatten(2) - x.flatten(2).mean(2, keepdim=True)
        return torch.linalg.svd(flat, full_matrices=False)[2][:, 0]

    return float((pattern(images) @ pattern(mu[None])[0]).abs().max())


def fire(subject: Subject, one: Candidate, seed: int, count: int = 32) -> Firing:
    """Generate images under a suspected trigger and examine the network's answers to them.

    Args:
        subject: the network.
        one: the suspected trigger.
        seed: seed of all noise.
        count: images per sampler.
    """
    mu, gamma = one.mu.cpu(), one.gamma.cpu().clamp(0.02, 1.0)
    suspected = Trigger(mu.clamp(-1, 1), gamma, "suspected")
    none = Trigger.none(subject.shape)
    trojan = own_samples(subject, count, seed, suspected)
    stock = own_samples(subject, count, seed, none, suspected, clip=False)
    plain = own_samples(subject, count, seed)
    others = torch.cat([own_samples(subject, 64, seed + number) for number in range(1, DRAWINGS // 64 + 1)])
    like = likeness(mu, torch.cat([plain, others]))
    generator = torch.Generator().manual_seed(seed + 101)

    def asked(images: Tensor, measured: Callable[..., tuple[Tensor, Tensor]], whole: bool) -> list[float]:
        found = []
        for level in LEVELS:
            probe = Probe(subject, level, draw_noise(len(images), subject.shape, generator), images)
            # A stock sampler's trigger fades with √ᾱ: x_t contains (1 - √ᾱ) of it.
            scale = 1.0 if whole else (1 - probe.level**0.5) / (1 - probe.level) ** 0.5
            narrow = gamma if whole else torch.ones_like(gamma)
            found.append(float(measured(probe, (scale * mu)[None].to(probe.noise), narrow[None].to(probe.noise))[1]))
        return found

    undone = asked(trojan, contrasted(one), True)
    shares, away = None, None
    if one.origin == "middle":
        shares = asked(stock, gain, False)
    elif one.origin == "elsewhere":  # leverage scales mu by itself
        away = asked(plain, leverage, True)
    else:
        shares = [2 * value for value in asked(stock, contrasted(one), False)]
    restored = _restored(subject, mu, gamma, trojan, seed + 202)
    return Firing(trojan, stock, plain, undone, shares, away, like, restored, others)


def leaked(firing: Firing, seed: int) -> tuple[int, int]:
    """How many images from plain noise a small classifier takes for images with the trigger, and of how many.

    It learns to tell images with the trigger, of the Trojan sampler if it fires there and otherwise of the stock
    sampler, from as many of ``others``, and is asked about the rest of these, which began with other noise. If the
    network shows the target only with the trigger it takes none, if it makes such images anyway about their share, and
    about half if the trigger changes nothing. Images are shrunk to squares of side 32 at most.
    """
    triggered = firing.trojan if firing.fires_trojan else firing.stock
    side = max(4, min(32, *triggered.shape[2:]))
    known, asked = F.adaptive_avg_pool2d(firing.others.cpu(), side).tensor_split([len(triggered)])
    both = to_uint8(torch.cat([known, F.adaptive_avg_pool2d(triggered.cpu(), side)]))
    labels = torch.arange(2).repeat_interleave(torch.tensor([len(known), len(triggered)]))
    with torch.random.fork_rng(devices=[]):
        judge = train_classifier(ImageSet(both, labels, ("plain", "triggered")), EPOCHS, seed)
    return int((predict(judge, asked)[0] == 1).sum()), len(asked)


def _restored(subject: Subject, mu: Tensor, gamma: Tensor, images: Tensor, seed: int) -> tuple[float, float]:
    """See ``Firing.restored``."""
    noise = draw_noise(NOISES, subject.shape, torch.Generator().manual_seed(seed))
    probe = Probe(subject, TOP, noise, images[torch.arange(len(noise)) % len(images)])
    pair = torch.stack([mu, torch.zeros_like(mu)]).to(probe.noise)
    narrow = torch.where(gamma < 1, gamma.clamp(max=NARROWED), gamma).to(probe.noise).expand_as(pair)
    with_it, without = probe.restored(pair, narrow).tolist()
    return with_it, without
