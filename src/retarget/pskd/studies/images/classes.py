"""Accuracy by class and confusion tables, from the runs' predictions."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer

from retarget.files import read_json
from retarget.study.figures import Figure, Table
from retarget.study.record import Results, RunResult

NAMES = "classes.json"
"""File beside a run's predictions with the names of the classes, in the order of the labels."""
DATA = "data.json"
"""File beside a run's predictions that describes its images (:func:`retarget.pskd.studies.images.data.described`)."""
WHOLE = 20
"""Most classes in a confusion table; with more, only the most confused pairs are listed."""
LISTED = 50


def class_figures(results: Results, condition: str, prefix: str, arms: Sequence[tuple[str, str]]) -> list[Figure]:
    """Accuracy by class, and one confusion table per arm; all seeds together.

    Args:
        arms: (name, label) of the arms to show.
    """
    counts: dict[str, np.ndarray] = {}
    names: list[str] = []
    for arm, label in arms:
        for run in filter(None, results.runs(condition, arm)):
            arrays = run.predictions()
            found = confusion(arrays["test_labels"], arrays["test_logits"].argmax(1), arrays["test_logits"].shape[1])
            counts[label] = counts.get(label, 0) + found
            names = names or _names(run, len(found))
    if not counts:
        return []
    tables = [_accuracy(counts, names, prefix)]
    if len(names) > WHOLE:
        return [*tables, _pairs(counts, names, prefix)]
    return [*tables, *(_table(label, one, names, prefix) for label, one in counts.items())]


def confusion(
    labels: Integer[np.ndarray, "samples"], predicted: Integer[np.ndarray, "samples"], classes: int
) -> Integer[np.ndarray, "classes classes"]:
    """Count samples: rows are the true class, columns the predicted class.

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    flat = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes)


def _names(run: RunResult, classes: int) -> list[str]:
    """The class names that the run recorded, else the class numbers."""
    path = run.directory / NAMES
    names = [str(name) for name in read_json(path)] if path.exists() else []
    return names if len(names) == classes else [str(number) for number in range(classes)]


def _accuracy(counts: dict[str, np.ndarray], names: list[str], prefix: str) -> Table:
    shares = {label: 100 * np.diag(one) / np.maximum(one.sum(1), 1) for label, one in counts.items()}
    images = next(iter(counts.values())).sum(1)
    mean = np.mean(list(shares.values()), axis=0)
    shown = [at for at in range(len(names)) if images[at]]
    part = ""
    if len(shown) > LISTED:
        shown = sorted(sorted(shown, key=lambda at: mean[at])[:LISTED])
        part = f" The {LISTED} of {len(names)} classes with the lowest accuracy."
    return Table(
        title=f"{prefix}Accuracy by class",
        caption=f"Share of each class's test images that are classified correctly, in %, all seeds together.{part}",
        columns=["class", *shares, "images"],
        rows=[[names[at], *(f"{one[at]:.1f}" for one in shares.values()), str(images[at])] for at in shown],
        folded=len(shown) > WHOLE,
    )


def _table(label: str, counts: np.ndarray, names: list[str], prefix: str) -> Table:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return Table(
        title=f"{prefix}Confusion, {label}",
        caption="Rows are the true class, columns the predicted class: share in % of the row's test images, all seeds "
        "together; empty below 0.05 %.",
        columns=["true class", *names],
        rows=[
            [name, *(f"{100 * share:.1f}" if share >= 0.0005 else "" for share in row)]
            for name, row in zip(names, shares, strict=True)
        ],
        shades=shares.tolist(),
        folded=True,
    )


def _pairs(counts: dict[str, np.ndarray], names: list[str], prefix: str) -> Table:
    """The most confused pairs of classes over all shown arms."""
    shares = {label: 100 * one / np.maximum(one.sum(1, keepdims=True), 1) for label, one in counts.items()}
    mean = np.mean(list(shares.values()), axis=0)
    np.fill_diagonal(mean, 0)
    worst = [divmod(int(at), len(names)) for at in np.argsort(mean, axis=None)[::-1][:WHOLE]]
    return Table(
        title=f"{prefix}What is taken for what",
        caption=f"Share in % of a class's test images that was taken for another class: the {WHOLE} most confused "
        "pairs, all seeds together.",
        columns=["class, taken for", *shares],
        rows=[
            [f"{names[true]}, taken for {names[taken]}", *(f"{one[true, taken]:.1f}" for one in shares.values())]
            for true, taken in worst
            if mean[true, taken] > 0
        ],
    )
