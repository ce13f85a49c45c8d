"""``retarget trojdiff train | sample | evaluate``. Nothing heavy is imported before the arguments are read."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from retarget.errors import UsageError, UserError
from retarget.files import locked, make_directory
from retarget.helptext import one_paragraph, read_arguments
from retarget.own import importable
from retarget.settings import resolve_settings
from retarget.study.tracking import Name, Track, Tracker, refuse_missing
from retarget.trojdiff.config import (
    EvaluateConfig,
    NetworkConfig,
    TargetConfig,
    TargetKind,
    TrainConfig,
    TriggerConfig,
    TriggerKind,
)
from retarget.verbs import dispatch

VERBS = {
    "train": ("retarget.trojdiff.commands:train", "pre-train, fine-tune clean, or trojan an unconditional UNet"),
    "sample": ("retarget.trojdiff.commands:sample", "sample a pipeline with or without its trigger"),
    "evaluate": (
        "retarget.trojdiff.commands:evaluate", "measure benign quality and how often the attack fires"
    ),
}  # fmt: skip


def trojdiff(words: Sequence[str]) -> int:
    """Run ``retarget trojdiff WORDS...``; the exit code."""
    with importable(Path.cwd()):
        return dispatch("retarget trojdiff", VERBS, words)


def train(words: list[str]) -> int:
    """``retarget trojdiff train WORDS...``."""
    from accelerate import PartialState

    given = _read(TrainArguments, "train", words)
    if given.track:
        refuse_missing(given.track)
    # In a distributed training only the first process prints.
    with _folder(given.out) if PartialState().is_main_process else nullcontext():
        return _train(given)


def sample(words: list[str]) -> int:
    """``retarget trojdiff sample WORDS...``."""
    given = _read(SampleArguments, "sample", words)
    with _folder(given.out):
        return _sample(given)


def evaluate(words: list[str]) -> int:
    """``retarget trojdiff evaluate WORDS...``."""
    given = _read(EvaluateConfig, "evaluate", words)
    with _folder(given.out):
        return _evaluate(given)


Given = TypeVar("Given")


def _read(kind: type[Given], verb: str, words: list[str]) -> Given:
    given = read_arguments(kind, words, f"retarget trojdiff {verb}")
    refuse_ignored(given, words)
    return given


_FRESH = ("--channels", "--layers", "--attention-side", "--middle-attention", "--no-middle-attention", "--groups",
          "--dropout")  # fmt: skip
_BLEND, _PATCH = ("--blend-image",), ("--patch-size", "--patch-place")
_LABEL, _IMAGE, _OTHER = ("--target-class",), ("--image",), ("--other",)


def refuse_ignored(given: Any, words: Sequence[str]) -> None:
    """Refuse options that have no effect together with the others.

    Raises:
        UsageError: an option has no effect; the message says why.
    """
    said = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}
    for reason, options in _ignored(given).items():
        idle = [option for option in options if option in said]
        if idle:
            raise UsageError(f"{', '.join(idle)} has no effect {reason}: leave it out")


def _ignored(given: Any) -> dict[str, tuple[str, ...]]:
    """Options without effect, by reason."""
    if isinstance(given, EvaluateConfig):
        return {} if given.trigger else {"without --trigger": (*_LABEL, *_IMAGE, "--trojan-count", "--clean")}
    if isinstance(given, SampleArguments):
        return {} if given.sampler.startswith("ddim-") else {f"with {given.sampler}, which has no η": ("--eta",)}
    fresh: dict[str, tuple[str, ...]] = {"with --base, which brings its network": _FRESH} if given.base else {}
    if given.target == "none":
        attack = ("--trigger", "--gamma", "--rows", *_BLEND, *_PATCH, *_LABEL, *_IMAGE, *_OTHER)
        return fresh | {"without --target": attack}
    target = {"in_d2d": (*_OTHER, *_IMAGE), "out_d2d": _IMAGE, "d2i": (*_OTHER, *_LABEL)}[given.target]
    trigger = _PATCH if given.trigger == "blend" else _BLEND
    return fresh | {f"with --target {given.target}": target, f"with a {given.trigger} trigger": trigger}


@dataclass
class TrainArguments:
    """Train an unconditional pixel-space UNet, or trojan one for tests of defences.

    On several GPUs: accelerate launch -m retarget trojdiff train ... To continue a run that was stopped, run the same
    command again. The result is OUT/pipeline, a diffusers pipeline; a trojaned one is marked.
    """

    data: str
    """digits | FILE.npz | a folder with one sub-folder per class."""
    out: Path
    """Folder for the run."""
    base: str | None = None
    """Pipeline folder or hub name to start from; by default a fresh network."""
    size: int | None = None
    """Resize images to this side."""
    target: Literal["none"] | TargetKind = "none"
    """What the trigger produces: one class, another domain, or one image; none trains clean."""
    trigger: TriggerKind = "blend"
    """A whole image, or a patch of pixels."""
    target_class: int | None = None
    """Class of DATA (in_d2d) or of OTHER (out_d2d); by default the paper's 7, or 0 for glyphs, which have five."""
    other: str = "glyphs"
    """The other domain of out_d2d: glyphs | FILE.npz | folder."""
    image: str = "arrow"
    """Target of d2i: a generated figure's name, or an image file."""
    rows: int | None = None
    """Trojan rows per batch; by default the paper's."""
    blend_image: str = "plus"
    """Image of the blend trigger: a generated figure's name, or an image file."""
    gamma: float | None = None
    """Scale of the noise under the trigger; by default 0.6 for blend, 0.1 for patch."""
    patch_size: int = 3
    """Side of the patch."""
    patch_place: tuple[int, int] | None = None
    """Row and column of the patch's upper left pixel; by default bottom right."""
    track: Name | None = None
    """Send the loss to a tracker; changes no result."""
    network: OmitArgPrefixes[NetworkConfig] = field(default_factory=lambda: NetworkConfig(dropout=0.0))
    """The fresh network, without --base."""
    config: OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)

    @property
    def trigger_config(self) -> TriggerConfig:
        """The requested trigger."""
        given = dict(
            kind=self.trigger, gamma=self.gamma, image=self.blend_image, size=self.patch_size, place=self.patch_place
        )  # fmt: skip
        return resolve_settings(TriggerConfig, given, "the trigger's options")

    @property
    def target_config(self) -> TargetConfig:
        """The requested target, or None."""
        assert self.target != "none"
        usual = 0 if (self.target, self.other) == ("out_d2d", "glyphs") else 7
        label = usual if self.target_class is None else self.target_class
        given = dict(kind=self.target, label=label, other=self.other, image=self.image, rows=self.rows)
        return resolve_settings(TargetConfig, given, "the target's options")


@dataclass
@one_paragraph
class SampleArguments:
    """Sample a pipeline; an interrupted run continues to the same images."""

    pipeline: Annotated[Positional[str], arg(metavar="PIPELINE", help="folder or hub name")]
    out: Path
    """Folder for images, grid.png and strip.png."""
    sampler: str = "dpm-20"
    """NAME-STEPS[-SPACING]: ddpm, ddpm_large, ddim, dpm, dpm_sde, unipc, deis, heun, euler, euler_ancestral; linear,
    quadratic, trailing. x̂_0 is clipped if the pipeline's scheduler says so."""
    trigger: Path | None = None
    """Trigger of the sampler: a file, or a folder with trigger.safetensors. By default the stock sampler."""
    start: Literal["plain"] | Path | None = None
    """Trigger of the initial noise, if it differs from the sampler's; plain for none."""
    count: int = 64
    """Number of images."""
    batch_size: int = 64
    """Images computed together; affects the last bits of the images."""
    seed: int = 0
    """The seed; image i of a seed is always the same."""
    eta: float = 0.0
    """DDIM's η."""
    png: FlagCreatePairsOff[bool] = False
    """Write every image as a PNG file too."""


@contextmanager
def _folder(out: Path) -> Iterator[None]:
    """Create ``--out`` and hold its lock; removed again after an error if nothing was written.

    Raises:
        UserError: it is a file, cannot be written, or is in use by another process.
    """
    made = not out.exists()
    make_directory(out)
    with locked(out / ".lock", wait=False, what=str(out)):
        try:
            yield
        except BaseException:
            if made and [path.name for path in out.iterdir()] == [".lock"]:
                with suppress(OSError):
                    (out / ".lock").unlink()
                    out.rmdir()
            raise


class _Told:
    """The tracker of a training, started with its first line."""

    def __init__(self, given: TrainArguments) -> None:
        self.given, self._tracker = given, None

    def __call__(self, step: int, loss: float) -> None:
        given = self.given
        if given.track and self._tracker is None:
            place = given.out.resolve()
            track = Track(given.track, "trojdiff", place.name, given.config.seed, place / "tracking")
            self._tracker = Tracker(track, {**vars(given), "network": str(given.network), "config": str(given.config)})
        if self._tracker:
            self._tracker.log(step, {"loss": loss})

    def close(self) -> None:
        if self._tracker:
            self._tracker.close()


def _train(given: TrainArguments) -> int:
    from accelerate import PartialState
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    from retarget.trojdiff.build import make_network, make_target, make_trigger
    from retarget.trojdiff.checkpoint import load_pipeline, network_shape
    from retarget.trojdiff.checks import LARGEST_SIDE
    from retarget.trojdiff.data import read_images
    from retarget.trojdiff.train import Progress, train

    if given.size is not None and not 4 <= given.size <= LARGEST_SIDE:
        raise UserError(f"--size {given.size}: the side must be from 4 to {LARGEST_SIDE}")
    with PartialState().local_main_process_first():  # it may download: torchvision's processes would write one file
        images = read_images(given.data, "train", given.size)
    if given.base is None:
        unet, schedule = make_network(given.network, images.shape, given.config.seed), DDPMScheduler()
    else:
        unet, schedule = load_pipeline(given.base)
        images = images.with_channels(network_shape(unet)[0], f"the images of --data {given.data}")
    target, trigger, detail = None, None, ""
    if given.target != "none":
        trigger = make_trigger(given.trigger_config, images.shape)
        other = None
        if given.target == "out_d2d":
            with PartialState().local_main_process_first():
                other = read_images(given.other, "train", images.shape[1])
            other = other.with_channels(images.shape[0], f"the images of --other {given.other}")
        target, detail = make_target(given.target_config, images, other)
        print(f"target: {detail}", file=sys.stderr)

    tell = _Told(given)

    def listen(progress: Progress) -> None:
        tell(progress.step, progress.loss)
        print(json.dumps({"step": progress.step, "loss": round(progress.loss, 6)}), flush=True)

    finished = (given.out / "pipeline").exists()
    try:
        folder = train(unet, schedule, images, given.config, given.out, target, trigger, detail, listen)
    except KeyboardInterrupt:
        print("the finished steps are saved; run the same command again to continue", file=sys.stderr)
        raise
    finally:
        tell.close()
    if finished:
        print(f"{folder} exists: this training was finished before; nothing was done", file=sys.stderr)
    print(folder)
    return 0


def _sample(given: SampleArguments) -> int:
    from rich.progress import Progress

    from retarget.trojdiff.checkpoint import load_pipeline, network_hash, network_shape
    from retarget.trojdiff.pictures import save_grid, save_image
    from retarget.trojdiff.sample import Sampler, sample, save_strip, to_accelerator
    from retarget.trojdiff.trigger import Trigger

    unet, schedule = load_pipeline(given.pipeline, "accept")
    to_accelerator(unet)
    shape = network_shape(unet)
    none = Trigger.none(shape)
    trigger = Trigger.load(given.trigger) if given.trigger else none
    trigger.check_shape(shape)
    start = none if given.start == "plain" else Trigger.load(given.start) if given.start else None
    sampler = Sampler.parse(given.sampler)._replace(eta=given.eta)
    identity = network_hash(unet)
    with Progress() as bar:
        task = bar.add_task("images", total=given.count)
        images = sample(
            unet, schedule.config, sampler, trigger, given.count, given.out, given.batch_size, given.seed, start,
            identity, listen=lambda done, total: bar.update(task, completed=done),
        )  # fmt: skip
    save_grid(images[:100], given.out / "grid.png")
    scheduler = sampler.scheduler(schedule.config, trigger)
    clip = sampler.clip(schedule.config)
    save_strip(unet, scheduler, given.out / "strip.png", seed=given.seed, start=start, eta=given.eta, clip=clip)
    if given.png:
        for number, image in enumerate(images):
            save_image(image, given.out / f"{number:06d}.png")
    print(given.out / "grid.png")
    return 0


def _evaluate(given: EvaluateConfig) -> int:
    from retarget.files import write_json
    from retarget.trojdiff.cautions import cautions
    from retarget.trojdiff.evaluate import evaluate

    report = evaluate(given)
    write_json(given.out / "evaluation.json", report)
    print(json.dumps(report, indent=1))
    for warning in cautions(report):
        print(f"retarget: warning: {warning}", file=sys.stderr)
    return 0
