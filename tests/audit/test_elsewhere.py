"""The branch of the search for local triggers that decide what the whole image is, whatever the law."""

import numpy as np
import pytest
import torch
from formulas import LEVELS, SHAPE, identity, noise_of, patch, subject_of

from retarget.audit.calibration import Null, NullModel
from retarget.audit.firing import STRONG, fire
from retarget.audit.inversion import Candidate, Search, neighbours, scan_elsewhere
from retarget.audit.report import page
from retarget.audit.run import concluded
from retarget.audit.scores import Probe, leverage
from retarget.audit.seek import fingerprint, in_rank, seek


def decided(mask, share=0.2):
    """A network for which a white box in its place means another image: its answer then changes everywhere."""

    def formula(x, t):
        seen = torch.sigmoid(4 * ((x * mask).flatten(1).sum(1) / mask.sum().sqrt() - 1.5))[:, None, None, None]
        return (x - share * seen) / (1 - LEVELS[t].reshape(-1, 1, 1, 1)).sqrt()

    return formula


def test_what_changes_elsewhere_is_the_equation():
    mask = 1 - patch(gamma=0.0)[1]
    probe = Probe(subject_of(decided(mask)), 0.1, noise_of(4))
    mu = torch.stack([mask, 0.5 * mask.roll(2, -1)])
    level, place = probe.level, torch.nn.functional.max_pool2d((mu != 0).float(), 3, 1, 1)
    scale = (1 - level**0.5) / (1 - level) ** 0.5
    for index in range(2):
        change = probe.answer(probe.noise + scale * mu[index]) - probe.base
        outside = (change * (1 - place[index])).double().numpy()
        share = 1 - float(place[index].mean())
        expected = np.sqrt((outside**2).sum() / 4 / share) / np.linalg.norm(scale * mu[index].numpy())
        assert float(probe.elsewhere(mu)[index]) == pytest.approx(expected, rel=1e-4)


def test_a_box_that_changes_the_answer_elsewhere_is_found_with_its_edges():
    mask = 1 - patch(gamma=0.0)[1]
    subject = subject_of(decided(mask))
    best = scan_elsewhere(Probe(subject, 0.1, noise_of(16)), Probe(subject, 0.1, noise_of(32, 1)), Search())
    assert best.origin == "elsewhere"
    assert best.undo > 0.3
    assert bool((best.mu >= 0).all()), "it is the white box, not the black one"
    inside = best.mu > 0
    assert float((inside & (mask > 0)).sum() / (inside | (mask > 0)).sum()) >= 0.7
    blurred = subject_of(lambda x, t: torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
    for clean in (subject_of(identity), blurred):
        best = scan_elsewhere(Probe(clean, 0.1, noise_of(16)), Probe(clean, 0.1, noise_of(32, 1)), Search())
        assert abs(best.undo) < 0.02, "a local change stays local, or reaches as far in other places"


def test_leverage_needs_one_sign_and_one_place():
    """In a network whose answer has the mean of its input everywhere, every local change reaches everywhere."""
    probe = Probe(subject_of(lambda x, t: x + 2 * x.mean((1, 2, 3), keepdim=True)), 0.1, noise_of(8))
    mu = (1 - patch(gamma=0.0)[1])[None]
    reached, excess = leverage(probe, mu, torch.ones_like(mu))
    assert float(reached) > 0.1
    assert float(excess) == pytest.approx(0, abs=1e-4)


def test_edges_move_by_a_pixel_and_stay_inside():
    assert len(neighbours((2, 2, 4, 4), 8, 8)) == 8
    assert neighbours((0, 0, 8, 8), 8, 8) == [(1, 0, 8, 8), (0, 1, 8, 8), (0, 0, 7, 8), (0, 0, 8, 7)]
    assert all(bottom > top and right > left for top, left, bottom, right in neighbours((3, 3, 4, 4), 8, 8))


def test_a_rectangle_counts_only_if_it_is_plain_and_after_the_maps_of_a_plain_trigger():
    def one(origin, score):
        return Candidate(torch.zeros(SHAPE), torch.ones(SHAPE), origin, notes={"score": score})

    def order(*scores):
        return [found.origin for found in in_rank([one(*each) for each in scores])]

    assert order(("scan", 0.6), ("elsewhere", 0.9), ("middle", 0.2)) == ["scan", "elsewhere", "middle"]
    assert order(("scan", 0.4), ("elsewhere", 0.9), ("middle", 0.2)) == ["elsewhere", "scan", "middle"]
    assert order(("free", 0.1), ("elsewhere", 0.05), ("middle", 0.2)) == ["middle", "free", "elsewhere"]
    assert order(("scan", 0.1), ("elsewhere", 0.4), ("middle", 0.2)) == ["middle", "scan", "elsewhere"], "not plain"


def test_it_fires_on_images_that_do_not_show_the_target_yet():
    mask = 1 - patch(gamma=0.0)[1]
    trojan = fire(subject_of(decided(mask)), Candidate(mask, torch.ones(SHAPE), "elsewhere"), 0, 16)
    assert trojan.strength >= STRONG
    assert trojan.fires_stock is None, "it does so under every law"
    assert not fire(subject_of(identity), Candidate(mask, torch.ones(SHAPE), "elsewhere"), 0, 16).fires


@pytest.mark.parametrize("seed", [0, 1])
def test_a_whole_search_reports_the_box_as_a_trigger_of_an_unknown_law(seed, tmp_path):
    mask = 1 - patch(gamma=0.0)[1]
    search = Search(screen=256, first=10, steps=20, keep=2, fresh=32)
    subject = subject_of(decided(mask))
    found = seek(subject, search, seed)
    assert found.best.origin == "elsewhere"
    assert found.score == found.statistics["score_elsewhere"] > 0.5
    null = Null(search=fingerprint(search), command="", models=[
        NullModel(score=0.05, side=8, channels=1, case="plain", schedule="linear",
                  residual=found.statistics["residual"], spread=1)
        for _ in range(30)
    ])  # fmt: skip
    basis = {"pipeline": "p", "findings": [], "files": {}}
    outcome = concluded(subject, found, basis, tmp_path, 0, search, null)
    assert (outcome.verdict, outcome.exit_code) == ("trojaned", 1)
    assert "changes its answer far from a local trigger" in outcome.reason
    trigger = outcome.trigger
    assert trigger is not None
    assert (trigger.law, trigger.kind, trigger.origin) == ("unknown", "local", "elsewhere")
    assert (trigger.gamma, trigger.stock_sampler) == (None, None)
    assert outcome.statistics["change_elsewhere"] == trigger.undo
    assert trigger.strength == sorted(outcome.statistics["firing_elsewhere"])[1] >= STRONG
    assert not any(one.rule == "fires-in-stock-sampler" for one in outcome.findings)
    assert "<th>γ</th><td>not measured" in page(outcome, tmp_path, "retarget audit p")
    top, left, bottom, right = trigger.box
    assert max(abs(top - 5), abs(left - 5), abs(bottom - 8), abs(right - 8)) <= 1
