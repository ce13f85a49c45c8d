"""The figures of a rivals' study page: success and cost of each arm, and measurements during training."""

from itertools import combinations, starmap

import numpy as np

from retarget.files import read_json
from retarget.pope.curricula import Group
from retarget.pope.studies.analysis import item_interval
from retarget.pope.studies.measures import solved_while_training
from retarget.pope.studies.rivals_plan import RivalSettings
from retarget.study.config import Arm
from retarget.study.figures import Analysis, Bars, Figure, Lines, Series, Table
from retarget.study.items import Items, Shares
from retarget.study.record import Results, RunResult

_BARS = (
    (("hard_pass1", "held_pass1"), "pass@1 on hard problems", ("training", "held out")),
    (("easy_pass1", "far_pass1"), "pass@1 on easy problems", ("near", "shortest")),
    (("hard_solved", "held_solved"), "hard problems solved at least once", ("training", "held out")),
)
_CURVES = (
    ("unguided/reward", "Reward of unguided rollouts", "share correct"),
    ("unguided/all_fail", "Unguided groups without a success", "share of groups"),
    ("unguided/entropy", "Entropy of unguided rollouts", "nats per token"),
    ("clip_ratio/region_mean", "Tokens whose ratio was clipped", "share"),
)
_COSTS = ("oracle", "rollouts", "tokens", "hard_pass1", "held_pass1", "easy_pass1")


def analyse(results: Results) -> Analysis:
    """Figures and item intervals of the runs that exist."""
    figures: list[Figure] = []
    several = len(results.plan.conditions) > 1
    for condition in results.plan.conditions:
        runs = {arm.name: _runs(results, condition.name, arm) for arm in results.plan.arms}
        prefix = f"{condition.label}: " if several else ""
        figures += [
            *_bars(results, condition.name, prefix), *_costs(results, runs, prefix), *_curves(results, runs, prefix),
            *_probes(results, runs, prefix), *_overlap(results, runs, prefix), *_rays(results, runs, prefix),
        ]  # fmt: skip
    intervals = {}
    for claim in results.plan.claims:
        interval = item_interval(results, claim)
        if interval is not None:
            intervals[claim.id] = interval
    return Analysis(item_intervals=intervals, items=_signals(results), figures=figures, notes=_notes(results))


def _signals(results: Results) -> dict[str, Items]:
    """For claims about the share of unguided groups with a reward: the counts of such groups, over all trainings.

    They decide the claim if no base ever gets a reward, or all do in every group: the share is perfect then.
    """
    arms = {arm.name: arm for arm in results.plan.arms}
    found: dict[str, Items] = {}
    for claim in results.plan.claims:
        if claim.metric != "signal" or claim.against is None or claim.arms[0] not in arms:
            continue
        runs = _trained(_runs(results, claim.condition, arms[claim.arms[0]]))
        trainings = [training for run in runs for training in read_json(run.directory / "groups.json")]
        groups = [one for training in trainings for one in starmap(Group, training) if one.stratum == "unguided"]
        if groups:
            found[claim.id] = Shares(cells=[(sum(one.correct > 0 for one in groups), len(groups))])
    return found


def _runs(results: Results, condition: str, arm: Arm) -> list[RunResult]:
    return [run for run in results.runs(condition, arm.name) if run]


def _trained(runs: list[RunResult]) -> list[RunResult]:
    return [run for run in runs if (run.directory / "groups.json").exists()]


def _bars(results: Results, condition: str, prefix: str) -> list[Figure]:
    figures: list[Figure] = []
    for metrics, title, groups in _BARS:
        labels, values = [], []
        for arm in results.plan.arms:
            runs = results.runs(condition, arm.name)
            if any(runs):
                labels.append(arm.label)
                values.append([[run.metrics.get(metric) if run else None for run in runs] for metric in metrics])
        if labels:
            figures.append(
                Bars(title=f"{prefix}{title}, unguided", x_label="problems", y_label="%", labels=labels, values=values,
                     groups=list(groups), caption="Fresh samples after training. A dot is one base model.")
            )  # fmt: skip
    return figures


def _costs(results: Results, runs: dict[str, list[RunResult]], prefix: str) -> list[Figure]:
    rows = []
    for arm in results.plan.arms:
        some = runs[arm.name]
        if some and arm.name != "base":
            means = [[run.metrics[name] for run in some if name in run.metrics] for name in _COSTS]
            shown = [f"{np.mean(one):,.{0 if at < 3 else 1}f}" if one else "–" for at, one in enumerate(means)]
            rows.append([arm.label, str(len(some)), "yes" if shown[0] == "1" else "no", *shown[1:]])
    if not rows:
        return []
    columns = ["arm", "bases", "oracle", "rollouts", "tokens", "hard, pass@1 %", "held out %", "near easy %"]
    caption = (
        "Every row includes mining; rows of arms that use the search include it too. A rival gets at least the "
        "rollouts and at least the tokens of POPE, prompts included."
    )
    return [Table(title=f"{prefix}Cost and success", caption=caption, columns=columns, rows=rows)]


def _curves(results: Results, runs: dict[str, list[RunResult]], prefix: str) -> list[Figure]:
    figures: list[Figure] = []
    for metric, title, label in _CURVES:
        series = []
        for arm in results.plan.arms:
            lines = [history for run in runs[arm.name] if (history := run.history())]
            lines = [one for one in lines if any(metric in line for line in one)]
            if lines:
                shown = min(map(len, lines))
                series.append(Series(label=arm.label, x=[line["step"] for line in lines[0][:shown]],
                                     y=[[line.get(metric) for line in one[:shown]] for one in lines]))  # fmt: skip
        if series:
            figures.append(
                Lines(title=f"{prefix}{title} while training", x_label="generation batch", y_label=label, series=series,
                      caption="At the training temperature. A thin line is one base model.")
            )  # fmt: skip
    return figures


def _probes(results: Results, runs: dict[str, list[RunResult]], prefix: str) -> list[Figure]:
    figures: list[Figure] = []
    names = (("hard", "hard training problems"), ("held", "held-out hard problems"), ("near", "near easy problems"))
    for name, title in names:
        series = []
        for arm in results.plan.arms:
            lines = [read_json(run.directory / "probes.json")[0] for run in _trained(runs[arm.name])]
            lines = [one for one in lines if one]
            if lines:
                series.append(Series(label=arm.label, x=[line["cycle"] for line in lines[0]],
                                     y=[[100 * line[name] for line in one] for one in lines]))  # fmt: skip
        if series:
            figures.append(Lines(title=f"{prefix}Unguided pass@1 on {title} while training", x_label="generation batch",
                                 y_label="%", series=series,
                                 caption="On a few problems and samples, with a seed of their own."))  # fmt: skip
    return figures


def _overlap(results: Results, runs: dict[str, list[RunResult]], prefix: str) -> list[Figure]:
    """Jaccard index of the sets of hard problems that two arms solved during training, mean over their base models."""
    solved = {}
    for arm in results.plan.arms:
        solved[arm.name] = {run.directory.name: _solved(run) for run in _trained(runs[arm.name])}
    some = [name for name, sets in solved.items() if any(sets.values())]
    labels = {arm.name: arm.label for arm in results.plan.arms}
    rows = []
    for first, second in combinations(some, 2):
        shared = [(solved[first][seed], solved[second][seed]) for seed in solved[first] if seed in solved[second]]
        indices = [len(a & b) / len(a | b) for a, b in shared if a | b]
        if indices:
            rows.append([labels[first], labels[second], f"{np.mean(indices):.2f}", str(len(indices))])
    if not rows:
        return []
    return [Table(title=f"{prefix}Which hard problems were solved while training", rows=rows,
                  columns=["arm", "arm", "shared of all that either solved", "bases"],
                  caption="Solved: at least one unguided rollout of the training was correct.")]  # fmt: skip


def _solved(run: RunResult) -> set[str]:
    groups = [Group(*one) for one in read_json(run.directory / "groups.json")[0]]
    names = {one.problem for one in groups}
    return solved_while_training([one for one in groups if one.stratum == "unguided"], sorted(names))


def _rays(results: Results, runs: dict[str, list[RunResult]], prefix: str) -> list[Figure]:
    """Gain of pass@1 by the success rate before training, in bins: the right ones show whether the rich get richer."""
    edges = (0.0, 1e-9, 0.3, 0.6, 0.9, 1.0 + 1e-9)
    names = ("0", "to 0.3", "to 0.6", "to 0.9", "to 1")
    bases = {run.directory.name: run.predictions() for run in runs.get("base", [])}
    samples = RivalSettings.model_validate(results.plan.settings).samples
    rows = []
    for arm in results.plan.arms:
        gains: list[list[float]] = [[] for _ in names]
        for run in _trained(runs[arm.name]):
            after, before = run.predictions(), bases[run.directory.name]
            for part in ("hard", "near", "far"):
                rates = before[part][0] / samples
                found = after[part].mean(0) / samples - rates
                for at, gain in zip(np.digitize(rates, edges) - 1, found, strict=True):
                    gains[at].append(float(gain))
        if any(gains):
            rows.append([arm.label, *(f"{100 * np.mean(one):+.1f} ({len(one)})" if one else "–" for one in gains)])
    if not rows:
        return []
    return [Table(title=f"{prefix}Gain of pass@1 by the rate before training", rows=rows, columns=["arm", *names],
                  caption="Percentage points (number of problems), on hard training problems and both sets of easy "
                  "ones.")]  # fmt: skip


def _notes(results: Results) -> list[str]:
    asked = [
        len(_runs(results, condition.name, arm)) for condition in results.plan.conditions for arm in results.plan.arms
    ]
    wanted = len(results.seeds) * len(asked)
    notes = [
        "The unit of replication is the base model, with its own problems. Each arm is trained once on it, unless the "
        "settings say otherwise.",
        "Arms, budgets and claims were fixed before the runs. If a rival beats POPE, the table shows it.",
    ]
    if sum(asked) < wanted:
        notes.append(f"{sum(asked)} of {wanted} runs are complete.")
    return notes
