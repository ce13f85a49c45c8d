"""``retarget audit PIPELINE...``: the exit code is the verdict; any failure gives 2, never the code for "clean"."""

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from retarget.audit.errors import CLEAN, ERROR, TROJANED, UNDECIDED
from retarget.errors import UsageError, UserError, complain, discard, printable
from retarget.extras import MissingExtraError, require
from retarget.helptext import one_paragraph, read_arguments

if TYPE_CHECKING:
    from retarget.audit.outcome import Outcome

ORDER = (TROJANED, ERROR, UNDECIDED, CLEAN)
"""The exit code for several pipelines is the first of these that occurs; other scanners put 2 first."""


@dataclass
@one_paragraph
class AuditArguments:
    """Is this diffusion checkpoint trojaned, what is the trigger, and how certain is the verdict?

    PIPELINE is the folder of an unconditional pixel-space diffusers pipeline; nothing else is needed. Names, cards and
    marks in it are never used for the verdict. Exit codes: 0 nothing found in the printed scope, 1 trojaned, 2 an error
    or wrong usage, 3 undecided or not covered. For several pipelines, 1 takes precedence over 2, 2 over 3, and 3 over 0
    (other scanners put 2 first); audit.json has the code of each pipeline.
    """

    pipelines: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="[PIPELINE...]", help="folders of pipelines, unless --preset")
    ] = ()
    out: Path | None = None
    """Folder for report.html, audit.json, audit.sarif and pictures; audit/NAME by default, where NAME is the folder's
    name, and its parent's too if that is "pipeline"."""
    data: str | None = None
    """Clean images of the kind that the network makes: digits | FILE.npz | a folder. The search uses all of them (of a
    source that has a training part, only that), up to 512. By default its own samples, as for the clean models that the
    p-value compares it with."""
    clean: Path | None = None
    """If a trigger is suspected, train it out, and write the cleaned pipeline here, audited and with a card."""
    public_key: Path | None = None
    """Public key (PEM) for verifying an OpenSSF model signature."""
    allow_undecided: FlagCreatePairsOff[bool] = False
    """Exit with 0 and a warning instead of 3."""
    fail_on: Literal["trojaned", "warning"] = "trojaned"
    """warning: also exit with 1 on static findings (custom code, pickles, weights that were not
    audited, non-stock classes, a signature that is invalid or, with --public-key, absent)."""
    preset: Literal["none", "demo"] = "none"
    """demo: train a clean and a trojaned 8×8 model and audit both, in minutes."""
    seed: int = 0
    """Seed of the search's noise."""


def audit(words: Sequence[str]) -> int:
    """Run ``retarget audit WORDS...`` and return the exit code: 2 for any unexpected error."""
    try:
        return _audit(list(words))
    except SystemExit as error:
        return CLEAN if error.code in (0, None) else ERROR
    except (UserError, ImportError) as error:
        complain(f"retarget: {error}")
        return ERROR
    except Exception:  # noqa: BLE001 - Python would exit with 1, the code for "trojaned"
        complain(f"{traceback.format_exc()}retarget: the audit failed with an unexpected error; this is not a verdict")
        return ERROR


def _read(words: list[str]) -> AuditArguments:
    """The arguments; help or a complaint that nobody reads any more has the exit code of one that is read."""
    try:
        return read_arguments(AuditArguments, words, "retarget audit")
    except BrokenPipeError:
        discard(sys.stdout)
        discard(sys.stderr)
        raise SystemExit(CLEAN if {"-h", "--help"} & {*words} else ERROR) from None


def _audit(words: list[str]) -> int:
    given = _read(words)
    require("diffusers", "diffusion")
    if given.preset == "demo":
        if given.pipelines:
            raise UsageError("--preset demo makes its own pipelines: leave out PIPELINE")
        default = AuditArguments()
        for name in ("data", "clean", "public_key", "allow_undecided", "fail_on"):
            if getattr(given, name) != getattr(default, name):
                raise UsageError(f"--{name.replace('_', '-')} has no effect on --preset demo: leave it out")
        from retarget.audit.demo import demo

        return demo(given.out or Path("audit") / "demo", given.seed, shlex.join(["retarget", "audit", *words]))
    if not given.pipelines:
        raise UsageError("retarget audit needs the folder of at least one pipeline, or --preset demo")
    if given.clean is not None and len(given.pipelines) != 1:
        raise UsageError(f"--clean needs exactly one PIPELINE, not {len(given.pipelines)}")
    if not 0 <= given.seed < 2**62:
        raise UsageError(f"--seed must be at least 0 and below 2^62, not {given.seed}")
    from retarget.audit.report import check_ours, forget, tell, write, write_all

    names = names_of(given.pipelines)
    root = given.out or Path("audit")
    folders = [root if given.out and len(names) == 1 else root / name for name in names]
    if len(names) > 1:
        check_ours(root)
    _check_places(given, folders)
    if len(names) > 1:
        forget(root, several=True)
    command = shlex.join(["retarget", "audit", *words])
    outcomes: list[Outcome] = []
    failed: list[int] = []
    for path, folder in zip(given.pipelines, folders, strict=True):
        outcome = _audited(path, folder, given)
        outcome, why = adjusted(outcome, given.allow_undecided, given.fail_on)
        tell(outcome, folder)
        failed += _written(partial(write, outcome, folder, command))
        if why:
            complain(f"retarget: {why}")
        outcomes.append(outcome)
        if given.clean is not None:
            failed += _clean(path, folder, outcome, given, words)
    code = combined([*(one.exit_code for one in outcomes), *failed])
    if len(outcomes) > 1:
        failed += _written(partial(write_all, outcomes, root, code, command))
    return combined([code, *failed])


def _written(write: Callable[[], None]) -> list[int]:
    """The exit code of a report that cannot be written, if so: neither verdict nor later pipelines are lost by it."""
    try:
        write()
    except UserError as error:
        complain(f"retarget: {error}")
        return [ERROR]
    return []


def _check_places(given: AuditArguments, folders: Sequence[Path]) -> None:
    """Make the folders of the reports, and refuse unusable places, before a search that takes minutes."""
    from retarget.audit.cleaning import check_new
    from retarget.audit.images import read_training
    from retarget.audit.report import check_ours, forget
    from retarget.files import check_writable, make_directory
    from retarget.trojdiff.checkpoint import load_pipeline, network_shape

    for path, folder in zip(given.pipelines, folders, strict=True):
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        if shown != str(path):
            raise UsageError(f"{shown}: the report cannot name this folder, since its name is not UTF-8: rename it")
        if path.is_dir() and path.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise UsageError(
                f"the report would be written to {folder}, in the pipeline itself, whose files are hashed: give --out"
            )
    if given.clean is not None:
        check_new(given.clean)
        cleaned, report = given.clean.resolve(), folders[0].resolve()
        if given.pipelines[0].resolve() in (cleaned, *cleaned.parents):
            raise UsageError(f"--clean {given.clean} is in the pipeline itself, whose files are hashed: choose another")
        if report == cleaned or cleaned in report.parents:
            raise UsageError(
                f"the report would be written to {folders[0]}, in the cleaned pipeline's folder: give another --out"
            )
        if given.pipelines[0].is_dir():  # any other name would be looked up on the hub
            try:
                unet, _ = load_pipeline(given.pipelines[0], "accept")
            except UserError as error:  # it gets a verdict all the same
                complain(f"retarget: warning: --clean cannot train this network: {error}")
            else:
                if given.data is not None:
                    read_training(given.data, network_shape(unet))
    for folder in folders:
        make_directory(folder)
        check_writable(folder)
        check_ours(folder)
    for folder in folders:
        forget(folder)


def _audited(path: Path, folder: Path, given: AuditArguments) -> "Outcome":
    """One pipeline's outcome. An unexpected error becomes its outcome, so that other pipelines are still audited."""
    from retarget.audit.outcome import Outcome
    from retarget.audit.run import audit_pipeline
    from retarget.study.progress import display

    try:
        with display() as shown:
            shown.began(str(path))
            watch = partial(shown.progressed, str(path), unit="network evaluation")
            return audit_pipeline(path, folder, given.data, given.public_key, given.seed, watch=watch)
    except MissingExtraError:
        raise
    except UserError as error:
        return Outcome(pipeline=str(path), verdict="error", exit_code=ERROR, reason=str(error))
    except Exception as error:  # noqa: BLE001 - otherwise a trojaned pipeline among the others would go unreported
        complain(traceback.format_exc())
        reason = f"the audit failed with an unexpected error ({type(error).__name__}: {error})"
        return Outcome(pipeline=str(path), verdict="error", exit_code=ERROR, reason=reason)


def _clean(path: Path, folder: Path, outcome: "Outcome", given: AuditArguments, words: list[str]) -> list[int]:
    """Write the cleaned pipeline if the audit found a trigger; returns the exit code of a failure, if there is one.

    A verdict of "trojaned" on PIPELINE remains the exit code in any case. The report is written again, with what became
    of the cleaning.
    """
    from retarget.audit.cleaning import clean, passed
    from retarget.audit.report import Cleaned, say, write

    assert given.clean is not None
    command, failed, rounds = shlex.join(["retarget", "audit", *words]), list[int](), list[tuple[str, str]]()

    def audited(after: "Outcome", where: Path) -> None:
        failed.extend([ERROR] if after.pictures_missing else [])
        failed.extend(_written(partial(write, after, where, command)))
        rounds.append((where.name, after.verdict))

    def told(text: str) -> list[int]:
        code = combined([outcome.exit_code, *failed])
        return failed + _written(partial(write, outcome, folder, command, code, Cleaned(text, rounds)))

    if outcome.trigger is None:  # the folder may still have one of an earlier audit
        found = "no trigger is suspected" if outcome.score is not None else "there was no search"
        complain(f"retarget: {path}: {found}, so nothing was cleaned")
        return told(f"{found[0].upper()}{found[1:]}, so nothing was cleaned.")
    why = ""
    try:
        if outcome.pictures_missing:
            raise UserError("the suspected trigger was not written either")
        done = clean(path, given.clean, folder, given.data, given.seed, audited=audited)
    except UserError as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001 - otherwise the verdict on the checkpoint would not be the exit code
        complain(traceback.format_exc())
        why = f"an unexpected error ({type(error).__name__}: {error})"
    if why:
        complain(f"retarget: nothing was cleaned: {why}")
        failed.append(ERROR)
        code = combined([outcome.exit_code, *failed])
        return told(f"Nothing was cleaned: {why}. The exit code of the command is therefore {code}.")
    if done.record["warning"]:
        complain(f"retarget: warning: {done.record['warning']}")
    last = folder / f"after-{len(done.record['verdicts'])}"
    still = "" if passed(done.after) else ", which does not clear it, so it is still marked as trojaned"
    said = f"the verdict of its own audit is {done.after.verdict}{still}"
    say(f"cleaned        {done.folder}: {said}; {last}/report.html")
    warning = f" Warning: {done.record['warning']}." if done.record["warning"] else ""
    return told(f"The cleaned pipeline is in {done.folder}: {said}.{warning}")


def names_of(paths: Sequence[Path]) -> list[str]:
    """A folder name for each pipeline; the name ``pipeline`` says little and gets its parent's, equal ones a number.

    A name that is that of a report's file gets a number, too.

    >>> names_of([Path("a/x"), Path("b/x"), Path("c/y"), Path("/d/pipeline")])
    ['x', 'x-2', 'y', 'd-pipeline']
    >>> names_of([Path("audit.json")])
    ['audit.json-2']
    """
    from retarget.audit.report import REPORT

    names: list[str] = []
    for path in paths:
        place = path.resolve()
        name = place.name or "pipeline"
        if name == "pipeline" and place.parent.name:
            name = f"{place.parent.name}-{name}"
        number, unique = 1, name
        while unique in names or unique in REPORT:
            number += 1
            unique = f"{name}-{number}"
        names.append(unique)
    return names


def combined(codes: Sequence[int]) -> int:
    """The exit code for several pipelines; see ``ORDER``.

    >>> combined([0, 3, 2]), combined([2, 1, 0]), combined([0, 3])
    (2, 1, 3)
    """
    return next(code for code in ORDER if code in codes)


def adjusted(outcome: "Outcome", allow_undecided: bool, fail_on: str) -> tuple["Outcome", str]:
    """The outcome with the command's exit code for it, and why that is not the verdict's own code."""
    code, why = outcome.exit_code, ""
    static = [one for one in outcome.findings if one.level == "warning" and one.rule.split("-")[0] != "fires"]
    if fail_on == "warning" and code not in (ERROR, TROJANED) and static:
        code = TROJANED
        said = printable(f"{outcome.pipeline}: {static[0].message}")
        why = f"{said}; its exit code is 1 because of --fail-on warning"
    elif code == UNDECIDED and allow_undecided:
        code = CLEAN
        said = printable(f"{outcome.pipeline} is {outcome.verdict}")
        why = f"warning: {said}; its exit code is 0 because of --allow-undecided"
    if outcome.pictures_missing and code != TROJANED:
        code = ERROR
        why = printable(f"{outcome.pipeline}: {outcome.pictures_missing}; its exit code is 2 because of that")
    reason = why.removeprefix("warning: ")
    return outcome.model_copy(update={"exit_code": code, "exit_code_reason": reason}), why
