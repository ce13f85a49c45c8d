"""Runs made elsewhere: input on which a verdict could be confidently wrong."""

import csv
import json

import pytest

from retarget.cli import main
from retarget.errors import UserError
from retarget.study.claims import judge
from retarget.study.config import Claim, Metric
from retarget.study.elsewhere import Asked, arrange
from retarget.study.items import Groups
from retarget.study.judging import prospects, write
from retarget.study.rows import Row

CLAIM = dict(id="c", sentence="It helps.", metric="acc", direction="higher", arms=("new", "old"), smallest_effect=0.5)
OLD, NEW = [50.0, 51.0, 49.5], [52.1, 53.0, 51.4]


def asked(*changes, **more):
    return Asked(claims=tuple(Claim.model_validate(CLAIM | change) for change in changes or ({},)), **more)


def runs(arm, values, condition="default", first=0):
    return [Row("here", condition, arm, "acc", value, seed, None, None) for seed, value in enumerate(values, first)]


def items(arm, values, size=None):
    return [Row("here", "default", arm, "acc", value, None, f"q{at}", None if size is None else str(at // size))
            for at, value in enumerate(values)]  # fmt: skip


def verdicts(rows, given):
    found = arrange(rows, given)
    return judge(found.plan, found.values, items=found.items)


@pytest.mark.parametrize("direction", ["higher", "lower"])
@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_groups_that_all_differ_alike_decide_nothing(gain, direction):
    values = [at % 7 / 10 for at in range(200)]
    rows = items("old", values, 10) + items("new", [one + gain for one in values], 10)
    (one,) = verdicts(rows, asked(dict(about="models", direction=direction)))
    assert (one.verdict, one.reason) == ("not enough evidence", "the difference is the same in every group")
    assert (one.estimate, one.interval) == (pytest.approx(gain), None)


@pytest.mark.parametrize("unit", ["%", ""])
def test_items_that_are_all_wrong_are_in_the_metrics_unit(unit):
    more = {"metrics": (Metric(name="acc", label="accuracy", unit="%"),)} if unit else {}
    other = [] if unit else items("third", [100.0, *[0.0] * 29])
    (one,) = verdicts(items("old", [0.0] * 30) + items("new", [0.0] * 30) + other, asked(dict(about="models"), **more))
    assert one.verdict == "not enough evidence"
    assert one.interval == pytest.approx([-11.35, 11.35], abs=0.01)


@pytest.mark.parametrize("size", [None, 2])
def test_right_and_wrong_items_of_a_metric_in_percent_are_counted_in_percent_everywhere(size):
    right = {"old": [50, 50, 50, 50], "new": [56, 57, 56, 58]}
    rows = [
        row._replace(seed=seed) for arm, counts in right.items() for seed, count in enumerate(counts)
        for row in items(arm, [float(at < count) for at in range(100)], size)
    ]  # fmt: skip
    given = asked(dict(id="a", about="models"), dict(id="b"), metrics=(Metric(name="acc", label="acc", unit="%"),))
    found = arrange(rows, given)
    assert found.values["default"]["new"]["acc"] == right["new"]
    models, method = judge(found.plan, found.values, items=found.items)
    assert (models.estimate, method.estimate) == (pytest.approx(6.75), pytest.approx(6.75))
    assert (method.verdict, method.below_smallest_effect) == ("holds", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(arms=("new", "basline")), "claim c names the arm basline, but the study has old, new"),
        (dict(metric="acuracy"), "claim c names the metric acuracy, but the study has acc"),
        (dict(condition="cifar"), "claim c names the condition cifar, but the study has default"),
        (
            dict(across="every", conditions=("svnh", "cifar")),
            "claim c names the condition svnh, but the study has default",
        ),
    ],
)
def test_a_name_that_no_row_has_is_a_typing_error(change, message):
    with pytest.raises(UserError, match=message):
        arrange(runs("old", OLD) + runs("new", NEW), asked(change))


def test_a_metric_that_is_exactly_preserved_is_not_worse():
    exact = (Metric(name="acc", label="parameters", deterministic=True),)
    for other, verdict in ((25.0, "holds"), (26.0, "does not hold"), (24.0, "holds")):
        (one,) = verdicts(runs("old", [25.0] * 2) + runs("new", [other] * 2),
                          asked(dict(margin=0, direction="lower"), metrics=exact))  # fmt: skip
        assert one.verdict == verdict
        assert str(one.estimate) == str(other - 25.0)  # and no -0.0


def test_differences_below_the_noise_of_the_values_have_no_interval():
    old = [1e9 + at for at in range(4)]
    (one,) = verdicts(
        runs("old", old) + runs("new", [o + d for o, d in zip(old, (5, 299, 123, 68), strict=True)]), asked()
    )
    assert (one.verdict, one.interval) == ("not enough evidence", None)
    assert "too small to be told from rounding" in one.reason


def test_a_clear_difference_of_large_numbers_is_judged_however_small_their_spread():
    """One hundredth of a billion, with a spread of a few millionths of it."""
    old = [1e9, 1e9 + 300, 1e9 - 200, 1e9 + 100]
    rows = runs("old", old) + runs("new", [one + 1e7 + at for one, at in zip(old, (400, -300, 500, 0), strict=True)])
    (one,) = verdicts(rows, asked(dict(smallest_effect=1e6)))
    assert one.verdict == "holds"
    assert one.interval[0] < 1e7 < one.interval[1]


def test_the_scale_of_a_claims_items_is_not_that_of_another_arm():
    right = [float(at % 2) for at in range(400)]
    rows = items("old", right) + items("new", [0.0, *right[1:]])
    asks = asked(dict(about="models", smallest_effect=0.05))
    (alone,), (beside,) = verdicts(rows, asks), verdicts(rows + items("third", [2.0, *right[1:]]), asks)
    assert (alone.verdict, alone.estimate, alone.interval) == (beside.verdict, beside.estimate, beside.interval)
    assert abs(alone.estimate) < 0.01


def test_a_claim_about_models_is_judged_once_at_the_last_look():
    right = [float(at % 10 > 4) for at in range(300)]
    better = [1.0] * 200 + right[200:]
    for seeds, verdict in ((3, "not enough evidence"), (4, "not enough evidence"), (5, "holds")):
        rows = [row._replace(seed=seed) for seed in range(seeds)
                for row in items("old", right) + items("new", better)]  # fmt: skip
        (one,) = verdicts(rows, asked(dict(about="models", smallest_effect=0.05), looks=(3, 5)))
        assert one.verdict == verdict
        assert ("judged at the last planned look, at 5 seeds" in one.reason) == (seeds < 5)


def test_a_margin_of_nothing_promises_no_power():
    found = arrange(runs("old", [50, 51, 49.5, 50.2]) + runs("new", [50.1, 50.9, 49.4, 50.5]), asked(dict(margin=0)))
    assert "needs more than 10,000 seeds alone" in prospects(found)
    assert " 50 seeds:   3% alone" in prospects(found)
    found = arrange(runs("old", OLD) + runs("new", NEW), asked(dict(across="every")))
    assert "decided over several conditions together, so nothing can be predicted" in prospects(found)
    rows = items("old", [0.0, 1.0] * 20) + items("new", [1.0] * 40)
    found = arrange(rows, asked(dict(about="models", smallest_effect=0.05)))
    assert prospects(found).endswith("decided by their items at any number of seeds, so nothing can be predicted")
    assert ": it is about these models, and decided by" in prospects(found)
    found = arrange(runs("old", OLD[:1]) + runs("new", NEW[:1]), asked())
    assert prospects(found).endswith("nothing can be predicted: a pilot needs at least two seeds that differ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arm,seed,metric,value,value\nold,0,acc,1,2\n", "the column value is there twice"),
        ("arm,seed,metric,value\nold,0,acc,0_831\n", "value '0_831' is not a number"),
        ("arm,seed,metric,value\nold,1e300,acc,1\n", "seed '1e300' is not an integer"),
    ],
)
def test_tables_that_say_two_things_are_refused(text, message, tmp_path, capsys):
    (tmp_path / "r.csv").write_text(text)
    (tmp_path / "c.toml").write_text("[[claims]]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in CLAIM.items()))
    assert (
        main(["judge", str(tmp_path / "r.csv"), "--claims", str(tmp_path / "c.toml"), "--out", str(tmp_path / "o")])
        == 1
    )
    assert message in capsys.readouterr().err


def test_seeds_beyond_a_floats_integers_stay_apart(tmp_path, capsys):
    table = [["arm", "seed", "metric", "value"]]
    for arm, more, values in (("old", 0, OLD), ("new", 1, NEW)):
        table += [[arm, 2**60 + 1000 * at + more, "acc", value] for at, value in enumerate(values)]
    (tmp_path / "r.csv").write_text("\n".join(",".join(map(str, row)) for row in table))
    (tmp_path / "c.toml").write_text("[[claims]]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in CLAIM.items()))
    assert (
        main(["judge", str(tmp_path / "r.csv"), "--claims", str(tmp_path / "c.toml"), "--out", str(tmp_path / "o")])
        == 1
    )
    assert "lacks seed" in capsys.readouterr().err


def test_reasons_and_notes_name_the_condition(tmp_path):
    rows = runs("old", [1.0, 2.0, None], "a") + runs("new", [2.0, 3.1, 4.0], "a")
    rows += runs("old", [None, None, 2.0], "b") + runs("new", [2.0, 3.0, 4.0], "b")
    found = arrange(rows, asked(dict(across="average")))
    notes = write(found, tmp_path / "o", command="x", sources=()) and json.loads(
        (tmp_path / "o/analysis.json").read_text()
    )
    said = " ".join(notes["notes"])
    assert "old has no acc on seed 2 in a:" in said
    assert "old has no acc on seeds 0, 1 in b:" in said
    rows = items("old", [0.0] * 30) + items("new", [1.0] * 30) + runs("old", [1.0], "x") + runs("new", [1.0], "x")
    (one,) = verdicts(rows, asked(dict(about="models", condition="x")))
    assert one.reason == "It is about models, but there are no values of single items"
    (one,) = verdicts(items("old", [0.0] * 30), asked(dict(about="models", arms=("old",), against=0.5)))
    assert "compares one with a constant" in one.reason


def test_a_verdict_that_a_repeated_run_may_change_says_so(tmp_path):
    first = arrange(runs("old", OLD) + runs("new", [*NEW[:2], None]), asked(dict(smallest_effect=0.1)))
    assert write(first, tmp_path / "o", command="x", sources=())["claims"][0]["verdict"] == "holds"
    again = arrange(runs("old", OLD) + runs("new", [*NEW[:2], 44.0]), asked(dict(smallest_effect=0.1)))
    for _ in range(2):  # and it stays said
        write(again, tmp_path / "o", command="x", sources=())
        notes = json.loads((tmp_path / "o/analysis.json").read_text())["notes"]
        assert [one for one in notes if one.startswith("Claims were decided at these seeds before some of their runs")]


def test_exported_values_are_judged_again_even_if_a_run_failed(tmp_path):
    found = arrange(
        runs("default", [50.0, None], first=3) + runs("new", NEW[:2], first=3), asked(dict(arms=("new", "default")))
    )
    assert [arm.label for arm in found.plan.arms] == ["default", "new"]
    write(found, tmp_path / "o", command="x", sources=())
    assert main(["report", str(tmp_path / "o")]) == 0
    (file,) = tmp_path.glob("o/report_files/*-values.csv")
    rows = list(csv.DictReader(file.open()))
    assert [(row["arm"], row["seed"], row["value"]) for row in rows] == [
        ("default", "3", "50.0"), ("default", "4", ""), ("new", "3", "52.1"), ("new", "4", "53.0")
    ]  # fmt: skip


def test_values_outside_the_bounds_and_effects_beyond_them_are_refused():
    share = Metric(name="acc", label="accuracy", bounds=(0.0, 1.0))
    with pytest.raises(UserError, match=r"here: acc of arm old is 50, but its bounds are \[0, 1\]"):
        arrange(runs("old", OLD) + runs("new", NEW), asked(dict(smallest_effect=0.01), metrics=(share,)))
    rows = runs("old", [0.5, 0.51]) + runs("new", [0.52, 0.53])
    for change in (dict(smallest_effect=1.0), dict(smallest_effect=0.01, margin=1.0)):
        with pytest.raises(UserError, match="no difference of acc can be larger than 1: give it in the unit"):
            arrange(rows, asked(change, metrics=(share,)))
    assert arrange(rows, asked(dict(smallest_effect=0.01), metrics=(share,))).doubts == []


def test_a_unit_and_a_direction_that_look_mistaken_are_named():
    rows = runs("old", [0.9, 0.91]) + runs("new", [0.8, 0.79])
    (said,) = arrange(rows, asked(dict(smallest_effect=0.01, margin=1.0))).doubts
    assert said.startswith("Claim c: its margin is 1, but no value of acc is above 0.91.")
    loss = Metric(name="acc", label="loss", better="lower")
    (said,) = arrange(rows, asked(dict(smallest_effect=0.01), metrics=(loss,))).doubts
    assert "direction = higher, but its metric says that lower is better" in said
    assert arrange(runs("old", OLD) + runs("new", NEW), asked()).doubts == []


@pytest.mark.parametrize(
    ("group_of", "message"),
    [
        (lambda at, arm, seed: None if seed == 0 else f"d{at // 10}", "the group none in new0 and d0 in new1: give"),
        (lambda at, arm, seed: None if seed > 0 else f"d{at // 10}", "the group d0 in new0 and none in new1: give"),
        (lambda at, arm, seed: "d0" if (arm, seed) == ("old", 2) else None, "the group none in new0 and d0 in old2: "),
        (lambda at, arm, seed: "x" if (at, seed) == (99, 1) else f"d{at // 10}", "the group d9 in new0 and x in new1"),
    ],
)  # fmt: skip
def test_an_item_has_the_same_group_in_the_rows_of_every_seed(group_of, message):
    """Taken from the first seed alone, groups that only later seeds name would be dropped: the interval too narrow."""

    def rows(group_of):
        return [
            Row(f"{arm}{seed}", "default", arm, "acc", at % 7 + at % 3, seed, f"q{at}", group_of(at, arm, seed))
            for arm in ("old", "new")
            for seed in (0, 1, 2)
            for at in range(120)
        ]

    models = asked(dict(about="models"))
    assert isinstance(arrange(rows(lambda at, arm, seed: f"d{at // 10}"), models).items["c"], Groups)
    with pytest.raises(UserError, match=message):
        arrange(rows(group_of), models)


def test_a_floor_on_a_metric_that_a_claim_wants_lower_must_say_which_way_it_goes():
    """A claim that accuracy falls, with a floor of 50 on that accuracy: the floor is no ceiling."""
    lower = dict(direction="lower", floor=("acc", 45.0))
    rows = runs("old", OLD) + runs("new", [value - 2 for value in OLD])
    with pytest.raises(
        UserError, match=r'claim c has a floor on acc, .*\[\[metrics\]\] with name = "acc" and better ='
    ):
        verdicts(rows, asked(lower))
    for better, verdict in (("higher", "holds"), ("lower", "not measured")):
        metrics = (Metric(name="acc", label="acc", better=better),)
        (one,) = verdicts([*rows[:3], *runs("new", [47.9, 49.1, 47.4])], asked(lower, metrics=metrics))
        assert one.verdict == verdict
    assert verdicts(rows, asked(dict(floor=("acc", 45.0))))[0].verdict != "not measured", "it is clear what is meant"


def test_a_floor_on_a_metric_of_which_no_claim_tells_what_is_better_must_say_which_way_it_goes():
    """Of a loss it would be the least, so that the arms which have learnt something are not a test."""
    losses = [row._replace(metric="loss", value=2.3) for row in runs("old", OLD) + runs("new", NEW)]
    rows = runs("old", OLD) + runs("new", NEW) + losses
    floor, bare = dict(floor=("loss", 2.5)), Metric(name="loss", label="loss")
    needs = Metric(name="acc", label="acc", better="higher", needs=("loss", 2.5))
    said = r"floor on loss, of which nothing says whether higher or lower is better, .*: {} \[\[metrics\]\] with name"
    for given, message in (
        (asked(floor), "claim c has a " + said.format("add")),
        (asked(floor, metrics=(bare,)), "claim c has a " + said.format("complete its")),
        (asked(metrics=(needs,)), "metric acc has a " + said.format("add")),
        (asked(metrics=(bare.model_copy(update={"floor": 2.5}),)), "metric loss has a " + said.format("complete its")),
    ):
        with pytest.raises(UserError, match=message):
            arrange(rows, given)
    for better, verdict in (("higher", "not measured"), ("lower", "holds")):
        (one,) = verdicts(rows, asked(floor, metrics=(bare.model_copy(update={"better": better}),)))
        assert one.verdict == verdict
    with pytest.raises(UserError, match="claim c names the metric los, but the study has acc, loss"):
        arrange(rows, asked(dict(floor=("los", 2.5))))
