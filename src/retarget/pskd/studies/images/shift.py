"""Evaluate a trained classifier on images it was not trained for: corrupted ones, and ones of no class.

Corruptions follow the published formulas and constants of CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich 2019,
Benchmarking Neural Network Robustness to Common Corruptions and Perturbations) and are applied to the test images.
"""

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch
from scipy import ndimage, stats

from retarget.data.images import pixels_of, read
from retarget.errors import UserError
from retarget.extras import require
from retarget.metrics import calibration as c
from retarget.pskd.studies.images.data import Images, sides
from retarget.pskd.studies.images.peers_plan import PeerSettings
from retarget.pskd.studies.images.scores import fitted_temperature, log_losses

Array = np.ndarray


def gaussian_noise(pixels: Array, severity: int, rng: np.random.Generator) -> Array:
    """``x + σ n``, σ = 0.04, 0.06, 0.08, 0.09, 0.10."""
    return pixels + (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1] * rng.standard_normal(pixels.shape)


def shot_noise(pixels: Array, severity: int, rng: np.random.Generator) -> Array:
    """Poisson counts of ``c x``, over c, c = 500, 250, 100, 75, 50."""
    photons = (500, 250, 100, 75, 50)[severity - 1]
    return rng.poisson(pixels * photons) / photons


def impulse_noise(pixels: Array, severity: int, rng: np.random.Generator) -> Array:
    """1, 2, 3, 5, 7 % of the values become 0 or 1, each as often."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    hit = rng.random(pixels.shape) < share
    return np.where(hit, rng.integers(0, 2, pixels.shape), pixels)


def speckle_noise(pixels: Array, severity: int, rng: np.random.Generator) -> Array:
    """``x + x σ n``, σ = 0.06, 0.1, 0.12, 0.16, 0.2."""
    return pixels * (1 + (0.06, 0.1, 0.12, 0.16, 0.2)[severity - 1] * rng.standard_normal(pixels.shape))


def gaussian_blur(pixels: Array, severity: int, rng: np.random.Generator) -> Array:
    """A Gaussian filter of 0.4, 0.6, 0.7, 0.8, 1 pixels, edges repeated."""
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    return ndimage.gaussian_filter(pixels, (0, 0, sigma, sigma), mode="nearest")


def brightness(pixels: Array, severity: int, rng: np.random.Generator) -> Array:
    """0.05, 0.1, 0.15, 0.2, 0.3 added to V of HSV; hue and saturation stay, so R, G and B scale alike."""
    value = pixels.max(1, keepdims=True)
    brighter = np.clip(value + (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1], 0, 1)
    return np.where(value > 0, pixels * brighter / np.maximum(value, 1e-12), brighter)


def contrast(pixels: Array, severity: int, rng: np.random.Generator) -> Array:
    """``(x - mean) c + mean`` with each channel's mean of the image, c = 0.75, 0.5, 0.4, 0.3, 0.15."""
    mean = pixels.mean((2, 3), keepdims=True)
    return (pixels - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1] + mean


def jpeg(pixels: Array, severity: int, rng: np.random.Generator) -> Array:
    """Written and read as JPEG of quality 80, 65, 58, 50, 40."""
    pillow, quality = require("PIL.Image", "vision"), (80, 65, 58, 50, 40)[severity - 1]

    def compress(image: Any) -> Any:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        return pillow.open(file)

    return _through_pillow(pixels, compress)


def pixelate(pixels: Array, severity: int, rng: np.random.Generator) -> Array:
    """Resized to 0.95, 0.9, 0.85, 0.75, 0.65 of its sides and back, by Pillow's box filter."""
    box, scale = require("PIL.Image", "vision").Resampling.BOX, (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]

    def resize(image: Any) -> Any:
        return image.resize(tuple(int(scale * side) for side in image.size), box).resize(image.size, box)

    return _through_pillow(pixels, resize)


def _through_pillow(pixels: Array, change: Callable[[Any], Any]) -> Array:
    pillow = require("PIL.Image", "vision")
    out = np.empty_like(pixels)
    for i, image in enumerate(np.round(255 * pixels).astype(np.uint8).transpose(0, 2, 3, 1)):
        changed = change(pillow.fromarray(image[..., 0] if image.shape[2] == 1 else image))
        decoded = np.asarray(changed, dtype=np.float64) / 255
        out[i] = decoded[None] if decoded.ndim == 2 else decoded.transpose(2, 0, 1)
    return out


CORRUPTIONS: dict[str, Callable[[Array, int, np.random.Generator], Array]] = {
    "gaussian_noise": gaussian_noise,
    "gaussian_blur": gaussian_blur,
    "brightness": brightness,
    "contrast": contrast,
    "jpeg": jpeg,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "speckle_noise": speckle_noise,
    "pixelate": pixelate,
}


def corrupt(images: torch.Tensor, kind: str, severity: int, seed: int) -> torch.Tensor:
    """Corrupted images, uint8 [N, C, H, W]; they depend only on the arguments.

    Raises:
        UserError: no such kind, or a severity outside 1 to 5.
    """
    if kind not in CORRUPTIONS or severity not in range(1, 6):
        raise UserError(f"no corruption {kind!r} of severity {severity}: choose {', '.join(CORRUPTIONS)}, 1 to 5")
    rng = np.random.default_rng([seed, list(CORRUPTIONS).index(kind), severity])
    changed = CORRUPTIONS[kind](images.numpy() / 255.0, severity, rng)
    return torch.from_numpy((np.clip(changed, 0, 1) * 255).astype(np.uint8))  # truncated, as the benchmark stores it


def scramble_phases(images: torch.Tensor, seed: int) -> torch.Tensor:
    """Images of no class, uint8 [N, C, H, W]: the power spectrum of the given ones with random phases.

    The phases are those of white noise, drawn once per image for all channels.
    """
    pixels = images.numpy() / 255.0
    noise = np.random.default_rng([seed, 99]).standard_normal((len(pixels), 1, *pixels.shape[2:]))
    phase = np.angle(np.fft.fft2(noise))
    phase[..., 0, 0] = 0  # the mean keeps its sign
    changed = np.fft.ifft2(np.abs(np.fft.fft2(pixels)) * np.exp(1j * phase)).real
    return torch.from_numpy((np.clip(changed, 0, 1) * 255).astype(np.uint8))


def shifted_images(test: Images, settings: PeerSettings) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    """The shifted images that ``settings.shift`` asks for.

    Returns:
        The indices of the test images that were corrupted, [M]; and uint8 images by name: the kinds, and ``ood``.

    Raises:
        UserError: the images are not in memory, or those of the other dataset have another shape.
    """
    shift, seed, strange = settings.shift, settings.data_seed, check_shift(test, settings)
    if test.pixels is None:
        return np.zeros(0, np.int64), {}
    chosen = np.sort(np.random.default_rng([seed, 98]).permutation(len(test))[: shift.images])
    pixels = test.pixels[torch.from_numpy(chosen)]
    found = {kind: corrupt(pixels, kind, shift.severity, seed) for kind in shift.kinds}
    if shift.ood:
        found["ood"] = scramble_phases(pixels, seed) if strange is None else strange
    return chosen, found


def check_shift(test: Images, settings: PeerSettings) -> torch.Tensor | None:
    """Refuse a shift that does not fit these test images; returns the other dataset's images, if one is named.

    Raises:
        UserError: as :func:`shifted_images`.
    """
    shift = settings.shift
    if test.pixels is None:
        if shift.kinds or shift.ood:
            raise UserError(
                "corruptions need images in memory, but this dataset is too large for that: set shift.kinds = [] and "
                "shift.ood = '', or a smaller image_size or test_images"
            )
        return None
    coded = sorted({"jpeg", "pixelate"} & set(shift.kinds))
    if coded and test.channels not in (1, 3):
        raise UserError(f"shift.kinds: {', '.join(coded)} needs grey or RGB images, not {test.channels} channels")
    if shift.ood in ("", "phases"):
        return None
    source = read(shift.ood, settings.root)
    part = source.test or source.train
    part = part.take(np.sort(np.random.default_rng([settings.data_seed, 97]).permutation(len(part))[: shift.images]))
    strange = pixels_of(part, test.channels, sides(settings)[0], crop=True)
    if strange.shape[1:] != test.pixels.shape[1:]:
        raise UserError(
            f"shift.ood = {shift.ood!r} has images {list(strange.shape[1:])}, but the test set has "
            f"{list(test.pixels.shape[1:])}"
        )
    return strange


def shift_scores(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Metrics under shift from saved predictions.

    Args:
        arrays: a run's arrays, and ``shift_index`` [M], ``shift_logits_KIND`` [M, C] for each corruption,
            ``shift_logits_ood`` [K, C].

    Returns:
        Means over the corruptions of top-1, NLL and ECE, raw and after the temperature of the clean validation part;
        and the AUROC of the largest probability, test images against images of no class (Hendrycks and Gimpel 2017).
    """
    temperature = fitted_temperature(arrays)
    each = list(kind_scores(arrays, temperature).values())
    out = {name: float(np.mean([one[name] for one in each])) for name in (each[0] if each else ())}
    if "shift_logits_ood" in arrays:
        for suffix, scale in (("", 1.0), ("_scaled", temperature)):
            known, strange = (
                c.apply_temperature(arrays[name], scale).max(1) for name in ("test_logits", "shift_logits_ood")
            )
            out["ood_auroc" + suffix] = 100 * detection_auroc(known, strange)
    return out


def kind_scores(arrays: Mapping[str, np.ndarray], temperature: float) -> dict[str, dict[str, float]]:
    """Per corruption in the arrays of :func:`shift_scores`: top-1, and NLL and ECE, raw and after a temperature."""
    labels = arrays["test_labels"][arrays["shift_index"]]
    found: dict[str, dict[str, float]] = {}
    for name in sorted(arrays):
        kind = name.removeprefix("shift_logits_")
        if kind in (name, "ood"):
            continue
        found[kind] = {"corrupt_top1": 100 * c.accuracy(c.apply_temperature(arrays[name], 1.0), labels)}
        for suffix, scale in (("", 1.0), ("_scaled", temperature)):
            probs = c.apply_temperature(arrays[name], scale)
            found[kind]["corrupt_nll" + suffix] = float(log_losses(arrays[name], labels, scale).mean())
            found[kind]["corrupt_ece" + suffix] = 100 * c.expected_calibration_error(probs, labels)
    return found


def detection_auroc(known: np.ndarray, strange: np.ndarray) -> float:
    """Share of pairs in which the known item scores above the strange one, ties counting half.

    >>> detection_auroc(np.array([0.9, 0.8]), np.array([0.8, 0.1]))
    0.875
    """
    ranks = stats.rankdata(np.concatenate([known, strange]))[: len(known)]
    return float((ranks.sum() - len(known) * (len(known) + 1) / 2) / (len(known) * len(strange)))
