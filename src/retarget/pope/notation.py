r"""How answers are written, brought to one form: signs of Unicode, words behind numbers, text in ``\text``.

Free of torch. Everything here is a change of notation: it never decides whether two answers are equal.
"""

import re
from decimal import Context


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


TEXT = r"\\(?:text(?:rm|bf|it|sf|normal)?|math(?:rm|bf|it|sf)|mbox|operatorname)\s*\{([^{}]*)\}"
"""LaTeX's commands for text and for letters that stand upright, with what they hold."""

SCALES = {
    "dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
"""Words that multiply the number before them."""
PARTS = _set("""
    half halves third thirds fourth fourths quarter quarters fifth fifths sixth sixths seventh sevenths eighth eighths
    ninth ninths tenth tenths hundredth hundredths thousandth thousandths millionth millionths
""")
"""Words that divide the number before them: "3 quarters"."""
CHANGING = PARTS | _set("squared cubed factorial factorials times plus minus divided multiplied")
"""Words that change the number before them, unlike a unit. What they make of it is not computed."""

_VULGAR = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5), "⅘": (4, 5),
    "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
}  # fmt: skip
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_SIGNS = str.maketrans({
    **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # digits and signs of full width
    **{sign: rf"\frac{{{over}}}{{{under}}}" for sign, (over, under) in _VULGAR.items()},
    "−": "-", "º": "°", "∞": r"\infty ", "π": r"\pi ", "≤": r"\le ", "≥": r"\ge ", "∈": r"\in ", "∪": r"\cup ",
    "×": r"\times ", "℃": r"°\mathrm{C}", "℉": r"°\mathrm{F}",
})  # fmt: skip
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]|\\pi))")
_DEGREE = re.compile(r"\s*°\s*(?:([CF])(?![A-Za-z]))?")
_MINUS = re.compile(r"(^|[(\[{=,])(\s*)[–—](?=\s*[\d.\\])")

_SCALE = "|".join(SCALES)
_NUMBER = r"(?<![\w.,/^\\])(?P<number>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)"
_SCALED = re.compile(
    rf"{_NUMBER}(?:\s|\\[ ,]|~|-|\$)*(?:(?P<open>\\(?:text|textrm|mathrm|mbox)\s*\{{)\s*)?(?P<scale>{_SCALE})s?"
    r"(?![A-Za-z])(?P<close>\s*\})?",
    re.IGNORECASE,
)

_D = r"(?:\\partial(?![a-z])|(?<![A-Za-z\\])d|\\(?:math(?:rm|it)|text(?:rm)?|operatorname)\s*\{\s*d\s*\})\s*"
_POWER = r"(?:\^\s*(?:\{\s*\w+\s*\}|\w)\s*)?"
_GREEK = r"\\(?:alpha|beta|gamma|delta|epsilon|theta|phi|psi|rho|lambda|mu|nu|xi|eta|zeta|tau|sigma|omega|ell)(?![a-z])"
_SYMBOL = rf"(?:{_GREEK}|[A-Za-z])(?:_(?:\{{\w+\}}|\w))?\s*"
_FUNCTION = rf"(?:(?P<function>{_SYMBOL})(?:\(\s*[A-Za-z]\s*\)\s*)?|\((?P<inside>[^(){{}}]*)\)\s*)"
_UNDER = rf"(?P<under>(?:{_D}{_SYMBOL}{_POWER}(?:\\[,;:!]\s*)*)+)"
_DERIVATIVES = tuple(
    re.compile(form)
    for form in (
        rf"\\[dtc]?frac\s*\{{\s*(?P<d>{_D}){_POWER}{_FUNCTION}\}}\s*\{{\s*{_UNDER}\}}",
        rf"\\[dtc]?frac\s*\{{\s*(?P<d>{_D}){_POWER}\}}\s*\{{\s*{_UNDER}\}}\s*{_FUNCTION}(?![\w^({{])",
        rf"(?P<d>{_D}){_POWER}{_FUNCTION}/\s*{_UNDER}(?![\w^({{])",
    )
)
"""A derivative of a named function or a bracket: as one fraction, behind its operator, with a slash."""
_BELOW = re.compile(rf"{_D}(?P<variable>{_SYMBOL})(?P<power>{_POWER})")

_EXPONENT = re.compile(
    rf"((?:[A-Za-z]\s*=\s*)?[-+]?\d+(?:\.\d+)?)[eE]([-+]?\d{{1,3}})(?:(\s*(?:\\[ ,;:]\s*)?{TEXT}.*)|\s+([A-Za-z/ ]+))?"
)
"""A number such as 1.6e-19, perhaps with a unit."""

_TOKEN = re.compile(
    r"(?P<number>(?:(?:(?<=\s)|^)[-+])?(?:\\?\$)?(?<![\w^.])\d[\d.,:/]*(?<![.,:/])(?:\s*\\?%)?)"
    r"|(?P<word>[^\W\d_]+(?:[-/'’.][^\W\d_]+)*(?:\d\w*)?)"
)
_UNIT_LETTERS = frozenset("mgshlLtdVWNJKCF")
_WORDS_IN_TEXT = frozenset(("and", "or"))
_KEPT = re.compile(r"[_&#]|\\(?![ ,;:!%$])")


_GROUP = r"\{((?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*+\})*+\})*+\})*+)\}"
"""A group of LaTeX, with up to three groups in each other."""
_COLOUR = re.compile(rf"\\(?:text)?color\s*(?:\[[^\]]*+\]\s*)?\{{[^{{}}]*+\}}\s*(?:{_GROUP})?")
_DEEP = 3
"""How often colours and lines are taken off that are in each other."""
_WRAPPED = re.compile(rf"\s*(?P<line>\\(?:underline|uline)\s*)?{_GROUP}\s*")


def without_colour(text: str) -> str:
    r"""A text without its colours, and without a line under all of it.

    >>> [without_colour(one) for one in (r"\textcolor{blue}{4}", r"{\color{red} 4}", r"\underline{\frac{1}{2}}")]
    ['4', '4', '\\frac{1}{2}']
    >>> without_colour(r"2^\textcolor{blue}{12}"), without_colour(r"\underline{a}b"), without_colour("{4}")
    ('2^{12}', '\\underline{a}b', '{4}')
    """
    coloured = "color" in text and _COLOUR.search(text) is not None
    for _ in range(_DEEP if coloured else 0):
        text = _COLOUR.sub(_uncoloured, text)
    for _ in range(_DEEP):
        whole = _WRAPPED.fullmatch(text)
        if whole is None or not (coloured or whole["line"]):
            break
        text = whole[2]
    return text


def _uncoloured(found: re.Match[str]) -> str:
    """What is coloured; in braces where LaTeX would take its first character alone, or for a part of a name."""
    before = found.string[: found.start()].rstrip()[-1:]
    within = found[1] or ""
    return f"{{{within}}}" if within and (before in ("^", "_") or before.isalpha()) else within


def plain_unicode(text: str) -> str:
    r"""A text whose mathematical signs are written in ASCII and LaTeX, without colours.

    >>> plain_unicode("5√2"), plain_unicode("2½ cm²"), plain_unicode("–42"), plain_unicode("90° > x₁")
    ('5\\sqrt{2}', '2\\frac{1}{2} cm^{2}', '-42', '90^\\circ > x_{1}')
    """
    text = without_colour(text) if "\\" in text else text
    if text.isascii():
        return text
    text = _MINUS.sub(r"\1\2-", text.translate(_SIGNS).removesuffix("。"))
    text = _ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2] or found[3]}}}", text)
    text = re.sub(f"[{''.join(_RAISED)}]+", lambda found: f"^{{{''.join(_RAISED[one] for one in found[0])}}}", text)
    text = re.sub(f"[{''.join(_LOWERED)}]+", lambda found: f"_{{{''.join(_LOWERED[one] for one in found[0])}}}", text)
    return _DEGREE.sub(lambda found: r"^\circ" + (rf"\mathrm{{{found[1]}}}" if found[1] else " "), text).strip()


def with_derivatives(text: str) -> str:
    r"""A text whose derivatives of named functions are symbols: math-verify would compute 0 for each.

    >>> with_derivatives(r"x\frac{dy}{dx}"), with_derivatives("dy/dx") == with_derivatives(r"\dfrac{d}{dx}y")
    ('x d_{100121047120}', True)
    >>> with_derivatives(r"\frac{d}{dx}x^2"), with_derivatives(r"\frac{da}{bc}")
    ('\\frac{d}{dx}x^2', '\\frac{da}{bc}')
    """
    if "partial" not in text and not ("d" in text and ("frac" in text or "/" in text)):
        return text
    for form in _DERIVATIVES:
        text = form.sub(_as_derivative, text)
    return text


def _as_derivative(found: re.Match[str]) -> str:
    function = re.sub(r"[\s{}]", "", found["function"] or found["inside"])
    below = [
        (re.sub(r"[\s{}]", "", one["variable"]), re.sub(r"[\s{}]", "", one["power"]))
        for one in _BELOW.finditer(found["under"])
    ]
    if any(variable in re.findall(_SYMBOL, function) for variable, _ in below):  # computed, as that of x^2
        return found[0]
    name = ("p" if "partial" in found["d"] else "d") + function + "/" + ",".join(sorted(map("".join, below)))
    return f" d_{{{''.join(f'{ord(one):03}' for one in name)}}}"


def scaled(text: str) -> str:
    r"""A text in which the numbers before "million" and the like are written out.

    >>> scaled("2.5 million"), scaled(r"3\text{ dozen eggs}"), scaled("1/2 million")
    ('2500000', '36\\text{ eggs}', '1/2 million')
    """
    before = ""
    while before != text:  # "3 hundred thousand"
        before, text = text, _SCALED.sub(_written_out, text)
    return text


def _written_out(found: re.Match[str]) -> str:
    number, factor = found["number"].replace(",", ""), SCALES[found["scale"].lower()]
    value = format(
        Context(prec=len(number) + 20).multiply(Context(prec=len(number)).create_decimal(number), factor), "f"
    )
    value = value.rstrip("0").rstrip(".") if "." in value else value
    if found["open"] and not found["close"]:
        return value + found["open"]
    return value + ("" if found["open"] else found["close"] or "")


def unwrapped(text: str) -> str:
    r"""A text with the numbers and single letters of ``\text`` outside it; each run of words stays in one.

    Without that, the comparison of the words of ``\text{June 20}`` would leave out the number.

    >>> unwrapped(r"\text{June 20}"), unwrapped(r"\text{12 km/h}"), unwrapped(r"\text{n is odd}")
    ('\\text{June} 20', '12 \\text{km/h}', 'n \\text{is odd}')
    >>> unwrapped(r"3\text{ m or }4\text{ m}")
    '3\\text{m} \\text{or} 4\\text{ m}'
    """
    return re.sub(TEXT, _opened, text)


def _opened(found: re.Match[str]) -> str:
    inside = re.sub(r"\\[ ,;:!]|~", " ", found[1])
    tokens = list(_TOKEN.finditer(inside))
    words = [one["word"] for one in tokens if one["word"]]
    letters = [one for one in words if len(one) == 1]
    mixed = any(one["number"] for one in tokens) or (letters and len(words) > len(letters))
    joined = len(words) > 1 and any(one.lower() in _WORDS_IN_TEXT for one in words)
    if not (mixed or joined) or _KEPT.search(inside) or not inside.strip():
        return found[0]
    after_number = bool(re.search(r"[\d}%]\s*$", found.string[: found.start()]))
    return _pieces(inside, tokens, after_number)


def _pieces(inside: str, tokens: list[re.Match[str]], after_number: bool) -> str:
    """The numbers, single letters and signs as they are, and each run of words between them in ``\\text``."""
    found: list[str] = []
    run: list[str] = []
    at = 0

    def close() -> None:
        if run:
            found.append(rf" \text{{{' '.join(run)}}} ")
            run.clear()

    for token in [*tokens, None]:
        between = inside[at : token.start() if token else len(inside)]
        if between.strip() or token is None:
            close()
        found.append(between if between.strip() else " ")
        if token is None:
            break
        at, word = token.end(), token["word"]
        if word is None or not _is_word(word, inside[at:], after_number and not between.strip()):
            close()
            found.append(token[0])
        elif word.lower() in _WORDS_IN_TEXT:
            close()
            found.append(rf" \text{{{word}}} ")
        else:
            run.append(word)
        after_number = word is None
    return re.sub(r" +", " ", "".join(found)).strip() + (" " if inside.endswith(" ") else "")


def _is_word(word: str, after: str, in_place_of_unit: bool) -> bool:
    if len(word) > 1:
        return True
    if in_place_of_unit:
        return word in _UNIT_LETTERS
    return word == "a" and re.match(r"\s+[^\W\d_]{2}", after) is not None


def scientific(text: str) -> str:
    r"""A number such as ``1.6e-19``, perhaps with a unit, as a product; any other text as it is.

    >>> scientific("1.6e-19 C"), scientific("2e-3x")
    ('1.6 \\times 10^{-19}\\text{ C}', '2e-3x')
    """
    found = _EXPONENT.fullmatch(text.strip())
    if found is None:
        return text
    unit = found[3] or (rf"\text{{ {found[5]}}}" if found[5] else "")
    return rf"{found[1]} \times 10^{{{found[2]}}}{unit}"


def repeating(text: str) -> str:
    r"""A text with its repeating decimals as fractions.

    >>> repeating(r"0.\overline{3}"), repeating(r"1.1\bar{6}")
    ('\\frac{3}{9}', '\\frac{105}{90}')
    """
    return re.sub(r"(?<![\d.,])(\d{1,9})\.(\d{0,9})\\(?:overline|bar|dot)\s*\{(\d{1,9})\}(?!\d)", _as_fraction, text)


def _as_fraction(found: re.Match[str]) -> str:
    whole, fixed, period = found.groups()
    over = int(whole + fixed + period) - int(whole + fixed)
    return rf"\frac{{{over}}}{{{(10 ** len(period) - 1) * 10 ** len(fixed)}}}"
