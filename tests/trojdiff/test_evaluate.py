"""Measures of samples: torch-fidelity's Inception by path, never mixed with another extractor."""

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from retarget.errors import UserError
from retarget.trojdiff.classifier import train_classifier
from retarget.trojdiff.data import to_signed
from retarget.trojdiff.measures import Inception, compare


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


def test_what_is_not_inception(tmp_path):
    with pytest.raises(UserError, match=r"no\.pth: no such file; download https"):
        Inception(tmp_path / "no.pth")
    for number, content in enumerate(({"weight": torch.zeros(2)}, print)):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path)
        with pytest.raises(UserError, match=f"{number}.pth: not torch-fidelity's Inception weights"):
            Inception(path)
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match="not torch-fidelity"):
        Inception(tmp_path / "text.pth")
