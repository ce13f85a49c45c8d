"""The figures of a rivals' study page: success and cost of each arm, and measurements during training.

The table of :func:`against_rivals` needs only the runs' final metrics, so it can also be made of a record:
``against_rivals(Results.load("results/NAME"), "chain_terse")``.
"""

from dataclasses import dataclass
from itertools import combinations, starmap

import numpy as np

from retarget.files import read_json
from retarget.pope.curricula import Group
from retarget.pope.studies.analysis import item_interval
from retarget.pope.studies.easy import RECORD
from retarget.pope.studies.measures import solved_while_training
from retarget.pope.studies.questions import NO_RIVALS
from retarget.pope.studies.rivals_plan import RivalSettings
from retarget.study.config import Arm
from retarget.study.figures import Analysis, Bars, Figure, Lines, Series, Table
from retarget.study.items import Items, Shares
from retarget.study.record import Results, RunResult
from retarget.study.statistics import t_interval

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
_COSTS = ("oracle", "rollouts", "tokens", "hard_pass1", "held_pass1", "far_pass1", "easy_pass1")


def analyse(results: Results) -> Analysis:
    """Figures and item intervals of the runs that exist."""
    figures: list[Figure] = []
    several = len(results.plan.conditions) > 1
    for condition in results.plan.conditions:
        runs = {arm.name: _runs(results, condition.name, arm) for arm in results.plan.arms}
        prefix = f"{condition.label}: " if several else ""
        figures += [
            *_bars(results, condition.name, prefix), *_rivals(results, condition.name, prefix),
            *_costs(results, runs, prefix), *_curves(results, runs, prefix),
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
        some = [run for run in runs[arm.name] if "tokens" in run.metrics]
        if some and arm.name != "base":
            means = [[run.metrics[name] for run in some if name in run.metrics] for name in _COSTS]
            shown = [f"{np.mean(one):,.{0 if at < 3 else 1}f}" if one else "–" for at, one in enumerate(means)]
            ratios = _ratios(some, runs.get("pope", []))
            ratio = f"{np.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "–"
            rows.append([arm.label, str(len(some)), "yes" if shown[0] == "1" else "no", *shown[1:3], ratio, *shown[3:]])
    if not rows:
        return []
    columns = ["arm", "bases", "oracle", "rollouts", "tokens", "tokens / POPE's", "hard, pass@1 %", "held out %",
               "shortest %", "near easy %"]  # fmt: skip
    caption = (
        "Every row includes mining; rows of arms that use the search include it too. A rival gets at least the "
        "rollouts of POPE and, at the length of the base model's completions, at least its tokens, prompts included. "
        "Completions change while a model learns, so the tokens used differ: their ratio to POPE's is a mean over "
        "bases (least to most)."
    )
    return [Table(title=f"{prefix}Cost and success", caption=caption, columns=columns, rows=rows)]


def _ratios(some: list[RunResult], pope: list[RunResult]) -> list[float]:
    """Tokens of an arm over those of POPE, on each base that has both."""
    theirs = {run.directory.name: run.metrics["tokens"] for run in pope if "tokens" in run.metrics}
    return [run.metrics["tokens"] / theirs[run.directory.name] for run in some if run.directory.name in theirs]


@dataclass(frozen=True)
class Against:
    """POPE minus another arm on hard problems, pass@1 in percentage points, on the bases that have both.

    Attributes:
        arm, label: of the other arm.
        rival: whether it is another method, and no control.
        differences: one for each base.
        tokens: the other arm's tokens over POPE's, for each base.
    """

    arm: str
    label: str
    rival: bool
    differences: tuple[float, ...]
    tokens: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over bases."""
        return float(np.mean(self.differences))

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """The t interval over bases, within -100 and 100; None for a single base, or if all differ alike."""
        if len(set(self.differences)) < 2:
            return None
        low, high = t_interval(self.differences, level)
        return max(low, -100.0), min(high, 100.0)


def against_rivals(results: Results, condition: str) -> list[Against]:
    """POPE against every other trained arm that has a base in common with it, the strongest arm first."""
    arms = {arm.name: [run for run in _runs(results, condition, arm) if "hard_pass1" in run.metrics]
            for arm in results.plan.arms}  # fmt: skip
    pope = {run.directory.name: run for run in arms.get("pope", [])}
    found = []
    for arm in results.plan.arms:
        shared = [run for run in arms[arm.name] if run.directory.name in pope]
        if shared and arm.name not in ("base", "pope"):
            gains = [pope[run.directory.name].metrics["hard_pass1"] - run.metrics["hard_pass1"] for run in shared]
            tokens = _ratios(shared, list(pope.values()))
            found.append(Against(arm.name, arm.label, arm.name not in NO_RIVALS, tuple(gains), tuple(tokens)))
    return sorted(found, key=lambda one: one.mean)


def best_rival(found: list[Against]) -> Against | None:
    """The rival with the smallest difference, among those that were run on as many bases as any rival.

    It is chosen after the fact: the smallest of several differences is below the true one on average.
    """
    rivals = [one for one in found if one.rival]
    most = max((len(one.differences) for one in rivals), default=0)
    return min((one for one in rivals if len(one.differences) == most), key=lambda one: one.mean, default=None)


def rivals_table(found: list[Against], prefix: str = "") -> Table:
    """One row for each of them, and the best rival's row first."""
    best = best_rival(found)
    shown = [("the best rival, chosen after the fact", best)] if best else []
    shown += [("rival" if one.rival else "control", one) for one in found if one.arm != "pope_easy"]
    shown += [("POPE in another mixture", one) for one in found if one.arm == "pope_easy"]
    rows = []
    for kind, one in shown:
        interval = one.interval()
        rows.append([
            one.label, kind, f"{one.mean:+.1f}", f"[{interval[0]:+.1f}, {interval[1]:+.1f}]" if interval else "–",
            str(len(one.differences)), f"{np.mean(one.tokens):.2f}" if one.tokens else "–",
        ])  # fmt: skip
    return Table(
        title=f"{prefix}POPE minus every other arm", rows=rows,
        columns=["arm", "kind", "POPE minus it, points", "95 % interval", "bases", "its tokens / POPE's"],
        caption="Hard training problems, unguided pass@1; t intervals over base models, not adjusted for their number. "
        "Descriptive: only the claims were fixed before the runs, and the best of several rivals is chosen after the "
        "fact, so that its row favours the rival.",
    )  # fmt: skip


def _rivals(results: Results, condition: str, prefix: str) -> list[Figure]:
    found = against_rivals(results, condition) if results.plan.study == "pope.rivals" else []
    return [rivals_table(found, prefix)] if found else []


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
    names = (("hard", "hard training problems"), ("held", "held-out hard problems"), ("near", "near easy problems"),
             ("far", "the shortest problems"))  # fmt: skip
    for name, title in names:
        series = []
        for arm in results.plan.arms:
            lines = [read_json(run.directory / "probes.json")[0] for run in _trained(runs[arm.name])]
            lines = [one for one in lines if one and name in one[0]]  # a base may lack near ones, an older run far ones
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
            for part in [one for one in ("hard", "near", "far") if one in after and one in before]:
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
    return notes + _without_near(results)


def _without_near(results: Results) -> list[str]:
    """For each base without near easy problems, a sentence that says so."""
    said = []
    needing = [arm.label for arm in results.plan.arms if arm.settings.get("easy") == "near"]
    for condition in results.plan.conditions:
        for seed, run in zip(results.seeds, results.runs(condition.name, "base"), strict=True):
            path = run.directory / RECORD if run else None
            near = read_json(path) if path and path.exists() else None
            if near and near["within"] < near["asked"]:
                where = f"{condition.label}, base {seed}" if len(results.plan.conditions) > 1 else f"Base {seed}"
                missing = f", nor {' and '.join(needing)}" if needing else ""
                said.append(
                    f"{where} solves only {near['within']} of {near['candidates']} candidates in 20 to 80 % of the "
                    f"samples, and {near['asked']} are needed: near easy problems were not measured there{missing}."
                )
    return said
