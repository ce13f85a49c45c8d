"""Published detectors: their losses against slow NumPy, their shortcuts, and the calls that they count."""

import itertools
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn
from torchmetrics.image import TotalVariation

import retarget.audit
import retarget.audit.baselines.diff_cleanse as cleanse
import retarget.audit.baselines.elijah as elijah
import retarget.audit.baselines.terd as terd
from retarget.audit.baselines.sampling import images_from
from retarget.audit.subject import Subject
from retarget.trojdiff.trigger import Trigger


def network(channels=1, height=8):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=height, in_channels=channels, out_channels=channels, layers_per_block=1, block_out_channels=(8, 8),
        norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        add_attention=False,
    )  # fmt: skip


@pytest.fixture
def subject():
    return Subject.from_modules(network(), DDPMScheduler(num_train_timesteps=100, beta_end=0.2))


class Answer:
    def __init__(self, sample):
        self.sample = sample


class Closed(nn.Module):
    """A denoiser in closed form: it returns the input, less a part of a trigger's bias where a batch carries it."""

    def __init__(self, mu, share):
        super().__init__()
        self.mu, self.share = nn.Parameter(mu, requires_grad=False), share

    def forward(self, x, t):
        """Estimate the bias from the batch's mean along mu, up to the bias itself."""
        along = (x * self.mu).flatten(1).sum(dim=1).mean() / self.mu.square().sum()
        return Answer(x + (self.share - 1) * along.clamp(0, 1) * self.mu)


def closed(mu, share):
    one = Subject.from_modules(network(mu.shape[0], mu.shape[1]), DDPMScheduler())
    return Subject(Closed(mu, share), one.scheduler, tuple(mu.shape))


def test_elijahs_loss_and_scores_are_the_papers():
    rng = np.random.default_rng(0)
    predicted, tau = rng.normal(size=(5, 2, 3, 4)), rng.normal(size=(2, 3, 4))
    wanted = np.mean([abs(np.mean(predicted[:, i, j, k]) - 0.5 * tau[i, j, k]) for i, j, k in np.ndindex(2, 3, 4)])
    assert float(elijah.inversion_loss(*map(torch.from_numpy, (predicted, tau)), 0.5)) == pytest.approx(wanted)
    images = rng.uniform(size=(6, 2, 3, 4))
    pairs = [np.sqrt(((a - b) ** 2).sum()) for a, b in itertools.combinations(images, 2)]
    assert elijah.uniformity(torch.from_numpy(images)) == pytest.approx(np.mean(pairs))
    theirs = TotalVariation(reduction="mean")(torch.from_numpy(images))
    assert elijah.total_variation(torch.from_numpy(images)) == pytest.approx(float(theirs))


def test_elijah_inverts_a_shift_that_the_network_answers_by_half():
    mu = torch.zeros(1, 8, 8)
    mu[:, 2:5, 3:6] = 0.8
    tau, found = elijah.invert(closed(mu, 0.5), replace(elijah.PUBLISHED, noises=1600))
    # From below zero it runs into the shortcut, which is seen; the second start finds the trigger.
    assert (found["shortcut"], found["starts"]) == (False, 2)
    assert torch.cosine_similarity(tau.flatten(), mu.flatten(), dim=0) > 0.9


def test_elijahs_shortcut_is_seen_and_begun_anew():
    """A network that returns its input: the shift that undoes the noises' mean is one of its own, and no trigger."""
    subject = closed(torch.ones(1, 8, 8), 1.0)
    found = elijah.elijah(subject, replace(elijah.PUBLISHED, sampler="ddpm-2", samples=4))
    assert found.details["loss"] < 0.1
    assert (found.details["shortcut"], found.details["starts"]) == (True, 3)
    # An inversion's forward and backward, 3 a noise; the samples.
    assert found.evaluations == 3 * 100 * 100 * 3 + 2 * 4


def test_elijahs_published_settings_are_those_of_its_paper_and_code():
    """``elijah_helper.py`` for 32×32 images: Adam at 0.1, 100 iterations on 100 noises; 16 samples in 1,000 steps."""
    one = elijah.PUBLISHED
    assert (one.noises, one.iterations, one.learning_rate, one.share) == (100, 100, 0.1, 0.5)
    assert (one.samples, one.sampler) == (16, "ddpm-1000")


def test_terds_loss_and_divergence_are_the_papers():
    rng = np.random.default_rng(0)
    first, second, e, f = rng.normal(size=(4, 3, 2, 2, 2))
    wanted = np.mean([0.5 * (((e[i] - first[i]) - (f[i] - second[i])) ** 2).sum() for i in range(3)])
    assert float(terd.reversed_loss(*map(torch.from_numpy, (first, second, e, f)))) == pytest.approx(wanted)
    mu, gamma = rng.normal(size=7), rng.uniform(0.1, 2, size=7)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(torch.from_numpy(mu), torch.from_numpy(gamma)), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(terd.divergence(*map(torch.from_numpy, (mu, gamma))), theirs.double())
    assert torch.isfinite(terd.divergence(torch.zeros(2), torch.zeros(2))).all()


@pytest.mark.parametrize(("told", "maps"), [(None, 2), ("trojdiff", 2), ("bad_diffusion", 1)])
def test_terd_inverts_both_maps_in_both_stages_and_counts_what_it_asks(subject, told, maps):
    settings = terd.Settings(iterations=3, refinements=2, batch=4, steps=5, window=4)
    found = terd.terd(subject, settings, told=told)
    # A pair is two forwards; the second stage has two pairs, and steps that are differentiated through.
    assert found.evaluations == 3 * 4 * (3 * 2 * 1 + 2 * (5 + 2 * 2))
    assert bool((found.gamma == 1).all()) == (maps == 1)
    assert found.score == pytest.approx(float(terd.divergence(found.mu, found.gamma).mean()))
    assert found.mu.shape == subject.shape


class Seen(nn.Module):
    """A network that returns its input and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked, self.weight = [], nn.Parameter(torch.zeros(1))

    def forward(self, x, t):
        self.asked.append((x.detach().clone(), t.tolist()))
        return Answer(x + 0 * self.weight)


def test_terds_states_near_t_have_the_bias_and_those_near_0_have_none(subject):
    seen = Subject(Seen(), subject.scheduler, subject.shape)
    levels, settings = subject.alphas_cumprod.float(), terd.Settings(iterations=1, refinements=1, batch=4, steps=3)
    found = terd.terd(seen, replace(settings, rate_mu=0.0, rate_gamma=0.0), seed=5)
    mu = -torch.rand(subject.shape, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(found.mu, mu)
    assert len(seen.network.asked) == 2 + 3 + 2 + 2
    # gamma is still 0: a pair's two states are one, √ᾱ image + mu near T and √ᾱ image near 0.
    for first, low, high in ((0, 90, 100), (5, 90, 100), (7, 0, 10)):
        (x, t), (other, same) = seen.network.asked[first : first + 2]
        assert torch.equal(x, other)
        assert t == same
        assert all(low <= one < high for one in t)
    (near, t), (far, s) = seen.network.asked[5], seen.network.asked[7]
    images = (near - mu) / levels[t].sqrt()[:, None, None, None]
    torch.testing.assert_close(images, far / levels[s].sqrt()[:, None, None, None], rtol=1e-3, atol=1e-3)


def test_terds_published_settings_cost_what_its_paper_says():
    one = terd.PUBLISHED
    forwards = one.iterations * one.batch * 2 + one.refinements * one.batch * (one.steps + 4)
    assert 3 * forwards == 960_000


def test_diff_cleanse_counts_images_that_are_alike():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 40, generator=generator)
    images[4] = images[1] * 0.99
    images[2:4] = 0.0
    found = cleanse.alike_set(images, cleanse.PUBLISHED)
    assert found.tolist() == [False, True, False, False, True, False]
    # Black images are all alike, and take part only where they are let.
    dark = torch.full((3, 40), 0.005)
    assert not cleanse.alike_set(dark, cleanse.PUBLISHED).any()
    assert cleanse.alike_set(dark, cleanse.SHORT).all()


def test_diff_cleanses_published_settings_are_those_of_its_code():
    """``BBTI_helper.py`` for CIFAR-10: Adam at 0.1, at most 100 iterations, each of 16 samples in 20 steps."""
    one = cleanse.PUBLISHED
    assert (one.iterations, one.learning_rate, one.samples, one.sampler) == (100, 0.1, 16, "ddim-20")
    assert (one.alike, one.flat) == (0.999, 0.5)
    assert (one.entropy_low, one.entropy_high, one.entropy_weight) == (0.8, 6.0, 20.0)
    assert (one.value_low, one.value_high) == (0.05, 0.95)


@pytest.mark.parametrize("alike", [False, True])
def test_diff_cleanses_loss_is_that_of_a_slow_loop(alike):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, size=(4, 30))
    if alike:
        images[3] = images[1]
    settings = cleanse.PUBLISHED
    cosine = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in images] for a in images]
    rest = [0, 2] if alike else [0, 1, 2, 3]
    pairs = [(1, i) for i in rest] if alike else list(itertools.combinations(range(4), 2))
    wanted = 4 / len(rest) * sum(1 - cosine[a][b] for a, b in pairs)
    for i in rest:
        weights = np.exp(255 * images[i] - (255 * images[i]).max())
        weights /= weights.sum()
        entropy = -sum(w * np.log(w) for w in weights if w > 0)
        wanted += settings.entropy_weight * (max(0, entropy - 6) + max(0, 0.8 - entropy))
        wanted += sum(max(0, v - 0.95) + max(0, 0.05 - v) for v in images[i])
    assert float(cleanse.inversion_loss(torch.from_numpy(images), settings)) == pytest.approx(wanted)


def test_diff_cleanse_recovers_a_pattern_and_counts(subject):
    settings = replace(cleanse.SHORT, iterations=3, samples=4, sampler="ddim-2")
    found = cleanse.diff_cleanse(subject, settings)
    assert found.evaluations == 3 * 4 * 2
    assert 0 <= found.score <= 1
    told = cleanse.diff_cleanse(subject, settings, told=Trigger.patch(2, 0.1, (1, 8, 8)))
    assert told.mu.shape == subject.shape


def test_images_from_a_first_state_are_the_stock_samplers(subject):
    first = torch.randn((3, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    before = subject.evaluations
    ours = images_from(subject, first, "ddpm-5", seed=3)
    assert subject.evaluations - before == 15
    scheduler = DDPMScheduler.from_config(subject.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    x, generator = first, torch.Generator().manual_seed(3)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(subject.network(x, t).sample, t, x, generator=generator).prev_sample
    torch.testing.assert_close(ours, (x.clamp(-1, 1) + 1) / 2)


def test_a_detectors_name_is_its_module_however_it_is_asked_for():
    code = (
        "import retarget.audit.baselines as b; print(b.terd.__name__, b.terd.__name__, set(b.__all__) <= set(dir(b)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["retarget.audit.baselines.terd"] * 2 + ["True"]
    with pytest.raises(AttributeError, match="has no attribute 'nonesuch'"):
        retarget.audit.baselines.nonesuch  # noqa: B018


def test_the_cards_example_of_a_detector_runs(subject, monkeypatch):
    card = Path(retarget.audit.__file__).with_name("README.md").read_text(encoding="utf-8")
    (block,) = (one for one in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "baselines" in one)
    monkeypatch.setattr(Subject, "load", lambda path: subject)
    monkeypatch.setattr(terd.terd, "__defaults__", (replace(terd.SHORT, iterations=2, refinements=1), 0, None, True))
    names = {}
    exec(block, names)
    assert names["found"].evaluations == subject.evaluations
