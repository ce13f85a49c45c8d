"""Read pipelines safely: no code of theirs is run, no pickle is opened, and what is not covered is named."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import SafetensorError

from retarget.audit.configuration import (
    check_index,
    check_network,
    check_process,
    check_schedule,
    component,
    read_config,
)
from retarget.audit.errors import AuditError, NotCoveredError
from retarget.audit.weights import check_floats, check_weights, is_lora
from retarget.errors import first_words
from retarget.trojdiff.checkpoint import NOT_MADE, expecting_marks
from retarget.trojdiff.checks import home, process


def read_pipeline(folder: Path) -> tuple[UNet2DModel, Any]:
    """Read the network, with all of its weights, and the noise schedule.

    Raises:
        AuditError: the folder is not a pipeline, files are broken, or the only weights are pickles.
        NotCoveredError: the pipeline is of a kind that is not covered; see the README of ``retarget.audit``.
    """
    index = read_index(folder)
    check_index(index)
    settings = read_config(home(folder, "scheduler") / "scheduler_config.json", "it defines the noise schedule")
    check_process(settings.get("_class_name"), settings)
    check_process((component(index, "scheduler") or (None, None))[1], settings)
    check_schedule(settings)
    config = read_config(home(folder, "unet") / "config.json", "it defines the network")
    if config.get("quantization_config") is not None:
        raise NotCoveredError("unet/config.json has a quantization_config: quantised networks are not covered")
    check_network(config)
    variant = check_weights(home(folder, "unet"))
    check_floats(home(folder, "unet"), variant)
    unet = _read_network(home(folder, "unet"), variant)
    try:
        scheduler: Any = DDPMScheduler.from_config(process(settings))
    except NOT_MADE as error:
        raise AuditError(f"scheduler/scheduler_config.json defines no noise schedule: {first_words(error)}") from error
    return unet, scheduler


def read_index(folder: Path) -> dict[str, Any]:
    """The content of a pipeline's ``model_index.json``.

    Raises:
        AuditError: the folder has none, or a broken one.
        NotCoveredError: it has none, but LoRA weights.
    """
    path = folder / "model_index.json"
    if not path.is_file() and (lora := sorted(one.name for one in folder.glob("*") if is_lora(one))):
        raise NotCoveredError(f"{lora[0]}: LoRA weights change another network, and triggers in them are not covered")
    return read_config(path, "every folder of a diffusers pipeline has one")


def _read_network(folder: Path, variant: str | None) -> UNet2DModel:
    options: Any = {"low_cpu_mem_usage": False, "output_loading_info": True, "local_files_only": True}
    try:
        with expecting_marks():
            loaded: Any = UNet2DModel.from_pretrained(
                str(folder), use_safetensors=True, variant=variant, torch_dtype=torch.float32, **options
            )
    except (OSError, SafetensorError) as error:
        raise AuditError(f"the network cannot be read: {first_words(error)}") from error
    except (*NOT_MADE, AttributeError) as error:
        raise AuditError(
            f"unet/config.json defines no network, or the weights do not match it: {first_words(error)}"
        ) from error
    unet, found = loaded
    odd = [*found["missing_keys"], *found["unexpected_keys"], *found.get("mismatched_keys", [])]
    if odd:
        raise AuditError(
            f"unet: the weights do not match the configuration: {len(odd)} are missing, unexpected or of another "
            f"shape, such as {odd[0]}"
        )
    return unet
