"""The folders of results/ as records: what each says of its setting, its claims and its standing.

A folder holds what ``retarget study`` left (``study.json``, ``summary.json``, ``analysis.json``), what
tools/record_commands.py wrote (``commands.json``), what ``python -m benchmarks`` printed (``figures.jsonl``), or the
tallies of ``python -m faults`` (``tally.json``, ``interruptions.json``). Verdicts and intervals follow the
present rules (tools/judge_again.py).
"""

import re
import tomllib
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from judge_again import judge_again
from record_tables import label_of

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
OVER_ITEMS = " (over items)"
VOID = "void"
"""Marks of a verdict."""


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
        """Estimate and interval of a claim, in its unit, and the estimate over all seeds if an earlier look decided."""
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


def _is_over_items(claim: Mapping[str, Any]) -> bool:
    decided = claim["verdict"] in ("holds", "does not hold")
    return decided and (claim["about"] == "models" or "interval over items" in claim["reason"])


def _difference(claim: Mapping[str, Any], places: int) -> str:
    if claim["estimate"] is None:
        return "–"
    text = amount(f"{claim['estimate']:+.{places}f}", claim["unit"])
    if claim["interval"]:
        low, high = claim["interval"]
        if claim["unit"] == "%":  # a share: the studies of today end an interval where no difference can be
            low, high = Metric(name="share", label="share", **SHARE).possible(low, high, claim.get("against"))
        text += f" [{low:+.{places}f}, {high:+.{places}f}]"
    if claim.get("latest") is not None:
        text += f"; over all seeds {amount(format(claim['latest'], f'+.{places}f'), claim['unit'])}"
    return text


@cache
def read_toml(name: str) -> dict[str, Any]:
    """A TOML file of results/, read once."""
    with (RESULTS / name).open("rb") as file:
        return tomllib.load(file)
