r"""One number with its unit, read from plain text or LaTeX: ``1,200``, ``12\text{ m}^2``, ``2\frac{1}{2}``."""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from retarget.pope.notation import CHANGING, SCALES, TEXT, plain_unicode, scaled

_PLUS = "\u2064"
"""Unicode's invisible plus, which stands between the whole part and the fraction of a mixed number."""
_DIGITS = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)"
_SPACED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?![\d.,]?\d)")
"""Digits in groups of thousands with spaces between them."""
_NUMBER = rf"(?:(?<![\w)}}])[-+])?(?:{_DIGITS}{_PLUS}\d+/\d+|(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:/\d+)?)"
_NUMBERS = re.compile(_NUMBER)
_ONE_NUMBER = re.compile(
    rf"[-+]?(?:(?:US)?[$€£¥₹]|Rs\.? ?)?(?P<number>{_NUMBER})\s*"
    r"(?:%|°(?:\s*[CF])?|(?P<unit>(?:[^\W\d_]+[.'²³]?(?:[/ -]|$))+))?\.?"
)
_NO_UNIT = re.compile(
    rf"(?:[b-fi-kn-ru-zα-ω]|or|and|more|less|fewer|to|over|per|{'|'.join(sorted(CHANGING | SCALES.keys()))})",
    re.IGNORECASE,
)
"""What changes a number that stands before it, unlike a unit: a variable, "5 or more", "3 thirds"."""
_MIXED = re.compile(
    rf"(?<![\w.,^_}}])(?P<whole>{_DIGITS})(?:\s|~|\\[,;: ])+(?P<over>[1-9]\d*+)\s*+/\s*+(?P<under>[1-9]\d*+)(?![.,]\d)"
)
_LATEX = (
    (re.compile("[−–]"), "-"),
    (re.compile(r"\\(?:text|mathrm|textrm|mbox|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?"), "°"),
    (re.compile(r"\{,\}|,\\!"), ","),
    (re.compile(r"\\[$%]"), lambda found: found[0][1]),
    (re.compile(r"\\[,;:! ]|\\left|\\right|\\displaystyle|[*_]{2}"), ""),
    (re.compile(r"(?<=\d)\s*\\[dtc]?frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)\s*(\d))"), rf"{_PLUS}\1\3/\2\4"),
    (re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1/\2"),
    (re.compile(r"\\[dtc]?frac\s*(\d)\s*(\d)"), r"\1/\2"),
    (re.compile(r"\s*(?:\\times|\\cdot|×)\s*10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?"), r"e\1"),
    (re.compile(r"(?<=[A-Za-z])\s*\^\s*\{?\s*[23]\s*\}?"), ""),
)
"""How numbers and their units are written in LaTeX, and how as plain text."""

_FRACTION = re.compile(r"(?P<minus>-?)(?:(?P<over>\d{1,9})/(?P<under>[1-9]\d{0,8})|(?P<decimal>\d{1,9}\.\d{1,6}))")
"""What is told with other signs, too: a fraction, or a decimal of six places, as many as are written out."""
_QUANTITY = re.compile(rf"(?P<number>.*?[\d}}])(?:(?:\s|\\[ ,;:]|~|\\cdot|/)*{TEXT}(?:\s*\^\s*\{{?-?\d\}}?)?)+\s*")
"""A number with its unit."""


@dataclass(frozen=True)
class Quantity:
    """A number without its unit.

    Attributes:
        value: the number; not finite if it is outside the range of floats.
        digits: sign and digits of a number that is written as an integer, otherwise None.
    """

    value: float
    digits: str | None

    def equals(self, gold: "Quantity") -> bool:
        """Whether it is the gold number: exactly, if both are written as integers, else to one part in a million.

        >>> one_number("1234568").equals(one_number("1234567")), one_number("0.333333").equals(one_number("1/3"))
        (False, True)
        """
        if self.digits is not None and gold.digits is not None:
            return self.digits == gold.digits
        # The last factor only allows for rounding: 0.333333 differs from 1/3 by exactly a millionth of it.
        return math.isfinite(gold.value) and abs(self.value - gold.value) <= 1e-6 * abs(gold.value) * (1 + 1e-9)


def with_fractions(text: str) -> str:
    r"""A text in which the mixed numbers are written with ``\frac``.

    >>> with_fractions("3 1/2 or 10 000/3")
    '3\\frac{1}{2} or 10 000/3'
    """
    return _MIXED.sub(_with_fraction, text)


def _with_fraction(found: re.Match[str]) -> str:
    whole, over, under = found["whole"], found["over"], found["under"]
    grouped = len(whole) <= 3 and len(over) == 3 and int(over) >= int(under[:9])  # 1 200/7 is 1200/7
    return found[0] if grouped else f"{whole}\\frac{{{over}}}{{{under}}}"


def last_number(text: str) -> str | None:
    """The last number in a text, as plain text; None if it has none, or a list or a decimal comma ends in it.

    >>> last_number("so 3 000 in all"), last_number("it is 0,5"), last_number("at (3,4)")
    ('3000', None, None)
    """
    plain = _plain(text)
    found = [*_NUMBERS.finditer(plain)]
    if not found or re.search(r"\d,$", plain[: found[-1].start()]):
        return None
    return found[-1][0].replace(_PLUS, " ")


def one_number(text: str) -> Quantity | None:
    r"""The quantity that a text is, perhaps behind ``x =`` and before a unit; None if it is anything else.

    >>> one_number(r"-2\frac{1}{2} \text{ cm}").value, one_number("1,200").digits, one_number("5 or 6")
    (-2.5, '1200', None)
    >>> one_number("5 million").digits, one_number("3 thirds")
    ('5000000', None)
    """
    plain = _plain(text).strip().strip("$").strip().rpartition("=")[2].strip()
    found = _ONE_NUMBER.fullmatch(plain)
    if found is None or any(_NO_UNIT.fullmatch(word) for word in re.split(r"[/ .'-]", found["unit"] or "") if word):
        return None
    minus = plain.startswith("-")
    whole, _, rest = found["number"].lstrip("+-").replace(",", "").rpartition(_PLUS)
    over, _, under = rest.partition("/")
    divisor = float(under or 1)
    if not divisor:
        return None
    value = float(whole or 0) + float(over) / divisor
    if not value and re.search("[1-9]", re.split("[eE]", over)[0]):
        value = math.nan
    digits = (over.lstrip("0") or "0") if rest.isdigit() and not whole else None
    return Quantity(-value if minus else value, f"-{digits}" if minus and digits not in (None, "0") else digits)


def quantity(text: str) -> Quantity | None:
    r"""The number that a text is, whatever its unit: in text a letter is one, too.

    >>> quantity(r"1.6 \times 10^{-19}\text{ C}").value, quantity(r"2\text{ J}\cdot\text{s}").value, quantity("5 C")
    (1.6e-19, 2.0, None)
    """
    found = one_number(text)
    if found is None and (parts := _QUANTITY.fullmatch(text)) and not _changed(text[parts.end("number") :]):
        return one_number(parts["number"])
    return found


def other_forms(text: str) -> list[str]:
    r"""How else a fraction or a decimal may be written: as ``\frac{3}{4}``, ``\frac34``, ``3/4`` and ``0.75``.

    >>> other_forms(r"-\dfrac{3}{4}")
    ['-\\frac{3}{4}', '-3/4', '\\frac{-3}{4}', '-\\frac34', '-0.75']
    >>> other_forms("0.5"), other_forms("2/3"), other_forms("5")
    (['\\frac{1}{2}', '1/2', '\\frac12'], ['\\frac{2}{3}', '\\frac23'], [])
    """
    bare = text.strip().strip("$").strip()
    found = _FRACTION.fullmatch(_plain(bare).replace(" ", ""))
    if found is None:
        return []
    minus, over, under = found["minus"], found["over"], found["under"]
    value = Fraction(found["decimal"] or f"{over}/{under}")
    if found["decimal"]:
        over, under = map(str, value.as_integer_ratio())
    if value.denominator == 1:
        return []
    forms = [f"{minus}\\frac{{{over}}}{{{under}}}", f"{minus}{over}/{under}"]
    forms += [f"\\frac{{-{over}}}{{{under}}}"] if minus else []
    forms += [f"{minus}\\frac{over}{under}"] if len(over) == len(under) == 1 else []
    written = f"{float(value):.6f}"
    forms += [f"{minus}{written.rstrip('0')}"] if Fraction(written) == value else []
    return [one for one in forms if one != bare]


def _changed(unit: str) -> bool:
    """Whether a word changes the number before it."""
    return not (CHANGING | SCALES.keys()).isdisjoint(re.findall("[a-z]+", unit.lower()))


def _plain(text: str) -> str:
    text = with_fractions(scaled(plain_unicode(re.sub(r"\s+", " ", text))))
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    return _SPACED.sub(lambda found: found[0].replace(" ", ""), text.replace("~", " "))
