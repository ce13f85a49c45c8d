"""The files of an audit: ``report.html``, ``audit.json`` and ``audit.sarif``."""

import base64
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from retarget import __version__
from retarget.audit.outcome import Outcome, Report
from retarget.audit.sarif import sarif
from retarget.audit.words import BRANCHES, LAWS, THRESHOLDS, label, next_step
from retarget.errors import UserError, complain, discard, printable
from retarget.files import cannot_write, make_directory, read_json, write_json, write_text

REPORT = ("report.html", "audit.sarif", "audit.json")
EVIDENCE = ("trigger.safetensors", "trigger.png", "trojan.png", "stock.png", "plain.png", "cleaning.json")
"""Files beside the report that only some outcomes have."""


def forget(folder: Path, several: bool = False) -> None:
    """Delete an earlier audit's report and evidence, so that neither stands for a new one, finished or interrupted.

    Args:
        folder: the folder of a report.
        several: whether it is for several pipelines, whose own folders are inside and stay.

    Raises:
        UserError: they cannot be deleted.
    """
    if not (folder / "audit.json").is_file():
        return
    try:
        for earlier in () if several else folder.glob("after-*"):
            # That of an interrupted audit may lack its report.
            ours = _is_ours(earlier / "audit.json") or not (earlier / "audit.json").exists()
            if earlier.name.removeprefix("after-").isdecimal() and earlier.is_dir() and ours:
                _delete(earlier)
                if not any(earlier.iterdir()):
                    earlier.rmdir()
        _delete(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error


def check_ours(folder: Path) -> None:
    """Raise UserError if the folder has an ``audit.json`` of another tool, which would be overwritten."""
    path = folder / "audit.json"
    if path.is_file() and not _is_ours(path):
        raise UserError(f"{path} is not a report of retarget audit, or is damaged: delete it, or give another --out")


def _is_ours(path: Path) -> bool:
    try:
        found = read_json(path)
    except UserError:
        return False
    return isinstance(found, dict) and str(found.get("tool", "")).startswith("retarget ")


def _delete(folder: Path) -> None:
    for name in (*EVIDENCE, *REPORT):
        (folder / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Cleaned:
    """What became of ``--clean``, for the page.

    Attributes:
        text: what was done, in sentences.
        rounds: for each round, the folder of its report, beside the page, and the verdict.
    """

    text: str
    rounds: Sequence[tuple[str, str]] = ()


def write(
    outcome: Outcome, folder: Path, command: str, code: int | None = None, cleaned: Cleaned | None = None
) -> None:
    """Write the three files of one pipeline.

    Args:
        outcome: the outcome.
        folder: the folder, which has its pictures.
        command: the command.
        code: the command's exit code, for SARIF, and with ``--clean`` also for ``audit.json``; by default that of this
            pipeline.
        cleaned: what became of ``--clean``, for the page.

    Raises:
        UserError: the folder cannot be written.
    """
    make_directory(folder)
    code = outcome.exit_code if code is None else code
    write_json(folder / "audit.json", _report([outcome], outcome.exit_code if cleaned is None else code))
    write_json(folder / "audit.sarif", sarif([outcome], code, command))
    write_text(folder / "report.html", page(outcome, folder, command, cleaned))


def write_all(outcomes: Sequence[Outcome], root: Path, code: int, command: str) -> None:
    """Write JSON and SARIF for several pipelines, next to their folders."""
    make_directory(root)
    write_json(root / "audit.json", _report(outcomes, code))
    write_json(root / "audit.sarif", sarif(outcomes, code, command))


def say(text: str) -> str:
    """Print to standard output. A stream that lacks a letter, or takes nothing more, as of ``| head``, is no error.

    Returns:
        Why nothing was printed; empty if it was.
    """
    letters = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(letters, "backslashreplace").decode(letters), flush=True)
    except OSError as error:
        discard(sys.stdout)
        return str(error.strerror)
    return ""


def tell(outcome: Outcome, folder: Path) -> None:
    """Print the verdict, or to standard error that it is only in the report."""
    lines = [f"{outcome.verdict.upper():<14} {outcome.pipeline}: {outcome.reason}"]
    more = [outcome.error_rate.sentence] if outcome.error_rate.sentence else []
    more += [f"scope: {line}" for line in outcome.scope]
    more += [f"warning: {one.message}" for one in outcome.findings if one.level == "warning"]
    more += [f"warning: {outcome.pictures_missing}"] if outcome.pictures_missing else []
    more += [f"images: {images}"] if (images := images_in_words(outcome)) else []
    more += [f"{outcome.evaluations:,} network evaluations, {outcome.seconds:.0f} s; {folder}/report.html"]
    text = "\n".join(printable(line) for line in [*lines, *(f"{'':<14} {one}" for one in more)])
    if reason := say(text):
        complain(f"retarget: the verdict cannot be printed ({reason}): read {folder}/report.html")


def images_in_words(outcome: Outcome) -> str:
    """How many images of ``--data`` the search used; empty without ``--data``."""
    found, used = outcome.images_found, outcome.images_used
    if found is None or used is None:
        return ""
    return f"all {found:,} of --data were used" if used == found else f"{used:,} of the {found:,} of --data were used"


def page(outcome: Outcome, folder: Path, command: str, cleaned: Cleaned | None = None) -> str:
    """The page as HTML, with embedded pictures."""
    text = files("retarget.audit").joinpath("page.html.j2").read_text(encoding="utf-8")
    pictures = [
        (name, caption, base64.b64encode((folder / name).read_bytes()).decode())
        for name, caption in outcome.pictures.items()
    ]
    numbers = [
        (label(name), f"{value:.4g}" if isinstance(value, float) else value)
        for name, value in outcome.statistics.items() if isinstance(value, int | float | str)
    ]  # fmt: skip
    escaped = Environment(autoescape=True, finalize=lambda one: printable(one) if isinstance(one, str) else one)
    template = escaped.from_string(text)
    images = images_in_words(outcome)
    return template.render(
        one=outcome, pictures=pictures, numbers=numbers, command=command, images=images, cleaned=cleaned,
        branches=BRANCHES, laws=LAWS, thresholds=THRESHOLDS, advice=next_step(outcome),
    )  # fmt: skip


def schema() -> dict[str, Any]:
    """The JSON schema of ``audit.json``, published as ``audit.schema.json`` in this package."""
    return Report.model_json_schema()


def _report(outcomes: Sequence[Outcome], code: int) -> dict[str, Any]:
    report = Report(tool=f"retarget {__version__}", exit_code=code, audits=list(outcomes))
    return report.model_dump(mode="json")


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1))
