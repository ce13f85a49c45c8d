"""Write the report as Markdown: GitHub's tables, and figures as files in the folder beside it."""

import re
from collections.abc import Iterable, Sequence

from retarget.report import words
from retarget.report.claims import ClaimRow
from retarget.report.gallery import FigureView
from retarget.report.measurements import Cell, Head, MetricTable
from retarget.report.pairs import Difference
from retarget.report.view import StudyView

_SPECIAL = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")
_BLOCK_START = re.compile(r"^(?:(\d+)(?=[.)](?:\s|$))|(?=(?:#+|[-+])(?:\s|$)|=+\s*$))")
_BREAK = "<br>"
_MARKING = "No value is marked as the best. ↑ higher is better, ↓ lower is better."


def markdown(studies: Sequence[StudyView], title: str, finding: str, folder: str) -> str:
    """The report as one Markdown text that refers to the files in the folder beside it."""
    lines = [f"# {escape(title)}", ""]
    if len(studies) == 1:
        lines += _study(studies[0], 2, folder)
    else:
        lines += [f"**Found.** {escape(finding)}", "", *_overview(studies)]
        for study in studies:
            lines += [f"## {escape(study.title)}", "", *_study(study, 3, folder)]
    return "\n".join(lines).rstrip("\n") + "\n"


def escape(text: str) -> str:
    """Escape a text on one line, so that Markdown shows it literally.

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


def _study(study: StudyView, level: int, folder: str) -> list[str]:
    mark = "#" * level
    failed = (
        f" {len(study.failures)} of {study.runs} runs failed; their seeds are missing below." if study.failures else ""
    )
    lines = [f"{escape(study.eyebrow)}", "", f"**Found.** {escape(study.finding)}", ""]
    if study.forest:
        picture = _image(study.forest.wide.alt, folder, f"{study.key}-forest.svg")
        lines += [picture, "", f"*{escape(study.forest.caption)}*", ""]
    for figure in study.lead:
        lines += _figure(study, figure, level, folder)
    lines += [f"**Question.** {escape(study.question)}", "", f"**Setup.** {escape(study.setup + failed)}", ""]
    lines += [f"{mark} Claims", "", *_claims(study, level)]
    if study.metrics:
        lines += [f"{mark} Measurements", ""]
    for one in study.metrics:
        lines += [f"{mark}# {escape(one.condition)}", ""] if one.condition else []
        lines += [f"Mean ± standard deviation over {one.seeds}. {_MARKING}", "", *_metrics(one.shown)]
        if one.more:
            plural = "" if one.more_count == 1 else "s"
            lines += _folded(f"{one.more_count} more metric{plural}", _metrics(one.more))
    pairs: list[str] = []
    for one in study.pairs:
        rows = [[escape(name), *(_pair(cell) for cell in cells)] for name, cells in one.rows]
        pairs += [f"**{escape(one.condition)}**", ""] if one.condition else []
        pairs += _table(["Difference", *(escape(head.label) for head in one.heads)], rows)
    lines += _folded("Any arm against any arm: paired differences, which decide nothing", pairs) if pairs else []
    lines += [f"{mark} Figures", ""] if study.others else []
    for figure in study.others:
        lines += _figure(study, figure, level + 1, folder)
    if study.cost:
        rows = [[escape(cell) for cell in row] for row in study.cost]
        lines += [f"{mark} Cost", "", *_table(rows[0], rows[1:])]
    if study.failures:
        rows = [[escape(run), escape(reason)] for run, reason in study.failures]
        lines += [f"{mark} Runs that failed", "", *_table(["Run", "Last line of its traceback"], rows)]
    if study.notes:
        lines += [f"{mark} Notes", "", *(f"- {escape(note)}" for note in study.notes), ""]
    paragraphs = [line for part in study.methods.split("\n\n") for line in (escape(part), "")]
    lines += [f"{mark} Methods, to paste into a paper", ""]
    lines += _folded("The paragraph and its BibTeX", [*paragraphs, fenced(study.bibtex), ""])
    return lines + _reproduce(study, level)


def _folded(summary: str, lines: Sequence[str]) -> list[str]:
    return ["<details>", f"<summary>{escape(summary)}</summary>", "", *lines, "</details>", ""]


def _metrics(table: MetricTable) -> list[str]:
    rows = [[_head(one), *map(_cell, cells)] for one, cells in table.rows]
    return _table([table.corner, *map(_head, table.heads)], rows)


def _pair(cell: Difference) -> str:
    return escape(f"{cell.estimate} {cell.interval}".strip()) or words.MISSING


def _claims(study: StudyView, level: int) -> list[str]:
    lines = []
    if study.claims:
        lines += [escape(study.claims_caption), ""]
    elif not study.not_run:
        lines += ["This study judges no claim.", ""]
    verdict = [] if study.once else ["Verdict"]
    for group in study.claims:
        lines += [f"{'#' * (level + 1)} {escape(group.condition)}", ""] if group.condition else []
        rows = [_claim(row) for row in group.rows]
        lines += _table(["Claim", "Compared", "Difference", "n", *verdict], rows, right=(3,))
    if study.not_run:
        lines += _folded(study.stated, [*(f"- {escape(one)}" for one in study.not_run), ""])
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
        escape(row.sentence), _BREAK.join(map(escape, compared)), _BREAK.join(difference), row.n,
        *([_BREAK.join(verdict)] if row.verdict else []),
    ]  # fmt: skip


def _figure(study: StudyView, figure: FigureView, level: int, folder: str) -> list[str]:
    lines = [f"{'#' * level} {escape(figure.title)}", ""]
    names = figure.files(study.key)
    if figure.drawings:
        alts = [drawing.alt for drawing in figure.drawings]
        lines += [" ".join(_image(alt, folder, name) for alt, name in zip(alts, names, strict=True)), ""]
    for name, picture in zip(names, figure.pictures, strict=bool(figure.pictures)):
        lines += [_image(f"{figure.title}: {picture.label}", folder, name), "", escape(picture.label), ""]
    if figure.table is not None:
        rows = _table(map(escape, figure.table.columns), [list(map(escape, row)) for row in figure.table.rows])
        lines += _folded("The table", rows) if figure.table.folded else rows
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


def _head(one: Head) -> str:
    name = f"{escape(one.label)} {words.ARROWS[one.better]}".rstrip()
    return name + (f"{_BREAK}<sub>{escape(one.description)}</sub>" if one.description else "")


def _image(alt: str, folder: str, name: str) -> str:
    return f"![{escape(alt)}]({folder}/{name})"
