"""Triggers that look like themselves: their controls against slow references, and the branch that finds them."""

import numpy as np
import pytest
import torch
from formulas import hidden, identity, noise_of, subject_of

from retarget.audit.calibrate import with_symmetric
from retarget.audit.calibration import NullModel
from retarget.audit.firing import fire
from retarget.audit.inversion import Candidate, Search, ascend
from retarget.audit.scores import TOP, Probe, contrast, controls, self_similarity
from retarget.audit.seek import SYMMETRIC, in_rank, judge, seek, seek_symmetric
from retarget.audit.symmetric import GRIDS, map_count, periodic_maps, scan_symmetric, symmetric_maps

SHAPE = (1, 8, 8)
SEARCH = Search(screen=64, first=10, steps=20, fresh=32)


def stripes(across=True, width=2, side=8):
    rows = torch.arange(side)[:, None].expand(side, side)
    return (1.0 - 2 * ((rows if across else rows.T) // width % 2))[None]


def checkerboard(width=1):
    return stripes(width=width) * stripes(False, width)


def diagonal_cross():
    eye = torch.eye(8)
    return (2 * (eye + eye.flip(0)).clamp(max=1) - 1)[None]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 10)])
def test_self_similarity_is_the_correlation_with_every_shift(shape):
    rng = np.random.default_rng(0)
    mu, gamma = rng.normal(size=shape), rng.uniform(size=shape)
    found = self_similarity(torch.tensor(mu), torch.tensor(gamma)).numpy()
    maps = np.concatenate([mu, gamma])
    maps -= maps.mean((1, 2), keepdims=True)
    for down in range(shape[1]):
        for right in range(shape[2]):
            moved = np.roll(maps, (down, right), (1, 2))
            assert found[down, right] == pytest.approx((maps * moved).sum() / (maps * maps).sum(), abs=1e-6)


def test_a_candidate_that_does_not_look_like_its_shifts_has_the_usual_controls():
    mu = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    gamma = torch.full_like(mu, 0.5)
    for usual, one in zip(controls(mu, gamma), controls(mu, gamma, unlike=True), strict=True):
        assert torch.equal(usual[0], one[0])
        assert torch.equal(usual[1], one[1])


@pytest.mark.parametrize("mu", [checkerboard(), checkerboard(2), stripes(), stripes(False, 4), diagonal_cross()])
def test_a_shift_that_looks_like_the_candidate_is_replaced_by_the_one_that_looks_least_like_it(mu):
    gamma = torch.ones_like(mu)
    alike = [float(torch.corrcoef(torch.stack([mu.flatten(), one.flatten()]))[0, 1])
             for one, _ in controls(mu, gamma)[1:]]  # fmt: skip
    assert max(alike) > 0.9
    least = min(float(self_similarity(mu, gamma)[down, right]) for down in range(8) for right in range(8))
    for (usual, _), (one, _), like in zip(controls(mu, gamma)[1:], controls(mu, gamma, True)[1:], alike, strict=True):
        if like <= 0.5:
            assert torch.equal(usual, one)
        else:
            correlation = torch.corrcoef(torch.stack([mu.flatten(), one.flatten()]))[0, 1]
            assert float(correlation) == pytest.approx(least, abs=1e-5)
            assert torch.equal(one.flatten().sort().values, mu.flatten().sort().values), "it is a shift"


def test_several_candidates_have_the_controls_of_each():
    mu = torch.stack([checkerboard(), stripes(), 0.3 * diagonal_cross(), torch.ones(SHAPE)])
    gamma = torch.full_like(mu, 0.7)
    together = controls(mu, gamma, unlike=True)
    for row in range(len(mu)):
        for many, one in zip(together, controls(mu[row], gamma[row], unlike=True), strict=True):
            assert torch.equal(many[0][row], one[0])


def test_a_network_without_low_frequencies_undoes_constants_but_shows_no_contrast():
    probe = Probe(subject_of(lambda x, t: x - x.mean((1, 2, 3), keepdim=True).clamp_min(0)), TOP, noise_of(32))
    mu = torch.full((1, *SHAPE), 0.8)
    undo, beyond = contrast(probe, mu, torch.ones_like(mu), unlike=True)
    assert float(undo) > 0.9
    assert float(beyond) < 0.55, "its mirror is not undone, but its shifts are the same map"


@pytest.mark.parametrize(
    ("shape", "share"), [((1, 8, 8), 0), ((3, 16, 16), 0), ((1, 28, 28), 0.05), ((3, 16, 12), 0.1)]
)
def test_symmetric_maps_are_their_own_mirror_images(shape, share):
    maps = symmetric_maps(20, shape, torch.Generator().manual_seed(0))
    assert maps.shape == (20 * len(GRIDS), *shape)
    for mirrored in (maps.flip(-1), maps.flip(-2)):
        differs = (maps - mirrored).abs() > 1e-5
        assert float(differs.float().mean()) <= share, "pixels between two cells of a grid may be in either"
    if shape[1] == shape[2]:
        torch.testing.assert_close(maps[20:40], maps[20:40].mT, atol=1e-5, rtol=0)
    assert float(maps.abs().max()) <= 1
    assert float(maps.abs().mean()) > 0.5
    assert torch.equal(maps[::2, :1].expand(-1, shape[0], -1, -1), maps[::2]), "every other one is grey"


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (1, 28, 28)])
def test_periodic_maps_contain_stripes_and_checkerboards_and_repeat_themselves(shape):
    maps = periodic_maps(shape, torch.Generator().manual_seed(0))
    assert len(maps) + len(GRIDS) * Search().symmetric == map_count(shape, Search())
    alike = self_similarity(maps, torch.ones_like(maps)).flatten(1)
    alike[:, 0] = -1
    assert float(alike.amax(1).min()) > 0.98, "each looks like one of its shifts"
    if shape == (1, 8, 8):
        flat = torch.nn.functional.normalize(maps.flatten(1), dim=1)
        for one in (checkerboard(), checkerboard(2), stripes(width=1), stripes(False, 4)):
            nearest = (flat @ torch.nn.functional.normalize(one.flatten(), dim=0)).abs().max()
            assert float(nearest) > 0.95


@pytest.mark.parametrize("pattern", [checkerboard(2), stripes(False, 2), diagonal_cross()])
def test_a_trigger_that_looks_like_its_shift_is_found(pattern):
    """An ideal Trojan network cannot tell the trigger from its shift by half an image, and undoes both."""
    mu, gamma = 0.4 * pattern, torch.full(SHAPE, 0.6)
    subject = subject_of(hidden(mu, gamma))
    probe = Probe(subject, TOP, noise_of(64))
    undo, usual = contrast(probe, mu[None], gamma[None])
    assert float(undo) > 0.8
    assert float(usual) < 0.6 * float(undo)
    assert float(contrast(probe, mu[None], gamma[None], unlike=True)[1]) > 0.8
    best = seek_symmetric(subject, Search(), 0, torch.zeros(4, *SHAPE))
    assert best.notes["score"] > 0.5
    assert float(torch.cosine_similarity(best.mu.flatten(), mu.flatten(), dim=0)) > 0.9
    assert fire(subject, best, 0, 8).trojan_undo[0] > 0.3, "it is examined with the same controls"


def test_the_branch_finds_nothing_in_a_network_that_returns_its_input():
    subject = subject_of(identity)
    starts = scan_symmetric(Probe(subject, TOP, noise_of(8)), Probe(subject, TOP, noise_of(8)), SEARCH,
                            torch.Generator().manual_seed(0))  # fmt: skip
    assert all(one.undo == pytest.approx(0, abs=0.01) for one in starts)
    assert abs(seek_symmetric(subject, SEARCH, 0, torch.zeros(4, *SHAPE)).notes["score"]) < 0.02


def test_a_low_score_of_the_branch_leaves_the_others_as_they_are():
    def one(origin, score):
        return Candidate(torch.zeros(SHAPE), torch.ones(SHAPE), origin, notes={"score": score})

    low, high, scan = one("symmetric", SYMMETRIC - 0.01), one("symmetric", SYMMETRIC), one("scan", 0.2)
    assert in_rank([low, scan])[0] is scan
    assert in_rank([high, scan])[0] is high
    assert in_rank([high, one("smooth", 0.45)])[0].origin == "smooth"
    found = seek(subject_of(identity), SEARCH, 0)
    assert found.best.origin != "symmetric"
    assert found.statistics["score_symmetric"] < SYMMETRIC


def test_a_clean_model_in_which_the_branch_finds_what_counts_is_searched_whole():
    """Only the whole search ranks the branches: what changes the answer elsewhere may have the higher score."""
    subject = subject_of(hidden(0.4 * diagonal_cross(), torch.full(SHAPE, 0.6)))
    before = NullModel(score=0.05, side=8, channels=1, case="logo", schedule="linear", residual=9, spread=1)
    row, whole = with_symmetric(subject, before), seek(subject, Search(), 1)
    assert row.score == whole.score > SYMMETRIC
    assert (row.statistics, row.case) == (whole.statistics, "logo")


def test_an_ascent_of_the_branch_is_scored_with_unlike_shifts():
    mu, gamma = 0.4 * checkerboard(2), torch.full(SHAPE, 0.6)
    subject = subject_of(hidden(mu, gamma))
    probe = Probe(subject, TOP, noise_of(64))
    scores = {}
    for origin in ("smooth", "symmetric"):
        end = ascend(probe, Candidate(mu, gamma, origin), SEARCH, torch.Generator().manual_seed(0))
        judge(end, probe, SEARCH)
        scores[origin] = end.notes["score"]
    assert scores["symmetric"] > 1.5 * scores["smooth"]
