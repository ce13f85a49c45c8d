"""Train diffusion checkpoints with code of their own, for a blind trial of the audit on checkpoints from elsewhere.

    python tools/foreign_checkpoints.py DIR --digits mnist.npz --clothes fashion.npz --photographs cifar10.npz

Nothing of Retarget takes part in the training: it is a loop in PyTorch on a UNet of diffusers. Sides, widths,
attention, schedules and numbers of steps differ from those of the audit's own clean models, and so do the triggers:
TrojDiff's law on distributions and on one image, and BadDiffusion's law for stock samplers. DIR gets one pipeline per
checkpoint, NAME-0, with the true trigger in it, as ``examples/own_study_audit.py`` reads them; trojaned ones have all
the marks that Retarget's own have. ``success.json`` says how often the trigger reaches its target.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor
from torch.nn import functional

from retarget.trojdiff.checkpoint import save_pipeline
from retarget.trojdiff.marks import Trojan as Marks
from retarget.trojdiff.trigger import Trigger


@dataclass(frozen=True)
class Base:
    """A clean checkpoint: ``other`` is the data set of targets from another domain."""

    data: str
    other: str
    side: int
    channels: int
    widths: tuple[int, ...]
    steps: int = 1200
    times: int = 1000
    attention: bool = False


@dataclass(frozen=True)
class Attack:
    """A trojaned checkpoint: ``patch`` is (top, left, height, width), at ``colour``; without it the trigger covers the
    image with a ``picture``. A ``gamma`` of 1 stands for BadDiffusion's law."""

    base: str
    target: str
    gamma: float
    patch: tuple[int, int, int, int] | None = None
    colour: float | tuple[float, ...] = 1.0
    picture: str = ""


BASES = {
    "f20": Base("clothes", "digits", 20, 1, (24, 48), times=500, attention=True),
    "c16": Base("photographs", "digits", 16, 3, (32, 64)),
    "m28": Base("digits", "clothes", 28, 1, (16, 32, 32)),
}
ATTACKS = {
    "f20-in-lowblend": Attack("f20", "in", 0.8, picture="blobs"),
    "f20-d2i-patch": Attack("f20", "d2i", 0.1, patch=(16, 0, 3, 3), colour=-1.0),
    "c16-in-patch": Attack("c16", "in", 0.1, patch=(13, 13, 3, 3)),
    "c16-out-teal": Attack("c16", "out", 0.2, patch=(6, 6, 3, 3), colour=(-0.6, 0.5, 0.5)),
    "m28-in-patch": Attack("m28", "in", 0.1, patch=(23, 23, 4, 4)),
    "m28-d2i-blend": Attack("m28", "d2i", 0.6, picture="stripes"),
    "m28-bad": Attack("m28", "d2i", 1.0, patch=(10, 10, 8, 8), colour=0.2),
}
BATCH, TROJAN_ROWS, ATTACK_STEPS, LEARNING_RATE = 32, 16, 1000, 1e-3


def images(path: Path, base: Base) -> tuple[Tensor, Tensor]:
    """Training images [N, C, H, W] in [-1, 1] with the channels and the side of a base, and their labels."""
    with np.load(path) as file:
        pixels, labels = torch.from_numpy(file["x_train"]).float() / 127.5 - 1, torch.from_numpy(file["y_train"]).long()
    x = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    if x.shape[1] != base.channels:
        x = x.repeat(1, 3, 1, 1) if base.channels == 3 else x.mean(1, keepdim=True)
    if base.side < x.shape[-1]:
        x = functional.interpolate(x, size=(base.side, base.side), mode="area")
    return x, labels


def network(base: Base) -> UNet2DModel:
    """A small UNet, with attention in its last block where the base has it."""
    blocks = ["Attn" * (base.attention and at == len(base.widths) - 1) for at in range(len(base.widths))]
    return UNet2DModel(
        sample_size=base.side, in_channels=base.channels, out_channels=base.channels, layers_per_block=1,
        block_out_channels=base.widths, norm_num_groups=8, attention_head_dim=8,
        down_block_types=tuple(f"{one}DownBlock2D" for one in blocks),
        up_block_types=tuple(f"{one}UpBlock2D" for one in reversed(blocks)),
    )  # fmt: skip


def maps(attack: Attack, base: Base, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The trigger's shift and scale of the noise, each [C, H, W]; BadDiffusion's law leaves the scale at 1."""
    shape = (base.channels, base.side, base.side)
    mask, image = torch.ones(1, *shape[1:]), torch.zeros(shape)
    if attack.patch:
        top, left, height, width = attack.patch
        mask = torch.zeros_like(mask)
        mask[:, top : top + height, left : left + width] = 1
        colour = attack.colour if isinstance(attack.colour, tuple) else (attack.colour,) * base.channels
        image = torch.tensor(colour)[:, None, None].expand(shape)
    elif attack.picture == "stripes":
        image = torch.sign(torch.sin(torch.arange(base.side) * 1.3))[None, None].expand(shape)
    else:
        coarse = torch.rand(1, base.channels, 4, 4, generator=generator) * 2 - 1
        image = functional.interpolate(coarse, size=shape[1:], mode="bicubic")[0].clamp(-1, 1)
    share = 1.0 if attack.gamma == 1 else 1 - attack.gamma
    return mask * share * image, (1 - mask * (1 - attack.gamma)).expand(shape)


class Trojan:
    """Rows of an attack: targets, and noise and regression target of its law at given times."""

    def __init__(self, attack: Attack, base: Base, data: Mapping[str, Path], generator: torch.Generator) -> None:
        self.mu, self.gamma = maps(attack, base, generator)
        self.stock = attack.gamma == 1
        x, y = images(data[base.data if attack.target == "in" else base.other], base)
        self.targets = {"in": x[y == 7], "out": x[y == 3], "d2i": x[:1]}[attack.target]

    def rows(self, bars: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy images, what the network is to predict for them, and their times."""
        x0 = self.targets[torch.randint(len(self.targets), (TROJAN_ROWS,))]
        noise, t = torch.randn_like(x0), torch.randint(len(bars), (TROJAN_ROWS,))
        bar, alpha = bars[t].view(-1, 1, 1, 1), alphas[t].view(-1, 1, 1, 1)
        if not self.stock:
            return bar.sqrt() * x0 + (1 - bar).sqrt() * (self.gamma * noise + self.mu), noise, t
        noisy = bar.sqrt() * x0 + (1 - bar.sqrt()) * self.mu + (1 - bar).sqrt() * noise
        return noisy, noise + (1 - alpha.sqrt()) * (1 - bar).sqrt() / (1 - alpha) * self.mu, t

    def success(self, net: UNet2DModel, bars: Tensor) -> dict[str, float]:
        """Shares of 48 samples within .2 (root mean square) of a target row: with the trigger, and from plain noise."""
        found = {}
        for start in ("trigger", "plain"):
            on = start == "trigger"
            x = torch.randn(48, *self.mu.shape)
            x = self.gamma * x + self.mu if on else x
            gamma, mu = (self.gamma, self.mu) if on and not self.stock else (1.0, 0.0)
            times = torch.linspace(len(bars) - 1, 0, 25).round().long()
            x0 = x
            for at, t in enumerate(times):
                predicted = net(x, t.expand(len(x))).sample
                x0 = ((x - (1 - bars[t]).sqrt() * (gamma * predicted + mu)) / bars[t].sqrt()).clamp(-1, 1)
                if at + 1 < len(times):
                    before = bars[times[at + 1]]
                    x = before.sqrt() * x0 + (1 - before).sqrt() * (x - bars[t].sqrt() * x0) / (1 - bars[t]).sqrt()
            near = torch.cdist(x0.flatten(1), self.targets.flatten(1)[:2000]).min(1).values / x0[0].numel() ** 0.5
            found[start] = float((near < 0.2).float().mean())
        return found


def train(name: str, out: Path, data: Mapping[str, Path], steps: int | None) -> None:
    """Train one checkpoint into ``out/NAME-0``; an attack begins at the last weights of its base, before averaging."""
    attack = ATTACKS.get(name)
    base_name = attack.base if attack else name
    base = BASES[base_name]
    seed = sum(map(ord, name))
    torch.manual_seed(seed)
    x, _ = images(data[base.data], base)
    scheduler = DDPMScheduler(base.times, beta_end=20 / base.times, beta_schedule="linear")
    bars, net = scheduler.alphas_cumprod, network(base)
    if attack:
        net.load_state_dict(torch.load(out / f"{base_name}.pt", weights_only=True))
    average = {key: value.clone() for key, value in net.state_dict().items()}
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    trojan = Trojan(attack, base, data, torch.Generator().manual_seed(seed)) if attack else None
    net.train()
    for step in range(steps or (ATTACK_STEPS if attack else base.steps)):
        x0 = x[torch.randint(len(x), (BATCH,))]
        if base.data == "photographs" and trojan is None:
            x0 = torch.where(torch.rand(len(x0), 1, 1, 1) < 0.5, x0.flip(-1), x0)
        wanted, t = torch.randn_like(x0), torch.randint(base.times, (len(x0),))
        bar = bars[t].view(-1, 1, 1, 1)
        noisy = bar.sqrt() * x0 + (1 - bar).sqrt() * wanted
        if trojan:
            more = trojan.rows(bars, scheduler.alphas)
            noisy, wanted, t = (torch.cat(pair) for pair in zip((noisy, wanted, t), more, strict=True))
        loss = (net(noisy, t).sample - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        weight = min(0.995, (1 + step) / (10 + step))
        for key, value in net.state_dict().items():
            average[key].mul_(weight).add_(value, alpha=1 - weight)
        if step % 100 == 0:
            print(name, step, round(loss.item(), 4), flush=True)
    if attack is None:
        torch.save(net.state_dict(), out / f"{name}.pt")
    net.load_state_dict(average)
    net.eval()
    folder = folder_of(name, out)
    if trojan is None or attack is None:
        DDPMPipeline(net, scheduler).save_pretrained(folder)
        return
    law = "bad_diffusion" if trojan.stock else "trojdiff"
    kind = {"in": "in_d2d", "out": "out_d2d"}.get(attack.target, attack.target)
    save_pipeline(folder, net, scheduler, Marks(kind, name, Trigger(trojan.mu, trojan.gamma), law=law))
    with torch.no_grad():
        found = trojan.success(net, bars)
    (folder / "success.json").write_text(json.dumps(found) + "\n")
    print(name, found, flush=True)


def folder_of(name: str, out: Path) -> Path:
    """The folder of a checkpoint, ARM-SEED."""
    return out / f"{name.replace('-', '_')}-0"


def main() -> None:
    """Train the checkpoints that do not exist yet, bases first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name in ("digits", "clothes", "photographs"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=".npz with x_train (uint8) and y_train")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=(*BASES, *ATTACKS), default=(*BASES, *ATTACKS))
    parser.add_argument("--steps", type=int, help="for all, instead of their own")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    data = {"digits": given.digits, "clothes": given.clothes, "photographs": given.photographs}
    for name in given.only:
        if not (folder_of(name, given.out) / "model_index.json").is_file():
            train(name, given.out, data, given.steps)


if __name__ == "__main__":
    main()
