"""Files, links and headings that documents name exist; README stays short; its snippets run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from documents import ROOT, python_blocks, shell_commands, smallest, things

DOCS = ROOT / "docs"
NAMED = re.compile(r"`((?:[\w]+/)*[\w]+(?:/|\.py|\.md))`")


@pytest.mark.parametrize("page", ["adding.md", "architecture.md"])
def test_every_path_is_there(page):
    named = NAMED.findall((DOCS / page).read_text(encoding="utf-8"))
    beside = (
        "audit",
        "pskd",
        "pskd/past",
        "pskd/peers",
        "pskd/studies/images",
        "pskd/studies/translation",
        "pope/commands",
        "pope/studies",
        ".",
    )
    homes = [ROOT, *(ROOT / "src" / "retarget" / one for one in beside), ROOT / "tests" / "pskd" / "peers"]
    missing = [name for name in named if "NAME" not in name and not any((home / name).exists() for home in homes)]
    assert len(named) > 10
    assert missing == []


def test_every_link_leads_somewhere():
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "check_links.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_record_with_claims_has_its_picture():
    pages = [
        page for page in (DOCS / "results").glob("*.md") if "| claim | compared |" in page.read_text(encoding="utf-8")
    ]
    assert len(pages) > 10
    assert [page.name for page in pages if "](figures/" not in page.read_text(encoding="utf-8")] == []


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_bytes()
    assert len(text) <= 8000
    tables = [line for line in text.decode().splitlines() if line.startswith("|")]
    assert max(line.count("|") - 1 for line in tables) <= 6
    assert sum("| ✘ " in line or "| ✔ " in line or "| ? " in line for line in tables) <= 12


def test_the_snippets_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(ROOT / "README.md")
    assert [re.search(r"retarget\.(\w+)", block)[1] for block in blocks] == ["pskd", "pope", "trojdiff"]
    names = things(tmp_path, "classifier") | things(tmp_path, "pope") | things(tmp_path, "trojdiff")
    for block in blocks:
        exec(compile(smallest(block), "README.md", "exec"), names)
    assert names["loss"].item() > 0
    assert [row["guided"] for row in names["rows"]].count(True) == len(names["rows"]) / 2
    assert names["x"].shape == (4, 3, 32, 32)


def test_the_commands_of_the_readme_are_understood():
    commands = shell_commands(ROOT / "README.md")
    assert [words[:2] for words in commands if words[0] == "make"] == [["make", "demo"], ["make", "test"]]
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{words[1]}:" in targets for words in commands if words[0] == "make")
    assert [words[1:3] for words in commands if words[0] == "retarget"] == [
        ["study", "pskd"], ["study", "pskd"], ["judge", "runs.csv"],
    ]  # fmt: skip
