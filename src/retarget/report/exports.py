"""Export the page's content to files: CSV and LaTeX of every table, SVG and CSV of every drawing."""

import csv
import io
import re
from collections.abc import Sequence

from retarget.report.claims import arm_labels, not_run
from retarget.report.source import Study
from retarget.report.svg import standalone
from retarget.report.view import StudyView
from retarget.study.figures import Bars, Figure, Lines, Table, Text

Rows = Sequence[Sequence[str]]
"""Cells as text; the first row is the header."""

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$", "×": r"$\times$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "≤": r"$\leq$", "≥": r"$\geq$", "\N{NARROW NO-BREAK SPACE}": r"\,", "…": r"\ldots{}",
    "µ": r"$\mu$", "α": r"$\alpha$", "γ": r"$\gamma$", "σ": r"$\sigma$", "λ": r"$\lambda$", "✓": "", "✕": "", "–": "--",
    **{raised: f"\\textsuperscript{{{plain}}}" for raised, plain in zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True)},
    "⁻": r"\textsuperscript{$-$}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\"": "''",
}  # fmt: skip
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\Z", re.IGNORECASE)


def files(study: Study, view: StudyView) -> dict[str, bytes]:
    """The files of the folder beside the page, by name; every name begins with the study's key."""
    key = view.key
    found: dict[str, bytes] = {}

    def table(name: str, shown: Rows, data: Rows | None = None) -> None:
        found[f"{key}-{name}.csv"] = as_csv(data or shown)
        found[f"{key}-{name}.tex"] = as_latex(shown, f"tab:{key}-{name}")

    if view.claims:
        table("claims", _claims_shown(view), _claims_data(study))
    if view.metrics:
        found[f"{key}-values.csv"] = as_csv(_values(study))
    for place, one in enumerate(view.metrics, start=1):
        for name, part in ((f"metrics-{place}", one.shown), (f"more-{place}", one.more)):
            if part:
                heads = [part.corner, *(head.label for head in part.heads)]
                rows = [[head.label, *(_plus_minus(c.mean, c.sd) for c in cells)] for head, cells in part.rows]
                table(name, [heads, *rows])
    for place, one in enumerate(view.pairs, start=1):
        rows = [[name, *(f"{c.estimate} {c.interval}".strip() for c in cells)] for name, cells in one.rows]
        table(f"pairs-{place}", [["Difference", *(head.label for head in one.heads)], *rows])
    if view.cost:
        table("cost", view.cost)
    if view.forest:
        wide = view.forest.wide
        found[f"{key}-forest.svg"] = standalone(wide.svg, wide.width, wide.height, wide.alt).encode()
    for figure, shown in zip(study.analysis.figures, view.figures, strict=True):
        if isinstance(figure, Table):
            table(shown.name, [figure.columns, *figure.rows])
        elif data := _data(figure):
            found[f"{key}-{shown.name}.csv"] = as_csv(data)
        for name, drawing in zip(shown.files(key), shown.drawings, strict=bool(shown.drawings)):
            found[name] = standalone(drawing.svg, drawing.width, drawing.height, drawing.alt).encode()
        for name, picture in zip(shown.files(key), shown.pictures, strict=bool(shown.pictures)):
            found[name] = picture.data
    cited = re.sub(r"\[@(\w+)\]", r"\\citep{\1}", "\n\n".join(map(_latex, view.methods.split("\n\n"))))
    found[f"{key}-methods.txt"] = f"{view.methods}\n".encode()
    found[f"{key}-methods.tex"] = f"{cited}\n".encode()
    found[f"{key}-references.bib"] = f"{view.bibtex}\n".encode()
    return found


def as_csv(rows: Rows) -> bytes:
    """CSV in UTF-8. A cell that a spreadsheet would take for a formula is prefixed with an apostrophe.

    >>> as_csv([["a", "=1+1"], ["−0.5", "-0.5"]])
    b"a,'=1+1\\r\\n\\xe2\\x88\\x920.5,-0.5\\r\\n"
    """
    out = io.StringIO()
    csv.writer(out).writerows([[_harmless(cell) for cell in row] for row in rows])
    return out.getvalue().encode()


def as_latex(rows: Rows, label: str) -> bytes:
    """A LaTeX tabular for the package booktabs, with a label.

    >>> print(as_latex([["arm", "top-1"], ["a_b", "92 %"]], "tab:x").decode(), end="")
    % needs \\usepackage{booktabs}
    \\begin{tabular}{lr}
    \\toprule
    arm & top-1 \\\\
    \\midrule
    a\\_b & 92 \\% \\\\
    \\bottomrule
    \\end{tabular}
    % \\label{tab:x}
    """
    head, *body = [" & ".join(map(_latex, row)) + r" \\" for row in rows]
    columns = "l" + "r" * (len(rows[0]) - 1)
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
    ]
    lines += [r"\bottomrule", r"\end{tabular}", rf"% \label{{{label}}}"]
    return ("\n".join(lines) + "\n").encode()


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _harmless(cell: str) -> str:
    return f"'{cell}" if cell[:1] in tuple("=+-@\t\r") and not _NUMBER.match(cell) else cell


def _plus_minus(mean: str, sd: str) -> str:
    return f"{mean} ± {sd}" if sd else mean


def _claims_shown(view: StudyView) -> Rows:
    verdict = [] if view.once else ["Verdict"]
    rows = [
        [
            row.sentence,
            row.compared,
            row.metric,
            row.estimate,
            row.interval,
            row.n,
            *([] if view.once else [row.verdict]),
        ]
        for group in view.claims
        for row in group.rows
    ]
    return [["Claim", "Compared", "Metric", "Difference", "Interval", "n", *verdict], *rows]


def _claims_data(study: Study) -> Rows:
    arms, unrun = arm_labels(study), set(not_run(study))
    heads = ["id", "sentence", "condition", "treated", "control", "metric", "unit", "direction", "smallest_effect",
             "margin", "estimate", "low", "high", "level", "n", "verdict", "p_holds", "p_fails", "item_low",
             "item_high"]  # fmt: skip
    rows = []
    for one in study.summary.claims:
        if one.sentence in unrun and not one.n:
            continue
        control = one.against if one.against is not None else arms.get(one.arms[-1], "")
        cells = [one.id, one.sentence, one.condition, arms.get(one.arms[0], ""), control, one.metric, one.unit,
                 one.direction, one.smallest_effect, one.margin, one.estimate, *(one.interval or (None, None)),
                 one.level, one.n, one.verdict, one.p_holds, one.p_fails,
                 *(one.item_interval or (None, None))]  # fmt: skip
        rows.append(["" if cell is None else str(cell) for cell in cells])
    return [heads, *rows]


def _values(study: Study) -> Rows:
    """One row per number, empty if a run lacks it, in the format that ``retarget judge`` reads."""
    rows = [
        [condition, arm, str(seed), metric, "" if value is None else str(value)]
        for condition, arms in study.summary.conditions.items()
        for arm, metrics in arms.items()
        for metric, spread in metrics.items()
        for seed, value in zip(study.summary.seeds, spread.values, strict=True)
    ]
    return [["condition", "arm", "seed", "metric", "value"], *rows]


def _data(figure: Figure) -> Rows:
    """The numbers of a drawing, or the texts of samples; empty for images."""
    match figure:
        case Lines():
            counted = any(series.counts for series in figure.series)
            rows = [
                [series.label, str(place), f"{x:g}", "" if y is None else str(y),
                 *([str(series.counts[place][at]) if series.counts else ""] if counted else [])]
                for series in figure.series
                for place, seed in enumerate(series.y)
                for at, (x, y) in enumerate(zip(series.x, seed, strict=True))
            ]  # fmt: skip
            return [["series", "line", figure.x_label, figure.y_label, *([figure.counted] if counted else [])], *rows]
        case Bars():
            rows = [
                [label, group, str(place), "" if value is None else str(value)]
                for label, groups in zip(figure.labels, figure.values, strict=True)
                for group, seeds in zip(figure.groups, groups, strict=True)
                for place, value in enumerate(seeds)
            ]
            return [["series", figure.x_label, "line", figure.y_label], *rows]
        case Text():
            return [["label", "text"], *zip(figure.labels, figure.blocks, strict=True)]
        case _:
            return []
