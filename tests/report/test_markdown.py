import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retarget.report import build
from retarget.report.markdown import escape, fenced
from retarget.study.figures import Analysis, Table, Text


@pytest.fixture(scope="module")
def text(finished):
    return (finished / "report.md").read_text(encoding="utf-8")


def cells(line):
    """A table row's cells; a bar after a backslash does not divide."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_it_says_what_the_page_says(text):
    for part in (
        "# PS-KD on image classification",
        "**Question.** Do softened targets from the model's own past predictions help on this data?",
        "**Found.** 1 of 6 claims holds here, 3 do not, 2 lack evidence.",
        "1 of 30 runs failed; their seeds are missing below.",
        "### clean labels",
        "✓ **holds here**",
        "✕ **does not hold here**",
        "? **not enough evidence**<br>",
        "<summary>1 more claim was stated but not run here</summary>",
        "- PS-KD improves object detection.",
        "<summary>Any arm against any arm: paired differences, which decide nothing</summary>",
        "@software{retarget,",
        "<sub>Decides nothing: item bootstrap \\[−0.90, +0.10\\]</sub>",
        "| clean/pskd/seed-3 | RuntimeError: loss &lt;nan&gt; |",
        "- Cross-entropy reaches 92 % on the digits",
        "retarget study pskd --preset demo --out studies/demo/pskd",
    ):
        assert part in text


def test_tables_have_the_same_cells_in_every_row(text):
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) >= 10
    for table in tables:
        assert len({len(cells(line)) for line in table.splitlines()}) == 1, table


def test_figures_are_files_beside_it(text, finished):
    images = re.findall(r"!\[(.*?[^\\])\]\((report_files/[\w.-]+)\)", text)
    assert len(images) == 6
    for alternative, name in images:
        assert len(alternative) > 10
        assert (finished / name).is_file()
    drawn = [path for path in (finished / "report_files").iterdir() if path.suffix in (".svg", ".png")]
    assert {name for _, name in images} == {f"report_files/{path.name}" for path in drawn}
    assert "<svg" not in text
    assert (finished / "report_files" / "pskd-05-samples-1.png").read_bytes() == (
        finished / "samples" / "a.png"
    ).read_bytes()


def test_verbatim_text_stays_in_its_fence(text):
    assert "````text\ndef add(a, b):\n    return a + b  # ```three``` backticks\n````\n" in text


@given(st.text())
def test_escaped_text_is_one_line_without_markup(text):
    line = escape(text)
    assert "\n" not in line
    assert "<" not in line
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*|\[\]$]", line)


@given(st.text(alphabet="`a\n"))
def test_a_fence_is_longer_than_any_in_the_text(text):
    block = fenced(text)
    fence = block.partition("text\n")[0]
    assert set(fence) == {"`"}
    assert fence not in text
    assert block.endswith("\n" + fence)


def test_hostile_text_stays_text(study):
    hostile = "a | b <script> [x](javascript:1) ``` # no\n\n# heading"
    found = Analysis(
        figures=[
            Table(title=hostile, caption=hostile, columns=[hostile, "n"], rows=[[hostile, "1"]]),
            Text(title="t", caption="c", labels=[hostile], blocks=[hostile]),
        ],
        notes=["# not a heading", "1. not a list", hostile],
    )
    directory = study("hostile", None, found)
    build([directory])
    text = (directory / "report.md").read_text(encoding="utf-8")
    outside = re.sub(r"^(````+)text\n.*?\n\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in outside
    assert "](javascript" not in outside.replace("\\](", "")
    assert "\n- \\# not a heading\n- 1\\. not a list\n" in text
    assert [line for line in outside.splitlines() if line.startswith("# ")] == ["# PS-KD on image classification"]
