"""Tables, in Markdown, of what was found about the abstracts' claims.

results/abstracts.toml names the claims of studies that decide each claim of an abstract.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from records import PAGES, SIGNS, Record, names, read_toml, record, verdict

Measured = tuple[Record, dict[str, Any]]


def seventeen(document: Path) -> str:
    """One table of every claim of the abstracts: setting with link, difference, interval, seeds, verdict."""
    head = "| abstract | claim | setting | compared | difference [interval] | seeds | verdict |"
    rows, decided, notes = [head, "|---" * 7 + "|"], Counter[str](), []
    for paper in read_toml("abstracts.toml")["paper"]:
        for number, claim in enumerate(paper["claims"], start=1):
            name, says = f"{paper['name']} {number}", claim["says"]
            measured = [one for part in claim["parts"] for one in _measured(paper["explored"], part)]
            decided["total"] += 1
            decided["registered"] += any(_is_decided(*one) for one in measured)
            notes += [f"- {name}: {claim['note']}"] if "note" in claim else []
            if not measured:
                rows.append(f"| {name} | {says} | – | – | – | – | not measured |")
            above = ""
            for one, result in measured:
                setting = _setting(one, "", document)
                rows.append(
                    f"| {name} | {says} | {setting if setting != above else ''} | {one.compared(result)} | "
                    f"{one.difference(result)} | {result['n'] or '–'} | {verdict(result)} |"
                )
                name, says, above = "", "", setting
    counted = (
        f"{decided['registered']} of {decided['total']} claims have a verdict on at least one comparison, from "
        "three seeds or more in a setting that was registered before its treated runs. Verdicts in other settings are "
        "*exploratory* and confirm nothing. Differences are treated minus control, so where less is better (NLL, ECE, "
        "FID) a negative one is good. In-D2D, Out-D2D and D2I are TrojDiff's targets: with the trigger the model draws "
        "one of its own classes, another data set, or one fixed image."
    )
    return "\n\n".join([counted, "\n".join(rows), "\n".join(notes)])


def found(document: Path) -> str:
    """The short table in README: method, setting, claim, verdict."""
    rows = ["| method | setting | claim | verdict |", "|---|---|---|---|"]
    explored = {paper["name"]: paper["explored"] for paper in read_toml("abstracts.toml")["paper"]}
    for row in read_toml("abstracts.toml")["found"]:
        records = [row["record"]] if "record" in row else explored[row["method"]]
        for one, result in list(_measured(records, row["claim"], only=bool(row.get("record"))))[:1]:
            where = _setting(one, one.condition(result["condition"]), document)
            figures = one.difference(result) + ("" if result["unit"] else f" {one.measure(result)}")
            figures += f", {result['n']} seed{'s' * (result['n'] != 1)}" if result["n"] else ""
            rows.append(f"| {row['method']} | {where} | {result['sentence']} | {SIGNS[result['verdict']]}: {figures} |")
    if len(rows) > 14:
        raise SystemExit(f"results/abstracts.toml: README shows at most 12 rows, not {len(rows) - 2}")
    return "\n".join(rows)


def _measured(explored: list[str], part: str, *, only: bool = False) -> Iterator[Measured]:
    """The results of a claim: those of registered records if there are any, else those of explored ones."""
    study, _, part = part.rpartition("/")
    registered = [] if only else [name for name in names() if record(name).registered]
    for group in (registered, explored):
        results = [
            (record(name), claim)
            for name in group
            if record(name).finished and study in ("", record(name).study["plan"]["study"])
            for claim in record(name).claims
            if part in (claim["id"], claim["id"].removesuffix(f"_{claim['condition']}"))
            and claim["verdict"] != "not measured"
        ]
        if results:
            yield from results
            return


def _is_decided(one: Record, claim: dict[str, Any]) -> bool:
    return bool(one.registered) and claim["n"] >= 3 and claim["verdict"] in ("holds", "does not hold")


def _setting(one: Record, condition: str, document: Path) -> str:
    link = os.path.relpath(PAGES / f"{one.name}.md", document.parent)
    marks = ", ".join([*(["older code"] if one.older else []), *(["registered"] if one.registered else [])])
    return f"[{one.words}]({link})" + (f": {condition}" if condition else "") + (f" ({marks})" if marks else "")
