"""Tables, in Markdown, of what was found about the abstracts' claims.

results/abstracts.toml names the claims of studies that decide each claim of an abstract.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gain_map import half_width
from record_pages import with_meaning
from record_tables import unit_after
from records import PAGES, SIGNS, Record, names, names_of, read_toml, record

Measured = tuple[Record, dict[str, Any]]


KINDS = ("registered", "replication", "exploratory")
COUNTED = KINDS[:2]
"""The kinds of settings whose verdicts count."""


def seventeen(document: Path) -> str:
    """Every claim of the abstracts with one verdict, then every comparison behind it, then remarks."""
    ends, rows, notes = Counter[str](), [SUMMARY, "|---" * 6 + "|"], list[str]()
    details = [COMPARISONS, "|---" * 6 + "|"]
    for paper in read_toml("abstracts.toml")["paper"]:
        for number, claim in enumerate(paper["claims"], start=1):
            name = f"{paper['name']} {number}"
            measured = {part: _in_order(_measured(paper["explored"], part)) for part in claim["parts"]}
            end, counts = _sentence([one for part in claim.get("decide", measured) for one in measured[part]])
            ends[end] += 1
            rows.append(f"| {name} | {claim['says']} | {SENTENCES[end]} | {' | '.join(map(str, counts))} |")
            notes += [f"- {name}: {_filled(claim['note'])}"] if "note" in claim else []
            details += _comparisons(name, measured, claim.get("words", {}), document)
    total = len(rows) - 2
    counted = ", ".join(f"{ends[end]} {said}" for end, said in COUNTS.items())
    decided = total - ends["open"] - ends["not measured"]
    head = f"Of {total} claims {counted}. {decided} of them are decided by at least one comparison. {MEANING}"
    return "\n\n".join([head, "\n".join(rows), "\n".join(notes), "Every comparison:", with_meaning("\n".join(details))])


SUMMARY = "| abstract | claim | verdict | comparisons: ✔ hold | ✘ do not hold | ? open |"
COMPARISONS = "| abstract | setting | compared | difference [interval] | seeds | verdict |"
SENTENCES = {
    "holds": "✔ holds",
    "does not hold": "✘ does not hold",
    "differs": "✔✘ differs by setting",
    "open": "? open",
    "not measured": "not measured",
}
"""What is said of a sentence of an abstract."""
COUNTS = {"holds": "hold", "does not hold": "do not hold", "differs": "differ by setting", "open": "open",
          "not measured": "not measured"}  # fmt: skip
MEANING = (
    "A claim *holds* if every comparison with a verdict holds, *does not hold* if none does, *differs by setting* if "
    "some do, and is *open* if none has a verdict; a note says where only some comparisons decide. Only comparisons in "
    "settings that were *registered* before their treated runs or *replicate* an earlier one on new seeds or data "
    "count; the others are *exploratory* and confirm nothing. A comparison of fewer than three seeds counts as open. "
    "Differences are treated minus control, so where less is better (NLL, ECE, FID) a negative one is good. In-D2D, "
    "Out-D2D and D2I are TrojDiff's targets: with the trigger the model draws one of its own classes, another data "
    "set, or one fixed image."
)


def _comparisons(name: str, measured: dict[str, list[Measured]], words: dict[str, str], document: Path) -> list[str]:
    """A row for each comparison of a claim."""
    rows, above = [], ""
    for part, results in measured.items():
        for one, result in results:
            setting, compared = _setting(one, result, "", document), one.compared(result)
            compared += f" ({words[part]})" if part in words else ""
            rows.append(
                f"| {name} | {setting if setting != above else ''} | {compared} | {one.difference(result)} | "
                f"{result['n'] or '–'} | {one.verdict(result)} |"
            )
            name, above = "", setting
    return rows


def _sentence(measured: list[Measured]) -> tuple[str, tuple[int, int, int]]:
    """The verdict on a sentence, and how many of its comparisons hold, do not hold, and are open."""
    said = Counter(result["verdict"] if _is_decided(one, result) else "open" for one, result in measured
                   if one.kind_of(result) in COUNTED and not one.is_void(result))  # fmt: skip
    holds, fails, opened = said["holds"], said["does not hold"], said["open"]
    if holds or fails:
        end = "differs" if holds and fails else "holds" if holds else "does not hold"
    else:
        end = "open" if measured else "not measured"
    return end, (holds, fails, opened)


def _in_order(measured: Iterator[Measured]) -> list[Measured]:
    """Registered settings first, then replications, then what is only exploratory; the same runs once."""
    found = [one for one in measured if not _is_repeated(*one)]
    return sorted(found, key=lambda one: KINDS.index(one[0].kind_of(one[1])))


def _is_repeated(one: Record, claim: dict[str, Any]) -> bool:
    """Whether its runs are those of another record, for which the claim was registered."""
    same = (one.registered or {}).get("same_runs")
    if not same or not set(claim["arms"]) <= set(same["arms"]) or one.kind_of(claim) in COUNTED:
        return False
    other = record(same["record"])
    return any(names_of(claim) & names_of(each) and other.kind_of(each) in COUNTED for each in other.claims)


def _filled(note: str) -> str:
    """A note with its numbers: ``{record/treated/control/metric}`` is a difference, ``{record/arm/metric}`` a mean."""
    return re.sub(r"\{([\w.-]+(?:/[\w.-]+){2,3})\}", lambda match: _number(*match[1].split("/")), note)


def _number(name: str, *arms: str) -> str:
    """A metric's mean over seeds in one arm, or the mean difference of two arms with its 95 % t interval."""
    plan, metrics = record(name).study["plan"], record(name).summary["conditions"]
    (arms_of,) = metrics.values()
    *pair, metric = arms
    shown = next(one for one in plan["metrics"] if one["name"] == metric)
    decimals = shown["decimals"]
    first, *rest = (arms_of[arm][metric]["values"] for arm in pair)
    if not rest:
        return f"{np.mean(first):.{decimals}f}{unit_after(shown['unit'])}"
    gained = np.subtract(first, rest[0])
    half = half_width(list(gained))
    low, high = gained.mean() - half, gained.mean() + half
    return f"{gained.mean():+.{decimals}f} [{low:+.{decimals}f}, {high:+.{decimals}f}] over {len(gained)} seeds"


def found(document: Path) -> str:
    """The short table in README: method, setting, claim, verdict."""
    rows = ["| method | setting | claim | verdict |", "|---|---|---|---|"]
    explored = {paper["name"]: paper["explored"] for paper in read_toml("abstracts.toml")["paper"]}
    for row in read_toml("abstracts.toml")["found"]:
        records = [row["record"]] if "record" in row else explored[row["method"]]
        for one, result in list(_measured(records, row["claim"], only=bool(row.get("record"))))[:1]:
            where = _setting(one, result, one.condition(result["condition"]), document)
            figures = one.difference(result) + ("" if result["unit"] else f" {one.measure(result)}")
            figures += f", {result['n']} seed{'s' * (result['n'] != 1)}" if result["n"] else ""
            rows.append(f"| {row['method']} | {where} | {result['sentence']} | {SIGNS[result['verdict']]}: {figures} |")
    if len(rows) > 14:
        raise SystemExit(f"results/abstracts.toml: README shows at most 12 rows, not {len(rows) - 2}")
    return "\n".join(rows)


def _measured(explored: list[str], part: str, *, only: bool = False) -> Iterator[Measured]:
    """The results of a claim: those of the records in registered.toml if there are any, else those of explored ones."""
    study, _, part = part.rpartition("/")
    registered = [] if only else [name for name in names() if record(name).registered]
    for group in (registered, explored):
        results = [
            (record(name), claim)
            for name in group
            if record(name).finished and study in ("", record(name).study["plan"]["study"])
            for claim in record(name).claims
            if part in names_of(claim) and claim["verdict"] != "not measured"
        ]
        if results:
            yield from results
            return


def _is_counted(one: Record, claim: dict[str, Any]) -> bool:
    return one.kind_of(claim) in COUNTED and not one.is_void(claim) and claim["n"] >= 3


def _is_decided(one: Record, claim: dict[str, Any]) -> bool:
    return _is_counted(one, claim) and claim["verdict"] in ("holds", "does not hold")


def _setting(one: Record, claim: dict[str, Any], condition: str, document: Path) -> str:
    link = os.path.relpath(PAGES / f"{one.name}.md", document.parent)
    early = one.registered and one.registered.get("looked_at_early")
    marks = ", ".join(
        [*(["older code"] if one.is_older(claim) else []), one.kind_of(claim), *(["looked at early"] if early else [])]
    )
    return f"[{one.words}]({link})" + (f": {condition}" if condition else "") + f" ({marks})"
