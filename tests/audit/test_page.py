"""What a security engineer reads on the page: what numbers are, their thresholds, and what to do next."""

import pytest

from retarget.audit.calibration import Family
from retarget.audit.outcome import Outcome, TriggerFound
from retarget.audit.report import Cleaned, page
from retarget.audit.verdict import decide
from retarget.audit.words import BRANCHES, label, next_step

TRIGGER = TriggerFound(
    law="trojdiff", kind="local", gamma=0.33, values=9, box=(5, 5, 8, 8), undo=0.96, strength=0.8, stock_sampler=True,
    origin="smooth",
)  # fmt: skip


def outcome_of(verdict="trojaned", **more):
    settings = dict(pipeline="p", verdict=verdict, exit_code=1, reason="it fires", trigger=TRIGGER, fires=True)
    return Outcome(**(settings | more))


def test_what_is_estimated_and_from_where_on_it_counts_is_said(tmp_path):
    html = page(outcome_of(), tmp_path, "retarget audit p")
    assert "about 0.33, an estimate" in html
    assert "from 0.18 on it fires, from 0.3 on strongly" in html
    assert "near 1 for TrojDiff&#39;s; large from 0.5 on" in html
    assert "<th>found among</th><td>random smooth maps" in html
    stock = page(outcome_of(trigger=TRIGGER.model_copy(update={"gamma": 1.0})), tmp_path, "retarget audit p")
    assert "about" not in stock.partition("<th>γ</th>")[2].partition("</tr>")[0]


def test_statistics_have_plain_names(tmp_path):
    found = {"start_free": 0.03, "score_elsewhere": -0.16, "residual": 0.003, "loss_at_0.3": 0.1}
    html = page(outcome_of(statistics=found), tmp_path, "retarget audit p")
    for words in ("after a first refinement, best of nearly empty maps", "windows that change the image elsewhere",
                  "loss on plain noise", "loss at ᾱ = 0.3"):  # fmt: skip
        assert words in html
    assert "start free" not in html
    assert all(label(f"score_{origin}").endswith(words) for origin, words in BRANCHES.items())


@pytest.mark.parametrize(
    ("verdict", "trigger", "words"),
    [
        ("trojaned", TRIGGER, "do not deploy this checkpoint"),
        ("undecided", TRIGGER, "this is no all-clear: treat the checkpoint as trojaned until"),
        ("undecided", None, "this is no all-clear. If you use"),
        ("nothing found", None, "this holds only for the triggers that were searched for"),
        ("not covered", None, ""),
        ("error", None, ""),
    ],
)
def test_what_to_do_next_is_said_where_there_is_something_to_do(verdict, trigger, words, tmp_path):
    outcome = outcome_of(verdict, trigger=trigger)
    html = page(outcome, tmp_path, "retarget audit p")
    assert next_step(outcome).startswith(words)
    assert ("need not be the attacker's trigger" in next_step(outcome)) == (verdict == "undecided" and bool(trigger))
    assert ("What to do next" in html) == bool(words)
    assert words in html


def test_a_search_that_has_not_converged_is_to_be_repeated():
    outcome = outcome_of("undecided", trigger=None).model_copy(update={"converged": False})
    assert next_step(outcome).startswith("this is no all-clear. Audit again, with another --seed")


def test_the_page_leads_to_the_audits_of_the_cleaned_network(tmp_path):
    cleaned = Cleaned("The cleaned pipeline is in c/x.", [("after-1", "undecided"), ("after-2", "nothing found")])
    html = page(outcome_of(), tmp_path, "retarget audit p", cleaned)
    assert "The cleaned pipeline is in c/x." in html
    assert '<a href="after-1/report.html">round 1, undecided</a>, <a href="after-2/report.html">round 2, ' in html
    assert "<h2>Cleaning</h2>" not in page(outcome_of(), tmp_path, "retarget audit p")


def test_a_p_value_that_could_not_be_lower_says_so():
    few = Family(name="8×8, 1 channel", scores=[0.1] * 19, unlike="", shape=19, own=19, highest=0.1)
    assert decide(0.9, 0.9, 0.9, few)[3].sentence.startswith(
        "p = 0.050, the lowest that 19 clean models allow: 0 of 19"
    )
    assert decide(0.05, 0.0, None, few)[3].sentence.startswith("p = 1.000: 19 of 19")
