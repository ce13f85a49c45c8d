"""The user's own losses, networks, datasets, arms and claims in the image study. Does not import torch."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from retarget.errors import UserError
from retarget.pskd.studies.images import plan as images
from retarget.pskd.studies.images.peers_plan import ARMS as PEERS
from retarget.pskd.studies.images.peers_plan import EXTRA_METRICS, PeerSettings, Shift
from retarget.pskd.studies.images.plan import METRICS, Question, WorldQuestion
from retarget.settings import faults
from retarget.study.config import Arm, Claim, Condition

TABLES = ("loss", "arms", "claims", "conditions")
"""Keys of a study's configuration that describe the user's own arms, claims and conditions."""
DATA = ("dataset", "root", "train_images", "validation_images", "test_images", "label_noise", "data_seed")
"""Settings that all arms share: a difference between arms on different images says nothing about the methods."""
CONTROL = images.ARMS[0]
KNOWN = {one.name: one for one in (*PEERS, *images.ARMS)}


class OwnSettings(PeerSettings):
    """Settings of a run in a study with the user's own arms: a peer's, but corrupted images only on request."""

    shift: Shift = Shift(kinds=(), ood="")


OWN = Question(
    name="own",
    title="with parts of your own",
    arms=(CONTROL,),
    metrics=(*METRICS, *EXTRA_METRICS),
    task="retarget.pskd.studies.images.peers_run:run",
    task_name="pskd.peers",
    former_tasks=(),
    settings=OwnSettings,
)


def asked(given: Mapping[str, Any], base: Question = OWN) -> Question:
    """The question with the user's arms, claims and conditions.

    Args:
        given: those of :data:`TABLES` that the configuration has. ``loss``, an import path or a table with ``method``
            and its settings, is shorthand for one arm. Each of ``arms`` has a ``name``, optionally a ``label``, and
            settings; with only the name of a built-in arm it is that arm. ``claims`` have the fields of
            :class:`~retarget.study.config.Claim`; without claims each of the user's losses is compared with
            cross-entropy.
        base: the study to which they are added.

    Raises:
        UserError: a table has another form, an arm appears twice, or a claim names something the study does not have.
    """
    tables = [(one, f"[[arms]], number {number}") for number, one in enumerate(_tables(given, "arms"), start=1)]
    if "loss" in given:
        name = _called(given["loss"])
        tables.insert(0, ({"name": name.lower(), "loss": given["loss"], "label": name}, f"loss = {given['loss']!r}"))
    mine = tuple(_arm(one, where) for one, where in tables)
    replaced = {arm.name for arm in mine}
    arms = (*(arm for arm in base.arms if arm.name not in replaced), *mine)
    twice = sorted({arm.name for arm in arms if [one.name for one in arms].count(arm.name) > 1})
    if twice:
        raise UserError(f"[[arms]]: the arm {twice[0]} appears twice")
    named = [
        _made(Condition, one, f"[[conditions]], number {n}") for n, one in enumerate(_tables(given, "conditions"), 1)
    ]
    conditions = tuple(named) or (Condition(),)
    if "claims" in given:
        claims = tuple(
            _made(Claim, {"id": f"claim-{number}", **one}, f"[[claims]], number {number}")
            for number, one in enumerate(_tables(given, "claims"), start=1)
        )
    else:
        theirs = base.state(conditions) if isinstance(base, WorldQuestion) else base.claims
        own = [claim for arm in mine if _own_loss(arm.settings) for claim in _claims(arm, conditions[0].name)]
        claims = (*theirs, *own)
    kept = {name: getattr(base, name) for name in Question.model_fields}
    return Question(**{**kept, "arms": arms, "claims": claims, "conditions": conditions, "mine": mine})


def _tables(given: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = given.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UserError(f"{name} must be tables: write [[{name}]] and, below it, the fields of one")
    return [dict(one) for one in found]


def _called(loss: Any) -> str:
    """The name of the class or function in ``loss``."""
    path = loss.get("method") if isinstance(loss, dict) else loss
    if not isinstance(path, str) or not path:
        raise UserError(
            f"loss = {loss!r}: it must be module:Class, or a table with method = 'module:Class' and its settings"
        )
    return path.rpartition(":")[2]


def _arm(table: dict[str, Any], where: str) -> Arm:
    name = table.pop("name", None)
    if not table and name in KNOWN:
        return KNOWN[name]
    label, needs = table.pop("label", name), table.pop("needs", ())
    settings = {**table.pop("settings", {}), **table} if isinstance(table.get("settings", {}), dict) else table
    shared = [key for key in DATA if key in settings]
    if shared:
        raise UserError(f"{where}: all arms share {shared[0]}: put it above [[arms]], or into [[conditions]]")
    if "model" in settings:
        settings["network"] = f"hf:{settings.pop('model')}"
    if "loss" in settings:
        loss = settings.pop("loss")
        _called(loss)
        settings["peer"] = loss if isinstance(loss, dict) else {"method": loss}
    if settings.get("teacher"):
        needs = (*needs, settings["teacher"])
    return _made(Arm, {"name": name, "label": label, "settings": settings, "needs": needs}, where)


def _made(kind: type[Any], fields: dict[str, Any], where: str) -> Any:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{where}: {faults(error, 'it')}") from error


def _own_loss(settings: Mapping[str, Any]) -> str:
    """The import path of an arm's loss, if it is the user's own."""
    peer = settings.get("peer")
    path = str(peer.get("method", "")) if isinstance(peer, dict) else ""
    return path if ":" in path else ""


def _claims(arm: Arm, condition: str) -> tuple[Claim, ...]:
    """The default claims about a loss, with the smallest effects of the paper's claims."""
    say = {
        "accuracy": f"{arm.label} improves accuracy.",
        "calibration": f"{arm.label} improves confidence calibration.",
        "likelihood": f"{arm.label} gives better confidence estimates.",
        "ranking": f"{arm.label} improves the ordinal ranking of confidence.",
    }
    return tuple(
        claim.model_copy(update={"id": f"{claim.id}_of_{arm.name}", "sentence": say[claim.id],
                                 "arms": (arm.name, CONTROL.name)})
        for claim in images.claims(condition) if claim.id in say
    )  # fmt: skip
