"""How small a trigger the audit finds, from its verdicts on trojaned models with known triggers.

``python -m retarget.audit.reach results/audit-zoo --out reach.json`` reads the record of ``retarget study audit``;
``--checkpoints STUDY ZOO`` reads studies of known checkpoints by ``examples/own_study_audit.py``, instead or too.
"""

import json
import math
import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from tyro.conf import Positional

from retarget.errors import UsageError, UserError
from retarget.files import read_json, write_json
from retarget.helptext import one_paragraph, read_arguments
from retarget.settings import Strict

LAWS = {"trojdiff": "TrojDiff", "bad_diffusion": "BadDiffusion", "villan_ode": "VillanDiffusion, ODE"}


class Known(Strict):
    """A trojaned model, its trigger, and whether the audit called it trojaned."""

    side: int
    channels: int
    law: Literal["trojdiff", "bad_diffusion", "villan_ode"]
    trigger: Literal["blend", "patch"]
    pixels: int = Field(description="number of pixels that the trigger changes")
    gamma: float
    works: bool = Field(description="whether the attack succeeds at least 50 points above its base rate")
    found: bool


class Reach(Strict):
    """The audited models: fingerprint of the search, the command that made this, and the models."""

    search: str = Field(description="fingerprint of the search's settings")
    command: str
    models: list[Known]


@cache
def shipped() -> Reach:
    """The models that this package contains."""
    return Reach.model_validate(json.loads(files("retarget.audit").joinpath("reach.json").read_text(encoding="utf-8")))


def gammas_found(reach: Reach, fingerprint: str) -> str:
    """The γ with which triggers under TrojDiff's law were found, in models of all shapes whose attack works.

    Args:
        reach: the trojaned models.
        fingerprint: fingerprint of the search that was run on the checkpoint.
    """
    known = reach.models if reach.search == fingerprint else []
    found = sorted(one.gamma for one in known if one.works and one.found and one.law == "trojdiff")
    if not found:
        return "with which γ is unknown"
    return f"found in models with γ from {found[0]:.2f} to {found[-1]:.2f}; others were not measured, or not found"


def reach_lines(side: int, channels: int, reach: Reach, fingerprint: str) -> list[str]:
    """A sentence about the triggers that were found in the most similar family of trojaned models with working attacks.

    Args:
        side, channels: shape of the checkpoint's images.
        reach: the trojaned models.
        fingerprint: fingerprint of the search that was run on the checkpoint.
    """
    working = [one for one in reach.models if one.works] if reach.search == fingerprint else []
    if not working:
        return ["unknown how small a trigger this search finds: it was not run on models with known triggers"]
    shapes = {(one.side, one.channels) for one in working}
    near = min(shapes, key=lambda one: (abs(math.log2(one[0] / side)), abs(one[1] - channels), one))
    family = [one for one in working if (one.side, one.channels) == near]
    found = [one for one in family if one.found]
    where = (
        f"in the most similar family of trojaned models, {near[0]}×{near[0]}, {near[1]} channel{'s' * (near[1] > 1)}"
    )
    if near != (side, channels):
        where = f"no model with a known trigger and an attack that works had this checkpoint's shape; {where}"
    patches = [one for one in found if one.trigger == "patch"]
    narrow = [one.gamma for one in found if one.law == "trojdiff"]
    words = [f"{where}: {len(found)} of {len(family)} found"]
    if patches:
        least = min(patches, key=lambda one: one.pixels)
        words.append(f"the smallest patch found has {least.pixels} pixels")
    else:
        had = any(one.trigger == "patch" for one in family)
        words.append("no patch was found" if had else "none of them has a patch, so no size of one was measured")
    if narrow:
        values = sorted({f"{one:.2f}" for one in narrow})
        words.append("γ found: " + (", ".join(values) if len(values) <= 4 else f"{values[0]} to {values[-1]}"))
    every, missed = (Counter(_said(one) for one in some) for some in (family, [one for one in family if not one.found]))
    if missed:
        words.append("missed: " + ", ".join(f"{name} ({count} of {every[name]})" for name, count in missed.items()))
    if len(family) < len(working):
        words.append(f"of all shapes: {sum(one.found for one in working)} of {len(working)} found")
    return ["; ".join(words)]


def _said(one: Known) -> str:
    width = f", γ = {one.gamma:.2f}" if one.law == "trojdiff" else ""
    size = f" of {one.pixels} pixels" if one.trigger == "patch" else ""
    return f"{LAWS[one.law]}'s {one.trigger}{size}{width}"


@dataclass
@one_paragraph
class Arguments:
    """Record which triggers the audit found in a study's trojaned models."""

    out: Path
    """File to write."""
    study: Annotated[Path | None, Positional] = None
    """Folder of a study by retarget study audit."""
    checkpoints: tuple[tuple[Path, Path], ...] = ()
    """Folder of a study of known checkpoints, and that of the checkpoints; or several. An attack works if its
    success.json says so, or if it has none."""
    extend: Path | None = None
    """A record by the same search, or by the one before; its models come first."""


def main(words: list[str]) -> None:
    """Run the command."""
    from retarget.audit.inversion import Search
    from retarget.audit.seek import BEFORE, fingerprint

    given = read_arguments(Arguments, words, "python -m retarget.audit.reach")
    commands = [shlex.join(["python", "-m", "retarget.audit.reach", *words])]
    if given.study is None and not given.checkpoints:
        raise UsageError("give the folder of a study by retarget study audit, or --checkpoints, or both")
    models: list[Known] = []
    if given.extend is not None:
        had = Reach.model_validate(read_json(given.extend))
        if had.search not in (fingerprint(Search()), BEFORE):
            raise UserError(f"{given.extend} was made by another search ({had.search}): make it again")
        models, commands = had.models, [had.command, *commands]
    models += [] if given.study is None else known(given.study)
    models += [one for pair in given.checkpoints for one in known_checkpoints(*pair)]
    reach = Reach(search=fingerprint(Search()), command="\n".join(commands), models=models)
    write_json(given.out, reach.model_dump(mode="json"))


def known(study: Path) -> list[Known]:
    """The trojaned models of a study that were audited.

    Raises:
        UserError: there is no such study, or no such model in it.
    """
    from retarget.audit.studies.build import trigger_of
    from retarget.audit.studies.members import ADAPTIVE, Member
    from retarget.audit.studies.verdicts import Model

    found = []
    for path in sorted(study.glob("runs/*/seed-*/evaluation.json")):
        details, status = read_json(path), read_json(path.with_name("status.json"))
        member, metrics = Member.model_validate(details["member"]), status.get("metrics", {})
        if member.attack is None or "undo_audit" not in metrics or details["kind"] in ADAPTIVE:
            continue
        images, attack = member.images, member.attack
        model = Model("evaluation", details["kind"], 0, metrics, images.channels, images.side)
        trigger = trigger_of(attack, (images.channels, images.side, images.side))
        changed = ((trigger.mu != 0) | (trigger.gamma != 1)).any(0)
        found.append(
            Known(
                side=images.side, channels=images.channels, law=attack.law, trigger=attack.trigger,
                pixels=int(changed.sum()), gamma=attack.gamma, works=model.strong, found=model.verdict == "trojaned",
            )
        )  # fmt: skip
    if not found:
        raise UserError(f"{study}: the study has no audited trojaned models: run retarget study audit first")
    return found


def known_checkpoints(study: Path, zoo: Path) -> list[Known]:
    """The trojaned checkpoints of a study by ``examples/own_study_audit.py``, with the triggers beside them.

    Args:
        study: the study's record.
        zoo: its folder of checkpoints, ARM-SEED, each with its trigger.

    Raises:
        UserError: there is no such study, or no trojaned checkpoint in it.
    """
    from retarget.trojdiff.trigger import Trigger

    found = []
    for path in sorted(study.glob("runs/*/seed-*/status.json")):
        metrics, settings = read_json(path).get("metrics", {}), read_json(path.with_name("config.json"))["settings"]
        if not settings["trojaned"] or "called" not in metrics:
            continue
        folder = zoo / f"{path.parent.parent.name}-{path.parent.name.removeprefix('seed-')}"
        pipeline = folder / "pipeline" if (folder / "pipeline").is_dir() else folder
        trigger, marks = Trigger.load(pipeline), read_json(pipeline / "unet" / "config.json")
        changed = ((trigger.mu != 0) | (trigger.gamma != 1)).any(0)
        found.append(
            Known(
                side=trigger.shape[1], channels=trigger.shape[0], law=marks.get("trojan_law", "trojdiff"),
                trigger="blend" if bool(changed.all()) else "patch", pixels=int(changed.sum()),
                gamma=round(float(trigger.gamma.min()), 3), works=_works(folder), found=metrics["called"] == 100,
            )
        )  # fmt: skip
    if not found:
        raise UserError(f"{study}: the study has no audited trojaned checkpoints: run own_study_audit.py first")
    return found


def _works(folder: Path) -> bool:
    """Whether samples are the target at least 50 points more often with the trigger than from plain noise."""
    path = folder / "success.json"
    if not path.is_file():
        return True
    rates = read_json(path)
    return rates["trigger"] - rates["plain"] >= 0.5


if __name__ == "__main__":
    main(sys.argv[1:])
