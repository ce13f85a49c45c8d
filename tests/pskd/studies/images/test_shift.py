"""Corruptions against the published formulas written as loops, images of no class, and what is scored on them."""

import colorsys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from retarget.errors import UserError
from retarget.pskd.studies.images import shift
from retarget.pskd.studies.images.data import Images
from retarget.pskd.studies.images.peers_plan import PeerSettings
from retarget.pskd.studies.images.settings import PRESETS

SEVERITIES = range(1, 6)


def pixels(channels=3, count=6, size=8):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, size=(count, channels, size, size), dtype=np.uint8))


def stored(values):
    """Values in [0, 1] as the benchmark stores them."""
    return np.clip(np.asarray(values) * 255, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_and_brightness_equal_loops(severity):
    images = pixels()
    factor = [0.75, 0.5, 0.4, 0.3, 0.15][severity - 1]
    added = [0.05, 0.1, 0.15, 0.2, 0.3][severity - 1]
    flat, bright = shift.corrupt(images, "contrast", severity, 0), shift.corrupt(images, "brightness", severity, 0)
    for i, image in enumerate(images.numpy() / 255.0):
        for c, channel in enumerate(image):
            mean = channel.mean()
            expected = stored([[(v - mean) * factor + mean for v in row] for row in channel])
            assert np.abs(flat[i, c].numpy().astype(int) - expected).max() <= 1
        for row in range(8):
            for column in range(8):
                hue, saturation, value = colorsys.rgb_to_hsv(*image[:, row, column])
                expected = stored(colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + added)))
                assert np.abs(bright[i, :, row, column].numpy().astype(int) - expected).max() <= 1


def test_brightness_of_black_is_grey():
    black = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    assert (shift.corrupt(black, "brightness", 3, 0) == int(0.15 * 255)).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_its_deviation_and_blur_its_kernel(severity):
    grey = torch.full((40, 1, 16, 16), 128, dtype=torch.uint8)
    sigma = [0.04, 0.06, 0.08, 0.09, 0.10][severity - 1]
    noisy = shift.corrupt(grey, "gaussian_noise", severity, 0).double() / 255
    assert noisy.std().item() == pytest.approx(sigma, rel=0.05)
    width = [0.4, 0.6, 0.7, 0.8, 1.0][severity - 1]
    point = torch.zeros(1, 1, 17, 17, dtype=torch.uint8)
    point[0, 0, 8, 8] = 255
    blurred = shift.corrupt(point, "gaussian_blur", severity, 0)[0, 0].numpy()
    reach = int(4 * width + 0.5)
    weights = [np.exp(-(d**2) / (2 * width**2)) for d in range(-reach, reach + 1)]
    kernel = np.zeros(17)
    kernel[8 - reach : 9 + reach] = np.array(weights) / sum(weights)
    assert np.abs(blurred.astype(int) - stored(np.outer(kernel, kernel))).max() <= 1


@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_other_noises_have_their_moments(severity):
    grey = torch.full((40, 1, 16, 16), 128, dtype=torch.uint8)
    x = 128 / 255
    shot, speckle, impulse = (
        shift.corrupt(grey, kind, severity, 0).double() / 255
        for kind in ("shot_noise", "speckle_noise", "impulse_noise")
    )
    assert shot.std().item() == pytest.approx((x / [500, 250, 100, 75, 50][severity - 1]) ** 0.5, rel=0.05)
    assert speckle.std().item() == pytest.approx(x * [0.06, 0.1, 0.12, 0.16, 0.2][severity - 1], rel=0.05)
    share = [0.01, 0.02, 0.03, 0.05, 0.07][severity - 1]
    assert (impulse == 1).double().mean().item() == pytest.approx(share / 2, rel=0.4)
    assert (impulse == 0).double().mean().item() == pytest.approx(share / 2, rel=0.4)
    assert ((impulse == 0) | (impulse == 1) | (impulse == x)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_pixelating_averages_over_boxes(channels):
    images = pixels(channels, size=20)
    found = shift.corrupt(images, "pixelate", 5, 0)  # 20 pixels to 13 and back
    assert found.shape == images.shape
    first, second = images[0, 0, 0].double(), images[0, 0, 1].double()
    reach = 20 / 13  # the first small pixel covers one pixel and 7/13 of the next, both ways
    row = [(one[0] + (reach - 1) * one[1]) / reach for one in (first, second)]
    assert found[0, 0, 0, 0].item() == pytest.approx((row[0] + (reach - 1) * row[1]).item() / reach, abs=2)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_a_round_trip_through_the_library(channels):
    images = pixels(channels)
    found = shift.corrupt(images, "jpeg", 3, 0)
    for image, after in zip(images.numpy(), found.numpy(), strict=True):
        array = image[0] if channels == 1 else image.transpose(1, 2, 0)
        file = BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=58)
        expected = np.asarray(Image.open(file)).reshape(8, 8, channels).transpose(2, 0, 1)
        assert np.abs(after.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", shift.CORRUPTIONS)
def test_corruptions_are_a_function_of_their_arguments_and_grow(kind):
    images = pixels(1, 20) // 2 + 40
    found = [shift.corrupt(images, kind, severity, 3) for severity in SEVERITIES]
    assert torch.equal(found[2], shift.corrupt(images, kind, 3, 3))
    apart = [(image.double() - images.double()).abs().mean().item() for image in found]
    assert apart == sorted(apart)
    assert apart[0] > 0


def test_what_is_no_corruption_is_refused():
    with pytest.raises(UserError, match="no corruption 'fog' of severity 3"):
        shift.corrupt(pixels(), "fog", 3, 0)
    with pytest.raises(UserError, match="no corruption 'jpeg' of severity 6"):
        shift.corrupt(pixels(), "jpeg", 6, 0)


def test_scrambled_images_keep_their_spectrum():
    images = torch.full((4, 1, 8, 8), 128, dtype=torch.uint8)
    images[:, :, :4] += torch.randint(0, 8, (4, 1, 4, 8), generator=torch.Generator().manual_seed(0)).byte()
    found = shift.scramble_phases(images, 0)
    assert not torch.equal(found, images)
    before, after = (np.abs(np.fft.fft2(one.numpy() / 255.0)) for one in (images, found))
    np.testing.assert_allclose(after, before, atol=64 / 255)  # each pixel is stored to within 1 / 255
    assert found.double().mean().item() == pytest.approx(images.double().mean().item(), abs=1)


def plan(**more):
    own = {"shift": {"kinds": ["contrast"], "severity": 2, "images": 5, **more}, "data_seed": 1}
    return PeerSettings.model_validate({**PRESETS["demo"], **own})


def test_shifted_images_are_a_fixed_part_of_the_test_set():
    test = Images(pixels(1, 12), torch.arange(12) % 3, 3)
    index, found = shift.shifted_images(test, plan())
    again, _ = shift.shifted_images(test, plan())
    assert index.tolist() == sorted(set(index.tolist())) == again.tolist()
    assert {name: tuple(images.shape) for name, images in found.items()} == dict.fromkeys(
        ("contrast", "ood"), (5, 1, 8, 8)
    )
    assert set(shift.shifted_images(test, plan(ood=""))[1]) == {"contrast"}
    _, digits = shift.shifted_images(test, plan(ood="digits"))
    assert digits["ood"].shape == (5, 1, 8, 8)
    with pytest.raises(UserError, match=r"shift\.ood = 'digits' has images \[1, 8, 8\], but the test set has"):
        shift.shifted_images(Images(pixels(3, 12), torch.arange(12) % 3, 3), plan(ood="digits"))


def test_scores_under_shift_equal_loops():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, 40)
    arrays = {
        "test_labels": labels, "val_labels": labels, "val_logits": 4 * rng.normal(size=(40, 3)),
        "test_logits": 4 * rng.normal(size=(40, 3)), "shift_index": np.arange(0, 40, 2),
        "shift_logits_a": rng.normal(size=(20, 3)), "shift_logits_b": rng.normal(size=(20, 3)),
        "shift_logits_ood": rng.normal(size=(15, 3)),
    }  # fmt: skip
    found = shift.shift_scores(arrays)

    def probs(z):
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    own = labels[::2]
    kinds = [probs(arrays["shift_logits_a"]), probs(arrays["shift_logits_b"])]
    assert found["corrupt_top1"] == pytest.approx(100 * np.mean([(p.argmax(1) == own).mean() for p in kinds]))
    nll = [-np.log(p[range(20), own]).mean() for p in kinds]
    assert found["corrupt_nll"] == pytest.approx(np.mean(nll))
    known, strange = probs(arrays["test_logits"]).max(1), probs(arrays["shift_logits_ood"]).max(1)
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in known for b in strange)
    assert found["ood_auroc"] == pytest.approx(100 * wins / (40 * 15))
    alone = shift.kind_scores(arrays, 1.0)
    assert [alone[kind]["corrupt_nll"] for kind in "ab"] == pytest.approx(nll)
    assert alone["a"]["corrupt_ece_scaled"] == alone["a"]["corrupt_ece"], "a temperature of 1 changes nothing"
    assert found["corrupt_nll_scaled"] != pytest.approx(found["corrupt_nll"]), "the temperature is not 1 here"
