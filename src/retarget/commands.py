"""The verbs ``study``, ``judge`` and ``report``."""

import importlib
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python
from tyro.conf import FlagCreatePairsOff, Positional, arg

from retarget.cli import METHODS
from retarget.errors import UsageError, UserError
from retarget.files import read_json
from retarget.helptext import one_paragraph, read_arguments
from retarget.own import importable
from retarget.report.words import amount, stated
from retarget.settings import merged, parse_settings, read_config
from retarget.study import own
from retarget.study.config import StudyPlan
from retarget.study.tracking import refuse_missing
from retarget.verbs import refuse_empty, refuse_twice

if TYPE_CHECKING:
    from retarget.study.executor import Executor


@dataclass
@one_paragraph
class StudyArguments:
    """Train a control and the treated arms on the same seeds, and report what changed.

    A study of your own is FILE.py or a module with plan, a StudyPlan or a function plan(preset, config, seeds, arms),
    and run(run), which trains one arm with one seed and returns its metrics; analyse(results) is optional. Modules
    in its folder and in the working directory can be imported; they are searched last.

    Settings come from the preset, then from --config, then from --set; METHOD --help lists them, and the arms. Run the
    same command again to resume a stopped study; it may also be given more seeds or arms. Exit codes: 0 all runs are
    complete, 1 an error or failed runs, 2 wrong usage, 130 interrupted.
    """

    method: Annotated[
        Positional[str],
        arg(metavar="METHOD", help=f"one of {', '.join(METHODS)}; or FILE.py or a module, with your own plan and run"),
    ]
    preset: str = "demo"
    """demo (minutes on a laptop), small (hours on a CPU) or paper (for GPUs: the paper's own setting; for audit, which
    has no paper, a larger zoo). pope also has real, for a model of your own."""
    config: Path | None = None
    """A TOML file with settings."""
    set: tuple[str, ...] = ()
    """Settings as KEY=VALUE, with VALUE as in TOML, or null for none."""
    out: Path | None = None
    """The study's directory; by default studies/METHOD-PRESET, with a task's or a question's name in between."""
    seeds: tuple[int, ...] = ()
    """Seeds to run, by default those of the preset; every arm runs each of them."""
    arms: tuple[str, ...] = ()
    """Arms to run now; all by default."""
    looks: tuple[int, ...] = ()
    """Numbers of seeds at which verdicts are given, such as 3 5 10; fixed before any run. They share the error."""
    look_weights: tuple[float, ...] = ()
    """The share of the error that each look spends; by default .2 .3 .5 for three looks, otherwise equal shares."""
    pilot: Path | None = None
    """A finished study from whose spread --dry-run estimates what the seeds can decide; --out by default."""
    jobs: int | None = None
    """Number of runs at a time; changes no result. By default 1 on this machine, and as many as fit on a cluster."""
    executor: Literal["local", "ray", "slurm"] = "local"
    """Where to run: on this machine, a Ray cluster, or Slurm's queue (submitit). Changes no result."""
    cluster: tuple[str, ...] = ()
    """Options of the cluster as KEY=VALUE. ray: address, cpus, gpus, memory_gib, resources.NAME, retries; slurm:
    submitit's parameters (slurm_partition, timeout_min, mem_gb, gpus_per_node) and cluster=slurm|local|debug. All
    machines must see --out and the working directory under the same paths."""
    track: Literal["tensorboard", "trackio", "wandb", "mlflow"] | None = None
    """Send the runs' logs to a tracker, grouped by study, arm and seed; changes no result."""
    keep_trojaned: FlagCreatePairsOff[bool] = False
    """Keep the trojaned weights of the runs of this command after their evaluation (trojdiff)."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Only print how many runs there would be, for how long, and what is missing; into a file or pipe, also the
    resolved configuration and all else as JSON."""
    progress: bool = True
    """Show progress bars on a terminal; --no-progress prints plain lines."""


@dataclass
class JudgeArguments:
    """Judge claims about runs that were made elsewhere, and write the page and summary.json of a study.

    RUNS is a CSV, JSON-lines or Parquet file with the columns arm, seed, metric, value and optionally condition; with
    one row per item, it has the column item instead of seed, and optionally group. Pairs are aligned by seed or by
    item; duplicates and gaps are refused. The claims file has [[claims]] tables with the fields of Claim: sentence,
    metric, direction, arms, smallest_effect and optionally margin, against, condition, family, about, floor, across,
    conditions, shown, exact. The exit code is 0 whatever the verdicts are.
    """

    runs: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="[RUNS]", help="a file of runs, or none with --lm-eval or --inspect")
    ] = ()
    claims: Path | None = None
    """A TOML file with the claims; it must be given."""
    out: Path | None = None
    """Directory for report.html, report.md, summary.json and study.json."""
    lm_eval: tuple[Path, ...] = ()
    """Folders of samples that lm-evaluation-harness logged, one per model; arms are named after them."""
    inspect: tuple[Path, ...] = ()
    """Folders of logs of Inspect, one per model."""
    plan: FlagCreatePairsOff[bool] = False
    """Use the runs as a pilot: only print how likely 3 to 50 seeds are to decide each claim."""


@dataclass
class ReportArguments:
    """Make one self-contained HTML page, and the same as Markdown, from the directories of one or more studies."""

    directories: Annotated[
        Positional[tuple[Path, ...]], arg(metavar="DIR...", help="directories of studies, at least one")
    ]
    out: Path | None = None
    """The page; DIR/report.html for one study, report.html for several."""


def study(words: list[str]) -> int:
    """Run ``retarget study METHOD ...`` and return the exit code."""
    listed = {"--seeds": "0 1 2", "--arms": "A B", "--looks": "3 5", "--look-weights": ".4 .6"}
    refuse_twice(words, {"--set": "A=1 B=2", **listed, "--cluster": "A=1 B=2"})
    refuse_empty(words, listed)
    with importable(Path.cwd()):
        helped = bool({"-h", "--help"} & set(words))
        rest = [word for word in words if word not in ("-h", "--help")]
        if helped and not (rest and (any(word in METHODS for word in rest) or own.is_own(rest[0]))):
            rest = words
        given = read_arguments(StudyArguments, rest, "retarget study")
        if given.jobs is not None and given.jobs < 1:
            raise UsageError(f"--jobs must be at least 1, not {given.jobs}")
        if given.pilot and not given.dry_run:
            raise UsageError("--pilot only estimates what seeds can decide, for --dry-run: add that, or leave it out")
        with _own(given.method) as module:
            plan = resolve(given, module)
            return _describe(plan) if helped else _study(plan, given, words)


@contextmanager
def _own(method: str) -> Iterator[str]:
    """The module that describes a study: a method's, or a user's own, which can be imported inside the ``with`` block.

    Raises:
        UsageError: there is no such method, file or module.
    """
    if method in METHODS:
        yield METHODS[method]
    elif not own.is_own(method):
        raise UsageError(f"there is no study {method!r}: choose {', '.join(METHODS)}, or give FILE.py or a module")
    else:
        with own.found(method) as module:
            yield module


def _study(plan: StudyPlan, given: StudyArguments, words: list[str]) -> int:
    if given.looks or given.look_weights:
        plan = _with_looks(plan, given)
    if given.track:
        refuse_missing(given.track)
    out = given.out or Path("studies") / f"{plan.study}-{plan.preset}"
    executor = _executor(plan, given, out)
    from retarget.report import build
    from retarget.study import runner
    from retarget.study.progress import display

    if given.dry_run:
        return _dry_run(plan, given, out)
    command = ["retarget", "study", *words]
    try:
        outcome = runner.run_study(
            plan,
            out,
            executor=executor,
            display=display(given.progress),
            page=build,
            command=command,
            track=given.track,
        )
    except KeyboardInterrupt:
        print(f"\nInterrupted; finished runs are kept. To resume: {shlex.join(command)}", file=sys.stderr)
        return 130
    _print_verdicts(outcome.summary, plan)
    for doubt in outcome.doubts:
        print(f"note: {doubt}")
    print(f"{outcome.page}")
    for key, error in outcome.failed.items():
        print(f"FAILED {key}: {error}", file=sys.stderr)
    if outcome.failed:
        print(
            f"retarget: {len(outcome.failed)} run{'s' * (len(outcome.failed) != 1)} failed; status.json and output.log "
            f"of each say why. To try again, run the same command: {shlex.join(command)}",
            file=sys.stderr,
        )
    return 1 if outcome.failed else 0


def _executor(plan: StudyPlan, given: StudyArguments, out: Path) -> "Executor":
    """The executor of the runs; starts nothing."""
    from retarget.study.clusters import open_executor

    options = parse_settings(given.cluster, "--cluster")
    try:
        return open_executor(given.executor, options, out=out, threads=plan.threads, jobs=given.jobs)
    except UserError as error:
        raise UsageError(str(error)) from error


def _dry_run(plan: StudyPlan, given: StudyArguments, out: Path) -> int:
    """``retarget study METHOD --dry-run``: print what would be run, for how long, and what prevents it here."""
    from retarget.study import runner
    from retarget.study.directory import look
    from retarget.study.judging import in_words
    from retarget.study.progress import duration

    found = runner.survey(plan, out, given.jobs or (1 if given.executor == "local" else None))
    found["executor"] = given.executor
    whole = look(out.resolve(), plan).plan  # the directory may have more seeds and arms, which count in its verdicts
    prospects = _outlooks(whole, given.pilot or out, given.pilot is not None)
    found["power"] = [one._asdict() for one in prospects]
    if not sys.stdout.isatty():  # a reader at a terminal would have to scroll to the few lines below
        print(json.dumps(found, indent=1, ensure_ascii=False))
    minutes = found["estimated_minutes"]
    unknown = "these settings" if given.jobs or given.executor == "local" else "this cluster without --jobs"
    time = f"duration unknown for {unknown}" if minutes is None else f"about {duration(60 * minutes)}"
    print(f"{found['runs']} runs, {found['finished']} of them finished; {time}; {out}", file=sys.stderr)
    for one in prospects:
        chances = f"{one.n} seeds: {one.alone:.0%} by itself, {one.in_family:.0%} among its family"
        print(f"{in_words(one)}; {chances}", file=sys.stderr)
    if found["problem"]:
        print(f"retarget: these runs are not possible here: {found['problem']}", file=sys.stderr)
    return 1 if found["problem"] else 0


def _describe(plan: StudyPlan) -> int:
    """``retarget study METHOD --help``: print the study, its arms, and every setting with its value."""
    fields = plan.settings_model.model_fields if plan.settings_model else {}
    widest = max(map(len, [*plan.settings, *(arm.name for arm in plan.arms)]), default=0)
    print(f"{plan.title}. {plan.question}\n\nArms, for --arms (preset {plan.preset}):\n")
    for arm in plan.arms:
        print(f"  {arm.name:{widest}}  {arm.label}")
    print("\nSettings, for --set KEY=VALUE or --config, with the preset's values:\n")
    decided = {name for arm in plan.arms for name in arm.settings}
    for name, value in plan.settings.items():
        if name not in decided:
            print(f"  {name:{widest}}  {json.dumps(value)}{_origin(fields.get(name), value)}")
    if plan.others:
        print(f"\nOther studies, each with arms and claims of its own: --set {', '.join(plan.others)}.")
    print("\nThe options: retarget study --help")
    return 0


def _origin(field: FieldInfo | None, value: Any) -> str:
    """A setting's description, with its default if the preset changes it, since the description names the default's
    source. The default of a table is not shown.
    """
    if field is None:
        return ""
    text = f"  {field.description}" * bool(field.description)
    if field.is_required() or isinstance(value, dict):
        return text
    default = to_jsonable_python(field.get_default(call_default_factory=True, validated_data={}))
    return f" (default {json.dumps(default)})" * (value != default) + text


def judge(words: list[str]) -> int:
    """Run ``retarget judge RUNS --claims TOML --out DIR`` and return the exit code."""
    refuse_twice(words, {"--lm-eval": "A B", "--inspect": "A B"})
    given = read_arguments(JudgeArguments, words, "retarget judge")
    if sum(map(bool, (given.runs, given.lm_eval, given.inspect))) != 1 or len(given.runs) > 1:
        raise UsageError("retarget judge needs one file of runs, or folders for --lm-eval, or folders for --inspect")
    if given.claims is None:
        raise UsageError("retarget judge needs --claims, a TOML file with [[claims]]")
    if given.out is None and not given.plan:
        raise UsageError("retarget judge needs --out, the directory for the page")
    if given.out is not None and given.plan:
        raise UsageError("--plan only prints how many seeds decide, and writes nothing to --out: leave one of them out")
    from retarget.study import elsewhere, harness, judging
    from retarget.study.rows import read_rows
    from retarget.study.summary import unpaired

    asked = elsewhere.read_claims(given.claims)
    sources = [*given.runs, *given.lm_eval, *given.inspect]
    if given.runs:
        rows = read_rows(given.runs[0])
    else:
        rows = harness.read_lm_eval(given.lm_eval) if given.lm_eval else harness.read_inspect(given.inspect)
    found = elsewhere.arrange(rows, asked)
    if given.plan or given.out is None:
        print(judging.prospects(found))
        return 0
    command = shlex.join(["retarget", "judge", *words])
    summary = judging.write(found, given.out, command=command, sources=[*sources, given.claims])
    from retarget.report import build

    page = build([given.out])
    _print_verdicts(summary, found.plan)
    for doubt in (*unpaired(found.plan, found.values, found.failed), *found.doubts):
        print(f"note: {doubt}")
    print(page)
    return 0


def report(words: list[str]) -> int:
    """Run ``retarget report DIR...`` and return the exit code."""
    given = read_arguments(ReportArguments, words, "retarget report")
    if not given.directories:
        raise UsageError("retarget report needs the directory of at least one study")
    from retarget.report import build
    from retarget.report.source import read_study

    several = len(given.directories) > 1
    out = given.out or (Path() if several else given.directories[0]) / "report.html"
    print(build(list(given.directories), out))
    for directory in given.directories:
        if unjudged := read_study(directory).unjudged:
            print(f"note: {directory}: {unjudged}", file=sys.stderr)
    return 0


def resolve(given: StudyArguments, module: str) -> StudyPlan:
    """The plan that the arguments ask for: preset, then file, then flags.

    Args:
        given: the arguments.
        module: the module that describes the study; it must be importable.

    Raises:
        UsageError: a preset, setting, arm or seed is unknown, or a file cannot be read.
        UserError: the user's own study is not valid.
    """
    twice = sorted({seed for seed in given.seeds if given.seeds.count(seed) > 1})
    if twice or any(seed < 0 for seed in given.seeds):
        raise UsageError(f"--seeds must be different integers of at least 0, not {' '.join(map(str, given.seeds))}")
    if twice := sorted({arm for arm in given.arms if given.arms.count(arm) > 1}):
        raise UsageError(f"--arms names {', '.join(twice)} twice: name each arm once")
    config = merged(read_config(given.config) if given.config else {}, parse_settings(given.set))
    if given.keep_trojaned:
        config["keep_trojaned"] = True
    asked = given.preset, config, list(given.seeds) or None, list(given.arms) or None
    if given.method not in METHODS:
        return own.read(module, *asked, reserved=tuple(METHODS))
    try:
        plan = importlib.import_module(module).plan
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise UsageError(f"the study of {given.method} is not part of this version of retarget") from error
    try:
        return plan(*asked)
    except UserError as error:
        raise UsageError(str(error)) from error


def _with_looks(plan: StudyPlan, given: StudyArguments) -> StudyPlan:
    try:
        return plan.with_looks(given.looks, given.look_weights)
    except UserError as error:
        raise UsageError(f"--looks: {error}") from error


def _outlooks(plan: StudyPlan, pilot: Path, named: bool) -> list[Any]:
    """What the plan's seeds can decide, estimated from a pilot's spread; empty without a pilot."""
    from retarget.study.claims import outlooks
    from retarget.study.results import Summary

    path = pilot / "summary.json"
    if not path.exists():
        if named:
            raise UsageError(f"--pilot {pilot} has no summary.json: give the directory of a finished study")
        return []
    try:
        before = Summary.model_validate(read_json(path))
    except ValidationError as error:
        count = error.error_count()
        raise UsageError(f"--pilot {path} is not a summary of a study: {count} fields are wrong") from error
    values = {
        condition: {arm: {name: one.values for name, one in metrics.items()} for arm, metrics in arms.items()}
        for condition, arms in before.conditions.items()
    }
    return outlooks(plan, values, len(before.seeds), len(plan.seeds))


def _print_verdicts(summary: dict[str, Any], plan: StudyPlan) -> None:
    metrics, labels, conditions = (
        {one.name: one.label or one.name for one in some} for some in (plan.metrics, plan.arms, plan.conditions)
    )
    several = len(summary["conditions"]) > 1
    without = [
        claim for claim in summary["claims"]
        if claim["verdict"] == "not measured" and not claim["reason"]
        and not (labels.keys() >= set(claim["arms"]) and (claim["condition"] in conditions or claim["across"]))
    ]  # fmt: skip
    for claim in summary["claims"]:
        if claim in without:
            continue
        name = claim["condition"]
        where = f"{conditions.get(name, name) if name else 'over several conditions'}: " if several else ""
        line = f"{claim['verdict']:<20} {where}{claim['sentence']}"
        if claim["verdict"] == "not measured":
            on = " on every set" if claim["across"] == "average" else " on one of the sets" if claim["across"] else ""
            line += f" ({claim['reason'] or f'no seed has the values of all its arms{on}'})"
        if claim["estimate"] is not None:
            low, high = claim["interval"] or (None, None)
            spread = "" if low is None else f" [{low:+.4g}, {high:+.4g}]"
            what = "item" if claim["about"] == "models" else "set" if claim["across"] == "new" else "seed"
            counted = f"{claim['n']:,} {what}{'s' * (claim['n'] != 1)}"
            arms: list[str] = claim["arms"]
            compared = " - ".join(labels.get(arm, arm) for arm in arms)
            compared += f", {metrics.get(claim['metric'], claim['metric'])}"
            difference = amount(f"{claim['estimate']:+.4g}{spread}", claim["unit"])
            line += f" ({compared}: {difference}, {counted})"
        print(line)
    if not_run := {claim["sentence"] for claim in without}:
        print(stated(len(not_run), more=len(without) < len(summary["claims"])))
