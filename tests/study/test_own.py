"""``retarget study FILE.py``: which files of a user can be used, and the errors for those that cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from retarget import own as parts
from retarget.cli import main
from retarget.errors import UserError

HEAD = """
from retarget.study import Arm, Claim, Metric, StudyPlan
import json

def one(**more):
    given = dict(
        study="walks", title="Walks", question="Higher?", settings={"lift": 0.0, "deep": {"a": 1, "b": 2}},
        arms=(Arm(name="low", label="low"), Arm(name="high", label="high", settings={"lift": 1.0})),
        metrics=(Metric(name="height", label="height"), Metric(name="width", label="width", optional=True)),
        claims=(Claim(id="higher", sentence="It is higher.", metric="height", direction="higher",
                      arms=("high", "low"), smallest_effect=0.5),),
        seeds=(0, 1, 2))
    return StudyPlan(**{**given, **more})
"""
PLAN = HEAD + "plan = one()\n"
RUN = "def run(run):\n    return {'height': run.settings['lift'] + 0.01 * run.seed * (run.arm == 'high')}\n"
UNIQUE = iter(range(1000))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module with a fresh name into the working directory; returns its path."""
    monkeypatch.chdir(tmp_path)
    return lambda text, name=None: _written(tmp_path / f"{name or f'own_{next(UNIQUE)}'}.py", text)


def _written(path, text):
    path.write_text(text)
    return path


def call(capsys, *words):
    code = main(["study", *map(str, words)])
    return code, *capsys.readouterr()


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_a_plan_and_a_run_are_a_study_with_page_that_resumes_and_widens(write, capsys, tmp_path):
    path = write(PLAN + RUN)
    code, out, _ = call(capsys, f"./{path.name}", "--seeds", "0", "1", "--jobs", "2")
    root = tmp_path / "studies" / "walks-demo"
    assert code == 0
    assert out.startswith("holds ")
    assert "It is higher." in (root / "report.html").read_text()
    code, out, err = call(capsys, path.stem)  # the module of the working directory is the same study
    assert (code, summary(root)["seeds"]) == (0, [0, 1, 2])
    assert "6 runs, 4 of them finished before" in err
    path.rename(path.with_name("moved.py"))
    assert call(capsys, "moved.py")[0] == 1  # its task has another name
    config = json.loads((root / "runs" / "low" / "seed-0" / "config.json").read_text())
    assert list(config["content"]) == [path.name]
    assert main(["report", str(root)]) == 0


def test_settings_seeds_and_arms_come_from_the_command_line(write, capsys):
    path = write(PLAN + RUN)
    words = [path, "--set", "deep.b=3", "--seeds", "7", "--arms", "high", "--dry-run"]
    plan = json.loads(call(capsys, *words)[1])["plan"]
    assert plan["settings"] == {"lift": 0.0, "deep": {"a": 1, "b": 3}}
    assert (plan["seeds"], [arm["name"] for arm in plan["arms"]]) == ([7], ["high"])
    for words, message in (
        (["--set", "lift=2.0"], "lift is set by arm high"),
        (["--set", "depth=2.0"], f"{path} has no setting depth; its settings: lift, deep"),
        (["--set", "deep.c=2"], f"{path} has no setting deep.c; its settings: deep.a, deep.b"),
        (["--set", "deep.a=.1"], "deep.a = '.1', but the plan has 1: write a number"),
        (["--set", "deep=3"], "deep = 3, but the plan has a table with a, b: set one of these, as deep.a=VALUE"),
        (["--set", "deep.a=nan"], "settings must be numbers, texts, lists and tables"),
        (["--set", "deep.a=nan"], "deep.a = nan is no finite number; a text needs quotes: 'deep.a=\"nan\"'"),
        (["--arms", "middle"], "no arm middle in this study: choose low, high"),
        (["--preset", "paper"], f"{path} has only the preset demo"),
    ):
        code, _, err = call(capsys, path, *words)
        assert code == 1
        assert message in err


def test_a_plan_may_be_a_function_and_analyse_and_helpers_are_found(write, capsys, tmp_path):
    helper = write("LIFT = 3\n")
    text = f"""
def plan(preset, config, seeds, arms):
    return one(preset=preset, seeds=tuple(seeds or (0,)), settings=config or {{}})

def run(run):
    import {helper.stem}
    return {{"height": {helper.stem}.LIFT + run.seed}}

def analyse(results):
    from retarget.study.figures import Analysis
    widths = {{arm.name: {{"width": [5.0 for _ in results.seeds]}} for arm in results.plan.arms}}
    return Analysis(metrics={{"default": widths}})
"""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path = write(HEAD + text)
    assert call(capsys, path, "--preset", "small", "--out", "here")[0] == 0
    found = summary(tmp_path / "here")
    assert found["preset"] == "small"
    assert found["conditions"]["default"]["low"]["width"]["values"] == [5.0]
    helper.write_text("LIFT = 4\n")
    code, _, err = call(capsys, path, "--preset", "small", "--out", "here", "--seeds", "0", "1")
    assert code == 1
    assert f"the content of {helper.name} =" in err
    assert "Restore the code of the earlier runs, or choose another --out" in err
    helper.write_text("LIFT = 3\n")
    assert call(capsys, path, "--preset", "small", "--out", "here", "--seeds", "0", "1")[0] == 0


RETURNED = {
    "{'height': float('nan')}": "MetricsError: the run's final metrics are not finite or above 1e+100: height = nan",
    "{'height': '1.5'}": "MetricsError: the metric height is a str, '1.5', not a number",
    "{'height': [1, 2]}": "MetricsError: the metric height is a list, [1, 2], not a number",
    "{'hieght': 1.0}": "returned hieght but not height, which are among the plan's metrics",
    "{}": "returned nothing but not height",
    "None": "returned NoneType, not a dictionary of metrics",
    "1 / 0": "ZeroDivisionError: division by zero",
    "{3: float('nan'), 'height': 1}": "MetricsError: the run's final metrics are not finite or above 1e+100: 3 = nan",
    "{'height': -10**400}": "MetricsError: the run's final metrics are not finite or above 1e+100: height = -inf",
}


def test_what_a_run_may_not_return_fails_that_run(write, capsys):
    wrong = ", ".join(f"lambda: {one}" for one in RETURNED)
    text = f"WRONG = [{wrong}]\ndef run(run):\n    return WRONG[run.seed]() if run.arm == 'high' else {{'height': 1}}\n"
    code, _, err = call(capsys, write(PLAN + text), "--no-progress", "--seeds", *range(len(RETURNED)))
    assert code == 1
    failed = [line for line in err.splitlines() if line.startswith("FAILED")]
    assert len(failed) == len(RETURNED)
    for seed, message in enumerate(RETURNED.values()):
        assert failed[seed].startswith(f"FAILED default/high/seed-{seed}: ")
        assert message in failed[seed]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLAN, "has no run: a study of your own has plan, a StudyPlan or a function plan(preset, config, seeds, arms)"),
        (RUN, "has no plan: a study of your own has plan"),
        ("def plan(:\n", 'line 1\n    def plan(:\n             ^\nSyntaxError: invalid syntax'),
        ("a = 1\nb = a.missing\n", "line 2, in <module>\n    b = a.missing\nAttributeError: 'int' object has no"),
        ("import retarget_is_not_that\n", "ModuleNotFoundError: No module named 'retarget_is_not_that'"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("plan = 3\n" + RUN, "plan is a int, but must be a StudyPlan or a function"),
        ("def plan(): pass\n" + RUN, "plan() must take (preset, config, seeds, arms)"),
        ("def plan(preset, config, seeds, arms): pass\n" + RUN, "plan(...) returned NoneType, not a StudyPlan"),
        ("def plan(p, c, s, a):\n    return c['x']\n" + RUN, "line 2, in plan\n    return c['x']\nKeyError: 'x'"),
        (PLAN + "run = 3\n", "run is a int, not a function"),
        (PLAN + "def run(): pass\n", "run() must take one argument"),
        (HEAD + "plan = one(task='mine:run')\n" + RUN, "has run, but its plan sets task = 'mine:run': remove one"),
        (HEAD + "plan = one(study='../../esc')\n" + RUN, "study = '../../esc' cannot be part of a folder's name"),
        (HEAD + "plan = one(preset='a/b')\n" + RUN, "preset = 'a/b' cannot be part of a folder's name"),
        (HEAD + "def plan(p, c, s, a):\n    raise SystemExit\n" + RUN, "in plan\n    raise SystemExit\nSystemExit"),
        (HEAD + "plan = one(study='pskd')\n" + RUN, "study = 'pskd' is a study that comes with retarget"),
        (HEAD + "plan = one(arms=())\n" + RUN, "claim higher names the arm high, but the study has "),
        (HEAD + "plan = one(metrics=())\n" + RUN, "claim higher names the metric height, but the study has "),
        (HEAD + "plan = one(metrics=({'name': 'height', 'label': 'h', 'needs': ('heat', 1)},))\n" + RUN,
         "metric height names the metric heat, but the study has height"),
        (HEAD + "plan = one(seed=(0,))\n" + RUN, "seed\n  Extra inputs are not permitted"),
        (HEAD + "plan = one(arms=({'name': 'low', 'label': 'l'}, {'name': 'high', 'label': 'h', 'needs': ('lwo',)}))\n"
         + RUN, "arm high needs the arm lwo, but the study has low, high"),
    ],
)  # fmt: skip
def test_what_a_file_may_not_be(write, capsys, text, message):
    path = write(text)
    code, out, err = call(capsys, path)
    assert (code, out) == (1, "")
    assert message in err
    assert path.stem in err
    assert "Traceback" not in err
    assert not Path("studies").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.py", "there is no file none.py in "),
        ("../none.py", "there is no file ../none.py in "),
        ("folder.py", "folder.py is not a Python file"),
        ("pskd/", "there is no file pskd"),
        ("my-study.py", "my-study.py is not a name that can be imported: rename it"),
        ("json.py", "json.py has the name of another module"),
        ("none_such", "there is no study 'none_such': choose pskd, trojdiff, pope, audit, or give FILE.py or a module"),
    ],
)
def test_what_a_study_may_not_be_called(write, capsys, tmp_path, name, message):
    (tmp_path / "folder.py").mkdir()
    for stem in ("my-study", "json"):
        write(PLAN + RUN, stem)
    code, out, err = call(capsys, name)
    assert (code, out) == (2, "")
    assert message in err


def test_a_module_in_a_package_is_a_study_too_and_help_tells_of_it(write, capsys, tmp_path):
    package = tmp_path / f"package_{next(UNIQUE)}"
    (package / "inner").mkdir(parents=True)
    (package / "inner" / "walks.py").write_text(PLAN + "from ..base import run\n")
    (package / "base.py").write_text(RUN)
    (package / "unused.py").write_text("")
    code, out, _ = call(capsys, f"{package.name}.inner.walks", "--help")
    assert code == 0
    assert "Walks. Higher?" in out
    assert call(capsys, f"{package.name}.inner.walks", "--seeds", "0")[0] == 0
    record = json.loads((tmp_path / "studies" / "walks-demo" / "runs" / "low" / "seed-0" / "config.json").read_text())
    assert list(record["content"]) == [f"{package.name}/base.py", f"{package.name}/inner/walks.py"]


def test_the_files_beside_an_installed_package_are_not_its_sources():
    found = parts.sources("safetensors.numpy")
    assert set(found) >= {"safetensors/__init__.py", "safetensors/numpy.py"}
    assert all(name.startswith("safetensors/") for name in found)
    assert list(parts.sources("json.tool")) != []
    assert all(name.startswith("json/") for name in parts.sources("json.tool"))
    assert parts.sources("nothing_of_this_name") == {}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("mine", r"network = 'mine' is not an import path: write module:name"),
        ("none_such:build", r"network = 'none_such:build': there is no module none_such"),
        ("math:squirt", r"network = 'math:squirt': .*math.* has no squirt"),
        ("math:pi", r"network = 'math:pi' is a float, not a function or a class"),
    ],
)
def test_a_part_that_cannot_be_used(path, message):
    with pytest.raises(UserError, match=message):
        parts.part(path, "network")


def test_the_command_stays_light(write):
    path = write(PLAN + RUN)
    code = f"from retarget.cli import main; import sys; main(['study', {path.name!r}, '--seeds', '0', '--no-progress'])"
    guarded = f"if __name__ == '__main__':\n    {code}; assert 'torch' not in sys.modules"
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", guarded], env=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_truth_value_is_not_taken_from_a_text(write, capsys):
    path = write(HEAD + "plan = one(settings={'lift': 0.0, 'augment': True})\n" + RUN)
    code, _, err = call(capsys, path, "--set", "augment=False", "--dry-run")
    assert (code, "augment = 'False', but the plan has True: write true or false" in err) == (1, True)


def test_a_study_with_tuples_in_its_settings_goes_on_and_what_is_no_json_is_refused(write, capsys):
    path = write(HEAD + "plan = one(settings={'lift': 0.0, 'sizes': (3, 5), 'by': {1: 0.5}})\n" + RUN)
    for seeds in (["0"], ["0"], ["0", "1"]):
        assert call(capsys, path, "--seeds", *seeds)[0] == 0
    for value in ("float('nan')", "object()"):
        code, _, err = call(capsys, write(HEAD + f"plan = one(settings={{'lift': {value}}})\n" + RUN))
        assert (code, "settings must be numbers, texts, lists and tables" in err) == (1, True)


def test_what_made_every_run_fail_can_be_mended_in_place(write, capsys):
    path = write(PLAN + "def run(run):\n    return {'heigth': 1.0, 'height': undefined}\n")
    assert call(capsys, path)[0] == 1
    path.write_text(PLAN + RUN)
    sys.modules.pop(path.stem, None)
    code, out, err = call(capsys, path)
    assert (code, out[:5]) == (0, "holds"), err


def test_an_analysis_that_fails_is_shown_by_its_line_and_can_be_mended(write, capsys, tmp_path):
    broken = "def analyse(results):\n    return missing_name\n"
    path = write(PLAN + RUN + broken)
    code, _, err = call(capsys, path)
    assert code == 1
    assert "in analyse" in err
    assert "missing_name" in err
    mended = "from retarget.study.figures import Analysis\n    return Analysis()"
    path.write_text(PLAN + RUN + broken.replace("return missing_name", mended))
    sys.modules.pop(path.stem, None)
    code, out, err = call(capsys, path)
    assert (code, out[:5]) == (0, "holds"), err


IGNORES = "def plan(preset, config, seeds, arms):\n    return one(settings=config)\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--seeds", "7", "8"],
            "plan(...) ignores its argument seeds: it was given 7 8, and its plan has 0 1 2. Hand it",
        ),
        (
            ["--arms", "low"],
            "plan(...) ignores its argument arms: it was given low, and its plan has low high. Hand it",
        ),
        (
            ["--preset", "small"],
            "plan(...) ignores its argument preset: it was given small, and its plan has demo. Hand",
        ),
    ],
)
def test_a_function_that_ignores_its_arguments_is_told_so(write, capsys, words, message):
    path = write(HEAD + IGNORES + RUN)
    code, out, err = call(capsys, path, *words, "--dry-run")
    assert (code, out) == (1, "")
    assert message in err
    assert call(capsys, path, "--seeds", "0", "1", "2", "--arms", "high", "low", "--dry-run")[0] == 0


def test_a_file_may_have_a_name_in_any_letters(write, capsys, tmp_path):
    analysis = "def analyse(results):\n    from retarget.study.figures import Analysis\n    return Analysis()\n"
    path = write(PLAN + RUN + analysis, f"étude_{next(UNIQUE)}")
    code, out, err = call(capsys, path, "--seeds", "0", "1")
    assert (code, out[:5]) == (0, "holds"), err


HOOK = "def hook(*given):\n    return given['x']\n"


@pytest.mark.parametrize(
    ("more", "text", "message"),
    [
        ("prepare='{name}:hook'", HOOK, "prepare = '{name}:hook' failed\n"),
        ("remark='{name}:hook'", HOOK, "remark = '{name}:hook' failed\n"),
        ("prepare='retarget_is_not_that:hook'", "", "prepare = 'retarget_is_not_that:hook': there is no module"),
        ("", "def analyse(results):\n    raise SystemExit\n", "raise SystemExit\nSystemExit"),
        ("", "from retarget.study.figures import Analysis\ndef analyse(results):\n"
         "    return Analysis(metrics={'default': {'low': {'depth': [1.0]}}})\n",
         "the analysis gave 1 values of depth in default/low, but the study has 3 seeds: give one value"),
    ],
)  # fmt: skip
def test_a_function_of_the_plan_that_fails_is_shown_by_its_line(write, capsys, more, text, message):
    name = f"own_{next(UNIQUE)}"
    path = write(HEAD + f"plan = one({more.format(name=name)})\n" + RUN + text, name)
    code, _, err = call(capsys, path, "--no-progress")
    assert code == 1
    assert message.format(name=name) in err
    assert ("return given['x']" in err) == (text == HOOK)
    assert "Traceback" not in err


def test_a_function_of_the_plan_that_fails_prevents_a_dry_run(write, capsys):
    name = f"own_{next(UNIQUE)}"
    path = write(HEAD + f"plan = one(check='{name}:hook')\n" + RUN + HOOK, name)
    code, _, err = call(capsys, path, "--dry-run")
    assert code == 1
    assert f"these runs are not possible here: check = '{name}:hook' failed" in err


def test_a_metric_too_large_to_be_squared_fails_its_run_and_not_the_study(write, capsys, tmp_path):
    path = write(PLAN + "import math\ndef run(run):\n    return {'height': math.exp(500) if run.seed else 1.0}\n")
    code, _, err = call(capsys, path)
    assert code == 1
    assert "not finite or above 1e+100: height = 1.4" in err
    assert summary(tmp_path / "studies" / "walks-demo")["claims"][0]["n"] == 1


def test_a_file_of_a_package_with_relative_imports_is_to_be_named_as_a_module(write, capsys, tmp_path):
    (tmp_path / "its").mkdir()
    _written(tmp_path / "its" / "inner.py", "from .lib import f\n" + PLAN + RUN)
    _written(tmp_path / "its" / "lib.py", "f = 1\n")
    code, _, error = call(capsys, "its/inner.py", "--dry-run")
    assert (code, error.rstrip().splitlines()[-1]) == (
        1, "Name it as a module of its package, such as package.inner, or import without the dot"
    )  # fmt: skip
    assert call(capsys, "its.inner", "--dry-run")[0] == 0
