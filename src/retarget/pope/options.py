"""Options of multiple-choice questions: which one an answer names, and what it says. Free of torch."""

import re
from collections.abc import Mapping

_WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm|sf)?|math(?:rm|bf|sf)|mbox|operatorname)\s*\{([^{}]*)\}")
_AT_A_LINE = re.compile(
    r"^[ \t>*-]*(?:\\\w+\s*\{\s*|\$){0,4}[(\[]?(?P<label>[A-Z]|[a-z]|\d{1,2})[)\].:]+(?:[}*$]|(?=\s|\\|\w))",
    re.MULTILINE,
)
_IN_A_LINE = re.compile(
    r"(?<![\w\\)])(?:\\\w+\s*\{\s*|\*\*|\$){0,4}(?:\(\s*(?P<round>[A-J])\s*\)|(?P<half>[A-J])\))[}*.:]*"
)
_BEFORE = re.compile(r"(?:\\q?quad\b|\\[ ,;:!]|[\s$~&*}])+")


def unwrapped(text: str) -> str:
    r"""A text without LaTeX's commands for upright words.

    >>> unwrapped(r"\text{Alice}"), unwrapped(r"12\text{ km}")
    ('Alice', '12 km')
    """
    return _WRAPPED.sub(r"\1", text).strip()


def unlabelled(letter: str, option: str) -> str:
    """An option's text without white space around it and without its own letter.

    >>> unlabelled("A", "A. Red"), unlabelled("B", " Blue ")
    ('Red', 'Blue')
    """
    bare = option.strip()
    for named in (f"({letter})", f"{letter})", f"{letter}.", f"{letter}:"):
        if bare.startswith(named):
            return bare.removeprefix(named).strip()
    return bare


def named(answer: str, options: Mapping[str, str]) -> list[str]:
    """The letters of the options that an answer names by letter, by text or by both; several texts may be equal.

    >>> red = {"A": "Red", "B": "Blue", "C": "AB"}
    >>> [named(one, red) for one in ("B", "(b)", "A and C", "AC", "AB", "blue", "B) Blue", "Green")]
    [['B'], ['B'], ['A', 'C'], ['A', 'C'], ['C'], ['B'], ['B'], []]
    """
    said = unwrapped(answer).strip(" $").removesuffix(".")
    if said in options:
        return [said]
    if same := [one for one, text in options.items() if text == said]:
        return same
    parts = [part.strip(" \t().") for part in re.split(r"\s*(?:[,;]|\band\b)\s*", said)]
    if len(parts) == 1 and re.fullmatch("[A-Z]{2,}", parts[0]):
        parts = list(dict.fromkeys(parts[0]))
    found = [next((one for one in (part, part.upper(), part.lower()) if one in options), "") for part in parts]
    if all(found):
        return found
    if same := [one for one, text in options.items() if text.lower() == said.lower()]:
        return same
    return [one for one, text in options.items() if text and unlabelled(one, said) == text]


def right_options(question: str, answer: str) -> tuple[str, list[str]]:
    r"""The texts of the options that are the answer, read from the question, which lists them; and the rest of it.

    Args:
        question: options on lines of their own (``A) red``, ``(B) blue``, ``1. green``), or in a line from ``(A)`` on.
        answer: an option's letter, letters, an option's text, or both.

    Returns:
        The question without the options, and the texts; none if the question lists no options, or not the answer.

    >>> right_options("How far?\nA) 12 km\nB) 15 km", "B")
    ('How far?', ['15 km'])
    >>> right_options(r"Find x. $\textbf{(A)}\ 12 \qquad \textbf{(B)}\ 1345$", "B")
    ('Find x.', ['1345'])
    """
    for labels in (_lines(question), _within(question)):
        options: dict[str, str] = {}
        for at, (label, _, end) in enumerate(labels):
            stop = labels[at + 1][1] if at + 1 < len(labels) else (question.find("\n", end) + 1 or len(question))
            options[label] = _trimmed(unwrapped(_trimmed(question[end:stop])))
        texts = [options[one] for one in named(answer, options) if options[one]]
        if texts:
            return question[: labels[0][1]].strip(), texts
    return question, []


def _trimmed(option: str) -> str:
    """An option's text without the spaces, dollars and stops around it."""
    begins = _BEFORE.match(option)
    option = option[begins.end() :] if begins else option
    while (bare := option.rstrip(" \t\r\n$~&*.,;|\\").removesuffix("\\quad").removesuffix("\\qquad")) != option:
        option = bare
    return option


def _lines(question: str) -> list[tuple[str, int, int]]:
    """Label, start and end of the label, of the last run of lines that begin with increasing letters or numbers."""
    runs: list[list[tuple[str, int, int]]] = []
    for found in _AT_A_LINE.finditer(question):
        label = found["label"]
        last = runs[-1][-1][0] if runs else ""
        grows = last and _kind(last) == _kind(label) and (len(last), last) < (len(label), label)
        runs = runs if grows else [*runs, []]
        runs[-1].append((label, *found.span()))
    return next((run for run in reversed(runs) if len(run) > 1), [])


def _kind(label: str) -> tuple[bool, bool]:
    return label.isdigit(), label.isupper()


def _within(question: str) -> list[tuple[str, int, int]]:
    """As :func:`_lines`, of the last run ``(A)``, ``(B)``, ... anywhere."""
    runs: list[list[tuple[str, int, int]]] = []
    for found in _IN_A_LINE.finditer(question):
        label = found["round"] or found["half"]
        if label == "A":
            runs.append([])
        if runs and label == chr(ord("A") + len(runs[-1])):
            runs[-1].append((label, *found.span()))
    return next((run for run in reversed(runs) if len(run) > 1), [])
