"""The entry point of POPE's studies for the command line: chooses a study by its settings. Free of torch."""

from typing import Any

from retarget.pope.studies.plan import PRESETS, Settings
from retarget.pope.studies.plan import plan as _first
from retarget.pope.studies.questions import QUESTIONS
from retarget.pope.studies.rivals_plan import plan as _question
from retarget.study.config import StudyPlan

__all__ = ["PRESETS", "Settings", "plan"]


def plan(
    preset: str = "demo",
    config: dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    arms: list[str] | None = None,
) -> StudyPlan:
    """The resolved plan of a study.

    Args:
        preset: see :func:`retarget.pope.studies.plan.plan`; the other questions have ``demo`` and ``small``.
        config: settings that override the preset's. ``question = NAME`` chooses one of
            :data:`retarget.pope.studies.questions.QUESTIONS` instead of the paper's own question.
        seeds: seeds of the base models, instead of the preset's.
        arms: names of the arms to run.

    Raises:
        UserError: unknown question, preset, setting or arm.
    """
    config = dict(config or {})
    others = tuple(f"question={name}" for name in QUESTIONS)
    if "question" in config:
        return _question(config.pop("question"), preset, config, seeds, arms).model_copy(update={"others": others})
    return _first(preset, config, seeds, arms).model_copy(update={"others": others})
