"""What the documents say of registrations agrees with the history, and decides how verdicts are shown."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "results"


def settings():
    with (ROOT / "results" / "registered.toml").open("rb") as file:
        return tomllib.load(file)["setting"]


def claims_of(name):
    path = ROOT / "results" / name / "summary.json"
    return json.loads(path.read_text())["claims"] if path.is_file() else []


def lists(setting, claim):
    return bool({claim["id"], claim["id"].removesuffix(f"_{claim['condition']}")} & set(setting["claims"]))


@pytest.fixture
def whole_history():
    asked = ["git", "rev-parse", "--is-shallow-repository"]
    answer = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    if answer != "false":
        pytest.skip("needs the whole history")


def test_every_setting_was_registered_by_its_commit_and_before_any_result(whole_history):
    done = subprocess.run([sys.executable, "tools/registrations.py"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"commit": "22e4589547"}, "no such setting"),
        ({"commit": "720e281"}, "was registered before"),
        ({"commit": "86b86e9523"}, "has results of it"),
        ({"claims": ["accuracy"]}, "its claims changed"),
        ({"command": "retarget study pskd"}, "its command changed"),
        ({"code": "0" * 40}, "is not in the history"),
    ],
)
def test_a_registration_that_the_history_contradicts_is_named(whole_history, monkeypatch, change, fault):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from registrations import faults

    setting = next(one for one in settings() if one["name"] == "pskd-overfit")
    assert list(faults(setting)) == []
    assert fault in " ".join(faults(setting | change))


@pytest.mark.parametrize("setting", [one for one in settings() if claims_of(one["name"])], ids=lambda one: one["name"])
def test_a_page_names_both_commits_and_marks_claims_that_were_not_registered(setting):
    page = (PAGES / f"{setting['name']}.md").read_text(encoding="utf-8")
    kind = setting.get("kind", "registered")
    assert setting["commit"][:10] in page
    assert f"**{kind.capitalize()}**" in page
    assert ("seen" in setting) == (kind != "registered") == ("What was known by then" in page)
    assert (setting.get("seen", "")) in page
    if not setting["claims"]:
        return
    for claim in claims_of(setting["name"]):
        rows = [line for line in page.splitlines() if line.startswith(f"| {claim['sentence']} |")]
        if kind != "exploratory":
            assert all(("(exploratory)" in row) != lists(setting, claim) for row in rows), claim["id"]


def test_settings_without_a_complete_record_are_listed_with_state_and_reason():
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    block = text.partition("<!-- unfinished -->")[2].partition("<!-- end of unfinished -->")[0]
    for one in settings():
        without = not (ROOT / "results" / one["name"] / "summary.json").is_file()
        begun = not one["status"].startswith("complete")
        assert begun >= without
        assert (f"{one['status']} | {one['reason']}" in block) == begun


def test_arms_that_are_said_to_be_the_runs_of_another_record_have_its_values():
    shared = [one for one in settings() if "same_runs" in one]
    assert shared
    for one in shared:
        paths = [ROOT / "results" / name / "summary.json" for name in (one["name"], one["same_runs"]["record"])]
        here, there = (json.loads(path.read_text())["conditions"] for path in paths)
        for condition in here:
            for arm in one["same_runs"]["arms"]:
                for metric in here[condition][arm].keys() & there[condition][arm].keys():
                    assert here[condition][arm][metric]["values"] == there[condition][arm][metric]["values"], metric


def test_a_sentence_is_judged_by_what_was_registered_and_shown_once_for_the_same_runs():
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    block = text.partition("<!-- abstracts -->")[2].partition("<!-- end of abstracts -->")[0]
    summary, _, details = block.partition("Every comparison:")
    sentences = [line for line in summary.splitlines() if line.startswith(("| PS-KD", "| POPE", "| TrojDiff"))]
    assert len(sentences) == 17
    rows: dict[str, list[list[str]]] = {}
    name = ""
    setting = ""
    for line in details.splitlines()[4:]:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 6:
            name, setting = cells[0] or name, cells[1] or setting
            rows.setdefault(name, []).append([setting, *cells[2:]])
    for line in sentences:
        name, _, verdict, *counts = (cell.strip() for cell in line.strip().strip("|").split("|"))
        counted = [row for row in rows.get(name, []) if "exploratory" not in row[0] and not row[4].startswith("void")]
        if name == "POPE 3":  # decided by two of its four comparisons
            counted = [row for row in counted if "(easy problems improve" not in row[1] and "(as many" not in row[1]]
        decided = [row[4] for row in counted if row[3] != "–" and int(row[3]) >= 3 and row[4][0] in "✔✘"]
        holds, fails = (sum(said.startswith(sign) for said in decided) for sign in "✔✘")
        assert list(map(int, counts)) == [holds, fails, len(counted) - holds - fails], name
        ends = {(True, False): "✔ holds", (False, True): "✘ does not hold", (True, True): "✔✘ differs by setting"}
        assert verdict == ends.get((holds > 0, fails > 0), "? open" if rows.get(name) else "not measured"), name
    transfers = [row for row in rows["POPE 5"] if row[2].startswith("+75.34")]
    assert len(transfers) == 1
    assert "pope-neighbours" in transfers[0][0]
