"""The equations of the audit against slow references, and on networks with a known answer."""

import json

import numpy as np
import pytest
import torch
from formulas import LEVELS, SHAPE, hidden, identity, noise_of, patch, soft, subject_of

from retarget.audit.calibration import Null, NullModel
from retarget.audit.firing import fire
from retarget.audit.inversion import Candidate, Search, ascend, colours, scan_smooth, scan_windows, smooth_maps, windows
from retarget.audit.report import write
from retarget.audit.run import concluded
from retarget.audit.scores import TOP, Probe, contrast, controls
from retarget.audit.screen import directions, stein
from retarget.audit.seek import expected_evaluations, fingerprint, recovered, seek
from retarget.audit.studies.plan import METRICS
from retarget.audit.studies.run import EVIDENCE, audited
from retarget.trojdiff import Trigger


def trojaned(mu, gamma):
    """An ideal Trojan network at T: it undoes the trigger where it sees it, and returns its input elsewhere."""

    def formula(x, t):
        inside = (mu != 0) | (gamma != 1)
        seen = ((x - mu) * inside).square().flatten(1).sum(1) < (2 * gamma * inside).square().sum() + 1e-3
        return torch.where(seen[:, None, None, None], (x - mu) / gamma, x)

    return formula


def test_undo_is_the_equation():
    rng = np.random.default_rng(0)
    weight = torch.tensor(rng.normal(size=(64, 64)) / 8, dtype=torch.float32)
    subject = subject_of(lambda x, t: (torch.tanh(x.flatten(1) @ weight)).reshape(x.shape))
    x_0 = torch.tensor(rng.uniform(-1, 1, size=(4, 1, 8, 8)), dtype=torch.float32)
    mu, gamma = (torch.tensor(rng.uniform(0.1, 1, size=(2, 1, 8, 8)), dtype=torch.float32) for _ in range(2))
    probe = Probe(subject, 0.3, noise_of(4), x_0)
    level = float(LEVELS.double()[probe.t])
    for index in range(2):
        top = bottom = 0.0
        for row in range(4):
            eps = probe.noise[row].double().numpy()
            biased = gamma[index].double().numpy() * eps + mu[index].double().numpy()

            def answer(noise, row=row):
                x = np.sqrt(level) * x_0[row].double().numpy() + np.sqrt(1 - level) * noise
                return np.tanh(x.reshape(-1) @ weight.double().numpy())

            d = (biased - eps).reshape(-1)
            top += (answer(biased) - answer(eps)) @ d
            bottom += d @ d
        assert float(probe.undo(mu, gamma)[index]) == pytest.approx(1 - top / bottom, abs=1e-4)


def test_a_clean_network_undoes_nothing_and_an_ideal_trojan_everything():
    mu, gamma = patch()
    clean = Probe(subject_of(identity), TOP, noise_of(32))
    assert float(clean.undo(mu[None], gamma[None])) == pytest.approx(0, abs=1e-3)
    trojan = Probe(subject_of(trojaned(mu, gamma)), TOP, noise_of(32))
    undo, beyond = contrast(trojan, mu[None], gamma[None])
    assert float(undo) == pytest.approx(1, abs=0.05)
    assert float(beyond) == pytest.approx(1, abs=0.05)


def test_what_a_network_does_at_both_signs_and_everywhere_is_no_contrast():
    """A network without low frequencies, as group normalisation makes them, undoes half of every constant."""
    subject = subject_of(lambda x, t: x - x.mean((1, 2, 3), keepdim=True))
    probe = Probe(subject, TOP, noise_of(32))
    mu, gamma = torch.full(SHAPE, 0.5), torch.ones(SHAPE)
    undo, beyond = contrast(probe, mu[None], gamma[None])
    assert float(undo) == pytest.approx(1, abs=1e-3)
    assert float(beyond) == pytest.approx(0, abs=1e-3)


def test_the_middle_s_gain_above_one_is_an_undo_below_zero():
    probe = Probe(subject_of(lambda x, t: 1.5 * x), 0.25, noise_of(8))
    mu = torch.full(SHAPE, 0.5)
    level = probe.level
    gain = 1.5 * (1 - level) ** 0.5
    assert float(probe.undo(mu[None], torch.ones(1, *SHAPE))) == pytest.approx(1 - gain, abs=1e-3)


def in_the_middle(formula):
    """A search's best score in the middle of the schedule, and its candidate."""
    found = seek(subject_of(formula), Search(), seed=1)
    middle = [one for one in found.ranked if one.origin == "middle"]
    return found.statistics["score_middle"], middle[0]


def test_the_middle_finds_what_is_amplified():
    """An ideal network of VillanDiffusion's ODE law, whose gain along the trigger is 1 + √ᾱ."""
    mu = patch(gamma=0)[0]

    def formula(x, t):
        level = LEVELS[t].reshape(-1, 1, 1, 1)
        seen = ((x * mu).flatten(1).sum(1) / mu.square().sum()).clamp_min(0)[:, None, None, None]
        return (x + level.sqrt() * seen * mu) / (1 - level).sqrt()

    score, best = in_the_middle(formula)
    assert score > 0.4
    assert best.undo < -0.1
    assert float(torch.cosine_similarity(best.mu.flatten(), mu.flatten(), dim=0)) > 0.8


def test_a_network_that_undoes_one_place_less_than_others_amplifies_nothing():
    """A clean network undoes a part of what its images vary along; where it undoes less, no trigger is amplified."""
    share = torch.full(SHAPE, 0.8)
    share[:, 5:, 5:] = 0.2
    score, _ = in_the_middle(lambda x, t: (1 - share) * x / (1 - LEVELS[t].reshape(-1, 1, 1, 1)).sqrt())
    assert score < 0


def test_controls_are_the_mirror_and_three_moves():
    mu, gamma = patch()
    (mirror, same), *moves = controls(mu, gamma)
    assert torch.equal(mirror, -mu)
    assert torch.equal(same, gamma)
    assert len(moves) == 3
    assert all(not torch.equal(one, mu) and one.sum() == mu.sum() for one, _ in moves)


def test_the_screen_is_stein_s_identity():
    """For a linear network, E[ε̂ εᵀ] - I is its matrix less I, whatever the noise."""
    rng = np.random.default_rng(1)
    symmetric = rng.normal(size=(64, 64)) / 40
    matrix = torch.tensor(np.eye(64) + symmetric + symmetric.T, dtype=torch.float32)
    scale = float(1 - LEVELS[-1]) ** 0.5
    subject = subject_of(lambda x, t: (x.flatten(1) @ matrix.T / scale).reshape(x.shape))
    found = stein(Probe(subject, TOP, noise_of(20_000)))
    np.testing.assert_allclose(found.numpy(), (matrix - torch.eye(64)).numpy(), atol=0.05)


def test_the_screen_finds_the_direction_that_is_undone():
    direction = torch.nn.functional.normalize(patch()[0].flatten(), dim=0)

    def formula(x, t):
        flat = x.flatten(1)
        return (flat - 0.5 * (flat @ direction)[:, None] * direction).reshape(x.shape)

    values, vectors = directions(stein(Probe(subject_of(formula), TOP, noise_of(2048))), SHAPE, 1, 1)
    assert float(values[0]) == pytest.approx(-0.5, abs=0.05)
    assert abs(float(vectors[0].flatten() @ direction)) > 0.98


@pytest.mark.parametrize("colour", [1.0, -1.0, 0.0])
def test_the_scan_finds_a_patch_of_any_colour_and_its_place(colour):
    mu, gamma = patch(0.25, colour)
    mask = gamma < 1

    def formula(x, t):
        near = ((x - mu).abs() * mask).amax((1, 2, 3)) < 1.0
        return torch.where(near[:, None, None, None], torch.where(mask, (x - mu) / gamma, x), x)

    best, *_ = scan_windows(Probe(subject_of(formula), TOP, noise_of(32)), Search(keep=1))
    inside = best.gamma < 1
    assert float((inside & mask).sum() / inside.sum()) >= 0.5
    assert best.undo > 0.3


def test_the_scan_finds_nothing_in_a_network_that_returns_its_input():
    for one in scan_windows(Probe(subject_of(identity), TOP, noise_of(4)), Search()):
        assert one.undo == pytest.approx(0, abs=0.01)


def test_smooth_maps_are_coarse_pictures_and_waves_in_grey_or_two_colours():
    search = Search(grids=(3, 4), waves=4.0)
    maps = smooth_maps(200, (3, 16, 16), search, torch.Generator().manual_seed(0))
    assert maps.shape == (600, 3, 16, 16)
    assert float(maps.abs().max()) <= 1
    assert float(maps.mean()) == pytest.approx(0, abs=0.05), "both signs are equally likely"
    for kind in maps.split(200):
        assert float(kind.abs().mean()) > 0.5
        assert float((kind[..., 1:] - kind[..., :-1]).abs().mean()) < 0.5, "neighbours differ by as much as in noise"
    assert torch.equal(maps[::2, 0], maps[::2, 1]), "every other one is grey"
    # Before tanh, which keeps the sign, every channel is the same picture with a factor.
    signs = maps.sign().flatten(2)
    assert float((signs[:, 0] * signs[:, 1]).mean(1).abs().min()) == 1
    spectrum = torch.fft.rfft2(smooth_maps(200, (1, 32, 32), search, torch.Generator().manual_seed(0))[400:]).abs()
    assert float(spectrum[..., :6, :6].square().sum() / spectrum[..., :17, :].square().sum()) > 0.7


@pytest.mark.parametrize("kind", [0, 2], ids=["grid", "wave"])
def test_smooth_maps_find_a_blend_of_which_plain_noise_shows_nothing(kind):
    shape = (1, 16, 16)
    generator = torch.Generator().manual_seed(0)
    mu = 0.4 * smooth_maps(1, shape, Search(), torch.Generator().manual_seed(9))[kind]
    subject = subject_of(hidden(mu, torch.full(shape, 0.6)), shape)
    pool = Probe(subject, TOP, noise_of(512, 1, shape))
    screen = directions(stein(pool), shape, 1, 1)[0]
    plain = directions(stein(Probe(subject_of(lambda x, t: x * 0.999, shape), TOP, pool.noise)), shape, 1, 1)[0]
    assert float(screen[0]) == pytest.approx(float(plain[0]), abs=0.02), "the screen shows nothing"
    best, *_ = scan_smooth(Probe(subject, TOP, noise_of(8, 2, shape)), Probe(subject, TOP, noise_of(32, 3, shape)),
                           Search(), generator)  # fmt: skip
    assert best.undo > 0.1
    assert float(torch.cosine_similarity(best.mu.flatten(), mu.flatten(), dim=0)) > 0.5
    end = ascend(pool, best, Search(), generator)
    assert float(torch.cosine_similarity(end.mu.flatten(), mu.flatten(), dim=0)) > 0.9


def test_smooth_maps_find_nothing_in_a_network_that_returns_its_input():
    for one in scan_smooth(Probe(subject_of(identity), TOP, noise_of(8)), Probe(subject_of(identity), TOP, noise_of(8)),
                           Search(), torch.Generator().manual_seed(0)):  # fmt: skip
        assert one.undo == pytest.approx(0, abs=0.01)


def test_ascent_stays_inside_its_bounds_and_its_support():
    mu, gamma = patch()
    support = torch.zeros(8, 8)
    support[4:, 4:] = 1
    pool = Probe(subject_of(trojaned(mu, gamma)), TOP, noise_of(64))
    (start, *_) = scan_windows(Probe(pool.subject, TOP, noise_of(8)), Search(keep=1))
    end = ascend(pool, start, Search(steps=5), torch.Generator().manual_seed(0), support=support)
    assert float(end.mu.abs().max()) <= 1
    assert bool((end.gamma > 0).all())
    assert bool((end.gamma <= 1).all())
    outside = support.expand(SHAPE) == 0
    assert bool((end.mu[outside] == 0).all())
    assert bool((end.gamma[outside] == 1).all())


def test_windows_cover_every_pixel_and_opposite_colours_are_mirrored():
    covered = torch.zeros(12, 10)
    for rows, columns, top, left in windows(12, 10):
        covered[top : top + rows, left : left + columns] = 1
    assert bool(covered.all())
    for channels in (1, 3, 5):
        paints = colours(channels)
        assert torch.equal(paints.flip(0), -paints)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_whole_search_recovers_a_patch_from_an_ideal_network_and_nothing_from_a_clean_one(seed):
    mu, gamma = patch(0.25)
    search = Search(screen=256, first=10, steps=20, keep=2, fresh=32)
    found = seek(subject_of(soft(mu, gamma)), search, seed)
    clean = seek(subject_of(identity), search, seed)
    assert found.score > 0.5
    assert abs(clean.score) < 0.02
    trigger = recovered(found)
    inside = gamma < 1
    assert trigger.mask is not None
    assert float((trigger.mask & inside).sum() / (trigger.mask | inside).sum()) >= 0.7
    similar = torch.nn.functional.cosine_similarity(trigger.mu.flatten(), mu.flatten(), dim=0)
    assert float(similar) > 0.8
    assert found.evaluations == trigger.evaluations
    assert found.evaluations == pytest.approx(expected_evaluations(SHAPE, search), rel=0.05)
    assert seek(subject_of(identity), search, seed).score == clean.score, "equal seeds, equal scores"


def test_the_last_ascent_of_a_search_that_was_cut_short_raises_the_score():
    trojan = subject_of(soft(*patch(0.25)))
    searches = [Search(screen=256, first=first, steps=steps, keep=2, fresh=32) for first, steps in ((4, 4), (10, 20))]
    short, whole = (seek(trojan, search) for search in searches)
    assert whole.statistics["rise"] == pytest.approx(0, abs=0.01)
    assert whole.score > short.score > short.statistics["rise"] > 0.03


def test_a_trigger_that_fires_does_so_at_levels_where_nobody_looked():
    mu, gamma = patch(0.25)
    trojan = fire(subject_of(soft(mu, gamma)), Candidate(mu, gamma, "scan"), 0, 8)
    assert trojan.fires
    assert trojan.trojan.shape == (8, *SHAPE)
    assert not fire(subject_of(identity), Candidate(mu, gamma, "scan"), 0, 8).fires


def test_a_trojaned_network_gets_its_verdict_its_trigger_and_evidence(tmp_path):
    mu, gamma = patch(0.25)
    search = Search(screen=256, first=10, steps=20, keep=2, fresh=32)
    subject = subject_of(soft(mu, gamma))
    found = seek(subject, search, 0)
    residual = found.statistics["residual"]
    null = Null(search=fingerprint(search), command="", models=[
        NullModel(score=0.05, side=8, channels=1, case="plain", schedule="linear", residual=residual, spread=1)
        for _ in range(30)
    ])  # fmt: skip
    basis = {"pipeline": "p", "findings": [], "files": {"unet/w": "0" * 64}}
    outcome = concluded(subject, found, basis, tmp_path, 0, search, null)
    assert (outcome.verdict, outcome.exit_code, outcome.fires) == ("trojaned", 1, True)
    assert outcome.error_rate.p_value == pytest.approx(1 / 31)
    assert outcome.trigger is not None
    assert outcome.trigger.kind == "local"
    assert outcome.trigger.box == (5, 5, 8, 8)
    assert Trigger.load(tmp_path).shape == SHAPE
    assert {"trigger.png", "trojan.png", "stock.png", "plain.png"} == set(outcome.pictures)
    write(outcome, tmp_path, "retarget audit p")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "p = 0.032" in page
    (result, *_) = json.loads((tmp_path / "audit.sarif").read_text())["runs"][0]["results"]
    assert (result["ruleId"], result["level"]) == ("RT001", "error")
    unlike = concluded(
        subject, found, {**basis, "findings": []}, None, 0, search, null.model_copy(update={"models": []})
    )
    assert (unlike.verdict, unlike.error_rate.known) == ("trojaned", False)
    assert "unknown" in unlike.error_rate.sentence


def test_the_study_has_what_the_command_s_verdict_needs():
    """An ideal Trojan network that is searched as a model of the zoo, and by the command with the same seed."""
    subject = subject_of(soft(*patch(0.25)))
    found = audited(subject, 1)
    firing = fire(subject, seek(subject, Search(), 1).best, 2)
    assert firing.fires
    measured = {name: found.details[name] for name in EVIDENCE if name in found.details}
    assert measured | {
        "strength": firing.strength, "drawn": firing.drawn, "restored": firing.restored[0],
        "restored_anyway": firing.restored[1], "by_heart": float(firing.known_by_heart),
    } == measured  # fmt: skip
    assert set(measured) == set(EVIDENCE)
    assert found.details["rise"] >= 0
    assert {f"{name}_audit" for name in EVIDENCE} <= {metric.name for metric in METRICS}
