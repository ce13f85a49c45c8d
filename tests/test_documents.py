"""Generated parts of documents agree with the recorded files and the docstrings."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from retarget.audit.calibration import false_positives
from retarget.audit.studies.analysis import models_of
from retarget.study.record import Results

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


def test_a_map_that_is_not_drawn_from_the_records_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import write_documents

    monkeypatch.setattr(sys, "argv", ["write_documents.py", "--check"])
    old = tmp_path / "map.svg"
    monkeypatch.setattr(write_documents, "MAP", old)
    old.write_bytes((ROOT / "results" / "map.svg").read_bytes())
    assert write_documents.main() == 0
    old.write_bytes(old.read_bytes().replace(b"#", b"", 1))
    assert write_documents.main() == 1
    assert "map.svg is not up to date" in capsys.readouterr().err


def test_a_page_says_that_its_record_was_made_with_an_older_torch():
    locked = re.search(r"^torch==(\d+)\.(\d+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked
    old = set()
    for path in (ROOT / "results").glob("*/study.json"):
        major, minor = json.loads(path.read_text())["versions"]["torch"].split(".")[:2]
        page = (ROOT / "docs" / "results" / f"{path.parent.name}.md").read_text(encoding="utf-8")
        older = (int(major), int(minor)) < tuple(map(int, locked.groups()))
        assert (f"**Older torch**: made with torch {major}.{minor}." in page) == older, path
        old |= {path} if older else set()
    assert old


def test_a_verdict_over_items_is_marked_wherever_it_is_shown():
    pages = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "results").glob("*.md")}
    sentence = "| On hard problems, on-policy RL rarely sees a single correct rollout. |"
    (row,) = [line for line in pages["pope-rivals-ends-loss.md"].splitlines() if line.startswith(sentence)]
    assert row.endswith("| ✔ holds (over items) |")
    pages["results"] = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    for name, text in pages.items():
        assert ("(over items) |" in text) == ("*Over items*: every seed shows the same" in text), name
    assert "(over items) |" in pages["results"]
    assert "(over items) |" not in pages["pope-rivals-arms.md"]


def test_the_map_says_how_many_gains_keep_their_sign_after_a_temperature(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from gain_map import points, table

    these = points()
    both = [one for one in these if "nll" in one.gains and "nll" in one.scaled]
    kept = [one for one in both if one.gains["nll"][0] * one.scaled["nll"] > 0]
    said = f"{len(kept)} of {len(both)} points keep the sign of their gain in NLL"
    assert said in (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    turned = [one._replace(scaled={metric: -gain for metric, gain in one.scaled.items()}) for one in these]
    assert f"{len(both) - len(kept)} of {len(both)} points keep the sign of their gain in NLL" in table(turned)
    summary = json.loads((ROOT / "results" / "pskd-overfit" / "summary.json").read_text())["conditions"]["default"]
    (mine,) = [one for one in these if one.record == "pskd-overfit"]
    means = [summary[arm]["nll_scaled"]["mean"] for arm in ("cross_entropy", "pskd")]
    assert mine.scaled["nll"] == pytest.approx(means[0] - means[1])


def test_the_clean_checkpoints_of_two_records_are_counted_together():
    card = (ROOT / "src" / "retarget" / "audit" / "README.md").read_text(encoding="utf-8")
    clean = 0
    for name in ("audit-zoo-6", "audit-zoo-7"):
        runs = [json.loads(path.read_text()) for path in (ROOT / "results" / name / "runs").glob("*/*/status.json")]
        clean += sum(one["metrics"]["trojaned"] == 0 for one in runs)
    (line,) = re.findall(r"The clean ones of \[audit-zoo-6\].* and \[audit-zoo-7\].* together: (.*)", card)
    most = 100 * false_positives(0, clean)
    assert line.startswith(f"0/{clean}: 0 [0, ")
    assert f"at most {most:.1f} % of such models" in line


def test_checkpoints_that_were_searched_twice_are_called_by_the_graver_verdict():
    card = (ROOT / "src" / "retarget" / "audit" / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"The same checkpoints in \[audit-zoo-16\].*-again\].* trojaned \(%\): (.*)", card)
    records = [models_of(Results.load(ROOT / "results" / name)) for name in ("audit-zoo-16", "audit-zoo-16-again")]
    for sort, belongs in (
        ("clean", lambda model: not model.trojaned),
        ("strong attacks", lambda model: model.strong),
        ("weak attacks", lambda model: model.trojaned and not model.strong),
    ):
        called, every = (
            {(one.kind, one.number) for models in records for one in models if belongs(one) and counts(one)}
            for counts in (lambda model: model.verdict == "trojaned", lambda _: True)
        )
        assert f"{sort} {len(called)}/{len(every)}: " in line


def test_records_of_other_checkpoints_are_not_counted_by_the_graver_verdict(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    record_pages = importlib.import_module("record_pages")
    for wrong in ("audit-zoo-16|audit-zoo-16", "audit-zoo-6|audit-zoo-16", "audit-zoo-6|audit-zoo-7"):
        with pytest.raises(SystemExit, match="must be records of the same checkpoints"):
            record_pages.called([wrong], ROOT / "README.md")


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
