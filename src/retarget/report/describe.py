"""Describe figures in words, for screen readers and under the pictures in Markdown."""

from collections.abc import Iterable, Sequence

from retarget.study.figures import Bars, Lines, Series


def mean(seeds: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Mean over the seeds that have a value, at each position; None if none has.

    >>> mean([[1.0, None], [3.0, None]])
    [2.0, None]
    """
    means: list[float | None] = []
    for place in zip(*seeds, strict=True):
        present = [value for value in place if value is not None]
        means.append(sum(present) / len(present) if present else None)
    return means


def mean_of(series: Series) -> list[float | None]:
    """Mean of a series over the seeds, weighted by the number of items of each value, if known.

    >>> mean_of(Series(label="a", x=[0.5], y=[[1.0], [0.0]], counts=[[3], [1]]))
    [0.75]
    """
    if series.counts is None:
        return mean(series.y)
    means: list[float | None] = []
    for values, counts in zip(zip(*series.y, strict=True), zip(*series.counts, strict=True), strict=True):
        weighed = [(value, count) for value, count in zip(values, counts, strict=True) if value is not None and count]
        items = sum(count for _, count in weighed)
        means.append(sum(value * count for value, count in weighed) / items if items else None)
    return means


def items_of(series: Series) -> list[int]:
    """The number of items behind each value, all seeds together; empty if not known."""
    return [sum(counts) for counts in zip(*series.counts, strict=True)] if series.counts else []


def describe_lines(figure: Lines, shown: Sequence[Series]) -> str:
    """One sentence per curve: where it starts and ends."""
    head = f"Line chart of {figure.y_label} against {figure.x_label}."
    return " ".join([head, *(_curve(series) for series in shown)])


def describe_bars(figure: Bars, shown: Iterable[int]) -> str:
    """One sentence per series: the mean of each group, or of the first and last group if there are more than twelve."""
    head = f"Bar chart of {figure.y_label} by {figure.x_label}."
    sentences = []
    for index in shown:
        pairs = [
            (name, mean([[v] for v in seeds])[0] if seeds else None)
            for name, seeds in zip(figure.groups, figure.values[index], strict=True)
        ]
        measured = [f"{name} {value:.4g}" for name, value in pairs if value is not None]
        if len(measured) > 12:
            measured = [measured[0], "…", measured[-1]]
        sentences.append(f"{figure.labels[index]}: {', '.join(measured) if measured else 'no value'}.")
    return " ".join([head, *sentences])


def _curve(series: Series) -> str:
    points = [(x, y) for x, y in zip(series.x, mean_of(series), strict=True) if y is not None] if series.y else []
    if not points:
        return f"{series.label}: no value."
    (first_x, first), (last_x, last) = points[0], points[-1]
    weighted = " weighted by their counts" if series.counts else ""
    seeds = f", mean of {len(series.y)} seeds{weighted}" if len(series.y) > 1 else ""
    return f"{series.label}: from {first:.4g} at {first_x:g} to {last:.4g} at {last_x:g}{seeds}."
