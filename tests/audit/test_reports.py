"""What a reader sees of an audit: on the terminal, in the page, and in a folder with an earlier report."""

import json

import pytest

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
