"""Figures and notes for a translation study's page."""

from pathlib import Path

from retarget.files import read_json
from retarget.metrics import calibration as c
from retarget.pskd.studies.translation.settings import Settings
from retarget.study.config import Condition
from retarget.study.figures import Analysis, Figure, Lines, Series, Text
from retarget.study.record import Results, RunResult

MULTI30K_BASELINE = 29.0
"""BLEU of the paper's baseline, Multi30k German to English."""
SHOWN = 5
"""Number of sentences whose translations the page shows."""
_FAR_SHORT = 3.0  # BLEU by which a baseline may miss the published one before it is called undertrained


def analyse(results: Results) -> Analysis:
    """Learning curves, reliability of words, translations; notes on the data, signatures, undertrained baselines."""
    figures: list[Figure] = []
    notes: list[str] = []
    remarks: dict[str, dict[str, str]] = {}
    for condition in results.plan.conditions:
        prefix = f"{condition.label}: " if len(results.plan.conditions) > 1 else ""
        figures += _figures(results, condition.name, prefix)
        short = _undertrained(results, condition)
        if short:
            notes.append(f"{prefix}{short}")
            remarks[condition.name] = {"cross_entropy": "undertrained"}
        notes += _counts(results, condition.name, prefix)
    notes += _signatures(results)
    if results.plan.settings["dataset"] == "grammar":
        notes.append(
            "The sentences come from a generated language with reordering and agreement, not from real translations."
        )
    return Analysis(figures=figures, notes=notes, remarks=remarks)


def _runs(results: Results, condition: str, arm: str) -> list[RunResult]:
    return [run for run in results.runs(condition, arm) if run]


def _figures(results: Results, condition: str, prefix: str) -> list[Figure]:
    learning, reliability = [], []
    translated: dict[str, list[str]] = {}
    for arm in results.plan.arms:
        runs = _runs(results, condition, arm.name)
        if not runs:
            continue
        history = [run.history() for run in runs]
        epochs = [line["step"] + 1.0 for line in history[0]]
        learning.append(Series(label=arm.label, x=epochs, y=[[line["val_nll"] for line in one] for one in history]))
        gaps, counts = [], []
        for run in runs:
            arrays = run.predictions()
            diagram = c.reliability_diagram(arrays["test_confidence"], arrays["test_correct"])
            gaps.append(diagram.accuracy.tolist())
            counts.append([int(count) for count in diagram.count])
        reliability.append(Series(label=arm.label, x=[(i + 0.5) / 10 for i in range(10)], y=gaps, counts=counts))
        translated = translated or _originals(runs[0])
        translated[arm.label] = read_lines(runs[0].directory / "translations.txt")[:SHOWN]
    if not learning:
        return []
    samples = [
        "\n".join(f"{who}: {lines[at]}" for who, lines in translated.items() if at < len(lines)) for at in range(SHOWN)
    ]
    samples = [one for one in samples if one]
    return [
        Lines(
            title=f"{prefix}validation NLL per word", caption="Teacher-forced; thin lines are seeds, thick ones means.",
            x_label="epoch", y_label="NLL", series=learning,
        ),
        Lines(
            title=f"{prefix}reliability of words", caption="Share of correct words by the probability given to them.",
            x_label="confidence", y_label="accuracy", series=reliability, diagonal=True, counted="words",
        ),
        Text(
            title=f"{prefix}translations", caption="The first test sentences, first seed, beside their references.",
            labels=[f"sentence {at}" for at in range(1, len(samples) + 1)], blocks=samples,
        ),
    ]  # fmt: skip


def read_lines(path: Path) -> list[str]:
    """The lines of a text; a line may hold the other characters at which ``str.splitlines`` splits, such as U+2028."""
    return path.read_bytes().decode("utf-8").removesuffix("\n").split("\n")


def _originals(run: RunResult) -> dict[str, list[str]]:
    """The source sentences that the page shows beside their translations; empty if the run did not keep them."""
    file = run.directory / "data.json"
    pairs = read_json(file)["samples"] if file.exists() else []
    sides = zip(("source", "reference"), zip(*pairs, strict=True), strict=False)
    return {label: list(side) for label, side in sides}


def _counts(results: Results, condition: str, prefix: str) -> list[str]:
    """How many pairs were read, left out and cut, and the size of the vocabulary."""
    files = [run.directory / "data.json" for arm in results.plan.arms for run in _runs(results, condition, arm.name)]
    files = [file for file in files if file.exists()]
    if not files:
        return []
    data = read_json(files[0])
    counts = "; ".join(
        f"{name} {part['pairs']:,} pairs, {part['dropped']:,} more left out for an empty side, {part['cut']:,} cut"
        for name, part in data["parts"].items()
    )
    said = [f"{prefix}{counts}; the vocabulary has {data['vocabulary']:,} tokens."]
    for name, count in data.get("repeated", {}).items():
        if count:
            said.append(
                f"{prefix}{count:,} of the {data['parts'][name]['pairs']:,} {name} pairs are also training pairs: "
                f"there the {name} part measures memory. Leave them out of the training pairs."
            )
    if count := data.get("shared", 0):
        said.append(
            f"{prefix}{count:,} of the {data['parts']['test']['pairs']:,} test pairs are also validation pairs, to "
            "which the temperature is fitted. Leave them out of one of the two."
        )
    return said


def _undertrained(results: Results, condition: Condition) -> str:
    """A warning if the cross-entropy arm is far below the published one, so that all arms are undertrained.

    The published baseline translates German to English; for other directions there is none to compare with.
    """
    settings = Settings.model_validate({**results.plan.settings, **condition.settings})
    published = settings.test.startswith("test_201") and (settings.source, settings.target) == ("de", "en")
    scores = [run.metrics["bleu"] for run in _runs(results, condition.name, "cross_entropy")]
    if settings.dataset == "grammar" or not published or not scores:
        return ""
    mean = sum(scores) / len(scores)
    if mean >= MULTI30K_BASELINE - _FAR_SHORT:
        return ""
    return (
        f"undertrained: cross-entropy reaches {mean:.1f} BLEU here, and the paper's baseline on Multi30k, German to "
        f"English, is {MULTI30K_BASELINE:.1f}. Train longer before you trust the differences."
    )


def _signatures(results: Results) -> list[str]:
    for condition in results.plan.conditions:
        for arm in results.plan.arms:
            for run in _runs(results, condition.name, arm.name):
                kept = read_json(run.directory / "scores.json")
                return [f"sacreBLEU signatures: {kept['bleu']['signature']}; {kept['chrf']['signature']}."]
    return []
