"""The command line: ``retarget VERB ...``. Imports only the module of the requested verb.

Exit codes: 0 done, 1 an error or failed runs, 2 wrong usage, 130 interrupted; ``audit`` has others (see its help).
"""

import sys
import traceback
from collections.abc import Sequence

from retarget import __version__
from retarget.errors import UsageError, UserError, complain, discard
from retarget.verbs import find, listing

VERBS = {
    "study": ("retarget.commands:study", "train a control and treated arms on the same seeds; report what changed"),
    "judge": ("retarget.commands:judge", "judge claims about runs that were made elsewhere"),
    "report": ("retarget.commands:report", "make one page from the directories of one or more studies"),
    "pope": ("retarget.pope.commands:pope", "find hard problems, search prefixes, mix, export, train, evaluate"),
    "trojdiff": ("retarget.trojdiff.commands:trojdiff", "trojan, sample and evaluate a diffusion checkpoint"),
    "audit": ("retarget.audit.commands:audit", "say whether a diffusion checkpoint is trojaned, and by what trigger"),
}
"""By verb: where its ``function(arguments) -> exit code`` is, and what it does."""

METHODS = {
    "pskd": "retarget.pskd.study",
    "trojdiff": "retarget.trojdiff.study",
    "pope": "retarget.pope.study",
    "audit": "retarget.audit.study",
}
"""By method: the module whose ``plan`` describes its study."""

FAILED = {"audit": 2}
"""By verb: the exit code of every failure where it is not 1, which is the audit's code for "trojaned"."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; UserErrors are printed without a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(top_help(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"retarget {__version__}")
        return 0
    if words[0] not in FAILED:
        return _run(words, failed=1)
    try:
        return _run(words, FAILED[words[0]])
    except Exception:  # noqa: BLE001 - Python would exit with 1
        complain(traceback.format_exc())
        return FAILED[words[0]]
    finally:
        _empty_streams()


def _run(words: list[str], failed: int) -> int:
    """Run a verb; an error that says enough gives the code ``failed``, all others are raised."""
    try:
        code = find("retarget", VERBS, words[0])(words[1:])
        _leave_process_group()
        return code
    except UsageError as error:
        complain(f"retarget: {error}")
        return 2
    except (UserError, ImportError) as error:
        told = _of_missing_extra(error, words) if isinstance(error, ImportError) else error
        if told is None:
            raise
        complain(f"retarget: {told}")
        return failed
    except KeyboardInterrupt:
        complain("retarget: interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output, such as head, has exited
        discard(sys.stdout)
        return failed
    except OSError as error:  # a path that is too long, forbidden, read-only
        if error.filename is None:
            raise
        complain(f"retarget: {str(error.filename)[:200]}: {error.strerror}")
        return failed


def _empty_streams() -> None:
    """Write out what the streams hold; Python replaces the exit code if that fails when it ends."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # closed by the caller
            continue
        try:
            stream.flush()
        except OSError:
            discard(stream)


def top_help() -> str:
    """What ``retarget --help`` prints; plain text, so that it needs no import."""
    return (
        "Retarget changes one thing in a training batch - the label, the prompt or the noise - and measures what it "
        f"does.\n\nusage: retarget VERB ...\n\n{listing(VERBS)}\n\n"
        f"  retarget VERB --help says more. Studies: {', '.join(METHODS)};\n"
        "  retarget study METHOD --help lists the arms and settings of one.\n"
        "  retarget --version"
    )


def _leave_process_group() -> None:
    """End torch.distributed where a command has begun it (under torchrun or ``accelerate launch``).

    Its threads live as long as the group. One that frees a tensor while the interpreter is shutting down is stopped in
    C++ code that must not be left so, and the process aborts after its work ("terminate called without an active
    exception").
    """
    if "torch.distributed" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def _of_missing_extra(error: ImportError, words: Sequence[str]) -> ImportError | None:
    """The error that names the extra to install for a command; None if no extra is missing."""
    from retarget.extras import MissingExtraError, in_words

    if isinstance(error, ModuleNotFoundError) and not isinstance(error, MissingExtraError):
        error = in_words(error, next((word for word in words[:2] if word in {*VERBS, *METHODS} - {"study"}), ""))
    return error if isinstance(error, MissingExtraError) else None
