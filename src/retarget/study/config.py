"""What a study is, as data: arms, conditions, seeds, metrics and claims. Free of torch.

A method describes its study with these models (``retarget/METHOD/study.py``); the runner, the statistics and the
page read them and know no method.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

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
    """

    name: str
    label: str
    unit: str = ""
    better: Literal["higher", "lower", "neither"] = "neither"
    decimals: int = 2
    description: str = ""
    optional: bool = False
    deterministic: bool = False


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

    @model_validator(mode="after")
    def _compares_with_something(self) -> Self:
        if (len(self.arms) == 1) != (self.against is not None):
            raise ValueError(f"claim {self.id!r} needs two arms, or one arm and a constant ``against``")
        if len(set(self.arms)) != len(self.arms):
            raise ValueError(f"claim {self.id!r} compares {self.arms[0]} with itself")
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

    ``task`` is the import path ``module:function`` of ``function(run: Run) -> dict[str, float]``, the final metrics
    of one run; ``prepare`` that of ``function(plan: StudyPlan) -> None``, called once before the first run to refuse
    data that cannot be used, and ``check`` that of the part of it that is cheap, for a dry run; ``analysis`` that of
    ``function(results: Results) -> Analysis``, called once for the summary and the page. ``settings`` are merged: the
    study's, then the condition's, then the arm's. Those that ``unmeasured`` names change no result (what is kept, where
    data lies); they are no part of a run's identity.
    ``settings_model`` describes them to a reader, and ``others`` are settings that ask for another study; neither is
    recorded, nor is ``check``.
    """

    study: str
    title: str
    question: str
    preset: str
    task: str
    prepare: str | None = None
    check: str | None = Field(default=None, exclude=True)
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
    threads: int = Field(default=1, ge=1)
    minutes_per_run: float | None = None

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

    def run_settings(self, condition: Condition, arm: Arm) -> dict[str, Any]:
        """Settings of one run: study, then condition, then arm."""
        return {**self.settings, **condition.settings, **arm.settings}

    def run_hash(self, condition: Condition, arm: Arm, seed: int) -> str:
        """Identity of one run: a finished run with this hash is never repeated, one with another is refused."""
        settings = {k: v for k, v in self.run_settings(condition, arm).items() if k not in self.unmeasured}
        return fingerprint([self.study, self.task, settings, seed, self.threads])

    def claims_hash(self) -> str:
        """Hash of the claims with their margins and effects, and of the level: fixed before the first run."""
        return fingerprint([self.level, [claim.model_dump(mode="json") for claim in self.claims]])


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
