"""Runs of two directories, made on two machines say, are put together by copying; complete ones are not repeated."""

import json
import shutil

from tasks_for_tests import plan

from retarget.study.runner import run_study


def test_copied_runs_are_known_and_not_repeated(tmp_path):
    for name, seeds in (("first", [0]), ("second", [1])):
        run_study(plan(seeds=seeds), tmp_path / name)
    shutil.copytree(tmp_path / "second" / "runs", tmp_path / "first" / "runs", dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "first" / "runs").rglob("status.json")}
    run_study(plan(seeds=[0, 1]), tmp_path / "first")
    assert len(before) == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before
    summary = json.loads((tmp_path / "first" / "summary.json").read_text())
    assert summary["claims"][0]["n"] == 2
