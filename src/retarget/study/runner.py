"""Run a study: keep finished runs, do the remaining ones, report failures, then judge the claims."""

import graphlib
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.extras import MissingExtraError, refuse_missing
from retarget.files import HeldError, locked, make_directory, write_json
from retarget.own import called, load
from retarget.study import tracking
from retarget.study.config import StudyPlan
from retarget.study.directory import Cell, Opened, cells, complete, look, opened, place
from retarget.study.doubts import doubts_of, values_of
from retarget.study.executor import Executor, LocalExecutor
from retarget.study.figures import Analysis
from retarget.study.guard import refuse_unguarded, terminable, uninterrupted
from retarget.study.progress import Display
from retarget.study.record import Results, read_status, write_status
from retarget.study.summary import (
    collect,
    earlier_summary,
    filled_later,
    judged_otherwise,
    looks_of,
    merge,
    refuse_unknown_names,
    summarise,
    unpaired,
    unplanned_looks,
)
from retarget.study.worker import Finished, Job, Progress, Remark, Started, Ticket

LARGEST_SEED = 2**32 - 1
"""Largest seed that numpy's generators take."""
LET_GO_WITHIN = 5.0
"""Seconds in which the processes of a run that was killed let go of its lock."""


@dataclass(frozen=True)
class Outcome:
    """The result of :func:`run_study`.

    Attributes:
        summary: the content of summary.json.
        failed: the error of each requested run that is not complete, by its key ``CONDITION/ARM/seed-N``.
        page: the report, or None if none was requested.
        doubts: sentences about claims that look mistaken, and about seeds on which only one arm has values; the page
            has them too.
    """

    directory: Path
    summary: dict[str, Any]
    failed: dict[str, str]
    page: Path | None
    doubts: tuple[str, ...] = ()


def run_study(
    plan: StudyPlan,
    directory: str | Path,
    *,
    jobs: int = 1,
    executor: Executor | None = None,
    display: Display | None = None,
    page: Callable[[list[Path], Path], Path] | None = None,
    command: Sequence[str] | None = None,
    track: tracking.Name | None = None,
) -> Outcome:
    """Do the unfinished runs of a plan, judge the claims and write the page.

    A script that calls this must guard its entry with ``if __name__ == "__main__":``, since workers are spawned.

    Args:
        plan: the plan to run. The directory may hold more arms and seeds; the summary covers them all.
        directory: created if missing. After a kill at any moment, the same call continues.
        jobs: how many runs to do at a time; changes no result.
        executor: used instead of ``jobs`` workers on this machine, such as that of
            :func:`retarget.study.clusters.open_executor`; it is closed at the end.
        display: shows the progress; by default nothing is shown.
        page: a function that writes the page, such as :func:`retarget.report.build`; by default there is no page.
        command: recorded in study.json; by default this process's arguments.
        track: a tracker to which the logs of this call's runs are sent, by study, arm and seed; changes no result.

    Raises:
        UserError: the directory does not fit or cannot be written, the task cannot be imported, or a worker that was
            spawned for a script calls this while it imports the script, which lacks the guard.
        MissingExtraError: the tracker, or a package that the runs need, is not installed; nothing was started.
        KeyboardInterrupt: on Ctrl-C and on SIGTERM, after the workers have been stopped.
    """
    refuse_unguarded()
    root = Path(directory).resolve()
    if not plan.task:
        raise UserError("the plan names no task: set task='module:function', the function that does one run")
    _check_seeds(plan)
    if track:
        tracking.refuse_missing(track)
    if plan.packages and _left(root, look(root, plan).plan, plan):
        refuse_missing(plan.packages)
    with terminable(), opened(root, plan, list(command or sys.argv)) as (here, where):
        whole = here.plan
        _check_needs(root, plan, whole)
        if plan.prepare and _left(root, whole, plan):
            _call(plan.prepare, "prepare", plan)
        executor = executor or LocalExecutor(jobs, plan.threads)
        with display or Display() as shown:
            try:
                failed = _Schedule(root, plan, here, where, executor, shown, track).run()
            finally:
                with uninterrupted():
                    executor.close()
            shown.analysing()
            summary = analyse(root, whole, here.later)
    shown_on = page([root], root / "report.html") if page else None
    lost = unpaired(whole, values_of(summary))
    return Outcome(root, summary, failed, shown_on, (*lost, *doubts_of(whole, summary)))


def _unjudged(later: Sequence[str]) -> list[str]:
    if not later:
        return []
    return [
        f"Not judged here: {', '.join(later)}. The study fixed its claims before its first run, and these were added "
        "later. Use a new directory to judge them."
    ]


def _call(path: str, what: str, *arguments: Any) -> Any:
    """Call a function that a plan names; if a user's own fails, the message shows its line."""
    if path.partition(".")[0] == "retarget":
        return load(path)(*arguments)
    return called(path, what, *arguments)


def _analysed(plan: StudyPlan, results: Results, known: Collection[str]) -> Analysis:
    """The plan's analysis. A user's own may fail, or name what is not there; its runs are then complete all the same.

    Args:
        known: ids of the claims that it may name.
    """
    if not plan.analysis:
        return Analysis()
    found = _call(plan.analysis, "the analysis", results)
    if not isinstance(found, Analysis):
        raise UserError(f"{plan.analysis} returned {type(found).__name__}, not an Analysis")
    if plan.analysis.partition(".")[0] != "retarget":
        refuse_unknown_names(plan, found, known)
    return found


def analyse(root: Path, plan: StudyPlan, later: Sequence[str] = ()) -> dict[str, Any]:
    """Judge the claims on the runs in a directory; writes analysis.json and summary.json.

    Args:
        later: claims that were added after the first run, and are not judged here.
    """
    results = Results(root, plan)
    analysis = _analysed(plan, results, [*(claim.id for claim in plan.claims), *later])
    values = merge(collect(results), analysis, len(plan.seeds))
    summary = summarise(plan, values, analysis)
    before = earlier_summary(root)
    looks = looks_of(before, results)
    again = before.get("looks") == looks
    filled = filled_later(before, plan.seeds, values) if again else ""
    other = judged_otherwise(before, summary, values) if again else ""
    warnings = [one for one in (unplanned_looks(plan, looks), filled, other) if one]
    warnings += [*unpaired(plan, values), *doubts_of(plan, summary)]
    analysis = analysis.model_copy(update={"notes": [*analysis.notes, *warnings, *_unjudged(later)]})
    summary |= {"looks": looks, **({"filled_later": True} if filled else {})}
    summary |= {"judged_otherwise": True} if other else {}
    write_json(root / "analysis.json", analysis.model_dump(mode="json"))
    write_json(root / "summary.json", summary)
    return summary


def survey(plan: StudyPlan, directory: str | Path, jobs: int | None = 1) -> dict[str, Any]:
    """What :func:`run_study` would do, for ``--dry-run``; writes nothing.

    Args:
        jobs: how many runs at a time, for the estimate; None for a cluster whose room is not known.

    Raises:
        UserError: the directory does not fit the plan.
    """
    _check_seeds(plan)
    root = Path(directory).resolve()
    whole = look(root, plan).plan
    _check_needs(root, plan, whole)
    asked = cells(plan)
    left = _left(root, whole, plan)
    each = plan.minutes_per_run
    minutes = None if each is None or jobs is None else round(left * each / jobs, 1)
    return {
        "directory": str(directory),
        "runs": len(asked),
        "finished": len(asked) - left,
        "jobs": jobs,
        "estimated_minutes": minutes,
        "problem": _problem(plan) if left else None,
        "plan": plan.model_dump(mode="json"),
    }


def _left(root: Path, whole: StudyPlan, plan: StudyPlan) -> int:
    """How many runs of a plan are not complete."""
    return sum(not complete(place(root, whole, cell)) for cell in cells(plan))


def _problem(plan: StudyPlan) -> str | None:
    """Why the runs cannot be done here (a missing package, unusable data), or None."""
    try:
        refuse_missing(plan.packages)
        if plan.check:
            _call(plan.check, "check", plan)
    except (UserError, MissingExtraError) as error:
        return str(error)
    return None


class _Schedule:
    """Submits jobs to an executor as soon as the runs that they need are finished."""

    def __init__(
        self,
        root: Path,
        plan: StudyPlan,
        here: Opened,
        where: dict[str, Any],
        executor: Executor,
        shown: Display,
        track: tracking.Name | None = None,
    ) -> None:
        self.root, self.whole, self.contents = root, here.plan, here.contents
        self.where, self.executor, self.shown = where, executor, shown
        self.track: tracking.Name | None = track
        self.cells = {cell.key: cell for cell in cells(plan)}
        self.left = [c for c in self.cells.values() if not complete(self.place(c))]
        self.waiting: dict[str, Cell] = {cell.key: cell for cell in self.left}
        self.failed: dict[str, str] = {}
        self.remarked: set[str] = set()

    def place(self, cell: Cell, arm: str | None = None) -> Path:
        """The directory of a run, or of another arm's run of the same seed and condition."""
        return place(self.root, self.whole, cell, arm)

    def run(self) -> dict[str, str]:
        """Do all runs; returns errors by key."""
        self.shown.start(len(self.cells), len(self.cells) - len(self.left))
        self._submit_ready()
        for event in self.executor.events():
            match event:
                case Started(key):
                    self.shown.began(key)
                case Progress(key, done, total, unit):
                    self.shown.progressed(key, done, total, unit)
                case Remark(sentence):
                    self.shown.remarked(sentence)
                case Finished(key, error, unusable):
                    self._finished(key, error, unusable)
        return self.failed

    def _finished(self, key: str, error: str | None, unusable: bool) -> None:
        if unusable:
            raise UserError(f"the study's task {self.whole.task} cannot be imported: {error}")
        cell = self.cells[key]
        if error is not None and not complete(self.place(cell)):  # a worker may die just after its run was complete
            self._record_failure(cell, error)
        else:
            error = None
        self.shown.ended(key, error)
        if error is None:
            self._remark(cell)
        self._submit_ready()

    def _remark(self, cell: Cell) -> None:
        """Show the user the plan's remark, if any, on the first finished run of an arm."""
        if self.whole.remark and cell.arm.name not in self.remarked:
            self.remarked.add(cell.arm.name)
            metrics = (read_status(self.place(cell)) or {}).get("metrics", {})
            sentence = _call(self.whole.remark, "remark", cell.arm.name, metrics)
            if sentence:
                self.shown.remarked(sentence)

    def _submit_ready(self) -> None:
        """Submit the runs whose needs are complete; runs that need a failed run fail too."""
        changed = True
        while changed:
            changed = False
            for key, cell in list(self.waiting.items()):
                needs = [
                    Cell(cell.condition, arm, cell.seed).key for arm in self.whole.arms if arm.name in cell.arm.needs
                ]
                lost = [need for need in needs if need in self.failed]
                if lost:
                    changed = True
                    del self.waiting[key]
                    self._record_failure(cell, f"it needs {lost[0]}, which failed")
                    self.shown.ended(key, self.failed[key])
                elif all(complete(self.place(cell, arm)) for arm in cell.arm.needs):
                    del self.waiting[key]
                    self.executor.submit(self._job(cell))

    def _job(self, cell: Cell) -> Job:
        plan = self.whole
        config = {
            "run_hash": plan.run_hash(cell.condition, cell.arm, cell.seed),
            "study": plan.study,
            "task": plan.task,
            "task_name": plan.task_name,
            "condition": cell.condition.name,
            "arm": cell.arm.name,
            "seed": cell.seed,
            "threads": plan.threads,
            "settings": plan.run_settings(cell.condition, cell.arm),
            "unmeasured": list(plan.unmeasured),
            "content": self.contents,
        }
        return Job(
            cell.key,
            self.place(cell),
            plan.task,
            config | self.where,
            tuple(metric.name for metric in plan.metrics if metric.optional),
            {arm: self.place(cell, arm) for arm in cell.arm.needs},
            () if plan.analysis else tuple(metric.name for metric in plan.metrics if not metric.optional),
            self._track(cell),
            Ticket.of(self.root / ".lock"),
            (plan.task, *plan.own_parts),
            {metric.name: metric.bounds for metric in plan.metrics if metric.bounds},
        )

    def _track(self, cell: Cell) -> tracking.Track | None:
        name = self.track
        if name is None:
            return None
        only = [one.name for one in self.whole.conditions] == ["default"]
        group = cell.arm.name if only else f"{cell.condition.name}/{cell.arm.name}"
        return tracking.Track(name, self.whole.study, group, cell.seed, self.root / "tracking")

    def _record_failure(self, cell: Cell, error: str) -> None:
        """Record an error; write it to status.json unless the worker has done so, with a traceback.

        Only the holder of the run's lock writes its status: a machine that was given up may still be at work.
        """
        self.failed[cell.key] = error
        directory = self.place(cell)
        make_directory(directory)
        until = time.monotonic() + LET_GO_WITHIN
        while True:
            try:
                with locked(directory / ".lock", wait=False, what=str(directory)):
                    return self._write_failure(cell, directory, error)
            except HeldError:
                if time.monotonic() >= until:
                    return
                time.sleep(0.05)

    def _write_failure(self, cell: Cell, directory: Path, error: str) -> None:
        try:
            status = read_status(directory) or {}
        except UserError:  # a damaged status.json is the error itself; the user may want to see it
            return
        if status.get("state") != "failed" or status.get("error") != error:
            run_hash = self.whole.run_hash(cell.condition, cell.arm, cell.seed)
            failure = {"state": "failed", "run_hash": run_hash, "error": error, "traceback": ""}
            write_status(directory, {"attempts": status.get("attempts", 0)} | failure)


def _check_seeds(plan: StudyPlan) -> None:
    """Refuse seeds that numpy's and other generators do not take, before any run fails by one."""
    if not plan.seeds:
        raise UserError(f"the study {plan.study} has no seeds: give it at least one")
    wrong = [seed for seed in plan.seeds if not 0 <= seed <= LARGEST_SEED]
    if wrong:
        raise UserError(f"seeds must be integers from 0 to {LARGEST_SEED}, not {', '.join(map(str, wrong))}")


def _check_needs(root: Path, plan: StudyPlan, whole: StudyPlan) -> None:
    """Refuse arms that need each other in a circle, or need an arm that is neither requested nor finished."""
    asked = {arm.name for arm in plan.arms}
    try:
        tuple(graphlib.TopologicalSorter({arm.name: arm.needs for arm in whole.arms}).static_order())
    except graphlib.CycleError as error:
        circle = " → ".join(error.args[1])
        raise UserError(
            f"arms need one another in a circle: {circle}; remove one of these from an arm's needs"
        ) from error
    for cell in cells(plan):
        for need in cell.arm.needs:
            if need not in asked and not complete(place(root, whole, cell, need)):
                raise UserError(
                    f"arm {cell.arm.name} needs the run of arm {need} with seed {cell.seed}, which is not finished in "
                    f"{root}: add {need} to --arms"
                )
