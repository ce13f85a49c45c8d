"""Recorded studies as Markdown: a page per folder of results/, and its tables for other documents.

A folder holds what ``retarget study`` left (``study.json``, ``summary.json``, ``analysis.json``), what
tools/record_commands.py wrote (``commands.json``), what ``python -m benchmarks`` printed (``figures.jsonl``), or the
tallies of ``python -m faults`` (``tally.json``, ``interruptions.json``). Verdicts and intervals follow the
present rules (tools/judge_again.py).
"""

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from judge_again import judge_again
from record_tables import label_of, metric_tables, unit_after

from retarget.cli import METHODS
from retarget.files import read_json
from retarget.report.words import amount
from retarget.study.config import SHARE, Metric
from retarget.study.results import Summary

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
PAGES = ROOT / "docs" / "results"
SIGNS = {
    "holds": "✔ holds",
    "does not hold": "✘ does not hold",
    "not enough evidence": "? not enough evidence",
    "not measured": "not measured",
}


class Record:
    """One folder of results/.

    Attributes:
        name: the folder's name.
        changes: later changes of the code that would give other numbers, from results/changes.toml; empty for most.
        registered: its entry in results/registered.toml, or None.
        kind: "registered", "replication" or "exploratory": what that entry says of its setting.
        words: its setting in a few words.
        columns: names of the metrics that its tables show; if empty, the metrics by which claims are judged. The
            first ``record_tables.WIDE`` are seen at once.
        panels: a figure with more panels (one per arm) is shown only on the study's own page.
        tables: titles of the tables of the study's own page that are shown too.
    """

    def __init__(self, name: str) -> None:
        self.name, self.folder = name, RESULTS / name
        page = read_toml("pages.toml").get(name, {})
        self.columns: list[str] = page.get("columns", [])
        self.panels: int = page.get("panels", 4)
        self.tables: list[str] = page.get("tables", [])
        self._words, self._question = page.get("words", ""), page.get("question", "")
        self.registered = next((one for one in settings() if one["name"] == name), None)
        self.kind: str = self.registered.get("kind", "registered") if self.registered else "exploratory"
        self.changes = [one for one in read_toml("changes.toml")["change"] if name in one["records"]]

    @cached_property
    def study(self) -> dict[str, Any]:
        """study.json."""
        return read_json(self.folder / "study.json")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json."""
        return read_json(self.folder / "summary.json")

    @cached_property
    def claims(self) -> list[dict[str, Any]]:
        """The claims, judged by the present rules; ``recorded`` is the recorded verdict if it differs."""
        after = judge_again(self.folder, Summary.model_validate(self.summary))
        found = [one.model_dump(mode="json") for one in after]
        for now, then in zip(found, self.summary["claims"], strict=True):
            now["recorded"] = then["verdict"] if then["verdict"] != now["verdict"] else ""
        return found

    @property
    def finished(self) -> bool:
        """Whether it has the results of a study."""
        return (self.folder / "summary.json").exists()

    @property
    def title(self) -> str:
        """The heading of its page, with its setting if another record has the same title."""
        if not self._titled:
            return self.words
        title = self.study["plan"]["title"]
        others = [one for one in map(record, names()) if one is not self and one._titled]
        return f"{title} ({self.words})" if title in [one.study["plan"]["title"] for one in others] else title

    @property
    def _titled(self) -> bool:
        return (self.folder / "study.json").exists()

    @property
    def words(self) -> str:
        """Its setting in a few words."""
        return self._words or (f"preset `{self.summary['preset']}`" if self.finished else self.name)

    @property
    def setting(self) -> str:
        """Its setting in a few words, with its preset; a study of one's own has none."""
        own = re.split(r"[.-]", self.study["plan"]["study"])[0] not in METHODS
        preset = "" if own else f" (preset `{self.summary['preset']}`)"
        return f"{self.words[:1].upper()}{self.words[1:]}{preset}"

    @property
    def question(self) -> str:
        """The question of its study: that of pages.toml if it has one, else the recorded one."""
        return self._question or self.study["plan"]["question"]

    @property
    def older(self) -> bool:
        """Whether what decides one of its claims, or a table of a study without any, has changed since it was made."""
        claims = self.study["plan"]["claims"] if self._titled else []
        return any(map(self.is_older, claims)) if claims else bool(self.changes)

    def is_older(self, claim: Mapping[str, Any]) -> bool:
        """Whether a change since it was made is about a claim: about its metric, one of its arms and the claim."""
        return bool(self._changed(claim))

    def is_void(self, claim: Mapping[str, Any]) -> bool:
        """Whether a change shows that its comparison could not test the claim, whatever its verdict."""
        return claim["verdict"] != "not measured" and any(one.get("void") for one in self._changed(claim))

    def _changed(self, claim: Mapping[str, Any]) -> list[dict[str, Any]]:
        about = {"metrics": {claim["metric"]}, "arms": set(claim["arms"]), "claims": names_of(claim)}
        return [one for one in self.changes if all(here & set(one.get(what, here)) for what, here in about.items())]

    def verdict(self, claim: Mapping[str, Any]) -> str:
        """A verdict with its sign and its marks: void, over items, and another one when it was recorded."""
        recorded = f" (when recorded: {claim['recorded']})" if claim["recorded"] else ""
        said = SIGNS[claim["verdict"]] + OVER_ITEMS * _is_over_items(claim) + recorded
        return f"{VOID} (was: {claim['verdict']})" if self.is_void(claim) else said

    @property
    def standing(self) -> str:
        """What its verdicts are, as a mark beside a link."""
        if not self._titled:
            return ""
        early = "looked at early" if self.registered and self.registered.get("looked_at_early") else ""
        unlisted = self.registered and not self.registered["claims"] and self.study["plan"]["claims"]
        own = "its verdicts exploratory" if unlisted else ""
        return "; ".join(one for one in (self.kind, own, early, "older code" if self.older else "") if one)

    def kind_of(self, claim: Mapping[str, Any]) -> str:
        """What a verdict of this record is: its own kind if the registration lists the claim, else exploratory."""
        listed = self.registered["claims"] if self.registered else []
        return self.kind if names_of(claim) & set(listed) else "exploratory"

    def condition(self, name: str) -> str:
        """A condition in words; empty if there is only one."""
        conditions = self.study["plan"]["conditions"]
        return label_of(name, self.study["plan"]) if name and len(conditions) > 1 else ""

    def difference(self, claim: Mapping[str, Any]) -> str:
        """Estimate and interval of a claim, in its unit."""
        decimals = {metric["name"]: metric["decimals"] for metric in self.study["plan"]["metrics"]}
        return _difference(claim, decimals.get(claim["metric"], 2))

    def compared(self, claim: Mapping[str, Any]) -> str:
        """The arms and the metric of a claim, in words."""
        arms = {arm["name"]: arm["label"] for arm in self.study["plan"]["arms"]}
        where = self.condition(claim["condition"])
        pair = " − ".join(arms.get(arm, arm.replace("_", " ")) for arm in claim["arms"])
        if claim.get("against") is not None:
            pair += f" against the constant {claim['against']:g}"
        return f"{pair}, {self.measure(claim)}{f'; {where}' if where else ''}"

    def measure(self, claim: Mapping[str, Any]) -> str:
        """The metric of a claim, in words."""
        labels = {metric["name"]: metric["label"] for metric in self.study["plan"]["metrics"]}
        return labels.get(claim["metric"], claim["metric"])


def names_of(claim: Mapping[str, Any]) -> set[str]:
    """The names by which a claim is listed: its id, and that without its condition."""
    return {claim["id"], claim["id"].removesuffix(f"_{claim['condition']}")}


def settings() -> list[dict[str, Any]]:
    """The settings of results/registered.toml, in the order in which they were registered."""
    return read_toml("registered.toml")["setting"]


def names() -> list[str]:
    """The names of the folders of results/."""
    return sorted(path.name for path in RESULTS.iterdir() if path.is_dir())


@cache
def record(name: str) -> Record:
    """A record, read once."""
    return Record(name)


OVER_ITEMS = " (over items)"
ITEMS = (
    "*Over items*: every seed shows the same, so that the items of these runs decide, and not the spread over seeds."
)
VOID = "void"
VOIDED = "*Void*: it was found out later that the comparison could not test the claim; the record's page says why."
"""What the marks mean."""


def _is_over_items(claim: Mapping[str, Any]) -> bool:
    decided = claim["verdict"] in ("holds", "does not hold")
    return decided and (claim["about"] == "models" or "interval over items" in claim["reason"])


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
    from retarget.study.record import Results

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
    return with_meaning("\n".join(rows)) + (f"\n\nNot measured here: {' '.join(missing)}" if missing else "")


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


def _difference(claim: Mapping[str, Any], places: int) -> str:
    if claim["estimate"] is None:
        return "–"
    text = amount(f"{claim['estimate']:+.{places}f}", claim["unit"])
    if claim["interval"]:
        low, high = claim["interval"]
        if claim["unit"] == "%":  # a share: the studies of today end an interval where no difference can be
            low, high = Metric(name="share", label="share", **SHARE).possible(low, high, claim.get("against"))
        text += f" [{low:+.{places}f}, {high:+.{places}f}]"
    return text


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


@cache
def read_toml(name: str) -> dict[str, Any]:
    """A TOML file of results/, read once."""
    with (RESULTS / name).open("rb") as file:
        return tomllib.load(file)
