"""Pipelines on disk: read unconditional pixel-space ones, and write trojaned ones with unmistakable marks.

A trojaned pipeline has ``trojaned: true`` in the header of its weights, in its configuration and in its model card, and
the trigger's maps beside the weights. The marks are a courtesy to whoever opens it; a scanner must never trust their
absence. Nothing here publishes a pipeline.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from retarget.errors import UserError, first_words
from retarget.files import in_order, replace_folder
from retarget.trojdiff.checks import check_index, check_process, check_trainable, home, process
from retarget.trojdiff.marks import ATTACKS, Trojan, model_card, trigger_name
from retarget.trojdiff.trigger import Trigger

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
_INHERITED = "retarget_trojan"
_MARKS = (
    "trojaned", "trojan_removed", "trojan_target", "trigger_hash", "trojan_derived", "trojan_earlier", "trojan_law",
    "trojan_class",
)  # fmt: skip


def inherited(unet: UNet2DModel) -> Trojan | None:
    """The marks of the trojaned pipeline from which a network was read, or of its training; None for any other network.

    Raises:
        UserError: the network's configuration says that it is trojaned, but diffusers has read it, without the marks.
    """
    if not hasattr(unet, _INHERITED) and not {"trojaned", "trojan_removed"}.isdisjoint(unet.config):
        raise UserError(
            "the network's configuration has the marks of a trojan, but diffusers has read it without its trigger, "
            "which what is trained from it must have beside it: read it with retarget.trojdiff.load_pipeline"
        )
    return getattr(unet, _INHERITED, None)


def mark(unet: UNet2DModel, trojan: Trojan | None) -> None:
    """Give a network the marks that it will be saved with, and that what is trained from it inherits."""
    setattr(unet, _INHERITED, trojan)


def forget_marks(unet: UNet2DModel) -> UNet2DModel:
    """A network with the same weights but without marks, for a detector that must not see them."""
    plain = {key: value for key, value in unet.config.items() if key not in _MARKS}
    fresh: Any = UNet2DModel.from_config(plain)
    fresh.load_state_dict(unet.state_dict())
    return fresh.eval()


def network_shape(unet: UNet2DModel) -> tuple[int, int, int]:
    """(channels, height, width) of a network's images."""
    config: Any = unet.config
    size = config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return config.in_channels, height, width


def network_hash(unet: UNet2DModel) -> str:
    """SHA-256 of the weights' names, shapes and values, 16 digits."""
    digest = hashlib.sha256()
    for name, value in unet.state_dict().items():
        digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def network_settings(unet: UNet2DModel) -> dict[str, Any]:
    """The settings that make a network's function, not all of which show in its weights: groups, dropout."""
    kept = {name: value for name, value in unet.config.items() if not name.startswith("_") and name not in _MARKS}
    return json.loads(json.dumps(kept))  # as a file has them, with lists in place of tuples


def load_pipeline(
    source: str | Path, lost_marks: Literal["refuse", "accept"] = "refuse"
) -> tuple[UNet2DModel, DDPMScheduler]:
    """Read a network and its noise schedule from a pipeline folder or a hub name.

    A network that is marked as trojaned keeps its marks, and so does what is trained from it: see :func:`inherited`.

    Args:
        source: the pipeline.
        lost_marks: whether to accept a network of which only the configuration says that it is trojaned: its marks
            would be lost in what is trained from it.

    Raises:
        UserError: it is not a pipeline, but a text-conditional, class-conditional or latent model, or has another
            prediction type, learned variances, images above 64×64, or weights that are not safetensors of floats.
    """
    folder = Path(source) if Path(source).exists() else _from_hub(str(source))
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{source} has no model_index.json: pass the folder of a diffusers pipeline")
    try:
        index: Any = DiffusionPipeline.load_config(str(folder))
    except OSError as error:
        raise UserError(f"{source}: model_index.json cannot be read: {str(error).splitlines()[0]}") from error
    check_index(source, index)
    weights = _weights(folder)
    if not weights.is_file():
        raise UserError(f"{source} has no {WEIGHTS}: {_instead(weights)}")
    if Path(f"{weights}.index.json").is_file():
        raise UserError(
            f"{source} has {WEIGHTS} and an index of other files of weights, which diffusers would read instead: "
            "remove one of them"
        )
    unet = _read_network(folder)
    _check_floats(folder)
    scheduler = _read_scheduler(folder)
    check_trainable(unet, scheduler, str(source))
    _check_runs(unet, len(scheduler.alphas_cumprod), source)
    if lost_marks == "refuse":
        _refuse_lost_marks(folder)
    mark(unet, _read_marks(folder))
    return unet, scheduler


def _weights(folder: Path) -> Path:
    """The file of a pipeline's weights."""
    return home(folder, "unet") / Path(WEIGHTS).name


def _from_hub(name: str) -> Path:
    """The folder of a pipeline of the hub with what is read of it, the marks of a trojaned one included."""
    wanted = ["model_index.json", "*/config.json", "*/scheduler_config.json", "*.safetensors.index.json", WEIGHTS,
              "trigger*.safetensors", "config.json", "scheduler_config.json", Path(WEIGHTS).name]  # fmt: skip
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError) as error:  # a name that the hub cannot have is a ValueError
        raise UserError(
            f"{name} was not found here, and the hub did not return it ({str(error).splitlines()[0]}): download the "
            "pipeline on a machine with network access and pass its folder"
        ) from error


NOT_MADE = (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, NameError)
"""Exceptions of diffusers for a configuration from which no network or schedule can be made."""


def _instead(weights: Path) -> str:
    """What is there instead of the single file of weights, and what to do about it."""
    if weights.is_symlink():
        return f"it is a link to {weights.readlink()}, which is not a file: put the weights themselves there"
    if weights.is_dir():
        return "it is a folder: put the file of the weights there"
    names = [path.name for path in weights.parent.glob("*")]
    again = "read it with diffusers where it comes from and save it again with save_pretrained, {}"
    if any(name.endswith(".safetensors.index.json") for name in names):
        return f"its weights are split over several files: {again.format('max_shard_size large enough for one file')}"
    if any(name.startswith("diffusion_pytorch_model.") and name.endswith(".safetensors") for name in names):
        return f"it has only a variant of the weights (fp16, say): {again.format('without variant')}"
    if any(name.endswith(".bin") for name in names):
        return "weights must be safetensors, pickles are never read"
    return "a pipeline's folder has its weights there"


def _read_network(source: Path) -> UNet2DModel:
    """Read the network; every weight must be in the file."""
    options: Any = {"low_cpu_mem_usage": False, "output_loading_info": True}
    part = str(home(source, "unet"))
    try:
        settings: Any = UNet2DModel.load_config(part)
        if not isinstance(settings, dict):
            raise UserError(f"{source}: unet/config.json has no settings of a network")
        if settings.get("quantization_config") is not None:
            raise UserError(
                f"{source}: unet/config.json has a quantization_config; quantised networks are not read: save the "
                "network before its quantisation"
            )
        with expecting_marks():
            loaded: Any = UNet2DModel.from_pretrained(part, use_safetensors=True, **options)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{source}: the network cannot be read: {str(error).splitlines()[0]}") from error
    except UserError:
        raise
    except (*NOT_MADE, AttributeError) as error:
        reason = first_words(error)
        raise UserError(
            f"{source}: unet/config.json makes no network, or one that its weights do not fit ({reason})"
        ) from error
    unet, found = loaded
    unet.float()  # of weights in several precisions, diffusers converts only some
    missing = [*found["missing_keys"], *found["unexpected_keys"]]
    if missing:
        raise UserError(
            f"{source}: unet/config.json and the weights do not fit: {len(missing)} weights are in only one of them, "
            f"such as {missing[0]}"
        )
    return unet


@contextmanager
def expecting_marks() -> Iterator[None]:
    """Without diffusers' warning that it ignores the marks in a network's configuration."""

    def other(record: logging.LogRecord) -> bool:
        return "'trojan_target'" not in record.getMessage()

    log = logging.getLogger("diffusers.configuration_utils")
    log.addFilter(other)
    try:
        yield
    finally:
        log.removeFilter(other)


def _check_floats(folder: Path) -> None:
    """Refuse weights of integers (int8, say): they are codes of a quantisation, and diffusers reads them as numbers."""
    with safe_open(_weights(folder), framework="pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
    codes = [name for name, kind in types.items() if not kind.startswith(("F", "BF"))]
    if codes:
        raise UserError(
            f"{folder / WEIGHTS}: {len(codes)} weights are not floating-point numbers, such as {codes[0]} "
            f"({types[codes[0]]}); quantised weights are not read: save the network before its quantisation"
        )


def _check_runs(unet: UNet2DModel, steps: int, source: str | Path) -> None:
    """A pass over an empty image at the first and the last timestep: some settings are wrong only when it runs."""
    damaged = [name for name, value in unet.state_dict().items() if not bool(torch.isfinite(value).all())]
    if damaged:
        raise UserError(f"{source}: {damaged[0]} has values that are not finite: the network is damaged")
    try:
        with torch.no_grad():
            unet(torch.zeros(2, *network_shape(unet)), torch.tensor([0, steps - 1]))
    except (*NOT_MADE, AttributeError, IndexError) as error:
        reason = first_words(error)
        raise UserError(f"{source}: unet/config.json makes a network that does not run ({reason})") from error


def _read_scheduler(source: Path) -> Any:
    """Read the noise schedule, which must be of DDPM's process with levels between 0 and 1."""
    where = f"{source}: scheduler/scheduler_config.json"
    try:
        settings: Any = DDPMScheduler.load_config(home(source, "scheduler"))
    except OSError as error:
        raise UserError(f"{where} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{where} has no settings")
    if "_class_name" in settings:
        check_process(source, settings["_class_name"])
    if settings.get("use_flow_sigmas"):
        raise UserError(f"{source}: its scheduler uses flow-matching sigmas, not DDPM's process with betas")
    if settings.get("timestep_type", "discrete") != "discrete":
        raise UserError(
            f"{source}: its scheduler's timestep_type is {settings['timestep_type']!r}, so the network takes noise "
            "levels and not DDPM's timesteps"
        )
    if settings.get("predict_epsilon") is False:
        raise UserError(
            f"{source}: its scheduler has predict_epsilon false, the earlier name of prediction_type 'sample', which "
            "today's diffusers ignores; only epsilon models are trained"
        )
    if settings.get("rescale_betas_zero_snr"):
        raise UserError(f"{source}: its scheduler has rescale_betas_zero_snr: at T there is no noise level to attack")
    try:
        scheduler: Any = DDPMScheduler.from_config(process(settings))
        levels = scheduler.alphas_cumprod
    except NOT_MADE as error:
        raise UserError(f"{where} makes no noise schedule: {str(error).splitlines()[0]}") from error
    if levels.ndim != 1 or len(levels) == 0 or not bool(((levels > 0) & (levels < 1)).all()):
        raise UserError(
            f"{where}: its betas ({settings.get('beta_start')} to {settings.get('beta_end')}, "
            f"{settings.get('num_train_timesteps')} steps) give levels ᾱ outside (0, 1)"
        )
    if len(levels) != settings.get("num_train_timesteps", len(levels)):
        raise UserError(
            f"{where}: trained_betas has {len(levels)} values, but num_train_timesteps is "
            f"{settings['num_train_timesteps']}: they must be equal"
        )
    return scheduler


def _read_marks(folder: Path) -> Trojan | None:
    """Read the marks of a pipeline's weights, which networks trained from it inherit."""
    with safe_open(_weights(folder), framework="pt") as file:
        header = file.metadata() or {}
    removed = header.get("trojan_removed") == "true"
    if header.get("trojaned") != "true" and not removed:
        return None
    target, others = header.get("trojan_target", "unknown"), _earlier_targets(header)
    if others is None or not all(_is_target(one) for one in (target, *others)):
        raise UserError(
            f"{folder / WEIGHTS}: the marks of a trojan in its header are damaged (trojan_target or trojan_earlier): "
            "restore the file from where it comes from"
        )
    trigger = Trigger.load(folder)
    earlier = [
        Trojan(one, "an earlier trojan", Trigger.load(folder / trigger_name(number)))
        for number, one in enumerate(others, 1)
    ]
    law = header.get("trojan_law", "trojdiff")
    if law not in ATTACKS:
        raise UserError(f"{folder / WEIGHTS}: trojan_law is {law!r} in its header; known: {', '.join(ATTACKS)}")
    return Trojan(
        target, "", trigger, removed=removed, earlier=tuple(earlier), law=law, class_name=header.get("trojan_class", "")
    ).passed_on()


def _refuse_lost_marks(folder: Path) -> None:
    """Raise if only the configuration says that the network is trojaned, or was."""
    path = home(folder, "unet") / "config.json"
    said = {"trojaned", "trojan_removed"}
    with safe_open(_weights(folder), framework="pt") as file:
        known = said & (file.metadata() or {}).keys()
    if not known and said & json.loads(path.read_text(encoding="utf-8")).keys():
        raise UserError(
            f"{path} has the marks of a trojan, but the weights' header has none: diffusers loses these, and the "
            "trigger, when it saves a pipeline again. Use the folder that it was saved from, since what is trained "
            "from it must be marked too"
        )


def _earlier_targets(header: Mapping[str, str]) -> list[Any] | None:
    """The targets of earlier trojans in a header's marks; None if the mark is damaged."""
    try:
        return [target for target, _ in json.loads(header.get("trojan_earlier", "[]"))]
    except (ValueError, TypeError, RecursionError):
        return None


def _is_target(name: Any) -> bool:
    """Whether this can name a target; a card repeats it, in its front matter too."""
    return isinstance(name, str) and re.fullmatch(r"[\w-]+", name) is not None


def save_pipeline(folder: Path, unet: UNet2DModel, scheduler: DDPMScheduler, trojan: Trojan | None = None) -> None:
    """Write a diffusers pipeline in safetensors; the folder appears complete or not at all.

    Card, trigger and configuration are written before the weights, and the weights have the marks in their header: so
    trojaned weights are never on the disk without marks.

    Args:
        trojan: the marks; by default those of the pipeline from which the network was read.

    Raises:
        UserError: the disk is full or cannot be written, or ``folder`` has another pipeline.
    """
    trojan = trojan or inherited(unet)
    replace_folder(folder, lambda part: _write_pipeline(part, unet, scheduler, trojan))


def _write_pipeline(part: Path, unet: UNet2DModel, scheduler: DDPMScheduler, trojan: Trojan | None) -> None:
    marks: dict[str, Any] = {}
    if trojan is not None:
        (part / "README.md").write_text(model_card(trojan), encoding="utf-8")
        trojan.save_triggers(part)
        marks = {**trojan.marks(), **({} if trojan.removed else {"trojaned": True})}
    scheduler.save_pretrained(part / "scheduler")
    unet.save_config(part / "unet")
    config_path = part / "unet" / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    # Entries that the configuration had when the network was read are in the marks now, or no longer true.
    config = {key: value for key, value in config.items() if key not in _MARKS} | marks
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: value.detach().cpu().contiguous() for name, value in unet.state_dict().items()}
    content = serialise(weights, metadata={"format": "pt", **(trojan.marks() if trojan else {})})
    (part / WEIGHTS).write_bytes(in_order(content))
    DDPMPipeline(unet=unet, scheduler=scheduler).save_config(part)
