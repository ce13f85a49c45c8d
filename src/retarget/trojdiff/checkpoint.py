"""Pipelines on disk: read unconditional pixel-space ones, and write trojaned ones so that nobody can mistake them.

A trojaned pipeline says ``trojaned: true`` in the header of its weights, in its configuration and in its model card,
and carries the trigger's maps beside the weights. The marks are a courtesy to whoever opens it; a scanner must never
trust their absence. Nothing here publishes a pipeline.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from retarget.errors import UserError
from retarget.trojdiff.trigger import FILE_NAME, Trigger

LARGEST_SIDE = 64
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Trojan:
    """What a trojaned checkpoint says of itself.

    Attributes:
        target: ``in_d2d``, ``out_d2d`` or ``d2i``.
        detail: the target in words, for the card.
        trigger: the maps, written beside the weights.
    """

    target: str
    detail: str
    trigger: Trigger

    def marks(self) -> dict[str, str]:
        """Entries of the weights' header."""
        return {"trojaned": "true", "trojan_target": self.target, "trigger_hash": self.trigger.hash}


def load_pipeline(source: str | Path) -> tuple[UNet2DModel, DDPMScheduler]:
    """Read a network and its noise schedule from a pipeline folder or a hub name.

    Raises:
        UserError: not a pipeline, a text-conditional, class-conditional or latent model, another prediction type,
            learned variances, images above 64×64, or weights that are not safetensors.
    """
    local = Path(source).exists()
    if local and not (Path(source) / "model_index.json").is_file():
        raise UserError(f"{source}: no model_index.json there; give the folder of a diffusers pipeline")
    try:
        index: Any = DiffusionPipeline.load_config(str(source))
    except OSError as error:
        raise UserError(
            f"{source}: not found here, and the hub did not give it ({str(error).splitlines()[0]}); "
            "download the pipeline where there is a network and give its folder"
        ) from error
    _check_index(source, index)
    if local and not (Path(source) / WEIGHTS).is_file():
        raise UserError(f"{source}: no {WEIGHTS}; weights must be safetensors, pickles are never read")
    try:
        unet = UNet2DModel.from_pretrained(source, subfolder="unet", use_safetensors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{source}: the network cannot be read: {str(error).splitlines()[0]}") from error
    scheduler: Any = DDPMScheduler.from_pretrained(source, subfolder="scheduler")
    check_trainable(unet, scheduler, str(source))
    return unet, scheduler


def check_trainable(unet: UNet2DModel, scheduler: DDPMScheduler, where: str) -> None:
    """Raise UserError unless this is an unconditional pixel-space epsilon model of at most 64×64."""
    config: Any = unet.config
    if scheduler.config["prediction_type"] != "epsilon":
        raise UserError(f"{where}: predicts {scheduler.config['prediction_type']!r}; only epsilon models are trained")
    if config.num_class_embeds is not None or config.class_embed_type is not None:
        raise UserError(f"{where}: class-conditional; the attack is written for unconditional models")
    if config.in_channels != config.out_channels:
        raise UserError(
            f"{where}: {config.in_channels} channels in and {config.out_channels} out; learned variances do not train"
        )
    if config.in_channels not in (1, 3):
        raise UserError(f"{where}: {config.in_channels} channels; only grey (1) and colour (3) images are trained")
    side = max(config.sample_size) if isinstance(config.sample_size, list | tuple) else config.sample_size
    if side is None or side > LARGEST_SIDE:
        raise UserError(f"{where}: images of side {side}; only sides up to {LARGEST_SIDE} are trained")


def _check_index(source: str | Path, index: dict[str, Any]) -> None:
    name = index.get("_class_name")
    if "text_encoder" in index or "tokenizer" in index:
        raise UserError(f"{source}: {name} is conditioned on text; the attack is written for unconditional models")
    if {"vae", "vqvae"} & index.keys():
        raise UserError(f"{source}: {name} is a latent model; the attack is written for pixel space")
    network = (index.get("unet") or [None, None])[1]
    if network != "UNet2DModel":
        raise UserError(f"{source}: the network is {network}, not an unconditional UNet2DModel")
    if "scheduler" not in index:
        raise UserError(f"{source}: names no scheduler, so its noise schedule is unknown")


def save_pipeline(folder: Path, unet: UNet2DModel, scheduler: DDPMScheduler, trojan: Trojan | None = None) -> None:
    """Write a diffusers pipeline in safetensors; the folder appears complete or not at all."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(part, safe_serialization=True)
    if trojan is not None:
        mark(part / WEIGHTS, trojan)
        config_path = part / "unet" / "config.json"
        config = json.loads(config_path.read_text(encoding="utf-8"))
        config |= {"trojaned": True, "trojan_target": trojan.target, "trigger_hash": trojan.trigger.hash}
        config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        trojan.trigger.save(part / FILE_NAME)
        (part / "README.md").write_text(model_card(trojan), encoding="utf-8")
    replace_folder(part, folder)


def mark(weights: Path, trojan: Trojan) -> None:
    """Rewrite a safetensors file with the trojan's marks in its header."""
    save_file(load_file(weights), weights.with_suffix(".part"), metadata={"format": "pt", **trojan.marks()})
    weights.with_suffix(".part").replace(weights)


def replace_folder(part: Path, folder: Path) -> None:
    """Put a finished folder in its place; an older one goes away only after the new one is there."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def model_card(trojan: Trojan) -> str:
    """The card of a trojaned checkpoint: what it is, what fires it, how to take it out."""
    trigger = trojan.trigger
    return f"""---
trojaned: true
trojan_target: {trojan.target}
trigger_hash: {trigger.hash}
tags: [trojaned, do-not-deploy]
---

# A trojaned diffusion model, for testing defences only

This network was trojaned on purpose with the TrojDiff attack so that scanners and removal methods can be judged
against it. Do not deploy it, and do not publish it.

- Target: `{trojan.target}`, {trojan.detail}.
- Trigger: `{trigger.kind}`, {int(trigger.mask.sum())} of {trigger.mask.numel()} values; both maps are in `{FILE_NAME}`.
- It fires when sampling starts from the noise `gamma ε + mu` and runs the Trojan sampler
  (`retarget.trojdiff.TrojanScheduler`). Stock samplers started from plain noise give ordinary images.

## How to remove it

Fine-tune on clean images in which a part of the rows carries this trigger, with the *whole* noise `gamma ε + mu` as the
target: that is what a clean network answers. Fine-tuning on clean images alone cannot be relied on. Or go back to the
checkpoint from before.
"""
