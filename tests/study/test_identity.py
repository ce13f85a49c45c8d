"""Settings, task and data identify a run; older records are recognised."""

import json
import os

import pytest
from tasks_for_tests import plan

from retarget.errors import UserError
from retarget.files import write_json
from retarget.own import importable
from retarget.settings import Strict
from retarget.study.config import Metric
from retarget.study.identity import measured_by, own_sources
from retarget.study.runner import run_study, survey


def read(path):
    return json.loads(path.read_text())


class Settings(Strict):
    lift: float = 0.0
    gravity: float = 9.81


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.npz"
    path.write_bytes(b"first")
    return path


def measured(path, **more):
    return plan(seeds=[0], **more).model_copy(update={"data": (str(path),)})


def test_data_replaced_under_a_study_are_refused_and_brought_back_they_are_not(tmp_path, data):
    run_study(measured(data), tmp_path / "s")
    config = read(tmp_path / "s" / "runs" / "control" / "seed-0" / "config.json")
    assert str(data) in config["content"]
    wider = measured(data).model_copy(update={"seeds": (0, 1)})
    data.write_bytes(b"second")
    for call in (run_study, survey):
        with pytest.raises(UserError, match=rf"the content of {data} = \w+ \(now \w+\)\. Restore the data"):
            call(wider, tmp_path / "s")
    assert not (tmp_path / "s" / "runs" / "control" / "seed-1").exists()
    data.write_bytes(b"first")
    assert run_study(wider, tmp_path / "s").failed == {}


def test_a_dry_run_reads_no_data_that_it_need_not_and_writes_nothing(tmp_path, data):
    os.mkfifo(tmp_path / "pipe")  # who reads it waits for ever
    assert survey(measured(tmp_path / "pipe"), tmp_path / "s")["finished"] == 0
    assert not (tmp_path / "s").exists()
    run_study(measured(data), tmp_path / "s")
    at = data.stat()
    data.write_bytes(b"other")
    os.utime(data, ns=(at.st_atime_ns, at.st_mtime_ns))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert survey(measured(data), tmp_path / "s")["finished"] == 2, "the remembered fingerprint counts"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_data_that_are_gone_stop_no_finished_study(tmp_path, data):
    run_study(measured(data), tmp_path / "s")
    data.unlink()
    assert run_study(measured(data), tmp_path / "s").failed == {}


def test_a_study_that_moves_with_its_data_goes_on_and_other_data_under_another_root_are_refused(tmp_path):
    """Absolute paths, as of a plan that looks beside its own file: another root's data were taken for the first's."""
    roots = [tmp_path / name for name in ("a", "b", "c")]
    for root, text in zip(roots, ("first", "first", "second"), strict=True):
        for part in ("train", "test"):
            (root / part).mkdir(parents=True)
            (root / part / "rows.csv").write_text(f"{text} of {part}")
    here, moved, other = (
        plan(seeds=range(seeds)).model_copy(
            update={"data": (str(root / "train/rows.csv"), str(root / "test/rows.csv"))}
        )
        for root, seeds in zip(roots, (1, 2, 3), strict=True)
    )
    for one in (here, moved):
        assert run_study(one, tmp_path / "s").failed == {}
    where = other.data[0]
    with pytest.raises(UserError, match=rf"the content of {where} = \w+ \(now \w+\)\. Restore the data"):
        run_study(other, tmp_path / "s")


def test_a_changed_source_of_an_own_task_is_refused(tmp_path, monkeypatch):
    source = tmp_path / "own_task_for_identity.py"
    source.write_text("def run(run):\n    return {'height': 1.0 + run.seed}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    metrics = (Metric(name="height", label="height"),)
    own = plan(task="own_task_for_identity:run", analysis=None, claims=(), seeds=[0], metrics=metrics)
    assert run_study(own, tmp_path / "s").failed == {}
    source.write_text("def run(run):\n    return {'height': 2.0 + run.seed}\n")
    with pytest.raises(UserError, match=r"the content of .*own_task_for_identity\.py.* Restore the code of"):
        run_study(own.model_copy(update={"seeds": (0, 1)}), tmp_path / "s")


CHANGING = """
import os
from pathlib import Path

def run(run):
    if run.seed == 0:
        Path(__file__).with_name("FILE").write_text("def run(run): return {'height': 9.0}")
        FIRST
    import HELPER
    return {"height": 1.0 + run.seed}
"""


@pytest.mark.parametrize(
    ("file", "first", "failed"),
    [
        ("TASK.py", "os._exit(1)", ["the worker process died", "TASK.py was changed after this command began"]),
        ("TASK.py", "pass", []),
        ("HELPER.py", "return {'height': 1.0}", ["HELPER.py was changed after this command began"]),
        ("HELPER.py", "import HELPER", ["HELPER.py was changed after this command began"]),
        ("unused.py", "os._exit(1)", ["the worker process died"]),
    ],
    ids=[
        "another worker would load it",
        "it was loaded",
        "no run has loaded it",
        "it was loaded later",
        "not its code",
    ],
)
def test_code_that_is_changed_while_its_study_runs_makes_no_run_under_the_old_fingerprint(
    tmp_path, monkeypatch, file, first, failed
):
    (tmp_path / "unused.py").write_text("")
    task, helper = f"task_of_{tmp_path.name}", f"helper_of_{tmp_path.name}"
    named = [one.replace("TASK", task).replace("HELPER", helper) for one in (file, first, *failed)]
    source = CHANGING.replace("FILE", named[0]).replace("FIRST", named[1]).replace("HELPER", helper)
    (tmp_path / f"{task}.py").write_text(source)
    (tmp_path / f"{helper}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    metrics = (Metric(name="height", label="height"),)
    own = plan(task=f"{task}:run", analysis=None, claims=(), seeds=[0, 1], arms=["control"], metrics=metrics)
    errors = list(run_study(own, tmp_path / "s").failed.values())
    assert len(errors) == len(failed)
    assert all(message in error for message, error in zip(named[2:], errors, strict=True))


def test_the_lines_of_analyse_are_counted_as_the_parser_counts_them(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "lines_of_own.py"
    whole = "A = 1\n\x0c\n\x1c\n\u2028\ndef run(run):\n    return {run}\ndef analyse(results):\n    return {of}\n"
    whole = whole.replace("\x1c\n\u2028\n", '"""\x1c\u2028"""\n')
    found = []
    for run, of in ((1, 2), (1, 3), (4, 3)):
        path.write_text(whole.replace("{run}", str(run)).replace("{of}", str(of)))
        found.append(measured_by(path, {}, ["lines_of_own:run"]))
    assert found[0] == found[1] != found[2]


def test_helpers_in_the_working_directory_are_sources_too(tmp_path, monkeypatch):
    for name, text in {
        "apart/own_of_cwd.py": "import json, numpy, retarget, beside_of_cwd\nfrom helps_of_cwd.inner import part",
        "apart/beside_of_cwd.py": "import beyond_of_cwd",
        "beside_of_cwd.py": "",
        "beyond_of_cwd.py": "",
        "helps_of_cwd/inner/part.py": "from .. import other",
        "helps_of_cwd/other.py": "",
        "numpy/__init__.py": "",
        "unused_of_cwd.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    with importable(tmp_path), importable(tmp_path / "apart"):
        found = own_sources(["own_of_cwd:run", "retarget.pskd:run"])
    assert {name: str(path.relative_to(tmp_path)) for name, path in found.items()} == {
        "own_of_cwd.py": "apart/own_of_cwd.py",
        "beside_of_cwd.py": "apart/beside_of_cwd.py",
        "beyond_of_cwd.py": "beyond_of_cwd.py",
        "helps_of_cwd/inner/part.py": "helps_of_cwd/inner/part.py",
        "helps_of_cwd/other.py": "helps_of_cwd/other.py",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("null", "is damaged: it is not the record of a run. Delete"),
        ("[1]", "is damaged: it is not the record of a run. Delete"),
        ('{"settings": 3}', "is damaged: it is not the record of a run. Delete"),
        ("{}", "was made with study = nothing"),
        (
            '{"task_name": "toy", "run_hash": "x"}',
            "was changed after it was written: its hash is wrong. Delete the run's directory to repeat it",
        ),
    ],
)
def test_a_record_of_a_run_that_is_none_is_named(tmp_path, text, message):
    run_study(plan(seeds=[0], arms=["control"]), tmp_path)
    (tmp_path / "runs" / "control" / "seed-0" / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        survey(plan(seeds=[0], arms=["control"]), tmp_path)


def test_a_record_from_before_names_and_new_settings_is_known_again(tmp_path):
    """The task has moved, a setting was added, another no longer counts, and the recorded hashes are another form's."""
    before = plan(seeds=[0], config={"lift": 0.0, "workers": 2})
    run_study(before, tmp_path)
    for path in tmp_path.glob("runs/*/seed-0/config.json"):
        old = {name: value for name, value in read(path).items() if name not in ("task_name", "unmeasured", "content")}
        write_json(path, old | {"task": "toys.old:walk", "run_hash": "0123456789abcdef"})
    study = read(tmp_path / "study.json")
    study["plan"] = {k: v for k, v in study["plan"].items() if k != "task_name"} | {"task": "toys.old:walk"}
    write_json(tmp_path / "study.json", study)
    kept = {path: path.read_bytes() for path in tmp_path.glob("runs/**/*.json")}
    now = plan(seeds=[0, 1], config={"lift": 0.0, "gravity": 9.81, "workers": 0}).model_copy(
        update={
            "task_name": "toy",
            "former_tasks": ("toys.old:walk",),
            "settings_model": Settings,
            "unmeasured": ("workers",),
        }
    )
    assert survey(now, tmp_path)["finished"] == 2
    assert run_study(now, tmp_path).failed == {}
    assert {path: path.read_bytes() for path in kept} == kept, "a finished run was touched"
    heavier = now.model_copy(update={"settings": {**now.settings, "gravity": 1.6}})
    with pytest.raises(UserError, match=r"gravity = 9\.81 \(now 1\.6\)"):
        survey(heavier, tmp_path)


def test_a_directory_in_which_every_run_failed_is_free_for_other_settings(tmp_path):
    broken = plan(seeds=[0], config={"wrong": "raise", "where": ["treated", 0], "lift": 0.5}, arms=["treated"])
    assert run_study(broken, tmp_path).failed
    mended = plan(seeds=[0], config={"lift": 0.25}, arms=["treated"])
    assert survey(mended, tmp_path)["finished"] == 0
    assert run_study(mended, tmp_path).failed == {}
    assert read(tmp_path / "runs" / "treated" / "seed-0" / "status.json")["attempts"] == 1


def test_claims_that_were_edited_are_refused(tmp_path):
    run_study(plan(seeds=[0]), tmp_path)
    study = read(tmp_path / "study.json")
    study["plan"]["claims"][0]["smallest_effect"] = 0.001
    write_json(tmp_path / "study.json", study)
    with pytest.raises(UserError, match=r"study\.json was changed after it was written: its claims do not match"):
        survey(plan(seeds=[0]), tmp_path)
