"""The row of a claim: estimate, interval, verdict, or the reason why there is none."""

import re

from page_reader import Page
from small_pages import claim, row_of, small

from retarget.report import build
from retarget.study.config import Condition
from retarget.study.figures import Analysis


def test_a_verdict_near_zero_shows_the_digit_that_decides(study, plain_plan, edit):
    directory = study("s", plain_plan(conditions=(Condition(),), claims=(claim(),)), Analysis())
    change = {"estimate": 0.31, "interval": [0.004, 0.616], "verdict": "holds"}
    edit(directory / "summary.json", lambda value: value["claims"][0].update(change))
    row = row_of(Page(build([directory])), "It helps.")
    assert "[+0.004, +0.616]" in row[2]


def test_a_claim_that_holds_by_less_than_what_matters_says_so(study, plain_plan, edit):
    directory = study("s", plain_plan(conditions=(Condition(),), claims=(claim(),)), Analysis())
    change = {"verdict": "holds", "below_smallest_effect": True}
    edit(directory / "summary.json", lambda value: value["claims"][0].update(change))
    assert row_of(Page(build([directory])), "It helps.")[-1] == (
        "holds here but by less than the smallest effect that matters"
    )


def test_claims_that_alternate_between_conditions_have_one_heading_for_each(study, plain_plan):
    both = [claim().model_copy(update={"id": f"{at}{name}", "sentence": f"Number {at}, {name}.", "condition": name})
            for at in range(2) for name in ("clean", "noisy")]  # fmt: skip
    page = build([study("s", plain_plan(claims=tuple(both)), Analysis())])
    text = page.with_suffix(".md").read_text()
    text = text[text.index("## Claims") : text.index("## Measurements")]
    assert re.findall(r"^### (.+)|^\| (Number \d, \w+)", text, re.MULTILINE) == [
        ("clean labels", ""), ("", "Number 0, clean"), ("", "Number 1, clean"),
        ("20 % of the training labels wrong", ""), ("", "Number 0, noisy"), ("", "Number 1, noisy"),
    ]  # fmt: skip


def test_one_seed_gives_an_estimate_and_no_interval(study, plain_plan):
    page = small(study, plain_plan, [claim()], seeds=(0,))
    row = row_of(page, "It helps.")
    assert re.fullmatch(r"[−+]\d\.\d\d points", row[2])
    assert row[3:] == ["1"]
    assert row_of(page, "Claim") == ["Claim", "Compared", "Difference", "n"]
    assert (
        "Each arm was run once: one difference is measured, and one run decides nothing about the method." in page.text
    )


def test_items_are_spoken_of_only_where_there_are_intervals_over_items(study, plain_plan):
    assert "Intervals are over items" not in small(study, plain_plan, [claim()], seeds=(0,)).text


def test_a_study_whose_other_runs_failed_was_not_run_once(study, plain_plan, edit):
    """One pair is left, but the control was run on every seed."""
    directory = study("s", plain_plan(conditions=(Condition(),), claims=(claim(),)), Analysis())

    def lose(value):
        (arms,) = value["conditions"].values()
        for found in arms["pskd"].values():
            found["values"] = [found["values"][0], *[None] * (len(found["values"]) - 1)]
        value["claims"][0].update(n=1, verdict="not enough evidence", interval=None)

    edit(directory / "summary.json", lose)
    assert "Each arm was run once" not in Page(build([directory])).text


def test_a_margin_and_a_constant_are_named(study, plain_plan):
    claims = [
        claim(id="a", sentence="Not worse.", margin=0.25),
        claim(id="b", sentence="Above ninety.", arms=("pskd",), against=90.0),
    ]
    page = small(study, plain_plan, claims)
    assert "may be worse by up to 0.25 points" in row_of(page, "Not worse.")[1]
    assert "PS-KD against the constant 90" in row_of(page, "Above ninety.")[1]


def test_the_page_states_error_rates_of_verdicts_and_what_they_rest_on(study, plain_plan):
    claims = [claim(id="a"), claim(id="b", sentence="Second.", metric="nll", direction="lower", family="secondary")]
    page = small(study, plain_plan, claims, looks=(3, 5))
    text = " ".join(page.text.split())
    assert 'The probability of any wrong "holds" is at most 2.5 %' in text
    assert "Primary and secondary claims are two families, each with these error rates." in text
    assert "Verdicts are given only at the planned looks, at 3, 5 seeds, which share the error; they are final." in text
    assert "over all claims" not in text
    assert "secondary claim; smallest effect that matters: 0.5" in row_of(page, "Second.")[1]


def test_verdicts_of_an_earlier_version_are_called_so(study, plain_plan, edit):
    directory = study("s", plain_plan(conditions=(Condition(),), claims=(claim(),)), Analysis())
    old = {"interval": [0.1, 0.9], "verdict": "holds", "p_holds": None, "p_fails": None, "p_value": 0.01}
    edit(directory / "summary.json", lambda value: value["claims"][0].update(old))
    text = " ".join(Page(build([directory])).text.split())
    assert "These verdicts were given by an earlier version" in text
    assert "at most 2.5 %; that of a wrong" in text


def test_a_claim_about_models_names_its_items_and_a_look_its_seeds(study, plain_plan, edit):
    directory = study("s", plain_plan(conditions=(Condition(),), claims=(claim(),)), Analysis())
    items = {"about": "models", "n": 1319, "verdict": "holds", "interval": [0.1, 0.9], "reason": ""}
    edit(directory / "summary.json", lambda value: value["claims"][0].update(items))
    row = row_of(Page(build([directory])), "It helps.")
    assert row[3:] == ["1 319 items", "holds here for these two models on this data"]
    look = {"about": "method", "n": 3, "look": 3, "latest": 0.25}
    edit(directory / "summary.json", lambda value: value["claims"][0].update(look))
    row = row_of(Page(build([directory])), "It helps.")
    assert row[-1] == "holds here since the planned look at 3 seeds"
    assert "Decides nothing: over all seeds +0.25 points" in row[2]


def test_a_claim_that_is_no_test_says_so_in_place_of_a_difference(study, plain_plan):
    page = small(study, plain_plan, [claim(floor=("top1", 99.0))])
    row = row_of(page, "It helps.")
    assert row[2].startswith("Not a test of the claim: top-1 accuracy of cross-entropy is 9")
    assert row[-1] == "not measured"


def test_one_run_of_each_arm_says_how_to_get_verdicts(study, plain_plan):
    found = Analysis(item_intervals={"a": (-1.25, 0.5)}, item_label="item bootstrap")
    page = small(study, plain_plan, [claim()], found, seeds=(3,))
    assert "the command below, with --seeds 3 4 5 6 7, continues in the same directory" in page.text
    assert "[−1.25, +0.50] 95 % item bootstrap" in row_of(page, "It helps.")[2]
    assert "not enough evidence" not in page.text


def test_claims_that_cannot_be_measured_say_why(study, plain_plan):
    claims = [
        claim(id="a", sentence="No arm.", arms=("other_arm", "pskd")),
        claim(id="b", sentence="No metric.", metric="absent"),
        claim(id="c", sentence="No condition.", condition="absent"),
    ]
    page = small(study, plain_plan, claims)
    assert row_of(page, "No metric.")[2] == "No seed has both values."
    assert "2 more claims were stated but not run here No arm. No condition." in page.text
    assert "The one claim was not measured." in page.text
    assert "other_arm" not in page.text


def test_claims_that_were_left_out_say_why_and_what_measures_them(study, plain_plan):
    left = Analysis(left_out="They spread too far for minutes: the preset small measures them.")
    page = small(study, plain_plan, [claim(id="a"), claim(id="b", arms=("other_arm", "pskd"))], left)
    said = "1 more claim was stated but not run here. They spread too far for minutes: the preset small measures them."
    assert said in page.text
    assert left.left_out not in small(study, plain_plan, [claim(id="a")], left, "whole").text
