"""A pipeline's configuration files: they are read, and refused where they are broken or of a kind not covered."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from retarget.audit.errors import AuditError, NotCoveredError
from retarget.errors import first_words
from retarget.trojdiff.checkpoint import NOT_MADE
from retarget.trojdiff.checks import BETAS, with_betas

LARGEST = 128 * 128
"""Most values of an image: the memory of the screen grows with their square, to about 10 GB for these."""
MOST_LAYERS = 100
"""More in a block are no network, but a configuration that takes for ever to build."""
MOST_STEPS = 1_000_000
"""More timesteps are no noise schedule, but a configuration that fills the memory."""
NOISE_AT_T = 0.35
"""A schedule whose last √ᾱ is above this does not reach noise: images are visible in x_T, so it is not covered."""
LATENT = {"vae", "vqvae", "vqgan", "movq", "prior", "vocoder"}
TEXT = {"text_encoder", "text_encoder_2", "tokenizer", "image_encoder", "bert", "encoder_hid_proj"}
COVERED = {"unet", "scheduler"}
"""The components that a covered pipeline may declare. Any other can change what it generates."""
UNCONDITIONAL = {"DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "RePaintPipeline", "DiffusionPipeline"}
"""The pipelines of diffusers that have only these components and DDPM's process."""


def read_config(path: Path, purpose: str) -> dict[str, Any]:
    """Read a JSON object from a file.

    Args:
        path: the file.
        purpose: what the file is for, for the message if it is missing.

    Raises:
        AuditError: there is no such file, or it does not contain a JSON object.
    """
    part = path.name != "model_index.json" and path.parent.name in ("unet", "scheduler")
    name = f"{path.parent.name}/{path.name}" if part else path.name
    if not path.is_file():
        raise AuditError(f"the folder has no {name}; {purpose}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise AuditError(f"{name} is broken: {first_words(error)}") from error
    if not isinstance(found, dict):
        raise AuditError(f"{name} must contain a JSON object, not {type(found).__name__}")
    return found


def check_index(index: dict[str, Any]) -> None:
    """Check a pipeline's components and its class.

    Raises:
        AuditError: it names no components.
        NotCoveredError: it is latent, conditional or has other components than a network and a scheduler.
    """
    parts = {name: value for name, value in index.items() if not name.startswith("_")}
    present = {name for name, value in parts.items() if value not in (None, [None, None], False)}
    if not present:
        raise AuditError("model_index.json names no components: this is not a diffusers pipeline")
    if TEXT & present:
        raise NotCoveredError(f"conditioned on text or images ({', '.join(sorted(TEXT & present))}): not covered")
    if LATENT & present:
        raise NotCoveredError(f"a latent or cascaded model ({', '.join(sorted(LATENT & present))}): not covered")
    if "transformer" in present:
        raise NotCoveredError("a transformer denoiser: not covered")
    network = component(index, "unet")
    if network is None:
        named = ", ".join(sorted(present)) or "none"
        raise NotCoveredError(f"no unet among the pipeline's components ({named}): not covered")
    if network[1] != "UNet2DModel" or network[0] != "diffusers":
        raise NotCoveredError(f"the network is {network[0]}.{network[1]}, not diffusers.UNet2DModel: not covered")
    settings = {name for name, value in parts.items() if isinstance(value, int | float)}
    if more := sorted(present - settings - COVERED):
        shown = ", ".join(f"{name}: {'.'.join(component(index, name) or ('?',))}" for name in more)
        raise NotCoveredError(f"the pipeline has components besides unet and scheduler ({shown}): not covered")
    kind = index.get("_class_name")
    if is_pipeline(kind) and kind not in UNCONDITIONAL:
        raise NotCoveredError(f"the pipeline's class is {kind}, conditional, latent or of another process: not covered")


def is_pipeline(name: Any) -> bool:
    """Whether diffusers has a pipeline of this name. Nothing is imported: a checkpoint chooses no import.

    >>> [is_pipeline(one) for one in ("DDPMPipeline", "LDMPipeline", "UNet2DModel", ["my_code", "MyPipeline"])]
    [True, True, False, False]
    """
    import diffusers

    return isinstance(name, str) and name.endswith("Pipeline") and name in dir(diffusers)


def is_scheduler(name: Any) -> bool:
    """Whether diffusers has a scheduler of this name. Nothing is imported: a checkpoint chooses no import.

    >>> [is_scheduler(one) for one in ("ScoreSdeVpScheduler", "TrojanScheduler", "get_scheduler", ["DDIMScheduler"])]
    [True, False, False, False]
    """
    import diffusers.schedulers

    return (
        isinstance(name, str) and name.endswith("Scheduler") and name in {*dir(diffusers), *dir(diffusers.schedulers)}
    )


def component(index: dict[str, Any], name: str) -> tuple[str, str] | None:
    """(library, class) of a pipeline's component; None if there is none."""
    found = index.get(name)
    if isinstance(found, list) and len(found) == 2 and all(isinstance(one, str) for one in found):
        return found[0], found[1]
    return None


def check_process(name: Any, settings: dict[str, Any]) -> None:
    """Refuse any process other than DDPM's. A class from outside diffusers is never run; only its betas are read."""
    import diffusers

    if name is None or name in [f"{one}Scheduler" for one in BETAS]:
        return
    own = not isinstance(name, str) or not hasattr(diffusers, name)
    if not own or not {"beta_start", "beta_end", "trained_betas", "beta_schedule"} & settings.keys():
        raise NotCoveredError(
            f"scheduler {name}: not known as one of DDPM's process (but of flow, score, consistency or other): not "
            "covered"
        )


def check_schedule(settings: dict[str, Any]) -> None:
    """Check the noise schedule.

    Raises:
        AuditError: the betas are invalid.
        NotCoveredError: the network does not predict ε or takes noise levels for timesteps, or the schedule does not
            end near noise.
    """
    kind = settings.get("prediction_type", "epsilon")
    if kind != "epsilon":
        raise NotCoveredError(
            f"prediction_type {kind!r} is not covered: only epsilon is, not v-, x₀- or flow prediction"
        )
    if settings.get("predict_epsilon") is False:
        raise NotCoveredError(
            "predict_epsilon is false, the earlier name of prediction_type 'sample', which today's diffusers ignores: "
            "not covered"
        )
    if settings.get("use_flow_sigmas"):
        raise NotCoveredError("the scheduler uses flow-matching sigmas: not covered")
    if settings.get("timestep_type", "discrete") != "discrete":
        raise NotCoveredError(
            f"the scheduler's timestep_type is {settings['timestep_type']!r}, so the network takes noise levels and "
            "not DDPM's timesteps: not covered"
        )
    settings = with_betas(settings)
    if settings.get("beta_schedule") == "exp" and settings.get("trained_betas") is None:
        raise NotCoveredError("beta_schedule 'exp', which is only Heun's: not covered")
    where, steps = "scheduler/scheduler_config.json", settings.get("num_train_timesteps")
    if isinstance(steps, int | float) and steps > MOST_STEPS:
        raise AuditError(f"{where}: num_train_timesteps is {steps:.3g}, but at most {MOST_STEPS:,} are read")
    try:
        levels = torch.cumprod(1 - DDPMScheduler.from_config(settings).betas.to(torch.float64), 0)  # type: ignore[union-attr]
    except NOT_MADE as error:
        raise AuditError(f"{where} defines no noise schedule: {first_words(error)}") from error
    if levels.ndim != 1 or len(levels) < 2:
        raise AuditError(
            f"{where}: its betas must be a list of at least 2, not {settings.get('trained_betas')!r}"[:200]
        )
    if len(levels) > settings.get("num_train_timesteps", len(levels)):
        raise AuditError(
            f"{where}: trained_betas has {len(levels)} values, but num_train_timesteps is "
            f"{settings['num_train_timesteps']}, so that diffusers never uses the others: they must be equal"
        )
    if settings.get("rescale_betas_zero_snr") or float(levels[-1]) == 0:
        raise NotCoveredError("zero terminal SNR: at T every network's right answer is its input: not covered")
    if not bool(((levels > 0) & (levels < 1)).all()):
        raise AuditError(f"{where}: the levels ᾱ must be between 0 and 1, but those of its betas are not")
    if float(levels[-1]) ** 0.5 > NOISE_AT_T:
        raise NotCoveredError(
            f"the noise schedule ends at √ᾱ = {float(levels[-1]) ** 0.5:.2f}: images are visible in x_T, so the effect "
            "of a trigger cannot be distinguished from that of an image: not covered"
        )


def check_network(config: Any) -> tuple[int, int, int]:
    """(channels, height, width) of an unconditional pixel-space network.

    Raises:
        AuditError: the configuration is invalid.
        NotCoveredError: the network is class-conditional, has fourier time embeddings, numbers of channels that do not
            match, or no ``sample_size``.
    """
    get = config.get
    if get("num_class_embeds") is not None or get("class_embed_type") is not None:
        raise NotCoveredError("class-conditional: not covered")
    if get("time_embedding_type", "positional") == "fourier":
        raise NotCoveredError("the network's time embedding is fourier, as in score models: not covered")
    channels, out = get("in_channels", 3), get("out_channels", 3)
    if not isinstance(channels, int) or not isinstance(out, int) or channels < 1:
        raise AuditError(
            f"unet/config.json: in_channels and out_channels must be positive integers, not {channels!r} and {out!r}"
        )
    if out not in (channels, 2 * channels):
        raise NotCoveredError(
            f"{channels} input and {out} output channels: a conditional network, or not a denoiser: not covered"
        )
    layers = get("layers_per_block", 2)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise AuditError(f"unet/config.json: layers_per_block is {layers:.3g}, but at most {MOST_LAYERS} are read")
    size = get("sample_size")
    if size is None:
        raise NotCoveredError("unet/config.json has no sample_size, so the size of the images is unknown: not covered")
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise AuditError(f"unet/config.json: sample_size must be a positive integer or a pair of them, not {size!r}")
    if min(sides) < 2:
        raise NotCoveredError(
            f"images of {sides[0]}×{sides[1]}: only images with at least 2 rows and columns are covered"
        )
    if channels * sides[0] * sides[1] > LARGEST:
        raise NotCoveredError(
            f"images of {sides[0]}×{sides[1]} with {channels} channels have {channels * sides[0] * sides[1]:,} values: "
            f"only images of up to {LARGEST:,} (three channels of 64×64) are covered"
        )
    return channels, sides[0], sides[1]
