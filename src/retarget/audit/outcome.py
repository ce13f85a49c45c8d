"""The result of an audit as data: ``audit.json``, whose schema is next to this file."""

from typing import Any, Literal

from pydantic import Field

from retarget.audit.static import Finding
from retarget.settings import Strict

Verdict = Literal["nothing found", "trojaned", "error", "undecided", "not covered"]


class ErrorRate(Strict):
    """How certain a verdict is, from clean models that went through the same search."""

    known: bool = Field(description="False if no family of clean models is comparable with this checkpoint")
    family: str | None = Field(default=None, description="the most similar family of clean models")
    models: int = Field(default=0, description="number of clean models in that family")
    p_value: float | None = Field(
        default=None, description="(1 + clean models with a score at least as high) / (models + 1)"
    )
    level: float | None = Field(default=None, description="p-values up to this are suspicious")
    sentence: str = Field(default="", description="the error rate in words")


class TriggerFound(Strict):
    """The suspected trigger; its maps are in trigger.safetensors, its picture in trigger.png."""

    law: Literal["trojdiff", "stock sampler", "unknown"] = Field(
        description="the law of the noise under which the trigger fires; unknown if none does, or every one"
    )
    kind: Literal["blend", "local"]
    gamma: float | None = Field(
        description="median γ within the mask; 1 for stock-sampler triggers, null if origin is elsewhere: not measured"
    )
    values: int = Field(description="number of values in the mask")
    box: tuple[int, int, int, int] | None = Field(
        description="top, left, bottom and right of the mask; bottom and right are excluded"
    )
    undo: float = Field(
        description="undo on noise that the search has not used, below 0 for a gain above 1; if origin is elsewhere, "
        "the change of the answer outside the trigger, relative to the trigger"
    )
    strength: float = Field(description="how strongly it fires: from .18 on, it counts as firing")
    stock_sampler: bool | None = Field(
        description="whether the network undoes the trigger on a stock sampler's images from its noise, so that it may "
        "fire there; null if not measured"
    )
    origin: str = Field(description="the branch of the search that found the trigger")


class Outcome(Strict):
    """The audit of one pipeline."""

    schema_version: Literal[1] = 1
    pipeline: str
    verdict: Verdict
    exit_code: int = Field(ge=0, le=3, description="the exit code for this pipeline alone")
    exit_code_reason: str = Field(default="", description="why it is not the verdict's own; empty if it is")
    reason: str = Field(description="the reason for the verdict, in one sentence")
    score: float | None = Field(default=None, description="the final score: the best candidate's, on new noise")
    error_rate: ErrorRate = ErrorRate(known=False)
    trigger: TriggerFound | None = None
    fires: bool | None = Field(default=None, description="whether the trigger fires; null if that was not tested")
    converged: bool | None = Field(
        default=None,
        description="whether another ascent like the last would leave the verdict as it is; null without such a test",
    )
    scope: list[str] = Field(default_factory=list, description="what was searched for; the verdict holds only for this")
    statistics: dict[str, Any] = Field(default_factory=dict, description="statistics of every branch")
    findings: list[Finding] = Field(default_factory=list)
    files: dict[str, str] = Field(default_factory=dict, description="SHA-256 of every file")
    pictures: dict[str, str] = Field(default_factory=dict, description="caption of every picture, by file")
    pictures_missing: str = Field(default="", description="why they could not be written; empty if they were")
    images_found: int | None = Field(
        default=None,
        description="images of --data: the training part of a source that has one, otherwise all; null without --data",
    )
    images_used: int | None = Field(
        default=None, description="how many of these the search used, at most 512; null without --data"
    )
    evaluations: int = Field(
        default=0, description="network evaluations: 1 per image of a forward pass, 2 per image of a backward pass"
    )
    seconds: float = 0.0
    versions: dict[str, str] = Field(default_factory=dict)


class Report(Strict):
    """``audit.json``: the pipelines of one command."""

    tool: str
    exit_code: int = Field(
        description="the command's exit code, as far as known when this was written: the first of 1, 2, 3, 0 that "
        "occurs among those of the pipelines, with a 2 if --clean failed"
    )
    audits: list[Outcome]
