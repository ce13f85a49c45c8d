"""A study from its plan to its summary: what it leaves, repeats, widens and says."""

import os
import sys

import numpy as np
import pytest
from runs_for_tests import Seen, contents, read, run, status
from tasks_for_tests import CONDITIONS, STEPS, plan

from retarget.errors import UserError
from retarget.files import write_json
from retarget.study.record import Results, RunResult
from retarget.study.runner import survey


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


def test_a_survey_counts_and_touches_nothing(tmp_path):
    found = survey(plan(), tmp_path / "study", jobs=2)
    assert (found["runs"], found["finished"], found["estimated_minutes"]) == (4, 0, 1.0)
    assert found["plan"] == plan().model_dump(mode="json")
    assert list(tmp_path.iterdir()) == []
    run(plan(seeds=[0]), tmp_path / "study")
    assert survey(plan(), tmp_path / "study")["finished"] == 2
    with pytest.raises(UserError, match="was made with lift"):
        survey(plan(config={"lift": 7.0}), tmp_path / "study")


def test_predictions_of_a_study_can_be_read_again(finished):
    root, _, _ = finished
    found = Results.load(root).run("calm", "control", 0)
    assert isinstance(found, RunResult)
    np.testing.assert_allclose(found.predictions()["path"], np.arange(3) * found.metrics["height"])
    assert [line["step"] for line in found.history()] == list(range(STEPS))


@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_a_log_that_is_gone_or_shorter_than_the_run_wrote_is_named(tmp_path, damage):
    run(plan(seeds=[0]), tmp_path)
    log = tmp_path / "runs" / "control" / "seed-0" / "metrics.jsonl"
    log.unlink() if damage == "deleted" else log.write_text(log.read_text().partition("\n")[0] + "\n")
    found = Results.load(tmp_path).run("default", "control", 0)
    what = "is missing" if damage == "deleted" else "has 1 lines"
    with pytest.raises(
        UserError, match=rf"metrics\.jsonl {what}, but the run had logged 3\. Delete its directory to repeat"
    ):
        found.history()


def test_looking_again_with_more_seeds_is_recorded_and_said(tmp_path):
    run(plan(seeds=(0, 1)), tmp_path / "s")
    run(plan(seeds=(0, 1)), tmp_path / "s")
    again = run(plan(seeds=(0, 1, 2)), tmp_path / "s")
    assert again.summary["looks"] == [[0, 1], [0, 1, 2]]
    notes = read(tmp_path / "s" / "analysis.json")["notes"]
    assert any("Verdicts have been given 2 times in this directory, at 2, 3 seeds" in note for note in notes)


def test_a_dry_run_says_what_could_not_be_done_here(tmp_path):
    unusable = plan().model_copy(update={"check": "tasks_for_tests:refuse"})
    assert survey(unusable, tmp_path / "s")["problem"] == "this data cannot be used"
    assert survey(plan(), tmp_path / "s")["problem"] is None
    run(plan(), tmp_path / "s")
    assert survey(unusable, tmp_path / "s")["problem"] is None, "nothing is left to do"
