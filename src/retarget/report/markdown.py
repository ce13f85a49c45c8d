"""The same report as Markdown: GitHub's tables, figures as files in figures/ beside it."""

import re
from collections.abc import Iterable, Sequence

from retarget.report import words
from retarget.report.claims import ClaimRow
from retarget.report.gallery import FigureView
from retarget.report.measurements import Cell, MetricRow
from retarget.report.svg import standalone
from retarget.report.view import StudyView

_SPECIAL = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")
_BLOCK_START = re.compile(r"^(?:(\d+)(?=[.)](?:\s|$))|(?=(?:#+|[-+])(?:\s|$)|=+\s*$))")
_BREAK = "<br>"
_MARKING = "No column is marked as the best. ↑ higher is better, ↓ lower is better."


def figure_files(studies: Sequence[StudyView]) -> dict[str, bytes]:
    """Content of figures/ by file name: SVG for drawings, the PNG files themselves for images."""
    files: dict[str, bytes] = {}
    for study in studies:
        for figure in study.figures:
            names = _file_names(study, figure)
            for name, drawing in zip(names, figure.drawings, strict=bool(figure.drawings)):
                files[name] = standalone(drawing.svg, drawing.width, drawing.height, drawing.alt).encode()
            for name, picture in zip(names, figure.pictures, strict=bool(figure.pictures)):
                files[name] = picture.data
    return files


def markdown(studies: Sequence[StudyView], title: str, finding: str) -> str:
    """The report as one Markdown text that refers to :func:`figure_files`."""
    lines = [f"# {escape(title)}", ""]
    if len(studies) == 1:
        lines += _study(studies[0], 2)
    else:
        lines += [f"**Found.** {escape(finding)}", "", *_overview(studies)]
        for study in studies:
            lines += [f"## {escape(study.title)}", "", *_study(study, 3)]
    return "\n".join(lines).rstrip("\n") + "\n"


def escape(text: str) -> str:
    """Text on one line that Markdown shows as it is.

    >>> escape("a_b <script> *x* | $y$")
    'a_b &lt;script&gt; \\\\*x\\\\* \\\\| \\\\$y\\\\$'
    >>> escape("1. # no heading"), escape("# none"), escape("7.5 s")
    ('1\\\\. # no heading', '\\\\# none', '7.5 s')
    """
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _SPECIAL.sub(lambda match: "\\" + match[0], line)
    return _BLOCK_START.sub(r"\1\\", line)


def fenced(text: str) -> str:
    """A verbatim block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _study(study: StudyView, level: int) -> list[str]:
    mark = "#" * level
    failed = (
        f" {len(study.failures)} of {study.runs} runs failed; their seeds are missing below." if study.failures else ""
    )
    lines = [
        f"{escape(study.eyebrow)}",
        "",
        f"**Asked.** {escape(study.question)}",
        "",
        f"**Found.** {escape(study.finding)}",
        "",
        f"**How.** {escape(study.setup + failed)}",
        "",
        f"{mark} Claims",
        "",
        *_claims(study, level),
    ]
    if study.metrics:
        lines += [f"{mark} Measurements", ""]
    for table in study.metrics:
        lines += [f"{mark}# {escape(table.condition)}", ""] if table.condition else []
        lines += [f"Mean ± standard deviation over {table.seeds}. {_MARKING}", ""]
        rows = [[_metric_name(row), *map(_cell, row.cells)] for row in table.rows]
        lines += _table(["Metric", *map(escape, table.arms)], rows)
    lines += [f"{mark} Figures", ""] if study.figures else []
    for figure in study.figures:
        lines += _figure(study, figure, level + 1)
    if study.cost:
        rows = [[escape(cell) for cell in row] for row in study.cost]
        lines += [f"{mark} Cost", "", *_table(rows[0], rows[1:])]
    if study.failures:
        rows = [[escape(run), escape(reason)] for run, reason in study.failures]
        lines += [f"{mark} Runs that failed", "", *_table(["Run", "Last line of its traceback"], rows)]
    if study.notes:
        lines += [f"{mark} Notes", "", *(f"- {escape(note)}" for note in study.notes), ""]
    return lines + _reproduce(study, level)


def _claims(study: StudyView, level: int) -> list[str]:
    if not study.claims:
        return ["This study judges no claim.", ""]
    lines = [escape(study.claims_caption), ""]
    for group in study.claims:
        lines += [f"{'#' * (level + 1)} {escape(group.condition)}", ""] if group.condition else []
        rows = [_claim(row) for row in group.rows]
        lines += _table(["Claim", "Compared", "Difference", "n", "Verdict"], rows, right=(3,))
    return lines


def _claim(row: ClaimRow) -> list[str]:
    compared = [row.compared, row.metric, row.threshold]
    if row.estimate:
        bounds = f"{row.interval} {row.level}".strip()
        difference = [f"**{escape(row.estimate)}**", *([escape(bounds)] if bounds else [])]
        difference += [f"<sub>{escape(row.beside)}</sub>"] if row.beside else []
    else:
        difference = [escape(row.missing)]
    verdict = [f"{row.symbol} **{row.verdict_words}**", *([escape(row.remark)] if row.remark else [])]
    return [
        escape(row.sentence), _BREAK.join(map(escape, compared)), _BREAK.join(difference), row.n, _BREAK.join(verdict)
    ]  # fmt: skip


def _figure(study: StudyView, figure: FigureView, level: int) -> list[str]:
    lines = [f"{'#' * level} {escape(figure.title)}", ""]
    names = _file_names(study, figure)
    if figure.drawings:
        alts = [drawing.alt for drawing in figure.drawings]
        lines += [" ".join(_image(alt, name) for alt, name in zip(alts, names, strict=True)), ""]
    for name, picture in zip(names, figure.pictures, strict=bool(figure.pictures)):
        lines += [_image(f"{figure.title}: {picture.label}", name), "", escape(picture.label), ""]
    if figure.table is not None:
        lines += _table(map(escape, figure.table.columns), [list(map(escape, row)) for row in figure.table.rows])
    for label, block in figure.blocks:
        lines += [f"**{escape(label)}**", "", fenced(block), ""]
    return [*lines, f"*{escape(caption)}*" if (caption := f"{figure.caption} {figure.reading}".strip()) else "", ""]


def _reproduce(study: StudyView, level: int) -> list[str]:
    mark = "#" * level
    lines = [f"{mark} Reproduce", ""]
    lines += [fenced(study.command), ""] if study.command else []
    parts = [
        ("Environment", study.environment),
        *((f"Configuration: {name}", pairs) for name, pairs in study.configuration),
    ]
    for name, pairs in parts:
        if pairs:
            lines += [f"{mark}# {escape(name)}", ""]
            lines += _table(["", ""], [[escape(key), escape(value)] for key, value in pairs])
    return lines


def _overview(studies: Sequence[StudyView]) -> list[str]:
    heads = ["Study", "Preset", "Seeds", *(words.VERDICT_WORDS[name] for name in words.VERDICTS), "failed runs"]
    rows = [
        [
            escape(study.title), escape(study.preset), str(study.seeds),
            *(str(study.counts[name]) for name in words.VERDICTS), f"{len(study.failures)} of {study.runs}",
        ]
        for study in studies
    ]  # fmt: skip
    return _table(heads, rows, right=tuple(range(2, len(heads))))


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    heads = list(heads)
    rule = ["---:" if column in right else "---" for column in range(len(heads))]
    return [_row(heads), _row(rule), *map(_row, rows), ""]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(cell: Cell) -> str:
    spread = f" ± {cell.sd}" if cell.sd else ""
    missing = f" ({cell.missing})" if cell.missing else ""
    return f"{cell.mean}{spread}{missing}" if cell.mean else words.MISSING


def _metric_name(row: MetricRow) -> str:
    name = f"{escape(row.label)} {words.ARROWS[row.better]}".rstrip()
    return name + (f"{_BREAK}<sub>{escape(row.description)}</sub>" if row.description else "")


def _image(alt: str, name: str) -> str:
    return f"![{escape(alt)}](figures/{name})"


def _file_names(study: StudyView, figure: FigureView) -> list[str]:
    stem = f"{study.key}-{figure.name}"
    suffix = "png" if figure.pictures else "svg"
    count = len(figure.pictures or figure.drawings)
    return [f"{stem}.{suffix}"] if count == 1 else [f"{stem}-{place}.{suffix}" for place in range(1, count + 1)]
