"""Pages of runs made elsewhere: sentences that once were untrue for some kinds of claims."""

import csv
import json

import pytest

from retarget.cli import main

CLAIM = """
[[claims]]
sentence = "{sentence}"
metric = "{metric}"
direction = "{direction}"
arms = {arms}
smallest_effect = 1000012.5
{more}
"""


def claim(sentence="Better.", metric="acc", direction="higher", arms='["new", "old"]', more=""):
    return CLAIM.format(sentence=sentence, metric=metric, direction=direction, arms=arms, more=more)


@pytest.fixture
def page(tmp_path, capsys):
    """The Markdown page of rows and a claims file, with its summary."""

    def judged(rows, claims):
        with (tmp_path / "runs.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["arm", "condition", "seed", "item", "metric", "value"])
            writer.writeheader()
            writer.writerows(rows)
        (tmp_path / "claims.toml").write_text(claims)
        given = ["judge", str(tmp_path / "runs.csv"), "--claims", str(tmp_path / "claims.toml")]
        assert main([*given, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
        return (tmp_path / "out" / "report.md").read_text(), json.loads((tmp_path / "out" / "summary.json").read_text())

    return judged


def rows(values, condition="default", metric="acc"):
    return [
        dict(arm=arm, condition=condition, seed=seed, metric=metric, value=value)
        for arm, some in values.items() for seed, value in enumerate(some)
    ]  # fmt: skip


SEEDS = {"old": [50.0, 51.0, 49.5], "new": [52.1, 53.0, 51.4]}


def test_the_data_sets_of_a_claim_over_some_are_named(page):
    found = [row for name in ("english", "german", "french") for row in rows(SEEDS, name)]
    some, _ = page(found, claim(more='across = "every"\nconditions = ["english", "german"]'))
    assert some.count("on every one of english and german") == 2
    every, _ = page(found, claim(more='across = "every"'))
    assert "on every one of these data sets" in every


def test_with_planned_looks_no_pairs_are_called_lost(page):
    clear = {"old": [50.0, 50.1, 49.9, 50.0, 50.2], "new": [9.0e7, 9.1e7, 8.9e7, 9.0e7, 9.2e7]}
    text, summary = page(rows(clear), "looks = [3, 5]\n" + claim())
    assert summary["claims"][0]["n"] == 3
    assert "pairs were complete" not in text


def test_what_was_fixed_is_written_with_all_its_digits(page):
    text, _ = page(rows(SEEDS), claim(arms='["new"]', more="against = 1000012345678.0"))
    assert "against the constant 1000012345678<br>" in text
    assert "smallest effect that matters: 1000012.5" in text


def test_a_margin_is_explained(page):
    text, _ = page(rows(SEEDS), claim(more="margin = 1.0"))
    assert "holds if the difference is significantly above minus the margin" in text
    assert "may be worse by up to 1" in text
    assert "Claims with a margin were tested against minus the margin" in text
    assert "higher is better<br>may not be worse |" in page(rows(SEEDS), claim(more="margin = 0.0"))[0]


def test_a_metric_that_claims_want_both_ways_has_no_direction(page):
    text, _ = page(rows(SEEDS), claim() + claim("Worse.", direction="lower"))
    assert "acc ↓" not in text
    assert "acc ↑" not in text


def test_items_without_seeds_are_paired_by_item(page):
    found = [dict(arm=arm, item=f"q{at}", metric="acc", value=float(at % 3 < right))
             for arm, right in (("old", 1), ("new", 2)) for at in range(300)]  # fmt: skip
    text, _ = page(found, claim(more='about = "models"\nexact = true'))
    assert "paired by item." in text
    assert "seed 0" not in text
    assert "mean over seeds" not in text
    assert "by McNemar's exact test" in text


def test_an_arm_without_any_value_is_told_of_as_a_whole(page):
    found = rows({"old": [50.0, None, 49.5], "dead": [None, None, None]})
    text, summary = page([{**row, "value": "" if row["value"] is None else row["value"]} for row in found],
                         claim(arms='["dead", "old"]'))  # fmt: skip
    assert summary["claims"][0]["verdict"] == "not measured"
    assert "dead has no acc on any seed: no claim on it is measured." in text
    assert "the verdict is about the other seeds" not in text


def test_beside_a_constant_stands_a_value_and_no_difference_of_an_earlier_version(page, tmp_path):
    found = rows({"new": SEEDS["new"]}) + rows({"new": [2.0, 3.0, 4.0]}, metric="loss")
    text, summary = page(found, claim(arms='["new"]', more='against = 10.0\nshown = "loss"'))
    assert "Decides nothing: loss 3.00 " in text
    del summary["claims"][0]["shown"]["value"]
    (tmp_path / "out" / "summary.json").write_text(json.dumps(summary))
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "Decides nothing" not in (tmp_path / "out" / "report.md").read_text()
