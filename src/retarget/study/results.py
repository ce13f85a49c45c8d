"""The models of summary.json, which the study writes, and the page and other programs read."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Verdict = Literal["holds", "does not hold", "not enough evidence", "not measured"]


class Tolerant(BaseModel):
    """A model that ignores unknown keys: other programs and later versions may add some."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Spread(Tolerant):
    """One metric of one arm over the seeds; ``values`` align with the seeds, None if a run failed."""

    mean: float | None = None
    sd: float | None = None
    values: list[float | None] = Field(default_factory=list)


class Shown(Tolerant):
    """A second metric's difference, which decides nothing.

    Attributes:
        value: the estimate is the arm's own value: the claim compares the arm with a constant of another metric.
        n: number of seeds that it is over; None in results of earlier versions.
    """

    metric: str
    n: int | None = None
    value: bool = False
    estimate: float | None = None
    interval: tuple[float, float] | None = None


class ClaimResult(Tolerant):
    """One judged claim; values that were not measured are None.

    Attributes:
        condition: empty for a claim ``across`` conditions.
        estimate: treated - control in the metric's unit, sign not turned; with one arm, treated - ``against``.
        interval: the bounds of the two tests that decide, each at its own error; its level is ``level``.
        n: number of seeds that both arms have; of items, for a claim about models; of sets, for one about new sets.
        p_holds: one-sided p-value of "the difference is not good" (for non-inferiority: "is outside the margin").
        p_fails: one-sided p-value of "the difference is at least the smallest effect" ("is within the margin").
        p_holds_adjusted, p_fails_adjusted: adjusted by Holm's procedure, each within its chain of the claim's family.
        seeds_needed: number of seeds that would decide with 80 % power, if mean and spread stay the same.
        below_smallest_effect: the claim holds, but the difference is significantly below the smallest effect.
        reason: why there is no verdict, or what decided other than the spread over seeds.
        look: the planned look, as its number of seeds, that these figures are from.
        latest: the estimate over all seeds, if that look was an earlier one; it decides nothing.
        item_interval: an interval over items that did not decide.
    """

    id: str
    sentence: str
    condition: str
    arms: tuple[str, ...]
    metric: str
    direction: Literal["higher", "lower"]
    margin: float | None = None
    smallest_effect: float
    against: float | None = None
    unit: str = ""
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    level: float | None = None
    n: int = 0
    verdict: Verdict
    p_holds: float | None = None
    p_fails: float | None = None
    p_holds_adjusted: float | None = None
    p_fails_adjusted: float | None = None
    seeds_needed: int | None = None
    below_smallest_effect: bool = False
    reason: str = ""
    family: Literal["primary", "secondary"] = "primary"
    about: Literal["method", "models"] = "method"
    across: Literal["every", "average", "new"] | None = None
    look: int | None = None
    latest: float | None = None
    shown: Shown | None = None
    item_interval: tuple[float, float] | None = None


class Summary(Tolerant):
    """``summary.json``.

    Attributes:
        looks: the sets of seeds at which verdicts were given in this directory, the last one last.
        filled_later: whether a verdict at the last look was given before some of its values existed; for runs made
            elsewhere also at an earlier look, of seeds that are still there.
        judged_otherwise: whether a claim was judged at the last look before, by other values of the same seeds; for
            runs made elsewhere also at an earlier look.
    """

    study: str
    preset: str
    seeds: tuple[int, ...]
    conditions: dict[str, dict[str, dict[str, Spread]]]
    claims: list[ClaimResult]
    looks: list[list[int]] = Field(default_factory=list)
    filled_later: bool = False
    judged_otherwise: bool = False
