r"""Answers that are no formulas, though written with their signs: ``5-7``, ``12:45``, ``0xFF``, ``'abc'``, ``AaBb``.

Free of torch. math-verify subtracts the parts of a range, a score, a date or a telephone number, divides the hours of a
time by its minutes, and multiplies the letters of a numeral, of a quoted text, of a strand of DNA or of a genotype.
"""

import re
from math import gcd

from retarget.pope.notation import TEXT
from retarget.pope.thousands import as_number

_PART = r"\d+(?:\.\d+)?"
_DASH = r"\s*(?:-{1,3}|[–—]|\\text\s*\{\s*(?:-{1,3}|[–—]|to)\s*\})\s*"
_UNIT = rf"(?:(?:\s|\\[ ,;:])*(?P<unit>{TEXT}))?\s*"
_JOINED = re.compile(rf"(?:{_PART}(?P<dash>{_DASH})(?:{_PART}{_DASH})*{_PART}|\d+/\d+/\d+){_UNIT}")
"""A range, a score, a date, a telephone number: digits that dashes join, or two slashes."""
_SIGN = re.compile(r"\\[%$]|\\[,;:!]")
_YEAR = re.compile(r"\d{4}\D+\d\d?\D+\d\d?|\d\d?\D+\d\d?\D+\d{4}")

_CLOCK = re.compile(r"(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d))?(?P<half>[ap]m)?", re.IGNORECASE)
_HOUR = re.compile(r"(?P<hour>\d\d?)(?P<half>[ap]m)", re.IGNORECASE)
_NAMED = re.compile(r"^\s*[A-Za-z]\s*=\s*")
_HALF_A_DAY = 12 * 60 * 60
_QUOTIENT = re.compile(r"\\[dtc]?frac\{?(\d+?)\}?\{?(\d+)\}?|(\d+)[/:](\d+)")

_PREFIXED = re.compile(r"0(?:[xX][0-9A-Fa-f]+|[bB][01]+|[oO][0-7]+)")
_QUOTED = re.compile(r"(?:'|\"|`{1,2}|[“‘])(?P<inside>[A-Za-z][\w -]*)(?:'{1,2}|\"|[”’])")
_STRAND = re.compile(r"(?P<end>[35])['′’]-*(?P<bases>[ACGTUacgtu]+)-*(?P<other>[35])['′’]")
_PAIRS = re.compile(r"(?:([A-Za-z])(?i:\1))+")

_ELEMENTS = frozenset(
    re.findall(
        "[A-Z][a-z]?",
        "HHeLiBeBCNOFNeNaMgAlSiPSClArKCaScTiVCrMnFeCoNiCuZnGaGeAsSeBrKrRbSrYZrNbMoTcRuRhPdAgCdInSnSbTeIXeCsBaLaCePrNdPm"
        "SmEuGdTbDyHoErTmYbLuHfTaWReOsIrPtAuHgTlPbBiPoAtRnFrRaAcThPaUNpPuAmCm",
    )
)
_UPRIGHT = re.compile(r"\\(?:ce|math(?:rm|bf|sf|it)|text(?:rm|bf|it)?|rm)(?![a-z])\s*|[{}_\s]|\\[,;:!]")
_CHEMICAL = re.compile(r"(?:[A-Z][a-z]?|[()\[\]]|(?<=[a-zA-Z)\]])\d+)+(?P<charge>\^(?:\d*[+-]|[+-]\d*)|[+-])?")


def same_literal(marked: str, answer: str, said: str, gold: str) -> bool | None:
    r"""Whether two answers are the same literal; None if the gold one is none, or may be a formula.

    Args:
        marked: the answer to judge.
        answer: the gold one.
        said: the answer to judge, without what does not change it: fonts and spaces.
        gold: the gold one, likewise.

    >>> same = lambda said, gold: same_literal(said, gold, said.replace(" ", ""), gold.replace(" ", ""))
    >>> same("8-10", "5-7"), same("5 – 7", "5-7"), same("10-12", "-2"), same("0x1A", "0xFF"), same("cba", "'abc'")
    (False, True, None, False, False)
    >>> same("aabb", "AaBb"), same("bBAa", "AaBb"), same("a^2b^2", "aabb"), same("12:45 pm", "12:45 PM")
    (False, True, None, True)
    """
    if (told := _same_parts(marked, answer)) is not None:
        return told
    if _PREFIXED.fullmatch(said) or _PREFIXED.fullmatch(gold):
        both = bool(_PREFIXED.fullmatch(said) and _PREFIXED.fullmatch(gold))
        return both and int(said, 0) == int(gold, 0)
    if quoted := _QUOTED.fullmatch(gold):
        words = _QUOTED.fullmatch(said)
        inside, other = (re.sub(r"\s", "", one) for one in (quoted["inside"], words["inside"] if words else said))
        return None if len(inside) == 1 else inside[1:] == other[1:] and inside[0].lower() == other[:1].lower()
    if strand := _STRAND.fullmatch(gold):
        return _bases(_STRAND.fullmatch(said)) == _bases(strand)
    if _PAIRS.fullmatch(gold) and re.fullmatch("[A-Za-z]+", said):
        return _genes(said) == _genes(gold)
    if (told := _same_clock(_clock(said), _clock(gold))) is not None:
        return told
    formulas = chemical(said), chemical(gold)
    if None in formulas or (formulas[0] != formulas[1] and r"\ce" not in said + gold):
        return None
    return formulas[0] == formulas[1]


def _same_parts(marked: str, answer: str) -> bool | None:
    said, gold = (as_number(_SIGN.sub("", one).strip()) for one in (marked, answer))
    found, other = _JOINED.fullmatch(gold), _JOINED.fullmatch(said)
    if found is None or (found["unit"] and not re.search("[A-Za-z]{2}|[mghs]", found[3] or "")):
        return None
    if other is None or (bool(other["dash"]) != bool(found["dash"]) and not _YEAR.match(gold)):
        return False
    parts, wanted = (re.findall(_PART, one[0][: one.start("unit") if one["unit"] else None]) for one in (other, found))
    if len(parts) != len(wanted) or not all(map(_same_part, parts, wanted)):
        return False
    return None if other["unit"] and found["unit"] else True


def _same_part(said: str, gold: str) -> bool:
    """Whether two parts are the same: in a date 1 is 01, but in a telephone number 0123 is not 123."""
    short = len(said) <= 2 and len(gold) <= 2
    return said == gold or ((short or "." in said + gold) and float(said) == float(gold))


def is_clock(text: str) -> bool:
    r"""Whether a text is a time with minutes and without "a.m." or "p.m.": ``12:45``, but not the ratios 3:2 and 19:60.

    >>> is_clock("12:45"), is_clock("3:2"), is_clock("19:60"), is_clock("45")
    (True, False, False, False)
    """
    return _clock(text) is not None and _CLOCK.fullmatch(text) is not None


def same_time(marked: str, answer: str) -> bool | None:
    r"""Whether a formula is the time that the gold one is; None if that is none.

    A time whose numbers have no common divisor may be a ratio, and is the fraction of the same numbers too.

    >>> same_time("12:12", "10:10"), same_time("0.5", "15:30"), same_time(r"\frac{5}{12}", "5:12")
    (False, False, True)
    >>> same_time("6:4", "3:2") is None
    True
    """
    said, gold = (re.sub(rf"{TEXT}|\s|\\[,;:!]", "", one).replace("{:}", ":") for one in (marked, answer))
    clock = _clock(gold) if is_clock(gold) else None
    if clock is None:
        return None
    if other := _clock(said):
        return bool(_same_clock(other, clock))
    found, ratio = _QUOTIENT.fullmatch(said), _CLOCK.fullmatch(gold)
    if found is None or ratio is None or ratio["second"] or ratio["minute"].startswith("0"):
        return False
    numbers = int(ratio["hour"]), int(ratio["minute"])
    return gcd(*numbers) == 1 and tuple(int(one) for one in found.groups() if one) == numbers


def _clock(text: str) -> tuple[int, str] | None:
    """The seconds since midnight, and "am", "pm", "" or "24" for the hours that only a clock of 24 has; or None."""
    text = _NAMED.sub("", text.replace("{:}", ":"))
    found = _CLOCK.fullmatch(text) or _HOUR.fullmatch(text)
    if found is None:
        return None
    minutes = found.groupdict().get("minute"), found.groupdict().get("second")
    hour, minute, second = (int(one or 0) for one in (found["hour"], *minutes))
    if hour > 24 or minute > 59 or second > 59:
        return None
    half = (found["half"] or "").lower()
    if half and hour <= 12:
        hour = hour % 12 + 12 * (half == "pm")
    return (hour * 60 + minute) * 60 + second, half or ("" if 0 < hour <= 12 else "24")


def _same_clock(said: tuple[int, str] | None, gold: tuple[int, str] | None) -> bool | None:
    """Whether two times are the same; None if one is none. Only a gold one may leave open its half of the day."""
    if said is None or gold is None:
        return None
    if gold[1]:
        return bool(said[1]) and said[0] == gold[0]
    return said[1] != "24" and said[0] % _HALF_A_DAY == gold[0] % _HALF_A_DAY


def _bases(strand: re.Match[str] | None) -> str | None:
    """The bases from the end 5' on."""
    if strand is None:
        return None
    return strand["bases"][:: 1 if strand["end"] == "5" else -1].upper()


def _genes(text: str) -> list[str] | None:
    if not _PAIRS.fullmatch(text):
        return None
    return sorted("".join(sorted(text[at : at + 2])) for at in range(0, len(text), 2))


def chemical(text: str) -> str | None:
    r"""A chemical formula in one form; None if it is anything else.

    >>> chemical(r"\ce{SO4^2-}"), chemical(r"\mathrm{SO_4^{2-}}"), chemical(r"\mathrm{Na}^+"), chemical("x_2")
    ('SO4^2-', 'SO4^2-', 'Na^+', None)
    """
    plain = _UPRIGHT.sub("", text)
    found = _CHEMICAL.fullmatch(plain)
    if found is None or not set(re.findall(r"[A-Z][a-z]?", plain)) <= _ELEMENTS:
        return None
    charge = (found["charge"] or "").removeprefix("^")
    if not charge:
        return plain
    return plain[: found.start("charge")] + "^" + re.sub(r"([+-])(\d+)", r"\2\1", charge)
