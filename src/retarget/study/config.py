"""What a study is, as data: arms, conditions, seeds, metrics and claims. Free of torch.

A method describes its study with these models (``retarget/METHOD/study.py``); the runner, the statistics and the
page read them and know no method.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, Self

from pydantic import Field, FiniteFloat, ValidationError, model_validator

from retarget.errors import UserError
from retarget.identity import fingerprint
from retarget.settings import Strict


class Metric(Strict):
    """A number that every run reports.

    Attributes:
        optional: a run may leave it out or report a value that is not finite; it is then missing. For any other
            metric a value that is not finite fails the run.
        deterministic: it does not depend on the seed (bytes, parameters, steps). Its differences are exact and are
            judged as they are; without this, equal differences on every seed decide nothing.
        floor: what a control must reach on average (where lower is better, must not exceed) so that anything works
            here, such as better than chance: below it a comparison with that control is no test of any claim. A name
            stands for another metric of the same control, where the data decide what chance is. A claim may set its
            own floor.
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


class Arm(Strict):
    """One way to train: a name and the settings that make it different.

    ``needs`` names arms whose run of the same seed and condition must be complete first (a pre-training, say);
    the task finds it with ``Run.other(name)``.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    label: str
    settings: dict[str, Any] = Field(default_factory=dict)
    needs: tuple[str, ...] = ()


class Condition(Strict):
    """One setting of the world (clean or noisy labels, say) under which every arm runs."""

    name: str = Field(default="default", pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    label: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)


class Claim(Strict):
    """A sentence of an abstract that a study can decide, fixed before the run.

    Attributes:
        arms: (treated, control), or (treated,) together with ``against``, a constant to compare with. An arm that
            the study does not run makes the claim *not measured*.
        direction: whether a good ``treated - control`` is positive (``higher``) or negative (``lower``).
        smallest_effect: size of the smallest difference that matters, in the metric's unit, > 0.
        margin: given for a non-inferiority claim: how much worse the treated arm may be, ≥ 0.
        shown: a second metric that is shown beside and decides nothing (the raw one beside a rescaled one).
        family: primary claims and secondary claims are two families; each keeps the study's error rates by itself.
        about: the *method*, decided over seeds, or these *models* on this data, decided over items.
        floor: ``(metric, value)`` that the control (or the only arm) must reach on average, such as better than chance;
            below it nothing works, and the claim is *not measured*: it would be no test of it. For a metric of which
            lower is better it is a ceiling.
        across: one claim over several conditions (data sets): it holds on *every* one, on *average* over these, or on
            *new* ones, of which these are a sample. ``condition`` is then left out.
        conditions: those that ``across`` covers; all of the study's by default.
        exact: binary items are tested by the exact McNemar test in place of its mid-p variant.
    """

    id: str
    sentence: str
    metric: str
    direction: Literal["higher", "lower"]
    arms: tuple[str, ...] = Field(min_length=1, max_length=2)
    condition: str = "default"
    smallest_effect: float = Field(gt=0)
    margin: float | None = Field(default=None, ge=0)
    against: float | None = None
    shown: str | None = None
    family: Literal["primary", "secondary"] = "primary"
    about: Literal["method", "models"] = "method"
    floor: tuple[str, FiniteFloat] | None = None
    across: Literal["every", "average", "new"] | None = None
    conditions: tuple[str, ...] = ()
    exact: bool = False

    def stated(self) -> dict[str, Any]:
        """The fields that were given, as JSON values: what the claims' hash is made of."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @model_validator(mode="after")
    def _compares_with_something(self) -> Self:
        if (len(self.arms) == 1) != (self.against is not None):
            raise ValueError(f"claim {self.id!r} needs two arms, or one arm and a constant ``against``")
        if len(set(self.arms)) != len(self.arms):
            raise ValueError(f"claim {self.id!r} compares {self.arms[0]} with itself")
        return self

    @model_validator(mode="after")
    def _has_one_scope(self) -> Self:
        if self.across and (self.condition != "default" or len(self.conditions) == 1):
            raise ValueError(f"claim {self.id!r} is across conditions: leave out ``condition``, or name two or more")
        if self.conditions and not self.across:
            raise ValueError(f"claim {self.id!r} names several conditions: say ``across`` what it is about")
        if self.across and self.about == "models":
            raise ValueError(f"claim {self.id!r} is about models: it is decided on the items of one condition")
        return self


def claims_under(condition: str = "default", suffix: str = "") -> Callable[..., Claim]:
    """Shorthand for the claims of one condition: ``claim(id, sentence, metric, direction, smallest_effect, arms)``.

    Args:
        condition: the condition that the claims are decided under.
        suffix: put behind every id, where a study has the same claims under several conditions.
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
    """A resolved study: everything that decides its numbers.

    ``task`` is the import path ``module:function`` of ``function(run: Run) -> dict[str, float]``, the final metrics of
    one run (a file that ``retarget study FILE.py`` reads has it by the name ``run``); ``prepare`` that of
    ``function(plan: StudyPlan) -> None``, called once before the first run to refuse data that cannot be used, and
    ``check`` that of a function of the same form which refuses what is cheap to know, for a dry run; ``remark`` that of
    ``function(arm: str, metrics: dict[str, float]) -> str | None``, asked once after the first finished run of each arm
    for a sentence that the user should read before waiting for the rest; ``analysis`` that of ``function(results:
    Results) -> Analysis``, called once for the summary and the page. ``settings`` are merged: the study's, then the
    condition's, then the arm's. Those that ``unmeasured`` names change no result (what is kept, how many loader
    processes); they are no part of a run's identity. ``settings_model`` describes them to a reader, and ``others`` are
    settings that ask for another study.

    ``task_name`` is the task's name in a run's identity, so that code can move; it changes when the same settings no
    longer give the same numbers. ``former_tasks`` are import paths under which older records know the same task.
    ``data`` are the files and folders that the settings name: their bytes belong to a run's identity, as do those of
    the sources of a task outside this package and of ``own_parts``, import paths ``module:name`` that the settings
    name.

    ``packages`` are optional packages without which no run can be done, each with the extra that installs it: a dry run
    names a missing one, and a study refuses before it writes anything.

    ``looks`` are the numbers of seeds at which verdicts are given, fixed before the first run, and ``look_weights`` the
    share of the error that each may spend (.2, .3, .5 for three looks, else equal shares).

    ``references`` are BibTeX entries of what the study is about, for the page.
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
    settings: dict[str, Any] = Field(default_factory=dict)
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
        return self

    @model_validator(mode="after")
    def _looks_are_a_plan(self) -> Self:
        if list(self.looks) != sorted(set(self.looks)) or any(look < 2 for look in self.looks):
            raise ValueError(f"looks are growing numbers of seeds from 2 on, not {', '.join(map(str, self.looks))}")
        if self.look_weights and len(self.look_weights) != len(self.looks):
            raise ValueError(f"{len(self.looks)} looks have {len(self.look_weights)} weights: give one for each")
        if self.look_weights and abs(sum(self.look_weights) - 1) > 1e-9:
            raise ValueError(f"the weights of the looks add up to 1, not to {sum(self.look_weights):g}")
        if any(weight <= 0 for weight in self.look_weights):
            raise ValueError("the weight of a look is a share of the error above 0")
        return self

    @property
    def planned_looks(self) -> tuple[tuple[int, float], ...]:
        """``(number of seeds, share of the error)`` of each planned look."""
        equal = (1 / len(self.looks),) * len(self.looks) if self.looks else ()
        weights = self.look_weights or ((0.2, 0.3, 0.5) if len(self.looks) == 3 else equal)
        return tuple(zip(self.looks, weights, strict=True))

    def with_looks(self, looks: Sequence[int], weights: Sequence[float] = ()) -> Self:
        """The same study, judged at these numbers of seeds.

        Raises:
            UserError: they do not grow, or the weights do not fit them.
        """
        planned = self.model_copy(update={"looks": tuple(looks), "look_weights": tuple(weights)})
        try:
            return type(self).model_validate(planned)
        except ValidationError as error:
            raise UserError("; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors())) from error

    def run_settings(self, condition: Condition, arm: Arm) -> dict[str, Any]:
        """Settings of one run: study, then condition, then arm."""
        return {**self.settings, **condition.settings, **arm.settings}

    def identity(self, condition: Condition, arm: Arm, seed: int) -> dict[str, Any]:
        """What decides a run's numbers, its data apart."""
        settings = {k: v for k, v in self.run_settings(condition, arm).items() if k not in self.unmeasured}
        return {
            "study": self.study,
            "task": self.task_name or self.task,
            "settings": settings,
            "seed": seed,
            "threads": self.threads,
        }

    def run_hash(self, condition: Condition, arm: Arm, seed: int) -> str:
        """Fingerprint of :meth:`identity`: names a run in messages and in status.json."""
        return fingerprint(self.identity(condition, arm, seed))

    def judged_at(self) -> str:
        """The level and the planned looks, in words."""
        looks = ", ".join(f"{count} ({weight:g})" for count, weight in self.planned_looks)
        return f"{self.level}" + (f" with looks at {looks} seeds" if looks else "")

    def claims_hash(self) -> str:
        """Hash of the claims with their margins and effects, of the level and of planned looks: fixed before a run.

        Fields that stand at their default are left out, so that a field that is added later changes no hash.
        """
        looks = [[list(look) for look in self.planned_looks]] if self.looks else []
        return fingerprint([self.level, [claim.stated() for claim in self.claims], *looks])


def refuse_decided(given: Collection[str], arms: Sequence[Arm], conditions: Sequence[Condition]) -> None:
    """Raise for a setting that the study's own arms or conditions decide: they would override it, or change what they
    are called after.

    Args:
        given: names of the settings that the user gave.
        arms, conditions: all that the study knows.
    """
    for name in sorted(given):
        deciding = [f"arm {arm.name}" for arm in arms if name in arm.settings]
        deciding += [f"condition {one.name}" for one in conditions if name in one.settings]
        deciding = list(dict.fromkeys(deciding))
        if deciding:
            raise UserError(
                f"{name} is decided by {', '.join(deciding[:3])}{' and others' * (len(deciding) > 3)} of this study, "
                "so it cannot be set for all"
            )


def refuse_unknown(plan: StudyPlan, where: str, arms: Sequence[str] | None) -> None:
    """Raise for a claim whose metric, condition or arm the study does not have: a slip, not a thing to be measured.

    Args:
        where: names the place of the claims in the error.
        arms: all arms that the study knows; None leaves them unchecked.
    """
    metrics, conditions = [one.name for one in plan.metrics], [one.name for one in plan.conditions]
    for claim in plan.claims:
        named: list[tuple[str, Collection[str], Sequence[str]]] = [
            ("metric", [claim.metric, *([claim.shown] if claim.shown else []), *(claim.floor or ())[:1]], metrics),
            ("condition", claim.conditions or ([] if claim.across else [claim.condition]), conditions),
        ]
        for what, names, known in named + ([("arm", claim.arms, arms)] if arms is not None else []):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise UserError(
                    f"{where}: claim {claim.id} names the {what} {unknown[0]}, and the study has {', '.join(known)}"
                )


def choose_arms(known: Sequence[Arm], wanted: Sequence[str] | None) -> tuple[Arm, ...]:
    """The arms of these names, in the study's own order; all of them for None.

    Raises:
        UserError: an arm that the study does not have.
    """
    missing = sorted(set(wanted or ()) - {arm.name for arm in known})
    if missing:
        names = ", ".join(arm.name for arm in known)
        raise UserError(f"no arm {', '.join(missing)} in this study: choose {names}")
    return tuple(arm for arm in known if wanted is None or arm.name in wanted)
