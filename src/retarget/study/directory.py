"""Open a study's directory for a plan: refuse what does not fit, add arms and seeds that do."""

import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.files import locked, make_directory, read_json, write_json
from retarget.identity import fingerprint, refuse_other
from retarget.study.config import Arm, Condition, StudyPlan
from retarget.study.environment import environment
from retarget.study.identity import REMEDY, contents, name_of_task, same_content, same_run, with_defaults
from retarget.study.record import read_plan, read_status, run_directory


@dataclass(frozen=True)
class Cell:
    """Identifies one run in a study."""

    condition: Condition
    arm: Arm
    seed: int

    @property
    def key(self) -> str:
        """``CONDITION/ARM/seed-N``."""
        return f"{self.condition.name}/{self.arm.name}/seed-{self.seed}"


def cells(plan: StudyPlan) -> list[Cell]:
    """All runs of a plan, seed by seed, so that a study which is stopped early has complete pairs."""
    return [Cell(c, arm, seed) for seed in plan.seeds for c in plan.conditions for arm in plan.arms]


def place(root: Path, plan: StudyPlan, cell: Cell, arm: str | None = None) -> Path:
    """The directory of a run, or of another arm's run with the same seed and condition."""
    return run_directory(root, plan, cell.condition.name, arm or cell.arm.name, cell.seed)


def complete(directory: Path) -> bool:
    """Whether a run is finished."""
    return (read_status(directory) or {}).get("state") == "complete"


@dataclass(frozen=True)
class Opened:
    """A study's directory, as one call finds it.

    Attributes:
        plan: the arms and seeds of the directory together with those of this call.
        contents: fingerprints of the data by path.
        stale: directories of failed runs with other settings, data or sources, which will be replaced.
        later: claims of this call that the directory, which fixed its claims before its first run, does not have.
    """

    plan: StudyPlan
    contents: dict[str, str] = field(default_factory=dict)
    stale: tuple[Path, ...] = ()
    later: tuple[str, ...] = ()


def look(root: Path, asked: StudyPlan, *, remember: bool = False) -> Opened:
    """Compare a directory with a plan; writes nothing except, with ``remember``, the fingerprints of the data.

    Without ``remember`` the data are read only if there are runs to compare them with, and then only the files that the
    runs' own fingerprints do not cover.

    Raises:
        UserError: the directory was made with other settings, conditions, claims or data, or with other settings for
            an arm of the same name.
    """
    plan, stale = _widened(root, asked)
    begun = [cell for cell in _begun(root, plan) if place(root, plan, cell) not in stale]
    found = contents(asked, root, remember=remember) if remember or begun else {}
    for cell in begun:
        directory = place(root, plan, cell)
        record = read_json(directory / "config.json")
        same_run(directory / "config.json", record, plan, plan.identity(cell.condition, cell.arm, cell.seed))
        try:
            same_content(directory, record.get("content", {}), found, asked.data)
        except UserError:
            if _kept(directory):
                raise
            stale = (*stale, directory)  # it failed, and what made it fail may be mended now
    fixed = {claim.id for claim in plan.claims}
    return Opened(plan, found, stale, tuple(claim.id for claim in asked.claims if claim.id not in fixed))


@contextmanager
def opened(root: Path, asked: StudyPlan, command: list[str]) -> Iterator[tuple[Opened, dict[str, Any]]]:
    """Lock a study's directory and write its study.json.

    Args:
        root: created if missing; an existing one must be empty or hold the same study.
        asked: the plan to run now.
        command: the arguments of this call, to be recorded.

    Yields:
        The directory, and the environment.

    Raises:
        UserError: another process works here, the directory holds something else, or it cannot be written.
    """
    make_directory(root)
    foreign = [path.name for path in root.iterdir() if not path.name.startswith(".")]
    if foreign and not (root / "study.json").exists():
        raise UserError(f"{root} is not empty but holds no study (it has {sorted(foreign)[0]}): choose another --out")
    with locked(root / ".lock", wait=False, what=f"{root}"):
        here = look(root, asked, remember=True)
        for directory in here.stale:
            shutil.rmtree(directory)
        where = environment()
        write_json(root / "study.json", _record(root, here.plan, shlex.join(command)) | where)
        yield here, where


def _record(root: Path, plan: StudyPlan, command: str) -> dict[str, Any]:
    """The study's part of study.json; keeps the earlier commands that did some of its runs."""
    record = {"plan": plan.model_dump(mode="json"), "claims_hash": plan.claims_hash(), "command": command}
    path = root / "study.json"
    before = read_json(path) if path.exists() and _begun(root, read_plan(path)) else {}
    commands = [*before.get("earlier_commands", []), *([before["command"]] if "command" in before else [])]
    earlier = [one for one in dict.fromkeys(commands) if one != command]
    return record | ({"earlier_commands": earlier} if earlier else {})


def _widened(root: Path, asked: StudyPlan) -> tuple[StudyPlan, tuple[Path, ...]]:
    """The plan of a directory after this call, and the failed runs to replace.

    If nothing was measured (every run failed, or left no checkpoint), the directory accepts other settings.
    """
    path = root / "study.json"
    fresh = asked.model_copy(update={"seeds": tuple(sorted(asked.seeds))})
    if not path.exists():
        return fresh, ()
    record, had = read_json(path), read_plan(path)
    begun = _begun(root, had)
    if not begun:
        return fresh, ()
    try:
        _same_study(path, record, had, asked)
    except UserError:
        directories = tuple(place(root, had, cell) for cell in begun)
        if any(map(_kept, directories)):
            raise
        return fresh, directories
    theirs = {arm.name: arm for arm in asked.arms}
    begun_arms = {cell.arm.name for cell in begun}
    kept = [theirs.get(arm.name, arm) for arm in had.arms if arm.name in theirs or arm.name in begun_arms]
    new = [arm for arm in asked.arms if arm.name not in {arm.name for arm in kept}]
    arms = asked.arms if {arm.name for arm in kept} <= theirs.keys() else (*kept, *new)
    seeds = tuple(sorted({*asked.seeds, *(cell.seed for cell in begun)}))
    return asked.model_copy(update={"arms": arms, "seeds": seeds, "claims": had.claims}), ()


def _same_study(path: Path, record: Mapping[str, Any], had: StudyPlan, asked: StudyPlan) -> None:
    """Refuse the study.json of another study, naming every setting that differs."""
    task = name_of_task(had.task_name, had.task, asked)
    theirs = {arm.name: arm.settings for arm in asked.arms}
    arms = [arm for arm in had.arms if arm.name in theirs]
    refuse_other(
        path,
        {
            **{"study": had.study, "preset": had.preset, "task": task, "threads": had.threads},
            **_measured(with_defaults(had.settings, asked.settings, asked.settings_model), asked),
            **_settings_of(had.conditions, "condition"),
            **_settings_of(arms, "arm"),
        },
        {
            **{"study": asked.study, "preset": asked.preset, "task": asked.task_name or asked.task},
            **{"threads": asked.threads},
            **_measured(asked.settings, asked),
            **_settings_of(asked.conditions, "condition"),
            **_settings_of([arm.model_copy(update={"settings": theirs[arm.name]}) for arm in arms], "arm"),
        },
        remedy=REMEDY,
    )
    as_written = fingerprint([had.level, record["plan"].get("claims", [])])
    if record.get("claims_hash") not in (had.claims_hash(), as_written):
        raise UserError(
            f"{path} was changed after it was written: its claims do not match their hash "
            f"{record.get('claims_hash')}. Choose another --out"
        )
    _same_rules(path, had, asked)
    if had.claims_hash() != asked.claims_hash():
        before, now = ({claim.id: claim.stated() for claim in plan.claims} for plan in (had, asked))
        changed = [name for name, stated in before.items() if stated != now.get(name)]
        if had.judged_at() == asked.judged_at() and not changed:
            return  # a later version has more claims: the study keeps its planned ones
        what = ", ".join(changed) if changed else f"level {had.judged_at()}, now {asked.judged_at()}"
        raise UserError(
            f"{path} fixed its claims before the first run, but those of this call differ ({what}): claims must not "
            "change after results have been seen. Choose another --out"
        )


def _same_rules(path: Path, had: StudyPlan, asked: StudyPlan) -> None:
    """Refuse metrics that a user's plan declares otherwise than before: floors and the like decide what is judged.

    Later versions of this package may declare its own metrics otherwise.
    """
    if asked.task.partition(".")[0] == "retarget":
        return
    before, now = had.rules(), asked.rules()
    known = {metric.name for metric in had.metrics} & {metric.name for metric in asked.metrics}
    changed = [name for name in sorted(known) if before.get(name) != now.get(name)]
    if changed:
        raise UserError(
            f"{path} fixed how its metrics are judged before the first run, but this call declares "
            f"{', '.join(changed)} otherwise (floor, needs, bounds or deterministic). Choose another --out"
        )


def _measured(settings: Mapping[str, Any], plan: StudyPlan) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in plan.unmeasured}


def _settings_of(named: Iterable[Arm | Condition], what: str) -> dict[str, Any]:
    """Settings of arms or conditions, keyed ``arm NAME: SETTING``; one without settings is keyed by its name."""
    found: dict[str, Any] = {}
    for one in named:
        found[f"{what} {one.name}"] = "there"
        found |= {f"{what} {one.name}: {name}": value for name, value in one.settings.items()}
    return found


def _begun(root: Path, plan: StudyPlan) -> list[Cell]:
    """The runs that a directory has files of; if there are none it accepts another study."""
    return [cell for cell in cells(plan) if (place(root, plan, cell) / "config.json").exists()]


def _kept(directory: Path) -> bool:
    """Whether a run has results or a checkpoint to resume from."""
    state = (read_status(directory) or {}).get("state")
    return state == "complete" or (state != "failed" and any((directory / "checkpoint").glob("*")))
