"""A study of the audit on checkpoints whose truth you know: which of them does it call trojaned?

    retarget study own_study_audit.py --set zoo=DIR clean=pretrained,tuned --seeds 10 11 12

DIR has one folder per checkpoint, ARM-SEED (such as d2i_patch-10): a diffusers pipeline, or a folder with one in
``pipeline``. Arms that ``clean`` does not name are trojaned; if the true trigger is in the pipeline, as
``retarget trojdiff train`` writes it, the recovered trigger is compared with it. The audit itself reads none of this.
"""

from pathlib import Path
from typing import Any

import torch

from retarget.audit import audit
from retarget.errors import UserError
from retarget.study import Arm, Metric, Run, StudyPlan
from retarget.study.config import choose_arms
from retarget.trojdiff.trigger import Trigger

METRICS = (
    Metric(name="called", label="called trojaned", unit="%", decimals=0),
    Metric(name="undecided", label="undecided", unit="%", decimals=0),
    Metric(name="score", label="score", decimals=3),
    Metric(name="p_value", label="p-value among clean models", decimals=3, optional=True),
    Metric(name="undo", label="undo of the best candidate", decimals=3, optional=True),
    Metric(name="cosine", label="cosine of mu", decimals=3, better="higher", optional=True),
    Metric(name="iou", label="IoU of the box with the mask", decimals=3, better="higher", optional=True),
    Metric(name="evaluations", label="network evaluations", decimals=0, better="lower"),
)  # fmt: skip


def plan(preset: str, config: dict[str, Any] | None, seeds: list[int] | None, arms: list[str] | None) -> StudyPlan:
    settings = {"zoo": "", "clean": "", **(config or {})}
    if unknown := settings.keys() - {"zoo", "clean"}:
        raise UserError(f"there is no setting {', '.join(sorted(unknown))}: choose zoo and clean")
    found = [one.name.rpartition("-") for one in sorted(Path(settings["zoo"]).glob("*-*")) if one.is_dir()]
    found = [(arm, int(seed)) for arm, _, seed in found if seed.isdecimal()]
    clean = [one.strip() for one in settings["clean"].split(",") if one.strip()]
    names = sorted({arm for arm, _ in found}, key=lambda arm: (arm not in clean, arm))
    if not settings["zoo"] or not names:
        raise UserError("give --set zoo=DIR, a folder of checkpoints ARM-SEED, such as DIR/d2i_patch-10")
    if missing := set(clean) - set(names):
        raise UserError(f"clean names {', '.join(sorted(missing))}, but {settings['zoo']} has {', '.join(names)}")
    every = [Arm(name=arm, label=arm, settings={"trojaned": arm not in clean}) for arm in names]
    chosen = choose_arms(every, arms)
    wanted = tuple(seeds or sorted({seed for _, seed in found}))
    for arm in chosen:
        if lacking := [seed for seed in wanted if (arm.name, seed) not in found]:
            raise UserError(f"{settings['zoo']} has no {arm.name}-{lacking[0]}: give --arms or --seeds")
    return StudyPlan(
        study="audits", title="The audit on known checkpoints", question="Which of them does the audit call trojaned?",
        preset=preset, settings=settings, arms=chosen, seeds=wanted, metrics=METRICS,
        data=tuple(f"{settings['zoo']}/{arm.name}-{seed}" for arm in chosen for seed in wanted),
    )  # fmt: skip


def run(run: Run) -> dict[str, float]:
    folder, out = Path(run.settings["zoo"]) / f"{run.arm}-{run.seed}", run.directory / "audit"
    pipeline = folder / "pipeline" if (folder / "pipeline").is_dir() else folder
    outcome = audit(pipeline, out)
    if outcome.score is None:
        raise UserError(f"{pipeline}: {outcome.verdict}: {outcome.reason}")
    p = outcome.error_rate.p_value
    metrics = {
        "called": 100.0 * (outcome.verdict == "trojaned"), "undecided": 100.0 * (outcome.verdict == "undecided"),
        "score": outcome.score, "evaluations": float(outcome.evaluations), **({} if p is None else {"p_value": p}),
    }  # fmt: skip
    if outcome.trigger is not None:
        metrics["undo"] = outcome.trigger.undo
        truth = pipeline / "trigger.safetensors"
        if run.settings["trojaned"] and truth.is_file():
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
