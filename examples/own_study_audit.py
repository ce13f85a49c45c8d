"""A study of the audit on checkpoints whose truth you know: which of them does it call trojaned?

    retarget study own_study_audit.py --set zoo=DIR clean=pretrained,tuned --seeds 10 11 12

``detectors=elijah,terd,diff_cleanse`` runs published detectors on them, blind and in their short settings. With
``told=TRIGGER.safetensors`` the samplers of Elijah and Diff-Cleanse get this trigger for every checkpoint, clean or
not, as their authors do for TrojDiff; run such a study on the arms with that trigger, and on clean ones.

DIR has one folder per checkpoint, ARM-SEED (such as d2i_patch-10): a diffusers pipeline, or a folder with one in
``pipeline``. Arms that ``clean`` does not name are trojaned; if the true trigger is in the pipeline, as
``retarget trojdiff train`` writes it, the recovered trigger is compared with it. The audit itself reads none of this.
"""

from pathlib import Path
from typing import Any

import torch

from retarget.audit import Subject, audit
from retarget.audit.baselines import diff_cleanse, elijah, terd
from retarget.audit.studies.rates import auroc, auroc_interval
from retarget.errors import UserError
from retarget.study import Arm, Metric, Run, StudyPlan
from retarget.study.config import choose_arms
from retarget.study.figures import Analysis
from retarget.study.record import Results
from retarget.study.statistics import wilson_interval
from retarget.trojdiff.trigger import Trigger

BLIND = {"elijah": elijah.elijah, "terd": terd.terd, "diff_cleanse": diff_cleanse.diff_cleanse}
TOLD = {"elijah", "diff_cleanse"}
LABELS = {"audit": "retarget audit", "elijah": "Elijah", "terd": "TERD", "diff_cleanse": "Diff-Cleanse"}
METRICS = (
    Metric(name="called", label="called trojaned", unit="%", decimals=0, optional=True),
    Metric(name="undecided", label="undecided", unit="%", decimals=0, optional=True),
    Metric(name="score_audit", label="score, retarget audit", decimals=3, optional=True),
    Metric(name="p_value", label="p-value among clean models", decimals=3, optional=True),
    Metric(name="undo", label="undo, or change elsewhere, of the best candidate", decimals=3, optional=True),
    Metric(name="cosine", label="cosine of mu", decimals=3, better="higher", optional=True),
    Metric(name="iou", label="IoU of the box with the mask", decimals=3, better="higher", optional=True),
    *(Metric(name=f"score_{name}", label=f"score, {LABELS[name]}", decimals=3, optional=True) for name in BLIND),
    *(Metric(name=f"evaluations_{name}", label=f"evaluations, {label}", decimals=0, better="lower", optional=True)
      for name, label in LABELS.items()),
)  # fmt: skip


def plan(preset: str, config: dict[str, Any] | None, seeds: list[int] | None, arms: list[str] | None) -> StudyPlan:
    settings = {"zoo": "", "clean": "", "detectors": "audit", "told": "", **(config or {})}
    if unknown := settings.keys() - {"zoo", "clean", "detectors", "told"}:
        raise UserError(f"there is no setting {', '.join(sorted(unknown))}: choose zoo, clean, detectors and told")
    if settings["told"] and not set(settings["detectors"].split(",")) <= TOLD:
        raise UserError("told is for detectors=elijah,diff_cleanse: TERD and the audit take no trigger")
    if not set(settings["detectors"].split(",")) <= LABELS.keys():
        raise UserError(f"detectors = {settings['detectors']!r}: choose from {', '.join(LABELS)}")
    found = checkpoints(settings["zoo"])
    clean = [one.strip() for one in settings["clean"].split(",") if one.strip()]
    names = sorted({arm for arm, _ in found}, key=lambda arm: (arm not in clean, arm))
    if not settings["zoo"] or not names:
        raise UserError("give --set zoo=DIR, a folder of checkpoints ARM-SEED, such as DIR/d2i_patch-10")
    if missing := set(clean) - set(names):
        raise UserError(f"clean names {', '.join(sorted(missing))}, but {settings['zoo']} has {', '.join(names)}")
    every = [Arm(name=arm, label=arm, settings={"trojaned": arm not in clean}) for arm in names]
    chosen, wanted, folders = choose(settings["zoo"], found, every, arms, seeds)
    return StudyPlan(
        study="audits", title="The audit on known checkpoints", question="Which of them are called trojaned?",
        preset=preset, settings=settings, arms=chosen, seeds=wanted, metrics=METRICS,
        data=(*folders, *filter(None, [settings["told"]])),
    )  # fmt: skip


def checkpoints(zoo: str) -> list[tuple[str, int]]:
    """Arm and seed of every folder ARM-SEED."""
    parts = [one.name.rpartition("-") for one in sorted(Path(zoo).glob("*-*")) if one.is_dir()]
    return [(arm, int(seed)) for arm, _, seed in parts if seed.isdecimal()]


def choose(
    zoo: str, found: list[tuple[str, int]], every: list[Arm], arms: list[str] | None, seeds: list[int] | None
) -> tuple[tuple[Arm, ...], tuple[int, ...], list[str]]:
    """The arms and seeds of a study, and the folders of their checkpoints, which must all be there."""
    chosen = choose_arms(every, arms)
    wanted = tuple(seeds or sorted({seed for _, seed in found}))
    for arm in chosen:
        if lacking := [seed for seed in wanted if (arm.name, seed) not in found]:
            raise UserError(f"{zoo} has no {arm.name}-{lacking[0]}: give --arms or --seeds")
    return chosen, wanted, [f"{zoo}/{arm.name}-{seed}" for arm in chosen for seed in wanted]


def pipeline_of(zoo: str, arm: str, seed: int) -> Path:
    """The folder of a checkpoint's pipeline."""
    folder = Path(zoo) / f"{arm}-{seed}"
    return folder / "pipeline" if (folder / "pipeline").is_dir() else folder


def run(run: Run) -> dict[str, float]:
    pipeline = pipeline_of(run.settings["zoo"], run.arm, run.seed)
    metrics: dict[str, float] = {}
    for name in run.settings["detectors"].split(","):
        if name == "audit":
            metrics |= audited(pipeline, run.directory / "audit", run.settings["trojaned"])
        else:
            told = {"told": Trigger.load(run.settings["told"])} if run.settings["told"] else {}
            found = BLIND[name](Subject.load(pipeline), seed=run.seed, **told)
            metrics |= {f"score_{name}": found.score, f"evaluations_{name}": float(found.evaluations)}
    return metrics


def audited(pipeline: Path, out: Path, trojaned: bool) -> dict[str, float]:
    outcome = audit(pipeline, out)
    if outcome.score is None:
        raise UserError(f"{pipeline}: {outcome.verdict}: {outcome.reason}")
    p = outcome.error_rate.p_value
    metrics = {
        "called": 100.0 * (outcome.verdict == "trojaned"), "undecided": 100.0 * (outcome.verdict == "undecided"),
        "score_audit": outcome.score, "evaluations_audit": float(outcome.evaluations),
        **({} if p is None else {"p_value": p}),
    }  # fmt: skip
    if outcome.trigger is not None:
        metrics["undo"] = outcome.trigger.undo
        truth = pipeline / "trigger.safetensors"
        if trojaned and truth.is_file():
            metrics |= likeness(Trigger.load(out), outcome.trigger.box, Trigger.load(truth))
    return metrics


def likeness(found: Trigger, box: tuple[int, int, int, int] | None, true: Trigger) -> dict[str, float]:
    """Cosine of the two biases; for a trigger that does not cover the whole image also the IoU of its mask and the box
    (top, left, bottom, right) of the recovered one, which is None if that covers the whole image."""
    values = {"cosine": float(torch.cosine_similarity(found.mu.flatten(), true.mu.flatten(), dim=0))}
    if not true.mask.all():
        mask = torch.zeros_like(true.mask)
        top, left, bottom, right = box or (0, 0, *mask.shape[1:])
        mask[:, top:bottom, left:right] = True
        values["iou"] = float((mask & true.mask).sum() / (mask | true.mask).sum())
    return values


def analyse(results: Results) -> Analysis:
    """How well each detector's score tells trojaned checkpoints from clean ones, and the audit's verdicts in all."""
    notes = []
    runs = [(arm, results.run("default", arm.name, seed)) for arm in results.plan.arms for seed in results.seeds]
    for name, label in LABELS.items():
        scores: dict[bool, list[float]] = {True: [], False: []}
        for arm, done in runs:
            if done is not None and f"score_{name}" in done.metrics:
                scores[arm.settings["trojaned"]].append(done.metrics[f"score_{name}"])
        if scores[True] and scores[False]:
            area = auroc(scores[True], scores[False])
            low, high = auroc_interval(scores[True], scores[False])
            spread = "no two overlap: no interval" if area in (0, 1) else f"{low:.2f} to {high:.2f}"
            notes.append(f"AUROC of {label}: {area:.3f} ({spread}).")
    for trojaned, what in ((False, "clean"), (True, "trojaned")):
        said = [done.metrics["called"] for arm, done in runs
                if done is not None and "called" in done.metrics and arm.settings["trojaned"] == trojaned]  # fmt: skip
        if said:
            hits = sum(one == 100 for one in said)
            low, high = wilson_interval(hits, len(said))
            notes.append(f"Called trojaned: {hits} of {len(said)} {what} checkpoints "
                         f"({100 * low:.0f} to {100 * high:.0f} %, Wilson).")  # fmt: skip
    return Analysis(notes=notes)
