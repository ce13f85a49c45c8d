import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tasks_for_tests import CONDITIONS, plan

from retarget.errors import UserError
from retarget.files import locked, write_json
from retarget.study.record import Results, Run, RunResult, read_history, read_status, run_directory, write_status
from retarget.study.runner import analyse


def make(directory, **more):
    return Run.create(directory, settings={"lr": 0.1}, arm="pskd", condition="noisy", seed=3, threads=2, **more)


def test_a_run_works_alone(tmp_path):
    run = make(tmp_path / "deep" / "run")
    assert run.checkpoint.is_dir()
    assert run.checkpoint == tmp_path / "deep" / "run" / "checkpoint"
    assert (run.settings, run.arm, run.condition, run.seed, run.threads) == ({"lr": 0.1}, "pskd", "noisy", 3, 2)
    run.progress(1, 2)
    run.log(0, loss=torch.tensor(0.5), top1=np.float32(2))
    assert RunResult(run.directory, {}).history() == [{"step": 0, "loss": 0.5, "top1": 2.0}]


@given(
    total=st.integers(1, 8),
    stops=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3), st.booleans()), max_size=4),
)
def test_a_log_that_is_killed_and_resumed_equals_an_uninterrupted_one(tmp_path_factory, total, stops):
    whole, broken = (make(tmp_path_factory.mktemp("log")) for _ in range(2))
    for step in range(total):
        whole.log(step, loss=step / 3, bad=float("nan"))
    step = 0
    for stop, back, torn in stops:
        for step in range(step, min(stop, total)):  # noqa: B020 - goes on from where it is
            broken.log(step, loss=step / 3, bad=float("nan"))
        if torn:
            with (broken.directory / "metrics.jsonl").open("a") as file:
                file.write('{"step": 99, "lo')
        broken = make(broken.directory)
        step = max(0, step - back)  # the last checkpoint may be older than the log
    for step in range(step, total):  # noqa: B020
        broken.log(step, loss=step / 3, bad=float("nan"))
    assert (broken.directory / "metrics.jsonl").read_bytes() == (whole.directory / "metrics.jsonl").read_bytes()


def test_values_that_are_not_finite_are_logged_as_null(tmp_path):
    run = make(tmp_path)
    run.log(4, loss=float("inf"))
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 4, "loss": null}\n'


def test_a_step_that_is_logged_twice_keeps_the_values_of_both(tmp_path):
    run = make(tmp_path)
    for epoch in range(2):
        run.log(epoch, train=1.0 - epoch)
        run.log(epoch, val=2.0 - epoch)
    assert RunResult(tmp_path, {}).history() == [
        {"step": 0, "train": 1.0, "val": 2.0}, {"step": 1, "train": 0.0, "val": 1.0}
    ]  # fmt: skip
    make(tmp_path).log(0, train=3.0)
    assert RunResult(tmp_path, {}).history() == [{"step": 0, "train": 3.0, "val": 2.0}]


def test_a_damaged_log_names_the_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged"):
        make(tmp_path)


def test_predictions_come_back_as_they_were(tmp_path):
    arrays = {
        "float": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3).T,
        "flag": np.array([True, False]),
        "scalar": np.array(7),
        "tensor": torch.arange(4).reshape(2, 2),
        "half": torch.tensor([0.5, 1.5], dtype=torch.bfloat16, requires_grad=True),
        "list": [1, 2, 3],
    }
    run = make(tmp_path)
    run.save_predictions(old=np.zeros(3))
    run.save_predictions(**arrays)
    found = RunResult(tmp_path, {}).predictions()
    assert sorted(found) == sorted(arrays)
    for name, value in arrays.items():
        expected = value.detach().float().numpy() if name == "half" else np.asarray(value)
        np.testing.assert_array_equal(found[name], expected, strict=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "predictions.safetensors"]


def test_predictions_that_are_no_numbers_are_refused_and_leave_the_file_alone(tmp_path):
    run = make(tmp_path)
    run.save_predictions(a=np.ones(2))
    with pytest.raises(TypeError, match="'names' hold <U1"):
        run.save_predictions(a=np.zeros(2), names=np.array(["x"]))
    assert RunResult(tmp_path, {}).predictions()["a"].tolist() == [1, 1]


def test_missing_predictions_are_named(tmp_path):
    with pytest.raises(UserError, match=r"has no predictions\.safetensors"):
        RunResult(tmp_path, {}).predictions()


@pytest.mark.parametrize("content", [b"", b"\x05\0\0", b"\xff" * 40, None])
def test_damaged_predictions_are_named_with_what_to_do(tmp_path, content):
    make(tmp_path).save_predictions(a=np.arange(9.0))
    path = tmp_path / "predictions.safetensors"
    path.write_bytes(path.read_bytes()[:-8] if content is None else content)
    with pytest.raises(UserError, match=r"predictions\.safetensors is damaged: .* Delete its directory to repeat"):
        RunResult(tmp_path, {}).predictions()


def test_a_log_that_is_no_text_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0}\n\xff\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: .* Delete its directory to repeat"):
        RunResult(tmp_path, {}).history()


def test_an_array_that_the_predictions_lack_is_named(tmp_path):
    make(tmp_path).save_predictions(a=np.ones(2))
    arrays = RunResult(tmp_path, {}).predictions()
    assert arrays.get("val_logits") is None
    with pytest.raises(UserError, match=r"predictions\.safetensors has no array 'val_logits' \(it has a\)\. Delete"):
        arrays["val_logits"]


def test_other_hands_out_finished_runs_that_the_arm_needs(tmp_path):
    base = make(tmp_path / "base")
    run = make(tmp_path / "run", needs={"base": base.directory})
    with pytest.raises(UserError, match="which is not complete"):
        run.other("base")
    write_json(base.directory / "status.json", {"state": "complete", "metrics": {}})
    assert run.other("base") == base.directory
    with pytest.raises(UserError, match="asks for the run of arm pskd, which is missing in its needs"):
        run.other("pskd")


def test_progress_always_tells_the_end(tmp_path):
    told = []
    run = make(tmp_path, report=lambda *message: told.append(message))
    for done in range(1, 1001):
        run.progress(done, 1000, "step")
    assert told[0] == (1, 1000, "step")
    assert told[-1] == (1000, 1000, "step")
    assert len(told) < 1000


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write .*file/run/checkpoint: .*/file is a file, not a directory\. Choose"
    ):
        make(tmp_path / "file" / "run")
    run = make(tmp_path / "run")
    (tmp_path / "run" / "predictions.safetensors").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*predictions\.safetensors"):
        run.save_predictions(a=np.ones(1))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint", "predictions.safetensors"]


def test_the_condition_has_a_level_unless_it_is_the_only_one(tmp_path):
    assert run_directory(tmp_path, plan(), "default", "control", 1) == tmp_path / "runs" / "control" / "seed-1"
    two = plan(conditions=CONDITIONS)
    assert run_directory(tmp_path, two, "calm", "control", 1) == tmp_path / "runs" / "calm" / "control" / "seed-1"


def test_results_load_from_a_directory_alone(tmp_path):
    study = plan(seeds=[0, 5])
    write_json(tmp_path / "study.json", {"plan": study.model_dump(mode="json"), "versions": {}})
    for seed, state in ((0, {"state": "complete", "metrics": {"height": 1.5}}), (5, {"state": "failed"})):
        directory = run_directory(tmp_path, study, "default", "control", seed)
        directory.mkdir(parents=True)
        write_json(directory / "status.json", state)
    results = Results.load(tmp_path)
    assert results.plan == study
    assert results.seeds == (0, 5)
    assert results.directory == tmp_path
    run = results.run("default", "control", 0)
    assert run is not None
    assert run.metrics == {"height": 1.5}
    assert run.history() == []
    assert results.runs("default", "control") == [run, None]
    assert results.run("default", "treated", 0) is None


def test_results_of_something_else_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a study's directory: it has no study\.json"):
        Results.load(tmp_path)
    (tmp_path / "study.json").write_text('{"plan": ')
    with pytest.raises(UserError, match=r"study\.json is damaged"):
        Results.load(tmp_path)


def test_json_is_whole_or_absent(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_a_lock_is_exclusive_and_a_stale_one_does_no_harm(tmp_path):
    (tmp_path / "lock").write_text("999999\n")  # what a process that died left behind
    with (
        locked(tmp_path / "lock", wait=False, what="DIR"),
        pytest.raises(UserError, match=rf"DIR is in use by process {os.getpid()}\."),
        locked(tmp_path / "lock", wait=False, what="DIR"),
    ):
        pytest.fail("locked twice")
    with locked(tmp_path / "lock", wait=False, what="DIR"):
        assert (tmp_path / "lock").read_text() != "999999\n"


def test_an_edited_metric_is_noticed_and_an_older_record_has_no_seal(tmp_path):
    write_status(tmp_path, {"state": "complete", "run_hash": "a", "attempts": 1, "metrics": {"top1": 70.0}})
    assert read_status(tmp_path) == {"state": "complete", "run_hash": "a", "attempts": 1, "metrics": {"top1": 70.0}}
    path = tmp_path / "status.json"
    whole = json.loads(path.read_text())
    for edited in ({"metrics": {"top1": 71.0}}, {"metrics": {"top1": float("nan")}}, {"metrics": None}, {"seal": 3}):
        path.write_text(json.dumps(whole | edited))
        with pytest.raises(UserError, match=r"status\.json was changed after it was written\. Delete its directory"):
            read_status(tmp_path)
    for damaged in ("[]", "{}", '{"state": 3}'):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"status\.json is damaged: it has no state"):
            read_status(tmp_path)
    path.write_text(json.dumps({name: value for name, value in whole.items() if name != "seal"}))
    assert read_status(tmp_path)["metrics"] == {"top1": 70.0}


@pytest.mark.parametrize("text", ["null", "[1]", '{"looks": 3}'])
def test_a_summary_that_is_none_is_named_when_the_study_is_judged_again(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UserError, match=r"summary\.json is damaged: it is not a summary of a study"):
        analyse(tmp_path, plan(seeds=[0]).model_copy(update={"analysis": None}))


@pytest.mark.parametrize("line", ["[1]", "{}", '{"step": "3"}'])
def test_a_logged_line_without_its_step_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged: it has no step\. Delete its directory"):
        read_history(tmp_path / "metrics.jsonl")


def test_a_plan_that_is_none_is_one_line(tmp_path):
    (tmp_path / "study.json").write_text('{"plan": 3}')
    with pytest.raises(UserError, match=r"study\.json is not a study that this version can read: plan must be [^\n]*$"):
        Results.load(tmp_path)
