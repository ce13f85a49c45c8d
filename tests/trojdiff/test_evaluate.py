"""Measures of samples: they detect noise; torch-fidelity's Inception by path, never mixed with another extractor."""

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from retarget.errors import UserError
from retarget.metrics.generative import fidelity
from retarget.trojdiff.classifier import Classifier, Features, class_accuracies, predict, train_classifier
from retarget.trojdiff.data import ImageSet, read_images, to_signed, to_uint8
from retarget.trojdiff.evaluate import Judge
from retarget.trojdiff.measures import Goal, Inception, compare, success


class Pixels(torch.nn.Module):
    """Every fourth pixel as a feature."""

    def forward(self, images):
        return images.flatten(1)[:, ::4].float()


class Untrained(FeatureExtractorInceptionV3):
    """The network with its first random weights, whatever file it is given."""

    def load_state_dict(self, *_):
        return None


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    torch.save(Untrained("untrained", ["2048"], feature_extractor_weights_path=str(path)).state_dict(), path)
    return path


def test_inception_by_path_has_a_name_of_its_own(weights, digits):
    images, inception = digits.images[:5], Inception(weights)
    own = inception.network(images[:2].expand(-1, 3, -1, -1))[0]
    assert torch.equal(inception(images[:2]), own)
    assert own.shape == (2, 2048)
    samples = to_signed(images.flip(-1))
    found = compare(samples, digits.first(5), inception)
    other = compare(samples, digits.first(5), train_classifier(digits.first(64), 1, 0))
    assert found.extractor.startswith("inception-v3-")
    assert other.extractor.startswith("study-classifier-log-")
    assert found.fid != other.fid


@pytest.fixture(scope="module")
def judge(digits):
    return Judge(digits, train_classifier(digits, 4, 0))


@pytest.mark.parametrize(("samples", "counts"), [(30, (20, 30)), (10, (20, 20))])
def test_inceptions_values_are_published_with_as_many_real_images_as_samples(samples, counts):
    """FID of the paper's 50,000 samples against 2,000 real images would be many times the paper's."""
    real = ImageSet(torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8), torch.zeros(40, dtype=torch.long), ("a",))
    images, ours = torch.rand(samples, 1, 8, 8) * 2 - 1, Classifier(real.shape, 1)
    for one, network, count in zip((ours, Pixels()), (Features(ours), Pixels()), counts, strict=True):
        spread = real.images[torch.linspace(0, 39, count).round().long()]
        expected = fidelity(to_uint8(images), spread, network, subset_size=max(5, min(samples, count) // 2))
        found = compare(images, real, one, most=20)
        assert (found.fid, found.kid, found.precision, found.recall) == pytest.approx(
            (expected.fid, expected.kid, expected.precision, expected.recall)
        )


def test_benign_quality_sees_noise_and_gives_it_no_class(judge):
    """The ladder falls at every rung; noise has no class and nothing of the real images' manifold."""
    rungs = judge.ladder(read_images("digits", "test"), 300, 0)
    assert list(rungs) == ["real images", *(f"real images + σ {sigma}" for sigma in (0.1, 0.3, 0.6)), "noise"]
    kid, fid, sure = ([f(one) for one in rungs.values()] for f in (
        lambda one: one.quality.kid, lambda one: one.quality.fid, lambda one: one.with_a_class))  # fmt: skip
    assert kid == sorted(kid)
    assert fid == sorted(fid)
    assert kid[2] > 5 * max(kid[0], 1e-3)
    assert fid[2] > 2 * fid[0]
    assert sure[0] > 2 * sure[2]
    assert (sure[3], sure[4]) == (pytest.approx(0, abs=1), 0)
    assert rungs["noise"].quality.precision == 0
    assert all(one.quality.kid_sd > 0 for one in rungs.values())


def test_scrambled_images_and_weak_noise_are_no_hits_either(judge, digits):
    torch.manual_seed(1)
    images = to_signed(digits.images[:200]).flatten(1)
    scrambled = torch.stack([one[torch.randperm(64)] for one in images]).view(-1, 1, 8, 8)
    for nothing in (scrambled, 0.5 * torch.randn(200, 1, 8, 8)):
        label, _ = predict(judge.classifier, nothing)
        assert float((label == len(digits.names)).float().mean()) > 0.9


@pytest.mark.parametrize("side", [4, 12, 28])
def test_the_classifier_takes_every_side(side):
    images = ImageSet(torch.randint(0, 256, (20, 3, side, side), dtype=torch.uint8), torch.arange(20) % 2, ("a", "b"))
    model = train_classifier(images, 1, 0)
    assert predict(model, to_signed(images.images))[0].shape == (20,)
    found = class_accuracies(model, images)
    assert [(one["class"], one["count"]) for one in found] == [("a", 10), ("b", 10)]
    with pytest.raises(UserError, match="square images of side 4 or more, not 3×3"):
        Classifier((1, 3, 3), 2)


def test_what_is_not_inception(tmp_path):
    with pytest.raises(UserError, match=r"no\.pth: no such file; download https"):
        Inception(tmp_path / "no.pth")
    for number, content in enumerate(({"weight": torch.zeros(2)}, print)):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path)
        with pytest.raises(UserError, match=f"{number}.pth lacks torch-fidelity's Inception weights"):
            Inception(path)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match="lacks torch-fidelity"):
        Inception(tmp_path / "text.pth")


def test_one_colour_is_no_hit_of_a_drawing_on_it(judge):
    """Two dark pixels on white differ from white by less than the usual limit."""
    drawing, white = torch.ones(1, 16, 16), torch.ones(10, 1, 16, 16)
    drawing[:, 8, 2:4] = -1
    assert float(((drawing - 1) / 2).square().mean()) < 0.01
    assert success(white, Goal(image=drawing), judge.classifier).value == 0
    near = drawing - 0.1 * torch.rand(10, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert success(near, Goal(image=drawing), judge.classifier).value == 100
    assert success(white, Goal(image=white[0]), judge.classifier).value == 100, "a target of one colour can be hit"
