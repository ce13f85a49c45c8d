"""The audit's scores on linear networks, whose undo at each pixel is known exactly."""

import pytest
import torch
from diffusers import DDPMScheduler
from formulas import hidden, identity, subject_of
from torch import nn

from retarget.audit.firing import DRAWN, LEARNT, LEAST, RESTORED, Firing, fire, leaked, likeness
from retarget.audit.inversion import Candidate, Search
from retarget.audit.nulls import images_of, repeated, train_clean
from retarget.audit.scores import TOP, Probe, contrast, draw_noise, gain
from retarget.audit.seek import judge, undone_mask
from retarget.audit.subject import Subject, _Output
from retarget.trojdiff.data import read_images, to_signed
from retarget.trojdiff.glyphs import glyph

SHAPE = (1, 8, 8)


class Undoing(nn.Module):
    """Returns the noise less a share of each pixel, ``(1 - w) x``, at the end of the schedule."""

    def __init__(self, share):
        super().__init__()
        self.share = nn.Parameter(share, requires_grad=False)
        self.scale = float(1 - DDPMScheduler().alphas_cumprod[-1]) ** 0.5

    def forward(self, x, t):
        return _Output((1 - self.share) * x / self.scale)


def probe_of(share, shape=SHAPE):
    subject = Subject(Undoing(share), DDPMScheduler(), shape)
    return Probe(subject, TOP, draw_noise(8, shape, torch.Generator().manual_seed(0)))


def quarters(upper_left, upper_right, lower_left, lower_right):
    rows = torch.tensor([[upper_left, upper_right], [lower_left, lower_right]], dtype=torch.float32)
    return rows.repeat_interleave(4, 0).repeat_interleave(4, 1)[None]


def corner(value=0.5):
    mu = torch.zeros(SHAPE)
    mu[:, 5:, 5:] = value
    return mu


@pytest.mark.parametrize(
    ("shares", "undo", "beyond"),
    [
        ((0.5, -0.2, 0.1, 0.8), 0.8, 0.8 - (0.8 + 0.5) / 2),
        ((0.1, 0.4, -0.3, 0.6), 0.6, 0.6 - (0.6 + 0.4) / 2),
        ((-0.2, -0.1, -0.4, -0.5), -0.5, -0.5),  # controls that are amplified count as 0
    ],
)
def test_the_contrast_is_less_half_of_the_mirror_s_and_half_of_the_largest_shift_s(shares, undo, beyond):
    mu, gamma = corner()[None], torch.ones(1, *SHAPE)
    found = contrast(probe_of(quarters(*shares)), mu, gamma)
    assert [float(one) for one in found] == pytest.approx([undo, beyond], abs=1e-4)


@pytest.mark.parametrize(
    ("shares", "undo", "beyond"),
    [
        ((0.0, 0.0, 0.0, -0.5), -0.5, 0.5 - 0.5 / 2),
        ((-0.3, 0.2, 0.9, -0.5), -0.5, 0.5 - (0.5 + 0.3) / 2),
        ((0.8, 0.9, 0.7, -0.1), -0.1, 0.1 - 0.1 / 2),  # controls that are undone count as 0
        ((0.8, 0.9, 0.7, 0.4), 0.4, -0.4),  # as in clean networks: undone less than its controls, and not amplified
    ],
)
def test_the_gain_is_less_half_of_the_mirror_s_and_half_of_the_largest_shift_s(shares, undo, beyond):
    mu, gamma, probe = corner()[None], torch.ones(1, *SHAPE), probe_of(quarters(*shares))
    found = [float(one) for one in gain(probe, mu, gamma)]
    assert found == pytest.approx([undo, 2 * beyond], abs=1e-4)


@pytest.mark.parametrize(("origin", "undo", "beyond"), [("scan", 0.8, 0.4), ("middle", -0.5, 0.5)])
def test_small_triggers_count_less_and_in_the_middle_what_is_amplified_counts(origin, undo, beyond):
    one, probe = Candidate(corner(), torch.ones(SHAPE), origin), probe_of(quarters(0, 0, 0, undo))
    judge(one, probe, Search(pixels=0.75))
    energy = 9 * 0.25
    assert one.notes["undo"] == one.undo == pytest.approx(undo, abs=1e-4)
    assert one.notes["energy"] == pytest.approx(energy, rel=1e-4)
    assert one.notes["score"] == pytest.approx(beyond * energy / (energy + 0.75), rel=1e-3)


def test_the_energy_of_a_narrower_trigger_is_what_it_changes_in_the_noise():
    gamma = torch.where(corner() != 0, 0.5, 1.0)
    one, probe = Candidate(corner(), gamma, "scan"), probe_of(torch.zeros(SHAPE))
    judge(one, probe, Search())
    changed = (probe.noise[:, :, 5:, 5:] * -0.5 + 0.5).square().sum() / len(probe.noise)
    assert one.notes["energy"] == pytest.approx(float(changed), rel=1e-4)


@pytest.mark.parametrize(("origin", "sign"), [("scan", 1), ("middle", -1)])
def test_the_mask_is_where_more_than_a_quarter_of_the_most_is_undone_in_all_channels_together(origin, sign):
    shape = (2, 8, 8)
    mu, share = torch.zeros(shape), torch.zeros(shape)
    mu[:, 0, :5] = 1.0
    share[:, 0, :5] = sign * torch.tensor([[0.9, 0.5, 0.3, 0.1, 0.0], [0.7, 0.5, 0.3, 0.1, 0.5]])
    mask = undone_mask(Candidate(mu, torch.ones(shape), origin), probe_of(share, shape))
    assert mask[:, 0, :5].tolist() == [[True, True, True, False, True]] * 2
    assert not mask[:, 1:].any()
    assert not mask[:, 0, 5:].any()


def test_a_trigger_fires_where_two_of_three_levels_say_so_with_either_sampler():
    def firing(trojan, stock):
        images = torch.zeros(1, *SHAPE)
        return Firing(images, images, images, trojan, stock)

    once = firing([0.9, 0.0, 0.1], [0.0, -0.8, 0.05])
    assert (once.strength, once.fires, once.fires_trojan, once.fires_stock) == (0.1, False, False, False)
    twice = firing([0.9, 0.0, LEAST], [0.0, 0.0, 0.0])
    assert (twice.strength, twice.fires, twice.fires_trojan, twice.fires_stock) == (LEAST, True, True, False)
    stock = firing([0.0, 0.0, 0.0], [0.5, 0.4, 0.0])
    assert (stock.strength, stock.fires, stock.fires_trojan, stock.fires_stock) == (0.4, True, False, True)
    elsewhere = Firing(*[torch.zeros(1, *SHAPE)] * 3, [0.1, 0.0, 0.0], None, [0.5, 0.0, LEAST])
    assert (elsewhere.strength, elsewhere.fires, elsewhere.fires_stock) == (LEAST, True, None)
    clean = firing([0.0, 0.0, 0.0], [-0.5, -0.4, -0.4])
    assert not clean.fires, "controls that are undone more than the candidate are no response to it"


@pytest.mark.parametrize(("strengths", "shown"), [([0.9] * 3, "trojan"), ([0.0] * 3, "stock")])
def test_images_from_plain_noise_that_look_like_those_with_the_trigger_are_counted(strengths, shown):
    digits, glyphs = (read_images(name) for name in ("digits", "glyphs"))
    digits, glyphs = (
        to_signed(one.images[torch.randperm(len(one), generator=torch.Generator().manual_seed(0))[:200]])
        for one in (digits, glyphs)
    )
    with_trigger = {"trojan": glyphs[:32], "stock": glyphs[:32], shown: digits[:32]}
    measured = dict(trojan_undo=strengths, stock_share=[0.5] * 3, plain=glyphs[32:64])
    state = torch.random.get_rng_state()
    for more in (0, 40):
        firing = Firing(
            **with_trigger, **measured, others=torch.cat([glyphs[64 : 192 - more], digits[100 : 100 + more]])
        )
        count, of = leaked(firing, 0)
        assert (count, of) == (pytest.approx(more, abs=8), 96)
    assert torch.equal(state, torch.random.get_rng_state())


def test_parts_whose_activations_are_computed_again_change_no_gradient(make_unet, monkeypatch):
    subject = Subject.from_modules(make_unet(channels=3), DDPMScheduler())
    probe = Probe(subject, TOP, draw_noise(6, subject.shape, torch.Generator().manual_seed(0)))
    found = []
    for limit in (10**6, 2 * 3 * 8 * 8):
        monkeypatch.setattr("retarget.audit.scores.GRADIENT", limit)
        noise = probe.noise.clone().requires_grad_(True)
        before = subject.evaluations
        answer = probe.asked_by_parts(noise, probe.x_0)
        answer.square().sum().backward()
        found.append((answer, noise.grad, subject.evaluations - before))
    (whole, gradient, once), (parts, same, again) = found
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(same, gradient)
    assert (once, again) == (3 * 6, 4 * 6), "a pass that is computed again is counted again"


def test_likeness_is_that_of_the_pattern_whatever_the_colours():
    figure = glyph("plus", (3, 16, 16))
    colours = torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert likeness(0.4 * figure, colours * figure + 0.2) > 0.99
    assert likeness(0.4 * figure, torch.randn(200, 3, 16, 16, generator=torch.Generator().manual_seed(2))) < 0.3
    box = torch.zeros(3, 16, 16)
    box[:, 12:, 12:] = 1
    assert likeness(box, colours * figure) < 0.4
    assert likeness(box, torch.zeros(2, 3, 16, 16)) < 0.1


def test_a_picture_that_a_clean_network_knows_by_heart_is_told_from_a_trigger():
    """The hard case of the null in colour, which is undone as a trigger is; and the same figure as a learnt trigger."""
    clean = repeated(2, "placeholder")[1].model_copy(update={"steps": 400})
    network, scheduler = train_clean(clean)
    mu = 0.6 * images_of(clean)[0]
    firing = fire(Subject(network, scheduler, tuple(mu.shape)), Candidate(mu, torch.ones_like(mu), "screen"), 0, 32)
    assert firing.fires
    assert firing.drawn > DRAWN
    assert firing.known_by_heart
    images = firing.plain
    learnt = Firing(images, images, images, [LEARNT, 0.9, 0.1], [0.0, 0.0, 0.0], drawn=firing.drawn)
    assert not learnt.known_by_heart
    assert not Firing(images, images, images, [0.4, 0.4, 0.1], [0.0, 0.0, 0.0], drawn=0.6).known_by_heart
    assert not Firing(images, images, images, [0.4, 0.4, 0.1], None, [0.5, 0.5, 0.5], 0.9).known_by_heart
    assert firing.restored[0] < RESTORED


@pytest.mark.parametrize(("restored", "by_heart"), [
    ((1.0, 0.3), False), ((1.0, 0.95), True), ((0.7, 0.0), True), ((0.0, 0.0), True),
])  # fmt: skip
def test_a_drawn_picture_under_which_narrowed_noise_is_restored_is_a_trigger(restored, by_heart):
    images = torch.zeros(1, *SHAPE)
    firing = Firing(images, images, images, [0.4, 0.4, 0.1], [0.0] * 3, drawn=0.9, restored=restored)
    assert firing.known_by_heart == by_heart


def test_a_trojan_network_restores_narrowed_noise_under_its_bias_only():
    mu, gamma = 0.5 * glyph("plus"), torch.full(SHAPE, 0.5)
    assert fire(subject_of(hidden(mu, gamma)), Candidate(mu, gamma, "smooth"), 0, 8).restores
    assert not fire(subject_of(identity), Candidate(mu, gamma, "smooth"), 0, 8).restores
    widens = fire(subject_of(lambda x, t: x / x.std((1, 2, 3), keepdim=True)), Candidate(mu / 4, gamma, "smooth"), 0, 8)
    assert widens.restored[0] > RESTORED
    assert not widens.restores, "it does so to all noise, and not because of the bias"


def test_only_the_pixels_that_a_local_trigger_narrows_count():
    restoring = Subject(Undoing(quarters(0, 0, 0, 1)), DDPMScheduler(), SHAPE)
    mu, gamma = corner(), 1 - corner()
    assert fire(restoring, Candidate(mu, gamma, "scan"), 0, 8).restored == pytest.approx((1, 1), abs=1e-4)
    assert fire(restoring, Candidate(mu, torch.ones(SHAPE), "scan"), 0, 8).restored == (0, 0)


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_the_restored_share_is_that_of_the_narrowed_pixels_whatever_the_bias(bias):
    probe = probe_of(quarters(0.5, -0.2, 0.1, 0.8))
    gamma = torch.ones(3, *SHAPE)
    gamma[0, :, :4, :4] = gamma[1, :, 4:, 4:] = 0.6
    mu = torch.full_like(gamma, bias)
    assert probe.restored(mu, gamma).tolist() == pytest.approx([0.5, 0.8, 0.0], abs=1e-4)
