"""Verbs of the command line as data: where each one's code is, and what it does. A verb's code is imported on use.

A table maps a verb to ``("module:name", what it does)``. The name is a ``function(words) -> exit code``, or a
dataclass of options with ``run() -> exit code``, whose docstring and fields are its ``--help``.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence

from retarget.errors import UsageError

Verbs = Mapping[str, tuple[str, str]]


def dispatch(prog: str, verbs: Verbs, words: Sequence[str]) -> int:
    """Run one of a command's verbs, or print a list of them.

    Args:
        prog: the command in front of the verb, for example ``"retarget pope"``.
        verbs: its verbs.
        words: the arguments after the command.

    Returns:
        The verb's exit code; 0 after ``--help``, 2 without a verb.

    Raises:
        UsageError: there is no such verb.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        text = f"usage: {prog} VERB ...\n\n{listing(verbs)}\n\n  {prog} VERB --help says more."
        print(text, file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    return find(prog, verbs, words[0])(list(words[1:]))


def listing(verbs: Verbs) -> str:
    """One line per verb.

    >>> print(listing({"mine": ("m:f", "find"), "evaluate": ("m:g", "judge")}))
      mine      find
      evaluate  judge
    """
    width = max(map(len, verbs))
    return "\n".join(f"  {verb:<{width}}  {what}" for verb, (_, what) in verbs.items())


def refuse_twice(words: Sequence[str], options: Mapping[str, str]) -> None:
    """Refuse an option of several values that is given twice.

    Args:
        words: the arguments of a command.
        options: an example of the values of each such option.

    Raises:
        UsageError: one is given twice.
    """
    given = [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    for name, example in options.items():
        if given.count(name) > 1:
            raise UsageError(f"{name} is given twice, and the second would replace the first: write {name} {example}")


def refuse_empty(words: Sequence[str], options: Mapping[str, str]) -> None:
    """Refuse an option of several values that is given without any, as by a shell variable that is not set.

    Args:
        words: the arguments of a command.
        options: an example of the values of each such option.

    Raises:
        UsageError: one has no value; left out, it would mean all of them.
    """
    for word, after in zip(words, [*words, "--"][1:], strict=True):
        name = word.replace("_", "-")
        if name in options and after.startswith("--"):
            raise UsageError(f"{name} has no value: write {name} {options[name]}, or leave {name} out")


def find(prog: str, verbs: Verbs, name: str) -> Callable[[list[str]], int]:
    """Import a verb's module and return its function.

    Raises:
        UsageError: there is no such verb.
    """
    if name not in verbs:
        raise UsageError(f"there is no verb {name!r}: choose {', '.join(verbs)}, or see {prog} --help")
    module, _, target = verbs[name][0].partition(":")
    found = getattr(importlib.import_module(module), target)
    if not isinstance(found, type):
        return found

    def parsed(words: list[str]) -> int:
        from retarget.helptext import read_arguments

        return read_arguments(found, words, f"{prog} {name}").run()  # type: ignore[attr-defined]

    return parsed
