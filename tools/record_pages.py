"""Records as Markdown: a page for each, and its tables for other documents."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from record_tables import metric_tables, unit_after
from records import OVER_ITEMS, PAGES, ROOT, VOID, Record, record, settings

from retarget.audit.calibration import false_positives
from retarget.audit.studies.analysis import models_of
from retarget.audit.studies.rates import share
from retarget.audit.studies.verdicts import STRONG
from retarget.files import read_json
from retarget.study.record import Results

ITEMS = (
    "*Over items*: every seed shows the same, so that the items of these runs decide, and not the spread over seeds."
)
VOIDED = "*Void*: it was found out later that the comparison could not test the claim; the record's page says why."
"""What the marks mean."""
CALLED = r"[Cc]alled trojaned|calls trojaned"
"""In these notes of a record of the audit."""


def with_meaning(table: str) -> str:
    """A table, and below it what those of its marks mean that need a word."""
    said = [words for mark, words in ((OVER_ITEMS, ITEMS), (f"{VOID} (was", VOIDED)) if mark in table]
    return "\n\n".join([table, *([" ".join(said)] if said else [])])


def page(name: str) -> str:
    """The whole page of a record, as in docs/results/."""
    one = record(name)
    notes = "\n\n".join(_marks(one))
    paths = [
        path
        for path in sorted((PAGES / "figures").glob(f"{name}-*.svg"))
        if re.fullmatch(rf"{name}-\d\d-.*", path.stem)
    ]
    shown = [f"![{_alt(path.stem.removeprefix(name))}](figures/{path.name})" for path in paths]
    source = f"The record: [results/{name}]({os.path.relpath(one.folder, PAGES)}/). [All results](README.md)."
    head = f"<!-- written by tools/write_documents.py -->\n# {one.title}"
    parts = [head, notes, *shown[:1], whole(name), *shown[1:], source]
    return "\n\n".join(part for part in parts if part) + "\n"


def _alt(stem: str) -> str:
    """What a figure of this name shows."""
    words = re.sub(r"^-\d+-", "", stem).replace("-", " ")
    return "every claim: estimate, interval and smallest effect" if words == "forest" else words


def whole(name: str) -> str:
    """Everything that a record contains, as Markdown."""
    one = record(name)
    if (one.folder / "commands.json").exists():
        return _transcript(read_json(one.folder / "commands.json"))
    if (one.folder / "tally.json").exists():
        return "\n\n".join(_tally(one.folder / file) for file in TALLIES if (one.folder / file).exists())
    if (one.folder / "figures.jsonl").exists():
        return _figures((one.folder / "figures.jsonl").read_text(encoding="utf-8"))
    if not one.finished:
        return "Begun, not finished: no result yet."
    kept = one.folder / "analysis.json"
    analysis = read_json(kept) if kept.exists() else {}
    plan, remarks, notes = one.study["plan"], analysis.get("remarks", {}), analysis.get("notes", [])
    parts = [
        f"{one.setting}. {one.question}",
        *([claims(name)] if one.claims else []),
        *(against_rivals(one) if plan["study"] == "pope.rivals" else []),
        *(_drawn(figure) for title in one.tables for figure in analysis["figures"] if figure["title"] == title),
        *(
            metric_tables(where, one.summary, plan, one.columns, remarks.get(where, {}))
            for where in one.summary["conditions"]
        ),
        *(["\n".join(f"- {note}" for note in notes)] if notes else []),
        _provenance(one.study, one.summary),
    ]
    return "\n\n".join(parts)


def against_rivals(one: Record) -> list[str]:
    """For each condition with runs of POPE beside other trained arms, a table of POPE minus every one of them."""
    from retarget.pope.studies import rivals_analysis

    found = []
    for condition in one.summary["conditions"]:
        if differences := rivals_analysis.against_rivals(Results.load(one.folder), condition):
            found.append(_drawn(rivals_analysis.rivals_table(differences).model_dump()))
    return found


def _drawn(table: Mapping[str, Any]) -> str:
    """A table of a study's page, below its title and caption."""
    rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    title = table["title"] if table["title"].endswith("?") else f"{table['title']}."
    return "\n".join([f"{title} {table['caption']}", "", *lines])


def excerpt(name: str, document: Path) -> str:
    """What a document shows of a record: its claims, or all of a short one, and a link to the rest."""
    one = record(name)
    address = os.path.relpath(PAGES / f"{name}.md", document.parent)
    if (one.folder / "commands.json").exists():
        return f"[{one.words}: commands and what they print]({address})."
    link = f"[Figures, commands and machine]({address})"
    marks = f" ({one.standing})" if one.standing else ""
    shown = claims(name) if one.finished and one.claims else whole(name)
    return f"{shown}\n\n{link}{marks}."


def called(listed: list[str], document: Path) -> str:
    """For each record of the audit, how many of its checkpoints it calls trojaned: what its notes say of it.

    ``A+B`` stands for the clean checkpoints of two records of the zoo together, which one version of the rules judged;
    ``A|B`` for two records of the same checkpoints, searched with different seeds, and the graver of their verdicts.
    """

    def line(name: str) -> str:
        if "+" in name:
            return _clean_together(name.split("+"), document)
        return _by_either(name.split("|"), document) if "|" in name else _called(name, document)

    return "\n".join(map(line, listed))


def _called(name: str, document: Path) -> str:
    one = record(name)
    address = os.path.relpath(PAGES / f"{name}.md", document.parent)
    return f"- [{one.words}]({address}): {' '.join(_notes_of_calls(name, document))}"


def _notes_of_calls(name: str, document: Path) -> list[str]:
    notes = [note for note in read_json(record(name).folder / "analysis.json")["notes"] if re.search(CALLED, note)]
    if not notes:
        raise SystemExit(f"{document}: {name} has no note that says how many checkpoints were called trojaned")
    return notes


def _clean_together(listed: list[str], document: Path) -> str:
    counts = [re.findall(r": clean (\d+)/(\d+):", " ".join(_notes_of_calls(name, document))) for name in listed]
    if any(len(each) != 1 for each in counts):
        raise SystemExit(
            f"{document}: a record of {'+'.join(listed)} does not say how many clean ones it calls trojaned"
        )
    alarms, count = (sum(int(each[0][place]) for each in counts) for place in (0, 1))
    most = round(100 * false_positives(alarms, count), 1)
    return (
        f"- The clean ones of {_links(listed, document)} together: "
        f"{share([True] * alarms + [False] * (count - alarms))}; one-sided, with 95 % confidence, at most {most} % of "
        "such models."
    )


def _by_either(listed: list[str], document: Path) -> str:
    """How many of the same checkpoints, judged in several records, at least one of these calls trojaned."""
    studies = [Results.load(record(name).folder) for name in listed]
    same = [{**one.plan.settings, "search_seed": 0} for one in studies]
    seeds = {one.plan.settings.get("search_seed", 0) for one in studies}
    judged = [{(one.which, one.kind, one.number): one for one in models_of(each)} for each in studies]
    if same != same[:1] * len(same) or len(seeds) < len(same) or any(one.keys() != judged[0].keys() for one in judged):
        raise SystemExit(
            f"{document}: called: {'|'.join(listed)} must be records of the same checkpoints whose settings differ in "
            "search_seed, and in nothing else"
        )
    calls: dict[str, list[bool]] = {"clean": [], STRONG: [], "weak attacks": []}
    for key, one in judged[0].items():
        if one.which != "evaluation":
            continue
        sort = STRONG if one.strong else "weak attacks" if one.trojaned else "clean"
        calls[sort].append(any(each[key].verdict == "trojaned" for each in judged))
    shares = ", ".join(f"{sort} {share(each)}" for sort, each in calls.items() if each)
    return (
        f"- The same checkpoints in {_links(listed, document)}, searched with different seeds: share that at least one "
        f"search calls trojaned (%): {shares}."
    )


def _links(listed: list[str], document: Path) -> str:
    return " and ".join(f"[{name}]({os.path.relpath(PAGES / f'{name}.md', document.parent)})" for name in listed)


def _marks(one: Record) -> list[str]:
    """How its setting was registered, what is to know of its runs, and which later changes would give other numbers."""
    if not (one.folder / "study.json").exists():
        return []
    if not one.registered:
        marks = ["**Exploratory**: the setting was not registered before its treated runs."]
    else:
        marks = [_registration(one, one.registered), *_beside(one, one.registered)]
    return [*marks, *(f"**Older code**: {change['what']}." for change in one.changes), *_older_torch(one)]


def _older_torch(one: Record) -> list[str]:
    """A remark, if the record was made with an earlier minor version of torch than the one of requirements.lock."""
    made, locked = (_minor(text) for text in (one.study["versions"].get("torch", ""), locked_torch()))
    if not made or made >= locked:
        return []
    then, now = (".".join(map(str, version)) for version in (made, locked))
    return [
        f"**Older torch**: made with torch {then}. With another version, as today's {now}, the same command (below) "
        "gives other numbers: they differ as those of other seeds do."
    ]


@cache
def locked_torch() -> str:
    """The version of torch in requirements.lock."""
    found = re.search(r"^torch==([\w.]+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise SystemExit("requirements.lock names no version of torch")
    return found[1]


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


OPENINGS = {
    "registered": "**Registered** at commit {} before any treated run",
    "replication": "**Replication**, registered at commit {} before any of its runs",
    "exploratory": "**Exploratory**, although registered at commit {} before its runs",
}


def _registration(one: Record, entry: Mapping[str, Any]) -> str:
    """When the setting was registered, with which code it ran, what had been seen, and why it was chosen."""
    ran = one.study["commit"]["hash"] if one.study.get("commit") else entry["code"]
    same = entry["commit"] in (entry["code"], ran)
    says = OPENINGS[one.kind].format(entry["commit"][:10])
    says += f"; run with the code of {'that commit' if same else 'commit ' + entry['code'][:10]}"
    says += f", and its results computed again at commit {ran[:10]}" * (not same and ran != entry["code"])
    says += f". What was known by then: {entry['seen']}" if "seen" in entry else ""
    return f"{says}. {entry['reason']}"


def _beside(one: Record, entry: Mapping[str, Any]) -> list[str]:
    """What the control had shown, how the runs ended if not plainly, and what is shared with other records."""
    control = re.sub(r"^that of ([\w-]+)", r"as in [\1](\1.md)", entry["control"])
    parts = [f"What the control had shown: {control}."]
    if not re.fullmatch(r"complete(: [\w ]+)?(, without weights)?", entry["status"]):
        parts.append(f"State: {entry['status']}.")
    if not entry["claims"] and one.finished and one.claims:
        parts.append("The registration names no claim, so the verdicts are exploratory.")
    parts += [_same(other, arms) for other, arms in _shared(one)]
    return [" ".join(parts)]


def _shared(one: Record) -> Iterator[tuple[str, list[str]]]:
    """Other records with the same runs, each with the labels of the arms that it shares."""
    labels = {arm["name"]: arm["label"] for arm in one.study["plan"]["arms"]}
    for entry in settings():
        same = entry.get("same_runs")
        if same and one.name in (entry["name"], same["record"]):
            other = same["record"] if one.name == entry["name"] else entry["name"]
            yield other, [labels[arm] for arm in same["arms"]]


def _same(other: str, arms: list[str]) -> str:
    return f"The runs of {' and '.join(arms)} are the same as in [{other}]({other}.md): no further evidence."


def claims(name: str) -> str:
    """The table of a record's claims."""
    one = record(name)
    labels = {metric["name"]: metric["label"] for metric in one.study["plan"]["metrics"]}
    decimals = {metric["name"]: metric["decimals"] for metric in one.study["plan"]["metrics"]}
    rows = ["| claim | compared | difference [interval] | seeds | here |", "|---|---|---|---|---|"]
    measured = [claim for claim in one.claims if claim["verdict"] != "not measured"]
    for claim in measured:
        shown, beside = claim["shown"], ""
        if shown and shown["estimate"] is not None:
            sign = "" if shown["value"] else "+"
            beside = f"; {labels[shown['metric']]} {shown['estimate']:{sign}.{decimals.get(shown['metric'], 2)}f}"
        rows.append(
            f"| {claim['sentence']} | {one.compared(claim)} | {one.difference(claim)}{beside} | {claim['n'] or '–'} | "
            f"{one.verdict(claim)}{_unlisted(one, claim)} |"
        )
    missing = dict.fromkeys(claim["sentence"] for claim in one.claims if claim not in measured)
    return with_meaning("\n".join(rows)) + (_not_measured(list(missing)) if missing else "")


def _not_measured(sentences: list[str]) -> str:
    """Claims of a study that a record's arms do not measure: a line, or folded away if there are several."""
    if len(sentences) == 1:
        return f"\n\nNot measured here: {sentences[0]}"
    listed = "\n".join(f"- {one}" for one in sentences)
    return f"\n\n<details>\n<summary>{len(sentences)} claims not measured here</summary>\n\n{listed}\n\n</details>"


def _unlisted(one: Record, claim: Mapping[str, Any]) -> str:
    """A mark for a claim that the registration of its record does not list."""
    return " (exploratory)" if one.registered and one.kind != one.kind_of(claim) else ""


TALLIES = {
    "tally.json": ("damaged", "inputs", ("right result", "clear error", "traceback", "hang",
                                         "edited data taken for whole")),
    "interruptions.json": ("disturbed", "ends", ("same bytes", "clear error", "traceback", "hang", "does not go on",
                                                 "other bytes", "left over")),
}  # fmt: skip
"""For each file of tallies: the heading of its targets, what is counted, and the possible ends."""


def _tally(path: Path) -> str:
    """How damaged inputs or disturbed commands ended, by target."""
    record = read_json(path)
    table, hardware = _ends(*TALLIES[path.name], record["tallies"]), record["hardware"]
    made = f"Made by `{record['command']}` at commit {record['commit']['hash'][:10]}, on {hardware['cores']} cores"
    return f"{table}\n\n{made} of {hardware['cpu']}."


def _ends(what: str, counted: str, outcomes: Sequence[str], tallies: Sequence[dict[str, Any]]) -> str:
    rows = [f"| {what} | {counted} | {' | '.join(outcomes)} |", "|---" * (len(outcomes) + 2) + "|"]
    for one in tallies:
        counts = [one["counts"].get(outcome, 0) for outcome in outcomes]
        rows.append(f"| {one['target']} | {sum(counts):,} | {' | '.join(f'{count:,}' for count in counts)} |")
    totals = [sum(one["counts"].get(outcome, 0) for one in tallies) for outcome in outcomes]
    rows.append(f"| all | {sum(totals):,} | {' | '.join(f'{count:,}' for count in totals)} |")
    return "\n".join(rows)


def _provenance(study: dict[str, Any], summary: dict[str, Any]) -> str:
    commands = " and ".join(f"`{one}`" for one in [*study.get("earlier_commands", []), study["command"]])
    commit, machine = _where(study)
    return f"Made by {commands} at {commit}, seeds {', '.join(map(str, summary['seeds']))}, on {machine}."


def _where(environment: dict[str, Any]) -> tuple[str, str]:
    commit, hardware = environment["commit"], environment["hardware"]
    where = f"commit {commit['hash'][:10]}{' with local changes' * commit['dirty']}" if commit else "no commit"
    gpus = ", ".join(hardware["gpus"]) or "no GPU"
    machine = (
        f"{hardware['cores']} cores of {hardware['cpu']}, {gpus}; torch {environment['versions'].get('torch', '?')}"
    )
    return where, machine


def _transcript(record: dict[str, Any]) -> str:
    lines = [f"$ {one['command']}\n{one['output'].rstrip()}" for one in record["commands"]]
    commit, machine = _where(record["environment"])
    minutes = sum(one["cpu_seconds"] for one in record["commands"]) / 60
    body = "\n".join(lines)
    return f"```console\n{body}\n```\n\nMade at {commit}, in {minutes:.0f} CPU-minutes, on {machine}."


def _figures(text: str) -> str:
    figures = [json.loads(line) for line in text.splitlines()]
    rows = ["| figure | value | quartiles | to reach | reached |", "|---|---|---|---|---|"]
    for one in figures:
        quartiles = (one["detail"] or {}).get("quartiles")
        spread = f"{quartiles[0]:.4g} to {quartiles[1]:.4g}" if quartiles else ""
        reached = {True: "yes", False: "no", None: ""}[one["reached"]]
        value = f"{one['value']:.4g}{unit_after('' if one['unit'] == 'ratio' else one['unit'])}"
        rows.append(f"| {one['figure']} | {value} | {spread} | {one['reach'] or ''} | {reached} |")
    made = dict.fromkeys(
        f"`{one['command']}` at commit {str(one['commit'])[:10]}, on {re.sub(r', load [0-9.]+', '', one['hardware'])}"
        for one in figures
    )
    return "\n".join(rows) + f"\n\nRatios are of interleaved pairs. Made by {'; '.join(made)}."
