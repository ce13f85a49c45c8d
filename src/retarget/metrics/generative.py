"""FID, KID, precision and recall of generated images, by torch-fidelity, with any feature extractor.

Values from different extractors are not comparable, so every result has the extractor's name, which includes a hash of
its weights. torch-fidelity's registry uses this name as key, so two networks never share an entry.
"""

import copy
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.data import Dataset

from retarget.errors import UserError
from retarget.extras import require

INCEPTION = "inception-v3-compat"


@dataclass(frozen=True)
class Fidelity:
    """How close generated images are to real ones.

    Attributes:
        fid: Fréchet distance of the features; biased upwards, more so for fewer images.
        kid: kernel distance of the features, unbiased: 0 in expectation for equal distributions.
        kid_sd: standard deviation of KID over its random subsets; None if a subset contains all images of a side, so
            that the subsets are equal.
        precision: share of generated images inside the real images' manifold (Kynkäänniemi et al. 2019), in %.
        recall: share of real images inside the generated images' manifold, in %.
        extractor: name of the feature extractor; only compare values with the same name.
    """

    fid: float
    kid: float
    precision: float
    recall: float
    extractor: str
    kid_sd: float | None = None


def extractor_name(label: str, network: nn.Module) -> str:
    """``LABEL-HASH``, with a hash of the network's weights and buffers.

    Two networks with the same weights that compute something else with them have the same name.
    """
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().tobytes())  # as bytes: NumPy has no bfloat16
    return f"{label}-{digest.hexdigest()[:12]}"


def fidelity(
    generated: UInt8[Tensor, "generated channels height width"],
    real: UInt8[Tensor, "real real_channels real_height real_width"],
    network: nn.Module | None,
    label: str = "features",
    subsets: int = 20,
    subset_size: int = 500,
) -> Fidelity:
    """Compare generated with real images.

    Args:
        generated: images, 0 to 255.
        real: images, 0 to 255, of the same shape.
        network: maps uint8 images to features [N, D]; None uses torch-fidelity's Inception v3, whose weights must be
            in torch's cache (or reachable).
        label: name of the network, to which a hash of its weights is added.
        subsets: number of random subsets (drawn from a fixed seed) over which KID is averaged.
        subset_size: number of images in a KID subset; all images if there are fewer.

    Raises:
        UserError: there are fewer than five images on a side, their shapes differ, they are not uint8, there are no
            subsets, the network's features are not finite or not [N, D] with D ≥ 2, or they are so large that a
            distance is not finite.
    """
    for images, what in ((generated, "generated"), (real, "real")):
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
            raise UserError(f"the {what} images must be a uint8 tensor [N, C, H, W] with values from 0 to 255")
    if subsets < 1 or subset_size < 2:
        raise UserError(f"KID needs at least 1 subset of at least 2 images, not {subsets} of {subset_size}")
    if min(len(generated), len(real)) < 5:
        raise UserError(f"{len(generated)} generated and {len(real)} real images: at least 5 of each are needed")
    if generated.shape[1:] != real.shape[1:]:
        raise UserError(f"generated images are {list(generated.shape[1:])} but real ones {list(real.shape[1:])}")
    torch_fidelity: Any = require("torch_fidelity", "diffusion")
    if network is None:
        name = INCEPTION
        generated, real = (x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x for x in (generated, real))
    else:
        name = _register(extractor_name(label, network), network)
    fewest = min(len(generated), len(real))
    found = torch_fidelity.calculate_metrics(
        input1=_Images(generated), input2=_Images(real), feature_extractor=name, fid=True, kid=True, prc=True,
        kid_subsets=subsets, kid_subset_size=min(subset_size, fewest), rng_seed=2020,
        cache=False, cuda=torch.cuda.is_available(), verbose=False, save_cpu_ram=True, batch_size=256,
    )  # fmt: skip
    fid, kid = (float(found[distance]) for distance in ("frechet_inception_distance", "kernel_inception_distance_mean"))
    if not (math.isfinite(fid) and math.isfinite(kid)):
        raise UserError(
            f"FID is {fid} and KID is {kid}: the features of {name} are too large; let the network divide them by a "
            "constant"
        )
    return Fidelity(
        fid=fid,
        kid=kid,
        precision=100 * float(found["precision"]),
        recall=100 * float(found["recall"]),
        extractor=name,
        kid_sd=float(found["kernel_inception_distance_std"]) if subset_size < fewest else None,
    )


class _Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def _register(name: str, network: nn.Module) -> str:
    """Register the network with torch-fidelity under its name, in place of an earlier one of this name.

    Equal names have equal weights, and not always equal features: another layer of the same network, say.
    """
    registry: Any = require("torch_fidelity.registry", "diffusion")
    base: Any = require("torch_fidelity.feature_extractor_base", "diffusion")
    registry.FEATURE_EXTRACTORS_REGISTRY.pop(name, None)
    # A copy: torch-fidelity moves it to the GPU, and the caller may change the original's weights later.
    ours = copy.deepcopy(network).eval()

    class Extractor(base.FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
            super().__init__(name, features_list)
            self.network = ours

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @torch.no_grad()
        def forward(self, input: Tensor) -> tuple[Tensor, ...]:
            return (_checked_features(self.network(input), len(input), name),)

    registry.register_feature_extractor(name, Extractor)
    return name


def _checked_features(found: Any, count: int, name: str) -> Float[Tensor, "images features"]:
    """A batch's features in float32 or float64: torch-fidelity computes KID, precision and recall in their own type."""
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != count or found.shape[1] < 2:
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(
            f"the network {name} must map {count} images to features [{count}, D] with D of at least 2, but returns "
            f"{got}: wrap it in a module that returns one flat vector per image, as torch.nn.Flatten makes one of "
            "[N, D, 1, 1]"
        )
    if not bool(torch.isfinite(found).all()):
        row = int((~torch.isfinite(found)).any(1).nonzero()[0])
        raise UserError(
            f"the network {name} gives features that are not finite (the first in image {row} of a batch of {count}): "
            "its weights are damaged, or its precision is too low for them: run it in float32"
        )
    if not found.is_floating_point():
        return found.double()  # integers would overflow
    return found if found.dtype.itemsize >= 4 else found.float()
