"""FID, KID, precision and recall against slow float64 loops, on a registered extractor."""

import hashlib

import numpy as np
import pytest
import torch

from retarget.errors import UserError
from retarget.metrics.generative import extractor_name, fidelity


class Pixels(torch.nn.Module):
    """Four pixels as features."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, images):
        return images.flatten(1)[:, :4].float() * self.scale / 64


def images(seed, count=60, high=256):
    return torch.randint(0, high, (count, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def features(x):
    return x.flatten(1).numpy().astype(np.float64) / 64


def slow_fid(a, b):
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.clip(np.linalg.eigvals(cov_a @ cov_b).real, 0, None))
    gap = a.mean(0) - b.mean(0)
    return gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * roots.sum()


def slow_kid(a, b):
    """The unbiased estimate of the squared maximum mean discrepancy, cubic kernel."""

    def kernel(x, y):
        return (x @ y / len(x) + 1) ** 3

    n = len(a)
    within = sum(kernel(s[i], s[j]) for s in (a, b) for i in range(n) for j in range(n) if i != j)
    across = sum(kernel(x, y) for x in a for y in b)
    return within / (n * (n - 1)) - 2 * across / n**2


def slow_share_inside(points, balls, k=3):
    radii = [sorted(np.linalg.norm(balls - centre, axis=1))[k] for centre in balls]
    inside = [any(np.linalg.norm(p - c) <= r for c, r in zip(balls, radii, strict=True)) for p in points]
    return 100 * np.mean(inside)


def test_all_four_against_loops():
    a, b = images(0, high=200), images(1)
    found = fidelity(a, b, Pixels(), "pixels")
    assert found.fid == pytest.approx(slow_fid(features(a), features(b)), rel=1e-4)
    assert found.kid == pytest.approx(slow_kid(features(a), features(b)), rel=1e-3, abs=1e-4)
    assert found.precision == pytest.approx(slow_share_inside(features(a), features(b)), abs=0.01)
    assert found.recall == pytest.approx(slow_share_inside(features(b), features(a)), abs=0.01)
    assert found.extractor == extractor_name("pixels", Pixels())


def test_equal_images_are_at_no_distance():
    found = fidelity(images(0), images(0), Pixels(), "pixels")
    assert found.fid == pytest.approx(0, abs=1e-5)
    assert found.precision == found.recall == 100


def test_another_network_has_another_name_and_its_own_numbers():
    one, two = (fidelity(images(0, high=200), images(1), Pixels(scale), "pixels") for scale in (1.0, 2.0))
    assert one.extractor != two.extractor
    assert two.fid == pytest.approx(4 * one.fid, rel=1e-4)


def test_a_network_of_any_precision_has_a_name_and_those_of_float32_keep_theirs():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 2), torch.nn.BatchNorm2d(3))
    network.register_buffer("strided", torch.arange(4.0)[::2])
    network[0].weight.data = torch.arange(12.0).reshape(3, 1, 2, 2).transpose(2, 3)
    network[0].bias.data = torch.arange(3.0)
    names = {str(kind): extractor_name("net", network.to(kind)) for kind in (torch.float32, torch.bfloat16, torch.half)}
    digest = hashlib.sha256()
    for name, value in network.float().state_dict().items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    assert names["torch.float32"] == f"net-{digest.hexdigest()[:12]}" == "net-93ac94e8fd76"
    assert len(set(names.values())) == 3
    network[0].weight.data[0, 0, 0, 0] += 1
    assert extractor_name("net", network.bfloat16()) not in names.values()


class Random(torch.nn.Module):
    """Features of size 100, rounded to float16 and then given in a type."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.register_buffer("weight", 10 * torch.randn(4, 64, generator=torch.Generator().manual_seed(1)))

    def forward(self, images):
        return ((images.flatten(1).float() / 25) @ self.weight).half().to(self.kind)


def test_features_in_float16_give_the_values_of_the_same_features_in_float32():
    """In float16 KID would overflow, and distances would be too coarse for precision and recall."""
    one, two = (fidelity(images(0, high=200), images(1), Random(k), "random") for k in (torch.float32, torch.float16))
    assert two == one


def test_features_that_are_integers_do_not_overflow():
    class Bytes(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1)

    class Doubles(Bytes):
        def forward(self, images):
            return images.flatten(1).double()

    one, two = (fidelity(images(0, high=200), images(1), network, "bytes") for network in (Bytes(), Doubles()))
    assert two == one


class Shaped(torch.nn.Module):
    """Pixels in the shape that a function gives them."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, images):
        return self.shape(images.flatten(1).float() / 64)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (lambda x: x[:, :, None, None], r"\[60, D\] with D of at least 2, but returns \[60, 4, 1, 1\]: .*Flatten"),
        (lambda x: x[:, :1], r"but returns \[60, 1\]"),
        (lambda x: x[:, 0], r"but returns \[60\]"),
        (lambda x: x.reshape(-1, 2), r"but returns \[120, 2\]"),
        (lambda x: (x,), "but returns tuple"),
        (lambda x: x / (torch.arange(60)[:, None] != 7), r"not finite \(the first in image 7 of a batch of 60\)"),
        (lambda x: 1e30 * x, r"FID is .* and KID is .*: the features of odd-\w+ are too large"),
    ],
)
def test_features_of_another_shape_or_not_finite_are_refused(shape, message):
    with pytest.raises(UserError, match=message):
        fidelity(images(0), images(1), Shaped(shape), "odd")


def test_features_in_bfloat16_give_the_values_of_the_same_features_in_float32():
    class Halves(Pixels):
        def forward(self, images):
            return super().forward(images).to(self.scale.dtype)

    a, b = images(0, high=200) // 2 * 2, images(1) // 2 * 2  # even values up to 254 have no more than 8 bits
    one, two = (fidelity(a, b, Halves().to(kind), "pixels") for kind in (torch.float32, torch.bfloat16))
    assert one.extractor != two.extractor
    assert two.fid == pytest.approx(one.fid, rel=1e-6)


def test_too_few_images_and_other_shapes():
    with pytest.raises(UserError, match="4 generated"):
        fidelity(images(0, 4), images(1), Pixels())
    with pytest.raises(UserError, match="but real ones"):
        fidelity(images(0), torch.zeros(9, 3, 2, 2, dtype=torch.uint8), Pixels())


def test_the_extractor_is_a_copy_that_leaves_the_callers_network_alone():
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3, dtype=torch.float64))
    images = torch.randint(0, 256, (12, 3, 2, 2), dtype=torch.uint8)

    class Doubled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network

        def forward(self, x):
            return self.body(x.double())

    ours = Doubled().train()
    found = fidelity(images, images, ours, "copied")
    theirs = FEATURE_EXTRACTORS_REGISTRY[found.extractor](found.extractor, ["features"])
    assert ours.training
    assert theirs.network is not ours
    assert all(a is not b for a, b in zip(theirs.network.parameters(), ours.parameters(), strict=True))
