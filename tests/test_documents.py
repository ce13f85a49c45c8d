"""Generated parts of documents agree with the recorded files and the docstrings."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_map_and_the_result_tables_are_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "write_documents.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_no_table_of_a_study_s_metrics_is_wider_than_eight_columns():
    heads = {
        (page.name, line)
        for page in (ROOT / "docs" / "results").glob("*.md")
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("| arm | seeds |")
    }
    assert len(heads) > 10
    assert {head for head in heads if head[1].count("|") > 9} == set()


def test_a_command_lists_the_records_that_are_older_than_a_change():
    shallow = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True)
    if shallow.stdout.strip() != "false":
        pytest.skip("needs the whole history")
    done = subprocess.run([sys.executable, "tools/old_records.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with (ROOT / "results" / "changes.toml").open("rb") as file:
        changes = tomllib.load(file)["change"]
    for change in changes:
        assert done.stdout.count(change["what"]) == len(change["records"]) > 0
