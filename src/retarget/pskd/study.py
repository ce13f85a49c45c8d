"""Choose the study of PS-KD that the settings ask for. Does not import torch."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from retarget.errors import UserError
from retarget.pskd.studies.detection import plan as detection
from retarget.pskd.studies.images import own
from retarget.pskd.studies.images import plan as images
from retarget.pskd.studies.images.peers_plan import PEERS
from retarget.pskd.studies.images.questions import QUESTIONS
from retarget.pskd.studies.translation import plan as translation
from retarget.study.config import StudyPlan

TASKS: dict[str, Callable[..., StudyPlan]] = {"translation": translation.plan, "detection": detection.plan}

Found = TypeVar("Found")


def plan(
    preset: str = "demo",
    config: dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    arms: list[str] | None = None,
) -> StudyPlan:
    """The resolved study.

    Args:
        preset: ``demo`` (minutes on a laptop), ``small`` (hours on a CPU) or ``paper``.
        config: settings that override the preset's. ``task`` names one of :data:`TASKS`, each with its own settings;
            without it the study classifies images (:class:`retarget.pskd.studies.images.settings.Settings`). Then
            ``question = NAME`` asks one of :data:`QUESTIONS`; ``peers = true`` compares PS-KD with its peers, and
            ``shift`` is a table of :class:`retarget.pskd.studies.images.peers_plan.Shift`; ``loss``, ``arms``,
            ``claims`` and ``conditions`` add the user's own (:func:`retarget.pskd.studies.images.own.asked`).
        seeds: seeds to use instead of the study's own.
        arms: names of the arms to run.

    Raises:
        UserError: unknown task, question, preset, setting or arm.
    """
    config = dict(config or {})
    if "task" in config:
        if other := {"question", "peers"} & set(config):
            raise UserError(f"{min(other)} is a setting of image classification: remove it, or remove task")
        task = _named(TASKS, config["task"], "task", ", or none for image classification")
        return task(preset, config, seeds, arms)
    name, peers = config.pop("question", None), config.pop("peers", False)
    if "model" in config:
        if "network" in config:
            raise UserError("model and network both name the network: set only one of them")
        config["network"] = f"hf:{config.pop('model')}"
    mine = {table: config.pop(table) for table in own.TABLES if table in config}
    if not isinstance(peers, bool):
        raise UserError(f"peers must be true or false, not {peers!r}")
    if name is not None and peers:
        raise UserError("question and peers ask for two different studies: set only one of them")
    if name is not None and mine:
        raise UserError(f"question brings its own arms and claims: remove question, or {min(mine)}")
    whole = PEERS if peers else images.PAPER
    if mine:
        return images.plan(preset, config, seeds, arms, own.asked(mine, whole if peers else own.OWN))
    question = whole if name is None else _named(QUESTIONS, name, "question")
    others = ("task=translation", "task=detection", "peers=true", *(f"question={one}" for one in QUESTIONS))
    return images.plan(preset, config, seeds, arms, question).model_copy(update={"others": others})


def _named(known: Mapping[str, Found], name: str, what: str, otherwise: str = "") -> Found:
    if name not in known:
        raise UserError(f"no {what} {name!r} for pskd: choose {', '.join(known)}{otherwise}")
    return known[name]
