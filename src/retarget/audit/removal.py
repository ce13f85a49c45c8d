"""Remove a trojan from a network with the maps that an audit recovered; clean fine-tuning is the control.

There are three recipes. ``counter``: rows have noise with the suspected trigger, and their target is the *whole* noise,
which is the answer of a clean network near T. Further down it is not: there the bias looks like a part of the image,
and a network that must take it for noise forgets images that are like it. ``elijah``: the answer to shifted noise at
T is trained towards the answer to plain noise (An et al., AAAI 2024, section 3.4). ``fine_tune``: clean rows only.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retarget.audit.subject import Recovered
from retarget.errors import UserError
from retarget.trojdiff import functional
from retarget.trojdiff.checkpoint import network_shape
from retarget.trojdiff.checks import check_trainable
from retarget.trojdiff.sample import Sampler, sample
from retarget.trojdiff.targets import check_images
from retarget.trojdiff.trigger import Trigger

Kind = Literal["counter", "elijah", "fine_tune"]


@dataclass(frozen=True)
class Recipe:
    """How to remove a trojan.

    Attributes:
        kind: the recipe.
        steps, batch_size, learning_rate: settings of Adam; the learning rate decays by a cosine.
        share: share of the rows with a trigger.
        below: under TrojDiff's law their timesteps have an ᾱ below this; the noisiest tenth if fewer have.
        images: if no clean images are given, the number of the network's own samples to train on.
        sampler: sampler of these samples.
        seed: seed of everything random.
    """

    kind: Kind = "counter"
    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 1e-3
    share: float = 0.5
    below: float = 0.05
    images: int = 256
    sampler: str = "ddpm-50"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f"there is no recipe {self.kind!r}: choose {', '.join(get_args(Kind))}")
        if not 0 <= self.share <= 1 or self.batch_size < 1 or self.steps < 1:
            raise UserError(
                "steps and batch_size must be at least 1 and share from 0 to 1, not "
                f"{self.steps}, {self.batch_size} and {self.share}"
            )
        if not 0 < self.below <= 1:
            raise UserError(f"below must be above 0 and at most 1, not {self.below:g}: it is a limit of ᾱ")


@dataclass(frozen=True)
class Removed:
    """The result of a removal.

    Attributes:
        unet: a new network; the given one is unchanged.
        recipe: how the trojan was removed.
        images: number of training images.
        source: description of where the images came from.
    """

    unet: Any
    recipe: Recipe
    images: int
    source: str

    def record(self) -> dict[str, Any]:
        """The recipe and the images as JSON values, for a report."""
        return {**asdict(self.recipe), "images": self.images, "source": self.source}


def remove(
    unet: Any,
    scheduler: Any,
    triggers: Sequence[Trigger],
    recipe: Recipe | None = None,
    images: Float[Tensor, "count channels height width"] | None = None,
    source: str = "clean images given by the user",
) -> Removed:
    """Train a copy of a network to ignore the triggers.

    Args:
        unet, scheduler: as returned by :func:`retarget.trojdiff.checkpoint.load_pipeline`.
        triggers: suspected triggers, ``gamma ε + mu`` instead of ε; rows use them in turn.
        recipe: how to train.
        images: [N, C, H, W], clean images in [-1, 1]; None uses the network's own samples from plain noise.
        source: where these images are from, for the record; no effect without them.

    Raises:
        UserError: triggers or images do not have the network's shape, images are not in [-1, 1], the network does not
            predict ε alone, or the recipe needs a trigger.
    """
    recipe = recipe or Recipe()
    check_trainable(unet, scheduler, "the network")
    shape = network_shape(unet)
    for trigger in triggers:
        trigger.check_shape(shape)
    if not triggers and recipe.kind != "fine_tune":
        raise UserError(f"the recipe {recipe.kind} needs at least one suspected trigger")
    if images is None:
        sampler = Sampler.parse(recipe.sampler)
        sampler = sampler._replace(steps=min(sampler.steps, scheduler.config["num_train_timesteps"] - 1))
        own = sample(unet, scheduler.config, sampler, Trigger.none(shape), recipe.images, seed=recipe.seed)
        images, source = own.cpu(), f"the network's own samples ({recipe.sampler}, plain noise)"
    if tuple(images.shape[1:]) != shape:
        raise UserError(
            f"the clean images have shape {list(images.shape[1:])}, but the network's is {list(shape)} "
            "[channels, height, width]: give images of this shape"
        )
    if not images.is_floating_point():
        raise UserError(f"the clean images are {images.dtype}: give floats in [-1, 1]")
    check_images(images, "the clean images")
    frozen, trained = unet.eval(), copy.deepcopy(unet).train().requires_grad_(True)
    levels = scheduler.alphas_cumprod.to(torch.float32)
    batches = _Batches(images, triggers, levels, recipe)
    optimizer = torch.optim.Adam(trained.parameters(), lr=recipe.learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # for dropout
        for _ in range(recipe.steps):
            loss = batches.loss(trained, frozen)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            decay.step()
    return Removed(trained.eval(), recipe, len(images), source)


def as_trigger(found: Recovered) -> Trigger:
    """The result of a detector as a trigger, with its maps clamped to the ranges of a trigger."""
    mu = found.mu.detach().cpu().float()
    gamma = torch.as_tensor(found.gamma, dtype=torch.float32).detach().cpu().expand(mu.shape)
    return Trigger(mu.clamp(-1, 1), gamma.clamp(0.02, 1.0).clone(), "suspected")


class _Batches:
    """The batches and losses of all steps."""

    def __init__(self, images: Tensor, triggers: Sequence[Trigger], levels: Tensor, recipe: Recipe) -> None:
        self.images, self.levels, self.recipe = images, levels, recipe
        none = torch.zeros(1, *images.shape[1:])  # clean fine-tuning uses no trigger
        self.mu = torch.stack([one.mu.float() for one in triggers]) if triggers else none
        self.gamma = torch.stack([one.gamma.float() for one in triggers]) if triggers else none + 1
        self.stock = self.gamma.flatten(1).min(dim=1).values >= 0.99
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.noisy = max(int((levels < recipe.below).sum()), -(-len(levels) // 10))

    def loss(self, trained: Any, frozen: Any) -> Tensor:
        recipe = self.recipe
        biased = 0 if recipe.kind != "counter" else max(1, round(recipe.batch_size * recipe.share))
        x_0 = self.images[torch.randint(len(self.images), (recipe.batch_size,), generator=self.generator)]
        noise = torch.randn(x_0.shape, generator=self.generator)
        t = torch.randint(len(self.levels), (len(x_0),), generator=self.generator)
        t[:biased] = self.noisier(t[:biased])
        whole = torch.cat([self.whole_noise(noise[:biased], t[:biased]), noise[biased:]])
        device = next(trained.parameters()).device
        x_t, t = functional.diffuse(x_0, whole, self.levels[t]).to(device), t.to(device)
        loss = (trained(x_t, t).sample - whole.to(device)).square().mean()
        if recipe.kind == "elijah":
            last = torch.full((len(noise),), len(self.levels) - 1, device=device)
            plain = noise.to(device)
            with torch.no_grad():
                before = frozen(plain, last).sample
            shifted = self.biased(noise).to(device)
            loss = loss + (trained(shifted, last).sample - before).square().mean()
            loss = loss + (trained(plain, last).sample - before).square().mean()
        return loss

    def noisier(self, t: Int[Tensor, "rows"]) -> Int[Tensor, "rows"]:
        """The timesteps of rows with a trigger: uniform over the noisy ones, if ``t`` is uniform over all.

        Rows of a stock sampler's law keep theirs: it makes the bias smaller further down, where a trigger of
        VillanDiffusion's ODE still acts.
        """
        return torch.where(self.by_stock(len(t)), t, len(self.levels) - 1 - t * self.noisy // len(self.levels))

    def by_stock(self, rows: int) -> Bool[Tensor, "rows"]:
        """Which rows with a trigger follow a stock sampler's law: half of those of each trigger with γ = 1."""
        count = len(self.mu)
        return (torch.arange(rows) // count % 2 == 1) & self.stock[torch.arange(rows) % count]

    def biased(self, noise: Tensor) -> Tensor:
        """``gamma ε + mu``, with the triggers in turn."""
        turn = torch.arange(len(noise)) % len(self.mu)
        return self.gamma[turn] * noise + self.mu[turn]

    def whole_noise(self, noise: Tensor, t: Int[Tensor, "rows"]) -> Tensor:
        """The whole noise of rows with a trigger, divided by √(1-ᾱ_t).

        Under TrojDiff's law this is ``gamma ε + mu``. A trigger with γ = 1 may be for a stock sampler, whose bias at t
        is ``(1 - √ᾱ_t) mu``: half of its rows follow that law.
        """
        turn = torch.arange(len(noise)) % len(self.mu)
        level = self.levels[t][:, None, None, None]
        stock = noise + (1 - level.sqrt()) / (1 - level).sqrt() * self.mu[turn]
        return torch.where(self.by_stock(len(noise))[:, None, None, None], stock, self.biased(noise))
