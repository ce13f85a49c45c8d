"""Runs made elsewhere: arrange their rows as a study's values and items, paired and without gaps."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, FiniteFloat, ValidationError

from retarget.errors import UserError
from retarget.identity import fingerprint
from retarget.settings import Strict, faults, read_config
from retarget.study.config import Arm, Claim, Condition, Metric, StudyPlan, refuse_unknown
from retarget.study.doubts import doubts
from retarget.study.items import Items, paired_items
from retarget.study.rows import Row

PRESET = "elsewhere"
Place = tuple[str, str, str]
"""Condition, arm, metric."""


class Asked(Strict):
    """A claims file: ``[[claims]]`` with the fields of Claim; optionally ``[[metrics]]``, ``[[arms]]``,
    ``[[conditions]]``, the level and the planned looks.
    """

    title: str = "Runs made elsewhere"
    question: str = "Which of these claims hold?"
    level: float = Field(default=0.95, gt=0.5, lt=1)
    looks: tuple[int, ...] = ()
    look_weights: tuple[FiniteFloat, ...] = ()
    metrics: tuple[Metric, ...] = ()
    arms: tuple[Arm, ...] = ()
    conditions: tuple[Condition, ...] = ()
    claims: tuple[Claim, ...] = Field(min_length=1)


@dataclass
class Elsewhere:
    """Everything that is needed to judge: a plan, its values by seed, and its items; and doubts about the claims.

    ``failed`` has the seeds whose value was left empty, by condition, arm and metric.
    """

    plan: StudyPlan
    values: dict[str, dict[str, dict[str, list[float | None]]]] = field(default_factory=dict)
    items: dict[str, Items] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    failed: dict[Place, list[int]] = field(default_factory=dict)


def read_claims(path: Path) -> Asked:
    """Read a claims file in TOML; claims without an id and metrics without a label get one.

    Raises:
        UserError: it is not TOML, or fields are unknown or not allowed; the message lists every fault and where it is.
    """
    given = read_config(path, "--claims")
    for number, claim in enumerate(_tables(given, "claims"), start=1):
        claim.setdefault("id", f"claim-{number}")
    for name in ("arms", "metrics"):
        for one in _tables(given, name):
            one.setdefault("label", one.get("name", ""))
    for kind in ("arms", "conditions"):
        for one in _tables(given, kind):
            one["label"] = one.get("label") or one.get("name", "")
            one["name"] = slug(str(one.get("name", "")))
    for claim in _tables(given, "claims"):
        if isinstance(claim.get("arms"), list):
            claim["arms"] = [slug(str(arm)) for arm in claim["arms"]]
        if "condition" in claim:
            claim["condition"] = slug(str(claim["condition"]))
        if isinstance(claim.get("conditions"), list):
            claim["conditions"] = [slug(str(one)) for one in claim["conditions"]]
    try:
        return Asked.model_validate(given)
    except ValidationError as error:
        raise UserError(f"{path}: {faults(error)}") from error


def _tables(given: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = given.get(name, [])
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


@lru_cache(maxsize=4096)
def slug(name: str) -> str:
    """Turn any name into one that is allowed for an arm or condition; the original becomes its label.

    >>> slug("meta-llama/Llama-3 8B"), slug("control")
    ('meta-llama-llama-3-8b', 'control')
    """
    plain = re.sub(r"[^a-z0-9_.-]+", "-", name.lower()).strip("-._") or "unnamed"
    return plain if name.isascii() else f"{plain}-{fingerprint(name)[:6]}"


def arrange(rows: Sequence[Row], asked: Asked) -> Elsewhere:
    """Pair the rows by seed and by item for the claims.

    Raises:
        UserError: a value is given twice, or lies outside its metric's bounds, or one arm of a claim lacks a seed or an
            item that the other has.
    """
    table = _Table(_in_percent(rows, {metric.name for metric in asked.metrics if metric.unit == "%"}))
    arms = _labelled(table.arms, asked.arms, Arm)
    conditions = _labelled(table.conditions, asked.conditions, Condition)
    known = {metric.name for metric in asked.metrics}
    ways = {
        claim.metric: {one.direction for one in asked.claims if one.metric == claim.metric} for claim in asked.claims
    }
    better = {metric: {"better": min(way)} for metric, way in ways.items() if len(way) == 1}
    _refuse_unclear_floors(asked, table.metrics)
    others = [
        dict(name=one, label=one, decimals=table.decimals(one)) | better.get(one, {})
        for one in table.metrics if one not in known
    ]  # fmt: skip
    metrics = [*asked.metrics, *map(Metric.model_validate, others)]
    try:
        plan = StudyPlan(
            study="judge", title=asked.title, question=asked.question, preset=PRESET, task="runs made elsewhere",
            conditions=tuple(conditions), arms=tuple(arms), seeds=table.seeds, metrics=tuple(metrics),
            claims=asked.claims, level=asked.level, looks=asked.looks, look_weights=asked.look_weights,
        )  # fmt: skip
    except ValidationError as error:
        raise UserError(faults(error, "the study")) from error
    refuse_unknown(plan, "the claims", [arm.name for arm in plan.arms])
    for metric in plan.metrics:
        table.refuse_outside(metric)
    values = table.values()
    found = Elsewhere(plan, values, doubts=doubts(asked.claims, asked.metrics, values), failed=table.failed())
    for claim in plan.claims:
        for condition in plan.conditions_of(claim):
            table.refuse_gaps(condition, claim.metric, claim.arms)
    about_models = sum(claim.about == "models" for claim in plan.claims)
    resamples = max(2000, math.ceil(5 * about_models / ((1 - plan.level) / 2)))  # five beyond the smallest error
    for claim in plan.claims:
        unit = next((one.unit for one in plan.metrics if one.name == claim.metric), "")
        items = table.items_of(claim, resamples, percent=unit == "%")
        if items is not None:
            found.items[claim.id] = items
    return found


def _in_percent(rows: Sequence[Row], percent: Collection[str]) -> list[Row]:
    """The rows, with 100 for a right item, written as 1, of a metric whose unit is %."""
    largest = dict.fromkeys(percent, 0.0)
    for row in rows:
        if row.metric in largest and row.item is not None:
            odd = row.value not in (0.0, 1.0)  # not only right and wrong items: in percent already, or fractions
            largest[row.metric] = math.inf if odd else max(largest[row.metric], row.value or 0.0)
    right = {metric for metric, value in largest.items() if value == 1.0}
    return [row._replace(value=100.0) if row.metric in right and row.item and row.value else row for row in rows]


def _refuse_unclear_floors(asked: Asked, there: Collection[str]) -> None:
    """Refuse a floor by a metric of which neither its declaration nor the claims tell whether its floor is a ceiling.

    Args:
        there: the metrics that have rows; the name of another one is a typing error.
    """
    floors = [(f"claim {claim.id}", claim.floor[0]) for claim in asked.claims if claim.floor]
    floors += [(f"metric {metric.name}", metric.needs[0]) for metric in asked.metrics if metric.needs]
    floors += [(f"metric {metric.name}", metric.name) for metric in asked.metrics if metric.floor is not None]
    better = {metric.name: metric.better for metric in asked.metrics}
    for whose, name in floors:
        ways = {claim.direction for claim in asked.claims if claim.metric == name}
        if name not in there or better.get(name, "neither") != "neither" or ways == {"higher"}:
            continue
        said = "a claim says that lower is a gain" if ways else "nothing says whether higher or lower is better"
        raise UserError(
            f"{whose} has a floor on {name}, of which {said}, so it could be meant as the least or as the most: "
            f'{"complete its" if name in better else "add"} [[metrics]] with name = "{name}" and better = "higher" for '
            'the least, or better = "lower" for the most'
        )


def _labelled(names: Mapping[str, str], given: Sequence[Any], kind: type[Any]) -> list[Any]:
    """Arms or conditions in the order of the rows, with labels from the claims file."""
    stated = {one.name: one for one in given}
    return [
        stated.get(name) or kind(name=name, label="" if kind is Condition and name == "default" else label)
        for name, label in names.items()
    ]


class _Table:
    """The rows, sorted: values of whole runs by seed, values of items by seed and item."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.arms: dict[str, str] = {}
        self.conditions: dict[str, str] = {}
        self.metrics: dict[str, None] = {}
        self.runs: dict[Place, dict[int, Row]] = {}
        self.items: dict[Place, dict[int, dict[str, Row]]] = {}
        for row in rows:
            place = (self._named(self.conditions, row.condition, row), self._named(self.arms, row.arm, row), row.metric)
            self.metrics.setdefault(row.metric)
            if row.item is None:
                into: dict[Any, Row] = self.runs.setdefault(place, {})
            else:
                into = self.items.setdefault(place, {}).setdefault(row.seed or 0, {})
                if row.value is None:
                    raise UserError(f"{row.where}: item {row.item} of arm {row.arm} has no value for {row.metric}")
            key = row.seed if row.item is None else row.item
            if key in into:
                what = (
                    f"seed {key}" if row.item is None else f"item {key}" + f", seed {row.seed}" * (row.seed is not None)
                )
                raise UserError(
                    f"{row.where}: arm {row.arm}, {what}, metric {row.metric} is given twice, first in "
                    f"{into[key].where}"
                )
            into[key] = row
        for place in self.runs.keys() & self.items.keys():
            raise UserError(
                f"metric {place[2]} of arm {self.arms[place[1]]} has rows of whole runs and of items: keep one kind"
            )
        self.seeds = tuple(sorted({seed for runs in (self.runs, self.items) for one in runs.values() for seed in one}))

    @staticmethod
    def _named(names: dict[str, str], name: str, row: Row) -> str:
        short = slug(name)
        if names.setdefault(short, name) != name:
            raise UserError(f"{row.where}: {name!r} and {names[short]!r} would both become {short}: rename one of them")
        return short

    def values(self) -> dict[str, dict[str, dict[str, list[float | None]]]]:
        """``{condition: {arm: {metric: values}}}``; for items, their mean."""
        found: dict[str, dict[str, dict[str, list[float | None]]]] = {}
        for condition, arm, metric in (*self.runs, *self.items):
            place = (condition, arm, metric)
            runs, items = self.runs.get(place, {}), self.items.get(place, {})
            values = [
                runs[seed].value if seed in runs else _mean(items[seed].values()) if seed in items else None
                for seed in self.seeds
            ]
            found.setdefault(condition, {}).setdefault(arm, {})[metric] = values
        return found

    def failed(self) -> dict[Place, list[int]]:
        """The seeds of whole runs without a value, which are there because a run failed."""
        return {
            place: [seed for seed, row in runs.items() if row.value is None] for place, runs in self.runs.items()
        }  # fmt: skip

    def rows(self, metric: str) -> Iterator[Row]:
        """All rows of a metric."""
        for place, runs in self.runs.items():
            if place[2] == metric:
                yield from runs.values()
        for place, seeds in self.items.items():
            if place[2] == metric:
                for items in seeds.values():
                    yield from items.values()

    def decimals(self, metric: str) -> int:
        """Decimals to show: four for shares and losses, two for larger values."""
        return 4 if max((abs(row.value) for row in self.rows(metric) if row.value is not None), default=0) <= 1 else 2

    def refuse_outside(self, metric: Metric) -> None:
        """Refuse a value that the metric's bounds do not allow, naming it."""
        least, most = metric.bounds or (-math.inf, math.inf)
        for row in self.rows(metric.name):
            if row.value is not None and not least <= row.value <= most:
                raise UserError(
                    f"{row.where}: {metric.name} of arm {row.arm} is {row.value:g}, but its bounds are "
                    f"[{least:g}, {most:g}]: are they in another unit?"
                )

    def refuse_gaps(self, condition: str, metric: str, arms: Sequence[str]) -> None:
        """Refuse a seed or an item that one arm has and the other lacks, naming it."""
        if len(arms) < 2 or not all(arm in self.arms for arm in arms):
            return
        places = [(condition, arm, metric) for arm in arms]
        seeds = [self.runs.get(place, {}).keys() | self.items.get(place, {}).keys() for place in places]
        _refuse_gap(seeds, "seed", places, self)
        by_seed = [self.items.get(place, {}) for place in places]
        for seed in by_seed[0].keys() | by_seed[1].keys():
            _refuse_gap([one.get(seed, {}).keys() for one in by_seed], "item", places, self)

    def _scale(self, values: Iterable[float], metric: str, percent: bool) -> float:
        """The value of a right item: 100 for percentages. The values tell, or those of other arms if all are 0."""
        largest = max(values) or max(row.value or 0.0 for row in self.rows(metric))
        return 100.0 if percent or largest > 1 else 1.0

    def items_of(self, claim: Claim, resamples: int, percent: bool = False) -> Items | None:
        """The items of a claim, averaged over the seeds; None if there are none, or too few.

        ``percent``: the metric's unit is %.

        Raises:
            UserError: it is a claim about models, which its items cannot decide.
        """
        places = [(claim.condition, arm, claim.metric) for arm in claim.arms]
        if claim.across or len(places) < 2 or not all(place in self.items for place in places):
            return None
        sides = [_over_seeds(self.items[place], self.arms[place[1]], place[2]) for place in places]
        names = sorted(sides[0])
        first, *others = (items for place in places for items in self.items[place].values())  # by arm, by seed
        groups = [first[name].group for name in names]
        for name, group in zip(names, groups, strict=True):
            other = next((one for one in others if one[name].group != group), others[0])
            if other[name].group != group or (group is None) != (groups[0] is None):
                raise UserError(
                    f"item {name} of metric {claim.metric} has the group {group or 'none'} in {first[name].where} and "
                    f"{other[name].group or 'none'} in {other[name].where}: give each item one group, or none to all, "
                    "in the rows of every seed"
                )
        try:
            return paired_items(
                [sides[0][name] for name in names], [sides[1][name] for name in names],
                groups if groups[0] is not None else None,
                scale=self._scale([one for side in sides for one in side.values()], claim.metric, percent),
                exact=claim.exact, resamples=resamples,
            )  # fmt: skip
        except UserError as error:
            if claim.about == "models":
                raise UserError(f"claim {claim.id}: {error}") from error
            return None


def _over_seeds(by_seed: Mapping[int, Mapping[str, Row]], arm: str, metric: str) -> dict[str, float]:
    """Each item's mean over the seeds, which must all have the same items."""
    first = next(iter(by_seed.values()))
    for seed, items in by_seed.items():
        other = sorted(first.keys() ^ items.keys())
        if other:
            raise UserError(
                f"arm {arm}, metric {metric}: seed {seed} has other items than seed {next(iter(by_seed))}, such as "
                f"{_some(other)}"
            )
    return {name: _mean(items[name] for items in by_seed.values()) for name in first}


def _mean(rows: Iterable[Row]) -> float:
    values = [row.value for row in rows if row.value is not None]
    return math.fsum(values) / len(values)


def _refuse_gap(has: Sequence[Iterable[Any]], what: str, places: Sequence[Place], table: _Table) -> None:
    sides = [set(one) for one in has]
    for one, other in ((0, 1), (1, 0)):
        lacking = sorted(sides[one] - sides[other])
        if lacking:
            condition, arm, metric = places[other]
            where = f" of {table.conditions.get(condition, condition)}" if condition != "default" else ""
            raise UserError(
                f"arm {table.arms[arm]} lacks {what} {_some(lacking)} of metric {metric}{where}, which arm "
                f"{table.arms[places[one][1]]} has, but pairs need both: add the missing rows, with an empty value for "
                "a run that failed"
            )


def _some(names: Sequence[Any]) -> str:
    shown = ", ".join(map(str, names[:3]))
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
