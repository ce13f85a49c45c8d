"""Figures and notes for a detection study's page."""

from retarget.files import read_json
from retarget.metrics import calibration as c
from retarget.pskd.studies.detection.scores import DRAWN_SCORE
from retarget.study.figures import Analysis, Figure, Images, Lines, Series
from retarget.study.record import Results, RunResult

CONDITION = "default"


def analyse(results: Results) -> Analysis:
    """Learning curves, reliability of detections, each arm's detections on the same test images, notes on the data."""
    arms = [(arm.label, runs) for arm in results.plan.arms if (runs := _detectors(results, arm.name))]
    if not arms:
        return Analysis(notes=_notes(results))
    learning, reliability = [], []
    for label, runs in arms:
        history = [run.history() for run in runs]
        epochs = [line["step"] + 1.0 for line in history[0]]
        learning.append(Series(label=label, x=epochs, y=[[line["val_map50"] for line in one] for one in history]))
        diagrams = []
        for run in runs:
            arrays = run.predictions()
            if len(arrays["test_counted_scores"]):
                bins = c.reliability_diagram(arrays["test_counted_scores"], arrays["test_right"])
                diagrams.append([float(value) for value in bins.accuracy])
        reliability.append(Series(label=label, x=[0.05 + 0.1 * b for b in range(10)], y=diagrams))
    figures: list[Figure] = [
        Lines(
            title="Validation mAP50 by epoch", caption="On the validation images.",
            x_label="epoch", y_label="mAP50 (%)", series=learning,
        ),
        Lines(
            title="Reliability of detections",
            caption="Share of correct detections in each tenth of confidence, before any scaling. On the diagonal "
            "confidence is honest; below it the detector is over-confident.",
            x_label="confidence", y_label="share that is correct", series=reliability, diagonal=True,
        ),
    ]  # fmt: skip
    pictures = [(label, runs[0].directory / "detections.png") for label, runs in arms]
    pictures = [(label, path) for label, path in pictures if path.exists()]
    if pictures:
        figures.append(
            Images(
                title="Detections",
                caption="The same test images for each arm, first seed, with the detections that score at least "
                f"{DRAWN_SCORE}. Objects are white, correct detections blue, wrong ones orange.",
                files=[path.relative_to(results.directory) for _, path in pictures],
                labels=[label for label, _ in pictures],
            )
        )
    return Analysis(figures=figures, notes=_notes(results))


def _detectors(results: Results, arm: str) -> list[RunResult]:
    """The finished runs of an arm that detects."""
    return [run for run in results.runs(CONDITION, arm) if run and "map" in run.metrics]


def _notes(results: Results) -> list[str]:
    notes = [
        "A detection is correct if it has the class of an object, overlaps it with an IoU of at least 0.5, and no more "
        "confident detection has taken that object. Calibration claims are decided after Platt scaling fitted on the "
        "validation images: it can be applied to any detector and does not change mAP. The raw figure is shown beside "
        "it but decides nothing.",
        "Boxes are compared after the images have been resized.",
    ]
    if results.plan.settings["dataset"] == "digits":
        notes.append("The scenes are composed of scikit-learn's digits; no digit appears in two parts of the data.")
    runs = [run for arm in results.plan.arms for run in _detectors(results, arm.name)]
    if runs:
        data = read_json(runs[0].directory / "data.json")
        counts = "; ".join(
            f"{name} {part['images']} images with {part['objects']} objects" for name, part in data["parts"].items()
        )
        notes.append(f"{len(data['classes'])} classes; {counts}.")
        if data["dropped"]:
            listed = "; ".join(data["dropped"][:5])
            more = f"; and {len(data['dropped']) - 5} more" if len(data["dropped"]) > 5 else ""
            notes.append(f"Boxes left out, or cut to their image: {len(data['dropped'])}. {listed}{more}.")
        if others := data.get("others"):
            listed = ", ".join(f"{name} {number}" for name, number in list(others.items())[:5])
            more = f" and {len(others) - 5} more classes" if len(others) > 5 else ""
            notes.append(f"Objects of other classes left out: {sum(others.values())} ({listed}{more}).")
    return notes
