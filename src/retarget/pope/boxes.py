r"""The boxes of a text, ``\boxed{...}``: the last one, several that are one answer, and those that a text denies.

Free of torch. Completions are untrusted, so every pattern here runs in time linear in the text.
"""

import re

from retarget.pope.quantities import one_number

BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
"""A brace that opens or closes a group, or a backslash with what it escapes: in ``\\{`` the brace is a character."""
BOX = re.compile(r"\\(?:boxed|fbox)(?:[ \t]*+\{|[ \t]++(?P<bare>\\?[^\s${}\\.,;]++))")
EMPTY = ("", "...", "…", r"\ldots", r"\dots", r"\cdots", "?")

_LAYOUT = (
    r"(?:[\s$*_~()\[\]{}]|\\[()\[\],;:! ]|\\q?quad(?![a-z])|\\(?:text(?:rm|bf|it)?|math(?:rm|bf)|mbox)(?=\s*\{))*+"
)
"""What a reader does not read: spaces, the edges of formulas, bold type."""
_OR = r"(?:or|and|alternatively|otherwise|possibly|perhaps|maybe)\b"
_NAME = rf"(?:[A-Za-z](?:_\{{?\w\}}?)?\s*+=)?+{_LAYOUT}"
_JOINING = re.compile(rf"{_LAYOUT}(?:[,;/&]{_LAYOUT}|(?:\.{_LAYOUT})?+{_OR}{_LAYOUT})++{_NAME}", re.IGNORECASE)
"""What joins two boxes, so that neither is the answer alone."""
_NUMBER = r"(?P<number>-?\d+(?:[.,/]\d+)*+)"
_OR_NUMBER = re.compile(
    rf"{_LAYOUT}(?:,{_LAYOUT})?+or\b{_LAYOUT}(?:{_OR}{_LAYOUT})?+{_NAME}{_NUMBER}"
    r"(?:[ \t$*_)}\]]|\\[)\]])*+(?=[.,;!?\n]|\Z)",
    re.IGNORECASE,
)
"""Another number behind a box: "or 5"."""
_DENYING = re.compile(
    r"(?:(?<!\\)\b(?:not|never|cannot|neither|nor)\b|n['’]t\b|\brather\s+than\b|\binstead\s+of\b|\\neq?(?![a-z])|≠)"
    rf"(?:{_LAYOUT}(?:be|equal|to|possibly|necessarily|simply|just|really|actually)\b)*+{_LAYOUT}{_NAME}\Z",
    re.IGNORECASE,
)
"""What denies the box behind it: "is not", "cannot be", "rather than"."""
_NO_UNIT = re.compile(r"(?:[-+\d.,/{}\s]|\\[dtc]?frac(?![a-z]))++")
_WITHIN = 80
_MOST = 16
"""Number of boxes at the end of a text that are looked at one by one."""


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}``, nested braces included; None if there is no box or it never closes.

    As in TeX, a box without braces contains the next token. An empty box, as in the instruction "put your answer within
    \boxed{}", is none.

    >>> last_boxed(r"so \boxed{1}, no: \boxed{\frac{1}{2}}"), last_boxed(r"it is $\boxed 2$, within \boxed{}.")
    ('\\frac{1}{2}', '2')
    """
    found = _last_box(text)
    return None if found is None else found[1]


def _last_box(text: str) -> tuple[int, str, int] | None:
    """Start, content and end of the last box that is not empty."""
    for found in reversed(list(BOX.finditer(text))):
        if found["bare"] is not None:
            return found.start(), found["bare"], found.end()
        depth, at = 0, found.end()
        for brace in BRACE.finditer(text, found.end() - 1):
            depth, at = depth + {"{": 1, "}": -1}.get(brace[0], 0), brace.start()
            if depth == 0:
                break
        else:
            return None
        content = text[found.end() : at].strip()
        if content not in EMPTY:
            return found.start(), content, at + 1
    return None


def without_denied(text: str) -> tuple[str, set[str]]:
    r"""A text up to the last boxes that it denies, and their contents.

    >>> without_denied(r"It is \boxed{3}, not \boxed{4}."), without_denied(r"not \boxed{3} but \boxed{4}")
    (('It is \\boxed{3}, not ', {'4'}), ('not \\boxed{3} but \\boxed{4}', set()))
    """
    denied: set[str] = set()
    for _ in range(_MOST):
        last = _last_box(text)
        if last is None:
            break
        start, content, _ = last
        before = text[max(0, start - _WITHIN) : start]
        if not _DENYING.search(before):
            break
        denied.add(content)
        text = text[:start]
    return text, denied


def joined_boxes(text: str) -> str | None:
    r"""The last boxes of a text as one list, if little more than ``and``, ``or`` or commas separate them; or None.

    >>> joined_boxes(r"so $x=\boxed{3}$ or $x=\boxed{-3}$."), joined_boxes(r"\boxed{3}")
    ('3,-3', None)
    """
    found: list[str] = []
    end = len(text)
    while (last := _last_box(text[:end])) is not None:
        start, one, stop = last
        if found:
            between = re.sub(r"\\[a-z,;()\[\] ]+", "", text[stop:end])
            if len(between) > 40 or not re.fullmatch(r"[\s$}.,;=a-z]*+", between):
                break
        found.append(one)
        end = start
    return ",".join(reversed(found)) if len(found) > 1 else None


def alternatives(text: str) -> bool:
    r"""Whether the last box is not the answer alone: "or", a comma or the like joins it to another box or number.

    Boxes with the same number are no alternatives.

    >>> alternatives(r"$x=\boxed{3}$ or $x=\boxed{-3}$."), alternatives(r"\boxed{3}, so the answer is \boxed{5}")
    (True, False)
    >>> alternatives(r"\boxed{4} or 5."), alternatives(r"\boxed{\frac{1}{2}} or 0.5")
    (True, False)
    """
    last = _last_box(text)
    if last is None:
        return False
    start, content, end = last
    behind = _OR_NUMBER.match(text, end)
    if behind and _NO_UNIT.fullmatch(content) and not _alike(behind["number"], content):
        return True
    for _ in range(_MOST):
        previous = _last_box(text[:start])
        if previous is None or not _JOINING.fullmatch(text[previous[2] : start]):
            return False
        if not _alike(previous[1], content):
            return True
        start = previous[0]
    return False


def _alike(one: str, other: str) -> bool:
    """Whether two boxes say the same: written alike, or the same number without a unit."""
    if one == other:
        return True
    if not (_NO_UNIT.fullmatch(one) and _NO_UNIT.fullmatch(other)):
        return False
    numbers = one_number(one), one_number(other)
    return numbers[0] is not None and numbers[1] is not None and numbers[0].equals(numbers[1])
