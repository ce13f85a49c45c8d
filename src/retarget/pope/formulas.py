r"""Two formulas through math-verify, which would read some of what is written otherwise than it is meant.

It does not tell R from r, computes ``\gcd(m,n)`` as that of unknown integers, takes last letters for units, lists for
sets, drops primes and the T of a transpose, and sees no difference below 1e-12. Texts are written otherwise before it
reads them, and numbers and the members of lists compared again.
"""

import re
from functools import lru_cache
from itertools import product
from typing import Any

from retarget.errors import UserError
from retarget.pope.notation import TEXT
from retarget.pope.parts import divided, row_of

_SYMBOL = re.compile(rf"{TEXT}|\\[A-Za-z]+|(?P<letter>[A-Za-z])(?:_(?:\{{(?P<index>\w+)\}}|(?P<sign>\w)))?")
_SIGNED = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_COUPLED = re.compile(r"\\mp(?![A-Za-z])|\\pm(?![A-Za-z])[^=]*=.*\\pm(?![A-Za-z])")
"""Signs that are all the upper or all the lower ones."""
_MOST_SIGNS = 4
_DIVISORS = re.compile(
    r"(?:\\(?:operatorname|text|mathrm)\s*\{\s*|\\|(?<![A-Za-z\\]))(?P<name>gcd|lcm)\s*\}?\s*"
    r"(?:\\left\s*)?\((?P<within>[^()]*?)(?:\\right\s*)?\)"
)
"""The greatest common divisor or least common multiple of what stands in brackets."""
_PRIMED = re.compile(rf"(?P<base>{TEXT}|_\{{\w+\}}|_\w|[A-Za-z)\]]|[^\d\s]\}})\s*(?P<primes>['′’″]+)")
"""A letter, a name or a bracket with primes; behind a number they are a unit."""
_T = r"(?:T|\\(?:top|intercal)(?![a-z])|\\(?:text|math(?:rm|bf|sf|it))\s*\{\s*T\s*\})"
_TRANSPOSED = re.compile(rf"\^\s*(?:{_T}|\{{\s*{_T}\s*\}})")
_T_READ = "^{{T}}"
_QUOTED = re.compile(r"(?:^|[(\[{,])\s*'")
_TABLE = re.compile(r"[)\]}]\s*$")
_LEFT_SIDE = re.compile(r"([^=,;]*=)")
_UNSEEN = 1e-12
_FEW_DIGITS = 1e-3
_NO_LIST = re.compile(
    r"\\(?:\{|lbrace|begin|in|notin|setminus|mid|l?dots|cdots|neq?|le|ge|leq|geq|lt|gt|leqslant|geqslant)(?![a-z])"
    r"|[<>≠]|^\s*\{.*\}\s*$"
)
"""A set, a table, a condition or a part left open: its commas do not only separate members that count."""
_NAME = re.compile(r"\s*\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*=(?!.*=)")
_COMMA = re.compile(r"(?<!\\),")


def same_value(marked: str, answer: str) -> bool:
    """Whether math-verify finds two formulas equal, and they do not differ by what it does not see.

    Raises:
        UserError: math-verify cannot read the gold answer.
    """
    from math_verify import verify

    both = _with_marks(marked, answer), _with_marks(answer, marked)
    if len({_T_READ in one for one in both}) > 1:  # it cancels: (A^TA)^{-1}A^T would be (AA)^{-1}A
        return False
    found, wanted = (_with_cases(one, *both) for one in both)
    read = _parsed(found)
    gold = _gold(wanted)
    if not verify(gold, read, timeout_seconds=None) or _hardly_differ(read, gold):
        return False
    return _as_often(marked, answer, read, gold)


def both_signs(text: str) -> str:
    r"""A text with ``\pm`` or ``\mp`` as the formulas that it stands for, the upper signs first.

    Several ``\pm`` are independent of each other, unless there is a ``\mp`` or they stand on both sides of an equation.

    >>> both_signs(r"x = \frac{1 \pm \sqrt{5}}{2}"), both_signs("5")
    ('x = \\frac{1 + \\sqrt{5}}{2}, x = \\frac{1 - \\sqrt{5}}{2}', '5')
    >>> both_signs(r"\pm 1 \pm i"), both_signs(r"\pm 1 \mp i")
    ('+ 1 + i, + 1 - i, - 1 + i, - 1 - i', '+ 1 - i, - 1 + i')
    """
    signs = len(_SIGNED.findall(text))
    if not signs:
        return text
    members = divided(text)
    if signs > 1 and not _COUPLED.search(text):
        if len(members) > 1:
            return ", ".join(map(both_signs, members))
        if signs <= _MOST_SIGNS:
            choices = map(iter, product("+-", repeat=signs))
            return ", ".join(_SIGNED.sub(lambda _, chosen=chosen: next(chosen), text) for chosen in choices)
    upper, lower = ({"pm": sign, "mp": other} for sign, other in ("+-", "-+"))
    return ", ".join(_SIGNED.sub(lambda found, signs=signs: signs[found[1]], text) for signs in (upper, lower))


def _with_marks(text: str, other: str) -> str:
    r"""A text whose primes and transposes math-verify reads: as exponents.

    It computes the transpose of a matrix that is written out. If only this text is an equation, it names on its left
    side what the other only gives.

    >>> _with_marks("AB'+A^TB", ""), _with_marks(r"f'(x)=g''(x)^\top", "g(x)"), _with_marks("(1,2)^T", "")
    ('AB^{\\prime}+A^{{T}}B', "f'(x)=g^{\\prime\\prime}(x)^{{T}}", '(1,2)^T')
    """
    if not _PRIMED.search(text) and not _TRANSPOSED.search(text):
        return text
    if "=" in text and "=" not in other:
        parts = _LEFT_SIDE.split(text)
        parts[::2] = map(_marked, parts[::2])
        return "".join(parts)
    return _marked(text)


def _marked(text: str) -> str:
    table = "," in text or r"\begin" in text

    def primed(found: re.Match[str]) -> str:
        count = len(found["primes"].replace("″", "''"))
        return found["base"] + "^{" + r"\prime" * count + "}"

    def transposed(found: re.Match[str]) -> str:
        return found[0] if table and _TABLE.search(text[: found.start()]) else _T_READ

    text = text if _QUOTED.search(text) else _PRIMED.sub(primed, text)
    return _TRANSPOSED.sub(transposed, text)


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
        if not isinstance(one, Expr) or not one.is_number or one.has(UnevaluatedExpr):  # percent
            return False
    if any(one.has(Float) for one in values):
        return _tiny_differ(*values)
    if values[0] == values[1]:  # 10^{10^9} has too many digits to subtract it from itself
        return False
    try:
        difference = abs((values[0] - values[1]).evalf(15, strict=True))
    except (PrecisionExhausted, ArithmeticError, TypeError):  # they agree in all digits, or it is no number
        return False
    return bool(Integer(0) < difference < _UNSEEN)


def _tiny_differ(marked: Any, gold: Any) -> bool:
    """Whether two numbers with decimals, so small that math-verify sees few of their digits, differ by a millionth."""
    try:
        values = complex(marked), complex(gold)
    except (TypeError, ValueError, OverflowError):
        return False
    return abs(values[1]) < _FEW_DIGITS and abs(values[0] - values[1]) > 1e-6 * abs(values[1]) * (1 + 1e-9)


def _as_often(marked: str, answer: str, read: list[Any], gold: list[Any]) -> bool:
    """Whether two lists that are equal as sets have each member equally often.

    A repeated root of a named unknown (``x = 2, 2``) counts once, if no member of the gold list is repeated.

    Args:
        marked: the formula to judge.
        answer: the gold one.
        read: what math-verify reads in ``marked``.
        gold: what it reads in ``answer``.
    """
    said, wanted = divided(_COMMA.sub(", ", marked)), divided(_COMMA.sub(", ", answer))
    if (len(said) < 2 and len(wanted) < 2) or _NO_LIST.search(marked) or _NO_LIST.search(answer):
        return True
    named = len(said) > 1 and _NAME.match(said[0])
    said, wanted = (_unnamed(row_of(one[0]) if len(one) == 1 else one) for one in (said, wanted))
    if _distinct(gold, len(wanted)) and (named or _distinct(read, len(said))):
        return True
    if len(said) != len(wanted):
        return False
    for one in wanted:
        found = next((other for other in said if other == one or (_parsed(one) and same_value(other, one))), None)
        if found is None:
            return False
        said.remove(found)
    return True


def _unnamed(members: list[str]) -> list[str]:
    return [_NAME.sub("", one).strip() for one in members]


def _distinct(read: list[Any], count: int) -> bool:
    """Whether math-verify has read as many different members as a list has."""
    from sympy import Eq, FiniteSet, Tuple

    value = read[0] if read else None
    value = value.rhs if isinstance(value, Eq) else value
    return count == (len(set(value.args)) if isinstance(value, FiniteSet | Tuple) else 1)


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
