"""Every command of the guide to own studies runs, in its smallest form, on the files that the guide shows."""

import re
import shlex
import shutil
import sys
from pathlib import Path

from retarget.cli import main

sys.path.insert(0, str(Path(__file__).parent))
from documents import ROOT

FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
SMALLEST = "epochs=1 validation_images=40 test_images=60"
"""Settings of an image study that the guide leaves as they are."""


def smallest(command):
    """The command in one process and, of an image study, with a short training."""
    words = shlex.split(command.replace("--jobs 2", "--jobs 1"))
    image_study = words[:2] == ["study", "pskd"] and "--help" not in words
    return [*words, "--no-progress", "--set", *SMALLEST.split()] if image_study else words


def test_every_command_of_the_guide_runs(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "own_studies.md").read_text(encoding="utf-8")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name, content in FILE.findall(text):
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    lines = [line for block in CONSOLE.findall(text) for line in block.splitlines()]
    commands = [line.removeprefix("$ retarget ") for line in lines if line.startswith("$ ")]
    assert len(commands) >= 8
    for command in commands:
        assert main(smallest(command)) == 0, f"{command}: {capsys.readouterr().err}"
