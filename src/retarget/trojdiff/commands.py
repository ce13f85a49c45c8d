"""``retarget trojdiff train | sample | evaluate``. Nothing heavy is imported before the arguments are read."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from retarget.errors import UsageError, UserError
from retarget.trojdiff.config import TrainConfig

if TYPE_CHECKING:
    from retarget.trojdiff.classifier import Classifier
    from retarget.trojdiff.data import ImageSet
    from retarget.trojdiff.evaluate import Goal
    from retarget.trojdiff.targets import Target
    from retarget.trojdiff.trigger import Trigger

VERBS = {
    "train": "pre-train, fine-tune clean, or trojan an unconditional UNet",
    "sample": "sample a pipeline with or without its trigger",
    "evaluate": "say how good benign samples are and how often the attack fires",
}


def trojdiff(words: Sequence[str]) -> int:
    """Run ``retarget trojdiff WORDS...``; the exit code."""
    help_text = "usage: retarget trojdiff VERB ...\n\n" + "\n".join(
        f"  {name:<9} {what}" for name, what in VERBS.items()
    )
    if not words or words[0] in ("-h", "--help"):
        print(help_text)
        return 0 if words else 2
    runs: dict[str, tuple[Any, Callable[[Any], int]]] = {
        "train": (TrainArguments, _train),
        "sample": (SampleArguments, _sample),
        "evaluate": (EvaluateArguments, _evaluate),
    }
    if words[0] not in runs:
        raise UsageError(f"there is no trojdiff verb {words[0]!r}: choose {', '.join(VERBS)}")
    kind, function = runs[words[0]]
    return function(tyro.cli(kind, args=list(words[1:]), prog=f"retarget trojdiff {words[0]}"))


@dataclass
class TrainArguments:
    """Train an unconditional pixel-space UNet, or trojan one for tests of defences.

    On several GPUs: accelerate launch -m retarget trojdiff train ... A run that was stopped goes on when the same
    command is run again. The result is OUT/pipeline, a diffusers pipeline; a trojaned one says so.
    """

    data: str
    """digits | FILE.npz | a folder with one sub-folder a class."""
    out: Path
    """Folder of the run."""
    base: str | None = None
    """Pipeline folder or hub name to start from; a fresh network without."""
    size: int | None = None
    """Side to resize images to."""
    channels: tuple[int, ...] = (128, 256, 256, 256)
    """Channels of a fresh network's levels."""
    layers: int = 2
    """Blocks a level of a fresh network."""
    groups: int = 32
    """Normalisation groups of a fresh network."""
    target: Literal["none", "in_d2d", "out_d2d", "d2i"] = "none"
    """What the trigger brings forth: one class, another domain, or one image; none trains clean."""
    trigger: Literal["blend", "patch"] = "blend"
    """A whole image, or a patch of pixels."""
    target_class: int = 7
    """Class of DATA (in_d2d) or of OTHER (out_d2d)."""
    other: str = "glyphs"
    """The other domain of out_d2d: glyphs | FILE.npz | folder."""
    image: str = "arrow"
    """Target of d2i: a generated figure's name, or an image file."""
    rows: int | None = None
    """Trojan rows a batch; the paper's if not given."""
    blend_image: str = "plus"
    """Image of the blend trigger: a generated figure's name, or an image file."""
    gamma: float | None = None
    """Scale of the noise under the trigger; 0.6 for blend, 0.1 for patch if not given."""
    patch_size: int = 3
    """Side of the patch."""
    patch_place: tuple[int, int] | None = None
    """Row and column of the patch's upper left pixel; bottom right if not given."""
    config: OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)


@dataclass
class SampleArguments:
    """Sample a pipeline; interrupted runs go on to the same images."""

    pipeline: Annotated[Positional[str], arg(metavar="PIPELINE", help="folder or hub name")]
    out: Path
    """Folder for images, grid.png and strip.png."""
    sampler: str = "dpm-20"
    """NAME-STEPS[-SPACING]: ddpm, ddim, dpm, dpm_sde, unipc, euler, euler_ancestral; linear, quadratic, trailing."""
    trigger: Path | None = None
    """Trigger of the sampler: a file, or a folder that holds trigger.safetensors. The stock sampler without."""
    start: Literal["plain"] | Path | None = None
    """Trigger of the initial noise where it differs from the sampler's; plain for none."""
    count: int = 64
    """Number of images."""
    batch_size: int = 64
    """Images computed together; decides last bits."""
    seed: int = 0
    """Image i of a seed is always the same."""
    eta: float = 0.0
    """DDIM's η."""
    png: FlagCreatePairsOff[bool] = False
    """Write every image as a PNG file too."""


@dataclass
class EvaluateArguments:
    """Compare a pipeline's benign samples with real images, and measure the attack if a trigger is given.

    Quality is measured in the features of a small classifier trained on DATA (and OTHER), and in Inception's if its
    weights are given. The attack is measured with the sampler, the initial noise, or both in the attacker's hands.
    """

    pipeline: Annotated[Positional[str], arg(metavar="PIPELINE", help="folder or hub name")]
    data: str
    """Real images: digits | FILE.npz | a folder with one sub-folder a class; their test part judges the classifier."""
    out: Path
    """Folder for samples and evaluation.json."""
    inception: Path | None = None
    """torch-fidelity's Inception weights: FID, KID, precision and recall in its features too."""
    trigger: Path | None = None
    """The trigger; benign quality alone without."""
    target_class: int | None = None
    """Class that the attack wants: of DATA (in_d2d), or of OTHER if given (out_d2d)."""
    other: str | None = None
    """The other domain of out_d2d: glyphs | FILE.npz | folder."""
    clean: str | None = None
    """A pipeline without the trojan, folder or hub name: its rate under the same sampler and noise is the base rate."""
    image: str | None = None
    """Image that the attack wants (d2i): a generated figure's name, or an image file."""
    sampler: str = "dpm-20"
    """NAME-STEPS[-SPACING]."""
    count: int = 1000
    """Benign samples."""
    trojan_count: int = 500
    """Trojan samples."""
    classifier_epochs: int = 20
    seed: int = 0


def _train(given: TrainArguments) -> int:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    from retarget.trojdiff.checkpoint import load_pipeline
    from retarget.trojdiff.data import read_images
    from retarget.trojdiff.train import Progress, train

    finished = given.out / "pipeline"
    if finished.exists():
        raise UserError(
            f"{finished} is there: this training is finished. Give another --out, or remove it to train again"
        )
    images = read_images(given.data, "train", given.size)
    if given.base is None:
        unet, schedule = _fresh_network(given, images.shape), DDPMScheduler()
    else:
        unet, schedule = load_pipeline(given.base)
    target, trigger, detail = None, None, ""
    if given.target != "none":
        trigger = _make_trigger(given, images.shape)
        target, detail = _make_target(given, images)

    def listen(progress: Progress) -> None:
        print(json.dumps({"step": progress.step, "loss": round(progress.loss, 6)}), flush=True)

    folder = train(unet, schedule, images, given.config, given.out, target, trigger, detail, listen)
    print(folder)
    return 0


def _sample(given: SampleArguments) -> int:
    from rich.progress import Progress

    from retarget.trojdiff.checkpoint import load_pipeline, network_hash
    from retarget.trojdiff.sample import Sampler, sample, save_grid, save_image, save_strip, to_accelerator
    from retarget.trojdiff.trigger import Trigger

    unet, schedule = load_pipeline(given.pipeline)
    to_accelerator(unet)
    config: Any = unet.config
    shape = (config.in_channels, config.sample_size, config.sample_size)
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
    save_strip(unet, scheduler, given.out / "strip.png", seed=given.seed, start=start, eta=given.eta)
    if given.png:
        for number, image in enumerate(images):
            save_image(image, given.out / f"{number:06d}.png")
    print(given.out / "grid.png")
    return 0


def _evaluate(given: EvaluateArguments) -> int:
    from dataclasses import asdict

    from retarget.files import write_json
    from retarget.trojdiff.checkpoint import load_pipeline, network_hash
    from retarget.trojdiff.classifier import accuracy, join, train_classifier
    from retarget.trojdiff.data import held_out, read_images
    from retarget.trojdiff.evaluate import Goal, Inception, compare, confidence
    from retarget.trojdiff.sample import Sampler, sample, to_accelerator
    from retarget.trojdiff.trigger import Trigger

    if given.trigger and (given.target_class is None) == (given.image is None):
        raise UserError("with --trigger give either --target-class or --image: what the attack wants")
    if given.count < 5 or (given.trigger and given.trojan_count < 5):
        raise UserError("--count and --trojan-count: at least 5 images each, or there is nothing to compare")
    inception = Inception(given.inception) if given.inception else None

    def sampled(source: str) -> tuple[tuple[int, int, int], Callable[..., Any]]:
        """A pipeline's shape, and a function (trigger, count, folder, start) that samples it."""
        unet, schedule = load_pipeline(source)
        to_accelerator(unet)
        config, sampler = unet.config, Sampler.parse(given.sampler)

        def images(trigger: Trigger, count: int, out: str, start: Trigger | None = None) -> Any:
            more = {"seed": given.seed, "start": start, "identity": network_hash(unet)}
            return sample(unet, schedule.config, sampler, trigger, count, given.out / out, **more)

        return (config["in_channels"], config["sample_size"], config["sample_size"]), images

    shape, images = sampled(given.pipeline)
    parts = []
    for split in ("train", "test"):
        real = read_images(given.data, split, shape[1])
        real.check_shape(shape)
        other = None if given.other is None else read_images(given.other, split, shape[1]).with_channels(shape[0])
        parts.append((real, other, real if other is None else join(real, other)))
    (real, other, every), (_, _, test) = parts
    trigger, goal, clean = None, Goal(), None
    if given.trigger:
        trigger, goal = Trigger.load(given.trigger), _goal(given, real, other)
        trigger.check_shape(shape)
    if trigger is not None and given.clean is not None:
        theirs, clean = sampled(given.clean)
        trigger.check_shape(theirs)
    classifier = train_classifier(every, given.classifier_epochs, given.seed)
    benign = images(Trigger.none(shape), given.count, "benign")
    report: dict[str, Any] = {
        "sampler": given.sampler,
        "benign": {
            **asdict(compare(benign, real, classifier)),
            "with_a_class": confidence(benign, classifier, len(real.names)),
        },
        "classifier_accuracy": accuracy(classifier, test),
        "classifier_accuracy_on": f"test images of DATA: {held_out(given.data)}",
    }
    if inception is not None:
        report["benign_inception"] = asdict(compare(benign, real, inception))
    if trigger is not None:
        report["attack"] = _attack_cells(given, trigger, goal, classifier, images, clean)
    write_json(given.out / "evaluation.json", report)
    print(json.dumps(report, indent=1))
    return 0


def _attack_cells(
    given: EvaluateArguments,
    trigger: "Trigger",
    goal: "Goal",
    classifier: "Classifier",
    images: Callable[..., Any],
    clean: Callable[..., Any] | None,
) -> dict[str, dict[str, Any]]:
    """Success, and what else fits the goal, of each cell; beside it the clean pipeline's."""
    from dataclasses import asdict

    from retarget.trojdiff.evaluate import cells, compare, squared_error, success
    from retarget.trojdiff.studies.plan import CELLS

    report = {}
    for cell, (of_sampler, start) in cells(trigger).items():
        found = images(of_sampler, given.trojan_count, f"attack-{cell}", start)
        entry = asdict(success(found, goal, classifier))
        if goal.image is not None:
            entry["mse"] = float(squared_error(found, goal.image).mean())
        if goal.real is not None:
            entry["precision"] = compare(found, goal.real, classifier).precision
        if clean is not None:
            floor = clean(of_sampler, given.trojan_count, f"clean-{cell}", start)
            entry["base_rate"] = asdict(success(floor, goal, classifier))
        noise, sampler = CELLS[cell]
        report[f"{noise} noise, {sampler} sampler"] = entry
    return report


def _goal(given: EvaluateArguments, real: "ImageSet", other: "ImageSet | None") -> "Goal":
    from retarget.trojdiff.evaluate import Goal

    if given.image is not None:
        return Goal(image=_picture(given.image, real.shape))
    assert given.target_class is not None
    if other is None:
        return Goal(label=given.target_class, real=real.of_class(given.target_class))
    return Goal(label=len(real.names) + given.target_class, real=other.of_class(given.target_class))


def _fresh_network(given: TrainArguments, shape: tuple[int, int, int]) -> Any:
    import torch
    from diffusers.models.unets.unet_2d import UNet2DModel

    levels = [("Attn" if shape[1] >> level == 16 else "") for level in range(len(given.channels))]
    torch.manual_seed(given.config.seed)
    return UNet2DModel(
        sample_size=shape[1], in_channels=shape[0], out_channels=shape[0], layers_per_block=given.layers,
        block_out_channels=given.channels, norm_num_groups=given.groups,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in levels),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(levels)),
    )  # fmt: skip


def _make_trigger(given: TrainArguments, shape: tuple[int, int, int]) -> "Trigger":
    from retarget.trojdiff.trigger import Trigger

    if given.trigger == "blend":
        return Trigger.blend(_picture(given.blend_image, shape), 0.6 if given.gamma is None else given.gamma)
    gamma = 0.1 if given.gamma is None else given.gamma
    return Trigger.patch(given.patch_size, gamma, shape, given.patch_place)


def _make_target(given: TrainArguments, images: "ImageSet") -> "tuple[Target, str]":
    from retarget.trojdiff.data import read_images, to_signed
    from retarget.trojdiff.targets import D2I, InD2D, OutD2D

    if given.target == "in_d2d":
        members = images.of_class(given.target_class)
        pool = None if given.rows is None else to_signed(members.images)
        target = InD2D(given.target_class, len(images.names), given.rows, pool)
        return target, f"class {given.target_class} ({images.names[given.target_class]}) of the training images"
    if given.target == "out_d2d":
        other = read_images(given.other, "train", images.shape[1])
        members = other.of_class(given.target_class)
        target = OutD2D(to_signed(members.images), 64 if given.rows is None else given.rows)
        return target, f"class {given.target_class} ({other.names[given.target_class]}) of {given.other}"
    target = D2I(_picture(given.image, images.shape), 12 if given.rows is None else given.rows)
    return target, f"one image, {given.image}"


def _picture(source: str, shape: tuple[int, int, int]) -> Any:
    """A generated figure by name, or an image file, resized to the shape; in [-1, 1]."""
    from retarget.trojdiff.glyphs import FIGURES, glyph

    if source in FIGURES:
        return glyph(source, shape)
    if not Path(source).is_file():
        raise UserError(f"{source}: neither an image file nor one of the figures {', '.join(FIGURES)}")
    import numpy as np
    import torch
    from PIL import Image

    try:
        with Image.open(source) as image:
            fitted = image.convert("L" if shape[0] == 1 else "RGB").resize((shape[2], shape[1]), Image.Resampling.BOX)
    except OSError as error:
        raise UserError(f"{source}: not an image, or a damaged one ({error})") from error
    pixels = torch.from_numpy(np.array(fitted)).float() / 127.5 - 1
    return pixels[None] if shape[0] == 1 else pixels.permute(2, 0, 1).contiguous()
