"""Read pipelines safely: no code of theirs is run, no pickle is opened, and what is not covered is named."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from retarget.audit.errors import AuditError, NotCoveredError
from retarget.trojdiff.checkpoint import NOT_MADE, expecting_marks
from retarget.trojdiff.checks import BETAS, home, process, with_betas

_STEM = "diffusion_pytorch_model"
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


def read_pipeline(folder: Path) -> tuple[UNet2DModel, Any]:
    """Read the network, with all of its weights, and the noise schedule.

    Raises:
        AuditError: the folder is not a pipeline, files are broken, or the only weights are pickles.
        NotCoveredError: the pipeline is of a kind that is not covered; see the README of ``retarget.audit``.
    """
    index = read_index(folder)
    _check_index(index)
    settings = read_config(home(folder, "scheduler") / "scheduler_config.json", "it defines the noise schedule")
    check_process(settings.get("_class_name"), settings)
    check_process((component(index, "scheduler") or (None, None))[1], settings)
    check_schedule(settings)
    config = read_config(home(folder, "unet") / "config.json", "it defines the network")
    if config.get("quantization_config") is not None:
        raise NotCoveredError("unet/config.json has a quantization_config: quantised networks are not covered")
    check_network(config)
    variant = _check_weights(home(folder, "unet"))
    _check_floats(home(folder, "unet"), variant)
    unet = _read_network(home(folder, "unet"), variant)
    try:
        scheduler: Any = DDPMScheduler.from_config(process(settings))
    except NOT_MADE as error:
        raise AuditError(f"scheduler/scheduler_config.json defines no noise schedule: {_first(error)}") from error
    return unet, scheduler


def read_index(folder: Path) -> dict[str, Any]:
    """The content of a pipeline's ``model_index.json``.

    Raises:
        AuditError: the folder has none, or a broken one.
        NotCoveredError: it has none, but LoRA weights.
    """
    path = folder / "model_index.json"
    if not path.is_file() and (lora := sorted(one.name for one in folder.glob("*") if _is_lora(one))):
        raise NotCoveredError(f"{lora[0]}: LoRA weights change another network, and triggers in them are not covered")
    return read_config(path, "every folder of a diffusers pipeline has one")


def other_weights(folder: Path, files: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Weights in a pipeline's folder that :func:`read_pipeline` does not read, as paths inside the folder.

    Those of the first kind can be loaded into the pipeline, or instead of its network, so nobody who has the folder
    knows the network by the audited weights alone.

    Args:
        folder: the folder.
        files: all of its files.

    Returns:
        What the files hold that leave no clean verdict, by path: other sets of the network's weights (variants, a
        single file beside an index, a file that no index names, a pickle that diffusers reads where only a variant is
        safetensors) that are not the audited weights in the same or fewer bits; LoRA weights anywhere; and weights in
        the pipeline's own folder or the network's. And all other weights, which are in undeclared folders.

    Raises:
        AuditError: as :func:`read_pipeline`.
    """
    part = home(folder, "unet")
    sets = _sets(part)
    known = {_inside(folder, path) for paths in sets.values() for path in paths}
    variant = _check_weights(part)
    read = sets.pop(_read_set(sets, variant))
    audited = _tensors(read) if sets else {}
    different = [path for paths in sets.values() if not _same_weights(audited, _tensors(paths)) for path in paths]
    pickles = [part / f"{_STEM}.bin", part / f"{_STEM}.bin.index.json"] if variant else []
    different += [path for path in pickles if path.is_file()]
    found = {_inside(folder, path): "other weights of the network" for path in different}
    weights = [one for one in files if one.endswith((".safetensors", ".msgpack", ".h5", ".onnx")) or _named_lora(one)]
    rest = []
    for name in sorted(set(weights) - known - found.keys()):
        if _is_trigger(folder / name):
            continue
        if _is_lora(folder / name):
            found[name] = "LoRA weights"
        elif (folder / name).parent in (folder, part):
            found[name] = "weights of another network or format"
        else:
            rest.append(name)
    return found, rest


def _is_trigger(path: Path) -> bool:
    """Whether this is a trigger as ``Trigger.save`` writes it: two maps of one shape, and no weights."""
    if path.name != "trigger.safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError):
        return False
    return shapes.keys() == {"mu", "gamma"} and shapes["mu"] == shapes["gamma"] and len(shapes["mu"]) == 3


def _named_lora(name: str) -> bool:
    """Whether a file has a name of LoRA weights, as diffusers or PEFT write them, also as a pickle.

    >>> [_named_lora(one) for one in ("pytorch_lora_weights.bin", "a/adapter_model.bin", "lora/notes.txt")]
    [True, True, False]
    """
    path = Path(name.lower())
    weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
    return weights and ("lora" in path.name or path.stem == "adapter_model")


def _is_lora(path: Path) -> bool:
    """Whether these are LoRA weights, by the file's name or by its tensors'."""
    if _named_lora(path.name):
        return True
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return any("lora" in name.lower() for name in file.keys())  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError):
        return False  # it is named all the same


def _read_set(sets: dict[str, list[Path]], variant: str | None) -> str:
    """The name of the set that is read: diffusers prefers the index of a variant's weights to their single file."""
    dot = f".{variant}" if variant else ""
    names = (f"{_STEM}.safetensors.index{dot}.json", f"{_STEM}{dot}.safetensors")
    for name in names:
        if name in sets:
            return name
    raise AuditError(f"unet: the weights are neither in {names[1]} nor in files that {names[0]} names")


def _sets(part: Path) -> dict[str, list[Path]]:
    """The sets of weights in a network's folder, by the name of their index or of their only file."""
    sets = {}
    for index in sorted(part.glob(f"{_STEM}*.index*.json")):
        if ".bin." in index.name:
            continue  # of pickles, which are not read
        if not index.name.startswith(f"{_STEM}.safetensors.index."):
            raise AuditError(
                f"unet/{index.name} has an earlier form of an index's name, which diffusers reads only for some paths: "
                "save the network again with save_pretrained"
            )
        places = read_config(index, "it names the files of the weights").get("weight_map")
        if not isinstance(places, dict):
            raise AuditError(f"unet/{index.name} has no weight_map")
        odd = [one for one in places.values() if not _is_shard(one)]
        if odd:  # diffusers would open it, whatever it is
            raise AuditError(
                f"unet/{index.name} names {odd[0]!r} as a file of weights: only safetensors files beside the index are "
                "read, never pickles"
            )
        sets[index.name] = [part / name for name in sorted(set(places.values()))]
    named = {path for paths in sets.values() for path in paths}
    return sets | {path.name: [path] for path in sorted(part.glob(f"{_STEM}*.safetensors")) if path not in named}


def _is_shard(name: Any) -> bool:
    """Whether an index may name this as a file of weights: safetensors, in the index's own folder."""
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def _inside(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _variant(path: Path) -> str:
    """The variant in the name of a file of weights: empty for the plain one.

    >>> ends = (".non-ema-00001-of-00002.safetensors", "-00001-of-00002.safetensors")
    >>> [_variant(Path(_STEM + end)) for end in ends]
    ['non-ema', '']
    """
    end = path.name.removeprefix(_STEM).removesuffix(".safetensors")
    return re.sub(r"-\d+-of-\d+$", "", end).lstrip(".")


def _tensors(paths: Sequence[Path]) -> dict[str, Tensor]:
    try:
        return {name: tensor for path in paths for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise AuditError(f"a file of weights cannot be read: {_first(error)}") from error


def _same_weights(audited: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Whether these are the audited weights in the same or fewer bits."""
    return audited.keys() == others.keys() and all(
        audited[name].shape == other.shape and torch.equal(audited[name].to(other.dtype), other)
        for name, other in others.items()
    )


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
        raise AuditError(f"{name} is broken: {_first(error)}") from error
    if not isinstance(found, dict):
        raise AuditError(f"{name} must contain a JSON object, not {type(found).__name__}")
    return found


def _check_index(index: dict[str, Any]) -> None:
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
        raise AuditError(f"{where} defines no noise schedule: {_first(error)}") from error
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


def _check_weights(folder: Path) -> str | None:
    """The variant of the weights (None for the plain one), after checking the header of every file."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
        if pickles:
            raise AuditError(
                f"unet/{pickles[0]}: the only weights are pickles, and loading one can run code: convert them to "
                "safetensors on an isolated machine"
            )
        raise AuditError(
            "the folder has no unet/diffusion_pytorch_model.safetensors, nor another safetensors file of weights"
        )
    for path in files:
        if path.is_file() and path.stat().st_size < 1000 and path.read_bytes().startswith(b"version https://git-lfs"):
            raise AuditError(
                f"unet/{path.name} is a pointer of Git LFS, not the weights: run git lfs pull in its clone"
            )
        if path.is_symlink() and not path.exists():
            raise AuditError(
                f"unet/{path.name} is a link to {path.readlink()}, which does not exist: copy the weights themselves, "
                "with cp -L say"
            )
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise AuditError(f"unet/{path.name} is not a complete safetensors file: {_first(error)}") from error
        if not names:
            raise AuditError(f"unet/{path.name} contains no weights")
    _sets(folder)  # raises for an index that names other files
    plain = (folder / f"{_STEM}.safetensors").is_file() or (folder / f"{_STEM}.safetensors.index.json").is_file()
    if plain:
        return None
    variants = sorted({_variant(path) for path in files if path.name.startswith(f"{_STEM}.")})
    if len(variants) != 1:
        raise AuditError(
            f"unet: cannot tell which of these files are the weights: {', '.join(p.name for p in files)}; keep one "
            f"variant in unet/, or add {_STEM}.safetensors"
        )
    return variants[0]


def _check_floats(folder: Path, variant: str | None) -> None:
    """Refuse weights of integers: diffusers would read the codes of a quantisation as numbers."""
    sets = _sets(folder)
    for path in sets[_read_set(sets, variant)]:
        if not path.is_file():
            continue  # diffusers says so
        with safe_open(path, framework="pt") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
        codes = [name for name, kind in kinds.items() if not kind.startswith(("F", "BF"))]
        if codes:
            raise NotCoveredError(
                f"unet/{path.name}: {codes[0]} has values of type {kinds[codes[0]]}, not floating-point numbers: "
                "quantised networks are not covered"
            )


def _read_network(folder: Path, variant: str | None) -> UNet2DModel:
    options: Any = {"low_cpu_mem_usage": False, "output_loading_info": True, "local_files_only": True}
    try:
        with expecting_marks():
            loaded: Any = UNet2DModel.from_pretrained(
                str(folder), use_safetensors=True, variant=variant, torch_dtype=torch.float32, **options
            )
    except (OSError, SafetensorError) as error:
        raise AuditError(f"the network cannot be read: {_first(error)}") from error
    except (*NOT_MADE, AttributeError) as error:
        raise AuditError(
            f"unet/config.json defines no network, or the weights do not match it: {_first(error)}"
        ) from error
    unet, found = loaded
    odd = [*found["missing_keys"], *found["unexpected_keys"], *found.get("mismatched_keys", [])]
    if odd:
        raise AuditError(
            f"unet: the weights do not match the configuration: {len(odd)} are missing, unexpected or of another "
            f"shape, such as {odd[0]}"
        )
    return unet


def _first(error: Exception) -> str:
    """The first words of an error message."""
    return " ".join(str(error).split()[:30]) or type(error).__name__
