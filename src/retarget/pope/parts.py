r"""The parts that an answer consists of: the quantities of a list, the ends of an interval, names of points.

Free of torch. math-verify reads the first of several quantities with units and leaves the others out, takes a set for
an interval with the same ends, and takes the letters of points for factors.
"""

import re

from retarget.pope.notation import TEXT
from retarget.pope.units import UNIT_OF


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


UNITS = _set("""
    cm mm km dm ft in inch inches feet foot yd yard yards mile miles mi mph kg mg gram grams lb lbs pound pounds ounce
    ounces oz meter meters metre metres liter liters litre litres ml dollar dollars cent cents degree degrees hour
    hours hr hrs minute minutes min second seconds sec secs day days week weeks month months year years unit units
    square cubic sq cu per percent
""")
"""Words that are units wherever they stand behind a number or a letter."""

_JOINT = re.compile(r"(?<!\\)[,;]|\\text\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z])(?:and|or)(?![A-Za-z])")
_BRACKET = re.compile(r"\\?[{(\[\])}]")
_COMPOUND = re.compile(rf"(?<=[\d}}\s]){TEXT}(?=\s*\$?\d)")
_SPLIT = re.compile(rf"{_JOINT.pattern}|{_BRACKET.pattern}")
_NAMED = re.compile(
    r"(?P<sign>\\(?:angle|triangle|overline|overrightarrow|overleftrightarrow|vec|widehat|arc)(?![a-z]))?\s*"
    r"\{?(?P<points>[A-Z]{2,})\}?"
)
_WHOLE = re.compile(r"(?P<open>\\\{|\(|\[)(?P<inside>.*)(?P<close>\\\}|\)|\])")
_MATRIX = re.compile(
    r"(?P<open>[(\[])?\\begin\{(?P<kind>[pb]?matrix|smallmatrix|array)\}(?:\{[clr|]*\})?(?P<rows>(?:(?!\\begin).)*)"
    r"\\end\{(?P=kind)\}(?P<close>[)\]])?"
)
_ANGLES = re.compile(r"\\langle(?![a-z])(?P<inside>(?:(?!\\[lr]angle|\\mid|\|).)*)\\rangle")
DOTS = re.compile(r"\\(?:[lc]?dots|dots[bcmio])(?![a-z])|\.{3,}|…")
_ORDER = re.compile(r"<|>|\\(?:le|ge|leq|geq|lt|gt|leqslant|geqslant)(?![a-z])")


def divided(text: str) -> list[str]:
    r"""The members of a list, which commas, "and" or "or" join outside brackets.

    >>> divided(r"3\text{ cm}, 4\text{ cm}"), divided("(1, 2) and 1,200")
    (['3\\text{ cm}', '4\\text{ cm}'], ['(1, 2)', '1,200'])
    """
    found, depth, start = [], 0, 0
    for mark in _SPLIT.finditer(text):
        sign = mark[0]
        if sign[-1] in "{([" and len(sign) <= 2:
            depth += 1
        elif sign[-1] in "})]" and len(sign) <= 2:
            depth -= 1
        elif depth == 0 and not (sign == "," and re.match(r"\d{3}(?!\d)", text[mark.end() :])):
            found.append(text[start : mark.start()])
            start = mark.end()
    return [one.strip() for one in [*found, text[start:]] if one.strip()]


def compounds_divided(text: str) -> str:
    r"""A text with a comma behind each unit that a number follows.

    >>> compounds_divided(r"5\text{ h}30\text{ min}")
    '5\\text{ h},30\\text{ min}'
    """

    def with_comma(found: re.Match[str]) -> str:
        words = found[1].lower().split()
        return found[0] + ("," if words and all(word in UNITS or word in UNIT_OF for word in words) else "")

    return _COMPOUND.sub(with_comma, text)


def unit(part: str) -> tuple[str, ...]:
    r"""The words of a quantity's unit, the usual ones by their shortest form; empty if it has none.

    >>> unit(r"3\text{ hours}"), unit(r"3 \mathrm{km} / \mathrm{h}"), unit("3")
    (('h',), ('km', 'h'), ())
    """
    words: list[str] = re.findall(r"[^\W\d_]+", " ".join(re.findall(TEXT, part)).lower())
    return tuple(UNIT_OF.get(one, one) for one in words)


def units_agree(marked: str, answer: str) -> bool:
    """Whether two quantities can have the same unit: one has none, or the words of one are among the other's."""
    said, gold = ({one.removesuffix("s") or one for one in unit(part)} for part in (marked, answer))
    return not said or not gold or said <= gold or gold <= said


def names(marked: str, answer: str) -> bool | None:
    r"""Whether two rows of capital letters name the same; None if not both are such rows.

    Letters of points stand in an order. An angle and a segment are the same read from the other end.

    >>> names("BA", "AB"), names(r"\angle CBA", r"\angle ABC"), names("x", "AB")
    (False, True, None)
    """
    found = [_NAMED.fullmatch(one) for one in (marked, answer)]
    if not found[0] or not found[1]:
        return None
    said, gold = found[0]["points"], found[1]["points"]
    length = {r"\angle": 3, r"\overline": 2}.get(found[1]["sign"] or found[0]["sign"] or "")
    return said == gold or (len(gold) == length and said == gold[::-1])


def set_and_row(marked: str, answer: str) -> bool:
    r"""Whether one answer is a set of several and the other a pair, a row or an interval.

    >>> set_and_row(r"\{1, 2\}", "(1, 2)"), set_and_row(r"\{(1, 2)\}", "(1, 2)")
    (True, False)
    """
    kinds = {_kind(one) for one in (marked, answer)}
    return "set" in kinds and "row" in kinds


def _kind(text: str) -> str | None:
    bare = re.sub(r"\\(?:left|right|[,;:! ])(?![a-z])|\s", "", text)
    bare = re.sub(r"^[^=]*(?:=|\\in(?![a-z]))(?=\\?[{(\[])", "", bare)
    if bare.startswith("{") and bare.endswith("}"):
        bare = rf"\{bare[:-1]}\}}"
    found = _WHOLE.fullmatch(bare)
    if found is None or not _closes_last(bare) or len(divided(found["inside"])) < 2:
        return None
    return "set" if found["open"] == r"\{" else "row"


def vector(text: str) -> tuple[str, list[str]] | None:
    r"""How a vector is written (``matrix`` of one row or column, ``angles`` or ``row``), and its entries; or None.

    Angles hold an inner product as well: they are a vector only if a digit is in them.

    >>> vector(r"\begin{pmatrix} 3 \\ -1 \end{pmatrix}"), vector(r"\left\langle 3,-1\right\rangle"), vector("(1,200)")
    (('matrix', ['3', '-1']), ('angles', ['3', '-1']), ('row', ['1', '200']))
    >>> vector(r"\langle u,v\rangle"), vector(r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"), vector("[0,1]")
    (None, None, None)
    """
    bare = re.sub(r"^[^=]*=|\\(?:left|right)(?![a-z])|\\[,;:!]", " ", text).strip()
    if found := _MATRIX.fullmatch(re.sub(r"(?<=[(\[])\s+(?=\\b)|(?<=\})\s+(?=[)\]]$)", "", bare)):
        if found["kind"] in ("pmatrix", "bmatrix") if found["open"] is None else found["close"] is not None:
            lines = [one for one in re.split(r"\\\\(?:\[[^\]]*\])?", found["rows"]) if one.strip()]
            rows = [[cell.strip() for cell in re.split(r"(?<!\\)&", line)] for line in lines]
            entries = rows[0] if len(rows) == 1 else [row[0] for row in rows if len(row) == 1]
            if len(entries) > 1 and len(entries) == sum(map(len, rows)):
                return "matrix", entries
        return None
    found = _ANGLES.fullmatch(bare) or (_WHOLE.fullmatch(bare) if bare.startswith("(") and bare.endswith(")") else None)
    if found is None or (found.re is _WHOLE and not _closes_last(bare)):
        return None
    entries = divided(re.sub(r"(?<!\\),", ", ", found["inside"]))
    if len(entries) < 2 or (found.re is _ANGLES and not re.search(r"\d", found["inside"])):
        return None
    return "angles" if found.re is _ANGLES else "row", entries


def left_open(text: str) -> bool:
    r"""Whether dots stand for a part of an answer; those behind a decimal fraction only say that it goes on.

    >>> left_open(r"12\ldots"), left_open(r"1, 2, \ldots"), left_open(r"0.333\ldots")
    (True, True, False)
    """
    return any(not re.search(r"\d\.\d+\s*$", text[: dots.start()]) for dots in DOTS.finditer(text))


def other_word(marked: str, answer: str) -> bool:
    """Whether two answers are three small letters each that are words rather than products: the same in another order.

    A word has a vowel, and letters that are not neighbours in the alphabet.

    >>> other_word("act", "cat"), other_word("cba", "abc"), other_word("hwl", "lwh"), other_word("a t c", "cat")
    (True, False, False, True)
    """
    said, gold = (re.sub(r"\s", "", one).strip("'\"`") for one in (marked, answer))
    if not re.fullmatch("[a-z]{3}", gold) or sorted(said) != sorted(gold) or said == gold:
        return False
    return bool(set(gold) & set("aeiou")) and ord(max(gold)) - ord(min(gold)) > 2


def _closes_last(text: str) -> bool:
    """Whether the bracket at the beginning closes at the end."""
    depth = 0
    for mark in _BRACKET.finditer(text):
        depth += 1 if mark[0][-1] in "{([" else -1
        if depth == 0:
            return mark.end() == len(text)
    return False


def is_interval(text: str) -> bool:
    """Whether a text is an interval, or several joined by a union."""
    members = re.split(r"\\cup(?![a-z])", re.sub(r"^\s*[a-z]\s*\\in(?![a-z])", "", text))
    return all(_kind(one) == "row" for one in members)


def as_interval(text: str) -> str | None:
    r"""An inequality in one letter, or several joined by "or", as intervals; None if it is anything else.

    >>> as_interval(r"0 \le x < 1"), as_interval("x>2"), as_interval(r"x<1 \text{ or } x \ge 2")
    ('[0,1)', '(2,\\infty)', '(-\\infty,1) \\cup [2,\\infty)')
    """
    found = [_one_interval(one) for one in re.split(r"\\text\s*\{\s*or\s*\}|(?<![A-Za-z])or(?![A-Za-z])", text)]
    return r" \cup ".join(one for one in found if one) if all(found) else None


def _one_interval(text: str) -> str | None:
    sides, signs = [one.strip() for one in _ORDER.split(text)], _ORDER.findall(text)
    if any("," in one or not one for one in sides) or len(signs) not in (1, 2):
        return None
    upward = [sign == "<" or sign.startswith(r"\l") for sign in signs]
    closed = [sign.startswith((r"\le", r"\ge")) for sign in signs]
    if len(set(upward)) > 1:
        return None
    if not upward[0]:
        sides, closed = sides[::-1], closed[::-1]
    letter = re.compile(r"[A-Za-z]")
    if len(signs) == 2:
        low, high = sides[0], sides[2]
        if not letter.fullmatch(sides[1]):
            return None
        return f"{'[' if closed[0] else '('}{low},{high}{']' if closed[1] else ')'}"
    if letter.fullmatch(sides[0]):
        return rf"(-\infty,{sides[1]}{']' if closed[0] else ')'}"
    if letter.fullmatch(sides[1]):
        return rf"{'[' if closed[0] else '('}{sides[0]},\infty)"
    return None


def row_of(text: str) -> list[str]:
    r"""The members of a list or of a row in brackets.

    >>> row_of(r"\left(3, 2\right)"), row_of("3, 2")
    (['3', '2'], ['3', '2'])
    """
    inside = re.fullmatch(r"\s*(?:\\left)?\(([^()]*?)(?:\\right)?\)\s*", text)
    return divided(inside[1] if inside else text)


def assignments(text: str) -> dict[str, str] | None:
    """Values by name of a list such as ``a=1, b=2``; None if it is anything else.

    >>> assignments("a=1, b=2"), assignments("x=1, x=2"), assignments("a=1")
    ({'a': '1', 'b': '2'}, None, None)
    """
    pairs = [re.fullmatch(r"([A-Za-z](?:_\{?\w+\}?)?)\s*=([^=]+)", one) for one in divided(text)]
    found = {one[1]: one[2].strip() for one in pairs if one}
    return found if len(found) == len(pairs) > 1 else None
