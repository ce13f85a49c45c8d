r"""Two formulas through math-verify, which would read some of what is written otherwise than it is meant.

It does not tell R from r, computes ``\gcd(m,n)`` as that of unknown integers, takes last letters for units, and sees
no difference below 1e-12. Texts are written otherwise before it reads them, and numbers compared again.
"""

import re
from functools import lru_cache
from typing import Any

from retarget.errors import UserError
from retarget.pope.notation import TEXT

_SYMBOL = re.compile(rf"{TEXT}|\\[A-Za-z]+|(?P<letter>[A-Za-z])(?:_(?:\{{(?P<index>\w+)\}}|(?P<sign>\w)))?")
_SIGNED = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_DIVISORS = re.compile(
    r"(?:\\(?:operatorname|text|mathrm)\s*\{\s*|\\|(?<![A-Za-z\\]))(?P<name>gcd|lcm)\s*\}?\s*"
    r"(?:\\left\s*)?\((?P<within>[^()]*?)(?:\\right\s*)?\)"
)
"""The greatest common divisor or least common multiple of what stands in brackets."""
_UNSEEN = 1e-12


def same_value(marked: str, answer: str) -> bool:
    """Whether math-verify finds two formulas equal, and they do not differ by less than it sees.

    Raises:
        UserError: math-verify cannot read the gold answer.
    """
    from math_verify import verify

    found, wanted = (_with_cases(one, marked, answer) for one in (marked, answer))
    read = _parsed(found)
    return verify(_gold(wanted), read, timeout_seconds=None) and not _hardly_differ(read, _gold(wanted))


def both_signs(text: str) -> str:
    r"""A text with ``\pm`` or ``\mp`` as the two formulas that it stands for, the upper signs first.

    >>> both_signs(r"x = \frac{1 \pm \sqrt{5}}{2}"), both_signs("5")
    ('x = \\frac{1 + \\sqrt{5}}{2}, x = \\frac{1 - \\sqrt{5}}{2}', '5')
    """
    if not _SIGNED.search(text):
        return text
    upper, lower = ({"pm": sign, "mp": other} for sign, other in ("+-", "-+"))
    return ", ".join(_SIGNED.sub(lambda found, signs=signs: signs[found[1]], text) for signs in (upper, lower))


def _with_cases(text: str, *both: str) -> str:
    r"""A text in which capital letters differ from small ones, if one of both texts has them: math-verify reads R as r.

    >>> _with_cases("R-r", "r-R", "R-r"), _with_cases("N^2", "n^2", "N^2")
    ('{r_{1000}}-r', 'N^2')
    """
    meant: set[str] = set()
    for one in both:
        letters = {found["letter"] for found in _SYMBOL.finditer(one) if found["letter"]}
        meant |= {letter for letter in letters if letter.isupper() and letter.lower() in letters}
    return _SYMBOL.sub(lambda found: _small(found) if found["letter"] in meant else found[0], text)


def _small(found: re.Match[str]) -> str:
    """A capital letter as a small one with another index, which keeps its own."""
    return f"{{{found['letter'].lower()}_{{1000{found['index'] or found['sign'] or ''}}}}}"


def _hardly_differ(marked: list[Any], gold: list[Any]) -> bool:
    r"""Whether two exact numbers differ by so little that math-verify does not see it: 2^{-100} and 2^{-101}."""
    from sympy import Eq, Expr, Float, Integer, UnevaluatedExpr
    from sympy.core.evalf import PrecisionExhausted

    values: list[Any] = [one[0] if one else None for one in (marked, gold)]
    values = [one.rhs if isinstance(one, Eq) else one for one in values]
    for one in values:
        if not isinstance(one, Expr) or not one.is_number or one.has(Float, UnevaluatedExpr):  # decimals, percent
            return False
    if values[0] == values[1]:  # 10^{10^9} has too many digits to subtract it from itself
        return False
    try:
        difference = abs((values[0] - values[1]).evalf(15, strict=True))
    except (PrecisionExhausted, ArithmeticError, TypeError):  # they agree in all digits, or it is no number
        return False
    return bool(Integer(0) < difference < _UNSEEN)


def _parsed(answer: str) -> list[Any]:
    """What math-verify reads in an answer as a whole; from the rest it would take the last number of any text."""
    from math_verify import LatexExtractionConfig, parse

    whole = f"\\boxed{{{_with_variables(_with_divisors(answer))}}}"
    return parse(whole, [LatexExtractionConfig()], parsing_timeout=None)  # type: ignore[arg-type]


def _with_divisors(text: str) -> str:
    r"""A formula whose gcd and lcm of letters are symbols: math-verify would compute 1 and the product.

    >>> _with_divisors(r"m+n-\gcd(n,m)"), _with_divisors(r"\operatorname{lcm}(4,6)")
    ('m+n-{g_{109044110}}', '\\operatorname{lcm}(4,6)')
    >>> _with_divisors(r"\operatorname{lcm}(a,b)")
    '\\frac{(a)(b)}{{g_{097044098}}}'
    """
    return _DIVISORS.sub(_as_symbol, text)


def _as_symbol(found: re.Match[str]) -> str:
    within = sorted(re.sub(r"\s", "", found["within"]).split(","))
    if not any(re.search("[A-Za-z]", one) for one in within):
        return found[0]
    index = "".join(f"{ord(one):03}" for one in ",".join(within))
    if found["name"] == "gcd":
        return f"{{g_{{{index}}}}}"
    return rf"\frac{{({within[0]})({within[1]})}}{{{{g_{{{index}}}}}}}" if len(within) == 2 else f"{{l_{{{index}}}}}"


def _with_variables(text: str) -> str:
    """A formula whose last letters math-verify takes for factors; it would drop several, such as t, as units.

    >>> _with_variables("2t"), _with_variables("3ab"), _with_variables("5 m"), _with_variables("4i")
    ('2{t}', '3{a}{b}', '5 m', '4i')
    """
    found = re.search(r"(?<=[\d}\s])([cdghlmost]|ab|bc|rs)$", text)
    if found is None or re.search(r"\d\s+[mgshl]$", text):
        return text
    return text[: found.start()] + "".join(f"{{{letter}}}" for letter in found[0])


@lru_cache(maxsize=1024)
def _gold(answer: str) -> list[Any]:
    found = _parsed(answer)
    if not found:
        raise UserError(f"math-verify cannot read the answer {answer!r}: use the grader `exact`")
    return found
