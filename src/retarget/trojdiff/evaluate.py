"""Evaluate a pipeline: measures of benign samples and of attack cells, for the verb and for the study."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from retarget.errors import UserError
from retarget.metrics.generative import Fidelity
from retarget.trojdiff.build import make_goal
from retarget.trojdiff.checkpoint import inherited, load_pipeline, network_hash, network_shape
from retarget.trojdiff.classifier import Classifier, accuracy, class_accuracies, join, train_classifier
from retarget.trojdiff.config import CELLS, EvaluateConfig
from retarget.trojdiff.data import ImageSet, held_out, own_size, read_images
from retarget.trojdiff.marks import Trojan, target_options
from retarget.trojdiff.measures import (
    Goal,
    Inception,
    Rate,
    Samples,
    cells,
    compare,
    confidence,
    ladder,
    squared_error,
    success,
)
from retarget.trojdiff.pictures import save_grid
from retarget.trojdiff.sample import Sampler, generators, sample, to_accelerator
from retarget.trojdiff.trigger import Trigger

FEWEST = 5
"""The fewest images for a comparison."""

PICTURES = 100
"""Number of images in a grid."""


@dataclass(frozen=True)
class Benign:
    """Quality in the classifier's features, the share of samples with a class in %, quality in Inception's features."""

    quality: Fidelity
    with_a_class: float
    inception: Fidelity | None

    def row(self) -> dict[str, Any]:
        """Everything in the classifier's features, for a report."""
        return {**asdict(self.quality), "with_a_class": self.with_a_class}


@dataclass(frozen=True)
class Attack:
    """Success rate; for D2I the mean squared error; for a class the precision against its real images, in %."""

    rate: Rate
    mse: float | None
    precision: float | None


@dataclass(frozen=True)
class Judge:
    """Measures samples.

    Attributes:
        real: the training images.
        classifier: knows the classes of ``real``, followed by those of another domain, if there is one.
        inception: torch-fidelity's network, if its weights are given.
    """

    real: ImageSet
    classifier: Classifier
    inception: Inception | None = None

    def benign(self, samples: Samples) -> Benign:
        """The quality of benign samples."""
        return Benign(
            compare(samples, self.real, self.classifier),
            confidence(samples, self.classifier, len(self.real.names)),
            None if self.inception is None else compare(samples, self.real, self.inception),
        )

    def ladder(self, held: ImageSet, count: int, seed: int, gate: float | None = None) -> dict[str, Benign]:
        """The same measures for images of known quality: real test images, noisy ones, and noise."""
        return {name: self.benign(images) for name, images in ladder(held, count, seed, gate).items()}

    def attack(self, samples: Samples, goal: Goal, precise_from: int = FEWEST) -> Attack:
        """How often samples hit the goal; no precision for fewer than ``precise_from`` of them."""
        precise = goal.real is not None and len(samples) >= precise_from and len(goal.real) >= FEWEST
        return Attack(
            success(samples, goal, self.classifier),
            None if goal.image is None else float(squared_error(samples, goal.image).mean()),
            compare(samples, goal.real, self.classifier).precision if precise and goal.real else None,
        )


def evaluate(asked: EvaluateConfig) -> dict[str, Any]:
    """Sample a pipeline in all cells and measure the samples; resumable, since finished batches are in ``out``.

    Returns:
        The content of ``evaluation.json``.

    Raises:
        UserError: there are too few samples, or pipeline, images, class or trigger do not fit each other.
    """
    target = asked.target
    if asked.count < FEWEST or (target and asked.trojan_count < FEWEST):
        few = f"{asked.count}" + f" and {asked.trojan_count}" * (target is not None)
        raise UserError(f"--count and --trojan-count must be at least {FEWEST} images each, not {few}")
    if asked.classifier_epochs < 1:
        raise UserError(f"--classifier-epochs is {asked.classifier_epochs}; without training every class is a guess")
    inception = Inception(asked.inception) if asked.inception else None
    images = _sampled(asked, asked.pipeline)
    shape = images.shape
    (real, other, every), (held, _, test) = (_domains(asked, split, shape) for split in ("train", "test"))
    if min(len(real), len(held)) < FEWEST:
        raise UserError(
            f"--data {asked.data}: {len(real)} training and {len(held)} test images ({held_out(asked.data)}); at least "
            f"{FEWEST} of each are needed"
        )
    trigger, goal, clean = None, None, None
    marked: dict[str, Any] = {}
    if asked.trigger and target:
        trigger, goal = Trigger.load(asked.trigger), make_goal(target, real, other)
        trigger.check_shape(shape)
        marked = _marked(images.marks, trigger, target.kind, asked.pipeline)
        if asked.clean is not None:
            clean = _sampled(asked, asked.clean)
            _check_clean(clean, shape, asked)
    judge = Judge(real, train_classifier(every, asked.classifier_epochs, asked.seed), inception)
    samples = images.draw(Trigger.none(shape), asked.count, "benign")
    save_grid(samples[:PICTURES], asked.out / "benign.png")
    found, rungs = judge.benign(samples), judge.ladder(held, asked.count, asked.seed)
    report: dict[str, Any] = {
        "asked": asked.model_dump(mode="json"),
        "network": images.identity,
        "sampler": asked.sampler,
        "benign": {**found.row(), "count": asked.count},
        "benign_ladder": {name: {**rung.row(), "count": min(asked.count, len(held))} for name, rung in rungs.items()},
        "classifier_accuracy": accuracy(judge.classifier, test),
        "classifier_accuracy_by_class": class_accuracies(judge.classifier, test),
        "classifier_accuracy_on": f"test images of DATA: {held_out(asked.data)}"
        + (f"; of OTHER: {held_out(asked.other)}" if asked.other else ""),
        **_resized(asked, shape[1]),
    }
    if found.inception is not None:
        report["benign_inception"] = asdict(found.inception)
        report["benign_inception_ladder"] = {n: asdict(rung.inception) for n, rung in rungs.items() if rung.inception}
    if trigger is not None and goal is not None:
        report |= {"trigger": trigger.hash, **marked}
        if goal.label is not None:
            known = {row["number"]: row for row in report["classifier_accuracy_by_class"]}
            unknown = {"number": goal.label, "class": every.names[goal.label], "accuracy": None, "count": 0}
            report["target"] = known.get(goal.label, unknown)
        report["attack"] = {
            f"{CELLS[cell][0]} noise, {CELLS[cell][1]} sampler": _cell(asked, judge, goal, images, clean, cell, *pair)
            for cell, pair in cells(trigger).items()
        }
    return report


@dataclass(frozen=True)
class _Source:
    """A pipeline that is sampled: its images' shape, its marks, its network's hash, and what draws images."""

    shape: tuple[int, int, int]
    marks: Trojan | None
    identity: str
    draw: Callable[..., Samples]


def _sampled(asked: EvaluateConfig, source: str) -> _Source:
    unet, schedule = load_pipeline(source, "refuse" if source == asked.clean else "accept")
    sampler, identity = Sampler.parse(asked.sampler), network_hash(to_accelerator(unet))
    sampler.scheduler(schedule.config, Trigger.none(network_shape(unet)))  # refuses before a classifier is trained
    generators((), asked.seed)

    def images(trigger: Trigger, count: int, folder: str, start: Trigger | None = None) -> Samples:
        return sample(
            unet, schedule.config, sampler, trigger, count, asked.out / folder, seed=asked.seed, start=start,
            identity=identity,
        )  # fmt: skip

    return _Source(network_shape(unet), inherited(unet), identity, images)


def _resized(asked: EvaluateConfig, side: int) -> dict[str, Any]:
    """What the real images were before they were resized to the network's side, if they were."""
    sources = {"data": asked.data, **({"other": asked.other} if asked.other else {})}
    sizes = {name: own_size(source) for name, source in sources.items()}
    return {f"{name}_resized_from": size for name, size in sizes.items() if size not in (None, f"{side}×{side}")}


def _marked(marks: Trojan | None, trigger: Trigger, kind: str, pipeline: str) -> dict[str, Any]:
    """What the weights' marks say of this trigger, for the report; empty without marks.

    Raises:
        UserError: the weights are marked with this very trigger for another kind of target.
    """
    if marks is None:
        return {}
    known = {one.trigger.hash: one for one in (marks, *marks.earlier)}.get(trigger.hash)
    if known is None:
        return {"marked_with_this_trigger": False}
    target = known.target
    if target in ("in_d2d", "out_d2d", "d2i") and target != kind:
        raise UserError(
            f"{pipeline} is marked as trojaned by this trigger for {target}, and the options ask about {kind}: give "
            f"{target_options(target)}"
        )
    return {"marked_with_this_trigger": True, **({"marked_class": known.class_name} if known.class_name else {})}


def _check_clean(clean: _Source, shape: tuple[int, int, int], asked: EvaluateConfig) -> None:
    """Raise UserError unless the clean pipeline makes such images and is not marked as trojaned."""
    if clean.shape != shape:
        raise UserError(
            f"--clean {asked.clean} makes images {list(clean.shape)} [channels, height, width], and {asked.pipeline} "
            f"{list(shape)}"
        )
    if clean.marks and not clean.marks.removed:
        raise UserError(
            f"--clean {asked.clean} is marked as trojaned: its rate is no base rate; give the pipeline before the "
            "attack"
        )


def _domains(
    asked: EvaluateConfig, split: str, shape: tuple[int, int, int]
) -> tuple[ImageSet, ImageSet | None, ImageSet]:
    """The real images, the other domain's, and both together."""
    real = read_images(asked.data, split, shape[1]).with_channels(shape[0], f"the images of --data {asked.data}")
    real.check_shape(shape)
    if asked.other is None:
        return real, None, real
    other = read_images(asked.other, split, shape[1]).with_channels(shape[0], f"the images of --other {asked.other}")
    return real, other, join(real, other)


def _cell(
    asked: EvaluateConfig,
    judge: Judge,
    goal: Goal,
    images: _Source,
    clean: _Source | None,
    cell: str,
    of_sampler: Trigger,
    start: Trigger,
) -> dict[str, Any]:
    """Success and the goal's other measures in one cell, with the clean pipeline's rate."""
    # Plain noise in the stock sampler gives the benign samples.
    folder, count = ("benign", asked.count) if cell == "leak" else (f"attack-{cell}", asked.trojan_count)
    samples = images.draw(of_sampler, count, folder, start)
    save_grid(samples[:PICTURES], asked.out / f"{folder}.png")
    found = judge.attack(samples, goal)
    entry: dict[str, Any] = asdict(found.rate)
    entry |= {name: value for name in ("mse", "precision") if (value := getattr(found, name)) is not None}
    if clean is not None:
        entry["base_rate"] = asdict(
            success(clean.draw(of_sampler, count, f"clean-{cell}", start), goal, judge.classifier)
        )
    return entry
