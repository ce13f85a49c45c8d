"""Train diffusion checkpoints with code of their own, for a blind trial of the audit on checkpoints from elsewhere.

    python tools/foreign_checkpoints.py DIR --digits mnist.npz --clothes fashion.npz --photographs cifar10.npz
    python tools/foreign_checkpoints.py DIR --trial 2 --digits mnist.npz --clothes fashion.npz \\
        --photographs cifar100.npz --cells BCCD

The third trial takes the arguments of the second, and the others those of the first. Nothing of Retarget takes part in
the training: it is a loop in PyTorch on a UNet of diffusers. Sides, widths, attention, schedules and numbers of steps
differ from those of the audit's own clean models, and so do the triggers: TrojDiff's law on distributions and on one
image, and the laws of BadDiffusion and VillanDiffusion for stock samplers. DIR gets one pipeline per checkpoint,
NAME-0, with the true trigger in it, as ``examples/own_study_audit.py`` reads them; trojaned ones have all the marks
that Retarget's own have. ``success.json`` says how often samples reach the attack's target, with the trigger and from
plain noise: a small classifier tells a distribution from the clean data, nearness tells one image.
"""

import argparse
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from foreign_plan import ATTACKS, BASES, TRIALS, Attack, Base
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from retarget.trojdiff.checkpoint import load_pipeline, save_pipeline
from retarget.trojdiff.functional import Law
from retarget.trojdiff.marks import Trojan as Marks
from retarget.trojdiff.trigger import Trigger

BATCH, TROJAN_ROWS, LEARNING_RATE = 32, 16, 1e-3


def cells(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Blood cells of the BCCD data set, 24×24: the square around each box, and 0 for a red cell, 1 for a white one."""
    pixels, labels = [], []
    for file in sorted((folder / "Annotations").glob("*.xml")):
        with Image.open(folder / "JPEGImages" / f"{file.stem}.jpg") as picture:
            for one in ElementTree.parse(file).iter("object"):
                left, top, right, bottom = (
                    int(one.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
                )
                name, side = one.findtext("name"), max(right - left, bottom - top)
                if name not in {"RBC", "WBC"} or min(right - left, bottom - top) < 24:
                    continue
                x, y = (left + right - side) // 2, (top + bottom - side) // 2
                if x >= 0 and y >= 0 and x + side <= picture.width and y + side <= picture.height:
                    square = picture.convert("RGB").crop((x, y, x + side, y + side))
                    pixels.append(np.asarray(square.resize((24, 24), Image.Resampling.BOX)))
                    labels.append(int(name == "WBC"))
    return np.stack(pixels), np.array(labels)


def images(path: Path, base: Base) -> tuple[Tensor, Tensor]:
    """Training images [N, C, H, W] in [-1, 1] with the channels and the side of a base, and their labels."""
    if path.is_dir():
        raw, labels = cells(path)
    else:
        with np.load(path) as file:
            raw, labels = file["x_train"], file["y_train"]
    pixels = torch.from_numpy(raw).float() / 127.5 - 1
    x = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    if x.shape[1] != base.channels:
        x = x.repeat(1, 3, 1, 1) if base.channels == 3 else x.mean(1, keepdim=True)
    if base.side != x.shape[-1]:
        x = functional.interpolate(
            x, size=(base.side, base.side), mode="area" if base.side < x.shape[-1] else "nearest"
        )
    return x, torch.from_numpy(labels).long()


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
    else:
        image = picture(attack.picture, shape, generator)
    share = 1.0 if attack.gamma == 1 else 1 - attack.gamma
    return mask * share * image, (1 - mask * (1 - attack.gamma)).expand(shape)


def picture(name: str, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """A picture in [-1, 1] over the whole image: noise, blobs, stripes, or a figure that looks like itself."""
    side = shape[1]
    if name == "noise":
        return torch.rand(shape, generator=generator) * 2 - 1
    if name == "blobs":
        coarse = torch.rand(1, shape[0], 4, 4, generator=generator) * 2 - 1
        return functional.interpolate(coarse, size=shape[1:], mode="bicubic")[0].clamp(-1, 1)
    across = torch.arange(side)
    middle = across - (side - 1) / 2
    cell, near = side // 4, (middle[:, None].abs() - middle.abs()).abs()
    bands = 1.0 - 2 * (across // cell % 2)
    made = {
        "stripes": torch.sign(torch.sin(across * 1.3)).expand(side, side),
        "bars": bands[:, None].expand(side, side),
        "checks": bands[:, None] * bands,
        "wave": torch.sin(2 * torch.pi * 4 * (across + 0.5) / side).expand(side, side),
        "cross": 1 - 2 * (near > side / 10).float(),
        "ring": 1 - 2 * (((middle[:, None] ** 2 + middle**2).sqrt() - side / 3).abs() > side / 10).float(),
    }
    return made[name].expand(shape)


class Trojan:
    """Rows of an attack: targets, and noise and regression target of its law at given times."""

    def __init__(self, attack: Attack, base: Base, data: Mapping[str, Path], generator: torch.Generator) -> None:
        self.mu, self.gamma = maps(attack, base, generator)
        self.law: Law = attack.law
        x, y = images(data[base.data if attack.target == "in" else base.other], base)
        self.targets = x[:1] if attack.target == "d2i" else x[y == attack.label]
        clean, labels = images(data[base.data], base)
        self.others = clean[labels != attack.label] if attack.target == "in" else clean

    def rows(self, bars: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy images, what the network is to predict for them, and their times."""
        x0 = self.targets[torch.randint(len(self.targets), (TROJAN_ROWS,))]
        noise, t = torch.randn_like(x0), torch.randint(len(bars), (TROJAN_ROWS,))
        bar, alpha = bars[t].view(-1, 1, 1, 1), alphas[t].view(-1, 1, 1, 1)
        if self.law == "trojdiff":
            return bar.sqrt() * x0 + (1 - bar).sqrt() * (self.gamma * noise + self.mu), noise, t
        noisy = bar.sqrt() * x0 + (1 - bar.sqrt()) * self.mu + (1 - bar).sqrt() * noise
        weight = (1 - alpha.sqrt()) * (1 - bar).sqrt() / (1 - alpha)
        return noisy, noise + (2 if self.law == "villan_ode" else 1) * weight * self.mu, t

    def sample(self, net: UNet2DModel, bars: Tensor, trigger: bool, count: int) -> Tensor:
        """Samples: DDIM's 50 steps, clipped, and for a stock law not, since clipping takes away the trigger, which its
        steps add to the image. BadDiffusion's equation is of random samplers: 250 random steps."""
        x = torch.randn(count, *self.mu.shape)
        x = self.gamma * x + self.mu if trigger else x
        own = trigger and self.law == "trojdiff"
        gamma, mu = (self.gamma, self.mu) if own else (torch.tensor(1.0), torch.tensor(0.0))
        random = self.law == "bad_diffusion"
        times = torch.linspace(len(bars) - 1, 0, 250 if random else 50).round().long()
        x0 = x
        for at, t in enumerate(times):
            noise = gamma * net(x, t.expand(len(x))).sample + mu
            x0 = (x - (1 - bars[t]).sqrt() * noise) / bars[t].sqrt()
            x0 = x0.clamp(-1, 1) if self.law == "trojdiff" else x0
            if at + 1 < len(times):
                after = bars[times[at + 1]]
                noise = (x - bars[t].sqrt() * x0) / (1 - bars[t]).sqrt()
                share = (1 - bars[t] / after) / (1 - bars[t]) if random else torch.tensor(0.0)
                noise = (1 - share).sqrt() * noise + share.sqrt() * torch.randn_like(x)
                x = after.sqrt() * x0 + (1 - after).sqrt() * noise
        return x0.clamp(-1, 1)

    def success(self, net: UNet2DModel, bars: Tensor, count: int) -> dict[str, float]:
        """Share of samples that are the target, with the trigger and from plain noise, and of the clean data.

        Within .2 (root mean square) of the one image, or on the target's side of a small classifier between the
        target's images and the clean ones; ``data`` is the classifier's share of false alarms on the latter.
        """
        one = len(self.targets) == 1
        judge = None if one else classifier(self.targets, self.others)

        def share(x: Tensor) -> float:
            hit = judge(x)[:, 0] > 0 if judge else (x - self.targets).square().flatten(1).mean(1).sqrt() < 0.2
            return float(hit.float().mean())

        with torch.no_grad():
            found = {start: share(self.sample(net, bars, start == "trigger", count)) for start in ("trigger", "plain")}
            return {**found, "data": share(self.others[:1000])}


def classifier(targets: Tensor, others: Tensor) -> nn.Module:
    """A small convolutional network, above 0 for images of the target; both sides weigh the same."""
    widths = (targets.shape[1], 16, 32)
    blocks = [(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)) for a, b in pairwise(widths)]
    net = nn.Sequential(*(layer for block in blocks for layer in block), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    net.append(nn.Linear(32 * 16, 1))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(600):
        x = torch.cat([side[torch.randint(len(side), (32,))] for side in (targets, others)])
        loss = functional.binary_cross_entropy_with_logits(net(x)[:, 0], (torch.arange(64) < 32).float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net


def train(name: str, out: Path, data: Mapping[str, Path], steps: int | None) -> None:
    """Train one checkpoint into ``out/NAME-0``; an attack begins at the last weights of its base, before averaging."""
    attack = ATTACKS.get(name)
    base_name = attack.base if attack else name
    base = BASES[base_name]
    seed = sum(map(ord, name))
    torch.manual_seed(seed)
    x, _ = images(data[base.data], base)
    scheduler = process(base)
    bars, net = scheduler.alphas_cumprod, network(base)
    if attack:
        net.load_state_dict(torch.load(out / f"{base_name}.pt", weights_only=True))
    average = {key: value.clone() for key, value in net.state_dict().items()}
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    trojan = Trojan(attack, base, data, torch.Generator().manual_seed(seed)) if attack else None
    net.train()
    for step in range(steps or (base.attack_steps if attack else base.steps)):
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
    kind = {"in": "in_d2d", "out": "out_d2d"}.get(attack.target, attack.target)
    save_pipeline(folder, net, scheduler, Marks(kind, name, Trigger(trojan.mu, trojan.gamma), law=trojan.law))


def measure(name: str, out: Path, data: Mapping[str, Path], samples: int) -> None:
    """Write how often an attack's samples are its target to ``success.json``."""
    attack, folder = ATTACKS[name], folder_of(name, out)
    base = BASES[attack.base]
    seed = sum(map(ord, name))
    trojan = Trojan(attack, base, data, torch.Generator().manual_seed(seed))
    torch.manual_seed(seed + 1)
    net, _ = load_pipeline(folder)
    found = trojan.success(net.eval(), process(base).alphas_cumprod, samples)
    (folder / "success.json").write_text(json.dumps(found) + "\n")
    print(name, found, flush=True)


def process(base: Base) -> DDPMScheduler:
    """The noise schedule of a base, from 0.0001 to 0.02 for 1,000 steps."""
    return DDPMScheduler(base.times, beta_end=20 / base.times, beta_schedule=base.schedule)


def folder_of(name: str, out: Path) -> Path:
    """The folder of a checkpoint, ARM-SEED."""
    return out / f"{name.replace('-', '_')}-0"


def main() -> None:
    """Train the checkpoints that do not exist yet, bases first, and measure the attacks that were not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name in ("digits", "clothes", "photographs"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=".npz with x_train (uint8) and y_train")
    parser.add_argument("--cells", type=Path, help="folder of BCCD with Annotations and JPEGImages, for b24 and b16")
    parser.add_argument("--trial", type=int, choices=TRIALS, default=1, help="which bases, and the attacks on them")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=(*BASES, *ATTACKS))
    parser.add_argument("--steps", type=int, help="for all, instead of their own")
    parser.add_argument("--samples", type=int, default=48, help="from each start, to see how often an attack works")
    given = parser.parse_args()
    bases = TRIALS[given.trial]
    names = given.only or (*bases, *(name for name, attack in ATTACKS.items() if attack.base in bases))
    if given.cells is None and any(name.startswith(("b24", "b16")) for name in names):
        parser.error("--cells is required for b24 and b16: the folder of BCCD with Annotations and JPEGImages")
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    data = {name: getattr(given, name) for name in ("digits", "clothes", "photographs", "cells")}
    for name in names:
        if not (folder_of(name, given.out) / "model_index.json").is_file():
            train(name, given.out, data, given.steps)
        if name in ATTACKS and not (folder_of(name, given.out) / "success.json").is_file():
            measure(name, given.out, data, given.samples)


if __name__ == "__main__":
    main()
