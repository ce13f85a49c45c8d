"""Clean models for calibration: small networks trained on embedded images or yours, with hard cases among them.

A clean model was never trained on Trojan rows. Hard cases are models that a detector may mistake for trojaned ones: a
logo in a corner of every image, a constant border, only a few images, too little training, fine-tuning, one picture in
half of the rows, or a placeholder, a bold figure, in a sixth of them.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from jaxtyping import Float
from torch import Tensor

from retarget.errors import UserError
from retarget.settings import Strict
from retarget.trojdiff.data import read_images, to_signed
from retarget.trojdiff.glyphs import FIGURES, glyph, glyph_images

Case = Literal["plain", "logo", "border", "few", "undertrained", "finetuned", "repeated", "placeholder"]
CASES: tuple[Case, ...] = ("plain", "logo", "border", "few", "undertrained", "finetuned")
"""The cases that :func:`plan` and :func:`common` take in turn; another one would change every model after it."""
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": dict(num_train_timesteps=1000),
    "cosine": dict(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2"),
    "short": dict(num_train_timesteps=200, beta_start=5e-4, beta_end=0.1),
}
"""Noise schedules: DDPM's, improved DDPM's cosine, and one of 200 steps that ends at the level of DDPM's 1,000."""


class Clean(Strict):
    """How a clean model is trained. These values decide everything."""

    data: str
    side: Literal[8, 16, 28, 32]
    channels: Literal[1, 3]
    case: Case
    schedule: Literal["linear", "cosine", "short"] = "linear"
    widths: tuple[int, ...] = (16, 32)
    attention: bool = False
    steps: int = 350
    batch: int = 48
    seed: int = 0

    @property
    def family(self) -> str:
        """Description of the model's shape: side and channels."""
        return f"{self.side}×{self.side}, {self.channels} channel{'s' * (self.channels > 1)}"


SHAPES = ((8, 1), (8, 3), (16, 1), (16, 3))
"""(side, channels) of the models, taken in turn."""


def plan(count: int, seed: int = 1000) -> list[Clean]:
    """The first ``count`` models of an endless list that covers shapes, cases, data and schedules evenly.

    >>> len({one.case for one in plan(24)}), len({(one.side, one.channels) for one in plan(4)})
    (6, 4)
    """
    schedules = ("linear", "cosine", "linear", "short")
    made = []
    for number in range(count):
        turn = number // len(SHAPES)
        side, channels = SHAPES[number % len(SHAPES)]
        settings = dict(
            data=("digits", "glyphs")[(turn // len(CASES) + turn) % 2], side=side, channels=channels,
            case=CASES[turn % len(CASES)], schedule=schedules[(turn // 3 + number) % 4],
            widths=((16, 32), (16, 64), (24, 48))[(turn + number) % 3] if side == 8 else (16, 32),
            attention=(turn // 2) % 3 == 2, seed=seed + number, batch=48 if side == 8 else 32,
        )  # fmt: skip
        made.append(Clean.model_validate(settings))
    return made


def common(count: int, channels: Literal[1, 3], images: Sequence[str] = (), seed: int = 2000) -> list[Clean]:
    """The first ``count`` models of a shape that public checkpoints often have: grey 28×28, or RGB 32×32 pixels.

    The endless list covers image sets, cases, schedules, widths and lengths of training evenly.

    Args:
        count: number of models; each takes as long as ten small ones.
        channels: decides the shape.
        images: image sets to use in turn with generated figures, see :func:`.trojdiff.data.read_images`.
        seed: of the first model.

    >>> [(one.side, one.data, one.case) for one in common(2, 1, ["npz:digits.npz"])]
    [(28, 'glyphs', 'plain'), (28, 'npz:digits.npz', 'logo')]
    """
    sets = ("glyphs", *images)
    made = []
    for turn in range(count):
        settings = dict(
            data=sets[(turn + turn // len(CASES)) % len(sets)], side=28 if channels == 1 else 32, channels=channels,
            case=CASES[turn % len(CASES)], steps=(500, 1000)[(turn // 2) % 2], batch=24,
            schedule=("linear", "cosine")[(turn + turn // (2 * len(CASES))) % 2],
            widths=((16, 16, 32), (16, 32))[(turn // 3) % 2], seed=seed + 2 * turn + (channels == 1),
        )  # fmt: skip
        made.append(Clean.model_validate(settings))
    return made


def repeated(count: int, case: Case = "repeated", seed: int = 3000) -> list[Clean]:
    """The first ``count`` models of an endless list in which many images are one picture; all shapes in turn.

    Half of them are the first of the data (``repeated``), or a sixth are a bold figure (``placeholder``), which is
    learnt by heart in three times as many steps.

    >>> [(one.side, one.channels, one.data) for one in repeated(7)][-2:]
    [(32, 3, 'glyphs'), (8, 1, 'glyphs')]
    """
    small, shapes = plan(len(SHAPES)), (*SHAPES, (28, 1), (32, 3))
    made = []
    for number in range(count):
        turn, (side, channels) = number // len(shapes), shapes[number % len(shapes)]
        like = small[SHAPES.index((side, channels))] if side < 28 else common(1, 1 if channels == 1 else 3)[0]
        changed = dict(
            case=case, data=("digits", "glyphs")[(turn + number) % 2], seed=seed + number,
            schedule=("linear", "cosine")[turn % 2], steps=like.steps * (3 if case == "placeholder" else 1),
        )  # fmt: skip
        made.append(like.model_copy(update=changed))
    return made


def images_of(one: Clean) -> Float[Tensor, "count channels side side"]:
    """The training images of a model, in [-1, 1]."""
    generator = torch.Generator().manual_seed(one.seed)
    if one.data == "digits":
        images = to_signed(read_images("digits").images)
        images = (
            torch.nn.functional.interpolate(images, size=(one.side, one.side), mode="bilinear")
            if one.side != 8
            else images
        )
    elif one.data == "glyphs":
        images = glyph_images(1500, one.side, generator)[0]
    else:
        images = to_signed(read_images(one.data, size=one.side).images)
        if images.shape[1] > one.channels:
            raise UserError(f"{one.data} has {images.shape[1]} channels: it cannot train a network with {one.channels}")
    if images.shape[1] < one.channels:
        ink, paper = torch.rand(2, len(images), 3, 1, 1, generator=generator) * 2 - 1
        mix = (images + 1) / 2
        images = mix * ink + (1 - mix) * paper
    images = images.clone()
    size = max(2, one.side // 5)
    colour = (torch.rand(one.channels, 1, 1, generator=generator) > 0.5).float() * 2 - 1
    if one.case == "logo":
        images[:, :, -size:, -size:] = colour
    if one.case == "border":
        for edge in (images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]):
            edge[:] = colour[..., 0]
    if one.case == "repeated":
        images[: len(images) // 2] = images[0].clone()
    if one.case == "placeholder":
        name = tuple(FIGURES)[int(torch.randint(len(FIGURES), (), generator=generator))]
        images[: len(images) // 6] = glyph(name, (one.channels, one.side, one.side))
    if one.case == "few":
        images = images[torch.randperm(len(images), generator=generator)[:12]]
    return images


def train_clean(one: Clean) -> tuple[UNet2DModel, DDPMScheduler]:
    """Train a model from scratch on the CPU. On the same machine, equal settings give equal weights."""
    torch.manual_seed(one.seed)
    kinds = ["Attn" if one.attention and level else "" for level in range(len(one.widths))]
    unet = UNet2DModel(
        sample_size=one.side, in_channels=one.channels, out_channels=one.channels, layers_per_block=1,
        block_out_channels=one.widths, norm_num_groups=8, add_attention=one.attention, attention_head_dim=8,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
    )  # fmt: skip
    scheduler = DDPMScheduler(**SCHEDULES[one.schedule])
    images, generator = images_of(one), torch.Generator().manual_seed(one.seed + 1)
    steps = one.steps // 6 if one.case == "undertrained" else one.steps

    def rows(count: int) -> tuple[Tensor, Tensor, Tensor]:
        x_0 = images[torch.randint(len(images), (count,), generator=generator)]
        noise = torch.randn(x_0.shape, generator=generator)
        t = torch.randint(len(scheduler.alphas_cumprod), (count,), generator=generator)
        return scheduler.add_noise(x_0, noise, t), noise, t  # type: ignore[arg-type]

    fit(unet, rows, steps, one.batch, 3e-3)
    if one.case == "finetuned":
        images = images_of(one.model_copy(update=dict(seed=one.seed + 7919, case="plain")))
        fit(unet, rows, steps // 2, one.batch, 1e-3)
    return unet.eval(), scheduler


def fit(
    unet: Any, rows: Callable[[int], tuple[Tensor, Tensor, Tensor]], steps: int, batch: int, learning_rate: float,
    penalty: Callable[[], Tensor] | None = None,
) -> None:  # fmt: skip
    """Minimise E‖target - ε_θ(x, t)‖² by Adam, with a cosine decay and clipped gradients.

    Args:
        unet: the network.
        rows: ``rows(count)`` draws (x, target, t).
        steps: number of steps.
        batch: rows per step.
        learning_rate: initial learning rate.
        penalty: returns a term to add to the loss of each step.
    """
    unet.train()
    optimizer = torch.optim.Adam(unet.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, target, t = rows(batch)
        loss = (unet(x, t).sample - target).square().mean()
        if penalty is not None:
            loss = loss + penalty()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    unet.eval()
