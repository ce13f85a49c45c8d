"""POPE's studies, as the command line finds them: which settings ask for which. Free of torch."""

from typing import Any

from retarget.pope.studies.plan import PRESETS, Settings
from retarget.pope.studies.plan import plan as _first
from retarget.pope.studies.rivals_plan import QUESTIONS
from retarget.pope.studies.rivals_plan import plan as _question
from retarget.study.config import StudyPlan

__all__ = ["PRESETS", "Settings", "plan"]


def plan(
    preset: str = "demo",
    config: dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    arms: list[str] | None = None,
) -> StudyPlan:
    """The resolved study.

    Args:
        preset: see :func:`retarget.pope.studies.plan.plan`; a question has ``demo`` and ``small``.
        config: settings that override the preset's. ``question = NAME`` asks one of
            :data:`retarget.pope.studies.rivals_plan.QUESTIONS` in place of the paper's own.
        seeds: bases in place of the preset's.
        arms: names of the arms to run.

    Raises:
        UserError: unknown question, preset, setting or arm.
    """
    config = dict(config or {})
    others = tuple(f"question={name}" for name in QUESTIONS)
    if "question" in config:
        return _question(config.pop("question"), preset, config, seeds, arms).model_copy(update={"others": others})
    return _first(preset, config, seeds, arms).model_copy(update={"others": others})
