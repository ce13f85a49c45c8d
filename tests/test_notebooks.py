"""Every notebook runs from top to bottom, and jupytext and nbformat read it."""

import runpy
from pathlib import Path

import jupytext
import matplotlib
import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_it_runs(path, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    notebook = jupytext.read(path)
    nbformat.validate(notebook)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == kinds[-1] == "markdown"
    assert kinds.count("code") >= 3
    names = runpy.run_path(str(path))
    if path.stem == "pskd_overconfidence":
        assert names["found"]["PS-KD"]["temperature"] < names["found"]["cross-entropy"]["temperature"]
        assert all(one["accuracy"] > 0.5 for one in names["found"].values())
    if path.stem == "pope_prefixes":
        assert [one.status for one in names["prefixes"].found] == ["found"] * 4
        assert sorted(row["guided"] for row in names["rows"]) == [False] * 4 + [True] * 4


def test_the_list_is_complete():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in text for path in FOLDER.glob("*.py"))
