"""Places that cannot be written, or that hold what is another's: the verdict is not lost, and neither is the rest."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_command import QUICK
from test_foreign_files import CLEAN_NULL
from test_reports import TRIGGER

from retarget.audit.commands import AuditArguments, _clean, adjusted
from retarget.audit.outcome import Outcome
from retarget.audit.run import _shown, audit_pipeline
from retarget.cli import main


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The command with a search of seconds instead of the frozen one; it has no null, so its verdict is undecided."""
    monkeypatch.setattr("retarget.audit.run.Search", lambda: QUICK)


def test_a_picture_that_cannot_be_written_does_not_cost_the_verdict(pipeline, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "plain.png").mkdir(parents=True)
    assert main(["audit", str(pipeline), "--out", str(out)]) == 2
    report = json.loads((out / "audit.json").read_text())
    (one,) = report["audits"]
    assert (one["verdict"], one["exit_code"], report["exit_code"]) == ("undecided", 2, 2)
    assert one["pictures_missing"].startswith("the pictures are missing: cannot write")
    assert one["exit_code_reason"].endswith("; its exit code is 2 because of that")
    assert json.loads((out / "audit.sarif").read_text())["runs"][0]["invocations"][0]["exitCode"] == 2
    said = capsys.readouterr()
    assert "UNDECIDED" in said.out
    assert "its exit code is 2 because of that" in said.err


def test_missing_pictures_leave_the_code_of_a_trojaned_checkpoint(tmp_path, capsys):
    one = Outcome(
        pipeline="p", verdict="trojaned", exit_code=1, reason="r", score=0.9, trigger=TRIGGER, pictures_missing="why"
    )
    assert adjusted(one, False, "trojaned") == (one, "")
    (tmp_path / "trigger.safetensors").write_text("of an earlier audit")
    given = AuditArguments(pipelines=(tmp_path,), clean=tmp_path / "cleaned")
    assert _clean(tmp_path, tmp_path, one, given, []) == [2]
    assert "nothing was cleaned: the suspected trigger was not written either" in capsys.readouterr().err


def test_a_folder_in_which_no_file_can_be_made_is_refused_before_the_search(pipeline, capsys):
    assert main(["audit", str(pipeline), "--out", "/proc"]) == 2
    said = capsys.readouterr()
    assert "cannot write /proc: " in said.err
    assert said.out == "", "no verdict of a search"


def test_a_cleaned_pipeline_is_not_written_into_the_audited_one(pipeline, tmp_path, capsys):
    words = ["audit", str(pipeline), "--out", str(tmp_path / "out"), "--clean", str(pipeline / "unet" / "cleaned")]
    assert main(words) == 2
    assert "is in the pipeline itself" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ['{"auditReportVersion": 2}', "[]", "{"])
def test_another_tools_report_is_neither_deleted_nor_overwritten(pipeline, tmp_path, content, capsys):
    for name, text in (("audit.json", content), ("report.html", "the user's")):
        (tmp_path / name).write_text(text)
    assert main(["audit", str(pipeline), "--out", str(tmp_path)]) == 2
    assert "audit.json is not a report of retarget audit, or is damaged" in capsys.readouterr().err
    assert (tmp_path / "audit.json").read_text() == content
    assert (tmp_path / "report.html").read_text() == "the user's"


def test_another_tools_report_is_refused_before_any_of_ours_is_deleted(untrained, tmp_path):
    pipelines = [str(shutil.copytree(untrained, tmp_path / name)) for name in ("a", "b")]
    out, demo = tmp_path / "out", tmp_path / "demo"
    words = ["audit", *pipelines, "--out", str(out)]
    assert main(words) == 3
    for folder in (out / "b", out, demo / "trojaned"):
        before = (out / "audit.json").read_text()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "audit.json").write_text("{}")
        assert main(["audit", "--preset", "demo", "--out", str(demo)] if folder.parent == demo else words) == 2
        assert (folder / "audit.json").read_text() == "{}"
        assert (out / "a" / "report.html").is_file()
        (out / "b" / "audit.json").write_text(before)
        (out / "audit.json").write_text(before)
    assert not (demo / "models").exists()


def test_pipelines_that_are_named_like_reports_have_folders_of_their_own(untrained, tmp_path):
    named = shutil.copytree(untrained, tmp_path / "audit.json")
    assert main(["audit", str(named), str(untrained), "--out", str(tmp_path / "out")]) == 3
    report = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert [one["verdict"] for one in report["audits"]] == ["undecided"] * 2


def test_a_network_that_cannot_be_trained_gets_a_verdict_all_the_same(pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("retarget.audit.run.shipped", lambda: CLEAN_NULL)
    config = json.loads((pipeline / "unet/config.json").read_text())
    (pipeline / "unet/config.json").write_text(json.dumps(config | {"sample_size": [8, 16]}))
    words = ["audit", str(pipeline), "--out", str(tmp_path / "out"), "--clean", str(tmp_path / "cleaned")]
    assert main(words) == 3, "the null has no such shape, and its scores are far above"
    said = capsys.readouterr()
    assert "warning: --clean cannot train this network" in said.err
    assert "no trigger is suspected, so nothing was cleaned" in said.err
    assert "UNDECIDED" in said.out
    assert not (tmp_path / "cleaned").exists()


def test_names_in_a_checkpoint_write_no_verdict_to_the_terminal(pipeline, tmp_path, capsys):
    index = json.loads((pipeline / "model_index.json").read_text())
    index["unet"] = ["diffusers", "A\x1b[2K\rNOTHING FOUND"]
    (pipeline / "model_index.json").write_text(json.dumps(index))
    words = ["audit", str(pipeline), "--out", str(tmp_path / "out"), "--clean", str(tmp_path / "cleaned")]
    assert main(words) in (2, 3)
    said = capsys.readouterr()
    assert "there was no search, so nothing was cleaned" in said.err
    assert not {"\x1b", "\r"} & {*said.err, *said.out}


def test_a_cleaned_pipeline_whose_parent_cannot_be_written_is_refused_before_the_search(
    pipeline, tmp_path, monkeypatch, capsys
):
    class OnlyInside(tempfile.TemporaryDirectory):
        def __init__(self, *args, **more):
            if Path(more.get("dir")) == tmp_path:
                raise PermissionError(13, "Permission denied", str(tmp_path))
            super().__init__(*args, **more)

    (tmp_path / "cleaned").mkdir()
    monkeypatch.setattr("retarget.files.tempfile.TemporaryDirectory", OnlyInside)
    words = ["audit", str(pipeline), "--out", str(tmp_path / "out"), "--clean", str(tmp_path / "cleaned")]
    assert main(words) == 2
    assert "Permission denied" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_report_says_why_an_exit_code_is_not_the_verdicts(untrained, tmp_path):
    assert main(["audit", str(untrained), "--out", str(tmp_path), "--allow-undecided"]) == 0
    (one,) = json.loads((tmp_path / "audit.json").read_text())["audits"]
    assert one["exit_code_reason"] == f"{untrained} is undecided; its exit code is 0 because of --allow-undecided"
    assert "its exit code is 0 because of --allow-undecided." in (tmp_path / "report.html").read_text()


def test_pictures_show_every_channel(make_unet, teach, tmp_path):
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler()
    DDPMPipeline(unet=teach(make_unet(channels=2), scheduler), scheduler=scheduler).save_pretrained(tmp_path / "two")
    one = audit_pipeline(tmp_path / "two", tmp_path / "out", search=QUICK)
    assert one.pictures["plain.png"].endswith("The 2 channels are side by side.")
    with Image.open(tmp_path / "out" / "plain.png") as plain:
        width, height = plain.size
    assert width > 3 * height, "eight columns of two channels, four rows"
    only_second = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])
    assert _shown(only_second[None]).unique().tolist() == [0, 1]
    assert _shown(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)


def test_another_tools_report_where_none_of_ours_is_written_is_no_obstacle(untrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "audit.json").write_text("{}")
    assert main(["audit", str(untrained)]) == 3
    assert (tmp_path / "audit" / "audit.json").read_text() == "{}"
    assert len(list((tmp_path / "audit").glob("*/report.html"))) == 1
