import json
import shutil

import pytest

from retarget.cli import main
from retarget.errors import UserError
from retarget.report import build
from retarget.report.source import read_study


def test_a_directory_that_is_no_study_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"no study\.json.*not the directory of a finished study.*--out DIR"):
        build([tmp_path])
    with pytest.raises(UserError, match=r"no study\.json"):
        build([tmp_path / "absent"])
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_study_is_refused_and_nothing_is_written(study):
    directory = study()
    (directory / "summary.json").unlink()
    with pytest.raises(UserError, match=r"no summary\.json"):
        build([directory])
    assert not list(directory.glob("report*"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("study.json", lambda value: value.pop("plan"), r"study\.json is not in the format of a study"),
        ("study.json", lambda value: value["plan"].update(level=2), r"study\.json.*level"),
        (
            "summary.json",
            lambda value: value["claims"][0].update(verdict="maybe"),
            r"summary\.json.*claims number 1, verdict must be",
        ),
        ("summary.json", lambda value: value.pop("conditions"), r"summary\.json.*conditions"),
        ("analysis.json", lambda value: value["figures"][0].update(kind="pie"), r"analysis\.json.*figures number 1 = "),
        ("analysis.json", lambda value: value.update(extra=1), r"analysis\.json.*extra"),
    ],
)
def test_a_file_in_another_format_is_named_with_its_field(study, edit, name, change, message):
    directory = study()
    edit(directory / name, change)
    with pytest.raises(UserError, match=message):
        build([directory])
    assert not list(directory.glob("report*"))


@pytest.mark.parametrize("name", ["study.json", "summary.json", "analysis.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_damaged_file_is_named(study, name, content):
    directory = study()
    (directory / name).write_bytes(content)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        build([directory])


def test_keys_that_other_programs_add_are_left_alone(study, edit):
    directory = study()
    edit(directory / "summary.json", lambda value: value.update(theirs=1))
    edit(directory / "summary.json", lambda value: value["claims"][0].update(theirs=1))
    assert len(read_study(directory).summary.claims) == 7


def test_a_study_without_an_analysis_has_no_figures(study):
    directory = study()
    (directory / "analysis.json").unlink()
    page = build([directory]).read_text()
    assert "Figures" not in page
    assert not (directory / "figures").exists()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda file: file.unlink(), r"a\.png: this image, named in analysis\.json, is missing"),
        (lambda file: file.write_text("<svg/>"), r"a\.png is not a PNG file"),
        (lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n"), r"a\.png is not a PNG file"),
    ],
)
def test_an_image_that_cannot_be_embedded_is_named(study, prepare, message):
    directory = study()
    prepare(directory / "samples" / "a.png")
    with pytest.raises(UserError, match=message):
        build([directory])


def test_pictures_of_an_earlier_version_are_found_after_the_study_has_moved(study, edit):
    directory = study()
    inside = directory / "runs" / "control" / "seed-0"
    inside.mkdir(parents=True, exist_ok=True)
    (inside / "a.png").write_bytes((directory / "samples" / "a.png").read_bytes())
    where = "/where/runs/it/was/made/runs/control/seed-0/a.png"
    edit(directory / "analysis.json", lambda value: value["figures"][4].update(files=[where] * 2))
    assert build([directory]).is_file()


@pytest.mark.parametrize(
    "elsewhere", ["../secret.png", "samples/../../secret.png", "link.png", "/made/runs/../../secret.png"]
)
def test_an_image_outside_the_study_is_refused(study, edit, elsewhere):
    directory = study()
    secret = directory.parent / "secret.png"
    secret.write_bytes((directory / "samples" / "a.png").read_bytes())
    (directory / "link.png").symlink_to(secret)
    edit(directory / "analysis.json", lambda value: value["figures"][4].update(files=[elsewhere] * 2))
    with pytest.raises(UserError, match="is outside the study's directory"):
        build([directory])


def test_several_studies_need_a_place(study):
    one = study("one")
    with pytest.raises(UserError, match="2 studies on one page need a directory of their own"):
        build([one, one])
    with pytest.raises(UserError, match="at least one study"):
        build([])


def test_a_place_that_cannot_be_written_is_a_clear_error(study, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        build([study()], tmp_path / "file" / "below")


def without_last_seed(summary):
    summary["seeds"].pop()
    for arms in summary["conditions"].values():
        for metrics in arms.values():
            for spread in metrics.values():
                spread["values"].pop()


def test_finished_runs_that_are_not_judged_yet_are_counted(study, edit, capsys):
    """As after an interruption: the summary is of an earlier call."""
    directory = study()
    assert read_study(directory).unjudged == ""
    edit(directory / "summary.json", without_last_seed)
    assert main(["report", str(directory)]) == 0
    said = "6 finished runs are not judged yet: run the study's command again."
    assert said in (directory / "report.md").read_text()
    assert capsys.readouterr().err == f"note: {directory}: {said}\n"
    arms = "clean", "pskd"
    one = study("one")
    edit(one / "summary.json", lambda value: [
        spread["values"].__setitem__(2, None) for spread in value["conditions"][arms[0]][arms[1]].values()
    ])  # fmt: skip
    assert read_study(one).unjudged == "1 finished run is not judged yet: run the study's command again."


def test_runs_that_were_judged_and_deleted_are_counted(study, capsys):
    directory = study()
    pskd = [run for run in (directory / "runs").rglob("status.json") if "/pskd/" in str(run)]
    shutil.rmtree(pskd[0].parent)
    still = "not there any more; the verdicts and tables still count"
    assert read_study(directory).unjudged == f"1 run that was judged is {still} it: run the study's command again."
    for run in pskd[1:]:
        shutil.rmtree(run.parent)
    assert main(["report", str(directory)]) == 0
    said = f"{len(pskd)} runs that were judged are {still} them: run the study's command again."
    assert said in (directory / "report.md").read_text()
    assert said in capsys.readouterr().err
    shutil.rmtree(directory / "runs")
    assert read_study(directory).unjudged == "", "a record keeps what was found, without its runs"


def test_finished_runs_of_a_study_that_was_never_judged_are_counted(study):
    directory = study()
    (directory / "summary.json").unlink()
    with pytest.raises(UserError, match=r"no summary\.json.*; 30 finished runs are not judged yet: run the study's"):
        build([directory])


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"error": "RuntimeError: CUDA error: assert\nCompile with X.\n", "traceback": "T\nCompile with X.\n"},
         "RuntimeError: CUDA error: assert"),
        ({"error": "KeyError:\n  'x'\nmore"}, "KeyError: 'x'"),
        ({"error": "it needs a/seed-0, which failed", "traceback": ""}, "it needs a/seed-0, which failed"),
        ({"traceback": "Traceback\n  File\nValueError: bad\n"}, "ValueError: bad"),
        ({}, ""),
    ],
)  # fmt: skip
def test_the_reason_of_a_failure_is_the_first_line_of_its_error(study, status, reason):
    directory = study()
    path = directory / "runs" / "clean" / "pskd" / "seed-3" / "status.json"
    path.write_text(json.dumps({"state": "failed"} | status))
    (failed,) = [run.reason for run in read_study(directory).runs if run.state == "failed"]
    assert failed == reason
