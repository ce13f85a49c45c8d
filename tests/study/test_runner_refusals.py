"""Directories, runs and data that a study refuses."""

import os

import pytest
from runs_for_tests import contents, read, run
from tasks_for_tests import CONDITIONS, plan

from retarget.errors import UserError
from retarget.files import locked, write_json
from retarget.study.config import Arm


@pytest.fixture(scope="module")
def finished_small(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    run(plan(seeds=[0]), root)
    return root


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
    with pytest.raises(UserError, match=r"cannot write .*thesis\.tex is a file, not a directory\. Choose another"):
        run(plan(), tmp_path / "thesis.tex")


def test_a_damaged_status_is_named(tmp_path):
    run(plan(seeds=[0]), tmp_path)
    (tmp_path / "runs" / "control" / "seed-0" / "status.json").write_text("{")
    with pytest.raises(UserError, match=r"control/seed-0/status\.json is damaged.*Delete it, or its directory"):
        run(plan(seeds=[0]), tmp_path)


def test_data_that_cannot_be_used_is_refused_once_and_before_any_run(tmp_path):
    with pytest.raises(UserError, match="this data cannot be used"):
        run(plan(prepare="tasks_for_tests:refuse"), tmp_path / "s")
    assert not (tmp_path / "s" / "runs").exists()
    corrected = plan(settings={"lift": 0.5}, seeds=[0])
    assert not run(corrected, tmp_path / "s").failed, "no run was begun, so the directory is free"
    assert "earlier_commands" not in read(tmp_path / "s" / "study.json")
