"""Errors that a user can act on."""

import os
import sys
from contextlib import suppress
from typing import TextIO


class UserError(ValueError):
    """Wrong input: the message says what is wrong, where, and what to do. Printed without a traceback."""


class UsageError(UserError):
    """Wrong arguments: nothing was started. The command line exits with code 2."""


class DivergedError(UserError):
    """Training has diverged; ``epoch``, counted from 1, is the one in which it was noticed."""

    def __init__(self, message: str, epoch: int) -> None:
        super().__init__(message)
        self.epoch = epoch

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return type(self), (str(self), self.epoch)


def complain(text: str) -> None:
    """Print lines to standard error, if that still takes anything: its reader may have gone, or the disk be full.

    Control characters are escaped, since messages name files and settings of other people.
    """
    if sys.stderr is None:  # closed by the caller
        return
    try:
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def printable(text: str) -> str:
    r"""The text with its control characters escaped: names in a checkpoint are its author's, who may be an attacker.

    >>> print(printable("\x1b[2K\rNOTHING FOUND, ε"))
    \x1b[2K\rNOTHING FOUND, ε
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def first_words(error: BaseException) -> str:
    """The first words of an error's message; its type if it has none.

    >>> first_words(ValueError("no\\n number")), first_words(KeyError())
    ('no number', 'KeyError')
    """
    return " ".join(str(error).split()[:30]) or type(error).__name__


def discard(stream: TextIO) -> None:
    """Throw away what a stream still holds, and whatever is written to it: Python would try again when it ends."""
    with suppress(OSError, ValueError):  # it has no file, or is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
