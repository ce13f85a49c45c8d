r"""Words that say the opposite of each other, or that exclude each other: east and west, loss and gain, May and June.

Free of torch. Behind a number they look like a unit, which math-verify drops.
"""

import re

_OPPOSITES = (
    ("gain gains gained profit profits", "loss losses lost"),
    ("above", "below"),
    ("clockwise", "counterclockwise anticlockwise"),
    ("older elder", "younger"),
    ("taller longer", "shorter"),
    ("heavier", "lighter"),
    ("warmer hotter", "colder cooler"),
    ("ago early earlier before", "late later after hence"),
    ("slow slower", "fast faster"),
    ("BC BCE", "AD CE"),
    ("up upward upwards upstream uphill", "down downward downwards downstream downhill"),
    ("left leftward leftwards", "right rightward rightwards"),
    ("forward forwards ahead", "backward backwards behind"),
    ("increase increases increased rise growth", "decrease decreases decreased drop decline reduction fall"),
    ("higher", "lower"),
    ("surplus", "deficit"),
    ("credit", "debit"),
    (
        "january jan", "february feb", "march mar", "april apr", "may", "june jun", "july jul", "august aug",
        "september sep sept", "october oct", "november nov", "december dec",
    ),
    ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
)  # fmt: skip
_SENSES = {
    word: (family, sense)
    for family, senses in enumerate(_OPPOSITES)
    for sense, words in enumerate(senses)
    for word in words.split()
}
_COMPASS = re.compile(r"(north|south)?(east|west)?(?:ward|wards|erly|ern|bound)?")
_BEARING = re.compile(r"(?<=circ)\}?\s*\\(?:text|mathrm)\s*\{[\s~]*([NESW])[\s~]*\}")
_POINTS = {"N": "north", "E": "east", "S": "south", "W": "west"}
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def opposed(marked: str, answer: str) -> bool:
    r"""Whether two quantities have words that exclude each other. A word that only one of them has excludes nothing.

    >>> opposed(r"5\text{ m/s west}", r"5\text{ m/s east}"), opposed(r"5\text{ m/s}", r"5\text{ m/s east}")
    (True, False)
    >>> opposed(r"44\text{ A.D.}", r"44\text{ B.C.}"), opposed(r"5\text{ Oct}", r"5\text{ October}")
    (True, False)
    """
    said, gold = _senses(marked), _senses(answer)
    return any(gold.get(family, senses) != senses for family, senses in said.items())


def _senses(text: str) -> dict[int, list[str]]:
    """What the words of a text say about each family; of directions on the compass in their order."""
    found: dict[int, list[str]] = {}
    text = _BEARING.sub(lambda letter: rf" {_POINTS[letter[1]]} ", text)
    for word in _WORD.findall(re.sub(r"(?<=[A-Za-z])\.\s?|(?<=anti|nter)-(?=clock)", "", text)):
        small = word if word in _SENSES else word.lower()
        if (sense := _SENSES.get(small)) is not None:
            family = found.setdefault(sense[0], [])
            family += [] if str(sense[1]) in family else [str(sense[1])]
        elif (compass := _COMPASS.fullmatch(small)) and any(compass.groups()):
            found.setdefault(-1, []).extend(one for one in compass.groups() if one)
    return {family: senses if family < 0 else sorted(senses) for family, senses in found.items()}
