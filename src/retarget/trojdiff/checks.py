"""What of a pipeline can be trained and attacked: its parts, its process, its network. The rest is refused by name."""

import inspect
from pathlib import Path
from typing import Any

import diffusers
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from retarget.errors import UserError
from retarget.trojdiff.schedulers import check_base

LARGEST_SIDE = 64
BETAS = (
    "DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete",
    "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep",
    "DPMSolverSDE", "DEISMultistep", "UniPCMultistep", "SASolver", "DPMSolverMultistepInverse", "DDIMInverse",
    "RePaint",
)  # fmt: skip
"""Schedulers of diffusers whose configuration gives the betas of DDPM's process; they are interchangeable here.

All others (flow matching, EDM, score SDEs, consistency models) belong to networks trained on another process.
"""

PROCESS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "clip_sample",
    "clip_sample_range",
)  # fmt: skip
"""Settings of a scheduler that define the process that a network was trained on, and the clipping of its images."""
_KEPT = (*PROCESS, "prediction_type", "thresholding", "variance_type")
"""Settings of a scheduler that say how its network was trained, or how images are to be made whatever the solver."""


def process(settings: dict[str, Any]) -> dict[str, Any]:
    """What a scheduler's settings say of the process, without those of its class's solver (its grid, its order).

    Most classes cannot clip images, so that a configuration of theirs says nothing of clipping, which DDPM's would
    take for yes.
    """
    kept = {name: value for name, value in with_betas(settings).items() if name in _KEPT and value is not None}
    clips = settings.get("_class_name") in (None, "DDPMScheduler", "DDIMScheduler") or "clip_sample" in kept
    return kept if clips else {**kept, "clip_sample": False}


def with_betas(settings: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's settings with its class's betas where it states none: Heun's, say, are not those of DDPM.

    >>> with_betas({"_class_name": "HeunDiscreteScheduler"})["beta_end"]
    0.012
    """
    kind = str(settings.get("_class_name"))
    if kind not in [f"{one}Scheduler" for one in BETAS]:  # a checkpoint chooses no other name of diffusers to import
        return settings
    known = inspect.signature(getattr(diffusers, kind).__init__).parameters
    return {name: known[name].default for name in PROCESS[:4] if name in known} | settings


def home(folder: Path, part: str) -> Path:
    """The folder of a pipeline's component: its own, or the pipeline's, as in diffusers' oldest pipelines."""
    own = folder / part
    file = {"unet": "config.json", "scheduler": "scheduler_config.json"}[part]
    return folder if not own.exists() and (folder / file).is_file() else own


def check_trainable(unet: UNet2DModel, scheduler: DDPMScheduler, where: str) -> None:
    """Raise UserError unless this is an unconditional pixel-space epsilon model of at most 64×64."""
    config: Any = unet.config
    if scheduler.config["prediction_type"] != "epsilon":
        raise UserError(f"{where} predicts {scheduler.config['prediction_type']!r}; only epsilon models are trained")
    if scheduler.config.get("rescale_betas_zero_snr"):
        raise UserError(f"{where}: its scheduler has rescale_betas_zero_snr: at T there is no noise level to attack")
    if config.time_embedding_type == "fourier":
        raise UserError(
            f"{where}: time_embedding_type is 'fourier', so the network takes noise levels, as score models do, and "
            "not DDPM's timesteps"
        )
    if config.num_class_embeds is not None or config.class_embed_type is not None:
        raise UserError(f"{where} is class-conditional; the attack is only for unconditional models")
    if config.in_channels != config.out_channels:
        raise UserError(
            f"{where}: {config.in_channels} channels in and {config.out_channels} out; networks with learned "
            "variances are neither trained nor sampled"
        )
    if config.in_channels not in (1, 3) or isinstance(config.in_channels, bool):
        raise UserError(f"{where}: {config.in_channels} channels; only grey (1) and colour (3) images are trained")
    skipping = [name for name in (*config.down_block_types, *config.up_block_types) if "Skip" in name]
    if skipping and config.in_channels != 3:
        raise UserError(f"{where}: {skipping[0]} takes only colour images, but these have {config.in_channels} channel")
    sides = config.sample_size if isinstance(config.sample_size, list | tuple) else [config.sample_size]
    if config.sample_size is None:
        raise UserError(f"{where}: unet/config.json has no sample_size: set it to the side of the images")
    if not sides or any(not isinstance(side, int) or not 1 <= side <= LARGEST_SIDE for side in sides):
        raise UserError(f"{where}: images of side {config.sample_size!r}; only sides up to {LARGEST_SIDE} are trained")
    if len(set(sides)) > 1:
        raise UserError(f"{where}: images of {'×'.join(map(str, sides))}; only square ones are trained")
    check_side(sides[0], len(config.block_out_channels), where, "sample_size in unet/config.json is wrong")
    try:
        check_base(scheduler)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def check_side(side: int, levels: int, where: str, remedy: str = "") -> None:
    """Raise UserError unless the side can be halved at each of a network's levels but the last; says what to do."""
    parts = 2 ** (levels - 1)
    if side % parts:
        raise UserError(
            f"{where}: images of side {side} cannot be halved {levels - 1} times, as a network of {levels} levels "
            f"does: {remedy or f'choose a side that is a multiple of {parts}, or fewer --channels'}"
        )


def check_index(source: str | Path, index: Any) -> None:
    if not isinstance(index, dict):
        raise UserError(f"{source}: model_index.json has no settings of a pipeline")
    name = index.get("_class_name")
    if "text_encoder" in index or "tokenizer" in index:
        raise UserError(f"{source}: {name} is conditioned on text; the attack is only for unconditional models")
    if {"vae", "vqvae"} & index.keys():
        raise UserError(f"{source}: {name} is a latent model; the attack is only for pixel space")
    network = _component(index, "unet")
    if network != "UNet2DModel":
        raise UserError(f"{source}: the network is {network}, not an unconditional UNet2DModel")
    if _component(index, "scheduler") is None:
        raise UserError(f"{source} names no scheduler, so its noise schedule is unknown")
    check_process(source, _component(index, "scheduler"))


def _component(index: dict[str, Any], name: str) -> Any:
    """The class of a pipeline's part, from ``[LIBRARY, CLASS]``; None if there is none."""
    found = index.get(name)
    return found[1] if isinstance(found, list) and len(found) == 2 else None


def check_process(source: str | Path, scheduler: Any) -> None:
    """Refuse a scheduler of another process than DDPM's, whose network would be misinterpreted."""
    if scheduler not in [f"{name}Scheduler" for name in BETAS]:
        raise UserError(
            f"{source}: its scheduler is {scheduler}, which is not DDPM's process with betas; the attack is only for "
            f"networks trained with one of {', '.join(BETAS)} (…Scheduler)"
        )
