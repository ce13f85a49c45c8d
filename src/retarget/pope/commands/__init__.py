"""The verbs of ``retarget pope``, one file each. Each verb is imported only when it runs, and imports torch itself."""

from retarget.errors import UserError
from retarget.verbs import dispatch

_HERE = "retarget.pope.commands"
VERBS = {
    "oracle": (f"{_HERE}.oracle:Oracle", "ask a teacher for missing solutions; keep those that the grader accepts"),
    "mine": (f"{_HERE}.mine:Mine", "sample every problem k times without guidance; keep those never solved"),
    "search": (f"{_HERE}.search:Search", "find the shortest prefix of each solution with which the model succeeds"),
    "merge": (f"{_HERE}.merge:Merge", "merge the journals of several machines into one"),
    "mix": (f"{_HERE}.mix:Mix", "write the rows to train on: guided and unguided variants of each hard problem"),
    "export": (f"{_HERE}.export:Export", "write a mixture for another trainer"),
    "train": (f"{_HERE}.train:Train", "train with TRL's GRPOTrainer"),
    "evaluate": (f"{_HERE}.evaluate:Evaluate", "sample without guidance; print pass@1 and pass@k with intervals"),
}


def pope(words: list[str]) -> int:
    """Run ``retarget pope VERB ...`` and return the exit code.

    Raises:
        UsageError: there is no such verb.
        UserError: a file cannot be read or written; the message names it.
    """
    try:
        return dispatch("retarget pope", VERBS, words)
    except BrokenPipeError:
        raise
    except OSError as error:
        named = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        raise UserError(f"{named.rstrip('.')}. Everything finished before is kept") from error
