"""Commands' arguments as a dataclass describes them: how they are read, and their help texts."""

from collections.abc import Sequence
from typing import Annotated, TypeVar

import tyro
from docstring_parser import parse_from_object
from tyro.conf import DisallowNone, arg

Kind = TypeVar("Kind", bound=type)
Given = TypeVar("Given")


def read_arguments(kind: type[Given], words: Sequence[str], prog: str) -> Given:
    """The arguments in a command's words; ends the process after ``--help`` and after wrong ones.

    An optional argument is left out, not set to ``None``.

    Args:
        kind: dataclass whose fields are the arguments.
        words: the words after the command's name.
        prog: the command's name.
    """
    return tyro.cli(kind, args=words, prog=prog, config=(DisallowNone,))


def one_paragraph(kind: Kind) -> Kind:
    """A class whose fields' docstrings of several lines are one paragraph in ``--help``; put it below ``@dataclass``.

    tyro keeps each line break before a line that is indented, and so would end lines in the middle of a sentence.
    """
    for field in parse_from_object(kind).params:
        name, text = field.args[-1], field.description or ""
        if "\n" in text and name in kind.__annotations__:
            kind.__annotations__[name] = Annotated[kind.__annotations__[name], arg(help=" ".join(text.split()))]
    return kind
