"""A study's directory: opening it for a plan, refusing what does not fit, widening what does."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.files import locked, make_directory, read_json, write_json
from retarget.study.config import Arm, Condition, StudyPlan
from retarget.study.environment import environment
from retarget.study.record import read_plan, run_directory

ADVICE = "Give another --out, or the settings that the directory was made with"


@dataclass(frozen=True)
class Cell:
    """One run's place in a study."""

    condition: Condition
    arm: Arm
    seed: int

    @property
    def key(self) -> str:
        """``CONDITION/ARM/seed-N``."""
        return f"{self.condition.name}/{self.arm.name}/seed-{self.seed}"


def cells(plan: StudyPlan) -> list[Cell]:
    """All runs of a plan, seed by seed, so that a study that is stopped early has complete pairs."""
    return [Cell(c, arm, seed) for seed in plan.seeds for c in plan.conditions for arm in plan.arms]


@contextmanager
def opened(root: Path, asked: StudyPlan, command: list[str]) -> Iterator[tuple[StudyPlan, dict[str, Any]]]:
    """Lock a study's directory and write its study.json.

    Args:
        root: made if missing; an existing one must be empty or hold the same study.
        asked: what is to be run now.
        command: the arguments of this call, recorded.

    Yields:
        The plan widened by the arms and seeds that the directory already had, and the environment.

    Raises:
        UserError: another process works here, the directory holds something else, or it cannot be written.
    """
    make_directory(root)
    foreign = [path.name for path in root.iterdir() if not path.name.startswith(".")]
    if foreign and not (root / "study.json").exists():
        raise UserError(f"{root} is not empty and holds no study (it has {sorted(foreign)[0]}). Give another --out")
    with locked(root / ".lock", wait=False, what=f"{root}"):
        plan = widened(root, asked)
        check_runs(root, plan)
        where = environment()
        write_json(root / "study.json", _record(root, plan, shlex.join(command)) | where)
        yield plan, where


def _record(root: Path, plan: StudyPlan, command: str) -> dict[str, Any]:
    """The study's part of study.json; other commands that did part of its runs before are kept."""
    record = {"plan": plan.model_dump(mode="json"), "claims_hash": plan.claims_hash(), "command": command}
    path = root / "study.json"
    before = read_json(path) if path.exists() and _begun(root, read_plan(path)) else {}
    commands = [*before.get("earlier_commands", []), *([before["command"]] if "command" in before else [])]
    earlier = [one for one in dict.fromkeys(commands) if one != command]
    return record | ({"earlier_commands": earlier} if earlier else {})


def widened(root: Path, asked: StudyPlan) -> StudyPlan:
    """The plan of a directory after this call: what it had, and the arms and seeds that are asked for.

    Raises:
        UserError: the directory was made with other settings, conditions, claims, or the same arm meant another thing.
    """
    path = root / "study.json"
    if not path.exists():
        return asked.model_copy(update={"seeds": tuple(sorted(asked.seeds))})
    record, had = read_json(path), read_plan(path)
    begun = _begun(root, had)
    if not begun:
        return asked.model_copy(update={"seeds": tuple(sorted(asked.seeds))})
    for name in ("study", "preset", "task", "threads"):
        _same(path, name, getattr(had, name), getattr(asked, name))
    _same_settings(path, "", had.settings, asked.settings, asked.unmeasured)
    _same(path, "conditions", _conditions(had), _conditions(asked))
    if record.get("claims_hash") != asked.claims_hash():
        raise UserError(
            f"{path} fixed its claims before the first run (hash {record.get('claims_hash')}) and those of this call "
            f"differ (hash {asked.claims_hash()}): a claim is not changed after results were seen. Give another --out"
        )
    theirs = {arm.name: arm for arm in asked.arms}
    for arm in had.arms:
        if arm.name in theirs:
            _same_settings(path, f"arm {arm.name}: ", arm.settings, theirs[arm.name].settings)
    begun_arms = {cell.arm.name for cell in begun}
    kept = [theirs.get(arm.name, arm) for arm in had.arms if arm.name in theirs or arm.name in begun_arms]
    new = [arm for arm in asked.arms if arm.name not in {arm.name for arm in kept}]
    arms = asked.arms if {arm.name for arm in kept} <= theirs.keys() else (*kept, *new)
    seeds = tuple(sorted({*asked.seeds, *(cell.seed for cell in begun)}))
    return asked.model_copy(update={"arms": arms, "seeds": seeds})


def _begun(root: Path, plan: StudyPlan) -> list[Cell]:
    """The runs that a directory holds something of; where there are none it is free for another study."""
    return [cell for cell in cells(plan) if (_place(root, plan, cell) / "config.json").exists()]


def check_runs(root: Path, plan: StudyPlan) -> None:
    """Refuse a directory with a run that was made with other settings.

    Raises:
        UserError: naming the run and both hashes.
    """
    for cell in cells(plan):
        directory = _place(root, plan, cell)
        path = directory / "config.json"
        if not path.exists():
            continue
        had, asked = read_json(path).get("run_hash"), plan.run_hash(cell.condition, cell.arm, cell.seed)
        if had != asked:
            raise UserError(f"{directory} was made with other settings: run hash {had}, now {asked}. {ADVICE}")


def _place(root: Path, plan: StudyPlan, cell: Cell) -> Path:
    return run_directory(root, plan, cell.condition.name, cell.arm.name, cell.seed)


def _conditions(plan: StudyPlan) -> list[tuple[str, dict[str, Any]]]:
    return [(condition.name, condition.settings) for condition in plan.conditions]


def _same(path: Path, what: str, had: object, asked: object) -> None:
    if had != asked:
        raise UserError(f"{path} was made with {what} = {had}, and this call asks for {asked}. {ADVICE}")


def _same_settings(
    path: Path, where: str, had: dict[str, Any], asked: dict[str, Any], except_for: tuple[str, ...] = ()
) -> None:
    for name in sorted({*had, *asked} - {*except_for}):
        _same(path, f"{where}{name}", had.get(name, "nothing"), asked.get(name, "nothing"))
