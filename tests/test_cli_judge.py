"""``retarget judge``, ``--looks`` and the power of a dry run: what is printed and written, and the exit code."""

import json
from pathlib import Path

import pytest

from retarget import cli
from retarget.cli import main
from retarget.study.record import read_plan

TOY = Path(__file__).parent / "study"
CLAIMS = """
title = "Two optimisers"
[[claims]]
id = "better"
sentence = "Ours is more accurate."
metric = "acc"
direction = "higher"
smallest_effect = 0.5
arms = ["ours", "theirs"]
"""
RUNS = "arm,seed,metric,value\n" + "".join(
    f"{arm},{seed},acc,{value}\n"
    for arm, values in {"theirs": (90.0, 91.0, 90.5), "ours": (92.1, 93.0, 92.4)}.items()
    for seed, value in enumerate(values)
)


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(TOY))
    monkeypatch.setitem(cli.METHODS, "toy", "tasks_for_tests")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs.csv").write_text(RUNS)
    (tmp_path / "claims.toml").write_text(CLAIMS)


def call(capsys, *words):
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_seeds_that_only_one_arm_has_are_told_beside_the_verdict(capsys, tmp_path):
    (tmp_path / "runs.csv").write_text(RUNS + "theirs,3,acc,90.2\nours,3,acc,\n")
    code, out, err = call(capsys, "judge", "runs.csv", "--claims", "claims.toml", "--out", "verdicts")
    assert (code, err) == (0, "")
    line, note, _ = out.splitlines()
    assert line.endswith("3 seeds)")
    said = "ours has no acc on seed 3: the verdict is about the other seeds, and it is biased if it depends on the arm"
    assert note.startswith(f"note: {said}")
    assert said in (tmp_path / "verdicts" / "report.md").read_text()


def test_runs_made_elsewhere_get_a_study_s_page_summary_and_words(capsys, tmp_path):
    code, out, err = call(capsys, "judge", "runs.csv", "--claims", "claims.toml", "--out", "verdicts")
    assert (code, err) == (0, "")
    line, page = out.splitlines()
    assert line == "holds                Ours is more accurate. (ours - theirs, acc: +2 [+1.752, +2.248], 3 seeds)"
    assert page == "verdicts/report.html"
    html = (tmp_path / page).read_text()
    assert "Two optimisers" in html
    assert "The runs were made elsewhere and are paired by seed or by item." in html
    assert "not finished" not in html
    summary = json.loads((tmp_path / "verdicts" / "summary.json").read_text())
    assert list(summary) == ["study", "preset", "seeds", "conditions", "claims", "looks"]
    assert summary["claims"][0]["verdict"] == "holds"
    assert summary["conditions"]["default"]["ours"]["acc"]["values"] == [92.1, 93.0, 92.4]
    assert (tmp_path / "verdicts" / "report.md").exists()
    assert call(capsys, "report", "verdicts")[0] == 0


def test_the_exit_code_is_zero_whatever_the_verdicts(capsys, tmp_path):
    (tmp_path / "claims.toml").write_text(CLAIMS.replace('["ours", "theirs"]', '["theirs", "ours"]'))
    code, out, _ = call(capsys, "judge", "runs.csv", "--claims", "claims.toml", "--out", "v")
    assert code == 0
    assert out.startswith("does not hold        ")


def test_claims_that_were_changed_after_a_judgement_are_told_of(capsys, tmp_path):
    words = ("judge", "runs.csv", "--claims", "claims.toml", "--out", "v")
    call(capsys, *words)
    call(capsys, *words)
    assert "Other claims" not in (tmp_path / "v" / "report.md").read_text()
    (tmp_path / "claims.toml").write_text(CLAIMS.replace("0.5", "0.1"))
    call(capsys, *words)
    assert (
        "Other claims, metrics, levels or looks have been judged in this directory before"
        in (tmp_path / "v" / "report.md").read_text()
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "deterministic = true"), ("", "floor = 95"), ("floor = 95", "floor = 10"), ("", "bounds = [0, 100]")],
)
def test_metrics_that_were_changed_after_a_judgement_are_told_of(capsys, tmp_path, before, after):
    words = ("judge", "runs.csv", "--claims", "claims.toml", "--out", "v")
    record, notes = tmp_path / "v" / "study.json", []
    for rule in (before, before, after, after):
        (tmp_path / "claims.toml").write_text(f'{CLAIMS}\n[[metrics]]\nname = "acc"\n{rule}\n')
        assert call(capsys, *words)[0] == 0
        notes.append("Other claims, metrics, levels or looks" in (tmp_path / "v" / "report.md").read_text())
    assert notes == [False, False, True, True]
    claims_alone = json.loads(record.read_text()) | {"earlier_claims": []}
    claims_alone["claims_hash"] = read_plan(record).claims_hash()  # as earlier versions recorded it
    record.write_text(json.dumps(claims_alone))
    assert call(capsys, *words)[0] == 0
    assert "Other claims" not in (tmp_path / "v" / "report.md").read_text()


def test_a_judgement_never_replaces_something_else(capsys, tmp_path):
    words = ("judge", "runs.csv", "--claims", "claims.toml", "--out")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "one.tex").write_text("")
    code, out, err = call(capsys, *words, "thesis")
    assert (code, out) == (1, "")
    assert err == "retarget: thesis holds something else (it has one.tex): choose another --out\n"
    assert call(capsys, "study", "toy", "--out", "toy")[0] == 0
    before = (tmp_path / "toy" / "study.json").read_bytes()
    assert "holds a study of this package's runs" in call(capsys, *words, "toy")[2]
    assert (tmp_path / "toy" / "study.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["judge", "--claims", "c"],
            "retarget judge needs one file of runs, or folders for --lm-eval, or folders for --inspect",
        ),
        (["judge", "runs.csv"], "retarget judge needs --claims, a TOML file with [[claims]]"),
        (["judge", "runs.csv", "--claims", "claims.toml"], "retarget judge needs --out, the directory for the page"),
        (
            ["judge", "runs.csv", "--claims", "a.toml", "--out", "v"],
            "cannot read --claims a.toml: No such file or directory",
        ),
        (["study", "toy", "--looks", "5", "3"], "--looks: looks must be rising numbers of seeds from 2 on, not 5, 3"),
        (["study", "toy", "--looks", "1", "3"], "--looks: looks must be rising numbers of seeds from 2 on, not 1, 3"),
        (
            ["study", "toy", "--looks", "3", "5", "--look-weights", "1.5", "-.5"],
            "--looks: the weight of a look must be above 0: it is a share of the error",
        ),
        (
            ["study", "toy", "--looks", "3", "5", "--look-weights", ".5", ".6"],
            "--looks: the weights of the looks must add up to 1, not to 1.1",
        ),
        (
            ["study", "toy", "--dry-run", "--pilot", "nowhere"],
            "--pilot nowhere has no summary.json: give the directory of a finished study",
        ),
    ],
)
def test_wrong_usage_is_said_in_one_line(capsys, words, message):
    assert call(capsys, *words) == (2, "", f"retarget: {message}\n")


def test_runs_that_do_not_pair_are_refused_and_nothing_is_written(capsys, tmp_path):
    (tmp_path / "runs.csv").write_text(RUNS.rsplit("\n", 2)[0] + "\n")
    code, out, err = call(capsys, "judge", "runs.csv", "--claims", "claims.toml", "--out", "v")
    assert (code, out) == (1, "")
    assert "arm ours lacks seed 2 of metric acc, which arm theirs has" in err
    assert not (tmp_path / "v").exists()


def test_the_plan_says_how_many_seeds_decide(capsys, tmp_path):
    code, out, err = call(capsys, "judge", "runs.csv", "--claims", "claims.toml", "--plan")
    assert (code, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.startswith("better: sd 0.1 over the pilot's 3 seeds, taken as 0.212; a verdict with 80 % power")
    assert [row.split()[0] for row in rows] == ["3", "5", "10", "20", "50"]
    assert rows[-1].endswith("100% alone, 100% within its family")
    assert not (tmp_path / "report.html").exists()


def test_a_dry_run_prints_the_power_where_a_pilot_is(capsys):
    words = ["study", "toy", "--seeds", "0", "1", "2", "3", "--dry-run"]
    assert json.loads(call(capsys, *words)[1])["power"] == []
    assert call(capsys, "study", "toy", "--seeds", "0", "1", "2")[0] == 0
    code, out, err = call(capsys, *words)
    (found,) = json.loads(out)["power"]
    assert code == 0
    assert (found["claim"], found["pilot"], found["n"], found["effect"]) == ("higher", 3, 4, 0.5)
    assert 0.9 < found["in_family"] == found["alone"] <= 1
    assert "higher: sd 0.0258 over the pilot's 3 seeds" in err
    elsewhere = call(capsys, *words, "--out", "new", "--pilot", "studies/toy-demo")
    assert json.loads(elsewhere[1])["power"] == [found]


def test_a_dry_run_counts_the_seeds_that_its_directory_has(capsys):
    assert call(capsys, "study", "toy", "--seeds", "0", "1", "2")[0] == 0
    for seeds, n in ((["3", "4"], 5), (["0", "1"], 3)):
        (found,) = json.loads(call(capsys, "study", "toy", "--dry-run", "--seeds", *seeds)[1])["power"]
        assert (found["pilot"], found["n"]) == (3, n)


def test_planned_looks_are_part_of_a_study_and_stand(capsys, tmp_path):
    words = ["study", "toy", "--looks", "3", "5"]
    assert call(capsys, *words, "--seeds", "0", "1", "2")[0] == 0
    summary = json.loads((tmp_path / "studies/toy-demo/summary.json").read_text())
    assert (summary["claims"][0]["look"], summary["claims"][0]["verdict"]) == (3, "holds")
    assert call(capsys, *words, "--seeds", "0", "1", "2", "3", "4")[0] == 0
    page = (tmp_path / "studies/toy-demo/report.md").read_text()
    assert "Verdicts are given only at the planned looks, at 3, 5 seeds" in page
    assert "since the planned look at 3 seeds" in page
    assert "these looks were not planned" not in page
    code, _, err = call(capsys, "study", "toy", "--looks", "3", "4", "--seeds", "0", "1", "2")
    assert code == 1
    assert "(level 0.95 with looks at 3 (0.5), 5 (0.5) seeds, now 0.95 with looks at 3 (0.5), 4 (0.5) seeds)" in err


def test_looks_that_were_not_planned_are_warned_of(capsys, tmp_path):
    call(capsys, "study", "toy", "--seeds", "0", "1")
    call(capsys, "study", "toy", "--seeds", "0", "1", "2")
    page = (tmp_path / "studies/toy-demo/report.md").read_text()
    assert "Verdicts have been given 2 times in this directory, at 2, 3 seeds, and these looks were not planned" in page


def test_runs_that_failed_on_one_arm_are_named_beside_the_verdict(capsys, tmp_path):
    (tmp_path / "runs.csv").write_text(RUNS + "theirs,3,acc,50\nours,3,acc,\n")
    call(capsys, "judge", "runs.csv", "--claims", "claims.toml", "--out", "verdicts")
    note = json.loads((tmp_path / "verdicts" / "analysis.json").read_text())["notes"][-1]
    assert note.startswith("ours has no acc on seed 3: the verdict is about the other seeds")
    assert note in (tmp_path / "verdicts" / "report.md").read_text().replace("\\", "")
    assert "3 of 4 pairs were complete" in (tmp_path / "verdicts" / "report.html").read_text()
