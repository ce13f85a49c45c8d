r"""Whether two quantities have different units, such as kW and W or cm^2 and cm^3.

Free of torch. math-verify drops units. Only usual ones are compared here: a word may also say what is counted.
"""

import re

from retarget.pope.notation import TEXT

_SAME_UNIT = (
    "h hr hrs hour hours", "min mins minute minutes", "s sec secs second seconds", "day days", "week weeks",
    "month months", "year years", "mm millimeter millimeters", "cm centimeter centimeters centimetre centimetres",
    "m meter meters metre metres", "km kilometer kilometers kilometre kilometres", "in inch inches", "ft foot feet",
    "yd yard yards", "mi mile miles", "g gram grams", "kg kilogram kilograms", "lb lbs pound pounds", "dollar dollars",
    "oz ounce ounces", "cent cents", "l liter liters litre litres", "ml milliliter milliliters", "degree degrees",
    "mol mole moles",
)  # fmt: skip
UNIT_OF: dict[str, str] = {word: line.split()[0] for line in _SAME_UNIT for word in line.split()}
"""The shortest form of each usual unit."""

_PREFIXES = {
    "": "", "k": "kilo", "M": "mega", "G": "giga", "T": "tera", "d": "deci", "c": "centi", "m": "milli", "µ": "micro",
    "n": "nano", "p": "pico",
}  # fmt: skip
_SI = {
    "W": "watt", "J": "joule", "N": "newton", "Pa": "pascal", "V": "volt", "A": "ampere", "Hz": "hertz",
    "eV": "electronvolt", "rad": "radian", "g": "gram", "s": "second", "m": "meter", "mol": "mole", "C": "coulomb",
    "F": "farad", "K": "kelvin", "T": "tesla", "cal": "calorie",
}  # fmt: skip
_OF_SI = {
    word: prefix + symbol
    for symbol, name in _SI.items()
    for prefix, long in _PREFIXES.items()
    for word in (prefix + symbol, long + name, long + name + "s")
} | {"amp": "A", "amps": "A", "celsius": "C", "fahrenheit": "F"}
"""The symbol of each unit of the SI, by its symbols, in which small and capital letters differ, and its names."""
_SAME = {("dm", 3): ("l", 1), ("cm", 3): ("ml", 1)}
_QUOTIENTS = {
    "mph": ["mi", "h"], "kph": ["km", "h"], "kmh": ["km", "h"], "kmph": ["km", "h"], "fps": ["ft", "s"],
    **{prefix + "M": [prefix + "mol", "l"] for prefix in ("", "m", "µ", "n")},
}  # fmt: skip
"""Quotients of units that are written as one word; M is the molarity."""
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}

_BRACED = re.compile(r"\^\s*\{\s*(-?\d)\s*\}")
_DEGREE = re.compile(
    r"\^\s*(?:\\circ(?![a-z])|\{\s*\\circ\s*\})(?:\s|\\[ ,;:!]|~)*"
    r"(?:(?P<open>\\(?:text|mathrm)\s*\{\s*)?(?P<scale>[CFK])(?![A-Za-z])(?(open)\s*\}))?"
)
_PLAIN = re.compile(r"(?<=\d)\s+(?P<unit>[A-Za-zµμ]+(?:/[A-Za-zµμ]+)?)(?:\s*\^\s*\{?(?P<power>-?\d)\}?)?$")
"""A unit behind a number that is not set as text."""
_UNIT = re.compile(rf"{TEXT}(?:\s*\^\s*(?P<power>-?\d))?")
_WORD = re.compile(r"([^\W\d_]+)(?:\s*\^\s*(-?\d))?")
_MARKED = re.compile(r"(?<![\w.])\d+(?:\.\d+)?\s*('+)")
"""A number of feet and inches, or of minutes and seconds of an angle."""


def other_unit(marked: str, answer: str) -> bool:
    r"""Whether two quantities have different units, both of them usual ones.

    >>> other_unit(r"3\text{ hours}", r"3\text{ min}"), other_unit(r"3\text{ hr}", r"3\text{ h}")
    (True, False)
    >>> other_unit(r"3\text{ mW}", r"3\text{ MW}"), other_unit(r"3\text{ cm}^2", r"3\text{ square cm}")
    (True, False)
    """
    if not all(re.search(r"[\\']|\d\s+[A-Za-z]", one) for one in (marked, answer)):
        return False
    marks = _MARKED.findall(marked), _MARKED.findall(answer)
    if marks[0] and marks[1] and marks[0] != marks[1]:
        return True
    said, gold = _units(marked), _units(answer)
    if not said or not gold:
        return False
    money = r"\$" in marked, r"\$" in answer
    if any(money):  # "$5 an hour" may be said for "$5"
        return not all(sign or ("dollar", 1) in found for sign, found in zip(money, (said, gold), strict=True))
    scales = {("C", 1), ("F", 1)}
    if ("degree", 1) in said + gold and scales & {*said, *gold}:  # 25 degrees of either scale
        return False
    differing = sum(one != other for one, other in zip(said, gold, strict=False))
    if len(said) == len(gold) and differing == 1:  # kJ/kg is J/g
        return True
    usual = UNIT_OF.values()
    return said != gold and all(name in usual for name, _ in said + gold)


def _units(text: str) -> list[tuple[str, int]] | None:
    r"""The units of a quantity, each with its power, which is positive below a fraction too; None if one is unusual.

    >>> _units(r"3\text{ kilometers}/\text{s}^{2}"), _units(r"\$3"), _units("3"), _units(r"3\text{ red}")
    ([('km', 1), ('s', 2)], [('dollar', 1)], [], None)
    """
    found: list[tuple[str, int]] = [("dollar", 1)] if r"\$" in text else []
    text = _PLAIN.sub(lambda one: rf"\text{{{one['unit']}}}" + (f"^{one['power']}" if one["power"] else ""), text)
    text = _BRACED.sub(r"^\1", _DEGREE.sub(lambda one: rf"\text{{{one['scale'] or 'degree'}}}", text))
    for one in _UNIT.finditer(text):
        words = _WORD.findall(one[1])
        power = 1
        for at, (word, inside) in enumerate(words):
            if word in _POWERS:
                power = _POWERS[word]
                continue
            if word == "per" or (word in ("degree", "degrees") and words[at + 1 : at + 2] and _scale(words[at + 1][0])):
                continue
            if word in _QUOTIENTS:
                found += [(UNIT_OF.get(name, name), 1) for name in _QUOTIENTS[word]]
                continue
            short = len(word) < 4
            known = _OF_SI.get(word.replace("μ", "µ") if short else word.lower()) or UNIT_OF.get(word.lower())
            if known is None:
                return None
            outside = one["power"] if at == len(words) - 1 else ""
            power = int(inside or outside or power)
            found.append(_SAME.get((known, power), (known, abs(power))))
            if power < 0 and len(found) == 1:  # 1/s is Hz
                return None
            power = 1
    return found


def _scale(word: str) -> bool:
    """Whether a word behind "degrees" names a scale of temperature."""
    return word in ("C", "F", "K") or word.lower() in ("celsius", "fahrenheit", "kelvin")
