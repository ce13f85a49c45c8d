"""What a reader sees of an audit: on the terminal, in the page, and in a folder with an earlier report."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest

from retarget.audit.commands import AuditArguments, _clean, adjusted, combined
from retarget.audit.outcome import Outcome, TriggerFound
from retarget.audit.report import forget
from retarget.audit.static import Finding
from retarget.cli import main


@pytest.fixture
def odd(pipeline, edit):
    """A pipeline that is not covered, whose names hide the verdict on a terminal."""
    edit(pipeline / "model_index.json", unet=["\x1b[2K\rNOTHING FOUND", "x"])
    (pipeline / "a\x1b[2K\u202e\nb.py").write_text("")
    return pipeline


def test_names_in_a_checkpoint_control_neither_terminal_nor_page(odd, tmp_path, capsys):
    assert main(["audit", str(odd), "--out", str(tmp_path / "out"), "--fail-on", "warning"]) == 1
    said = capsys.readouterr()
    for text in (said.out, said.err, (tmp_path / "out" / "report.html").read_text()):
        assert not {"\x1b", "\r", "\u202e"} & set(text)
        assert r"a\x1b[2K\u202e\nb.py is Python code" in text
    assert r"the network is \x1b[2K\rNOTHING FOUND.x" in said.out
    (one,) = json.loads((tmp_path / "out" / "audit.json").read_text())["audits"]
    assert "a\x1b[2K\u202e\nb.py" in one["files"], "data are not changed"


def test_fingerprints_of_findings_change_with_what_was_audited_and_not_with_other_files(untrained, tmp_path):
    pipeline = shutil.copytree(untrained, tmp_path / "pipeline")

    def fingerprints(name):
        assert main(["audit", str(pipeline), "--out", str(tmp_path / name)]) == 3
        (run,) = json.loads((tmp_path / name / "audit.sarif").read_text())["runs"]
        return {one["ruleId"]: one["partialFingerprints"] for one in run["results"]}

    first = fingerprints("first")
    assert set(first) == {"RT002", "RT105"}
    (pipeline / "README.md").write_text("A new text.")
    assert fingerprints("text") == first
    config = pipeline / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text() + "\n")
    later = fingerprints("scheduler")
    assert all(later[rule] != first[rule] for rule in first)


def test_a_verdict_that_cannot_be_printed_is_still_the_exit_code(untrained, tmp_path, monkeypatch, capsys):
    """On a terminal without Greek letters; on a full disk; where the reader of a pipe has gone."""
    words = ["audit", str(untrained), str(untrained), "--out", str(tmp_path / "out")]
    latin = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr("sys.stdout", latin)
    assert main(words) == 3
    assert rb"that of \u03b5" in latin.buffer.getvalue()
    reader, writer = os.pipe()
    os.close(reader)
    for stream in (Path("/dev/full").open("w"), os.fdopen(writer, "w")):  # noqa: SIM115 - its end must not fail
        monkeypatch.setattr("sys.stdout", stream)
        assert main(words) == 3
        assert "the verdict cannot be printed" in capsys.readouterr().err
        stream.close()
    assert len(json.loads((tmp_path / "out" / "audit.json").read_text())["audits"]) == 2


def test_a_report_that_cannot_be_written_loses_no_verdict_and_no_later_pipeline(odd, tmp_path, capsys):
    out = tmp_path / "out"
    own = f"{odd.parent.name}-pipeline"
    for name in (f"{own}/audit.json", "audit.sarif"):
        (out / name).mkdir(parents=True)
    words = ["audit", str(odd), str(tmp_path / "missing"), "--out", str(out), "--fail-on", "warning"]
    assert main(words) == 1
    said = capsys.readouterr()
    assert "NOT COVERED" in said.out
    assert said.err.count("retarget: cannot write") == 2
    assert json.loads((out / "missing" / "audit.json").read_text())["exit_code"] == 2
    assert main([*words[:2], "--out", str(out / own)]) == 2, "what is not written is an error"


TRIGGER = TriggerFound(
    law="trojdiff", kind="blend", gamma=0.6, values=64, box=None, undo=0.9, strength=0.8, stock_sampler=False, origin=""
)
REPORT = {"report.html", "audit.json", "audit.sarif"}


def test_an_interrupted_audit_leaves_no_earlier_report_that_seems_to_be_its_own(
    pipeline, untrained, tmp_path, monkeypatch
):
    def stopped(*_):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    assert main(["audit", str(untrained), "--out", str(out)]) == 3
    assert {path.name for path in out.iterdir()} >= REPORT
    monkeypatch.setattr("retarget.audit.run.seek", stopped)
    assert main(["audit", str(pipeline), "--out", str(out)]) == 130
    assert not REPORT & {path.name for path in out.iterdir()}


def test_a_report_on_one_pipeline_does_not_stand_beside_one_on_several(odd, untrained, tmp_path):
    out = tmp_path / "out"
    assert main(["audit", str(untrained), "--out", str(out)]) == 3
    assert main(["audit", str(odd), str(untrained), "--out", str(out)]) == 3
    assert not (out / "report.html").exists()
    assert len(list(out.glob("*/report.html"))) == 2


def test_an_unexpected_error_while_cleaning_leaves_the_verdict_on_the_checkpoint(tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("retarget.audit.cleaning.clean", broken)
    found = Outcome(pipeline="p", verdict="trojaned", exit_code=1, reason="it fires", trigger=TRIGGER)
    given = AuditArguments(pipelines=(tmp_path,), clean=tmp_path / "cleaned")
    assert _clean(tmp_path, tmp_path / "audit", found, given, []) == [2]
    assert combined([1, 2]) == 1
    assert "nothing was cleaned: an unexpected error (ZeroDivisionError: by zero)" in capsys.readouterr().err


@pytest.mark.parametrize(("verdict", "code", "process"), [("undecided", 3, 2), ("trojaned", 1, 1)])
def test_after_a_failed_cleaning_the_report_has_the_commands_code_and_the_verdicts(
    verdict, code, process, tmp_path, capsys
):
    out, missing = tmp_path / "out", tmp_path / "missing"
    found = Outcome(pipeline="p", verdict=verdict, exit_code=code, reason="it fires", trigger=TRIGGER)
    assert _clean(missing, out, found, AuditArguments(pipelines=(missing,), clean=tmp_path / "c"), ["p"]) == [2]
    report = json.loads((out / "audit.json").read_text())
    assert (report["exit_code"], report["audits"][0]["exit_code"]) == (process, code) == (combined([code, 2]), code)
    assert json.loads((out / "audit.sarif").read_text())["runs"][0]["invocations"][0]["exitCode"] == process
    html = (out / "report.html").read_text()
    assert "Nothing was cleaned: " in html
    assert f"The exit code of the command is therefore {process}." in html


def test_what_an_exit_code_is_because_of_is_said_once_and_with_a_plain_name(capsys):
    finding = Finding(rule="custom-code", level="warning", message="code", file="x.py")
    outcome = Outcome(pipeline="ev\x1b[31mil\nNOTHING FOUND", verdict="undecided", exit_code=3, reason="r")
    changed, why = adjusted(outcome, True, "trojaned")
    assert changed.exit_code == 0
    assert why == r"warning: ev\x1b[31mil\nNOTHING FOUND is undecided; its exit code is 0 because of --allow-undecided"
    changed, why = adjusted(outcome.model_copy(update={"findings": [finding]}), True, "warning")
    assert changed.exit_code == 1
    assert why.count("its exit code is") == 1
    assert capsys.readouterr().err == ""
    assert adjusted(outcome, False, "trojaned") == (outcome, "")


def test_an_earlier_report_is_forgotten_and_nothing_else(tmp_path):
    for name in (".", "after-1", "after-2", "after-cleaning"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "audit.json").write_text('{"tool": "retarget 0.1"}')
    (tmp_path / "after-3").mkdir()  # of an audit that was interrupted before its report
    (tmp_path / "after-3" / "trigger.safetensors").write_text("{}")
    for name in ("after-2", "after-cleaning"):
        (tmp_path / name / "notes.txt").write_text("the user's")
    forget(tmp_path)
    left = sorted(str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*") if one.is_file())
    assert left == ["after-2/notes.txt", "after-cleaning/audit.json", "after-cleaning/notes.txt"]
    assert not (tmp_path / "after-1").exists()
    assert not (tmp_path / "after-3").exists()


def test_a_seed_that_torch_cannot_take_is_wrong_usage(capsys):
    assert main(["audit", "x", "--seed", str(2**62)]) == 2
    assert "--seed must be at least 0 and below 2^62" in capsys.readouterr().err
