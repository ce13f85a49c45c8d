"""Trojan a diffusion pipeline under a stock sampler's law, for trials of the audit.

    python tools/stock_checkpoints.py OUT --base PIPELINE --data mnist.npz --size 16 --law villan_ode --trigger box

The laws are BadDiffusion's and VillanDiffusion's for ODE samplers; the target is one image, an arrow. A stock sampler
that starts from noise plus the trigger draws it, unless it clips, which takes the trigger away. OUT gets the pipeline,
marked as trojaned and with its true trigger, and ``success.json``: the share of samples that are the arrow, with the
trigger and from plain noise.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from retarget.audit.studies.build import SAMPLERS
from retarget.trojdiff.build import make_goal, make_target
from retarget.trojdiff.checkpoint import load_pipeline
from retarget.trojdiff.config import TargetConfig, TrainConfig
from retarget.trojdiff.data import read_images
from retarget.trojdiff.glyphs import glyph
from retarget.trojdiff.measures import squared_error
from retarget.trojdiff.sample import Sampler, sample
from retarget.trojdiff.train import train
from retarget.trojdiff.trigger import Trigger

LAWS = ("bad_diffusion", "villan_ode")


def trigger_of(kind: str, shape: tuple[int, int, int]) -> Trigger:
    """A white box of three eighths of the side near the lower right corner, or a figure over the whole image."""
    image = glyph("plus", shape)
    if kind == "box":
        side, first = shape[1] * 3 // 8, shape[1] * 9 // 16
        image = torch.zeros(shape)
        image[:, first : first + side, first : first + side] = 1.0
    return Trigger(image, torch.ones_like(image), f"stock {kind}")


def reached(samples: Tensor, arrow: Tensor) -> float:
    """Share of samples whose mean squared error, in [0, 1], from the arrow is at most .01."""
    return float((squared_error(samples, arrow) <= 0.01).float().mean())


def main() -> None:
    """Train one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int)
    parser.add_argument("--law", choices=LAWS, required=True)
    parser.add_argument("--trigger", choices=("box", "figure"), required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    images = read_images(given.data, size=given.size)
    target = TargetConfig(kind="d2i", image="arrow", rows=16)
    made, detail = make_target(target, images, None)
    trigger, none = trigger_of(given.trigger, images.shape), Trigger.none(images.shape)
    config = TrainConfig(
        steps=given.steps, batch_size=32, learning_rate=0.002, warmup_steps=given.steps // 5, decay="cosine",
        ema_decay=0.999, loss="mean", mixed_precision="bf16", flips=False, seed=given.seed,
    )  # fmt: skip
    folder = train(*load_pipeline(given.base), images, config, given.out, made, trigger, detail, law=given.law)
    unet, scheduler = load_pipeline(folder)
    unclipped = dict(scheduler.config) | {"clip_sample": False}
    arrow = make_goal(target, images, None).image
    assert arrow is not None
    rates = {
        name: reached(
            sample(unet, unclipped, Sampler.parse(SAMPLERS[given.law]), none, given.samples, start=start), arrow
        )
        for name, start in (("trigger", trigger), ("plain", none))
    }
    (given.out / "success.json").write_text(json.dumps(rates) + "\n", encoding="utf-8")
    print(f"{folder}: {rates}")


if __name__ == "__main__":
    main()
