r"""Digits in groups of thousands: ``1,200``, ``1{,}200``, ``1\,200``, ``1 200``. Free of torch.

math-verify reads ``1,000, 2,000`` as 0, 1 and 2, ``3\,000`` as 3 times 0, and ``3 4`` as 7. A comma between digits
separates thousands or the members of a list. What shows which of the two is meant:

- ``{,}`` and ``,\!`` join. A space joins groups of three digits, unless brackets without commas hold it: a list.
- A comma joins if all its groups begin with 0, which no member of a list does; in the arguments of ``\frac``,
  ``\sqrt`` and ``^``; and where a comma and a space separate the members next to it.
- In brackets, and beside members between which bare commas stand, any other comma separates members.
- ``100,200`` that nothing of this applies to can be either (:func:`as_number`, :func:`as_list`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

_SPACE = r"(?:\s|\\[,;:])"
_START = r"(?<![\d.^_])"
_EXPLICIT = r"(?:\{,(?:\\!)*\}(?:\\!)*|,(?:\\!)+)"
_JOINED = re.compile(rf"(?<![\d.}}])[1-9]\d{{0,2}}(?:{_EXPLICIT}\d{{3}})+(?!\d|{_EXPLICIT})")
_INDIAN = re.compile(
    rf"(?<![\d.,}}])[1-9]\d?(?:(?:{_EXPLICIT}\d\d)+{_EXPLICIT}|(?:,(?=0)\d\d)+,)\d{{3}}(?![\d,]|{_EXPLICIT})"
)
_DECIMAL = re.compile(r"(?<![\d.}])(?:0\{,\}\d+|[1-9]\d*\{,\}\d{1,2})(?![\d.,{])")
"""A decimal comma, which LaTeX sets in braces: three digits behind it would be thousands, four may be a group."""
_SPACED = re.compile(rf"{_START}[1-9]\d{{0,2}}(?:{_SPACE}+\d{{3}})+(?!\d|{_SPACE}+\d)")
_FRACTION = re.compile(r"(?<=\d\.)\d{3}(?:\\,\d{3})*\\,\d{1,3}(?!\d)")
_COMMAS = re.compile(rf"{_START}[1-9]\d{{0,2}}(?:,\d{{3}})+(?!\d)")
_BRACKET = re.compile(r"\\[{}]|\\[lr]angle(?![a-z])|[()\[\]{}]")
_OWNER = re.compile(r"(?:(?P<sign>[\^_])|(?P<command>\\[A-Za-z]+)|(?P<next>[}\]]))\s*$")
_ARGUMENT = re.compile(r"\\(?:[dtc]?frac|[dt]?binom|sqrt)")
_WIDE = re.compile(r"\s,|(?<!\\),(?:\s|\\[,;:!]|\\q?quad)")
"""A comma that a space follows, which separates members."""
_LIST = re.compile(r"(?:[A-Za-z]\s*=)?(?:[\d\s,;.$+-]|\\text\s*\{\s*(?:and|or)\s*\}|\band\b|\bor\b)*")
_UNREADABLE = re.compile(
    rf"\d(?:,|{_SPACE})0\d|\d,{_SPACE}+00+(?!\d)|\d{_EXPLICIT}\d|\d\.\d+\.\d"
    rf"|(?P<first>(?<![\d.])\d+(?:\.\d+)?)(?:{_SPACE}|\\q?quad)+(?=\d)"
)
"""Members like 05 and 000, two numbers in a row, two decimal points."""
_OPERAND = re.compile(r"(?:\\(?:[dtc]?frac|[dt]?binom|sqrt)|[\^_])\s*$")
_NAME = re.compile(r"(?<![\\A-Za-z])[A-Za-z]+$")


@dataclass
class _Group:
    """What stands in one pair of brackets, without what stands in brackets inside it.

    Attributes:
        kind: ``top``, ``bracket``, ``argument`` of a command that takes one number, or ``index``.
        own: its text; each group inside it is one digit, and each number that may have separators is ``#``.
    """

    kind: str
    own: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.own).strip()


def grouped(text: str) -> str:
    r"""A text whose digits are joined where only a number can be meant, and its decimal commas points.

    >>> grouped(r"3\,000"), grouped("1,200, 3,400"), grouped("(1,000,5)"), grouped("(100,200)"), grouped("100,200")
    ('3000', '1200, 3400', '(1000,5)', '(100,200)', '100,200')
    >>> grouped(r"2^{1,200}"), grouped("3{,}5"), grouped("1,00,000"), grouped("(100 200)")
    ('2^{1200}', '3.5', '100000', '(100 200)')
    """
    text = with_explicit(text)
    text = _FRACTION.sub(lambda found: found[0].replace(r"\,", ""), text)
    return _replaced(_replaced(text, _SPACED, _spaces_join), _COMMAS, _commas_join)


def with_explicit(text: str) -> str:
    r"""A text without the commas that LaTeX marks as no separators of a list.

    >>> with_explicit(r"1{,}234 1/2"), with_explicit(r"10,\!000"), with_explicit("12{,}3456")
    ('1234 1/2', '10000', '12{,}3456')
    """
    for pattern in (_JOINED, _INDIAN):
        text = pattern.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    return _DECIMAL.sub(lambda found: found[0].replace("{,}", "."), text)


def as_number(text: str) -> str:
    """A text whose commas separate thousands wherever they can.

    >>> as_number("100,200"), as_number("x>1,200"), as_number("(100,200)"), as_number("5,10,100")
    ('100200', 'x>1200', '(100,200)', '5,10,100')
    """
    return _replaced(text, _COMMAS, lambda _, group: group.kind == "top" and not _tight(group))


def as_list(text: str) -> str | None:
    """A list of numbers whose commas could separate thousands, with a space behind each; None of anything else.

    >>> as_list("100,200 and 300"), as_list("x=2,500"), as_list("100, 200"), as_list("1,200x"), as_list("(1,200)")
    ('100, 200 and 300', 'x=2, 500', None, None, None)
    """
    return text.replace(",", ", ") if _LIST.fullmatch(text) and as_number(text) != text else None


def unreadable(text: str) -> bool:
    r"""Whether math-verify makes of the digits of a text what nobody means.

    >>> unreadable("3 4"), unreadable("1,05"), unreadable(r"1, 000"), unreadable(r"\frac 1 2"), unreadable("1, 05")
    (True, True, True, False, False)
    """
    return any(
        found["first"] is None or not _OPERAND.search(text[: found.start()]) for found in _UNREADABLE.finditer(text)
    )


def _spaces_join(number: re.Match[str], group: _Group) -> bool:
    before = number.string[: number.start()]
    if re.search(rf"\d{_SPACE}+$", before) or (re.search(r"\d,$", before) and re.match(r"\d{3}", number[0])):
        return False
    own = re.sub(r"\\[,;:!]", "", group.text)
    rows = own.split(r"\\") if r"\begin" in own else []
    listed = group.kind == "bracket" or (rows and all("#" in row for row in rows))
    return not listed or bool(re.search("[,;&]", own)) or not re.search(r"\s", number[0]) or all(_zeros(number))


def _commas_join(number: re.Match[str], group: _Group) -> bool:
    if group.kind == "argument":
        return True
    zeros = _zeros(number)
    if all(zeros):  # 1,20,000 may be 120000, as Indians write it
        return not re.match(r"\d\d,", number[0]) or not re.search(r"(?<!\d)\d\d?,$", number.string[: number.start()])
    return not _tight(group) and ((any(zeros) and group.kind == "top") or bool(_WIDE.search(group.text)))


def _zeros(number: re.Match[str]) -> list[bool]:
    """Whether each group behind the first begins with 0."""
    return [one[0] == "0" for one in re.findall(r"\d+", number[0])[1:]]


def _tight(group: _Group) -> bool:
    """Whether bare commas separate members of a group."""
    return re.search(r"(?<!\\),", _WIDE.sub("", group.text).strip(",")) is not None


def _replaced(text: str, pattern: re.Pattern[str], joins: Callable[[re.Match[str], _Group], bool]) -> str:
    """A text in which the numbers that a rule accepts in the group they stand in have no separators."""
    parts, at = [], 0
    for number, group in _numbers(text, pattern):
        before = text[: number.start()]
        if group.kind != "index" and not _OPERAND.search(before) and not _NAME.search(before) and joins(number, group):
            parts += [text[at : number.start()], re.sub(r"\D", "", number[0])]
            at = number.end()
    return "".join([*parts, text[at:]])


def _numbers(text: str, pattern: re.Pattern[str]) -> list[tuple[re.Match[str], _Group]]:
    """The numbers that match a pattern, each with the group it stands in."""
    found: list[tuple[re.Match[str], _Group]] = []
    open_groups, closed, at = [_Group("top")], "", 0
    marks = sorted([*pattern.finditer(text), *_BRACKET.finditer(text)], key=lambda mark: mark.start())
    for mark in [*marks, None]:
        group = open_groups[-1]
        group.own.append(text[at : mark.start() if mark else len(text)])
        if mark is None:
            break
        at = mark.end()
        if mark.re is pattern:
            group.own.append("#")
            found.append((mark, group))
        elif mark[0][-1] in "([{" or mark[0] == r"\langle":
            kind = _kind(mark[0], text[: mark.start()], closed)
            if kind != "same":
                group.own.append("1")
            open_groups.append(group if kind == "same" else _Group(kind))
        elif len(open_groups) > 1:
            closed = open_groups.pop().kind
    return found


def _kind(opens: str, before: str, closed: str) -> str:
    """The kind of the group that a bracket opens, or ``same`` if what it holds belongs to the group around it."""
    owner = _OWNER.search(before)
    if owner is None or opens not in "{[":
        return "bracket"
    if opens == "[":
        return "index" if owner["command"] == r"\sqrt" else "bracket"
    if owner["sign"]:
        return "index" if owner["sign"] == "_" else "argument"
    if owner["command"]:
        return "argument" if _ARGUMENT.fullmatch(owner["command"]) else "same"
    return "argument" if closed in ("argument", "index") else "same"
