r"""Whether two final answers are the same: as options, numerals, words and formulas. Free of torch.

Formulas are compared by math-verify. It reads what it can of a text and drops the rest, so what it drops is compared
here: the letters of options, the base of a numeral, ratios, and words (``n \text{ is odd}``). A formula that it cannot
read whole (``p \equiv 1 \pmod 4``) equals only what is written alike.
"""

import math
import re

from retarget.pope.formulas import both_signs, same_value
from retarget.pope.literals import is_clock, same_literal, same_time
from retarget.pope.notation import (
    CHANGING,
    SCALES,
    TEXT,
    plain_unicode,
    repeating,
    scaled,
    scientific,
    unwrapped,
    with_derivatives,
)
from retarget.pope.opposites import opposed
from retarget.pope.parts import (
    DOTS,
    UNITS,
    as_interval,
    assignments,
    compounds_divided,
    divided,
    is_interval,
    left_open,
    names,
    other_word,
    row_of,
    set_and_row,
    unit,
    units_agree,
    vector,
)
from retarget.pope.quantities import one_number, quantity, with_fractions
from retarget.pope.thousands import as_list, as_number, grouped, unreadable, with_explicit
from retarget.pope.units import other_unit

_OPTION = re.compile(
    r"\s*\$*\s*(?:(?:[Oo]ption|[Cc]hoice)\s+)?(?:\\(?:text|mathrm|mathbf|mbox)[a-z]*\s*\{\s*"
    r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?)?\(?\s*(?P<letter>[A-J])\s*"
    r"(?P<mark>[).:]|\}?\s*(?:\\[ ,;:]|\\q?quad|\$*\s*$))"
)
"""An answer that begins with the letter of an option: "B", "(B) 42", "option B", "\\textbf{(B)}\\ 42"."""
_NEXT_OPTION = re.compile(
    r"(?<![\w)])\((?P<inside>[A-J])\)|(?<![\w(])(?P<marked>[A-J])\s*[):]|(?:^|(?<=[,;/&]))\s*(?P<bare>[A-J])\s*(?=$|[,;/&])"
)
_LETTERS = re.compile(r"\(?[A-J][).]?(?:[,;/&]+\(?[A-J][).]?)+")
_IN_BASE = re.compile(r"(?P<digits>\d[\dA-Z,{}]*)_\{?(?P<base>\d+|[a-z]+)\}*")
_DIGITS = re.compile(r"\d[\d,{}]*")
_BASES = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16",
}  # fmt: skip

_MODULO = re.compile(r"\(?\s*(?:\\(?:[pb]?mod|pod)|(?<![a-z\\])mod)(?![a-z])\s*(?:\{(\w+)\}|(\w+))\s*\)?")
_LAYOUT = re.compile(r"(?<!\\)\\[,;:!]|\\(?:left|right|displaystyle)(?![a-z])")
_WORD = re.compile(
    rf"(?:\\(?:begin|end)\s*\{{[^{{}}]*\}}|{TEXT}|\\[A-Za-z]+|(?<![A-Za-z])[A-Za-z]{{2,}})(?:\s*\^\s*\{{?\s*[23]\s*\}}?)?"
)
_JOINT = r"[\s,;:.]|\\[,;:!]|\\q?quad(?![a-z])|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b"
_LONGEST = 1000
"""A marked answer that is longer than the gold one by more characters is none: some patterns here are not linear."""
_EDGE = re.compile(rf"^(?:{_JOINT})++|(?:{_JOINT})+$")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_JOINED = _set("and or")
_FILLERS = _set("the an is are answer final so thus hence therefore")
_SHORT = _set("all any for if odd no not one yes am pm")
_NAMES = _set("""
    sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log exp lim max min gcd lcm sqrt frac dfrac cdot times
    infinity infty circ cis deg det mod alpha beta gamma delta theta lambda sigma omega phi
""")
"""Names that belong to a formula."""
_TELLING = (
    CHANGING
    | SCALES.keys()
    | _set("""
    odd even except for if when whenever where not no only unless iff mod modulo base more less fewer greater smaller
    least most than between to through from prime coprime composite rational irrational real complex constant increasing
    decreasing parallel perpendicular positive negative am pm
""")
)
"""What changes a number that stands before it, unlike a unit."""
_PLAIN_UNIT = re.compile(
    r"(?<=\d)(?:\s*(?P<usual>(?:m|h|s|g)/[a-z]+|[A-Za-z]{2,}(?:/[a-z]+)?)|\s+(?P<words>(?:[a-z]{3,}\s+){0,2}[a-z]{3,})"
    r"|\s*(?P<unspaced>[\u3040-\u30ff\u3400-\u9fff]+))(?=\s*(?:\^\s*\{?[23]\}?\s*)?(?:[,;.]|$|and\b|or\b|\\text))"
)
_UNSPACED_CHANGE = re.compile("[或到和与與至以不多少倍加减減乘除若如分半百千万萬亿億]")
_MONEY = re.compile(r"(?:US(?=\s*\\\$)|[€£¥₹]|(?<![A-Za-z])Rs\.?)\s*(?=-?\\?\$?\d)")
_LETTER = re.compile(
    r"\\(?:math(?:bf|it|sf)|boldsymbol|bm)\s*\{\s*([A-Za-z])\s*\}|\\(?:mathrm|text(?:rm)?)\s*\{\s*([ie])\s*\}"
    r"|\\mathrm\s+([ie])(?![A-Za-z])"
)
"""A letter in another font: a symbol, and upright i and e the two numbers. math-verify takes both for units."""
_ORDINAL = re.compile(r"(?<=\d)\s*\^\s*\{?\s*\\text\s*\{\s*(st|nd|rd|th)\s*\}\s*\}?")
_EQUATION = re.compile(r"(?!\s*\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*=[^=]*$)[^=]*=")
"""An equation whose left side is more than a name: the number on its right is not its value."""
_TEMPERATURE = re.compile(r"(?<=\d)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})(?:\s|\\[ ,;:!])*([CF])(?=\s*(?:$|[,;.}]))")


def same(marked: str, answer: str) -> bool:
    """Whether a marked answer is the gold one: written alike, or equal as options, words and formulas.

    Raises:
        UserError: math-verify cannot read the gold answer.
    """
    marked, answer = (plain_unicode(" ".join(one.split())) for one in (marked, answer))
    if len(marked) > _LONGEST + len(answer):
        return False
    options = _options(answer), _options(marked)
    marked, answer = _tidy(marked), _tidy(answer)
    said, gold = _bare(marked), _bare(answer)
    if said == gold:
        return True
    if (named := names(said, gold)) is not None:
        return named
    if other_word(marked, answer):
        return False
    numerals = _IN_BASE.fullmatch(gold), _IN_BASE.fullmatch(said)
    if numerals[1] and (numerals[0] or _DIGITS.fullmatch(gold)):  # math-verify drops the base of a numeral
        return _numeral(numerals[1]) == (_numeral(numerals[0]) if numerals[0] else (re.sub("[,{}]", "", gold), "10"))
    if options[0] and options[1]:
        return _same_options(options[1], options[0])
    if any(_letters(one) == other.keys() for one, other in ((gold, options[1]), (said, options[0])) if len(other) > 1):
        return True  # AC and "A, C"
    if not options[0] and len(options[1]) == 1 and (value := _option_value(options[1])):
        return same(value, answer)
    if len(options[0]) == 1:  # "\\textbf{(A)}\\ 12": by its value, too
        value = next(iter(options[0].values()))[1].strip(" ,;.")
        return same(marked, value) if value else _same_words(marked, answer)
    if (told := same_literal(marked, answer, said, gold)) is not None:
        return told
    if answer.count(":") > 1:  # math-verify divides: 3:4:5 and 3:5:4 are one number
        parts = answer.split(":"), marked.split(":")
        return len(parts[0]) == len(parts[1]) and all(map(same, parts[1], parts[0]))
    return _same_words(marked, answer)


def _letters(text: str) -> set[str] | None:
    """The letters of several options that are written as one word in the order of the alphabet."""
    return set(text) if re.fullmatch("[A-J]{2,}", text) and sorted(set(text)) == list(text) else None


def _option_value(options: dict[str, tuple[str, str]]) -> str:
    """What stands behind the only option's letter; empty if its mark leaves open whether the letter is an option's."""
    mark, value = next(iter(options.values()))
    return value if mark in (")", ".") else ""


def _numeral(found: re.Match[str]) -> tuple[str, str]:
    return re.sub(r"[,{}]", "", found["digits"]), _BASES.get(found["base"], found["base"])


def _tidy(text: str) -> str:
    r"""A text without dollar signs and groups of digits, its words in ``\text``, its mixed numbers with ``\frac``."""
    text = re.sub(r"(?<!\\)\\ |~", " ", text.strip()).replace("$$", "$").replace(r"\varnothing", r"\emptyset")
    text = DOTS.sub(r"\\ldots ", text)
    text = re.sub(r"\\var(?=(?:phi|epsilon|theta)(?![a-z]))", r"\\", text)
    text = _LETTER.sub(_plain_letter, with_derivatives(text))
    text = re.sub(r"\b([ap])\.\s?m\.", lambda found: found[1].lower() + "m", text, flags=re.IGNORECASE)
    text = _TEMPERATURE.sub(r"^\\circ\\mathrm{\1}", _MONEY.sub("", text))
    parts = re.split(r"(?<!\\)\$", text)
    if len(parts) > 2 and len(parts) % 2:
        parts[::2] = [re.sub(r"(?<![\\A-Za-z])[A-Za-z]{2,}", r"\\text{\g<0>}", part) for part in parts[::2]]
    text = re.sub(r"(?<![\d\\])\.(?=\d)", "0.", "".join(parts))
    text = repeating(unwrapped(scaled(grouped(with_fractions(with_explicit(text))).strip().removesuffix("."))))
    return compounds_divided(_PLAIN_UNIT.sub(_in_text, _ORDINAL.sub(r"\\text{\1}", scientific(text))))


def _plain_letter(found: re.Match[str]) -> str:
    """The letter, in braces behind a letter: behind ``\\pi`` it would be part of the name."""
    letter = found[1] or found[2] or found[3]
    return f"{{{letter}}}" if found.string[: found.start()][-1:].isalpha() else letter


def _in_text(found: re.Match[str]) -> str:
    r"""A unit that stands behind a number in plain text, in ``\text``; anything else as it is.

    >>> _tidy("12 km/h"), _tidy("5 people"), _tidy("2ab"), _tidy("5 cm^2, 3 or more")
    ('12\\text{ km/h}', '5\\text{ people}', '2ab', '5\\text{ cm}^2, 3 or more')
    """
    usual, unspaced = found["usual"], found["unspaced"]
    if unspaced:
        known = not _UNSPACED_CHANGE.search(unspaced)
    else:
        spaced = usual is None or (found[0] != usual and len(usual) > 2 and usual.islower())
        words = set(re.split(r"[\s/]+", usual or found["words"]))
        known = all(one in UNITS or one in "mhs" for one in words)
        known = known or (spaced and not words & (_TELLING | _NAMES | _JOINED | _FILLERS))
    return rf"\text{{ {found[0].strip()}}}" if known else found[0]


def _bare(text: str) -> str:
    """How an answer is written, apart from what does not change it: spaces, fonts, sizes, braces around a modulus."""
    text = _LAYOUT.sub("", re.sub(TEXT, r"\1", text))
    text = _MODULO.sub(lambda found: rf"\bmod{found[1] or found[2]}", text)
    text = re.sub(r"\\[dtc](?=frac)", r"\\", text)
    return re.sub(r"(?<!\d) | (?!\d)", "", re.sub(r"\s+", " ", text)).removesuffix(".")  # 3 1 is not 31


def _options(answer: str) -> dict[str, tuple[str, str]]:
    """The options that an answer consists of: for each letter the mark behind it, and the text behind that."""
    plain = re.sub(r"\band\b|\bor\b", ",", re.sub(TEXT, r" \1 ", answer))
    if _LETTERS.fullmatch(re.sub(r"\s", "", plain)):
        return dict.fromkeys(re.findall("[A-J]", plain), ("", ""))
    first = _OPTION.match(answer)
    if first is None:
        return {}
    rest = answer[first.end() :]
    plain = re.sub(r"\band\b|\bor\b", ",", re.sub(TEXT, r" \1 ", rest).replace("}", " "))
    later = list(_NEXT_OPTION.finditer(plain))
    if not later:
        return {first["letter"]: (first["mark"], re.sub(r"^(?:[\s}]|\\[ ,;:]|\\q?quad)+", "", rest).strip())}
    found, letter, mark, start = {}, first["letter"], first["mark"], 0
    for one in [*later, None]:
        found[letter] = mark, plain[start : one.start() if one else len(plain)].strip(" ,;")
        if one:
            letter = one["inside"] or one["marked"] or one["bare"]
            mark, start = one[0].strip()[-1], one.end()
    return found


def _same_options(marked: dict[str, tuple[str, str]], gold: dict[str, tuple[str, str]]) -> bool:
    """Whether the letters are the same; of several also the texts, where both have one or letters name values."""
    if marked.keys() != gold.keys():
        return False
    if len(gold) == 1:
        return True
    for letter, (mark, content) in gold.items():
        said = marked[letter][1]
        if (said or mark == ":") and content and not same(said, content):
            return False
    return True


def _same_words(marked: str, answer: str) -> bool:
    words, formulas = _divided(answer)
    said, given = _divided(marked)
    if not formulas and not given:
        return bool(words) and (words == said or _named(marked) == _named(answer))
    if words != said or len(formulas) != len(given):
        return False
    return all(map(_same_list, given, formulas))


def _named(text: str) -> list[list[str]]:
    """The words of each member of a list of names, in any order."""
    members = divided(re.sub(TEXT, r" \1 ", text))
    return sorted([word for word in re.findall(r"[^\W_]+", one.lower()) if word not in _FILLERS] for one in members)


def _divided(text: str) -> tuple[list[str], list[str]]:
    r"""The words of an answer, and the formulas between them, which keep their units.

    >>> _divided(r"n^2 \text{ for odd } n"), _divided(r"5\text{ cm}"), _divided("Area = 5")
    ((['for', 'odd'], ['n^2', 'n']), ([], ['5\\text{ cm}']), ([], ['5']))
    """
    words: list[str] = []
    formulas: list[str] = []
    start = 0
    for found in _WORD.finditer(text):
        spoken = _spoken(found, text)
        if not spoken or _is_unit(spoken, text[start : found.start()], text[found.end() :]):
            continue
        before, after = text[start : found.start()], text[found.end() :].lstrip()
        if set(spoken) <= _JOINED:
            continue
        label = re.match(r"=(?!.*=)", after) and not text[: found.start()].strip(" {") and not _TELLING & set(spoken)
        start = len(text) - len(after) + 1 if label else found.end()
        formulas.append(before)
        words += [] if label else [one for one in spoken if one not in _FILLERS | _JOINED]
    formulas.append(text[start:])
    stripped = (_EDGE.sub("", one) for one in formulas)
    return words, [one for one in stripped if one]


def _spoken(found: re.Match[str], text: str) -> list[str]:
    """The words of a match, in small letters; empty if it belongs to the formula."""
    whole = found[0]
    if whole.startswith("\\"):
        words = re.findall(r"[^\W_]+", found[1] or "")
        words = words if any(len(one) > 1 and not one.isdigit() for one in words) else []
    else:
        alone = re.search(r"(?:^|[\s,;.])$", text[: found.start()]) and re.match(r"$|[\s,;.]", text[found.end() :])
        long = len(whole) > 3 and not whole.isupper()
        words = [whole] if long or (alone and (whole.lower() in _SHORT | _JOINED or whole.istitle())) else []
    words = [one.lower() for one in words]
    return [] if set(words) <= _NAMES else words


def _is_unit(words: list[str], before: str, after: str) -> bool:
    """Whether words are the unit of what stands before them."""
    before, after = _EDGE.sub("", before), after.lstrip()
    ends = re.match(r"$|[,;.)\]}/^+-]|\\text\s*\{|[A-Za-z]{2}", after)
    if not before or not ends or _TELLING & set(words):
        return False
    lettered = re.search(r"(?:^|[^\\A-Za-z])[A-Za-z]$", before)
    return set(words) <= UNITS if lettered else bool(re.search(r"[\d%)\]}!|A-Za-z]$", before))


def _same_list(marked: str, answer: str) -> bool:
    r"""Whether two formulas are the same; if they are lists of quantities with units, each with each.

    math-verify reads ``3\text{ cm}, 4\text{ cm}`` as 3.
    """
    marked, answer = (both_signs(one) for one in (marked, answer))
    said, gold = (divided(one.strip().removeprefix(r"\{").removesuffix(r"\}")) for one in (marked, answer))
    if (len(said) < 2 and len(gold) < 2) or not (any(map(unit, said + gold)) or any(map(is_clock, gold))):
        by_name, named = assignments(marked), assignments(answer)
        if by_name and named and by_name.keys() == named.keys():
            return all(_same_formula(by_name[name], value) for name, value in named.items())
        if bool(by_name) != bool(named):  # values without names are in the order of those with names
            rows = (
                list(by_name.values()) if by_name else row_of(marked),
                list(named.values()) if named else row_of(answer),
            )
            return len(rows[0]) == len(rows[1]) and all(map(_same_formula, *rows))
        return _same_formula(marked, answer)
    if len(said) != len(gold):
        return False
    mixed = any(len({unit(one) for one in side}) > 1 for side in (said, gold))
    if mixed and not all(map(unit, said + gold)):  # which number has which unit, only their order tells
        return all(map(_same_quantity, said, gold))
    for one in gold:
        found = next((other for other in said if _same_quantity(other, one)), None)
        if found is None:
            return False
        said.remove(found)
    return True


def _same_quantity(marked: str, answer: str) -> bool:
    return units_agree(marked, answer) and _same_formula(marked, answer)


def _same_formula(marked: str, answer: str) -> bool:
    """Whether two formulas are the same. Of an answer such as ``100,200`` either reading may be the gold one.

    A gold one is a number; if it is a list, it has no other order.
    """
    number, members = as_number(answer), as_list(marked)
    if _same_reading(as_number(marked), number):
        return True
    return members is not None and number == answer and _same_reading(members, answer)


def _same_reading(marked: str, answer: str) -> bool:
    if set_and_row(marked, answer) or other_unit(marked, answer) or opposed(marked, answer):
        return False
    if (told := same_time(marked, answer)) is not None:
        return told
    if is_interval(answer):
        marked = as_interval(marked) or marked
    elif is_interval(marked):
        answer = as_interval(answer) or answer
    written = [re.sub(r"^[A-Za-z]=(?!.*=)", "", _bare(one)) for one in (marked, answer)]
    if written[0] == written[1] and _bare(marked).count("=") + _bare(answer).count("=") < 2:  # x=5 is 5, and not y=5
        return True
    said, gold = (None if _EQUATION.match(one) else quantity(one) for one in (marked, answer))
    if said and gold and math.isfinite(gold.value) and "%" not in marked + answer and not said.equals(gold):
        return False  # math-verify compares six decimals: it takes 6e-34 for 1e-19
    if left_open(marked) != left_open(answer):
        return False
    if _same_vector(marked, answer):
        return True
    return not unreadable(marked) and not unreadable(answer) and same_value(marked, answer)


def _same_vector(marked: str, answer: str) -> bool:
    r"""Whether two vectors, one a matrix or in angles, have the same entries.

    In angles a pair of rising numbers may be a closed interval, and in round brackets an open one.
    """
    said, gold = vector(marked), vector(answer)
    if said is None or gold is None or said[0] == gold[0] == "row" or len(said[1]) != len(gold[1]):
        return False
    named = {_bare(one.partition("=")[0]) for one in (marked, answer) if "=" in one}
    if {said[0], gold[0]} == {"angles", "row"} and len(gold[1]) == 2:
        low, high = (one_number(one) for one in gold[1])
        if "\\infty" in answer or (low and high and low.value < high.value):
            return False
    return len(named) < 2 and all(map(_same_formula, said[1], gold[1]))
