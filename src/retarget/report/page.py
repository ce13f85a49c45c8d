"""Build report.html and report.md from the directories of finished studies."""

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

import retarget
from retarget.errors import UserError
from retarget.files import make_directory, replace_file
from retarget.report import words
from retarget.report.exports import files
from retarget.report.markdown import markdown
from retarget.report.source import read_study
from retarget.report.svg import scheme
from retarget.report.view import StudyView, keys, verdict_counts, view


def build(directories: Sequence[Path], out: Path | None = None) -> Path:
    """Write report.html, report.md and report_files/ for one or more finished studies.

    The folder holds CSV and LaTeX of every table, and SVG and CSV of every drawing; the page does not need it.

    The page is self-contained: it opens from a file, without a network. Equal input gives equal bytes. Each file is
    written atomically.

    Args:
        directories: directories of finished studies, with study.json, summary.json and, for figures, analysis.json.
        out: a directory, or a path of the page ending in ``.html``; by default the directory of the only study.

    Returns:
        The path of the HTML page. The Markdown has the same name with ``.md``.

    Raises:
        UserError: a directory does not hold a finished study, one of its files is damaged, an image is missing or
            outside the directory, ``out`` is missing for several studies, or the report cannot be written.
    """
    directories = [Path(directory) for directory in directories]
    page = _place(directories, out)
    read = [read_study(directory) for directory in directories]
    studies = [view(study, key) for study, key in zip(read, keys(read), strict=True)]
    title = _title(studies)
    finding = studies[0].finding if len(studies) == 1 else words.finding(verdict_counts(read))
    folder = f"{page.stem}_files"
    html = render(studies, title, finding, folder)
    text = markdown(studies, title, finding, folder)
    make_directory(page.parent / folder)
    for one, shown in zip(read, studies, strict=True):
        for name, data in files(one, shown).items():
            _write(page.parent / folder / name, data)
    _write(page.with_suffix(".md"), text.encode())
    _write(page, html.encode())
    return page


def render(studies: Sequence[StudyView], title: str, finding: str, folder: str) -> str:
    """The self-contained HTML page; every text is escaped, and no script but our own may run.

    Args:
        folder: name of the folder beside the page, for links.
    """
    script = (resources.files("retarget.report") / "templates" / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("retarget.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    verdicts = [{"name": name, "words": words.VERDICT_WORDS[name]} for name in words.VERDICTS]
    return environment.get_template("page.html.jinja").render(
        studies=studies,
        title=title,
        finding=finding,
        verdicts=verdicts,
        arrows=words.ARROWS,
        scheme=scheme(),
        folder=folder,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=retarget.__version__,
    )


def _place(directories: Sequence[Path], out: Path | None) -> Path:
    """The page's path."""
    if not directories:
        raise UserError("a report needs the directory of at least one study")
    if out is None:
        if len(directories) > 1:
            raise UserError(f"{len(directories)} studies on one page need a directory of their own: pass --out DIR")
        return directories[0] / "report.html"
    return out if out.suffix == ".html" else out / "report.html"


def _title(studies: Sequence[StudyView]) -> str:
    return studies[0].title if len(studies) == 1 else f"{len(studies)} studies"


def _write(path: Path, data: bytes) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    replace_file(path, write)
