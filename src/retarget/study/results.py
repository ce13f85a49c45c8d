"""What a study's summary.json holds, as models: written by the study, read by the page and by other programs."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Verdict = Literal["holds", "does not hold", "not enough evidence", "not measured"]


class Tolerant(BaseModel):
    """Other programs may add keys to these files; what this version does not know it leaves alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Spread(Tolerant):
    """One metric of one arm over the seeds; ``values`` align with the seeds, None where a run failed."""

    mean: float | None = None
    sd: float | None = None
    values: list[float | None] = Field(default_factory=list)


class Shown(Tolerant):
    """A second metric's difference, which decides nothing."""

    metric: str
    estimate: float | None = None
    interval: tuple[float, float] | None = None


class ClaimResult(Tolerant):
    """One judged claim; everything measured is None where it was not.

    Attributes:
        condition: empty for a claim ``across`` conditions.
        estimate: treated - control in the metric's own unit, not turned; for a one-armed claim treated - ``against``.
        interval: the bounds of the two tests that decide, each at its own error; its level is ``level``.
        n: what was counted: seeds that both arms have; items, for a claim about models; sets, for one on new sets.
        p_holds: one-sided, of a difference that is not good (not within the margin, for a non-inferiority claim).
        p_fails: one-sided, of a difference of the smallest effect or more (within the margin).
        p_holds_adjusted, p_fails_adjusted: Holm's, each over its own chain of the claim's family.
        seeds_needed: how many seeds would decide with 80 % power, if mean and spread stay.
        below_smallest_effect: it holds, and the difference is surely below the smallest effect that matters.
        reason: why there is no verdict, or what else than the spread over seeds decided.
        look: the number of seeds of the planned look that these numbers are from.
        latest: the estimate over all seeds where that look was an earlier one; it decides nothing.
        item_interval: over items, where it did not decide.
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
    """

    study: str
    preset: str
    seeds: tuple[int, ...]
    conditions: dict[str, dict[str, dict[str, Spread]]]
    claims: list[ClaimResult]
    looks: list[list[int]] = Field(default_factory=list)
