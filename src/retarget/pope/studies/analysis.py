"""The figures of the POPE study's page: learning curves by stratum, success before and after, the search, samples."""

import json
from typing import Any

import numpy as np

from retarget.metrics.passk import pass_at_k
from retarget.pope.mining import KINDS
from retarget.pope.studies.plan import ARMS, MINED, Settings
from retarget.study.config import Claim
from retarget.study.figures import Analysis, Bars, Figure, Lines, Series, Table, Text
from retarget.study.items import Items, Shares
from retarget.study.record import Results
from retarget.study.statistics import bootstrap_difference

RESAMPLES = 2000
SOLVED = "Problems solved"
LEFT_OUT = "They compare with other methods: retarget study pope --preset small --set question=rivals measures them."
FALLBACK = "Longest prefix allowed, since none helped in the search"


def analyse(results: Results) -> Analysis:
    """Figures and item intervals of the runs that exist."""
    figures: list[Figure] = []
    several = len(results.plan.conditions) > 1
    for condition in results.plan.conditions:
        prefix = f"{condition.label}: " if several else ""
        figures += [
            *_curves(results, condition.name, prefix),
            *_bars(results, condition.name, prefix),
            *_pass_at_k(results, condition.name, prefix),
            *_mining(results, condition.name, prefix),
            *_search(results, condition.name, prefix),
            *_samples(results, condition.name, prefix),
        ]
    intervals = {}
    for claim in results.plan.claims:
        interval = item_interval(results, claim)
        if interval is not None:
            intervals[claim.id] = interval
    lead = [figure.title for figure in figures if f"{SOLVED} while" in figure.title][:1]
    return Analysis(
        item_intervals=intervals, items=_groups(results), figures=figures, lead=lead, notes=_notes(results),
        left_out=LEFT_OUT if results.plan.preset == "demo" else "",
    )  # fmt: skip


def _curves(results: Results, condition: str, prefix: str) -> list[Figure]:
    curves = (
        ("reward", "Reward", "share of correct rollouts"),
        ("all_fail", SOLVED, "share of problems with a correct rollout"),
        ("entropy", "Entropy", "nats per token"),
    )
    figures: list[Figure] = []
    for metric, title, label in curves:
        series = []
        for arm, stratum, name in (
            ("unguided", "unguided", "GRPO on hard problems"),
            ("pope", "unguided", "POPE, unguided prompts"),
            ("pope", "guided", "POPE, guided prompts"),
        ):
            lines = [run.history() for run in results.runs(condition, arm) if run]
            if lines:
                shown = min(map(len, lines))  # the search costs differ between bases, and so do the numbers of batches
                x = [line["step"] for line in lines[0][:shown]]
                y = [[line.get(f"{stratum}/{metric}") for line in one[:shown]] for one in lines]
                if metric == "all_fail":  # logged is the share of groups (rollouts of one problem) without a success
                    y = [[None if failed is None else 1 - failed for failed in one] for one in y]
                series.append(Series(label=name, x=x, y=y))
        if series:
            longer = (
                " GRPO on hard problems trains for longer, because it also gets the rollouts of the prefix search."
                if any(results.runs(condition, "unguided"))
                else ""
            )
            figures.append(
                Lines(title=f"{prefix}{title} while training", x_label="generation batch", y_label=label, series=series,
                      caption=f"By stratum, at the training temperature.{longer}")
            )  # fmt: skip
    return figures


def _bars(results: Results, condition: str, prefix: str) -> list[Figure]:
    figures: list[Figure] = []
    for metrics, title in (
        (("hard_pass1", "held_pass1", "easy_pass1"), "pass@1"),
        (("hard_pass16", "held_pass16"), "pass@16"),
        (("hard_solved", "held_solved"), "problems solved at least once"),
    ):
        labels, values = [], []
        done = [run for arm in ARMS for run in results.runs(condition, arm.name) if run]
        metrics = [metric for metric in metrics if any(metric in run.metrics for run in done)]  # real: no short ones
        for arm in ARMS:
            runs = results.runs(condition, arm.name)
            if any(runs):
                labels.append(arm.label)
                values.append([[run.metrics.get(metric) if run else None for run in runs] for metric in metrics])
        if labels:
            names = {"hard": "hard, training", "held": "hard, held out", "easy": "short"}
            figures.append(
                Bars(title=f"{prefix}{title}, unguided", x_label="problems", y_label="%", labels=labels, values=values,
                     groups=[names[metric.partition("_")[0]] for metric in metrics],
                     caption="Fresh samples, with a seed that was not used for selection"
                     + (", and as many for the base model as for each arm. A dot is one base model, the mean of its "
                        "trainings." if len(labels) > 1 else "."))
            )  # fmt: skip
    return figures


def _pass_at_k(results: Results, condition: str, prefix: str) -> list[Figure]:
    samples = Settings.model_validate(results.plan.settings).samples
    ks = [2**power for power in range(samples.bit_length()) if 2**power <= samples]
    figures: list[Figure] = []
    for part, title in (("hard", "hard problems"), ("held", "held-out hard problems")):
        series = []
        for arm in ARMS:
            runs = [run for run in results.runs(condition, arm.name) if run]
            counts = [run.predictions()[part] for run in runs]
            y: list[list[float | None]] = [
                [100 * float(np.mean(pass_at_k(samples, one, k))) for k in ks] for one in counts
            ]
            if y:
                series.append(Series(label=arm.label, x=[float(k) for k in ks], y=y))
        if series:
            figures.append(
                Lines(title=f"{prefix}pass@k, {title}, unguided", x_label="k", y_label="%", series=series, log_x=True,
                      caption=f"Unbiased estimates from {samples} fresh samples per problem for the base model and "
                      "each arm. A thin line is one base model, the mean of its trainings.")
            )  # fmt: skip
    return figures


def _mining(results: Results, condition: str, prefix: str) -> list[Figure]:
    rows = []
    for seed in results.seeds if results.plan.settings.get("model") else ():
        run = results.run(condition, "base", seed)
        if run is not None:
            training, held = json.loads((run.directory / MINED).read_text(encoding="utf-8"))
            wanted = (results.plan.settings["hard_problems"], results.plan.settings["held_problems"])
            rows += [
                [str(seed), name, str(sum(counts.values())), *map(str, counts.values()), str(min(counts["hard"], most))]
                for name, counts, most in zip(("training", "held out"), (training, held), wanted, strict=True)
            ]
    if not rows:
        return []
    caption = (
        "Problems are mined in a random order, which the seed decides, until enough are hard. Those that are neither "
        "solved nor hard are not used: most of their rollouts were cut off (truncated), have no final answer "
        "(unparsed) or agree on another answer than the label (suspect), or the grader does not accept their label "
        "(broken), or the engine refused their prompt or failed on it (failed)."
    )
    columns = ["seed", "problems", "mined", *KINDS, "used"]
    return [Table(title=f"{prefix}Mining", caption=caption, columns=columns, rows=rows)]


def _search(results: Results, condition: str, prefix: str) -> list[Figure]:
    rows = []
    for seed in results.seeds:
        run = results.run(condition, "base", seed)
        if run is None:
            continue
        found = json.loads((run.directory / "prefixes.json").read_text(encoding="utf-8"))
        helped = [one for one in found if one["status"] == "found"]
        cuts = [one["cut"]["fraction"] for one in helped]
        rows.append([
            str(seed), f"{len(helped)} of {len(found)}", f"{np.mean(cuts):.2f}" if cuts else "none",
            str(sum(one["leaks"] for one in found)),
            str(sum(one["bare"] > 0 and not one["in_question"] for one in found)),
            f"{run.metrics['search_rollouts']:,.0f}",
            *(_percent(run.metrics.get(name)) for name in
              ("guided_start", "guided_helped", "unguided_start", "guided_all", "guided_all_helped", "hard_pass1")),
        ])  # fmt: skip
    if not rows:
        return []
    columns = ["base", "prefix found", "mean fraction", "leaks left out", "answer only in prefix", "rollouts",
               "found: guided success", "above 0", "unguided", "all: guided success", "above 0",
               "unguided"]  # fmt: skip
    caption = (
        "The shortest prefix with a success, up to the cap; a problem without one gets the longest. The search stops "
        "at successes, which overestimates the success rate. So the last six columns are from fresh samples: on "
        "problems whose prefix was found, and on all hard problems, including those with the longest prefix."
    )
    return [Table(title=f"{prefix}Prefix search", caption=caption, columns=columns, rows=rows)]


def _samples(results: Results, condition: str, prefix: str) -> list[Figure]:
    blocks: list[tuple[str, str]] = []
    for arm in ARMS:
        run = next(filter(None, results.runs(condition, arm.name)), None)
        if run is None:
            continue
        shown: dict[str, Any] = json.loads((run.directory / "samples.json").read_text(encoding="utf-8"))
        if arm.name == "base":
            blocks.append(("Problem", shown["prompt"]))
            blocks.append(("Oracle solution", shown["solution"]))
            if shown["prefix"]:
                label = "Prefix that the search found" if shown["status"] == "found" else FALLBACK
                blocks.append((label, shown["prefix"]))
        for kind in ("unguided", "guided"):
            if kind in shown:
                text = "\n".join(f"[{'correct' if right else 'wrong'}] {text}" for text, right in shown[kind])
                blocks.append((f"{arm.label}, {kind}", text))
    if not blocks:
        return []
    caption = "Rollouts are the first ones of their seed, not selected, each after the grader's verdict."
    labels, texts = zip(*blocks, strict=True)
    return [Text(title=f"{prefix}One problem", caption=caption, labels=list(labels), blocks=list(texts))]


def _groups(results: Results) -> dict[str, Items]:
    """For claims about the share of unguided groups with a reward: the counts of such groups, over all trainings.

    They decide the claim if no base model ever gets a reward, or all do in every group: the share is perfect then.
    """
    found: dict[str, Items] = {}
    for claim in results.plan.claims:
        if claim.metric != "signal" or claim.against is None:
            continue
        runs = [run for run in results.runs(claim.condition, claim.arms[0]) if run]
        failed = [line["unguided/all_fail"] for run in runs for line in run.history() if "unguided/all_fail" in line]
        settings = Settings.model_validate(results.plan.settings)
        groups = settings.prompts_per_batch * settings.rl_seeds  # of one generation batch, all trainings together
        if failed:
            hits = round(sum(1 - share for share in failed) * groups)
            found[claim.id] = Shares(cells=[(hits, groups * len(failed))])
    return found


def item_interval(results: Results, claim: Claim) -> tuple[float, float] | None:
    """Bootstrap interval over the problems of each base model; base models and trainings are held fixed."""
    part, _, statistic = claim.metric.partition("_")
    if len(claim.arms) != 2 or statistic not in ("pass1", "solved"):
        return None
    pairs = []
    for seed in results.seeds:
        runs = [results.run(claim.condition, arm, seed) for arm in claim.arms]
        if all(run and claim.metric in run.metrics and part in run.predictions() for run in runs):
            # [problems, trainings]
            pairs.append([run.predictions()[part].T for run in runs if run])
    if not pairs or len({len(array) for pair in pairs for array in pair}) != 1:
        return None
    samples = int(results.plan.settings["samples"])

    def mean(correct: np.ndarray) -> float:
        return 100 * float((correct / samples).mean() if statistic == "pass1" else (correct > 0).mean())

    return bootstrap_difference(
        mean, treated=[[pair[0]] for pair in pairs], control=[[pair[1]] for pair in pairs], resamples=RESAMPLES,
        rng=np.random.default_rng(0), level=results.plan.level,
    )  # fmt: skip


def _notes(results: Results) -> list[str]:
    settings = Settings.model_validate(results.plan.settings)
    real = settings.model is not None
    trainings, trained = settings.rl_seeds, {arm.name for arm in results.plan.arms} - {"base"}
    unit = "The unit of replication is the base model: each seed is one base model with its own problems"
    if real:
        unit = "Each seed draws its problems from the files; the model is the same, so nothing is known about others"
    value = f", and its value is the mean of {trainings} training{'s' if trainings > 1 else ''}" if trained else ""
    others = " and no other likely cause of that" if real else ""
    notes = [
        f"Hard problems are those with 0 of {settings.mine_k} rollouts correct{others}: that the base model solves "
        "none of them in mining is selection, not a result. The base model's row is from fresh samples. Mining and "
        "search stop at a success, so they report whether a problem was solved, and with how many rollouts, but no "
        "rates.",
        f"{unit}{value}.",
    ]
    if "unguided" in trained:
        but = " but those of entropy bonus and weight decay" if settings.entropy_bonus else ""
        notes.append(
            f"Without a reward there are no updates{but}, so plain RL learns nothing from groups without a success by "
            "construction. How often it gets a reward is measured."
        )
        if settings.match_rollouts:
            notes.append(
                "Both arms get at least as many rollouts: unguided GRPO trains on as many more as the search used, in "
                "whole generation batches."
            )
    if not real:
        notes.append(
            "The problems are generated, and the base model's errors on long ones were planted in its training data: "
            "this tests the mechanism, not the behaviour of language models."
        )
    if len(results.seeds) < 2:
        over = "intervals are over problems, and claims are undecided" if trained else "its claim is undecided"
        notes.append(f"With one base model, nothing is known about others: {over}.")
    return notes


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f} %"
