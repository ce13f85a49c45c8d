import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tasks_for_tests import CONDITIONS, STEPS, plan

from retarget.errors import UserError
from retarget.files import locked, write_json
from retarget.study.config import Arm, Metric
from retarget.study.progress import Silent
from retarget.study.record import Results, RunResult
from retarget.study.runner import run_study, survey


class Seen(Silent):
    """A display that remembers what it was told."""

    def __init__(self):
        self.told = []

    def start(self, total, finished):
        self.told.append(("start", total, finished))

    def began(self, key):
        self.told.append(("began", key))

    def progressed(self, key, done, total, unit):
        self.told.append(("progressed", key, done, total, unit))

    def ended(self, key, error):
        self.told.append(("ended", key, error))

    def remarked(self, sentence):
        self.told.append(("remarked", sentence))

    def analysing(self):
        self.told.append(("analysing",))

    def all(self, kind):
        return [one[1:] for one in self.told if one[0] == kind]


def run(study, directory, command="retarget study toy", **more):
    return run_study(study, directory, command=command.split(), **more)


def read(path):
    return json.loads(path.read_text())


def status(root, place):
    return read(root / "runs" / place / "status.json")


def contents(root):
    """Everything that the numbers of a study are, as bytes."""
    files = [root / "summary.json", *root.glob("runs/**/metrics.jsonl"), *root.glob("runs/**/predictions.safetensors")]
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(files)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished study with two conditions: its directory, outcome, and what its display was told."""
    root = tmp_path_factory.mktemp("finished")
    seen = Seen()
    return root, run(plan(conditions=CONDITIONS), root, jobs=2, display=seen), seen


def test_a_study_leaves_the_directory_that_other_programs_read(finished):
    root, outcome, _ = finished
    assert outcome.failed == {}
    assert outcome.summary == read(root / "summary.json")
    record = read(root / "study.json")
    assert record["command"] == "retarget study toy"
    assert record["claims_hash"] == plan().claims_hash()
    assert record["plan"] == plan(conditions=CONDITIONS).model_dump(mode="json")
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "numpy", "retarget"} <= set(record["versions"])
    assert set(record["hardware"]) == {"platform", "cpu", "cores", "memory_gib", "gpus"}
    place = root / "runs" / "windy" / "treated" / "seed-1"
    files = {path.name for path in place.iterdir() if not path.name.startswith(".")}
    assert files >= {"config.json", "metrics.jsonl", "predictions.safetensors", "status.json", "checkpoint"}
    config = read(place / "config.json")
    assert config["settings"] == {"lift": 1.0, "wind": 0.5}
    assert (config["condition"], config["arm"], config["seed"], config["threads"]) == ("windy", "treated", 1, 1)
    assert status(root, "windy/treated/seed-1")["state"] == "complete"


def test_the_summary_aligns_with_the_seeds_and_holds_the_analysis_too(finished):
    root, outcome, _ = finished
    summary = outcome.summary
    assert list(summary) == ["study", "preset", "seeds", "conditions", "claims", "looks"]
    assert (summary["study"], summary["preset"], summary["seeds"]) == ("toy", "demo", [0, 1])
    assert {c: list(arms) for c, arms in summary["conditions"].items()} == {
        "calm": ["control", "treated"],
        "windy": ["control", "treated"],
    }
    results = Results.load(root)
    cell = summary["conditions"]["windy"]["treated"]["height"]
    expected = [results.run("windy", "treated", seed).metrics["height"] for seed in (0, 1)]
    assert cell == {"mean": np.mean(expected), "sd": pytest.approx(np.std(expected, ddof=1)), "values": expected}
    assert sorted(summary["conditions"]["calm"]["control"]["rank"]["values"]) == [0.0, 1.0]
    assert read(root / "analysis.json")["figures"][0]["title"] == "Seeds"
    (claim,) = summary["claims"]
    assert claim["verdict"] == "not measured", "its condition is called default, and there is none"


def test_the_display_is_told_of_every_run(finished):
    _, _, seen = finished
    assert seen.told[0] == ("start", 8, 0)
    keys = {f"{c}/{arm}/seed-{seed}" for c in ("calm", "windy") for arm in ("control", "treated") for seed in (0, 1)}
    assert {key for (key,) in seen.all("began")} == keys
    assert {key for key, error in seen.all("ended") if error is None} == keys
    assert ("windy/treated/seed-1", STEPS, STEPS, "step") in seen.all("progressed")


def test_what_the_first_run_of_an_arm_says_is_told_once(tmp_path):
    seen = Seen()
    run(plan(seeds=[0, 1]).model_copy(update={"remark": "tasks_for_tests:remark"}), tmp_path, display=seen)
    ((sentence,),) = seen.all("remarked")
    first = status(tmp_path, "control/seed-0")["metrics"]["height"]
    assert sentence == f"the control is {first:.3f} m high"
    ends = [one for one in seen.told if one[0] in ("ended", "remarked")]
    assert ends.index(("remarked", sentence)) == 1, "at once, before the other runs"


def test_jobs_change_no_result(finished, tmp_path):
    root, _, _ = finished
    run(plan(conditions=CONDITIONS), tmp_path, jobs=1)
    assert contents(tmp_path) == contents(root)


def test_finished_runs_are_never_repeated(tmp_path):
    run(plan(), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/**/*") if path.is_file()}
    seen = Seen()
    run(plan(), tmp_path, display=seen)
    assert seen.told == [("start", 4, 4), ("analysing",)]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_study_is_widened_in_its_directory(tmp_path):
    run(plan(seeds=[3], arms=["treated"]), tmp_path, "widen")
    first = read(tmp_path / "summary.json")
    assert first["claims"][0]["verdict"] == "not measured"
    assert list(first["conditions"]["default"]) == ["treated"]
    seen = Seen()
    run(plan(seeds=[0, 3], arms=["control"]), tmp_path, "again", display=seen)
    assert {key for (key,) in seen.all("began")} == {"default/control/seed-0", "default/control/seed-3"}
    second = read(tmp_path / "summary.json")
    assert second["seeds"] == [0, 3]
    treated = second["conditions"]["default"]["treated"]["height"]
    assert treated["values"] == [None, *first["conditions"]["default"]["treated"]["height"]["values"]]
    assert (second["claims"][0]["n"], second["claims"][0]["verdict"]) == (1, "not enough evidence")
    run(plan(seeds=[0, 3]), tmp_path)
    assert read(tmp_path / "summary.json")["claims"][0]["n"] == 2
    run(plan(seeds=[3, 0]), tmp_path.parent / "at once")
    widened, at_once = read(tmp_path / "summary.json"), read(tmp_path.parent / "at once" / "summary.json")
    assert (widened.pop("looks"), at_once.pop("looks")) == ([[3], [0, 3]], [[0, 3]])
    assert widened == at_once
    both = contents(tmp_path), contents(tmp_path.parent / "at once")
    assert all(files.pop("summary.json") for files in both)
    assert both[0] == both[1]
    assert read(tmp_path / "study.json")["earlier_commands"] == ["widen", "again"]


def test_what_was_planned_but_never_begun_leaves_no_trace(tmp_path):
    write_json(
        tmp_path / "study.json",
        {"plan": plan(seeds=[7, 8]).model_dump(mode="json"), "claims_hash": plan().claims_hash()},
    )
    run(plan(seeds=[0], arms=["control"]), tmp_path)
    assert Results.load(tmp_path).seeds == (0,)
    assert [arm.name for arm in Results.load(tmp_path).plan.arms] == ["control"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(settings={"lift": 0.5}), r"was made with lift = 0\.0 \(now 0\.5\)\. Choose another --out"),
        (dict(preset="small"), r"was made with preset = demo \(now small\)"),
        (dict(threads=2), r"was made with threads = 1 \(now 2\)"),
        (dict(settings={"lift": 0.5}, threads=2), r"with threads = 1 \(now 2\), lift = 0\.0 \(now 0\.5\)\."),
        (dict(conditions=CONDITIONS), r"condition calm = nothing \(now there\).*condition windy: wind = nothing"),
        (dict(claims=()), r"differ \(higher\): claims must not change after results have been seen"),
        (dict(level=0.9), r"differ \(level 0\.95, now 0\.9\): claims must not change after results have been seen"),
        (dict(arms=(Arm(name="treated", label="", settings={"lift": 9}),)), r"arm treated: lift = 1\.0 \(now 9\)"),
        (dict(task="tasks_for_tests:nan"), r"task = tasks_for_tests:\w+ \(now tasks_for_tests:nan\)"),
        (dict(task_name="toy-2"), r"task = tasks_for_tests:\w+ \(now toy-2\)"),
    ],
)
def test_a_directory_made_with_something_else_is_refused(finished_small, changed, message):
    if changed.get("task_name"):  # other numbers from the same import path: records that had a name keep it
        run(plan(seeds=[0]).model_copy(update={"task_name": "toy-1"}), finished_small.parent / "named")
        finished_small, message = finished_small.parent / "named", r"task = toy-1 \(now toy-2\)"
    before = contents(finished_small)
    with pytest.raises(UserError, match=message):
        run(plan().model_copy(update=changed), finished_small)
    assert contents(finished_small) == before


def test_claims_of_a_later_version_are_named_and_not_judged(tmp_path):
    run(plan(seeds=[0]), tmp_path)
    (known,) = plan().claims
    later = plan(seeds=[0, 1]).model_copy(update={"claims": (known, known.model_copy(update={"id": "new"}))})
    outcome = run(later, tmp_path)
    assert [claim["id"] for claim in outcome.summary["claims"]] == [known.id]
    assert outcome.summary["claims"][0]["n"] == 2
    assert read(tmp_path / "study.json")["claims_hash"] == plan().claims_hash()
    (note,) = [one for one in read(tmp_path / "analysis.json")["notes"] if one.startswith("Not judged here")]
    assert note.startswith("Not judged here: new.")


@pytest.fixture(scope="module")
def finished_small(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    run(plan(seeds=[0]), root)
    return root


def test_a_run_that_was_edited_or_made_otherwise_is_refused(tmp_path):
    study = plan(seeds=[0])
    run(study, tmp_path)
    path = tmp_path / "runs" / "control" / "seed-0" / "config.json"
    whole = read(path)
    (tmp_path / "summary.json").unlink()
    write_json(path, whole | {"settings": {"lift": 3.0}})
    with pytest.raises(UserError, match=r"control/seed-0/config\.json was changed after it was written"):
        run(study, tmp_path)
    other = plan(seeds=[0], config={"lift": 3.0})
    write_json(
        path, whole | {"settings": {"lift": 3.0}, "run_hash": other.run_hash(other.conditions[0], other.arms[0], 0)}
    )
    with pytest.raises(UserError, match=r"control/seed-0 was made with lift = 3\.0 \(now 0\.0\)"):
        run(study, tmp_path)
    assert not (tmp_path / "summary.json").exists()


def wrong(what, arm="treated", seed=0, **more):
    return plan(config={"wrong": what, "where": [arm, seed], **more})


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("raise", "RuntimeError: the walk fell"),
        ("exit", "SystemExit: the walk left"),
        ("die", "the worker process died (SIGKILL, as when memory ran out)"),
        ("_exit", "the worker process died (exit code 0)"),
    ],
)
def test_a_failed_run_is_recorded_the_others_go_on_and_a_rerun_tries_again(tmp_path, what, error):
    study = wrong(what, once=str(tmp_path / "once"))
    outcome = run(study, tmp_path / "study")
    assert list(outcome.failed) == ["default/treated/seed-0"]
    assert outcome.failed["default/treated/seed-0"].startswith(error)
    failed = status(tmp_path / "study", "treated/seed-0")
    assert (failed["state"], failed["attempts"]) == ("failed", 1)
    assert failed["error"].startswith(error)
    if what == "raise":
        assert 'raise RuntimeError("the walk fell")' in failed["traceback"]
        assert failed["traceback"].startswith("Traceback (most recent call last)")
    if what == "die":
        assert (tmp_path / "study" / "runs" / "treated" / "seed-0" / "output.log").read_text() == "last words\n"
    treated = outcome.summary["conditions"]["default"]["treated"]["height"]["values"]
    assert treated[0] is None
    assert treated[1] is not None
    assert outcome.summary["claims"][0]["n"] == 1
    again = run(study, tmp_path / "study")
    assert again.failed == {}
    assert status(tmp_path / "study", "treated/seed-0")["attempts"] == 2
    assert status(tmp_path / "study", "control/seed-0")["attempts"] == 1


def test_a_full_disk_fails_the_run_with_a_clear_error(tmp_path):
    outcome = run(wrong("full disk", once=str(tmp_path / "once")), tmp_path / "study", jobs=2)
    error = outcome.failed["default/treated/seed-0"]
    assert "cannot write" in error
    assert "treated/seed-0" in error
    assert "free some space or choose another place, then run the same command again" in error
    assert status(tmp_path / "study", "treated/seed-0")["state"] == "failed"
    assert run(wrong("full disk", once=str(tmp_path / "once")), tmp_path / "study").failed == {}


def test_a_metric_that_is_not_finite_fails_the_run_unless_it_is_optional(tmp_path):
    outcome = run(plan(task="tasks_for_tests:nan", analysis=None, seeds=[0], arms=["control"]), tmp_path / "strict")
    assert outcome.failed == {
        "default/control/seed-0": "MetricsError: the run's final metrics are not finite: height = nan"
    }
    optional = (Metric(name="height", label="height", optional=True), Metric(name="rank", label="rank"))
    outcome = run(
        plan(task="tasks_for_tests:nan", analysis=None, seeds=[0], arms=["control"], metrics=optional), tmp_path / "lax"
    )
    assert outcome.failed == {}
    assert list(outcome.summary["conditions"]["default"]["control"]) == ["rank"]


def test_a_task_that_returns_no_metrics_fails(tmp_path):
    outcome = run(plan(task="tasks_for_tests:text", analysis=None, seeds=[0], arms=["control"]), tmp_path)
    assert "tasks_for_tests:text returned str, not a dictionary of metrics" in str(outcome.failed)


@pytest.mark.parametrize("task", ["no_such_module:run", "tasks_for_tests:no_such_function", "tasks_for_tests"])
def test_a_task_that_cannot_be_imported_ends_the_study_at_once(tmp_path, task):
    seen = Seen()
    with pytest.raises(UserError, match=f"the study's task {task} cannot be imported: "):
        run(plan(task=task, analysis=None), tmp_path, display=seen)
    assert len(seen.all("began")) == 1


def chain(**more):
    """third needs second needs first; the order of the list is the wrong one."""
    arms = (
        Arm(name="third", label="3", needs=("second",)),
        Arm(name="second", label="2", needs=("first",)),
        Arm(name="first", label="1"),
    )
    return plan(task="tasks_for_tests:follow", analysis=None, seeds=[0, 1], claims=(), metrics=()).model_copy(
        update={"arms": arms, **more}
    )


def test_an_arm_starts_when_what_it_needs_is_finished(tmp_path):
    study = chain()
    second = study.arms[1].model_copy(update={"needs": ("first",)})
    third = study.arms[0].model_copy(update={"needs": ("first",)})
    seen = Seen()
    outcome = run(study.model_copy(update={"arms": (third, second, study.arms[2])}), tmp_path, jobs=2, display=seen)
    assert outcome.failed == {}
    order = [key for key, _ in seen.all("ended")]
    for seed in (0, 1):
        assert order.index(f"default/first/seed-{seed}") < order.index(f"default/second/seed-{seed}")
    heights = {arm: cell["height"]["values"] for arm, cell in outcome.summary["conditions"]["default"].items()}
    assert heights == {"third": [11, 12], "second": [11, 12], "first": [10, 11]}


def test_what_needs_a_failed_run_fails_because_of_it(tmp_path):
    """``second`` asks for what its needs do not name, so it fails; ``third`` needs it."""
    study = chain()
    arms = (study.arms[0], study.arms[1].model_copy(update={"needs": ()}), study.arms[2])
    outcome = run(study.model_copy(update={"arms": arms, "seeds": (0,)}), tmp_path)
    assert "which is missing in its needs" in outcome.failed["default/second/seed-0"]
    assert outcome.failed["default/third/seed-0"] == "it needs default/second/seed-0, which failed"
    assert status(tmp_path, "third/seed-0")["state"] == "failed"
    assert status(tmp_path, "first/seed-0")["state"] == "complete"


def test_needs_that_cannot_be_met_are_refused_before_anything_runs(tmp_path):
    study = chain()
    with pytest.raises(UserError, match="arm second needs the run of arm first with seed 0, which is not finished"):
        run(study.model_copy(update={"arms": (study.arms[1],)}), tmp_path / "a")
    circle = study.arms[2].model_copy(update={"needs": ("third",)})
    with pytest.raises(UserError, match="arms need one another in a circle"):
        run(study.model_copy(update={"arms": (*study.arms[:2], circle)}), tmp_path / "b")
    assert not list(tmp_path.glob("*/runs"))
    run(study.model_copy(update={"arms": (study.arms[2],)}), tmp_path / "a")
    outcome = run(study.model_copy(update={"arms": (study.arms[1],)}), tmp_path / "a")
    assert outcome.failed == {}, "a finished run of an earlier call serves"


def test_every_run_finds_the_same_world_whichever_worker_does_it(tmp_path):
    study = plan(task="tasks_for_tests:surroundings", analysis=None, seeds=[0, 1, 2], threads=3, claims=(), metrics=())
    one = run(study, tmp_path / "one", jobs=1).summary["conditions"]["default"]
    two = run(study, tmp_path / "two", jobs=2).summary["conditions"]["default"]
    for name in ("python", "numpy", "omp"):
        assert one["control"][name] == two["control"][name] == one["treated"][name]
    assert one["control"]["omp"]["values"] == [3, 3, 3]
    processes = [value for cells in (one, two) for arm in cells.values() for value in arm["process"]["values"]]
    assert len(set(processes[:6])) == 1, "the workers are long-lived"
    assert 1 <= len(set(processes[6:])) <= 2
    assert os.environ["OMP_NUM_THREADS"] == "1", "the parent's own environment is left alone"


def test_threads_belong_to_the_run_and_jobs_change_no_bit_of_a_gradient(tmp_path):
    study = plan(
        task="tasks_for_tests:torch_gradient",
        analysis=None,
        seeds=[0, 1],
        arms=["control"],
        threads=2,
        claims=(),
        metrics=(),
    )
    one, two = (run(study, tmp_path / str(jobs), jobs=jobs).summary["conditions"]["default"] for jobs in (1, 2))
    assert one == two
    assert one["control"]["threads"]["values"] == [2, 2]


def test_a_directory_in_use_is_refused_with_the_process_named(tmp_path):
    with (
        locked(tmp_path / ".lock", wait=False, what=""),
        pytest.raises(UserError, match=rf"{tmp_path} is in use by process {os.getpid()}\. Wait until it ends"),
    ):
        run(plan(), tmp_path)
    assert not (tmp_path / "study.json").exists()


def test_a_directory_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"is not empty but holds no study \(it has thesis\.tex\)"):
        run(plan(), tmp_path)
    with pytest.raises(UserError, match=r"cannot write .*thesis\.tex"):
        run(plan(), tmp_path / "thesis.tex")


def test_a_damaged_status_is_named(tmp_path):
    run(plan(seeds=[0]), tmp_path)
    (tmp_path / "runs" / "control" / "seed-0" / "status.json").write_text("{")
    with pytest.raises(UserError, match=r"control/seed-0/status\.json is damaged.*Delete it, or its directory"):
        run(plan(seeds=[0]), tmp_path)


def test_a_survey_counts_and_touches_nothing(tmp_path):
    found = survey(plan(), tmp_path / "study", jobs=2)
    assert (found["runs"], found["finished"], found["estimated_minutes"]) == (4, 0, 1.0)
    assert found["plan"] == plan().model_dump(mode="json")
    assert list(tmp_path.iterdir()) == []
    run(plan(seeds=[0]), tmp_path / "study")
    assert survey(plan(), tmp_path / "study")["finished"] == 2
    with pytest.raises(UserError, match="was made with lift"):
        survey(plan(config={"lift": 7.0}), tmp_path / "study")


PROCESS = Path(__file__).parent / "study_process.py"


def start(directory, *words, **environment):
    """``retarget study toy`` in a process of its own."""
    command = [sys.executable, str(PROCESS), "study", "toy", "--out", str(directory), *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, timeout=900, check=False
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("uninterrupted")
    run(plan(), root)
    return contents(root)


@pytest.mark.parametrize(("who", "at"), [("PARENT", 1), ("PARENT", 3), *(("WORKER", at) for at in (1, 4, 9, 13))])
def test_killed_at_any_moment_and_resumed_equals_uninterrupted(tmp_path, uninterrupted, who, at):
    """The parent renames study.json, analysis.json, summary.json; a worker opens and renames its run's files: log and
    checkpoint in turn, predictions, status."""
    done = start(tmp_path, **{f"RETARGET_TEST_KILL_{who}_AT": str(at)})
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = {path.parent for path in tmp_path.glob("runs/**/status.json") if read(path)["state"] == "complete"}
    run(plan(), tmp_path, jobs=2)
    assert contents(tmp_path) == uninterrupted
    for directory in finished:
        assert read(directory / "status.json")["attempts"] == 1, "a finished run was repeated"
    assert not list(tmp_path.glob("**/.*.tmp"))


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_stops_the_workers_and_says_how_to_go_on(tmp_path, number):
    settings = [f'wrong="parent:{number}"', 'where=["treated", 0]', f'once="{tmp_path / "once"}"']
    words = ["--set", *settings, "--jobs", "2"]
    done = start(tmp_path / "study", *words)
    assert done.returncode == 130, done.stderr
    assert "Interrupted; finished runs are kept. To go on: retarget study toy --out" in done.stderr
    assert done.stderr.rstrip().endswith("--jobs 2")
    assert "Traceback" not in done.stderr
    kept = [path for path in (tmp_path / "study").glob("runs/**/status.json") if read(path)["state"] == "complete"]
    study = plan(config={"wrong": f"parent:{number}", "where": ["treated", 0], "once": str(tmp_path / "once")})
    outcome = run(study, tmp_path / "study")  # no worker was left to hold a lock
    assert outcome.failed == {}
    assert all(read(path)["attempts"] == 1 for path in kept)


def test_predictions_of_a_study_can_be_read_again(finished):
    root, _, _ = finished
    found = Results.load(root).run("calm", "control", 0)
    assert isinstance(found, RunResult)
    np.testing.assert_allclose(found.predictions()["path"], np.arange(3) * found.metrics["height"])
    assert [line["step"] for line in found.history()] == list(range(STEPS))


def test_looking_again_with_more_seeds_is_recorded_and_said(tmp_path):
    run(plan(seeds=(0, 1)), tmp_path / "s")
    run(plan(seeds=(0, 1)), tmp_path / "s")
    again = run(plan(seeds=(0, 1, 2)), tmp_path / "s")
    assert again.summary["looks"] == [[0, 1], [0, 1, 2]]
    notes = read(tmp_path / "s" / "analysis.json")["notes"]
    assert any("Verdicts have been given 2 times in this directory, at 2, 3 seeds" in note for note in notes)


def test_data_that_cannot_be_used_is_refused_once_and_before_any_run(tmp_path):
    with pytest.raises(UserError, match="this data cannot be used"):
        run(plan(prepare="tasks_for_tests:refuse"), tmp_path / "s")
    assert not (tmp_path / "s" / "runs").exists()
    corrected = plan(settings={"lift": 0.5}, seeds=[0])
    assert not run(corrected, tmp_path / "s").failed, "no run was begun, so the directory is free"
    assert "earlier_commands" not in read(tmp_path / "s" / "study.json")


def test_a_dry_run_says_what_could_not_be_done_here(tmp_path):
    unusable = plan().model_copy(update={"check": "tasks_for_tests:refuse"})
    assert survey(unusable, tmp_path / "s")["problem"] == "this data cannot be used"
    assert survey(plan(), tmp_path / "s")["problem"] is None
    run(plan(), tmp_path / "s")
    assert survey(unusable, tmp_path / "s")["problem"] is None, "nothing is left to do"
