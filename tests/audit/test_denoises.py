"""Networks that denoise nothing are recognised before any search, by losses that are known exactly."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from formulas import subject_of

from retarget.audit.denoises import LEVELS, Loss, loss_at, on_noise, silence
from retarget.audit.errors import AuditError
from retarget.audit.run import audit_pipeline

SHAPE = (2, 6, 4)


def losses_of(formula, images):
    subject = subject_of(formula, SHAPE)
    return [on_noise(subject), *(loss_at(subject, level, images, 0) for level in LEVELS)]


def images_of(count=500):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_the_best_multiple_of_the_input_is_the_one_that_least_squares_find():
    """numpy's own least squares over a million values: ε = a x."""
    rng, level = np.random.default_rng(0), 0.3
    x_0 = rng.uniform(-1, 1, 1_000_000)
    noise = rng.normal(size=x_0.shape)
    x = np.sqrt(level) * x_0 + np.sqrt(1 - level) * noise
    _, rest, *_ = np.linalg.lstsq(x[:, None], noise, rcond=None)
    subject = subject_of(lambda x, t: x, SHAPE)
    assert loss_at(subject, level, images_of(), 0).linear == pytest.approx(float(rest[0]) / len(x), abs=0.01)


def test_a_loss_is_the_mean_square_and_costs_an_evaluation_an_image():
    subject = subject_of(lambda x, t: torch.zeros_like(x), SHAPE)
    assert on_noise(subject).found == pytest.approx(1, abs=0.1)
    assert subject.evaluations == 64


def test_what_denoises_nothing_is_named_and_what_denoises_passes():
    images = torch.ones(1, *SHAPE) * 0.5
    levels = DDPMScheduler().alphas_cumprod

    def knows_its_image(x, t):
        level = levels[t][:, None, None, None]
        return (x - level.sqrt() * 0.5) / (1 - level).sqrt()

    assert silence(losses_of(knows_its_image, images)) == ""
    assert "ε̂ = 0 is 1" in silence(losses_of(lambda x, t: torch.zeros_like(x), images))
    assert "best multiple" in silence(losses_of(lambda x, t: x, images_of())), "noise is returned, images are not seen"
    generator = torch.Generator().manual_seed(0)
    assert silence(losses_of(lambda x, t: torch.randn(x.shape, generator=generator), images))
    assert silence([Loss(4e-5, 0.01, 0.0), Loss(0.1, 0.2, 0.1), Loss(0.3, 0.1, 0.2)]) == ""


def test_answers_that_overflow_are_an_error():
    with pytest.raises(AuditError, match=r"timestep 9.. is not finite"):
        losses_of(lambda x, t: x * float("inf"), images_of())


def constant(unet):
    """A network that always returns the same value."""
    with torch.no_grad():
        unet.conv_out.weight.zero_()
        unet.conv_out.bias.fill_(0.3)
    return unet


@pytest.mark.parametrize("kind", ["random", "constant", "a dozen steps"])
def test_a_checkpoint_that_denoises_nothing_is_undecided_at_once(kind, make_unet, teach, untrained, tmp_path):
    folder = untrained
    if kind != "random":
        unet = constant(make_unet()) if kind == "constant" else teach(make_unet(), DDPMScheduler(), 8)
        folder = tmp_path / "other"
        DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(folder)
    one = audit_pipeline(folder, None)
    assert (one.verdict, one.exit_code, one.score, one.scope) == ("undecided", 3, None, [])
    assert "does not denoise" in one.reason
    assert "does not denoise" in one.error_rate.sentence
    assert one.evaluations < 2_500, "no search was begun"
    assert one.statistics["loss_at_4e-05"] > 0


@pytest.mark.parametrize("settings", [{"norm_eps": "x"}, {"downsample_padding": -3}])
def test_a_network_that_does_not_run_is_an_error_that_names_its_configuration(untrained, tmp_path, settings):
    folder = shutil.copytree(untrained, tmp_path / "p")
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    one = audit_pipeline(folder, None)
    assert (one.verdict, one.exit_code) == ("error", 2)
    assert one.reason.startswith("unet/config.json makes a network that does not run (") == ("norm_eps" in settings)


def test_a_network_that_cannot_take_its_own_size_or_times_is_an_error(tmp_path):
    small = dict(in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4, add_attention=False)
    odd = UNet2DModel(
        sample_size=9, block_out_channels=(8, 8), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, **small,
    )  # fmt: skip
    short = UNet2DModel(
        sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        time_embedding_type="learned", num_train_timesteps=100, **small,
    )  # fmt: skip
    for name, unet, words in (("odd", odd, "images of 9×9"), ("short", short, "timesteps 0 and 999")):
        DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(tmp_path / name)
        one = audit_pipeline(tmp_path / name, None)
        assert (one.verdict, one.exit_code) == ("error", 2)
        assert words in one.reason
