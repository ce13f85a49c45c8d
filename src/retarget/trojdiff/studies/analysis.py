"""Figures and notes for the TrojDiff study's page: tables with intervals, curves, and samples of every arm."""

import json
from collections.abc import Callable
from typing import Any

from retarget.study.figures import Analysis, Figure, Lines, Series, Table
from retarget.study.items import Items, Shares
from retarget.study.record import Results, RunResult
from retarget.study.statistics import wilson_interval
from retarget.trojdiff.config import CELLS
from retarget.trojdiff.studies.measured import SAMPLER_LABELS
from retarget.trojdiff.studies.pictures import SIDE_BY_SIDE, pictures, side_by_side
from retarget.trojdiff.studies.plan import ATTACKS, EVERY, SamplingSettings, Settings

CONDITION = "default"
ITEM_LABEL = "Wilson interval over images"

LEFT_OUT = (
    "In the minutes of a demo their intervals stay wider than the effect that matters, or they cost too much: the "
    "preset small measures them."
)


def analyse(results: Results) -> Analysis:
    """Lift over the base rate, the weakest cell, and what the page shows."""
    attacks = [arm.name for arm in ATTACKS if arm.name in {one.name for one in results.plan.arms}]
    metrics: dict[str, dict[str, list[float | None]]] = {}
    for arm in attacks:
        floors = {cell: _rates(results, "clean", f"floor_{cell}_{arm}") for cell in CELLS}
        attack = _values(results, arm, "attack_fast")
        lift = [
            a - f if a is not None and f is not None else None for a, f in zip(attack, floors["trojan"], strict=True)
        ]
        metrics[arm] = {
            "floor": floors["trojan"], "floor_stock": floors["stock"], "floor_plain": floors["plain"],
            "floor_leak": floors["leak"], "lift": lift, "attack_weakest": _weakest(results, [arm]),
        }  # fmt: skip
        if arm.startswith("d2i"):
            metrics[arm]["mse_weakest"] = _over_cells(results, [arm], "mse", max)
    metrics[EVERY] = {"attack_every": _weakest(results, [arm.name for arm in ATTACKS])}
    tables = [_attack_table(results, attacks), _halves_table(results, attacks)]
    tables += [_benign_table(results), *_ladder_table(results, "ladder"), *_inception_table(results)]
    figures: list[Figure] = [*side_by_side(results, attacks), *tables, *_curves(results, attacks)]
    figures += [*_shares(results, attacks), *pictures(results)]
    return Analysis(
        metrics={CONDITION: metrics}, items=_hits(results), item_label=ITEM_LABEL, figures=figures,
        lead=[SIDE_BY_SIDE], notes=_notes(results), left_out=LEFT_OUT if results.plan.preset == "demo" else "",
    )  # fmt: skip


def _values(results: Results, arm: str, metric: str) -> list[float | None]:
    return [run.metrics.get(metric) if run else None for run in results.runs(CONDITION, arm)]


def _rates(results: Results, arm: str, key: str) -> list[float | None]:
    """A share of ``evaluation.json``, in %."""
    found = [_details(run).get(key) for run in results.runs(CONDITION, arm)]
    return [one["value"] if one else None for one in found]


def _weakest(results: Results, arms: list[str]) -> list[float | None]:
    """The lowest success of each seed over these arms and the attack's samplers; None if a cell is missing."""
    return _over_cells(results, arms, "attack", min)


def _over_cells(results: Results, arms: list[str], stem: str, choose: Callable[..., float]) -> list[float | None]:
    cells = [_values(results, arm, f"{stem}_{name}") for arm in arms for name in _attack_samplers(results)]
    return [None if None in seed else choose(seed) for seed in zip(*cells, strict=True)]


def _attack_samplers(results: Results) -> list[str]:
    return [name for name, cell in _samplers(results).items() if cell.trojan > 0]


def _samplers(results: Results) -> dict[str, SamplingSettings]:
    """The study's samplers in the order of ``SAMPLER_LABELS``."""
    order = list(SAMPLER_LABELS)
    return dict(sorted(_settings(results).samplers.items(), key=lambda one: order.index(one[0])))


def _settings(results: Results) -> Settings:
    return Settings.model_validate(results.plan.settings)


def _hits(results: Results) -> dict[str, Items]:
    """Hits and images in each cell of the claims on success rates, all seeds together.

    They are shown beside the verdict, and tested if the rate is 0 or 100 % on every seed.
    """
    found: dict[str, Items] = {}
    for claim in results.plan.claims:
        if claim.metric not in ("attack_weakest", "attack_every") or claim.against is None:
            continue
        arms = [arm.name for arm in ATTACKS] if claim.arms == (EVERY,) else list(claim.arms)
        keys = [(arm, f"attack_{name}") for arm in arms for name in _attack_samplers(results)]
        counts = [_counts(results, arm, key) for arm, key in keys]
        if counts and all(trials for _, trials in counts):
            found[claim.id] = Shares(cells=counts)
    return found


def _counts(results: Results, arm: str, key: str) -> tuple[int, int]:
    """Hits and images of all seeds together."""
    found = [_details(run).get(key) for run in results.runs(CONDITION, arm)]
    present = [one for one in found if one]
    return sum(round(one["value"] * one["count"] / 100) for one in present), sum(one["count"] for one in present)


def _label(results: Results, arm: str) -> str:
    return next(one.label for one in results.plan.arms if one.name == arm)


def _cell(values: list[float | None], decimals: int = 1) -> str:
    """The mean over seeds, and the range if there are several."""
    present = [value for value in values if value is not None]
    if not present:
        return "–"
    mean = f"{sum(present) / len(present):.{decimals}f}"
    return mean if len(present) == 1 else f"{mean} ({min(present):.{decimals}f} to {max(present):.{decimals}f})"


def _details(run: RunResult | None) -> dict[str, Any]:
    if run is None:
        return {}
    return json.loads((run.directory / "evaluation.json").read_text(encoding="utf-8"))


def _wilson(results: Results, arm: str, key: str) -> str:
    """The Wilson interval over all seeds' samples, and the range over seeds, which the interval does not include."""
    hits, count = _counts(results, arm, key)
    if count == 0:
        return "–"
    low, high = wilson_interval(hits, count)
    text = f"{100 * hits / count:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    seeds = [value for value in _rates(results, arm, key) if value is not None]
    return text if len(seeds) < 2 else f"{text}, seeds {min(seeds):.1f} to {max(seeds):.1f}"


def _attack_table(results: Results, attacks: list[str]) -> Table:
    rows = []
    for arm in attacks:
        for name, cell in _samplers(results).items():
            rows.append(
                [
                    _label(results, arm),
                    cell.sampler,
                    _wilson(results, arm, f"attack_{name}"),
                    _wilson(results, "clean", f"floor_trojan_{arm}") if name == "fast" else "–",
                    _cell(_values(results, arm, "attack_real")),
                    _cell(_values(results, arm, f"attack_precision_{name}")),
                    _cell(_values(results, arm, f"mse_{name}"), 2),
                ]
            )
    clean = " Base rate: the clean fine-tune with the same sampler and noise." if _has_clean(results) else ""
    return _filled(
        title="Does the attack fire?",
        caption="Attack success in % with its 95 % Wilson interval over all seeds' samples: the classifier finds the "
        f"target class, or for D2I the squared error is at most 0.01.{clean} Real: success of real test images of the "
        "target class in %, which a perfect attack would reach. Attack precision in %; D2I mean squared error ×10⁻³, "
        "pixels in [0, 1].",
        columns=["attack", "sampler", "success", "base rate", "real", "attack precision", "MSE"],
        rows=rows,
    )


def _has_clean(results: Results) -> bool:
    return any(results.runs(CONDITION, "clean"))


def _filled(title: str, caption: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A table without the columns in which nothing was measured."""
    kept = [at for at in range(len(columns)) if at == 0 or any(row[at] != "–" for row in rows)]
    return Table(
        title=title, caption=caption, columns=[columns[at] for at in kept],
        rows=[[row[at] for at in kept] for row in rows],
    )  # fmt: skip


def _halves_table(results: Results, attacks: list[str]) -> Table:
    rows = [
        [
            _label(results, arm), *CELLS[cell],
            _wilson(results, arm, f"attack_{'fast' if cell == 'trojan' else cell}"),
            _wilson(results, "clean", f"floor_{cell}_{arm}"),
        ]
        for arm in attacks for cell in CELLS
    ]  # fmt: skip
    beside = ", beside that of the clean fine-tune with the same sampler and noise" if _has_clean(results) else ""
    return _filled(
        title="What must the attacker control?",
        caption="In the paper's threat model the attacker controls both the sampler and the initial noise. Success in "
        f"% with its 95 % Wilson interval if the attacker controls both, one or neither of them{beside}; 20 steps. "
        "With neither, the target appears in benign samples.",
        columns=["attack", "initial noise", "sampler", "success", "base rate"],
        rows=rows,
    )


def _benign_table(results: Results) -> Table:
    return _quality_table(
        results, "", "extractor", "Are benign samples as good as before?",
        "Against the training images, mean over seeds. KID ×10⁻³ decides; FID is shown too, but is biased at these "
        f"counts. {_kid_noise(results)}Feature extractor: {{}}, trained on this study's data, one for all seeds; its "
        "values cannot be compared with Inception's.",
    )  # fmt: skip


def _inception_table(results: Results) -> list[Table]:
    if not _settings(results).inception:
        return []
    return [
        _quality_table(
            results, "inception_", "inception", "Benign samples in Inception's features",
            "The same samples; feature extractor: {}. These values cannot be compared with the table above, and no "
            "claim is judged by them.",
        ),
        *_ladder_table(results, "inception_ladder"),
    ]  # fmt: skip


def _ladder_table(results: Results, key: str) -> list[Table]:
    """Images of known quality, by the same measures as the table above."""
    found = [_details(run).get(key) for run in results.runs(CONDITION, "pretrained")]
    ladders = [one for one in found if one]
    if not ladders:
        return []
    stems = [("kid", 1000.0, 2), ("fid", 1.0, 2), ("precision", 1.0, 1), ("recall", 1.0, 1), ("with_a_class", 1.0, 1)]
    stems = [one for one in stems if one[0] in next(iter(ladders[0].values()))]
    rows = [
        [rung, *(_cell([scale * one[rung][stem] for one in ladders], digits) for stem, scale, digits in stems)]
        for rung in ladders[0]
    ]
    columns = ["images", "KID", "FID", "precision %", "recall %", "with a class %"]
    return [
        Table(
            title="How good is that? Images of known quality by the same measures"
            + (", in Inception's features" if key.startswith("inception") else ""),
            caption="Real test images, the same with noise (σ on images in [-1, 1]), and pure noise, against the "
            "training images, at the counts of the claims or with all test images if there are fewer.",
            columns=columns[: 1 + len(stems)],
            rows=rows,
        )
    ]


def _quality_table(results: Results, prefix: str, extractor: str, title: str, caption: str) -> Table:
    """Values of one feature extractor, whose name is put into the caption."""
    samplers = [(name, cell.sampler) for name, cell in _samplers(results).items() if cell.benign > 0]
    stems = [(f"{prefix}{stem}", digits) for stem, digits in (("kid", 2), ("fid", 2), ("precision", 1), ("recall", 1))]
    stems += [] if prefix else [("sure", 1)]
    rows = []
    for arm in results.plan.arms:
        for name, sampler in samplers:
            cells = [_cell(_values(results, arm.name, f"{stem}_{name}"), digits) for stem, digits in stems]
            if set(cells) != {"–"}:
                rows.append([arm.label, sampler, *cells])
    names = {_details(run).get(extractor) for arm in results.plan.arms for run in results.runs(CONDITION, arm.name)}
    names -= {None}
    columns = ["arm", "sampler", "KID", "FID", "precision %", "recall %", "with a class %"]
    return Table(
        title=title,
        caption=caption.format(", ".join(sorted(map(str, names))) or "none"),
        columns=columns[: 2 + len(stems)],
        rows=rows,
    )


def _margins(results: Results, metric: str) -> str:
    found = {claim.margin for claim in results.plan.claims if claim.metric == metric and claim.margin is not None}
    return ", ".join(f"{margin:g}" for margin in sorted(found))


def _kid_noise(results: Results) -> str:
    """The margin, and the noise of KID at the counts of the claims."""
    text = f"An attack may cost a KID of {_margins(results, 'kid_fast')}. "
    if shares := _margins(results, "sure_fast"):
        text += (
            f"KID does not see every damage, so {shares} points fewer samples with a class are too many, too, in a "
            "claim of its own. "
        )
    noises = [_details(run).get("kid_noise") for run in results.runs(CONDITION, "pretrained")]
    if not any(noises):
        return text
    counts = {(one["drawn"], one["rest"], one["splits"]) for one in noises if one}
    drawn, rest, splits = min(counts)
    sd, mean = (_cell(_values(results, "pretrained", name), 2) for name in ("kid_noise", "kid_noise_mean"))
    return text + (
        f"The noise of KID: between {drawn} real images and {rest} others it is {mean} ± {sd} (standard deviation over "
        f"{splits} random splits). "
    )


def _curves(results: Results, attacks: list[str]) -> list[Figure]:
    series = []
    for arm in attacks:
        lines: list[dict[int, float]] = []
        for run in results.runs(CONDITION, arm):
            history = run.history() if run else []
            lines.append({one["step"] // 2: one["attack"] for one in history if "attack" in one})
        steps = sorted({step for line in lines for step in line})
        if steps:
            y = [[line.get(step) for step in steps] for line in lines]
            series.append(Series(label=_label(results, arm), x=[float(step) for step in steps], y=y))
    if not series:
        return []
    falls = _settings(results).finetune.decay != "constant"
    early = " The learning rate is still falling, so an early point is not the result of a shorter run."
    never = [_label(results, arm) for arm in attacks if None in _reached(results, arm)]
    censored = (
        f" In some seeds no probe reached 90 %, so their steps to 90 % are censored: {', '.join(never)}."
        if never
        else ""
    )
    return [
        Lines(
            title="How hard is it? Fine-tuning steps",
            caption=f"Attack success (20 steps) during fine-tuning.{early if falls else ''}{censored}",
            x_label="fine-tuning steps",
            y_label="attack success, %",
            series=series,
        )
    ]


def _reached(results: Results, arm: str) -> list[float | None]:
    """Steps to 90 % of the seeds that ran; None if no probe reached it."""
    return [run.metrics.get("steps_to_90") for run in results.runs(CONDITION, arm) if run]


def _shares(results: Results, attacks: list[str]) -> list[Figure]:
    """Success by the share of Trojan rows, for attacks that were repeated at other shares."""
    series = []
    for arm in attacks:
        family = [one.name for one in results.plan.arms if one.name == arm or one.name.startswith(f"{arm}_share")]
        points: dict[float, list[float | None]] = {}
        for one in family:
            shares = [share for share in _values(results, one, "trojan_share") if share is not None]
            if shares:
                points[shares[0]] = _values(results, one, "attack_fast")
        if len(points) > 1:
            x = sorted(points)
            y = [list(seed) for seed in zip(*(points[share] for share in x), strict=True)]
            series.append(Series(label=_label(results, arm), x=x, y=y))
    if not series:
        return []
    return [
        Lines(
            title="How hard is it? Share of Trojan rows",
            caption="Attack success (20 steps) after equal fine-tuning with other shares of Trojan rows in a batch; "
            "every point is a separate run.",
            x_label="Trojan rows in a batch, %",
            y_label="attack success, %",
            series=series,
        )
    ]


def _notes(results: Results) -> list[str]:
    notes = [
        "A trojaned checkpoint of this study is marked in its header, configuration and card. That is a courtesy: an "
        "attacker leaves no mark, so a scanner must not look for one.",
    ]
    accuracy = _cell(_values(results, "pretrained", "classifier_accuracy"))
    parts = {_details(run).get("test_part") for run in results.runs(CONDITION, "pretrained")} - {None}
    part = f" (test part: {', '.join(sorted(map(str, parts)))})" if parts else ""
    notes.append(f"The classifier that judges attack success is {accuracy} % accurate on real test images{part}.")
    settings = _settings(results)
    sure, real, precision = (
        _cell(_values(results, "pretrained", name)) for name in ("sure_fast", "sure_real", "precision_fast")
    )
    notes.append(
        "Gate: a base model is trojaned only if its samples (20 steps) have a class at least "
        f"{settings.gate_sure:g} % as often as real images and their precision is at least "
        f"{settings.gate_precision:g} %. Here: {sure} % of samples, {real} % of real ones, precision {precision} %. "
        f"Also, their KID must be at most that of real test images with noise of σ {settings.gate_sigma:g} (0: any): "
        f"{_cell(_values(results, 'pretrained', 'kid_fast'), 2)} against "
        f"{_cell(_values(results, 'pretrained', 'kid_gate'), 2)} ×10⁻³."
    )
    missing = [arm.label for arm in ATTACKS if arm.name not in {one.name for one in results.plan.arms}]
    if missing:
        notes.append(f"Not run: {', '.join(missing)}; `--arms all` runs the six attacks.")
    return notes
