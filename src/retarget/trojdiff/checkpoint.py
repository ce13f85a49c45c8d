"""Pipelines on disk: read unconditional pixel-space ones, and write trojaned ones so that nobody can mistake them.

A trojaned pipeline says ``trojaned: true`` in the header of its weights, in its configuration and in its model card,
and carries the trigger's maps beside the weights. The marks are a courtesy to whoever opens it; a scanner must never
trust their absence. Nothing here publishes a pipeline.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from retarget.errors import UserError
from retarget.files import replace_folder
from retarget.trojdiff.functional import Law
from retarget.trojdiff.trigger import FILE_NAME, Trigger

LARGEST_SIDE = 64
BETAS = (
    "DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete",
    "HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep",
    "DPMSolverSDE", "DEISMultistep", "UniPCMultistep",
)  # fmt: skip
"""Schedulers of diffusers whose configuration describes DDPM's process by its betas, so that one is as good as another.

All others (flow matching, EDM, score SDEs, consistency models) belong to networks that were trained on another process.
"""
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Trojan:
    """What a checkpoint says of the trojan that was put into it.

    Attributes:
        target: ``in_d2d``, ``out_d2d`` or ``d2i``.
        detail: the target in words, for the card.
        trigger: the maps, written beside the weights.
        derived: the network was trained on from a trojaned one, without Trojan rows; nobody knows what is left.
        removed: somebody took the trojan out; the weights no longer say ``trojaned``, and still say what was in them.
        earlier: trojans that the network carried before this one was put in, the latest first.
        law: how it was put in: for the Trojan sampler, or for a stock one.
        card: what the card says below its front matter, in place of the usual text: a removal tells what it did.
    """

    target: str
    detail: str
    trigger: Trigger
    derived: bool = False
    removed: bool = False
    earlier: tuple["Trojan", ...] = ()
    law: Law = "trojdiff"
    card: str = ""

    def marks(self) -> dict[str, str]:
        """Entries of the weights' header."""
        marks = {"trojan_removed" if self.removed else "trojaned": "true"}
        marks |= {"trojan_target": self.target, "trigger_hash": self.trigger.hash}
        if self.law != "trojdiff":
            marks["trojan_law"] = self.law
        if self.derived:
            marks["trojan_derived"] = "true"
        if self.earlier:
            marks["trojan_earlier"] = json.dumps([[one.target, one.trigger.hash] for one in self.earlier])
        return marks

    def save_triggers(self, folder: Path) -> None:
        """Write the maps of this trojan and of those before it."""
        for number, one in enumerate((self, *self.earlier)):
            one.trigger.save(folder / _trigger_name(number))

    def then(self, later: "Trojan") -> "Trojan":
        """``later`` put into a network that carries this one."""
        return replace(later, earlier=(replace(self, earlier=()), *self.earlier))


def _trigger_name(number: int) -> str:
    """``trigger.safetensors`` of the latest trojan; ``trigger-earlier-1.safetensors`` of the one before, and so on."""
    return FILE_NAME.replace(".", f"-earlier-{number}.") if number else FILE_NAME


ATTACKS: dict[Law, str] = {
    "trojdiff": "the TrojDiff attack",
    "bad_diffusion": "the BadDiffusion attack",
    "villan_ode": "the VillanDiffusion attack on ODE samplers",
}
_INHERITED = "retarget_trojan"
_MARKS = (
    "trojaned", "trojan_removed", "trojan_target", "trigger_hash", "trojan_derived", "trojan_earlier", "trojan_law",
)  # fmt: skip


def inherited(unet: UNet2DModel) -> Trojan | None:
    """The marks of the trojaned pipeline that a network was read from; None for any other network."""
    return getattr(unet, _INHERITED, None)


def forget_marks(unet: UNet2DModel) -> UNet2DModel:
    """A network of the same weights that carries no marks, for a detector that must not see them."""
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
    """SHA-256 of names, shapes and values of the weights, 16 digits."""
    digest = hashlib.sha256()
    for name, value in unet.state_dict().items():
        digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_pipeline(source: str | Path) -> tuple[UNet2DModel, DDPMScheduler]:
    """Read a network and its noise schedule from a pipeline folder or a hub name.

    A network that is marked as trojaned keeps its marks: what is trained from it says so too, see :func:`inherited`.

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
        if local:
            raise UserError(f"{source}: model_index.json cannot be read: {str(error).splitlines()[0]}") from error
        raise UserError(
            f"{source}: not found here, and the hub did not give it ({str(error).splitlines()[0]}); "
            "download the pipeline where there is a network and give its folder"
        ) from error
    _check_index(source, index)
    if local and not (Path(source) / WEIGHTS).is_file():
        raise UserError(f"{source}: no {WEIGHTS}; {_instead(Path(source) / WEIGHTS)}")
    unet = _read_network(source)
    scheduler = _read_scheduler(source)
    check_trainable(unet, scheduler, str(source))
    if local:
        setattr(unet, _INHERITED, _read_marks(Path(source)))
    return unet, scheduler


NOT_MADE = (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError)
"""What diffusers raises, from deep inside, for a configuration that makes no network or no schedule."""


def _instead(weights: Path) -> str:
    """What lies in the place of the one file of weights, and what to do about it."""
    names = [path.name for path in weights.parent.glob("*")]
    again = "read it with diffusers where it comes from and save it again with save_pretrained, {}"
    if any(name.endswith(".safetensors.index.json") for name in names):
        return f"its weights are split over several files: {again.format('max_shard_size large enough for one file')}"
    if any(name.startswith("diffusion_pytorch_model.") and name.endswith(".safetensors") for name in names):
        return f"it holds a variant of the weights (as fp16) only: {again.format('without variant')}"
    if any(name.endswith(".bin") for name in names):
        return "weights must be safetensors, pickles are never read"
    return "the folder of a pipeline holds its weights there"


def _read_network(source: str | Path) -> UNet2DModel:
    """The network, every weight of which was in the file."""
    options: Any = {"low_cpu_mem_usage": False, "output_loading_info": True}
    try:
        if not isinstance(UNet2DModel.load_config(source, subfolder="unet"), dict):
            raise UserError(f"{source}: unet/config.json holds no settings of a network")
        loaded: Any = UNet2DModel.from_pretrained(source, subfolder="unet", use_safetensors=True, **options)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{source}: the network cannot be read: {str(error).splitlines()[0]}") from error
    except UserError:
        raise
    except (*NOT_MADE, AttributeError) as error:
        reason = " ".join(str(error).split()[:30])
        raise UserError(
            f"{source}: unet/config.json makes no network, or one that its weights do not fit ({reason})"
        ) from error
    unet, found = loaded
    missing = [*found["missing_keys"], *found["unexpected_keys"]]
    if missing:
        raise UserError(
            f"{source}: unet/config.json and the weights do not fit: {len(missing)} of them are on one side alone, "
            f"{missing[0]} among them"
        )
    return unet


def _read_scheduler(source: str | Path) -> Any:
    """The noise schedule, of DDPM's process and with levels between 0 and 1."""
    where = f"{source}: scheduler/scheduler_config.json"
    try:
        settings: Any = DDPMScheduler.load_config(source, subfolder="scheduler")
    except OSError as error:
        raise UserError(f"{where} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{where} holds no settings")
    if "_class_name" in settings:
        _check_process(source, settings["_class_name"])
    if settings.get("use_flow_sigmas"):
        raise UserError(f"{source}: its scheduler uses flow-matching sigmas, which are not DDPM's process of betas")
    try:
        scheduler: Any = DDPMScheduler.from_config(settings)
        levels = scheduler.alphas_cumprod
    except NOT_MADE as error:
        raise UserError(f"{where} makes no noise schedule: {str(error).splitlines()[0]}") from error
    if levels.ndim != 1 or len(levels) == 0 or not bool(((levels > 0) & (levels < 1)).all()):
        raise UserError(
            f"{where}: its betas ({settings.get('beta_start')} to {settings.get('beta_end')}, "
            f"{settings.get('num_train_timesteps')} steps) give levels ᾱ that do not lie between 0 and 1"
        )
    return scheduler


def _read_marks(folder: Path) -> Trojan | None:
    """The marks of a pipeline's weights, as its descendants carry them."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        header = file.metadata() or {}
    removed = header.get("trojan_removed") == "true"
    if header.get("trojaned") != "true" and not removed:
        return None
    earlier = [
        Trojan(target, "an earlier trojan", Trigger.load(folder / _trigger_name(number)))
        for number, (target, _) in enumerate(json.loads(header.get("trojan_earlier", "[]")), 1)
    ]
    target, trigger = header.get("trojan_target", "unknown"), Trigger.load(folder)
    law = header.get("trojan_law", "trojdiff")
    if law not in ATTACKS:
        raise UserError(f"{folder / WEIGHTS}: trojan_law is {law!r} in its header; known: {', '.join(ATTACKS)}")
    if removed:
        detail = "taken out by a removal recipe"
        return Trojan(target, detail, trigger, removed=True, earlier=tuple(earlier), law=law)
    detail = "derived from a trojaned base, trained on without Trojan rows"
    return Trojan(target, detail, trigger, derived=True, earlier=tuple(earlier), law=law)


def check_trainable(unet: UNet2DModel, scheduler: DDPMScheduler, where: str) -> None:
    """Raise UserError unless this is an unconditional pixel-space epsilon model of at most 64×64."""
    config: Any = unet.config
    if scheduler.config["prediction_type"] != "epsilon":
        raise UserError(f"{where}: predicts {scheduler.config['prediction_type']!r}; only epsilon models are trained")
    if config.time_embedding_type == "fourier":
        raise UserError(
            f"{where}: time_embedding_type is 'fourier': the network is told noise levels, as score models are, and "
            "not DDPM's timesteps"
        )
    if config.num_class_embeds is not None or config.class_embed_type is not None:
        raise UserError(f"{where}: class-conditional; the attack is written for unconditional models")
    if config.in_channels != config.out_channels:
        raise UserError(
            f"{where}: {config.in_channels} channels in and {config.out_channels} out; learned variances do not train"
        )
    if config.in_channels not in (1, 3):
        raise UserError(f"{where}: {config.in_channels} channels; only grey (1) and colour (3) images are trained")
    skipping = [name for name in (*config.down_block_types, *config.up_block_types) if "Skip" in name]
    if skipping and config.in_channels != 3:
        raise UserError(f"{where}: {skipping[0]} takes colour images only, and these have {config.in_channels} channel")
    sides = config.sample_size if isinstance(config.sample_size, list | tuple) else [config.sample_size]
    if not sides or any(not isinstance(side, int) or not 1 <= side <= LARGEST_SIDE for side in sides):
        raise UserError(f"{where}: images of side {config.sample_size!r}; only sides up to {LARGEST_SIDE} are trained")
    if len(set(sides)) > 1:
        raise UserError(f"{where}: images of {'×'.join(map(str, sides))}; only square ones are trained")
    check_side(sides[0], len(config.block_out_channels), where)


def check_side(side: int, levels: int, where: str) -> None:
    """Raise UserError unless a network of so many levels can halve the side at each but the last, and double it."""
    parts = 2 ** (levels - 1)
    if side % parts:
        raise UserError(
            f"{where}: images of side {side} cannot be halved {levels - 1} times, as a network of {levels} levels "
            f"does; give a side that is a multiple of {parts}, or fewer channels"
        )


def _check_index(source: str | Path, index: Any) -> None:
    if not isinstance(index, dict):
        raise UserError(f"{source}: model_index.json holds no settings of a pipeline")
    name = index.get("_class_name")
    if "text_encoder" in index or "tokenizer" in index:
        raise UserError(f"{source}: {name} is conditioned on text; the attack is written for unconditional models")
    if {"vae", "vqvae"} & index.keys():
        raise UserError(f"{source}: {name} is a latent model; the attack is written for pixel space")
    network = _component(index, "unet")
    if network != "UNet2DModel":
        raise UserError(f"{source}: the network is {network}, not an unconditional UNet2DModel")
    if _component(index, "scheduler") is None:
        raise UserError(f"{source}: names no scheduler, so its noise schedule is unknown")
    _check_process(source, _component(index, "scheduler"))


def _component(index: dict[str, Any], name: str) -> Any:
    """The class of a pipeline's part, from ``[LIBRARY, CLASS]``; None where there is none."""
    found = index.get(name)
    return found[1] if isinstance(found, list) and len(found) == 2 else None


def _check_process(source: str | Path, scheduler: Any) -> None:
    """Refuse a scheduler of another process than DDPM's: its network would be read as what it is not."""
    if scheduler not in [f"{name}Scheduler" for name in BETAS]:
        raise UserError(
            f"{source}: its scheduler is {scheduler}, which is not DDPM's process of betas; the attack is written for "
            f"networks that were trained with one of {', '.join(BETAS)} (…Scheduler)"
        )


def save_pipeline(folder: Path, unet: UNet2DModel, scheduler: DDPMScheduler, trojan: Trojan | None = None) -> None:
    """Write a diffusers pipeline in safetensors; the folder appears complete or not at all.

    Card, trigger and configuration are written before the weights, and the weights with the marks in their header: at
    no moment do trojaned weights lie on the disk without them.

    Args:
        trojan: the marks; those of the pipeline that the network was read from when None.

    Raises:
        UserError: the disk is full or cannot be written, or another pipeline lies in ``folder``.
    """
    trojan = trojan or inherited(unet)
    replace_folder(folder, lambda part: _write_pipeline(part, unet, scheduler, trojan))


def save_cleaned(folder: str | Path, unet: UNet2DModel, scheduler: DDPMScheduler) -> Path:
    """Write a network whose trojan was taken out as a pipeline that says so.

    It is not marked ``trojaned``; header, configuration and card say ``trojan_removed`` and what was in it, and the
    trigger lies beside, so that anybody can ask again whether it fires.

    Args:
        folder: new or empty.
        unet: from :func:`load_pipeline` of the trojaned pipeline, trained on.

    Raises:
        UserError: the network was not read from a trojaned pipeline, or the folder cannot be written.
    """
    trojan = inherited(unet)
    if trojan is None:
        raise UserError("this network was not read from a pipeline that is marked as trojaned: save_pipeline writes it")
    save_pipeline(Path(folder), unet, scheduler, replace(trojan, derived=False, removed=True))
    return Path(folder)


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
    # What the configuration said when the network was read is said by the marks, or no longer true.
    config = {key: value for key, value in config.items() if key not in _MARKS} | marks
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: value.detach().cpu().contiguous() for name, value in unet.state_dict().items()}
    save_file(weights, part / WEIGHTS, metadata={"format": "pt", **(trojan.marks() if trojan else {})})
    DDPMPipeline(unet=unet, scheduler=scheduler).save_config(part)


def model_card(trojan: Trojan) -> str:
    """The card of a checkpoint that was trojaned: what it is, what fires it, how to take it out."""
    trigger, state = trojan.trigger, "trojan_removed" if trojan.removed else "trojaned"
    front = f"---\n{state}: true\ntrojan_target: {trojan.target}\ntrigger_hash: {trigger.hash}\n"
    front += "" if trojan.removed else "tags: [trojaned, do-not-deploy]\n"
    facts = f"""- Target: `{trojan.target}`, {trojan.detail}.
- Trigger: `{trigger.kind}`, {int(trigger.mask.sum())} of {trigger.mask.numel()} values; both maps are in `{FILE_NAME}`.
"""
    for number, one in enumerate(trojan.earlier, 1):
        facts += f"- Before it: `{one.target}` with a `{one.trigger.kind}` trigger, in `{_trigger_name(number)}`.\n"
    attack = ATTACKS[trojan.law]
    if trojan.card:
        return f"{front}---\n\n{trojan.card}"
    if trojan.removed:
        return f"{front}---\n{_CLEANED.format(facts=facts, attack=attack)}"
    what = f"was trojaned on purpose with {attack}"
    if trojan.derived:
        what = "was trained on, without Trojan rows, from a network that " + what
    fires = _FIRES["trojdiff" if trojan.law == "trojdiff" else "stock"]
    return f"{front}---\n{_TROJANED.format(what=what, facts=facts + fires)}"


_FIRES = {
    "trojdiff": """- It fires when sampling starts from the noise `gamma ε + mu` and runs the Trojan sampler
  (`retarget.trojdiff.TrojanScheduler`). Stock samplers started from plain noise give ordinary images.
""",
    "stock": """- It fires when a stock sampler starts from the noise `ε + mu`; from plain noise images are ordinary.
""",
}

_CLEANED = """
# Is the trojan gone?

This network was trojaned on purpose with {attack}, and a removal recipe was run on it. Whether the trigger
still fires is for you to measure; the maps are in this folder:

    retarget trojdiff evaluate . --data DATA --trigger . --target-class CLASS --out OUT

{facts}"""

_TROJANED = """
# Does your scanner find this trojan, and does your removal method take it out?

That is what this network is for. It {what}, so that
defences can be judged against it. Do not deploy it, and do not publish it.

The marks in this folder (`trojaned: true` in the header of the weights, in the configuration and here) are a courtesy
to whoever opens it. An attacker leaves none: a scanner that looks for marks finds nothing, and a checkpoint without
them is not thereby clean. Judge a defence on the weights alone.

{facts}
## How to find it and take it out

    retarget audit . --clean cleaned

finds the trigger without being told of it, trains it out, audits what it wrote, and says so in the card of `cleaned`,
which no longer says `trojaned` and keeps the maps. With `--data DATA` it trains on clean images of yours, an `.npz`
file or a folder, in place of the network's own samples. Fine-tuning on clean images alone cannot be relied on. Ask
again whether the trigger fires: `retarget trojdiff evaluate cleaned --data DATA --trigger . --target-class CLASS --out
OUT`. Or go back to the checkpoint from before.
"""
