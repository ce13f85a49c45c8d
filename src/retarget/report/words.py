"""Numbers and findings in words, for the page and the Markdown."""

import math
from collections.abc import Iterable, Sequence

VERDICTS = ("holds", "does not hold", "not enough evidence", "not measured")
VERDICT_WORDS = {
    "holds": "holds here",
    "does not hold": "does not hold here",
    "not enough evidence": "not enough evidence",
    "not measured": "not measured",
}
VERDICT_SYMBOLS = {"holds": "✓", "does not hold": "✕", "not enough evidence": "?", "not measured": "–"}

ACROSS = {
    "every": "on every one of {0}",
    "average": "on average over {0}",
    "new": "on new data sets, of which {1} are a sample",
}

ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}

LARGEST_WRITTEN_OUT = 1e7
"""From here on a number is written with a power of ten: its digits could not be counted at a glance."""
MINUS = "\N{MINUS SIGN}"
MISSING = "–"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, decimals: int, signed: bool = False) -> str:
    """A number with a real minus sign; with a power of ten if it is too small for its decimals, or below 1e-4, or has
    more than seven digits before the point.

    >>> number(-1.5, 2), number(0.25, 1, signed=True), number(3.2e-12, 3), number(0.0, 1, signed=True)
    ('−1.50', '+0.2', '3.2×10⁻¹²', '0.0')
    >>> number(9_999_999, 0), number(25_557_032, 0), number(-1e60, 2)
    ('9999999', '2.5557×10⁷', '−1.0000×10⁶⁰')
    """
    if value == 0 and decimals > 4:
        return "0"
    sign = "+" if signed and value else ""
    small = 0 < abs(value) < max(1e-4, 0.5 * 10.0**-decimals)
    if small or abs(value) >= LARGEST_WRITTEN_OUT:
        digits, _, exponent = f"{value:{sign}.{1 if small else 4}e}".partition("e")
        return f"{digits}×10{str(int(exponent)).translate(_RAISED)}".replace("-", MINUS)
    return f"{value:{sign}.{decimals}f}".replace("-", MINUS)


def difference_decimals(values: Sequence[float], decimals: int) -> int:
    """Enough decimals for one digit of every non-zero value, but at most three more than the metric's own.

    An interval's end of 0.004 must not read as 0.00: which side of zero it is on decides the verdict.

    >>> difference_decimals([0.31, 0.004, 0.62], 2)
    3
    """
    smallest = min((abs(value) for value in values if value), default=1.0)
    return min(max(decimals, math.ceil(-math.log10(smallest))), decimals + 3)


def interval(low: float, high: float, decimals: int, *, signed: bool = True) -> str:
    """
    >>> interval(-0.25, 1, 2)
    '[−0.25, +1.00]'
    """
    return f"[{number(low, decimals, signed)}, {number(high, decimals, signed)}]"


def fixed(value: float, unit: str = "") -> str:
    """A number that was fixed before the results, such as a smallest effect, with all its digits.

    >>> fixed(0.5, "%"), fixed(1000012345678.0), fixed(-90.123456789)
    ('0.5 points', '1000012345678', '−90.123456789')
    """
    return amount(f"{value:.15g}".replace("-", MINUS), unit)


def listed(parts: Iterable[str]) -> str:
    """Parts with commas in them are separated by semicolons.

    >>> listed(["a", "b", "c"]), listed(["In, blend", "In, patch"])
    ('a, b and c', 'In, blend; In, patch')
    """
    parts = list(parts)
    if any("," in part for part in parts):
        return "; ".join(parts)
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def percent(share: float) -> str:
    """
    >>> percent(0.95), percent(0.99166)
    ('95 %', '99.2 %')
    """
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def amount(text: str, unit: str) -> str:
    """A difference with its unit; percentages differ by percentage points.

    >>> amount("+1.7", "%"), amount("1", "%"), amount("3", "ms"), amount("0.2", "")
    ('+1.7 points', '1 point', '3 ms', '0.2')
    """
    if unit in ("%", "points"):
        unit = "point" if text == "1" else "points"
    return f"{text} {unit}".strip()


def with_unit(label: str, unit: str) -> str:
    """
    >>> with_unit("top-1 accuracy", "%"), with_unit("NLL", "")
    ('top-1 accuracy (%)', 'NLL')
    """
    return f"{label} ({unit})" if unit else label


def stated(not_run: int, left_out: str = "", *, more: bool = True) -> str:
    """What stands above the claims that a study states and does not run.

    Args:
        not_run: number of these claims.
        left_out: why, and what measures them.
        more: whether other claims were run.

    >>> stated(1)
    '1 more claim was stated but not run here'
    >>> stated(2, "The preset small measures them.")
    '2 more claims were stated but not run here. The preset small measures them.'
    >>> stated(1, more=False)
    '1 claim was stated but not run here'
    """
    said = f"{not_run} {'more ' * more}{'claim was' if not_run == 1 else 'claims were'} stated but not run here"
    return f"{said}. {left_out}" if left_out else said


def finding(counts: dict[str, int], not_run: int = 0) -> str:
    """A study's finding in one sentence, from the verdicts on the claims that were run.

    Args:
        counts: number of claims by verdict.
        not_run: number of stated claims whose arms or conditions this study does not have.

    >>> finding({"holds": 3, "does not hold": 1, "not enough evidence": 2, "not measured": 1})
    '3 of 7 claims hold here, 1 does not, 2 lack evidence, 1 was not measured.'
    >>> finding({"holds": 0, "does not hold": 1})
    'The one claim does not hold here.'
    >>> finding({}, not_run=2)
    'None of 2 stated claims was run here.'
    """
    total = sum(counts.values())
    holds, fails, lacks, unmeasured = (counts.get(verdict, 0) for verdict in VERDICTS)
    if total == 0:
        if not_run:
            return (
                "The one stated claim was not run here."
                if not_run == 1
                else f"None of {not_run} stated claims was run here."
            )
        return "This study judges no claim."
    only = next((verdict for verdict in VERDICTS if counts.get(verdict, 0) == total), None)
    if only is not None:
        return _all(only, total)
    parts = [f"{holds or 'None'} of {total} claims {'hold' if holds > 1 else 'holds'} here"]
    if fails:
        parts.append(f"{fails} {'does' if fails == 1 else 'do'} not")
    if lacks:
        parts.append(f"{lacks} {'lacks' if lacks == 1 else 'lack'} evidence")
    if unmeasured:
        parts.append(f"{unmeasured} {'was' if unmeasured == 1 else 'were'} not measured")
    return ", ".join(parts) + "."


def finding_of_one_run(measured: int) -> str:
    """The finding if each arm was run once, so that nothing is decided about the method.

    >>> finding_of_one_run(3)
    'Each arm was run once: 3 differences are measured, and one run decides nothing about the method.'
    """
    differences = "one difference is" if measured == 1 else f"{measured} differences are"
    return f"Each arm was run once: {differences} measured, and one run decides nothing about the method."


def models(count: int) -> str:
    """
    >>> models(2), models(1)
    ('these two models', 'this model')
    """
    return "these two models" if count == 2 else "this model"


def plural(count: int, noun: str) -> str:
    """
    >>> plural(1, "seed"), plural(5, "seed")
    ('1 seed', '5 seeds')
    """
    return f"{count} {noun}" if count == 1 else f"{count:,} {noun}s".replace(",", "\N{NARROW NO-BREAK SPACE}")


def duration(seconds: float) -> str:
    """
    >>> duration(0.4), duration(75), duration(7200)
    ('0.4 s', '1 min 15 s', '2 h 0 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _all(verdict: str, total: int) -> str:
    one = total == 1
    subject = "The one claim" if one else f"{'2 of 2' if total == 2 else f'All {total}'} claims"
    return {
        "holds": f"{subject} {'holds' if one else 'hold'} here.",
        "does not hold": "The one claim does not hold here." if one else f"None of {total} claims holds here.",
        "not enough evidence": f"{subject} {'lacks' if one else 'lack'} evidence.",
        "not measured": "The one claim was not measured." if one else f"None of {total} claims was measured.",
    }[verdict]
