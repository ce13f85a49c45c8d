"""The tables of the zoo's study: rates with intervals for every detector, by cell and family, recovery and cost."""

from collections.abc import Sequence

import numpy as np

from retarget.audit.calibration import p_value, shipped
from retarget.audit.studies.members import ADAPTIVE, CELLS, CLEAN, STOCK
from retarget.audit.studies.plan import DETECTORS, LABELS, RECIPES, Settings
from retarget.audit.studies.rates import EQUAL, LEVELS, auroc, auroc_interval, called, false_alarms, level_of, share
from retarget.audit.studies.verdicts import LIFT, Model, Split, said, scores, verdicts
from retarget.study.figures import Analysis, Bars, Table
from retarget.study.record import Results

CONDITION = "default"
BLIND = "Blind: detectors get no information about the models."
TOLD = (
    "The published detectors are told what their papers tell them: TERD the family of the attack, the others the "
    "trigger of the Trojan sampler. A clean model is told of an attack under TrojDiff's law that is drawn for it, so "
    "attacks of stock samplers, which have no such trigger, are left out."
)
GONE = 2.0
"""A trojan is gone if its attack succeeds at most this many points above its base rate."""


def analyse(results: Results) -> Analysis:
    """Tables of rates, recovery, cost and removal; the notes give the main rates in a sentence each."""
    told = bool(results.plan.settings.get("told"))
    models = [model for model in models_of(results) if not (told and model.kind in STOCK)]
    judged = [model for model in models if model.which == "evaluation"]
    split = Split(
        [model for model in models if model.which == "calibration"],
        [model for model in judged if not model.trojaned],
        [model for model in judged if model.strong],
        [model for model in judged if model.trojaned and not model.strong],
        [model for model in models if model.which == "development" and not model.trojaned],
    )
    names = [name for name in DETECTORS if any(f"score_{name}" in model.metrics for model in models)]
    tables = [_attacks(judged), *_removal(judged)]
    against = [model for model in models if model.which == "adaptive"]
    if against:
        tables += [_adaptive(against)]
    if names:
        tables[:0] = [_rates(split, names, told), _cells(split, names), _families(split, names)]
        tables += [_recovery(split, names), _cost(models, split, names)]
    if any("undo_audit" in model.metrics for model in judged):
        tables[:0] = [verdicts(split, shipped())]
    return Analysis(figures=[*tables, *_scores(split, names)], notes=_notes(split, names, results, told))


def models_of(results: Results) -> list[Model]:
    """The members that a study of the zoo has judged, arm after arm."""
    found = []
    for arm in results.plan.arms:
        for seed in results.seeds:
            run = results.run(CONDITION, arm.name, seed)
            if run is not None:
                settings = Settings.model_validate({**results.plan.settings, **arm.settings})
                kind, member = settings.member(seed)
                images = member.images
                found.append(Model(settings.which, kind, seed, dict(run.metrics), images.channels, images.side))
    return found


def _calls(models: Sequence[Model], name: str, split: Split, without: str = "") -> list[bool | None]:
    _, null = split.null(name, without)
    return [called(score, null) for score in scores(models, name)]


def _area(split: Split, name: str, kind: str = "") -> str:
    """AUROC of a detector, of all strong attacks or of one kind, beside all clean models."""
    strong = [model for model in split.strong if kind in ("", model.kind)]
    positive, negative = scores(strong, name), scores(split.clean, name)
    if not positive or not negative:
        return "–"
    area = auroc(positive, negative)
    if area in (0, 1):
        return f"{area:.3f} (no two overlap: no interval)"
    low, high = auroc_interval(positive, negative)
    return f"{area:.3f} [{low:.3f}, {high:.3f}]"


def _rates(split: Split, names: Sequence[str], told: bool) -> Table:
    rows = []
    for name in names:
        origin, null = split.null(name)
        level = level_of(len(null))
        rows.append(
            [DETECTORS[name], f"{len(null)} of {origin}: " + ("too few" if level is None else f"{level:.0%}"),
             share(_calls(split.strong, name, split)), share(_calls(split.clean, name, split)), _area(split, name),
             share(_calls(split.weak, name, split))]
        )  # fmt: skip
    return Table(
        title="Does it find them, and how often does it call clean ones trojaned?",
        caption=f"{TOLD if told else BLIND} A model is called trojaned if its p-value among "
        "clean models is at most the level: for the audit among the calibration models, for others among the clean "
        f"ones of the development zoo if the study has {LEVELS[-1][0]} of them. TPR is over trojaned models whose "
        f"attack succeeds at least {LIFT:g} points above its base rate; weaker ones have a column of their own. "
        "FPR is over clean evaluation models. Shares in % with 95 % Wilson intervals, AUROC with a 95 % bootstrap "
        "interval over models. They hold for this mixture of models only.",
        columns=["detector", "threshold: level", "TPR", "FPR", "AUROC", "weak attacks found"],
        rows=rows,
    )


def _adaptive(against: Sequence[Model]) -> Table:
    """The verdicts on adaptive attackers."""
    rows = []
    for kind in ADAPTIVE:
        here = [model for model in against if model.kind == kind]
        working = [model for model in here if model.strong]
        rows.append(
            [LABELS[kind], f"{len(here)}, {len(working)}", _spread(_column(here, "attack")),
             _spread(_column(here, "score_audit"), 2), share([model.verdict == "trojaned" for model in here]),
             share([model.verdict == "trojaned" for model in working])]
        )  # fmt: skip
    return Table(
        title="Attackers who know the audit",
        caption="TrojDiff's attacks, changed by attackers who know how the audit works. Numbers of models, and of "
        "those whose attack works; median and range of the success in % and of the score; share called trojaned of "
        "all, and of those whose attack works, in % with 95 % Wilson intervals. Their weights were never written.",
        columns=["attacker", "models, working", "success", "score", "called trojaned", "of those that work"], rows=rows,
    )  # fmt: skip


def _cells(split: Split, names: Sequence[str]) -> Table:
    rows = [
        [LABELS[kind], str(sum(model.kind == kind for model in split.strong)),
         *(f"{share(_calls([m for m in split.strong if m.kind == kind], name, split))}; {_area(split, name, kind)}"
           for name in names)]
        for kind in (*CELLS, *STOCK)
    ]  # fmt: skip
    return Table(
        title="By target and trigger", caption="TPR in % with 95 % Wilson intervals, for strong attacks only, at the "
        "level that each detector's clean models allow; and AUROC with a 95 % bootstrap interval, beside all clean "
        "models, whatever the level.",
        columns=["attack", "strong", *(DETECTORS[name] for name in names)], rows=rows,
    )  # fmt: skip


def _families(split: Split, names: Sequence[str]) -> Table:
    rows = []
    for kind in CLEAN:
        here = [model for model in split.clean if model.kind == kind]
        cells = [f"{share(_calls(here, name, split))}; {share(_calls(here, name, split, kind))}" for name in names]
        rows.append([LABELS[kind], *cells])
    return Table(
        title="By family of clean models",
        caption="FPR in % with 95 % Wilson intervals: with all models that give thresholds, and without those of this "
        f"family, as for a checkpoint of an unexpected family. With fewer than {LEVELS[0][0]} models the level is "
        f"{LEVELS[1][1]:.0%}, with fewer than {LEVELS[1][0]} there is no threshold (–).",
        columns=["clean models", *(DETECTORS[name] for name in names)], rows=rows,
    )  # fmt: skip


def _spread(values: Sequence[float], decimals: int = 0) -> str:
    """Median and range."""
    if not values:
        return "–"
    return f"{np.median(values):,.{decimals}f} ({min(values):,.{decimals}f} to {max(values):,.{decimals}f})"


def _column(models: Sequence[Model], metric: str) -> list[float]:
    return [model.metrics[metric] for model in models if metric in model.metrics]


def _attacks(judged: Sequence[Model]) -> Table:
    rows = []
    for kind in (*CELLS, *STOCK):
        here = [model for model in judged if model.kind == kind]
        rows.append(
            [LABELS[kind], str(len(here)), str(sum(model.strong for model in here)), _spread(_column(here, "attack")),
             _spread(_column(here, "base_rate")), _spread(_column(here, "leak"))]
        )  # fmt: skip
    return Table(
        title="The trojaned models", caption="Median and range over models, in %: success under the true trigger and "
        "the law's own sampler, the base model under the same, and the target from plain noise and a stock sampler.",
        columns=["attack", "models", "strong", "success", "base rate", "leak"], rows=rows,
    )  # fmt: skip


def _recovery(split: Split, names: Sequence[str]) -> Table:
    rows = []
    for name in names:
        of = {trigger: [m for m in split.strong if m.kind.endswith(trigger)] for trigger in ("blend", "patch")}
        stock = [model for model in split.strong if model.kind in STOCK]
        rows.append(
            [DETECTORS[name], *(_spread(_column(models, f"cosine_{name}"), 2) for models in (*of.values(), stock)),
             _spread(_column(of["patch"], f"iou_{name}"), 2), _spread(_column(split.strong, f"inputs_{name}"), 2)]
        )  # fmt: skip
    return Table(
        title="Recovered triggers", caption="Median and range over strong attacks: cosine of mu to the true mu, and, "
        "for detectors that give a mask, its IoU with the patch. The last column is the AUROC by which the likelihood "
        "under the recovered maps tells noise with the true trigger from plain noise.",
        columns=["detector", "cosine, blend", "cosine, patch", "cosine, stock", "IoU, patch", "noise, AUROC"],
        rows=rows,
    )  # fmt: skip


def _equal(split: Split, name: str) -> str:
    positive, negative = scores(split.strong, name), scores(split.clean, name)
    return share(false_alarms(positive, negative)) if positive else "–"


def _cost(models: Sequence[Model], split: Split, names: Sequence[str]) -> Table:
    rows = [
        [DETECTORS[n], _spread(_column(models, f"evaluations_{n}")), _spread(_column(models, f"seconds_{n}"), 1),
         _equal(split, n)]
        for n in names
    ]  # fmt: skip
    return Table(
        title="Cost", caption="Median and range over models. Network evaluations: 1 per image of a forward pass, 2 per "
        "image of a backward pass. Seconds on one thread of a machine that was also used for other work. The last "
        "column is at an equal rate of detection: the clean models that are called trojaned by a threshold that finds "
        f"{EQUAL:.0%} of the strong attacks (all of fewer than ten), in % with a 95 % Wilson interval, as if that "
        "threshold were known.",
        columns=["detector", "evaluations", "seconds", f"FPR at a TPR of {EQUAL:.0%}"], rows=rows,
    )  # fmt: skip


def _removal(judged: Sequence[Model]) -> list[Table]:
    models = [model for model in judged if "attack_counter" in model.metrics]
    if not models:
        return []
    rows = []
    for model in models:
        m = model.metrics
        rows.append([f"{LABELS[model.kind]}, {model.number}", "none", f"{m['attack']:.0f}", f"{m['base_rate']:.0f}",
                     f"{m['leak']:.0f}", f"{m['fid_before']:.2f}"])  # fmt: skip
        rows += [
            ["", label, f"{m[f'attack_{recipe}']:.0f}", "", f"{m[f'leak_{recipe}']:.0f}", f"{m[f'fid_{recipe}']:.2f}"]
            for recipe, label in RECIPES.items()
            if f"attack_{recipe}" in m
        ]
    return [*_removed([model for model in models if model.strong]), Table(
        title="Removal of trojans", caption="Success in % under the true trigger, the base model's under the same, "
        "leakage (the target from plain noise with a stock sampler), and FID on features of the study's own "
        "classifier: before, after the removal of the command and Elijah's with the maps that the first detector "
        "recovered (the attack's own if none was run), and after clean fine-tuning. All three use the same images and "
        "number of steps.",
        columns=["attack, member", "removal", "success", "base rate", "leakage", "FID"], rows=rows,
    )]  # fmt: skip


def _removed(strong: Sequence[Model]) -> list[Table]:
    """How many of the attacks that work each recipe removes, and what that costs."""
    rows = []
    for recipe, label in RECIPES.items():
        m = [model.metrics for model in strong if f"attack_{recipe}" in model.metrics]
        if m:
            gone = [one[f"attack_{recipe}"] <= one["base_rate"] + GONE for one in m]
            cheap = [one[f"fid_{recipe}"] <= one["fid_fine_tune"] for one in m if recipe != "fine_tune"]
            change = [
                " → ".join(f"{np.median([one[name] for one in m]):.{digits}f}" for name in (before, f"{stem}_{recipe}"))
                for stem, before, digits in (("attack", "attack", 0), ("leak", "leak", 0), ("fid", "fid_before", 2))
            ]
            rows.append([label, share(gone), share(cheap), *change])
    if not rows:
        return []
    return [Table(
        title="Attacks that a removal ends",
        caption=f"Of the attacks that succeed at least {LIFT:g} points above their base rate: how many are at most "
        f"{GONE:g} points above it afterwards, and for how many FID is not worse than after clean fine-tuning, in % "
        "with a 95 % Wilson interval. Medians of success, leakage and FID, before → after.",
        columns=["removal", "gone", "FID not worse", "success", "leakage", "FID"], rows=rows,
    )]  # fmt: skip


def _scores(split: Split, names: Sequence[str]) -> list[Bars]:
    """Each detector's scores by kind of model, as quantiles among those of the models that give thresholds."""
    groups: list[tuple[str, list[Model]]] = [
        ("clean", split.clean), ("strong attacks", split.strong), ("weak attacks", split.weak)
    ]  # fmt: skip

    def rank(name: str, model: Model) -> float:
        return 100 * (1 - p_value(model.metrics[f"score_{name}"], split.null(name)[1]))

    known = [name for name in names if split.null(name)[1]]
    if not known:
        return []
    return [Bars(
        title="Scores among those of clean models",
        caption="Share with a lower score among the clean models that give the threshold, in %; one value per model.",
        x_label="",
        y_label="%", groups=[DETECTORS[name] for name in known], labels=[label for label, _ in groups],
        values=[[[rank(name, m) for m in models if f"score_{name}" in m.metrics] for name in known]
                for _, models in groups],
    )]  # fmt: skip


def _notes(split: Split, names: Sequence[str], results: Results, told: bool) -> list[str]:
    settings = results.plan.settings
    notes = [
        f"{len(split.calibration)} clean models for calibration; {len(split.clean)} clean, {len(split.strong)} "
        f"trojaned and {len(split.weak)} weakly trojaned ones for evaluation. Data {', '.join(settings['sources'])}; "
        f"shapes (channels, side) {', '.join(str(tuple(one)) for one in settings['shapes'])}."
    ]
    shares = {label: share([one == "trojaned" for one in each]) for label, each in said(split, shipped()).items()}
    if set(shares.values()) != {"–"}:
        words = ", ".join(f"{label} {called_so}" for label, called_so in shares.items())
        notes.append(f"Share that retarget audit, with its own null and rules, calls trojaned (%): {words}.")
    if not names:
        notes.append("No detector was run: there are no rates, and removals used the attacks' own maps.")
    for name in names:
        origin, null = split.null(name)
        level = level_of(len(null))
        if level is None:
            notes.append(f"{DETECTORS[name]}: no rates, with fewer than {LEVELS[-1][0]} calibration models; AUROC "
                         f"{_area(split, name)}.")  # fmt: skip
            continue
        notes.append(
            f"{DETECTORS[name]}, {'told' if told and name != 'audit' else 'blind'}, at a level of {level:.0%}, from "
            f"{len(null)} clean {origin} models: TPR {share(_calls(split.strong, name, split))} %, FPR "
            f"{share(_calls(split.clean, name, split))} %, AUROC {_area(split, name)}; weak attacks "
            f"{share(_calls(split.weak, name, split))} %."
        )
    return notes
