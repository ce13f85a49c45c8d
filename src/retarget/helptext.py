"""Help texts of commands that come from the docstrings of a dataclass's fields."""

from typing import Annotated, TypeVar

from docstring_parser import parse_from_object
from tyro.conf import arg

Kind = TypeVar("Kind", bound=type)


def one_paragraph(kind: Kind) -> Kind:
    """A class whose fields' docstrings of several lines are one paragraph in ``--help``; put it below ``@dataclass``.

    tyro keeps each line break before a line that is indented, and so would end lines in the middle of a sentence.
    """
    for field in parse_from_object(kind).params:
        name, text = field.args[-1], field.description or ""
        if "\n" in text and name in kind.__annotations__:
            kind.__annotations__[name] = Annotated[kind.__annotations__[name], arg(help=" ".join(text.split()))]
    return kind
