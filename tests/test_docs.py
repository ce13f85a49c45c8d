"""Every file that the architecture's pages name is there, and every command of a guide runs, in its smallest form."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from retarget.cli import main

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
NAMED = re.compile(r"`((?:[\w]+/)*[\w]+(?:/|\.py|\.md))`")
FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
SMALLEST = "epochs=1 validation_images=40 test_images=60"
"""Settings of an image study that a guide leaves as they are."""


def commands(page):
    blocks = CONSOLE.findall(page.read_text(encoding="utf-8"))
    return [line.removeprefix("$ retarget ") for block in blocks for line in block.splitlines() if line[:2] == "$ "]


def smallest(command):
    """The command in one process and, of an image study, with a short training."""
    words = shlex.split(command.replace("--jobs 2", "--jobs 1"))
    image_study = words[:2] == ["study", "pskd"] and "--help" not in words
    return [*words, "--no-progress", "--set", *SMALLEST.split()] if image_study else words


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_every_command_of_a_guide_runs(page, tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name, content in FILE.findall(page.read_text(encoding="utf-8")):
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        assert main(smallest(command)) == 0, f"{command}: {capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_is_there(page):
    text = page.read_text(encoding="utf-8")
    named = [name for name in NAMED.findall(text) if name not in dict(FILE.findall(text))]
    beside = ("pskd", "pskd/past", "pskd/peers", "pskd/studies/images", "pskd/studies/translation", ".")
    homes = [ROOT, *(ROOT / "src" / "retarget" / one for one in beside)]
    missing = [name for name in named if "NAME" not in name and not any((home / name).exists() for home in homes)]
    assert len(named) > 10 or commands(page)
    assert missing == []
