"""``retarget audit PIPELINE...``: the exit code is the answer, and whatever goes wrong is 2, never "clean"."""

import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from retarget.audit.errors import CLEAN, ERROR, TROJANED, UNDECIDED
from retarget.errors import UsageError, UserError
from retarget.extras import require

if TYPE_CHECKING:
    from retarget.audit.outcome import Outcome

ORDER = (TROJANED, ERROR, UNDECIDED, CLEAN)
"""Of several pipelines the first of these that occurs is the exit code; other scanners put 2 first."""


@dataclass
class AuditArguments:
    """Is this diffusion checkpoint trojaned, what is the trigger, and how sure is that?

    PIPELINE is the folder of an unconditional pixel-space diffusers pipeline; nothing else is needed. Names, cards and
    marks in it are never read for the verdict. Exit codes: 0 nothing found in the printed scope, 1 trojaned, 2 an error
    or wrong usage, 3 undecided or not covered. Of several pipelines: 1 before 2 before 3 before 0 (other scanners put 2
    first); every pipeline's own code is in audit.json.
    """

    pipelines: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="[PIPELINE...]", help="folders of pipelines, unless --preset")
    ] = ()
    out: Path | None = None
    """Folder for report.html, audit.json, audit.sarif and pictures; audit/NAME if not given."""
    data: str | None = None
    """Clean images of the kind that the network makes: digits | FILE.npz | a folder. Its own samples if not given."""
    clean: Path | None = None
    """Where a suspected trigger is found: train it out and write the cleaned pipeline here, audited and with a card."""
    public_key: Path | None = None
    """A public key (PEM) to verify an OpenSSF model signature with."""
    allow_undecided: FlagCreatePairsOff[bool] = False
    """Exit with 0 and a warning in place of 3."""
    fail_on: Literal["trojaned", "warning"] = "trojaned"
    """warning: static findings (custom code, pickles beside safetensors, odd classes) exit with 1 too."""
    preset: Literal["none", "demo"] = "none"
    """demo: train one clean and one trojaned 8×8 model, and audit both, in minutes."""
    seed: int = 0
    """Of the search's noise."""


def audit(words: Sequence[str]) -> int:
    """Run ``retarget audit WORDS...``; the exit code, 2 for everything that is not foreseen."""
    try:
        return _audit(list(words))
    except SystemExit as error:
        return CLEAN if error.code in (0, None) else ERROR
    except (UserError, ImportError) as error:
        print(f"retarget: {error}", file=sys.stderr)
        return ERROR
    except Exception:  # noqa: BLE001 - a scanner that dies with 1 would have said "trojaned"
        traceback.print_exc()
        print("retarget: the audit failed in a way that nobody foresaw; this is no verdict", file=sys.stderr)
        return ERROR


def _audit(words: list[str]) -> int:
    given = tyro.cli(AuditArguments, args=words, prog="retarget audit")
    require("diffusers", "diffusion")
    if given.preset == "demo":
        if given.pipelines:
            raise UsageError("--preset demo makes its own pipelines: give no PIPELINE")
        from retarget.audit.demo import demo

        return demo(given.out or Path("audit") / "demo", given.seed)
    if not given.pipelines:
        raise UsageError("retarget audit needs the folder of at least one pipeline, or --preset demo")
    if given.clean is not None and len(given.pipelines) != 1:
        raise UsageError("--clean takes one PIPELINE at a time")
    if given.seed < 0:
        raise UsageError(f"--seed is {given.seed}; give 0 or more")
    from retarget.audit.report import tell, write, write_all

    names = names_of(given.pipelines)
    root = given.out or Path("audit")
    outcomes = []
    for path, name in zip(given.pipelines, names, strict=True):
        folder = root if given.out and len(names) == 1 else root / name
        outcome = _audited(path, folder, given)
        outcome = adjusted(outcome, given.allow_undecided, given.fail_on)
        write(outcome, folder, shlex.join(["retarget", "audit", *words]))
        tell(outcome, folder)
        outcomes.append(outcome)
        if given.clean is not None:
            _clean(path, folder, given, words)
    code = combined([one.exit_code for one in outcomes])
    if len(outcomes) > 1:
        write_all(outcomes, root, code, shlex.join(["retarget", "audit", *words]))
    return code


def _audited(path: Path, folder: Path, given: AuditArguments) -> "Outcome":
    """One pipeline's outcome. What nobody foresaw is an error of this pipeline alone: others are still audited."""
    from retarget.audit.outcome import Outcome
    from retarget.audit.run import audit_pipeline

    try:
        return audit_pipeline(path, folder, given.data, given.public_key, given.seed)
    except ImportError:
        raise
    except UserError as error:
        return Outcome(pipeline=str(path), verdict="error", exit_code=ERROR, reason=str(error))
    except Exception as error:  # noqa: BLE001 - else a trojaned pipeline beside this one would go unreported
        traceback.print_exc()
        reason = f"the audit failed in a way that nobody foresaw ({type(error).__name__}: {error})"
        return Outcome(pipeline=str(path), verdict="error", exit_code=ERROR, reason=reason)


def _clean(path: Path, folder: Path, given: AuditArguments, words: list[str]) -> None:
    """Write the cleaned pipeline where the audit left a trigger; the exit code stays the verdict on PIPELINE."""
    from retarget.audit.cleaning import clean
    from retarget.audit.report import write
    from retarget.trojdiff.trigger import FILE_NAME

    assert given.clean is not None
    if not (folder / FILE_NAME).is_file():
        print(f"retarget: no trigger is suspected in {path}: nothing was cleaned", file=sys.stderr)
        return
    done = clean(path, given.clean, folder, given.data, given.seed)
    last = folder / f"after-{len(done.record['verdicts'])}"
    write(done.after, last, shlex.join(["retarget", "audit", *words]))
    print(f"cleaned        {done.folder}: its own audit says {done.after.verdict}; {last}/report.html")


def names_of(paths: Sequence[Path]) -> list[str]:
    """A folder's name for each pipeline, told apart by a number where several have the same.

    >>> names_of([Path("a/x"), Path("b/x"), Path("c/y")])
    ['x', 'x-2', 'y']
    """
    names: list[str] = []
    for path in paths:
        name = path.resolve().name or "pipeline"
        number, unique = 1, name
        while unique in names:
            number += 1
            unique = f"{name}-{number}"
        names.append(unique)
    return names


def combined(codes: Sequence[int]) -> int:
    """The exit code of several pipelines.

    >>> combined([0, 3, 2]), combined([2, 1, 0]), combined([0, 3])
    (2, 1, 3)
    """
    return next(code for code in ORDER if code in codes)


def adjusted(outcome: "Outcome", allow_undecided: bool, fail_on: str) -> "Outcome":
    """The outcome with the exit code that the options ask for; the verdict stays."""
    code = outcome.exit_code
    if code == UNDECIDED and allow_undecided:
        code = CLEAN
        print(f"retarget: warning: {outcome.pipeline} is {outcome.verdict}; 0 by --allow-undecided", file=sys.stderr)
    static = [one for one in outcome.findings if one.level == "warning" and one.rule.split("-")[0] != "fires"]
    if fail_on == "warning" and code != ERROR and static:
        code = TROJANED
        print(f"retarget: {outcome.pipeline}: {static[0].message}: 1 by --fail-on warning", file=sys.stderr)
    return outcome.model_copy(update={"exit_code": code})
