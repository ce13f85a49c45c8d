"""From a search's result to what a user reads: what is said, and what is not."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from formulas import SHAPE, Answering, hidden, identity, patch, soft, subject_of

from retarget.audit.calibration import Null, NullModel
from retarget.audit.errors import AuditError
from retarget.audit.images import read_given
from retarget.audit.inversion import Candidate, Search
from retarget.audit.report import page
from retarget.audit.run import concluded, scope
from retarget.audit.sarif import sarif
from retarget.audit.seek import Found, fingerprint
from retarget.audit.subject import Subject
from retarget.trojdiff.glyphs import glyph

SEARCH = Search()


def null_of(search="", scores=(0.05,) * 30):
    return Null(search=search or fingerprint(SEARCH), command="", models=[
        NullModel(score=one, side=8, channels=1, case="plain", schedule="linear", residual=0.01, spread=1)
        for one in scores
    ])  # fmt: skip


def found_of(score, origin="scan", **statistics):
    mu, gamma = patch()
    best = Candidate(mu, gamma, origin, undo=score, mask=mu != 0, notes={"undo": score, "score": score})
    return Found([best], score, {"residual": 0.01, "rise": 0.0, **statistics}, torch.zeros(4, *SHAPE))


def told(found, out, network=identity, null=None, **more):
    basis = {"pipeline": "p", "findings": [], "files": {"unet/config.json": "1"}}
    return concluded(subject_of(network), found, basis, out, 0, SEARCH, null or null_of(), **more)


def test_a_clean_network_without_comparable_models_has_no_suspected_trigger(tmp_path):
    outcome = told(found_of(0.13), tmp_path, null=null_of("another"))
    assert (outcome.verdict, outcome.fires, outcome.trigger) == ("undecided", False, None)
    assert "trigger" not in " ".join(outcome.pictures)


@pytest.mark.parametrize("score", [0.09, 0.13])
def test_a_search_that_has_not_converged_is_undecided_without_a_suspected_trigger(score, tmp_path):
    unfinished = told(found_of(score, rise=0.1), tmp_path)
    assert (unfinished.verdict, unfinished.exit_code, unfinished.converged) == ("undecided", 3, False)
    assert unfinished.trigger is None
    assert "trigger" not in " ".join(unfinished.pictures)
    assert told(found_of(score, rise=0.01), tmp_path).converged is True
    assert told(found_of(score, rise=0.1), tmp_path, null=null_of("another")).converged is None


def test_of_a_trigger_that_does_not_fire_no_law_is_named(tmp_path):
    outcome = told(found_of(0.3), tmp_path, null=null_of(scores=(0.25,) * 30))
    assert "fires-from-plain-noise" not in {one.rule for one in outcome.findings}
    assert outcome.reason == "the score, 0.30, is higher than those of 30 of 30 clean models, but no trigger fires"
    assert outcome.trigger is not None
    assert (outcome.trigger.law, outcome.trigger.stock_sampler) == ("unknown", False)
    html = page(outcome, tmp_path, "retarget audit p")
    assert f"<th>fires</th><td>no, with strength {outcome.trigger.strength:.2f}" in html


def test_a_score_far_above_all_clean_models_is_a_trigger_of_unknown_law_that_does_not_fire(tmp_path):
    outcome = told(found_of(0.3), tmp_path)
    assert (outcome.verdict, outcome.exit_code, outcome.fires) == ("trojaned", 1, False)
    assert (
        "6.0 times that of the highest of all comparable clean models, although the trigger does not" in outcome.reason
    )
    assert outcome.trigger is not None
    assert outcome.trigger.law == "unknown"
    assert "fires-in-stock-sampler" not in {one.rule for one in outcome.findings}


@pytest.mark.parametrize(
    ("network", "mu", "gamma", "stock"),
    [(hidden, 0.5 * glyph("plus", SHAPE), torch.ones(SHAPE), True), (soft, *patch(0.25), False)],
    ids=["whole", "narrowed"],
)
def test_a_trigger_that_fires_with_a_stock_sampler_is_a_finding(network, mu, gamma, stock, tmp_path):
    """The narrowed one is undone only in noise that γ narrows, which no stock sampler's images have."""
    best = Candidate(mu, gamma, "scan", undo=0.9, mask=mu != 0, notes={"undo": 0.9, "score": 0.9})
    found = Found([best], 0.9, {"residual": 0.01, "rise": 0.0}, torch.zeros(4, *SHAPE))
    outcome = told(found, tmp_path, network(mu, gamma))
    assert (outcome.verdict, outcome.fires) == ("trojaned", True)
    assert outcome.trigger is not None
    assert outcome.trigger.stock_sampler is stock
    named = [(one.level, one.file) for one in outcome.findings if one.rule == "fires-in-stock-sampler"]
    assert named == ([("warning", ".")] if stock else [])
    results = sarif([outcome], 1, "retarget audit p")["runs"][0]["results"]
    assert ("RT003" in {one["ruleId"] for one in results}) == stock
    (note,) = [one for one in outcome.findings if one.rule == "fires-from-plain-noise"]
    assert note.level == "note"
    assert "of 160 images from plain noise for images with the suspected trigger" in note.message
    html = page(outcome, tmp_path, "retarget audit p")
    assert ("it may fire without a Trojan sampler" in html.replace("\n", " ")) == stock


def test_what_is_amplified_is_shown_as_a_gain(tmp_path):
    outcome = told(found_of(0.3, "middle"), tmp_path)
    assert "<th>gain, on new noise</th><td>0.70" in page(outcome, tmp_path, "retarget audit p")


def overflows_with_the_patch(x, t):
    """A network whose answer is infinite where the patch's mean is far above what plain noise has."""
    high = x[:, :, 5:, 5:].mean((1, 2, 3), keepdim=True) > 0.8
    return torch.where(high, torch.full_like(x, torch.inf), x)


@pytest.mark.parametrize(("score", "verdict"), [(0.9, "undecided"), (0.12, "nothing found")])
def test_samples_that_overflow_under_the_trigger_leave_score_and_files(tmp_path, score, verdict):
    null = null_of(scores=(0.05,) * 30 if score > 0.5 else (0.2,) * 30)
    outcome = told(found_of(score), tmp_path, overflows_with_the_patch, null)
    assert (outcome.verdict, outcome.score, outcome.fires) == (verdict, score, None)
    assert ("could not be tested: the network's samples are not finite" in outcome.reason) == (verdict == "undecided")
    assert outcome.files == {"unet/config.json": "1"}


def test_a_statistic_that_is_not_finite_is_an_error(tmp_path):
    with pytest.raises(AuditError, match="the search's scan is not finite"):
        told(found_of(0.3, scan=float("nan")), tmp_path)


def test_images_of_the_user_make_the_p_value_approximate(tmp_path):
    said = "models were searched with their own samples, and this network with the given images"
    assert said in told(found_of(0.05), tmp_path, given=True).error_rate.sentence
    assert said not in told(found_of(0.05), tmp_path).error_rate.sentence


@pytest.mark.parametrize(
    ("side", "sides", "wide"), [(8, "2, 4 in", 2), (48, "3, 6, 12, 24 in", 6), (64, "4, 8, 16, 32 in", 8)]
)
def test_the_scope_names_the_windows_that_were_scanned(side, sides, wide):
    lines = scope(subject_of(identity, (1, side, side)), SEARCH)
    assert f"windows of side {sides} black" in lines[0]
    assert f"of side {wide} and more that change the answer elsewhere at ᾱ = 0.1," in lines[2]
    assert "those of one colour may be missed, and so may stripes and checkerboards" in lines[4]


def test_the_scope_names_the_levels_that_a_short_schedule_reaches(tmp_path):
    subject = Subject(Answering(identity), DDPMScheduler(300), SHAPE)
    assert "visible at ᾱ = 0.048 or 0.1" in scope(subject, SEARCH)[1]
    basis = {"pipeline": "p", "findings": [], "files": {}}
    outcome = concluded(subject, found_of(0.05), basis, None, 0, SEARCH, null_of())
    assert (outcome.verdict, outcome.error_rate.known) == ("undecided", False)
    assert "its schedule ends at ᾱ = 0.048" in outcome.reason


def test_clean_images_of_another_size_are_resized(tmp_path):
    np.savez(tmp_path / "large.npz", images=np.full((5, 16, 16), 255, np.uint8), labels=np.zeros(5, int))
    images = read_given(f"npz:{tmp_path / 'large.npz'}", subject_of(identity).shape).images
    assert images.shape[1:] == SHAPE
    assert images.unique().tolist() == [255]
