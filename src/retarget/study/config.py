"""A study as data: arms, conditions, seeds, metrics and claims. Does not import torch.

A method describes its study with these models (``retarget/METHOD/study.py``). The runner, the statistics and the page
read only them, and so know no method.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, FiniteFloat, ValidationError, model_validator
from pydantic_core import to_jsonable_python

from retarget.errors import UserError
from retarget.identity import fingerprint
from retarget.settings import Strict, faults


def json_table(value: Any) -> Any:
    """Settings as JSON gives them back: tuples become lists and keys texts, so that a stored study equals its plan.

    Raises:
        ValueError: a value is no JSON value.
    """
    wanted = "settings must be numbers, texts, lists and tables of these"
    for name, one in _not_finite(value):
        raise ValueError(f"{wanted}: {name} = {one} is no finite number; a text needs quotes: '{name}=\"{one}\"'")
    try:
        return json.loads(json.dumps(to_jsonable_python(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{wanted}: {error}") from error


def _not_finite(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a table that are not finite, each with its key, also inside tables and lists."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _not_finite(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _not_finite(one, name)
    elif isinstance(value, float) and not math.isfinite(value):
        yield name, value


Settings = Annotated[dict[str, Any], BeforeValidator(json_table)]


class Metric(Strict):
    """A number that every run reports.

    Attributes:
        optional: a run may leave it out or report a value that is not finite; it is then missing. For any other
            metric a value that is not finite fails the run.
        deterministic: it does not depend on the seed (bytes, parameters, steps), so its differences are exact, apart
            from rounding, and judged without a test. For other metrics, equal differences on every seed decide nothing.
        floor: the least that a control must reach on average (the most, if lower is better) for a comparison with it to
            mean anything, such as better than chance; below it no claim is tested. The name of another metric takes
            that metric's value for the same control, if chance depends on the data. A claim may set its own floor.
        floor_for: whether other arms must reach the floor, too, for claims on other metrics: a model that has learnt
            nothing may be well calibrated. By default only the control must.
        bounds: the smallest and the largest value that it can take; a run with another value fails. An interval ends
            where no difference can be; that changes no verdict. A share that is at one of them on every seed is
            perfect: a claim that compares it with a constant is then tested over its items.
        needs: ``(metric, value)`` that an arm must reach on average, where it reports that metric, for a comparison of
            this one with a constant to mean anything: a model that solves nothing shows no missing signal.
    """

    name: str
    label: str
    unit: str = ""
    better: Literal["higher", "lower", "neither"] = "neither"
    decimals: int = 2
    description: str = ""
    optional: bool = False
    deterministic: bool = False
    floor: FiniteFloat | str | None = None
    floor_for: Literal["control", "every arm"] = "control"
    bounds: tuple[FiniteFloat, FiniteFloat] | None = None
    needs: tuple[str, FiniteFloat] | None = None

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.bounds and self.bounds[0] >= self.bounds[1]:
            raise ValueError(f"the bounds of metric {self.name!r} are {list(self.bounds)}: give the smaller one first")
        return self

    def possible(self, low: float, high: float, against: float | None = None) -> tuple[float, float]:
        """An interval of differences between two arms, or to ``against``, without those that the bounds rule out."""
        if self.bounds is None:
            return low, high
        least, most = self.bounds
        ends = (least - most, most - least) if against is None else (least - against, most - against)
        return max(low, ends[0]), min(high, ends[1])


SHARE: dict[str, Any] = {"unit": "%", "bounds": (0.0, 100.0)}
"""Settings of a metric that is a share in per cent."""


class Arm(Strict):
    """One way to train: a name, and the settings by which it differs.

    ``needs`` names arms whose run with the same seed and condition must be complete first (a pre-training, say); the
    task finds that run with ``Run.other(name)``.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    label: str
    settings: Settings = Field(default_factory=dict)
    needs: tuple[str, ...] = ()


class Condition(Strict):
    """Settings that all arms share in one part of a study (clean or noisy labels, say)."""

    name: str = Field(default="default", pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    label: str = ""
    settings: Settings = Field(default_factory=dict)


class Claim(Strict):
    """A sentence that a study can decide, fixed before the first run.

    Attributes:
        arms: (treated, control); or (treated,) together with ``against``, a constant to compare with. The claim is *not
            measured* if the study does not run an arm.
        direction: whether a good ``treated - control`` is positive (``higher``) or negative (``lower``).
        smallest_effect: the smallest difference that matters, in the metric's unit, > 0.
        margin: for a non-inferiority claim, how much worse the treated arm may be, ≥ 0.
        shown: a second metric that is shown beside but decides nothing (the raw one beside a rescaled one, say).
        family: primary and secondary claims are two families; each has the study's error rates by itself.
        about: ``method``, decided over seeds; or ``models``, only these models on this data, decided over items.
        floor: ``(metric, value)`` that the control (or the only arm) must reach on average, such as better than chance,
            for the claim to be tested at all; below it the claim is *not measured*. If the claim is on another metric,
            every arm must reach it. For a metric of which lower is better it is a ceiling.
        floor_arm: the one arm that must reach ``floor`` instead, also if the claim does not compare it: widening a clip
            is no change if the training that it is a change of clips nothing.
        across: makes one claim over several conditions (datasets): it holds on ``every`` one, on ``average`` over them,
            or on ``new`` ones, of which these are a sample. Then leave ``condition`` out.
        conditions: the conditions that ``across`` covers; by default all of the study's.
        exact: test binary items by the exact McNemar test instead of its mid-p variant.
    """

    id: str
    sentence: str
    metric: str
    direction: Literal["higher", "lower"]
    arms: tuple[str, ...] = Field(min_length=1, max_length=2)
    condition: str = "default"
    smallest_effect: FiniteFloat = Field(gt=0)
    margin: FiniteFloat | None = Field(default=None, ge=0)
    against: FiniteFloat | None = None
    shown: str | None = None
    family: Literal["primary", "secondary"] = "primary"
    about: Literal["method", "models"] = "method"
    floor: tuple[str, FiniteFloat] | None = None
    floor_arm: str | None = None
    across: Literal["every", "average", "new"] | None = None
    conditions: tuple[str, ...] = ()
    exact: bool = False

    def stated(self) -> dict[str, Any]:
        """The fields that were given, as JSON values, from which the claims' hash is computed."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @model_validator(mode="after")
    def _compares_with_something(self) -> Self:
        if (len(self.arms) == 1) != (self.against is not None):
            raise ValueError(f"claim {self.id!r} needs two arms, or one arm and a constant ``against``")
        if len(set(self.arms)) != len(self.arms):
            raise ValueError(f"claim {self.id!r} compares {self.arms[0]} with itself")
        return self

    @model_validator(mode="after")
    def _floor_of_an_arm(self) -> Self:
        if self.floor_arm and self.floor is None:
            raise ValueError(f"claim {self.id!r} names floor_arm {self.floor_arm!r}, but has no floor for it")
        return self

    @model_validator(mode="after")
    def _has_one_scope(self) -> Self:
        if self.across and (self.condition != "default" or len(self.conditions) == 1):
            raise ValueError(f"claim {self.id!r} is across conditions: leave out condition, and name two or more")
        if self.conditions and not self.across:
            raise ValueError(f"claim {self.id!r} names several conditions: set across to every, average or new")
        if self.across and self.about == "models":
            raise ValueError(f"claim {self.id!r} is about models, decided on the items of one condition: remove across")
        return self


def claims_under(condition: str = "default", suffix: str = "") -> Callable[..., Claim]:
    """A shorthand for claims under one condition: ``claim(id, sentence, metric, direction, smallest_effect, arms)``.

    Args:
        condition: the condition under which the claims are decided.
        suffix: appended to every id, for a study with the same claims under several conditions.
    """

    def claim(
        name: str, sentence: str, metric: str, direction: str, effect: float, arms: Sequence[str], **more: Any
    ) -> Claim:
        return Claim.model_validate(
            dict(id=name + suffix, sentence=sentence, metric=metric, direction=direction, smallest_effect=effect,
                 arms=arms, condition=condition, **more)
        )  # fmt: skip

    return claim


class StudyPlan(Strict):
    """A resolved study: everything that its numbers depend on.

    Functions are given by import path, ``module:function``:

    - ``task``: ``function(run: Run) -> dict[str, float]`` does one run and returns its final metrics (in a file for
      ``retarget study FILE.py`` it is the function named ``run``).
    - ``prepare``: ``function(plan: StudyPlan) -> None`` is called once before the first run, to refuse unusable data.
    - ``check``: the same, for a dry run: makes only cheap checks.
    - ``remark``: ``function(arm: str, metrics: dict[str, float]) -> str | None`` is called after the first finished run
      of each arm; it returns a sentence that the user should read before waiting for the other runs.
    - ``analysis``: ``function(results: Results) -> Analysis`` is called once, for the summary and the page.

    ``settings`` are merged: the study's, then the condition's, then the arm's. Those named in ``unmeasured`` change no
    result (what to keep, number of loader processes) and do not belong to a run's identity. ``settings_model``
    describes them to a reader; ``others`` are settings that select another study.

    ``task_name`` names the task in a run's identity, so that code can move; it changes when the same settings no longer
    give the same numbers. ``former_tasks`` are the task's import paths in older records. ``data`` are the files and
    folders that the settings name. Their bytes belong to a run's identity, as do the sources of a task outside this
    package and of ``own_parts``, import paths ``module:name`` that the settings name.

    ``packages`` are the optional packages that every run needs, each with the extra that installs it: a dry run names a
    missing one, and a study refuses to start before it writes anything.

    ``looks`` are the numbers of seeds at which verdicts are given, fixed before the first run; ``look_weights`` are the
    shares of the error that each may spend (.2, .3, .5 for three looks, else equal shares).

    ``references`` are BibTeX entries for the page.
    """

    study: str
    title: str
    question: str
    preset: str = "demo"
    task: str = ""
    task_name: str | None = None
    former_tasks: tuple[str, ...] = Field(default=(), exclude=True)
    data: tuple[str, ...] = Field(default=(), exclude=True)
    own_parts: tuple[str, ...] = Field(default=(), exclude=True)
    packages: tuple[tuple[str, str], ...] = Field(default=(), exclude=True)
    prepare: str | None = None
    check: str | None = Field(default=None, exclude=True)
    remark: str | None = Field(default=None, exclude=True)
    analysis: str | None = None
    settings: Settings = Field(default_factory=dict)
    settings_model: type[Strict] | None = Field(default=None, exclude=True)
    others: tuple[str, ...] = Field(default=(), exclude=True)
    unmeasured: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = (Condition(),)
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    metrics: tuple[Metric, ...]
    claims: tuple[Claim, ...] = ()
    level: float = Field(default=0.95, gt=0.5, lt=1)
    looks: tuple[int, ...] = ()
    look_weights: tuple[FiniteFloat, ...] = ()
    threads: int = Field(default=1, ge=1)
    minutes_per_run: float | None = None
    references: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for what, names in (
            ("arms", [arm.name for arm in self.arms]),
            ("conditions", [condition.name for condition in self.conditions]),
            ("seeds", [str(seed) for seed in self.seeds]),
            ("metrics", [metric.name for metric in self.metrics]),
            ("claims", [claim.id for claim in self.claims]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} listed twice: {', '.join(twice)}")
        for claim in self.claims:
            if len(set(claim.conditions)) < len(claim.conditions):
                names = ", ".join(claim.conditions)
                raise ValueError(f"claim {claim.id!r} is across conditions of which one is listed twice: {names}")
        return self

    @model_validator(mode="after")
    def _looks_are_a_plan(self) -> Self:
        if list(self.looks) != sorted(set(self.looks)) or any(look < 2 for look in self.looks):
            raise ValueError(f"looks must be rising numbers of seeds from 2 on, not {', '.join(map(str, self.looks))}")
        if self.look_weights and len(self.look_weights) != len(self.looks):
            raise ValueError(f"{len(self.looks)} looks have {len(self.look_weights)} weights: give one per look")
        if self.look_weights and abs(sum(self.look_weights) - 1) > 1e-9:
            raise ValueError(f"the weights of the looks must add up to 1, not to {sum(self.look_weights):g}")
        if any(not weight > 0 for weight in self.look_weights):  # also NaN
            raise ValueError("the weight of a look must be above 0: it is a share of the error")
        return self

    @model_validator(mode="after")
    def _effects_are_possible(self) -> Self:
        ranges = {one.name: one.bounds[1] - one.bounds[0] for one in self.metrics if one.bounds}
        for claim in self.claims:
            for what, value in (("smallest_effect", claim.smallest_effect), ("margin", claim.margin)):
                if value is not None and value >= ranges.get(claim.metric, math.inf):
                    raise ValueError(
                        f"claim {claim.id}: {what} = {value:g}, but no difference of {claim.metric} can be larger than "
                        f"{ranges[claim.metric]:g}: give it in the unit of the metric"
                    )
        return self

    def conditions_of(self, claim: Claim) -> tuple[str, ...]:
        """The conditions that a claim is about."""
        if not claim.across:
            return (claim.condition,)
        return claim.conditions or tuple(one.name for one in self.conditions)

    @property
    def planned_looks(self) -> tuple[tuple[int, float], ...]:
        """``(number of seeds, share of the error)`` of each planned look."""
        equal = (1 / len(self.looks),) * len(self.looks) if self.looks else ()
        weights = self.look_weights or ((0.2, 0.3, 0.5) if len(self.looks) == 3 else equal)
        return tuple(zip(self.looks, weights, strict=True))

    def with_looks(self, looks: Sequence[int], weights: Sequence[float] = ()) -> Self:
        """The same study, judged at these numbers of seeds.

        Raises:
            UserError: they do not increase, or the weights do not match them.
        """
        planned = self.model_copy(update={"looks": tuple(looks), "look_weights": tuple(weights)})
        try:
            return type(self).model_validate(planned)
        except ValidationError as error:
            raise UserError(faults(error, "the plan")) from error

    def run_settings(self, condition: Condition, arm: Arm) -> dict[str, Any]:
        """The settings of one run: the study's, then the condition's, then the arm's."""
        return {**self.settings, **condition.settings, **arm.settings}

    def identity(self, condition: Condition, arm: Arm, seed: int) -> dict[str, Any]:
        """What a run's numbers depend on, apart from its data."""
        settings = {k: v for k, v in self.run_settings(condition, arm).items() if k not in self.unmeasured}
        return {
            "study": self.study,
            "task": self.task_name or self.task,
            "settings": settings,
            "seed": seed,
            "threads": self.threads,
        }

    def run_hash(self, condition: Condition, arm: Arm, seed: int) -> str:
        """The fingerprint of :meth:`identity`, which names a run in messages and in status.json."""
        return fingerprint(self.identity(condition, arm, seed))

    def judged_at(self) -> str:
        """The level and the planned looks, in words."""
        looks = ", ".join(f"{count} ({weight:g})" for count, weight in self.planned_looks)
        return f"{self.level}" + (f" with looks at {looks} seeds" if looks else "")

    def rules(self) -> dict[str, dict[str, Any]]:
        """What each metric says about how claims on it are judged; metrics that say nothing are left out."""
        floors = {metric.floor for metric in self.metrics} | {claim.floor[0] for claim in self.claims if claim.floor}
        rules: dict[str, dict[str, Any]] = {}
        for metric in self.metrics:
            fields = {"deterministic", "floor", "floor_for", "needs", "bounds"}
            if metric.floor is not None or metric.name in floors:
                fields.add("better")  # whether a floor is one or a ceiling
            stated = metric.model_dump(mode="json", include=fields, exclude_defaults=True)
            rules |= {metric.name: stated} if stated else {}
        return rules

    def claims_hash(self) -> str:
        """Hash of the claims with margins and effects, the level and the planned looks; fixed before the first run.

        Fields at their default are left out, so that a field added in a later version does not change the hash.
        """
        looks = [[list(look) for look in self.planned_looks]] if self.looks else []
        return fingerprint([self.level, [claim.stated() for claim in self.claims], *looks])


def refuse_decided(given: Collection[str], arms: Sequence[Arm], conditions: Sequence[Condition]) -> None:
    """Refuse a setting that the study's arms or conditions set themselves: they would override it, or contradict their
    names.

    Args:
        given: names of the settings that the user gave.
        arms, conditions: all arms and conditions of the study.
    """
    for name in sorted(given):
        deciding = [f"arm {arm.name}" for arm in arms if name in arm.settings]
        deciding += [f"condition {one.name}" for one in conditions if name in one.settings]
        deciding = list(dict.fromkeys(deciding))
        if deciding:
            raise UserError(
                f"{name} is set by {', '.join(deciding[:3])}{' and others' * (len(deciding) > 3)} of this study, so it "
                "cannot be set for all"
            )


def refuse_unknown(plan: StudyPlan, where: str, arms: Sequence[str] | None) -> None:
    """Refuse a claim, metric or arm that names a metric, condition or arm that the study does not have: a typing error.

    Args:
        where: what the message calls the source of the claims.
        arms: all arms of the study; None does not check them.
    """
    metrics, conditions = [one.name for one in plan.metrics], [one.name for one in plan.conditions]
    for metric in plan.metrics:
        for other in [*([metric.floor] if isinstance(metric.floor, str) else []), *(metric.needs or ())[:1]]:
            if other not in metrics:
                known = ", ".join(metrics)
                raise UserError(f"{where}: metric {metric.name} names the metric {other}, but the study has {known}")
    every = [arm.name for arm in plan.arms] if arms is None else arms
    for arm in plan.arms:
        lacking = [need for need in arm.needs if need not in every]
        if arms is not None and lacking:
            raise UserError(f"{where}: arm {arm.name} needs the arm {lacking[0]}, but the study has {', '.join(every)}")
    for claim in plan.claims:
        named: list[tuple[str, Collection[str], Sequence[str]]] = [
            ("metric", [claim.metric, *([claim.shown] if claim.shown else []), *(claim.floor or ())[:1]], metrics),
            ("condition", claim.conditions or ([] if claim.across else [claim.condition]), conditions),
        ]
        asked = [*claim.arms, *([claim.floor_arm] if claim.floor_arm else [])]
        for what, names, known in named + ([("arm", asked, arms)] if arms is not None else []):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise UserError(
                    f"{where}: claim {claim.id} names the {what} {unknown[0]}, but the study has {', '.join(known)}"
                )


def choose_arms(known: Sequence[Arm], wanted: Sequence[str] | None) -> tuple[Arm, ...]:
    """The arms of these names, in the study's order; all arms for None.

    Raises:
        UserError: the study does not have one of the arms.
    """
    missing = sorted(set(wanted or ()) - {arm.name for arm in known})
    if missing:
        names = ", ".join(arm.name for arm in known)
        raise UserError(f"no arm {', '.join(missing)} in this study: choose {names}")
    return tuple(arm for arm in known if wanted is None or arm.name in wanted)
