"""What an audit says, as data: ``audit.json``, whose schema lies beside this file."""

from typing import Any, Literal

from pydantic import Field

from retarget.audit.static import Finding
from retarget.settings import Strict

Verdict = Literal["nothing found", "trojaned", "error", "undecided", "not covered"]


class ErrorRate(Strict):
    """How sure a verdict is: from clean models that went through the same search."""

    known: bool = Field(description="False where no calibration family is like this checkpoint")
    family: str | None = Field(default=None, description="the nearest calibration family")
    models: int = Field(default=0, description="clean models of that family")
    p_value: float | None = Field(default=None, description="(1 + clean models with a score as high) / (models + 1)")
    level: float | None = Field(default=None, description="a p-value up to this is called trojaned")
    sentence: str = Field(default="", description="the same in words")


class TriggerFound(Strict):
    """The suspected trigger; its maps are in trigger.safetensors, its picture in trigger.png."""

    law: Literal["trojdiff", "stock sampler"] = Field(description="what the noise must look like for it to fire")
    kind: Literal["blend", "local"]
    gamma: float = Field(description="median γ where the trigger is; 1 for stock-sampler triggers")
    values: int = Field(description="values of the noise that the mask holds")
    box: tuple[int, int, int, int] | None = Field(description="top, left, bottom, right of the mask; bottom excluded")
    undo: float = Field(description="on noise that no step of the search has seen")
    stock_sampler: bool = Field(description="fires when a stock sampler starts from the noise with the trigger")
    origin: str = Field(description="the branch of the search that found it")


class Outcome(Strict):
    """The audit of one pipeline."""

    schema_version: Literal[1] = 1
    pipeline: str
    verdict: Verdict
    exit_code: int = Field(ge=0, le=3, description="of this pipeline alone")
    reason: str = Field(description="why, in one sentence")
    score: float | None = Field(default=None, description="the final score: largest over all branches, on fresh noise")
    error_rate: ErrorRate = ErrorRate(known=False)
    trigger: TriggerFound | None = None
    fires: bool | None = Field(default=None, description="images made under the trigger bear the verdict out")
    scope: list[str] = Field(default_factory=list, description="what was looked for; nothing is said beyond it")
    statistics: dict[str, Any] = Field(default_factory=dict, description="of every branch")
    findings: list[Finding] = Field(default_factory=list)
    files: dict[str, str] = Field(default_factory=dict, description="SHA-256 of every file")
    pictures: dict[str, str] = Field(default_factory=dict, description="file: caption")
    evaluations: int = Field(default=0, description="an image forward is 1, a backward counts 2")
    seconds: float = 0.0
    versions: dict[str, str] = Field(default_factory=dict)


class Report(Strict):
    """``audit.json``: one command's pipelines."""

    tool: str
    exit_code: int = Field(description="1 before 2 before 3 before 0 over the pipelines")
    audits: list[Outcome]
