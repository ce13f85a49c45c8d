"""Where an oracle solution can be cut, and whether a cut leaks the answer. The search itself is in search.py."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from retarget.errors import UserError
from retarget.pope.answers import final_answer
from retarget.pope.boxes import BRACE
from retarget.pope.options import right_options, unwrapped
from retarget.pope.problems import SAME, Problem, answer_spans
from retarget.pope.quantities import other_forms

Unit = Literal["sentence", "line", "step", "token"]
UNITS: tuple[Unit, ...] = ("sentence", "line", "step", "token")

_SENTENCE = re.compile(r"(?:[.!?][\"')\]]*(?=\s)|[。！？][”’」』）]*|\n)\s*")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|Fig|Eq|No|Mr|Mrs|Ms|Dr|St|approx)|\b[A-Z]|(?:^|\n)\s*\d+)\.$")
_LINE = re.compile(r"\n\s*")
_STEP = re.compile(r"\n(?=\s*\n)\s*|\n\s*(?=(?:[Ss]tep\s+\d|\d+[.)]\s|[-*]\s))")
_TOKEN = re.compile(r"\s+|[，；、：]\s*")
_LETTERS = re.compile(r"(?<=[\u3040-\u30ff\u3400-\u9fff])(?=[\u3040-\u30ff\u3400-\u9fff])")
"""Between two letters of Chinese or Japanese, which have no spaces around words."""
_MATH = re.compile(
    r"\$\$|\\\[|\\\(|\\begin\{(\w+\*?)\}"
    # A dollar opens a formula only where the next one can close it: "costs $5 and $7" and "($5 or $7)" are prices.
    r"|(?<!\\)\$(?![\s$])(?:\\.|[^$\\])*?(?<![\s(\[])\$(?!\d)",
    re.DOTALL,
)
_CLOSING = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}
_UNSPACED = re.compile(r"[\s$]")
_LOOK_BACK = 80
_STATED_WITHIN = 2000
"""Length of the text after a marker, in characters, in which its answer is searched for."""
_TELLING = 3
"""Length from which on an answer that is not in the question is hardly in a solution by chance."""
_WORD = re.compile(r"[^\W\d_]{2}")
_SYMBOL = re.compile(r"[\\^_=$]")
"""What an answer in words (which a sentence may begin with: "yes", "Carbon dioxide", "12 km") does not contain."""
_INNER = "[^\\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
"""A letter that continues a word."""
_SHORT_WORD = 5
"""Length of a word, in letters, from which on it hardly stands within another by chance, as "red" in "reduced"."""
_SPACES = re.compile(r"\s*")
_COMMAND = re.compile(r"\\([A-Za-z]+)(?:\s*\[[^\]]*\](?=\s*\{))?")
_ARGUMENT = re.compile(r"\\[A-Za-z]+|\\?.", re.DOTALL)
_ARGUMENTS = {
    **dict.fromkeys(("frac", "dfrac", "tfrac", "cfrac", "binom", "dbinom", "tbinom", "overset", "underset"), 2),
    **dict.fromkeys(("sqrt", "boxed", "fbox", "text", "mathrm", "mathbf", "overline", "underline", "vec", "hat"), 1),
}  # fmt: skip
"""Number of arguments of LaTeX commands, which may come without braces: ``\\frac 1 2``."""
_BLOCK = re.compile(
    r"^[ ]{0,3}(```|~~~).*?^[ ]{0,3}\1[^\n]*$|^[ ]{0,3}\|[^\n]*(?:\n[ ]{0,3}\|[^\n]*)+", re.MULTILINE | re.DOTALL
)
"""A block of code, or a table, in Markdown."""
_SPACED_NUMBER = re.compile(r"\b\d{1,3}(?:[   ]\d{3})+\b")
_MARKER = re.compile(
    r"####|\\(?:boxed|fbox)\b|<answer>|答案\s*[*_]*(?:是|为|為|：|:|】)|\bответ\b[\s*_})\]]*[:=.—–-]"
    r"|(?:答え?|解答|正解)[\s*_]*(?:は|：|:)|(?:정답|해답|답)[\s*_]*(?:은|는|：|:|=)"
    r"|\b(?:answer|ans)\b[\s*_\])}$]*(?:is\b|equals\b|(?:will|must|should|would)\s+be\b|[:=.—–]|to\b)"
    r"|\banswer\b[^.:=?!\n]{1,40}?\b(?:is|equals|be)\b"
    r"|(?:^|\n|[.!?]\s)[ \t]*answer\s+(?=[$\\(]*[\d-])"
    r"|(?:^|\n)[ \t]*(?:#+[ \t]*|[*_\[(]+)(?:final[ \t]+)?answer\b"
    r"|\bsolution\s*:\s*(?=[$\\(]*\d)|\bfinal\s+(?:result|value)\b\s*(?:is\b|[:=])"
    r"|\b(?:correct|right)\s+(?:option|choice)\b\s*(?:is\b|[:=])|\bchoose\s+(?=\(?(?-i:[A-J])\b)"
    r"|\bclaim\b[^.:?!\n]{1,60}?\b(?:is|are|equals)\b"
    r"|\*\*\s*(?:final\s+)?(?:result|solution|value)\b|(?:^|\n)[ \t]*(?:final\s+)?result\s*:|\bTL;?\s?DR\b"
    r"|(?:^|\n)[ \t]*\*\*(?=\S{1,20}\*\*[ \t]*(?:\n|$))"  # a bold line of its own
    r"|\b(?:option|choice)\b(?=\s*\(?(?-i:[A-J])\)?\s+(?:is|must\s+be)\s+(?:the\s+)?(?:correct|right|true|answer)\b)"
    r"|(?<![^\s.:,;(*])\((?=(?-i:[A-J])\)\s+(?:is|must\s+be)\s+(?:the\s+)?(?:correct|right|true|answer)\b)"
    r"|(?<![^\s.:,;(*])(?=(?-i:[A-J])[\s*]+(?:is|must\s+be)\s+(?:correct\b|the\s+(?:correct|right)\s+(?:answer|option|choice)))"
    r"|\b(?:respuesta|resposta|risposta|réponse|antwort|lösung|ergebnis|résultat|resultado)\b[^.:=?!\n]{0,40}?"
    r"(?:\b(?:es|est|ist|lautet|é|è)\b|[:=])|结果\s*(?:是|为|為|：|:)|[应應故]选|(?:选|選)\s*(?=(?-i:[A-J])\b)",
    re.IGNORECASE,
)
"""What announces an answer; it counts only if the answer follows, so a false marker costs one cut at most."""
_IN_WORDS = dict(zip(
    [*map(str, range(21)), *map(str, range(30, 100, 10))],
    re.findall(
        "[a-z]+",
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety",
    ),
    strict=True,
))  # fmt: skip
"""Numbers as an announced answer may write them."""
_VERDICT = re.compile(
    r"\A\W*(?P<first>yes|no|true|false)\b|(?:\n|[.!?]\s)[\s*_]{0,8}(?P<begins>yes|no|true|false)\b[*_]*\s*[.,!:;—–]"
    r"|\b(?:statement|assertion)\s+is\s+(?P<follows>true|false)\b",
    re.IGNORECASE,
)
"""A "yes" or "no" that answers the question, unlike the one in "there is no other"."""


@dataclass(frozen=True)
class Cut:
    """A position at which to cut a solution.

    Attributes:
        end: length of the prefix in characters, without trailing white space.
        fraction: ``end`` divided by the length of the solution.
        unit: the kind of boundary at this position.
    """

    end: int
    fraction: float
    unit: Unit


@dataclass(frozen=True)
class Leak:
    """A statement of the answer in a prefix: its start in the solution, in characters, and its text."""

    start: int
    statement: str


def boundaries(text: str, unit: Unit) -> list[int]:
    """Prefix lengths at which a unit ends, never inside a formula, a LaTeX command's braces or a number.

    Args:
        text: a solution.
        unit: ``sentence`` (every line end, too), ``line``, ``step`` (at blank lines and before numbered lines, bulleted
            lines and "Step n"), or ``token`` (white space, and behind the commas and colons of Chinese and Japanese).

    Raises:
        UserError: unknown unit.

    >>> boundaries("It is 3.5 kg. So $a. b$ holds. End.", "sentence")
    [13, 30]
    """
    pattern = {"sentence": _SENTENCE, "line": _LINE, "step": _STEP, "token": _TOKEN}.get(unit)
    if pattern is None:
        raise UserError(f"no unit {unit!r} to cut at: choose {', '.join(UNITS)}")
    return _ends(text, pattern, unit)


def _ends(text: str, pattern: re.Pattern[str], unit: Unit) -> list[int]:
    """See :func:`boundaries`; ``pattern`` finds what ends a unit."""
    closed = _disjoint(_closed(text))
    starts = [start for start, _ in closed]
    length = len(text.rstrip())
    found: list[int] = []
    for match in pattern.finditer(text):
        end = match.end()
        while end and text[end - 1].isspace():
            end -= 1
        before = bisect_right(starts, end - 1) - 1
        inside = before >= 0 and closed[before][0] < end < closed[before][1]
        abbreviated = (
            unit == "sentence" and "\n" not in match[0] and _ABBREVIATION.search(text, max(0, end - _LOOK_BACK), end)
        )
        if 0 < end < length and not inside and not abbreviated and (not found or found[-1] < end):
            found.append(end)
    return found


def _between_letters(text: str) -> list[int]:
    """Prefix lengths that end between two letters of Chinese or Japanese, outside formulas and the like."""
    return _ends(text, _LETTERS, "token") if _LETTERS.search(text) else []


def _disjoint(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, with overlapping ones joined."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if joined and start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], stop)
        else:
            joined.append((start, stop))
    return joined


def _closed(text: str) -> Iterator[tuple[int, int]]:
    """Spans that no cut may divide: formulas, blocks of code, tables, numbers, commands with their arguments."""
    yield from _formulas(text)
    for match in _BLOCK.finditer(text):
        yield match.span()
    for match in _SPACED_NUMBER.finditer(text):
        yield match.span()
    ends = _group_ends(text)
    for match in _COMMAND.finditer(text):
        at, needed = match.end(), _ARGUMENTS.get(match[1], 0)
        while True:
            ahead = at + _space(text, at)
            argument = _ARGUMENT.match(text, ahead)
            if argument and argument[0] == "{":
                at = ends.get(ahead, len(text))
            elif argument and needed > 0:
                at = argument.end()
            else:
                break
            needed -= 1
        if at > match.end():
            yield match.start(), at


def _formulas(text: str) -> Iterator[tuple[int, int]]:
    """Spans of formulas. A missing closing delimiter is searched for only once, so that the time stays linear."""
    at, missing = 0, set()
    while match := _MATH.search(text, at):
        closing = _CLOSING.get(match[0]) or (f"\\end{{{match[1]}}}" if match[1] else None)
        at = match.end()
        if closing is not None:
            found = -1 if closing in missing else text.find(closing, match.end())
            if found < 0:
                missing.add(closing)
                at = match.start() + 1
                continue
            at = found + len(closing)
        yield match.start(), at


def _group_ends(text: str) -> dict[int, int]:
    """For the position of each opening brace, the end of its group; braces that never close are left out."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for brace in BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            ends[opened.pop()] = brace.end()
    return ends


def cut_points(solution: str, cuts: int = 4, cap: float = 0.25, unit: Unit = "sentence") -> list[Cut]:
    """Cuts at the uniform fractions cap/cuts, 2 cap/cuts, ..., cap of the solution, each moved to a boundary.

    Each fraction takes the last boundary at or before it. If the unit has none there (a long first sentence), it takes
    the last token boundary, or, in Chinese and Japanese, the last place between two letters, so that a prefix never
    exceeds the cap. Cuts that coincide are listed once.

    Args:
        solution: an oracle solution.
        cuts: number of fractions, at least 1.
        cap: longest prefix as a fraction of the solution, in (0, 1); a quarter in the paper.
        unit: the kind of boundary to cut at.

    Raises:
        UserError: ``cuts``, ``cap`` or ``unit`` is invalid.

    >>> [cut.end for cut in cut_points("One. Two. Three. Four.", cuts=2, cap=0.5)]
    [4, 9]
    """
    if cuts < 1 or not 0 < cap < 1:
        raise UserError(f"cuts must be at least 1, and cap above 0 and below 1, not {cuts} and {cap}")
    whole = len(solution.rstrip())
    coarse, fine, letters = boundaries(solution, unit), boundaries(solution, "token"), _between_letters(solution)
    found: dict[int, Cut] = {}
    for index in range(1, cuts + 1):
        limit = whole * cap * index / cuts + 1e-9
        choices: tuple[tuple[list[int], Unit], ...] = ((coarse, unit), (fine, "token"), (letters, "token"))
        for places, name in choices:
            at = bisect_right(places, limit) - 1
            if at >= 0:
                end = places[at]
                found.setdefault(end, Cut(end, end / whole, name))
                break
    return [found[end] for end in sorted(found)]


def statements(problem: Problem) -> list[tuple[int, int]]:
    """Spans of the solution that state the final answer.

    These are the sentences with an answer marker (``####``, ``\\boxed``, "the answer is") followed by the answer, as
    the label or the solution's end writes it, with or without ``\\text``, a fraction also as a decimal and the other
    way round, words also in other letters (``yes`` and ``Yes``), or as the right option of a multiple-choice question
    says it. If it has three characters or more and is not in the question (an option: not in the question before the
    options), every sentence that contains it states it: that is hardly chance. A shorter answer is often just a number:
    of the other sentences only the one just before the first statement counts, or, without any statement, the last that
    contains it. "Yes", "no", "true" and "false" state an answer as the solution's first word, and as a sentence's first
    word before a punctuation mark.

    ``####`` and ``\\boxed`` may give the answer in yet another form, so they also count if the answer does not follow;
    except a box before another box with the answer, and a ``####`` before any marker with it.

    A sentence with the commas of Chinese or Japanese counts from the first of its clauses on that has a marker or the
    answer.
    """
    text, answer = problem.solution, problem.answer
    edges = [0, *boundaries(text, "sentence"), len(text)]
    forms = _forms(problem)
    told = {form: _said(text, form) for form in forms}
    said = sorted(span for spans in told.values() for span in spans)
    begins = [start for start, _ in said]
    stating: set[int] = set()
    unread: dict[str, set[int]] = {"#": set(), "\\": set()}
    telling = list(begins)
    for marker in _MARKER.finditer(text):
        telling.append(marker.start())
        sentence = bisect_right(edges, marker.start()) - 1
        # "The answer is" may be on one line, and the answer on the next.
        stop = min(edges[min(sentence + 2, len(edges) - 1)], marker.end() + _STATED_WITHIN + 2 * len(answer))
        at = bisect_left(begins, marker.end())
        if (at < len(said) and said[at][1] <= stop) or (
            not marker[0].endswith("to") and _in_words(text, marker.end(), problem.answer)
        ):
            stating.add(sentence)
            unread["#"].clear()
            if marker[0][:1] == "\\":
                unread["\\"].clear()
        elif marker[0][:1] in unread:
            unread[marker[0][:1]].add(sentence)
    stating |= unread["#"] | unread["\\"]
    verdicts = {form.lower() for form in forms}
    for found in _VERDICT.finditer(text):
        if found[found.lastgroup or 0].lower() in verdicts:
            stating.add(bisect_right(edges, found.start(found.lastgroup or 0)) - 1)
    holding = {bisect_right(edges, start) - 1 for start, _ in said}
    for form, spans in told.items():
        if len(_UNSPACED.sub("", form)) >= _TELLING and not forms[form]:
            stating |= {bisect_right(edges, start) - 1 for start, _ in spans}
    if stating and min(stating) - 1 in holding:
        stating.add(min(stating) - 1)
    elif not stating and holding:
        stating.add(max(holding))
    telling.sort()
    return [(_clause(text, edges[one], telling), edges[one + 1]) for one in sorted(stating)]


def _in_words(text: str, start: int, answer: str) -> bool:
    """Whether an answer that is a small number is the next word: "twelve". Elsewhere words tell less than digits do.

    >>> _in_words("is **twelve** cats", 2, "12"), _in_words("is one of 12", 2, "1")
    (True, False)
    """
    word = _IN_WORDS.get(answer)
    if word is None:
        return False
    found = re.compile(rf"[\W_]*(?:text[\W_]*)?{word}(?![\w-]|\s+(?:of|less|more|hundred|thousand)\b)", re.IGNORECASE)
    return found.match(text, start) is not None


def _clause(text: str, start: int, telling: Sequence[int]) -> int:
    """Where the first clause begins that tells something, of a sentence that begins at ``start``."""
    at = bisect_left(telling, start)
    last = max(text.rfind(comma, start, telling[at]) for comma in "，；") if at < len(telling) else -1
    return last + 1 if last >= 0 else start


def _forms(problem: Problem) -> dict[str, bool]:
    """How the answer may be written, each form with whether the question itself contains it."""
    written = [one for one in (problem.answer, final_answer(problem.solution)) if one]
    written += [bare for one in written if (bare := unwrapped(one))]
    forms: dict[str, bool] = {}
    for one in written:
        equal = [one, *other_forms(one)]
        forms |= dict.fromkeys(equal, any(_said(problem.prompt, other, cased=True) for other in equal))
    asked, options = right_options(problem.prompt, problem.answer)
    return forms | {one: bool(_said(asked, one)) for one in options}


def leak(problem: Problem, end: int) -> Leak | None:
    """The first statement of the final answer that the prefix of length ``end`` reaches into; None if there is none.

    >>> problem = Problem(id="1", prompt="2 + 2?", solution="Add them. The answer is 4. Indeed 2 + 2 = 4.", answer="4")
    >>> leak(problem, 9), leak(problem, 13)
    (None, Leak(start=9, statement='The answer is 4.'))
    """
    reached = len(problem.solution[:end].rstrip())
    for start, stop in statements(problem):
        if reached > start + _space(problem.solution, start):
            return Leak(start, problem.solution[start:stop].strip())
    return None


def bare_occurrences(problem: Problem, end: int) -> tuple[int, bool]:
    """How often the answer occurs as a token in the prefix, and whether it occurs in the question.

    Such occurrences are counted and reported, but not refused: a small number is often just a number.
    """
    count = len(_said(problem.solution[:end], problem.answer))
    return count, bool(_said(problem.prompt, problem.answer))


def _said(text: str, answer: str, cased: bool = False) -> list[tuple[int, int]]:
    r"""Spans of the answer in a text, in order: as a separate token, or, unless it is an integer, ignoring spaces.

    Sizes of fractions and brackets (``\dfrac``, ``\left``) are ignored with the spaces.

    Words count in capital and in small letters, unless ``cased``; a short one counts only as a separate token.
    """
    words = not cased and _WORD.search(answer) and not _SYMBOL.search(answer)
    if words:
        token = r"[\s$]+".join(map(re.escape, answer.split()))
        found = [one.span() for one in re.finditer(rf"(?<!{_INNER}){token}(?!{_INNER})", text, re.IGNORECASE)]
    else:
        found = list(answer_spans(text, answer))
    bare = SAME.sub("", answer)
    if answer.isdigit() or not bare or (words and len(bare) < _SHORT_WORD):
        return found
    left_out = {at for one in SAME.finditer(text) for at in range(*one.span())}
    kept = [at for at in range(len(text)) if at not in left_out]
    close = "".join(map(text.__getitem__, kept))
    at = close.find(bare)
    while at >= 0:
        start, end = kept[at], kept[at + len(bare) - 1] + 1
        if not (_digits_meet(text, start) or _digits_meet(text, end)):  # 1/2 is not in 11/2
            found.append((start, end))
        at = close.find(bare, at + 1)
    return sorted(set(found))


def _digits_meet(text: str, at: int) -> bool:
    """Whether a number goes on from before to behind a place."""
    return text[max(at - 1, 0) : at].isdigit() and text[at : at + 1].isdigit()


def _space(text: str, start: int) -> int:
    return _SPACES.match(text, start).end() - start  # type: ignore[union-attr]
