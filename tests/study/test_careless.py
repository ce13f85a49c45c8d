"""Studies and tables as people have them: what once gave a confident verdict, or ended other runs, without a word."""

import json
import sys

import pytest

from retarget.cli import main
from retarget.errors import UserError
from retarget.study.config import Claim, Metric
from retarget.study.doubts import doubts
from retarget.study.elsewhere import Asked, arrange
from retarget.study.judging import write as judged
from retarget.study.rows import Row, read_rows
from retarget.study.summary import unpaired

HEAD = """
from retarget.study import Arm, Claim, Metric, StudyPlan

plan = StudyPlan(
    study="careless", title="Careless", question="Higher?",
    arms=(Arm(name="a", label="a"), Arm(name="b", label="b", settings={"lift": 0.1})), settings={"lift": 0.0},
    metrics=(Metric(name="m", label="m"%s),), seeds=(0, 1),
    claims=(Claim(id="c", sentence="Higher.", metric="m", direction="higher", arms=("b", "a"), smallest_effect=0.05),),
)
"""
CLAIM = dict(id="c", sentence="It helps.", metric="acc", direction="higher", arms=("new", "old"), smallest_effect=0.05)


@pytest.fixture
def study(tmp_path, monkeypatch, capsys):
    """Run a study of one's own, from its text; returns the values of each arm, or the error."""
    monkeypatch.chdir(tmp_path)

    def called(text, name, *words, out="out", rules=""):
        (tmp_path / f"{name}.py").write_text(HEAD % rules + text)
        sys.modules.pop(name, None)  # as a new process would begin
        code = main(["study", f"{name}.py", "--out", out, "--no-progress", *words])
        said = capsys.readouterr().err
        if code:
            return said
        found = json.loads((tmp_path / out / "summary.json").read_text())["conditions"]["default"]
        return {arm: values["m"]["values"] for arm, values in found.items() if "m" in values}

    return called


def test_a_helpers_analyse_that_a_run_calls_is_part_of_the_runs(study, tmp_path):
    (tmp_path / "helps_careless.py").write_text("def analyse(x):\n    return x\n")
    text = (
        "import helps_careless\ndef run(run):\n"
        "    return {'m': helps_careless.analyse(run.settings['lift'] + run.seed)}\n"
    )
    assert study(text, "careless_help") == {"a": [0.0, 1.0], "b": [0.1, 1.1]}
    (tmp_path / "helps_careless.py").write_text("def analyse(x):\n    return 100 * x\n")
    assert "helps_careless.py" in study(text, "careless_help", "--seeds", "0", "1", "2")


@pytest.mark.parametrize("uses", [False, True])
def test_the_studys_own_analyse_is_left_out_unless_a_run_uses_it(uses, study):
    counted = "(0 if analyse is None else run.seed)" if uses else "run.seed"
    text = (
        "from retarget.study.figures import Analysis\ndef analyse(results):\n    x = {}\n    return Analysis()\n"
        f"def run(run):\n    return {{'m': run.settings['lift'] + {counted}}}\n"
    )
    first, again = (text.replace("x = {}", f"x = {value}") for value in (1, 2))
    assert study(first, f"careless_{uses}") == {"a": [0.0, 1.0], "b": [0.1, 1.1]}
    found = study(again, f"careless_{uses}", "--seeds", "0", "1", "2")
    if uses:
        assert f"careless_{uses}.py" in found
    else:
        assert found["a"] == [0.0, 1.0, 2.0]


def test_the_order_of_a_set_is_the_same_in_every_worker(study):
    text = (
        "import random\ndef run(run):\n    words = list({f'w{i}' for i in range(100)})\n    random.shuffle(words)\n"
        "    return {'m': run.settings['lift'] + int(words[0][1:])}\n"
    )
    found = [study(text, "careless_set", "--jobs", jobs, out=f"out{at}") for at, jobs in enumerate("112")]
    assert found[0] == found[1] == found[2]
    assert found[0]["b"] == pytest.approx([one + 0.1 for one in found[0]["a"]])


def test_rules_of_a_metric_do_not_change_after_its_results(study, tmp_path):
    """The runs are in another file than the plan, so that no fingerprint of the code tells."""
    (tmp_path / "runs_careless.py").write_text("def go(run):\n    return {'m': run.settings['lift'] + run.seed}\n")
    text = "plan = plan.model_copy(update={'task': 'runs_careless:go'})\n"
    assert study(text, "careless_rules", rules=", floor=95.0") == {"a": [0.0, 1.0], "b": [0.1, 1.1]}
    said = study(text, "careless_rules", rules=", deterministic=True")
    assert "this call declares m otherwise (floor, needs, bounds or deterministic)" in said


def test_a_run_that_forks_and_returns_twice_ends_no_other_run(study):
    text = (
        "import os\ndef run(run):\n    if run.arm == 'a' and run.seed == 0:\n        os.fork()\n"
        "    return {'m': run.settings['lift'] + run.seed}\n"
    )
    assert study(text, "careless_fork") == {"a": [0.0, 1.0], "b": [0.1, 1.1]}


def test_a_stream_or_a_mask_that_a_run_leaves_behind_is_not_the_next_ones(study, tmp_path):
    text = (
        "import os, sys\nclass Tee:\n    def __init__(self, path):\n        self.file = open(path, 'a')\n"
        "    def write(self, text):\n        self.file.write(text)\n"
        "def run(run):\n    sys.stdout = Tee(run.directory / 'my.txt')\n    print(run.arm, run.seed)\n"
        "    sys.stdout.file.close()\n    found = os.umask(0o077)\n    return {'m': run.settings['lift'] + found}\n"
    )
    found = study(text, "careless_tee")
    assert len({round(value, 6) for value in found["a"]}) == 1
    assert [path.read_text() for path in sorted(tmp_path.glob("out/runs/*/seed-*/my.txt"))] == [
        "a 0\n", "a 1\n", "b 0\n", "b 1\n"
    ]  # fmt: skip


# -- Runs made elsewhere


def asked(values, metrics=(), **change):
    return doubts([Claim.model_validate(CLAIM | change)], metrics, {"default": {arm: {"acc": one} for arm, one in
                                                                                 values.items()}})  # fmt: skip


def test_copies_of_seeds_are_asked_about():
    three = {"old": [0.901, 0.911, 0.905] * 4, "new": [0.95, 0.93, 0.949] * 4}
    (said,) = asked(three)
    assert said.startswith("Claim c: of 12 seeds only 3 have values of their own. Are the others copies?")
    assert asked({arm: [one + at / 1000 for at, one in enumerate(values)] for arm, values in three.items()}) == []
    assert asked({"old": [0.0, 1.0] * 3, "new": [1.0, 1.0] * 3}, smallest_effect=0.01) == []  # counts


def test_one_value_of_an_arm_on_every_seed_is_asked_about():
    values = {"old": [90.1] * 5, "new": [90.7, 90.9, 91.0, 90.5, 90.8]}
    (said,) = asked(values)
    assert said.startswith("Claim c: old has the same acc on all 5 seeds. Is it one run or a figure from elsewhere?")
    assert asked(values, metrics=(Metric(name="acc", label="acc", deterministic=True),)) == []
    assert asked({**values, "old": [0.0] * 5}) == []


def test_fractions_beside_percentages_are_asked_about():
    (said,) = asked({"old": [0.90, 0.91, 0.905], "new": [91.0, 91.5, 91.2]})
    assert said.startswith("Claim c: one arm's values of acc lie between 0 and 1, the other's between 1 and 100.")
    assert asked({"old": [0.90, 0.91, 0.905], "new": [1.2, 1.5, 1.25]}) == []


def items(arm, values):
    return [Row("here", "default", arm, "acc", value, None, f"q{at}", None) for at, value in enumerate(values)]


def runs(arm, values):
    return [Row("here", "default", arm, "acc", value, seed, None, None) for seed, value in enumerate(values)]


def test_many_items_that_all_differ_alike_decide_nothing(tmp_path):
    losses = [2 + at % 7 / 10 for at in range(120)]
    claims = (Claim.model_validate(CLAIM | {"about": "models", "direction": "lower"}),)
    found = arrange(items("old", losses) + items("new", [one - 0.1 for one in losses]), Asked(claims=claims))
    (claim,) = judged(found, tmp_path / "out", command="c", sources=())["claims"]
    assert (claim["verdict"], claim["interval"]) == ("not enough evidence", None)
    assert claim["reason"] == "the difference is the same on every item"


def test_values_that_were_replaced_are_told(tmp_path):
    claims = (Claim.model_validate(CLAIM),)
    for gain, told in ((0.2, False), (1.2, True), (1.2, True)):
        rows = runs("old", [50.1, 51.3, 49.7]) + runs("new", [50.1 + gain, 51.4 + gain, 49.8 + gain])
        summary = judged(arrange(rows, Asked(claims=claims)), tmp_path / "out", command="c", sources=())
        notes = json.loads((tmp_path / "out" / "analysis.json").read_text())["notes"]
        assert any("at the same seeds, by other values" in note for note in notes) == told
        assert summary.get("judged_otherwise", False) == told


@pytest.mark.parametrize(
    ("first", "then", "told"),
    [
        ([49.0, 49.2, 48.9], [49.0, 49.2, 48.9], ""),
        ([49.0, 49.2, 48.9], [52.0, 52.4, 51.8], "judged_otherwise"),
        ([49.0, None, 48.81], [49.0, 49.2, 48.81], "filled_later"),
    ],
)
def test_the_seeds_of_a_final_verdict_stay_as_they_are_at_the_next_look(first, then, told, tmp_path):
    """Else a verdict of a planned look could be overturned by exchanging what it was given on."""
    given, old = Asked(claims=(Claim.model_validate(CLAIM),), looks=(3, 5)), [50.1, 50.4, 49.9, 50.2, 50.0]
    marks = {"judged_otherwise": "by other values", "filled_later": "before some of their runs were complete"}
    for values in (first, [*then, 52.0, 52.1], [*then, 52.0, 52.1]):
        found = arrange(runs("new", values) + runs("old", old[: len(values)]), given)
        summary = judged(found, tmp_path / "out", command="c", sources=())
        notes = json.loads((tmp_path / "out" / "analysis.json").read_text())["notes"]
        if values is not first:
            assert [mark for mark in marks if summary.get(mark)] == [told] * bool(told)
            assert [mark for mark, text in marks.items() if any(text in note for note in notes)] == [told] * bool(told)


def test_seeds_are_compared_by_their_number_and_not_by_their_place(tmp_path):
    given = Asked(claims=(Claim.model_validate(CLAIM),))
    rows = runs("old", [50.1, 50.4, 49.9, 50.2, 50.0]) + runs("new", [49.0, 49.2, 48.9, 52.0, 52.1])
    for seeds in ({2, 3, 4}, {0, 1, 2, 3, 4}):
        found = arrange([row for row in rows if row.seed in seeds], given)
        assert "judged_otherwise" not in judged(found, tmp_path / "out", command="c", sources=())


def test_seeds_that_only_another_arm_has_are_no_failed_runs():
    claims = (Claim.model_validate({**CLAIM, "arms": ("new",), "against": 50.0}),)
    found = arrange(runs("old", [50.1] * 6) + runs("new", [50.9, 51.3, 51.0]), Asked(claims=claims))
    assert unpaired(found.plan, found.values, found.failed) == []
    assert len(unpaired(found.plan, found.values)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arm;seed;metric;value\na;0;m;1\n", "its columns are separated by semicolons"),
        ("Arm,Seed,Metric,Value\na,0,m,1\n", r"\(rename Arm to arm, Metric to metric, Value to value, Seed to seed\)"),
        ("arm,seed,metric,value,Condition\na,0,m,1,x\n", "in small letters: rename Condition to condition, or to an"),
        ("arm,item,metric,value, GROUP \na,0,m,1,x\n", "in small letters: rename GROUP to group, or to another name"),
        ("arm,seed,metric,value,Item\na,0,m,1,x\n", "in small letters: rename Item to item, or to another name"),
        ("arm,Item,metric,value,Group\na,0,m,1,x\n", r"seed or item missing.*\(rename Item to item, Group to group\)"),
        ("arm,seed,metric,value\na,0,m,95%\n", "'95%' is not a number; leave out the % sign"),
        ('arm,seed,metric,value\na,0,m,"90,1"\n', "write a decimal point, not a comma"),
        ('arm,seed,metric,value\na,0,m,"1,234.5"\n', "leave out the separators of thousands"),
        ("arm,seed,metric,value\na,0,m,good\n", "leave it empty if the run failed"),
    ],
)
def test_tables_of_other_habits_say_what_to_change(text, message, tmp_path):
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_rows(tmp_path / "runs.csv")


def test_empty_rows_and_columns_and_spaces_of_a_table_do_not_matter(tmp_path):
    (tmp_path / "runs.csv").write_text("arm, seed ,metric,value,,\na,0,m,1,,\n,,,,,\nb,0,m,2,,\n")
    assert [(row.arm, row.seed, row.value) for row in read_rows(tmp_path / "runs.csv")] == [
        ("a", 0, 1.0),
        ("b", 0, 2.0),
    ]
    (tmp_path / "runs.csv").write_bytes("arm,seed,metric,value\nä,0,m,1\n".encode("latin-1"))
    with pytest.raises(UserError, match="save it as UTF-8, which Excel calls CSV UTF-8"):
        read_rows(tmp_path / "runs.csv")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_column_in_other_letters_is_not_left_out_in_any_format(ending, tmp_path):
    path = tmp_path / f"runs.{ending}"
    for more in ({"Group": "d0"}, {"group": "d0", "Group": "D0"}, {"groups": 1}):
        row = {"arm": "a", "item": "q", "metric": "m", "value": 1.0} | more
        if ending == "csv":
            path.write_text(",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
        elif ending == "jsonl":
            path.write_text(json.dumps(row) + "\n")
        else:
            pandas = pytest.importorskip("pandas", reason="Parquet files are written with pandas here")
            pytest.importorskip("pyarrow", reason="Parquet files are read with pyarrow")
            pandas.DataFrame([row]).to_parquet(path)
        if list(more) == ["Group"]:
            with pytest.raises(UserError, match="in small letters: rename Group to group, or to another name"):
                read_rows(path)
        else:
            assert [one.group for one in read_rows(path)] == [more.get("group")]


def test_a_claim_whose_runs_all_failed_was_not_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all_fail.py").write_text(HEAD % "" + "def run(run):\n    raise ValueError('broken')\n")
    sys.modules.pop("all_fail", None)
    assert main(["study", "all_fail.py", "--out", "out", "--no-progress"]) == 1
    printed = capsys.readouterr().out
    assert "not measured         Higher. (no seed has the values of all its arms)" in printed
    assert "stated but not run" not in printed
