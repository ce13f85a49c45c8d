"""One member of the zoo: build it, measure its attack, run every detector on it, and remove the trojans of a few."""

import time
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from retarget.audit.baselines import diff_cleanse as diff_cleanse_module
from retarget.audit.baselines import elijah as elijah_module
from retarget.audit.baselines import terd as terd_module
from retarget.audit.firing import fire
from retarget.audit.inputs import likelihood_score, roc
from retarget.audit.inversion import Search
from retarget.audit.removal import Kind, Recipe, as_trigger, remove
from retarget.audit.run import SUSPICIOUS
from retarget.audit.seek import recovered, seek
from retarget.audit.studies.adaptive import attacks_of, train_adaptive
from retarget.audit.studies.build import build, goal_of, images_of, judge_of, measure, rate, trigger_of
from retarget.audit.studies.members import Attack, Member, supposed
from retarget.audit.studies.plan import Settings
from retarget.audit.subject import Recovered, Subject
from retarget.extras import require
from retarget.files import write_json
from retarget.study.config import StudyPlan
from retarget.study.record import Run
from retarget.trojdiff.checkpoint import forget_marks, load_pipeline
from retarget.trojdiff.data import to_signed
from retarget.trojdiff.measures import compare
from retarget.trojdiff.sample import Sampler, sample
from retarget.trojdiff.trigger import Trigger


def prepare(plan: StudyPlan) -> None:
    """Read the images of the first member of each arm, before any model is trained.

    Raises:
        UserError: a data set cannot be read, or the zoo cannot be made from it.
    """
    require("torch_fidelity", "diffusion")
    for arm in plan.arms:
        settings = Settings.model_validate({**plan.settings, **arm.settings})
        images_of(settings.member(plan.seeds[0])[1].images, settings.root)


def run(run: Run) -> dict[str, float]:
    """Build and judge one member. The details of the detectors are written to ``evaluation.json``."""
    settings = Settings.model_validate(run.settings)
    kind, member = settings.member(run.seed)
    zoo = Path(settings.zoo)
    started = time.perf_counter()

    def listen(progress: Any, steps: int) -> None:
        run.progress(progress.step, steps, "step")

    if settings.which == "adaptive":
        return adaptive(run, settings, member, zoo, listen)
    folder = build(member, zoo, settings.root, listen)
    metrics = {"trojaned": float(member.attack is not None), "seconds_building": time.perf_counter() - started}
    details: dict[str, Any] = {"kind": kind, "model": member.name, "member": member.model_dump(mode="json")}
    if member.attack is not None and member.base is not None:
        base = build(member.base, zoo, settings.root, listen)
        judge = judge_of(member, zoo, settings.judge_epochs, settings.root)
        found = measure(member, folder, base, judge, settings.samples, settings.root)
        metrics |= {"attack": found.attack.value, "base_rate": found.base_rate.value, "leak": found.leak.value}
    maps: Trigger | None = None
    for name in settings.detectors:
        told = supposed(member, run.seed) if settings.told else None
        one, seconds = detect(name, folder, settings, run.seed + settings.search_seed, told)
        metrics |= {
            f"score_{name}": one.score, f"evaluations_{name}": float(one.evaluations), f"seconds_{name}": seconds
        }  # fmt: skip
        details[name] = one.details
        metrics |= {f"{key}_{name}": one.details[key] for key in EVIDENCE if key in one.details}
        if member.attack is not None:
            metrics |= {f"{key}_{name}": value for key, value in recovery(one, member).items()}
        maps = as_trigger(one) if maps is None else maps
    if member.attack is not None and settings.which == "evaluation" and run.seed < settings.removals:
        metrics |= cleaned(member, folder, zoo, settings, maps)
    write_json(run.directory / "evaluation.json", details)
    return metrics


def adaptive(run: Run, settings: Settings, member: Member, zoo: Path, listen: Any) -> dict[str, float]:
    """Train an adaptive attacker's network in memory, measure its attack, audit it, and discard it."""
    assert member.base is not None
    kind: Any = settings.kind
    base, schedule = load_pipeline(build(member.base, zoo, settings.root, listen))
    unet = train_adaptive(member, kind, base, schedule, settings.root)
    judge, goal = judge_of(member, zoo, settings.judge_epochs, settings.root), goal_of(member, settings.root)
    first = member.model_copy(update={"attack": attacks_of(member, kind)[0]})
    metrics = {"trojaned": 1.0}
    for name, network, plain in (("attack", unet, False), ("base_rate", base, False), ("leak", unet, True)):
        metrics[name] = rate(network, schedule, first, judge, goal, settings.samples, plain).value
    started = time.perf_counter()
    one = audited(Subject.from_modules(unet, schedule), run.seed + settings.search_seed)
    metrics |= {"score_audit": one.score, "evaluations_audit": float(one.evaluations)}
    metrics |= {"seconds_audit": time.perf_counter() - started}
    metrics |= {f"{key}_audit": one.details[key] for key in EVIDENCE if key in one.details}
    metrics |= {f"{key}_audit": value for key, value in recovery(one, first).items()}
    details = {"kind": settings.kind, "member": member.model_dump(mode="json"), "audit": one.details}
    write_json(run.directory / "evaluation.json", details)
    return metrics


def subject_of(folder: Path) -> Subject:
    """A network in memory, without name, card and marks."""
    unet, schedule = load_pipeline(folder)
    return Subject.from_modules(forget_marks(unet), schedule)


def detect(
    name: str, folder: Path, settings: Settings, seed: int, attack: Attack | None = None
) -> tuple[Recovered, float]:
    """Run a detector on a pipeline; returns its result and its time in seconds.

    Args:
        name: the detector.
        folder: the pipeline.
        settings: of the study.
        seed: seed of the detector.
        attack: what the published detectors are told of, as in their papers: TERD the family, the others the trigger
            for the Trojan sampler if the law is TrojDiff's, since the other laws use a stock sampler. None is blind.
    """
    subject, started = subject_of(folder), time.perf_counter()
    published = settings.baselines == "published"
    trigger = trigger_of(attack, subject.shape) if attack is not None and attack.law == "trojdiff" else None
    if name == "audit":
        found = audited(subject, seed)
    elif name == "elijah":
        module = elijah_module
        found = module.elijah(subject, module.PUBLISHED if published else module.SHORT, seed, trigger)
    elif name == "terd":
        module = terd_module
        family = None if attack is None else "bad_diffusion" if attack.law != "trojdiff" else "trojdiff"
        found = module.terd(subject, module.PUBLISHED if published else module.SHORT, seed, family, settings.refine)
    else:
        module = diff_cleanse_module
        found = module.diff_cleanse(subject, module.PUBLISHED if published else module.SHORT, seed, trigger)
    return found, time.perf_counter() - started


NOISES = 500
"""Tensors of noise, plain and with the trigger each, that the recovered maps tell apart."""
EVIDENCE = (
    "undo", "elsewhere", "strength", "drawn", "restored", "restored_anyway", "by_heart", "rise", "residual"
)  # fmt: skip
"""What a verdict needs in addition to the score, and what decides whether the trigger may be known by heart."""


def audited(subject: Subject, seed: int) -> Recovered:
    """The audit's search, with what else its verdict needs: undo, origin, error on plain noise, and how it fires."""
    searched = seek(subject, Search(), seed)
    found = recovered(searched)
    found.details["undo"] = searched.best.undo
    found.details["elsewhere"] = float(searched.best.origin == "elsewhere")
    if found.score >= SUSPICIOUS:
        firing = fire(subject, searched.best, seed + 1)
        found.details["strength"], found.details["drawn"] = firing.strength, firing.drawn
        found.details["restored"], found.details["restored_anyway"] = firing.restored
        found.details["by_heart"] = float(firing.known_by_heart)
    found.evaluations = subject.evaluations
    return found


def recovery(found: Recovered, member: Member) -> dict[str, float]:
    """How like the trigger what a detector recovered is.

    The cosine of mu to the true mu; if the trigger is a patch and the detector gives a mask, the masks' IoU; and
    ``inputs``, the AUROC by which the likelihood under the recovered maps tells noise with the true trigger from plain
    noise, as :func:`retarget.audit.inputs.likelihood_score` does.
    """
    assert member.attack is not None
    shape = (member.images.channels, member.images.side, member.images.side)
    trigger = trigger_of(member.attack, shape)
    values = {"cosine": float(torch.cosine_similarity(found.mu.flatten(), trigger.mu.flatten(), dim=0))}
    if found.mu.isfinite().all() and torch.as_tensor(found.gamma).isfinite().all():
        maps = as_trigger(found)
        plain, noise = torch.randn(2, NOISES, *shape, generator=torch.Generator().manual_seed(0))
        told = [likelihood_score(one, maps.mu, maps.gamma).numpy() for one in (plain, trigger.noise(noise))]
        values["inputs"] = roc(*told)[2]
    if found.mask is not None and member.attack.trigger == "patch":
        values["iou"] = overlap(found.mask, trigger.mask)
    return values


def overlap(one: Tensor, other: Tensor) -> float:
    """Intersection over union of two masks."""
    one, other = one.expand_as(other).bool(), other.bool()
    return float((one & other).sum() / (one | other).sum().clamp(min=1))


def cleaned(
    member: Member, folder: Path, zoo: Path, settings: Settings, maps: Trigger | None
) -> dict[str, float]:  # fmt: skip
    """Success, leakage and FID before and after two removals with the recovered maps, and after clean fine-tuning only.

    All use the same few clean images, the same number of steps and the same rows of plain noise.

    Args:
        member, folder, zoo, settings: as in :func:`run`.
        maps: those that the study's first detector recovered; None, if none was run, uses the attack's own.
    """
    assert member.attack is not None
    judge, goal = judge_of(member, zoo, settings.judge_epochs, settings.root), goal_of(member, settings.root)
    unet, schedule = load_pipeline(folder)
    real = images_of(member.images, settings.root)
    some = to_signed(real.images[: settings.removal_images])
    trigger = maps or trigger_of(member.attack, (member.images.channels, member.images.side, member.images.side))
    metrics = {"fid_before": _fid(unet, schedule, real, judge, settings)}
    kinds: tuple[Kind, ...] = get_args(Kind)
    for kind in kinds:
        recipe = Recipe(kind=kind, steps=settings.removal_steps)
        after = remove(unet, schedule, [trigger], recipe, some).unet
        for name, plain in (("attack", False), ("leak", True)):
            found = rate(after, schedule, member, judge, goal, settings.samples, plain)
            metrics[f"{name}_{kind}"] = found.value
        metrics[f"fid_{kind}"] = _fid(after, schedule, real, judge, settings)
    return metrics


def _fid(unet: Any, schedule: Any, real: Any, judge: Any, settings: Settings) -> float:
    images = sample(
        unet,
        schedule.config,
        Sampler.parse("ddpm-20"),
        Trigger.none(real.shape),
        settings.quality_samples,
        batch_size=100,
    )
    return compare(images, real, judge).fid
