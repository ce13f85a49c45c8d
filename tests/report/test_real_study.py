"""The page and the real runner meet."""

import json

from page_reader import Page
from tiny_study import PLAN

from retarget.report import build
from retarget.study.runner import run_study


def test_the_runner_ends_with_a_page_of_its_own_results(tmp_path):
    outcome = run_study(PLAN, tmp_path / "tiny", page=build, command=["retarget", "study", "tiny", "--out", "a b"])
    assert outcome.page == outcome.directory / "report.html"
    assert list(outcome.failed) == ["default/treated/seed-3"]
    page = Page(outcome.page)
    assert "The one claim holds here." in page.text
    row = next(row for row in page.rows if row[0] == "A shift raises the score.")
    assert "shifted against control" in row[1]
    assert row[2].startswith("+3.10 points [+")
    assert "Decides nothing: item bootstrap [+2.50, +3.50]; raw score 0.00" in row[2]
    assert row[3:] == ["3", "holds here"]
    assert ["treated/seed-3", "RuntimeError: the loss is <NaN>"] in page.rows
    assert "retarget study tiny --out 'a b'" in page.text
    versions = json.loads((outcome.directory / "study.json").read_text())["versions"]
    assert f"python {versions['python']}" in page.text
    markdown = (outcome.directory / "report.md").read_text()
    assert "The one claim holds here." in markdown
    assert (outcome.directory / "report_files" / "tiny-01-score.svg").is_file()
