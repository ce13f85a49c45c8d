r"""The final answer that a text marks: in a box or a tag, after ``####`` or "the answer is". Free of torch.

A marker alone is not an answer: "the answer is at least 4" and "#### Step 2" contain none. Completions are untrusted,
so every pattern here runs in time linear in the text. Markers other than boxes are searched for in the last 4,000
characters only.
"""

import re
from collections.abc import Iterator

from retarget.pope.boxes import BOX, EMPTY, alternatives, last_boxed, without_denied
from retarget.pope.notation import CHANGING, SCALES

WITHIN = 4000
THINKING_BEGINS, THINKING_ENDS = "<think>", "</think>"

_MARKER = re.compile(
    r"(?:^|\n)[ \t]*+(?:#{1,6}[ \t*_]*+|\*\*[ \t]*+|__[ \t]*+)(?:the[ \t]++)?(?:final[ \t]++)?answer[ \t*_]*+"
    r"(?P<heading>)(?=\n|\Z)"
    r"|(?:^|\n)[ \t]*+####(?!#)(?P<line>)"
    r"|(?P<unspaced>答案[\s*_]*+(?:是|为|為|等于|等於|：|:)|故[选選][\s*_]*+(?:：|:)?|答えは)"
    r"|\banswer(?:[ \t]++(?:to|of|for)\b[^.:=?!\n]{1,80}?)?[ \t*_]*+"
    r"(?:\bis\b|\bequals\b|\b(?:must|should|will|would)[ \t]++be\b|:|=)",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"\b(?:if|suppose|assum\w+|whether|unless|until|imagine|what|which|not|say|doubt\w*|unlikely"
    r"|(?:might|could|may)[ ](?:think|guess|believe|expect))\b"
    r"|如果|假[如设設定]|若|是否|もし",
    re.IGNORECASE,
)
_FILLER = re.compile(
    r"[\s:：，、*_,]*+(?:(?:therefore|thus|hence|then|so|now|simply|just|indeed|clearly|exactly|precisely|finally"
    r"|equal[ ]to|given[ ]by|as[ ]follows|the[ ]number|the[ ]value)\b[\s:：，、*_,]*+)*+",
    re.IGNORECASE,
)
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff"
"""Letters of Chinese and Japanese, in which no space stands around a number."""
_FORMULA = re.compile(r"\$\$[^$]++\$\$|\$[^$\n]++\$|\\\([^\n]+?\\\)|\\\[.+?\\\]", re.DOTALL)
_JOINT = re.compile(r"[ \t]*+(?:,[ \t]*+(?:and\b)?|and\b)[ \t]*+", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=[\s*_\"')]|$)|[。！？\n]")
_COMMAND = re.compile(r"\\[A-Za-z]++(?:\{[^{}]*+\})?|\\.")
_FUNCTIONS = re.compile(r"(?:sqrt|sin|cos|tan|cot|log|ln|exp|pi|mod|infinity|inf|deg)(?![a-z])", re.IGNORECASE)
_WORD = re.compile(rf"[^\W\d_]{{2,}}|[{_UNSPACED}]")
_TAIL = re.compile(
    r"(?:[ \t]*+(?:%|°|\\%|\\text\{[^{}]*+\}))?(?:[ \t]++[^\W\d_]++(?:[-/'²³][^\W\d_]*+)?){0,5}[ \t)*_\"']*+"
)
_BREAK = re.compile(r"[ \t]*+(?:[,;:(—–]|(?:because|since|as|so|which|where|for)\b)", re.IGNORECASE)
_UNSETTLED = re.compile(
    r"\b(?:or|but|if|unless|not|more|less|fewer|greater|smaller|than|times|plus|minus|divided|multiplied|and|to|through"
    r"|though|although|otherwise|when|until|squared|cubed)\b|[或到和与與至以不多少倍加减減乘除若如]|ない|または|から",
    re.IGNORECASE,
)  # fmt: skip
_SCALES = re.compile(rf"(?:[ \t]++(?:{'|'.join(SCALES)})s?\b)++", re.IGNORECASE)
"""Words behind a number that belong to it: "5 million"."""
_CHANGED = re.compile(rf"[ \t-]*+(?:{'|'.join(sorted(CHANGING))})\b(?!-)", re.IGNORECASE)
"""A word behind a number that makes another number of it: "3 quarters"."""
_TAG = re.compile(r"<answer>(?P<within>[^<]*+(?:<(?!/?answer>)[^<]*+)*+)</answer>", re.IGNORECASE)
"""How models answer that were trained behind ``<think>`` and ``<answer>``."""
_REASON = re.compile(r"[ \t*_]*+,?[ \t*_]*+(?:because|since|as)\b", re.IGNORECASE)
_UNFINISHED = re.compile(r"(?:[-=+*/<>^]|\\(?:cdot|times|div|approx))\Z")
"""How a formula ends that was cut off before its value: "the answer is $144 - 72 ="."""
_CONTRAST = re.compile(
    r"[ \t*_]*+(?:,[ \t*_]*+|(?<=[ \t]))(?:(?:and|but)[ \t]++)?(?:not|rather[ \t]+than|instead[ \t]+of)[ \t]++[*_]*+"
    r"(?:\$[^$\n]++\$|\\\([^\n]+?\\\)|\\boxed\{[^{}]*+\}|[-+$]?+\d[\d.,/]*+%?+)(?:[ \t]++[^\W\d_]++){0,2}[ \t*_.]*+"
    r"(?=\Z|,?[ \t]*\b(?:because|since|as)\b)",
    re.IGNORECASE,
)
"""A value that the answer is not, behind the answer: "4, not 5"."""
_ALTERNATIVES = re.compile(r"[^A-Za-z]*+\bor\b[^A-Za-z]*+")
"""Two numbers under a heading: "3 or 4"."""
_NO_NAME = re.compile(
    r"(?:an?|the|at|in|on|of|to|by|as|that|this|it|about|around|roughly|approximately|between|near|one|some|any|very"
    r"|all|what|how|still|given|indeed|only|always|never|no(?=\s)|yet|already|probably)\b",
    re.IGNORECASE,
)
"""An answer in words does not begin with any of these: "at least", "a number"."""


def after_thinking(completion: str) -> str:
    """The text after the thinking block: empty if the block never ends, the whole text if there is no block.

    >>> after_thinking("<think> 4? </think>5"), after_thinking("<think> 4?"), after_thinking("5")
    ('5', '', '5')
    """
    text = completion.rpartition(THINKING_ENDS)[2]
    return "" if THINKING_BEGINS in text else text


def without_tags(text: str) -> str:
    """A text with its thinking, as a reader sees all of it.

    >>> without_tags("<think>So 4.")
    'So 4.'
    """
    return text.replace(THINKING_BEGINS, "").replace(THINKING_ENDS, "")


def final_answer(completion: str) -> str | None:
    r"""The final answer as written: in the last ``\boxed{}`` or ``<answer>``, behind ``####``, or "the answer is".

    If there is a thinking block, only the text after it counts (see :func:`after_thinking`). A box that the text denies
    ("it is not \boxed{4}") is no answer, and nor is an earlier statement of the same.

    >>> final_answer("<think>4?</think> The answer is therefore $5$."), final_answer("The answer is at least 5.")
    ('5', None)
    """
    text = after_thinking(completion)
    kept, denied = without_denied(text)
    found = last_boxed(kept)
    if found is None:
        found = _tagged(text)
    if found is None:
        found = stated_answer(text)
    return None if found in denied else found


def _tagged(text: str) -> str | None:
    """What the last ``<answer>...</answer>`` states, or all of it if it is one line without a marker."""
    for found in reversed(list(_TAG.finditer(text[-WITHIN:]))):
        within = found["within"].strip()
        if within in EMPTY:
            continue
        if _MARKER.search(within):
            return stated_answer(within)
        bare = within.strip("$").strip() if within.count("$") in (2, 4) and within.startswith("$") else within
        return bare if "\n" not in bare else None
    return None


def stated_answer(text: str) -> str | None:
    """The answer after ``####`` or "the answer is": the last one that gives a value, or else the last one in words.

    If a marker is followed by a number but does not settle on one ("is at least 4", "is 3 or 4"), the text has no
    answer, whatever comes before.

    >>> stated_answer("#### 1,200"), stated_answer("Answer: **12 apples**"), stated_answer("#### Step 2")
    ('1,200', '12', None)
    """
    return _stated(text)[0]


def unsettled(completion: str) -> bool:
    r"""Whether a text marks something, but settles on no value: one that is none, several, or one that it denies.

    >>> unsettled("The answer is 6 or 7."), unsettled("Answer: 7"), unsettled("So 7."), unsettled("The answer is:")
    (True, False, False, False)
    >>> unsettled(r"It is \boxed{6} or \boxed{7}."), unsettled(r"It is not \boxed{7}.")
    (True, True)
    """
    text = after_thinking(completion)
    kept, denied = without_denied(text)
    box = last_boxed(kept)
    if box is not None:
        return box in denied or alternatives(kept)
    return (bool(denied) or _stated(text)[1]) and final_answer(text) is None


def stated_line(completion: str) -> str | None:
    """All that stands behind the last ``####`` or "the answer is" in its line, without markup and the last period.

    >>> stated_line("Answer: **The Beatles**."), stated_line("If the answer is 4, fine"), stated_line("4")
    ('The Beatles', None, None)
    """
    text = after_thinking(completion)[-WITHIN:]
    for marker in reversed(list(_MARKER.finditer(text))):
        if marker["heading"] is not None:
            continue
        if marker["line"] is not None or not _SUPPOSED.search(_sentence_before(text, marker.start())):
            return text[marker.end() :].partition("\n")[0].strip(" \t*_:").removesuffix(".").strip(" \t*_")
    return None


def _stated(text: str) -> tuple[str | None, bool]:
    """What :func:`stated_answer` returns, and whether that is because a marker does not settle on a value."""
    text = text[-WITHIN:]
    words: str | None = None
    for marker in reversed(list(_MARKER.finditer(text))):
        if marker["heading"] is not None:
            value, several = _under_heading(text[marker.end() :])
            if value is not None or several:
                return value, several
            continue
        whole_line = marker["line"] is not None
        if not whole_line and _SUPPOSED.search(_sentence_before(text, marker.start())):
            continue
        start = _FILLER.match(text, marker.end()).end()  # type: ignore[union-attr]
        stop = _stop(text, start, whole_line)
        said = text[start:stop] if marker["unspaced"] is None else _spaced(text[start:stop])
        if text[stop : stop + 1] in ("?", "？"):
            continue
        value = _value(said, whole_line)
        if value is not None:
            return value, False
        if re.search(r"\d|\\|\$", said):
            return None, True
        plain = said.strip().strip("*_\"'.").strip()
        named = plain and len(plain.split()) <= 4 and not _NO_NAME.match(plain)
        if words is None and named and not _UNSETTLED.search(plain):
            words = plain
    return words, False


def _under_heading(text: str) -> tuple[str | None, bool]:
    """The value under a heading, and whether it is several.

    It must be all of the first line, and nothing but another heading may follow: a paragraph of reasoning under
    "## Answer" states no answer, and what is a step of it is none either.

    >>> _under_heading("\\n\\n**4** cm"), _under_heading("\\n3 or 4"), _under_heading("\\n4\\n\\nBut then 5.")
    (('4', False), (None, True), (None, False))
    """
    text = text.strip()
    formula = _FORMULA.match(text)  # in display style it has several lines
    end = formula.end() if formula else 0
    line, _, rest = text[end:].partition("\n")
    line = text[:end] + line
    if rest.strip() and not re.match(r"\s*(?:#{1,6}[ \t]|\*\*[^*\n]+\*\*[ \t]*(?:\n|\Z)|-{3,}|={3,})", rest):
        return None, False
    said = line.strip(" \t*_")
    value = _value(said, whole_line=True)
    if value is None:
        plain = said.strip("\"'.").strip()
        if plain and len(plain.split()) <= 4 and not (_NO_NAME.match(plain) or re.search(r"[\d\\$:]", plain)):
            value = None if _UNSETTLED.search(plain) else plain
    return value, value is None and _ALTERNATIVES.fullmatch(_COMMAND.sub("", said)) is not None


def _spaced(said: str) -> str:
    """A statement in Chinese or Japanese with spaces around its numbers and formulas, and with plain commas.

    >>> _spaced("18个，因为"), _spaced("$x$です")
    ('18 个, 因为', '$x$ です')
    """
    said = said.translate(str.maketrans("，、；：（", ",,;:("))
    said = re.sub(rf"(?<=[^\s{_UNSPACED}])(?=[{_UNSPACED}])|(?<=[{_UNSPACED}])(?=[^\s{_UNSPACED},;:])", " ", said)
    return re.sub(r"([,;:])(?=\S)", r"\1 ", said) if re.search(rf"[,;:][{_UNSPACED}]", said) else said


def _sentence_before(text: str, at: int) -> str:
    before = text[max(0, at - 120) : at]
    ends = list(_SENTENCE_END.finditer(before))
    return before[ends[-1].end() :] if ends else before


def _stop(text: str, start: int, whole_line: bool) -> int:
    """The end of the sentence (or of the line) that begins at ``start``; periods inside formulas do not count."""
    if whole_line:
        end = text.find("\n", start)
        return len(text) if end < 0 else end
    inside = [(found.start(), found.end()) for found in _FORMULA.finditer(text, start, min(len(text), start + 1000))]
    for found in _SENTENCE_END.finditer(text, start):
        if not any(low <= found.start() < high for low, high in inside):
            return found.start()
    return len(text)


def _value(said: str, whole_line: bool) -> str | None:
    """The value that a statement begins with, unless the words after it change it; then None."""
    said = _CONTRAST.sub(" ", said.rstrip().rstrip(".").rstrip(), count=1).rstrip()
    parts, at = [], 0
    for part, end in _formulas(said):
        parts.append(part)
        at = end
    if not parts:
        plain, at = _plain(said)
        if not plain:
            return None
        parts = [plain]
    value = ", ".join(parts)
    if _UNFINISHED.search(value) or BOX.search(value):
        return None  # cut off, or an empty box: a box with an answer has been read before
    if scale := _SCALES.match(said, at):
        value, at = f"{value} {scale[0].strip()}", scale.end()
    rest = said[at:]
    if value.endswith("."):  # "#### 2. Add them" is a heading
        if rest.strip():
            return None
        value = value.rstrip(".")
    if not re.search(r"\d|\\", value) and rest.strip(" *_") and not _REASON.match(rest):
        return None  # "a number", "x more": a letter alone is an answer only if nothing follows
    tail = _TAIL.match(rest)
    assert tail is not None
    if _UNSETTLED.search(tail[0]) or _CHANGED.match(rest):
        return None
    after = rest[tail.end() :]
    if not after.strip():
        return value
    broken = _BREAK.match(after) or _BREAK.match(rest)
    if whole_line or broken is None:
        return None
    opening = after[broken.end() :].split()[:1]
    return None if opening and _UNSETTLED.search(opening[0]) else value


def _formulas(said: str) -> Iterator[tuple[str, int]]:
    """Formulas at the beginning, joined by commas or ``and``, and the position where each ends."""
    at = 0
    while found := _FORMULA.match(said, at):
        content = found[0].strip("$") if found[0].startswith("$") else found[0][2:-2]
        yield content.strip(), found.end()
        joint = _JOINT.match(said, found.end())
        if joint is None or not _FORMULA.match(said, joint.end()):
            return
        at = joint.end()


def _plain(said: str) -> tuple[str, int]:
    """Numbers and symbols at the beginning, up to the first word, and the position where they end."""
    at = end = 0
    for token in re.finditer(r"\S+", said):
        bare = _FUNCTIONS.sub("", _COMMAND.sub("", token[0]))
        if _WORD.search(bare) and not re.match(r"[-+$]?[\d.,]*\d[^\W\d_]+\d?[.,)]?$", token[0]):
            joint = token[0].lower() == "and" and end
            if not joint:
                break
            continue
        end = token.end()
        if re.search(r"[;:]$|,$", token[0]) and not re.match(r"\s+(?:and\s+)?[-+$\\(\d]", said[end:]):
            end -= 1
            break
    value = said[at:end].strip(" *_\"'")
    return value.removeprefix("$").rstrip(",;:"), end
