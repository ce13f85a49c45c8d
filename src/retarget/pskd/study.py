"""The studies of PS-KD: which settings ask for which. Free of torch."""

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
        config: settings that override the preset's. ``task`` names one of :data:`TASKS`, each with settings of its
            own. Without it images are classified (:class:`retarget.pskd.studies.images.settings.Settings`), and
            ``question = NAME`` asks one of :data:`QUESTIONS`, ``peers = true`` for PS-KD among its peers (then
            ``shift`` is a table of :class:`retarget.pskd.studies.images.peers_plan.Shift`); ``loss``, ``arms``,
            ``claims`` and ``conditions`` bring arms and claims of the user's own
            (:func:`retarget.pskd.studies.images.own.asked`).
        seeds: seeds in place of the study's own.
        arms: names of the arms to run.

    Raises:
        UserError: unknown task, question, preset, setting or arm.
    """
    config = dict(config or {})
    if "task" in config:
        if other := {"question", "peers"} & set(config):
            raise UserError(f"{min(other)} belongs to image classification: leave task out")
        task = _named(TASKS, config["task"], "task", ", or none for image classification")
        return task(preset, config, seeds, arms)
    name, peers = config.pop("question", None), config.pop("peers", False)
    if "model" in config:
        if "network" in config:
            raise UserError("model and network are two networks: choose one")
        config["network"] = f"hf:{config.pop('model')}"
    mine = {table: config.pop(table) for table in own.TABLES if table in config}
    if not isinstance(peers, bool):
        raise UserError(f"peers is true or false, not {peers!r}")
    if name is not None and peers:
        raise UserError("question and peers are two studies: choose one")
    if name is not None and mine:
        raise UserError(f"question has arms and claims of its own: leave out question, or {min(mine)}")
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
