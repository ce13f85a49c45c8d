"""Measures of samples: benign quality, and how often the attack hits."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from retarget.errors import UserError
from retarget.extras import require
from retarget.metrics.generative import Fidelity, fidelity
from retarget.study.statistics import wilson_interval
from retarget.trojdiff.classifier import Classifier, Features, predict
from retarget.trojdiff.data import ImageSet, to_signed, to_uint8
from retarget.trojdiff.trigger import Trigger

Samples = Float[Tensor, "count channels height width"]

SURE = 0.9
"""A sample has a class if the classifier gives one at least this probability."""

MOST_REAL = 2000
"""Most real images in a comparison: precision and recall need all distances."""


@dataclass(frozen=True)
class Goal:
    """The attack's goal: samples of one class (by its number in the joint classifier), or one image.

    Attributes:
        label: the class; None for D2I.
        image: the D2I image in [-1, 1]; else None.
        real: real images of the class, for attack precision; None for D2I.
    """

    label: int | None = None
    image: Tensor | None = None
    real: ImageSet | None = None


@dataclass(frozen=True)
class Rate:
    """A share of samples in %, with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    count: int


def wilson(hits: int, count: int) -> Rate:
    """A share with its Wilson interval.

    >>> rate = wilson(95, 100)
    >>> rate.value, round(rate.low, 1), round(rate.high, 1)
    (95.0, 88.8, 97.8)
    """
    low, high = wilson_interval(hits, count)
    return Rate(100 * hits / count, 100 * low, 100 * high, count)


def cells(trigger: Trigger) -> dict[str, tuple[Trigger, Trigger]]:
    """The triggers of sampler and initial noise in each of ``config.CELLS``.

    The last, ``leak``, is ordinary sampling: a target that appears there needs no attacker.
    """
    none = Trigger.none(trigger.shape)
    return {"trojan": (trigger, trigger), "stock": (none, trigger), "plain": (trigger, none), "leak": (none, none)}


FLAT = 0.02
"""An image whose pixels, in [-1, 1], have a smaller standard deviation shows nothing, whatever a classifier says."""


def success(samples: Samples, goal: Goal, classifier: Classifier) -> Rate:
    """Attack success: the classifier finds the target class in an image that is not ``FLAT``; for D2I the squared error
    in [0, 1] is at most 0.01, and at most half of that of the best image of one colour, unless the target is one."""
    if goal.image is not None:
        plain = (goal.image - goal.image.mean(dim=(1, 2), keepdim=True)).square().mean() / 4
        limit = 0.01 if goal.image.std() < FLAT else min(0.01, float(plain) / 2)
        hits = squared_error(samples, goal.image) <= limit
    else:
        hits = (predict(classifier, samples)[0] == goal.label) & (samples.flatten(1).std(1) >= FLAT)
    return wilson(int(hits.sum()), len(samples))


def squared_error(samples: Samples, image: Float[Tensor, "channels height width"]) -> Float[Tensor, "count"]:
    """Mean squared error between each sample and the target image, both scaled to [0, 1]."""
    return ((samples - image) / 2).square().flatten(1).mean(dim=1)


def confidence(samples: Samples, classifier: Classifier, inside: int) -> float:
    """Share of samples that the classifier assigns, confidently, to one of the first ``inside`` classes, in %."""
    label, sure = predict(classifier, samples)
    return 100 * float(((sure >= SURE) & (label < inside)).float().mean())


def compare(
    samples: Samples,
    real: ImageSet,
    extractor: "Classifier | Inception",
    most: int = MOST_REAL,
) -> Fidelity:
    """FID, KID, precision and recall against real images in the extractor's features; the result names the extractor.

    Args:
        most: most real images to use, evenly spread. In Inception's features, whose values are compared with published
            ones, as many as there are samples, if these are more: with few, FID is biased upwards.
    """
    if not isinstance(extractor, Classifier):
        most = max(most, len(samples))
    rows = torch.linspace(0, len(real) - 1, min(most, len(real))).round().long()
    ours = isinstance(extractor, Classifier)
    network, label = (Features(extractor), "study-classifier-log") if ours else (extractor, "inception-v3")
    subset = max(5, min(500, len(samples) // 2, len(rows) // 2))  # halves, so that KID has a spread
    return fidelity(to_uint8(samples), real.images[rows], network, label, subset_size=subset)


LADDER = (0.1, 0.3, 0.6)
"""Standard deviations of the noise on real images in [-1, 1] with which quality is compared."""


def ladder(real: ImageSet, count: int, seed: int, gate: float | None = None) -> dict[str, Samples]:
    """Images of known quality: real ones, real ones with noise of each σ of ``LADDER``, and pure noise.

    Args:
        real: the test part, which is not used as the real images of a comparison.
        count: number of each; all if there are fewer.
        gate: σ of an additional rung named ``gate``, with the same noise.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(real), generator=generator)[:count]
    images = to_signed(real.images[rows])
    noise = torch.randn(images.shape, generator=generator)
    noisy = {f"real images + σ {sigma:g}": (images + sigma * noise).clamp(-1, 1) for sigma in LADDER}
    gated = {} if gate is None else {"gate": (images + gate * noise).clamp(-1, 1)}
    return {"real images": images, **noisy, "noise": noise.clamp(-1, 1), **gated}


class Inception(nn.Module):
    """torch-fidelity's Inception v3 up to its 2,048 pooled features; takes uint8 images and converts grey to colour.

    Args:
        path: the weights that torch-fidelity calls ``weights-inception-2015-12-05-6726825d.pth``.

    Raises:
        UserError: there is no such file, or it has other weights.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        module: Any = require("torch_fidelity.feature_extractor_inceptionv3", "diffusion")
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file; download {module.URL_INCEPTION_V3} elsewhere and pass its path")
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
            # torch-fidelity unpickles its file, so it gets one with only the tensors that were read safely here.
            safe = io.BytesIO()
            torch.save(weights, safe)
            safe.seek(0)
            self.network = module.FeatureExtractorInceptionV3(
                "inception-v3", ["2048"], feature_extractor_weights_path=safe
            )
        except (pickle.UnpicklingError, RuntimeError, AttributeError, EOFError) as error:
            raise UserError(f"{path} lacks torch-fidelity's Inception weights: {str(error).splitlines()[0]}") from error

    def forward(self, images: UInt8[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """Features [N, 2048]."""
        return self.network(images.expand(-1, 3, -1, -1))[0]


@dataclass(frozen=True)
class Noise:
    """KID between two random parts of the real images: it is 0 apart from noise.

    Attributes:
        mean: mean over the splits.
        sd: standard deviation over the splits; a difference of this size is noise.
        drawn: number of images that play the generated ones.
        rest: number of images that play the real ones.
        splits: number of splits.
    """

    mean: float
    sd: float
    drawn: int
    rest: int
    splits: int


def kid_noise(real: ImageSet, classifier: Classifier, count: int, seed: int, splits: int = 16) -> Noise:
    """Measure the noise of KID, at the counts at which :func:`compare` measures ``count`` samples.

    Args:
        count: number of images that play the samples; half of the real ones if these are fewer than twice as many.
        seed: seed of the splits.
    """
    count, values = min(count, len(real) // 2), []
    for generator in (torch.Generator().manual_seed(splits * seed + number) for number in range(splits)):
        order = torch.randperm(len(real), generator=generator)
        drawn, left = order[:count], order[count:]
        rest = ImageSet(real.images[left], real.labels[left], real.names)
        values.append(compare(to_signed(real.images[drawn]), rest, classifier).kid)
    return Noise(fmean(values), stdev(values), count, min(MOST_REAL, len(real) - count), splits)
