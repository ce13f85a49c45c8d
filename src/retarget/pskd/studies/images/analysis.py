"""Figures, notes and intervals over images for an image study's page."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from retarget.metrics import calibration as c
from retarget.pskd.studies.images.caveats import (
    at_an_end,
    chosen_at,
    faultless,
    known_after_temperature,
    no_temperature,
    on_data,
)
from retarget.pskd.studies.images.classes import class_figures
from retarget.pskd.studies.images.ranks import corruptions, ranks
from retarget.pskd.studies.images.scores import TEMPERATURES, UNKNOWN, fitted_temperature, log_losses, log_odds
from retarget.pskd.studies.images.settings import SAME_WEIGHTS
from retarget.study.config import Claim
from retarget.study.figures import Analysis, Bars, Figure, Lines, Series
from retarget.study.record import Results
from retarget.study.statistics import bootstrap_difference

SHOWN = ("cross_entropy", "label_smoothing", "pskd")  # the arms whose curves are drawn: more would hide these
RESAMPLES = 500
OVER_CONFIDENT = 1.05  # fitted temperature from which a classifier is called over-confident
TENTHS = ["easiest", *(f"{d}" for d in range(2, 10)), "hardest"]
RELIABILITY, COVERAGE = "Reliability", "Risk and coverage"
LEAD = (RELIABILITY, COVERAGE)
"""Titles of the figures that the page shows before its tables, for the first condition."""

_ITEM_STATISTICS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]] = {
    "top1": lambda confidence, odds, correct, nll: 100 * float(correct.mean()),
    "nll": lambda confidence, odds, correct, nll: float(nll.mean()),
    "ece": lambda confidence, odds, correct, nll: 100 * c.expected_calibration_error(confidence, correct),
    "aurc": lambda confidence, odds, correct, nll: 1000 * c.aurc(odds, correct),
}


def analyse(results: Results) -> Analysis:
    """Figures for each condition, the hardest tenth's share of the gradient, and bootstrap intervals over images."""
    figures: list[Figure] = []
    metrics: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    for condition in results.plan.conditions:
        prefix = f"{condition.label}: " if len(results.plan.conditions) > 1 else ""
        shares, deciles = _deciles(results, condition.name, prefix)
        metrics[condition.name] = shares
        for arm, chance in _chance(results, condition.name).items():
            metrics[condition.name].setdefault(arm, {})["top1_chance"] = chance
        for arm, known in known_after_temperature(results, condition.name).items():
            metrics[condition.name].setdefault(arm, {}).update(known)
        figures += [*_curves(results, condition.name, prefix), *deciles]
        figures += _same_weights(results, condition.name, prefix, shares)
        figures += [*_sweep(results, condition.name, prefix), *ranks(results, condition.name, prefix)]
        figures += corruptions(results, condition.name, prefix)
        figures += class_figures(results, condition.name, prefix, _arms(results, condition.name))
    intervals = {}
    for claim in results.plan.claims:
        interval = _item_interval(results, claim)
        if interval is not None:
            intervals[claim.id] = interval
    lead = [figure.title for figure in figures if figure.title.endswith(LEAD)][: len(LEAD)]
    return Analysis(metrics=metrics, item_intervals=intervals, figures=figures, lead=lead, notes=_notes(results))


def better_than_chance(labels: np.ndarray) -> float:
    """The top-1 accuracy, in percent, that a classifier must exceed to be better than one constant answer.

    The share p of the most frequent class, plus three standard errors sqrt(p (1 - p) / N) of an accuracy on N images;
    at most 100, which a test part with few images of the other classes would exceed.

    Args:
        labels: of the test images, [N].

    >>> better_than_chance(np.arange(100) % 2)
    65.0
    >>> better_than_chance(np.arange(100) == 0)
    100.0
    """
    share = np.bincount(labels).max() / len(labels)
    return min(100.0, float(100 * (share + 3 * np.sqrt(share * (1 - share) / len(labels)))))


def _chance(results: Results, condition: str) -> dict[str, list[float | None]]:
    """:func:`better_than_chance` by arm, at the seeds that have a run; one value, since all share the test images."""
    runs = {arm.name: results.runs(condition, arm.name) for arm in results.plan.arms}
    found = next((run for many in runs.values() for run in many if run), None)
    if found is None:
        return {}
    chance = better_than_chance(found.predictions()["test_labels"])
    return {arm: [chance if run else None for run in many] for arm, many in runs.items() if any(many)}


def _arms(results: Results, condition: str) -> list[tuple[str, str]]:
    """Arms to draw, those with at least one run: (name, label)."""
    drawn = [arm for arm in results.plan.arms if arm.name in SHOWN or len(results.plan.arms) <= 4]
    return [(a.name, a.label) for a in drawn if any(results.run(condition, a.name, s) for s in results.seeds)]


def _curves(results: Results, condition: str, prefix: str) -> list[Figure]:
    learning, reliability, coverage = [], [], []
    for arm, label in _arms(results, condition):
        epochs: list[float] = []
        top1, gaps, counts, risks = [], [], [], []
        for seed in results.seeds:
            run = results.run(condition, arm, seed)
            if run is None:
                continue
            history = run.history()
            epochs = [line["step"] + 1 for line in history]
            top1.append([line.get("val_top1") for line in history])
            arrays = run.predictions()
            probs = c.apply_temperature(arrays["test_logits"], 1.0)
            bins = c.reliability_diagram(probs, arrays["test_labels"], bins=10)
            gaps.append([None if np.isnan(value) else float(value) for value in bins.accuracy])
            counts.append([int(count) for count in bins.count])
            curve = c.risk_coverage_curve(probs, arrays["test_labels"])
            grid = np.linspace(0.02, 1, 50)
            risks.append([float(v) for v in np.interp(grid, curve.coverage, curve.risk)])
        learning.append(Series(label=label, x=epochs, y=top1))
        reliability.append(Series(label=label, x=[0.05 + 0.1 * b for b in range(10)], y=gaps, counts=counts))
        coverage.append(Series(label=label, x=[float(v) for v in np.linspace(0.02, 1, 50)], y=risks))
    if not learning:
        return []
    return [
        Lines(
            title=prefix + "Validation accuracy by epoch",
            caption="On the validation part of the training data.",
            x_label="epoch", y_label="top-1 accuracy (%)", series=learning,
        ),
        Lines(
            title=prefix + RELIABILITY,
            caption="Accuracy of the test images in each tenth of confidence, before any temperature. On the diagonal "
            "confidence is honest; below it the model is over-confident.",
            x_label="confidence", y_label="accuracy", series=reliability, diagonal=True, counted="images",
        ),
        Lines(
            title=prefix + COVERAGE,
            caption="Error among the test images that are kept when the least confident are set aside. Lower is "
            "better; the area under the curve is AURC.",
            x_label="share of images kept", y_label="error", series=coverage,
        ),
    ]  # fmt: skip


def _deciles(
    results: Results, condition: str, prefix: str
) -> tuple[dict[str, dict[str, list[float | None]]], list[Figure]]:
    """Gradient share and accuracy by difficulty. A training image's difficulty is 1 - p_y under the cross-entropy
    model of the *next* seed, which is independent of the two runs that are compared."""
    shares: dict[str, dict[str, list[float | None]]] = {}
    bars: dict[str, list[list[float | None]]] = {}
    correct: dict[str, list[list[float | None]]] = {}
    for arm in results.plan.arms:
        if arm.settings.get("mixing", "none") != "none" or "peer" in arm.settings:
            continue  # a mixed image has no difficulty; a peer's gradient is not measured
        per_seed: list[list[float | None]] = []
        accuracy: list[list[float | None]] = []
        for seed in results.seeds:
            run, judge = results.run(condition, arm.name, seed), _judge(results, condition, seed)
            if run is None or judge is None:
                per_seed.append([None] * 10)
                accuracy.append([None] * 10)
                continue
            arrays, parts = run.predictions(), _tenths(judge)
            norm = arrays.get("gradient_norm")  # not measured on several devices
            per_seed.append([None] * 10 if norm is None else _shares(norm, parts))
            accuracy.append([float(100 * arrays["train_correct"][part].mean()) for part in parts])
        shares[arm.name] = {"hard_gradient_share": [row[-1] for row in per_seed]}
        bars[arm.name] = [[row[d] for row in per_seed] for d in range(10)]
        correct[arm.name] = [[row[d] for row in accuracy] for d in range(10)]
    drawn = [(name, label) for name, label in _arms(results, condition) if name in bars]
    measured = any(value is not None for name, _ in drawn for row in bars[name] for value in row)
    if not measured:
        return shares, []
    labels = [label for _, label in drawn]
    return shares, [
        Bars(
            title=prefix + "Who gets the gradient",
            caption="Share of the last epoch's gradient norm (L1, on the logits) by tenths of difficulty, as judged by "
            "the cross-entropy model of another seed.",
            x_label="difficulty", y_label="share of the gradient (%)", groups=TENTHS, labels=labels,
            values=[bars[name] for name, _ in drawn],
        ),
        Bars(
            title=prefix + "Training accuracy by difficulty",
            caption="Accuracy on the training images, without augmentation or label noise, by the same tenths.",
            x_label="difficulty", y_label="accuracy (%)", groups=TENTHS, labels=labels,
            values=[correct[name] for name, _ in drawn],
        ),
    ]  # fmt: skip


def _same_weights(
    results: Results, condition: str, prefix: str, metrics: dict[str, dict[str, list[float | None]]]
) -> list[Figure]:
    """The same shares for three kinds of targets, all on the weights of the PS-KD arm: only the targets differ.

    Adds ``hard_gradient_middle`` and ``hard_gradient_end`` to ``metrics``, under the arm that has these targets.
    """
    targets = {arm.name: arm.label for arm in results.plan.arms if arm.name in SAME_WEIGHTS}
    figures: list[Figure] = []
    for moment, (name, epoch) in enumerate((("hard_gradient_middle", "middle"), ("hard_gradient_end", "last"))):
        tenths: dict[str, list[list[float | None]]] = {arm: [] for arm in targets}
        for seed in results.seeds:
            run, judge = results.run(condition, "pskd", seed), _judge(results, condition, seed)
            norms = run.predictions().get("gradient_same_weights") if run else None
            for arm in targets:
                if norms is None or judge is None:
                    tenths[arm].append([None] * 10)
                else:
                    tenths[arm].append(_shares(norms[moment, SAME_WEIGHTS.index(arm)], _tenths(judge)))
        if not any(row[-1] is not None for rows in tenths.values() for row in rows):
            continue
        for arm, rows in tenths.items():
            metrics.setdefault(arm, {})[name] = [row[-1] for row in rows]
        figures.append(
            Bars(
                title=f"{prefix}Who gets the gradient on the same weights, {epoch} epoch",
                caption="Share of the gradient norm (L1, on the logits) by tenths of difficulty, on the network that "
                "PS-KD trained, with the targets of each arm in turn.",
                x_label="difficulty", y_label="share of the gradient (%)", groups=TENTHS,
                labels=list(targets.values()),
                values=[[[row[d] for row in tenths[arm]] for d in range(10)] for arm in targets],
            )
        )  # fmt: skip
    return figures


def _tenths(judge: np.ndarray) -> list[np.ndarray]:
    """Indices of the training images by difficulty, from the easiest tenth to the hardest."""
    return np.array_split(np.argsort(judge, kind="stable")[::-1], 10)  # p_y descending


def _shares(norm: np.ndarray, parts: list[np.ndarray]) -> list[float | None]:
    """Share of the gradient norm in each part, in %; 0 for samples that the epoch left out."""
    norm = np.nan_to_num(norm)
    return [float(100 * norm[part].sum() / norm.sum()) for part in parts]


def _judge(results: Results, condition: str, seed: int) -> np.ndarray | None:
    """p_y, [N], of the training images under the cross-entropy model of the next seed that has one."""
    at = list(results.seeds).index(seed)
    for other in [*results.seeds[at + 1 :], *results.seeds[:at]]:
        run = results.run(condition, "cross_entropy", other)
        if run is not None:
            return run.predictions()["train_p_true"]
    return None


def _item_interval(results: Results, claim: Claim) -> tuple[float, float] | None:
    """Bootstrap over test images of treated - control, with the seeds held fixed."""
    base = claim.metric.removesuffix("_scaled")
    if base not in _ITEM_STATISTICS or len(claim.arms) != 2:
        return None
    right = faultless(results, claim.condition) if base != claim.metric else {}
    without = {seed for arm in claim.arms for seed in right.get(arm, ())}
    pairs = []
    for seed in results.seeds:
        runs = [results.run(claim.condition, arm, seed) for arm in claim.arms]
        if all(runs) and seed not in without:
            pairs.append([_items(run.predictions(), claim.metric.endswith("_scaled")) for run in runs if run])
    if not pairs:
        return None
    return bootstrap_difference(
        _ITEM_STATISTICS[base],
        treated=[pair[0] for pair in pairs],
        control=[pair[1] for pair in pairs],
        resamples=RESAMPLES,
        rng=np.random.default_rng(0),
        level=results.plan.level,
    )


def _items(arrays: dict[str, np.ndarray], scaled: bool) -> tuple[np.ndarray, ...]:
    """Confidence, log odds, correctness and NLL of each test image, [N] each, which the statistics are of."""
    temperature = fitted_temperature(arrays) if scaled else 1.0
    logits, labels = arrays["test_logits"], arrays["test_labels"]
    probs = c.apply_temperature(logits, temperature)
    odds = log_odds(logits, temperature)
    return probs.max(1), odds, logits.argmax(1) == labels, log_losses(logits, labels, temperature)


def _confidence(temperature: float) -> str:
    """Compare a classifier's confidence with its accuracy, by its fitted temperature."""
    if temperature == UNKNOWN:
        return "has every validation image right, so it cannot be told how confident it should be"
    says = "is over-confident, so softer targets can help"
    if temperature < 0.95:
        says = "is under-confident, and softer targets make it more so"
    elif temperature < OVER_CONFIDENT:
        says = "is about as confident as it is accurate, so softer targets have little to improve"
    return f"{says} (fitted temperature {temperature:.2f})"


def remark(arm: str, metrics: Mapping[str, float]) -> str | None:
    """Predict from the control's first run whether PS-KD can help, before the other runs are done.

    >>> print(remark("cross_entropy", {"temperature": 0.6}))
    cross-entropy is under-confident, and softer targets make it more so (fitted temperature 0.60): PS-KD is not \
expected to help calibration here
    >>> print(remark("cross_entropy", {"temperature": 10.0}))
    cross-entropy's fitted temperature is at the end of its range: it may have learnt too little to be judged
    """
    if arm != "cross_entropy" or "temperature" not in metrics:
        return None
    temperature = metrics["temperature"]
    if temperature == UNKNOWN:
        return f"cross-entropy {_confidence(temperature)}: more validation images would tell"
    if temperature == TEMPERATURES[1]:
        return (
            "cross-entropy's fitted temperature is at the end of its range: it may have learnt too little to be judged"
        )
    chances = "may help here" if temperature >= OVER_CONFIDENT else "is not expected to help calibration here"
    return f"cross-entropy {_confidence(temperature)}: PS-KD {chances}"


def _swept(results: Results) -> dict[float, str]:
    """Arms by ascending alpha_T, cross-entropy as 0, if they are a sweep of it; else none."""
    arms = {0.0 if arm.name == "cross_entropy" else arm.settings.get("alpha_T"): arm.name for arm in results.plan.arms}
    swept = {weight: name for weight, name in arms.items() if weight is not None}
    return dict(sorted(swept.items())) if len(swept) >= 4 else {}


def _by_weight(results: Results, condition: str, metric: str) -> list[list[float | None]]:
    """One metric of a sweep's arms, [seeds, arms]."""
    runs = [[results.run(condition, arm, seed) for arm in _swept(results).values()] for seed in results.seeds]
    unknown = known_after_temperature(results, condition)
    values = [[one.metrics[metric] if one else None for one in row] for row in runs]
    for column, arm in enumerate(_swept(results).values()):
        for row, value in enumerate(unknown.get(arm, {}).get(metric, ())):
            values[row][column] = value
    return values


def _sweep(results: Results, condition: str, prefix: str) -> list[Figure]:
    """Confidence and accuracy by alpha_T, if the arms are a sweep of it."""
    weights = list(_swept(results))
    return [
        Lines(
            title=f"{prefix}{label} by alpha_T", caption="alpha_T 0 is cross-entropy.", x_label="alpha_T",
            y_label=label, series=[Series(label="PS-KD", x=weights, y=_by_weight(results, condition, metric))],
        )
        for metric, label in (
            ("nll_scaled", "NLL after temperature"), ("top1", "Top-1 accuracy (%)"), ("ece", "ECE (%)")
        )
        if weights
    ]  # fmt: skip


def recommended(weights: Sequence[float], values: np.ndarray) -> str:
    """Recommend the alpha_T that are better than cross-entropy on every seed.

    Args:
        weights: alpha_T of the arms, 0 (cross-entropy) first.
        values: NLL after temperature, [seeds, arms]; seeds with a missing arm (NaN) are ignored.

    >>> recommended([0.0, 0.4, 0.8], np.array([[0.5, 0.4, 0.3], [0.5, 0.4, 0.6], [np.nan, 0.1, 0.1]]))
    'alpha_T 0.4: a lower NLL after temperature than cross-entropy on each of 2 seeds; the lowest mean at 0.4.'
    """
    complete = values[~np.isnan(values).any(1)]
    if not len(complete):
        return "no seed has all its runs."
    good = [f"{weight:g}" for at, weight in enumerate(weights) if at and (complete[:, at] < complete[:, 0]).all()]
    if not good:
        return f"no alpha_T has a lower NLL after temperature than cross-entropy on each of {len(complete)} seeds."
    return (
        f"alpha_T {', '.join(good)}: a lower NLL after temperature than cross-entropy on each of {len(complete)} "
        f"seeds; the lowest mean at {weights[int(complete.mean(0).argmin())]:g}."
    )


def _notes(results: Results) -> list[str]:
    notes = [
        chosen_at(results),
        "Calibration and ranking claims are decided after a temperature has been fitted on the validation part: it can "
        "be applied to any model. The raw figure is shown beside it but decides nothing.",
    ]
    if results.plan.settings["epochs"] == 1 and any("pskd" in arm.settings.values() for arm in results.plan.arms):
        notes.append(
            "In a single epoch PS-KD has no past predictions, so that its arms are trained as cross-entropy is."
        )
    for condition in results.plan.conditions:
        where = f"{condition.label}: " if len(results.plan.conditions) > 1 else ""
        weights = list(_swept(results))
        if weights:
            likelihood = np.array(_by_weight(results, condition.name, "nll_scaled"), dtype=float)
            notes.append(f"{where}recommended range: {recommended(weights, likelihood)}")
        fitted = [one.metrics["temperature"] for one in results.runs(condition.name, "cross_entropy") if one]
        if fitted:
            notes.append(f"{where}cross-entropy {_confidence(float(np.mean(fitted)))}.")
        notes += [f"{where}{one}" for one in on_data(results, condition.name)]
        about = (no_temperature(results, condition.name), at_an_end(results, condition.name))
        notes += [f"{where}{one}" for one in about if one]
    if len(results.seeds) < 2:
        notes.append("Gradient share by difficulty needs a second seed, whose cross-entropy model judges difficulty.")
    return notes
