"""Every command and every line of Python of the guides runs, in its smallest form."""

import sys
from pathlib import Path

import pytest

from retarget.cli import main

sys.path.insert(0, str(Path(__file__).parent))
from documents import ROOT, python_blocks, shell_commands, smallest, things, write_files

DOCS = ROOT / "docs"
PYTHON = {
    "classifier": "classifier",
    "text": "text",
    "detector": "detector",
    "reinforcement": "pope",
    "security": "trojdiff",
}
PAGES = [DOCS / "start.md", DOCS / "clusters.md", DOCS / "verdicts.md", *sorted((DOCS / "guides").glob("*.md"))]


def test_no_guide_is_left_out():
    assert {path.stem for path in (DOCS / "guides").glob("*.md")} == set(PYTHON)


@pytest.mark.parametrize("name", PYTHON)
def test_its_python_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = things(tmp_path, PYTHON[name])
    for number, block in enumerate(python_blocks(DOCS / "guides" / f"{name}.md"), start=1):
        exec(compile(smallest(block), f"{name}.md, block {number}", "exec"), names)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_commands_run(page, files, tmp_path, monkeypatch, capsys):
    """Studies that would train for minutes are only planned, since other tests train them."""
    monkeypatch.chdir(tmp_path)
    for path in files.iterdir():
        Path(path.name).symlink_to(path)
    commands = [words for words in shell_commands(page) if words[0] not in ("pip", "make", "python")]
    assert commands
    for program, *words in commands:
        assert program == "retarget"
        if words[0] == "report":
            continue  # of studies that were looked at only; tests of the page make real ones
        if words[0] == "study" and "--help" not in words and "--dry-run" not in words:
            words.append("--dry-run")
        code = main(words)
        assert code == 0, (words, capsys.readouterr().err)
