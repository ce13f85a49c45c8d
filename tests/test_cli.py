"""The command line: its output, word for word, and its exit code."""

import ast
import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from retarget import __version__, cli
from retarget.cli import main
from retarget.helptext import one_paragraph, read_arguments

TOY = Path(__file__).parent / "study"


@pytest.fixture(autouse=True)
def toy(monkeypatch, tmp_path):
    """The toy study beside the methods, in an empty working directory."""
    monkeypatch.syspath_prepend(str(TOY))
    monkeypatch.setitem(cli.METHODS, "toy", "tasks_for_tests")
    monkeypatch.setitem(cli.METHODS, "absent", "retarget.absent.study")
    monkeypatch.chdir(tmp_path)


def call(capsys, *words):
    """Exit code, standard output, standard error."""
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


USAGE = {
    "no verb": (
        ["studdy"],
        "there is no verb 'studdy': choose study, judge, report, pope, trojdiff, audit, or see retarget --help",
    ),
    "no method": (
        ["study", "distil"],
        "there is no study 'distil': choose pskd, trojdiff, pope, audit, toy, absent, or give FILE.py or a module",
    ),
    "method to come": (["study", "absent"], "the study of absent is not part of this version of retarget"),
    "jobs": (["study", "toy", "--jobs", "0"], "--jobs must be at least 1, not 0"),
    "cluster": (["study", "toy", "--cluster", "cpus"], "--cluster takes KEY=VALUE, not 'cpus'"),
    "seed twice": (
        ["study", "toy", "--seeds", "0", "1", "0"],
        "--seeds must be different integers of at least 0, not 0 1 0",
    ),
    "negative seed": (["study", "toy", "--seeds", "-1"], "--seeds must be different integers of at least 0, not -1"),
    "no such file": (["study", "toy", "--config", "a.toml"], "cannot read --config a.toml: No such file or directory"),
    "not TOML": (
        ["study", "toy", "--config", "broken.toml"],
        "--config broken.toml is not valid TOML: Invalid value (at line 2, column 8)",
    ),
    "no value": (["study", "toy", "--set", "lift"], "--set takes KEY=VALUE, not 'lift'"),
    "no key": (["study", "toy", "--set", "li ft=1"], "--set takes KEY=VALUE, and 'li ft' is not a key"),
    "preset": (["study", "pskd", "--preset", "huge"], "no preset 'huge' for pskd: choose demo, small, paper"),
    "unknown setting": (
        ["study", "pskd", "--set", "epoch=3"],
        "the study's settings are not valid: there is no setting epoch, did you mean epochs?",
    ),
    "set twice": (
        ["study", "pskd", "--set", "epochs=3", "--set", "lr=0.1"],
        "--set is given twice, and the second would replace the first: write --set A=1 B=2",
    ),
    "seeds twice": (
        ["study", "toy", "--seeds", "0", "1", "--seeds=2"],
        "--seeds is given twice, and the second would replace the first: write --seeds 0 1 2",
    ),
    "arms twice": (
        ["study", "toy", "--arms", "control", "--arms", "treated"],
        "--arms is given twice, and the second would replace the first: write --arms A B",
    ),
    "weights twice": (
        ["study", "toy", "--looks", "3", "5", "--look-weights", ".5", "--look_weights", ".5"],
        "--look-weights is given twice, and the second would replace the first: write --look-weights .4 .6",
    ),
    "cluster twice": (
        ["study", "toy", "--cluster", "cpus=1", "--cluster", "gpus=1"],
        "--cluster is given twice, and the second would replace the first: write --cluster A=1 B=2",
    ),
    "folders twice": (
        ["judge", "--lm-eval", "a", "--lm-eval", "b", "--claims", "c"],
        "--lm-eval is given twice, and the second would replace the first: write --lm-eval A B",
    ),
    "no seeds": (
        ["study", "toy", "--seeds", "--out", "x"],
        "--seeds has no value: write --seeds 0 1 2, or leave --seeds out",
    ),
    "no arms": (["study", "toy", "--arms"], "--arms has no value: write --arms A B, or leave --arms out"),
    "no weights": (
        ["study", "toy", "--looks", "3", "5", "--look_weights"],
        "--look-weights has no value: write --look-weights .4 .6, or leave --look-weights out",
    ),
    "key twice": (
        ["study", "toy", "--set", "lift=1", "table.a=1", "table.b=2", "table.a=3"],
        "--set gives table.a twice, and the second would replace the first: give it once",
    ),
    "option twice": (
        ["study", "toy", "--executor", "ray", "--cluster", "cpus=1", "cpus=2"],
        "--cluster gives cpus twice, and the second would replace the first: give it once",
    ),
    "arm twice": (["study", "toy", "--arms", "treated", "treated"], "--arms names treated twice: name each arm once"),
    "pilot alone": (
        ["study", "toy", "--pilot", "studies"],
        "--pilot only estimates what seeds can decide, for --dry-run: add that, or leave it out",
    ),
    "plan and place": (
        ["judge", "runs.csv", "--claims", "c", "--plan", "--out", "v"],
        "--plan only prints how many seeds decide, and writes nothing to --out: leave one of them out",
    ),
    "no studies": (["report"], None),
}


@pytest.mark.parametrize("name", USAGE)
def test_wrong_usage_is_said_in_one_line(capsys, tmp_path, name):
    (tmp_path / "broken.toml").write_text("lift = 1.0\nlift = = 2\n")
    words, message = USAGE[name]
    if message is None:
        message = "retarget report needs the directory of at least one study"
    assert call(capsys, *words) == (2, "", f"retarget: {message}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.toml"]


@pytest.mark.parametrize("words", [["study"], ["study", "toy", "--jobs", "many"], ["study", "toy", "--colour"]])
def test_what_cannot_be_parsed_exits_with_two(capsys, words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert "retarget study --help" in out + err


def test_help_and_version(capsys):
    code, out, err = call(capsys, "--help")
    assert (code, err) == (0, "")
    assert "usage: retarget VERB ..." in out
    for verb in cli.VERBS:
        assert f"\n  {verb} " in out
    assert call(capsys) == (2, "", out)
    assert call(capsys, "--version") == (0, f"retarget {__version__}\n", "")


def test_the_help_of_a_method_lists_its_arms_and_settings(capsys):
    code, out, err = call(capsys, "study", "pskd", "--help", "--set", "task=translation", "beams=7")
    assert (code, err) == (0, "")
    assert "\n  pskd_label_smoothing  PS-KD + label smoothing\n" in out
    assert "\n  beams                 7 (default 5)  fairseq's transformer_iwslt_de_en" in out
    assert "\n  targets" not in out, "the arms decide it"
    code, out, err = call(capsys, "study", "pskd", "-h")
    assert (code, err) == (0, "")
    assert "task=detection" in out
    assert "question=confidence" in out
    code, out, err = call(capsys, "study", "pskd", "--help", "--set", "task=detection")
    assert (code, err) == (0, "")
    assert "null: hold out validation_images training images" in out
    assert call(capsys, "study", "pskd", "--help", "--set", "epoch=3")[0] == 2


def test_a_help_text_of_several_lines_is_one_paragraph(capsys, monkeypatch):
    @dataclass
    @one_paragraph
    class Given:
        """A command."""

        sampler: str = "ddim"
        """One of ddpm, ddim and dpm;
        (ddpm) is slow."""
        count: int | None = None
        """How many."""

    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        read_arguments(Given, ["--help"], "command")
    out = capsys.readouterr().out
    assert "One of ddpm, ddim and dpm; (ddpm) is slow. (default: ddim)" in out
    assert "--count INT " in out
    assert read_arguments(Given, ["--count", "3"], "command") == Given(count=3)


def test_every_command_with_such_texts_says_so():
    seen = 0
    for path in (Path(cli.__file__).parent).rglob("*.py"):
        text = path.read_text()
        for kind in ast.parse(text).body if "tyro" in text else ():
            if isinstance(kind, ast.ClassDef) and any("\n" in one for one in field_docstrings(kind)):
                assert "one_paragraph" in map(ast.unparse, kind.decorator_list), f"{path}: {kind.name}"
                seen += 1
    assert seen > 5


def field_docstrings(kind):
    for field, text in itertools.pairwise(kind.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            yield ast.literal_eval(text.value)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["nothing"]])
def test_help_loads_nothing_heavy(words):
    heavy = ("torch", "pydantic", "tyro", "numpy", "scipy", "rich", "matplotlib")
    code = (
        f"from retarget.cli import main; main({words!r}); import sys; print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_preset_then_file_then_flags(capsys, tmp_path):
    (tmp_path / "mine.toml").write_text("lift = 2.0\nwind = 0.1\n[table]\na = 1\nb = 2\n")
    flags = ["--set", "lift=3", "name=free text", "table.b=[4]", "--seeds", "5", "6", "--arms", "control"]
    code, out, _ = call(capsys, "study", "toy", "--config", "mine.toml", *flags, "--jobs", "2", "--dry-run")
    found = json.loads(out)
    assert code == 0
    settings = {"lift": 3, "wind": 0.1, "table": {"a": 1, "b": [4]}, "name": "free text"}
    assert found["plan"]["settings"] == settings
    assert found["plan"]["seeds"] == [5, 6]
    assert [arm["name"] for arm in found["plan"]["arms"]] == ["control"]
    assert (found["directory"], found["runs"], found["estimated_minutes"]) == ("studies/toy-demo", 2, 0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_a_dry_run_on_a_terminal_is_a_few_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, err = call(capsys, "study", "toy", "--dry-run")
    assert (code, out) == (0, "")
    assert err.startswith("4 runs, 0 of them finished; about 2 min; studies/toy-demo\n")


def test_a_study_runs_from_the_command_line_and_its_page_is_made_again(capsys, tmp_path):
    words = ["study", "toy", "--seeds", "0", "1", "2", "--jobs", "2"]
    code, out, err = call(capsys, *words)
    root = tmp_path / "studies" / "toy-demo"
    assert code == 0
    verdict, page = out.splitlines()
    compared = "(treated - control, height: +0.9992 [+0.9352, +1.063] m, 3 seeds)"
    assert verdict == f"holds                A lifted walk is higher. {compared}"
    assert page == str(root / "report.html")
    assert err.splitlines()[0] == "6 runs"
    assert "A lifted walk is higher." in (root / "report.html").read_text()
    (root / "report.html").unlink()
    assert call(capsys, "report", str(root)) == (0, f"{root / 'report.html'}\n", "")
    assert call(capsys, "report", str(root), "--out", "other.html") == (0, "other.html\n", "")
    assert call(capsys, *words)[2] == "6 runs, 6 of them finished before\nanalysing, judging the claims\n"
    again = call(capsys, *words, "--set", "lift=5.0")
    assert again[:2] == (1, "")
    assert again[2] == (
        f"retarget: {root}/study.json was made with lift = 0.0 (now 5.0). Choose another --out, "
        "or use the settings that the directory was made with\n"
    )
    alone = call(capsys, "study", "toy", "--seeds", "0", "--arms", "control", "--out", "alone")
    assert alone[1] == f"1 claim was stated but not run here\n{tmp_path / 'alone' / 'report.html'}\n"


def test_failed_runs_are_named_and_the_exit_code_is_one(capsys, tmp_path):
    words = ["study", "toy", "--out", "here", "--set", "wrong=raise", 'where=["treated", 1]']
    code, out, err = call(capsys, *words)
    assert code == 1
    assert "FAILED default/treated/seed-1: RuntimeError: the walk fell" in err
    assert err.endswith(
        "retarget: 1 run failed; status.json and output.log of each say why. To try again, run the same command: "
        "retarget study toy --out here --set wrong=raise 'where=[\"treated\", 1]'\n"
    )
    assert out.splitlines()[-1] == str(tmp_path / "here" / "report.html")


def test_an_error_in_the_study_is_printed_alone(capsys, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "thesis.tex").write_text("")
    code, out, err = call(capsys, "study", "toy", "--out", "here")
    assert (code, out) == (1, "")
    assert (
        err == f"retarget: {tmp_path}/here is not empty but holds no study (it has thesis.tex): choose another --out\n"
    )
    code, _, err = call(capsys, "report", "here")
    assert code == 1
    assert err.startswith("retarget: ")
    assert "study.json" in err


def test_a_reader_that_goes_away_ends_the_command_quietly():
    """As ``retarget study toy --dry-run | head`` does."""
    command = [sys.executable, str(TOY / "study_process.py"), "study", "toy", "--dry-run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=900)
    assert (process.returncode, err) == (1, "")


def test_a_path_that_the_system_refuses_is_named(capsys, tmp_path):
    long = "x" * 5000
    for words in (
        ["report", str(tmp_path / long)],
        ["pope", "mine", f"{long}.jsonl", "--model", "m", "--out", str(tmp_path / "out")],
        ["study", "pskd", "--set", f"dataset={long}", "--dry-run"],
    ):
        code, _, err = call(capsys, *words)
        assert code in (1, 2), words
        assert "Traceback" not in err
        assert "xxx" in err
