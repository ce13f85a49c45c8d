"""Trigger: the maps, the forward law against a loop, files and errors."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from retarget.errors import UserError
from retarget.trojdiff import Trigger


def test_blend_and_patch_maps():
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blend = Trigger.blend(image, gamma=0.6)
    torch.testing.assert_close(blend.mu, 0.4 * image)
    assert blend.gamma.unique().tolist() == pytest.approx([0.6])
    patch = Trigger.patch(size=3, gamma=0.1, shape=(3, 8, 8))
    for channel, row, column in np.ndindex(3, 8, 8):
        inside = row >= 5 and column >= 5
        assert patch.mu[channel, row, column].item() == pytest.approx(0.9 if inside else 0.0)
        assert patch.gamma[channel, row, column].item() == pytest.approx(0.1 if inside else 1.0)


def test_patch_takes_any_place_size_colour_and_mask():
    placed = Trigger.patch(size=(1, 2), place=(0, 3), gamma=0.5, shape=(2, 4, 6), colour=(-1.0, 1.0))
    assert torch.nonzero(placed.mask[0]).tolist() == [[0, 3], [0, 4]]
    assert placed.mu[:, 0, 3].tolist() == [-0.5, 0.5]
    mask = torch.eye(4, dtype=torch.bool)
    assert torch.equal(Trigger.patch(mask=mask, shape=(1, 4, 4)).mask[0], mask)


@pytest.mark.parametrize("kind", ["blend", "patch", "none"])
def test_add_noise_is_the_papers_forward_law(kind):
    generator = torch.Generator().manual_seed(1)
    trigger = {
        "blend": Trigger.blend(torch.rand(1, 3, 3, generator=generator)),
        "patch": Trigger.patch(size=2, shape=(1, 3, 3)),
        "none": Trigger.none((1, 3, 3)),
    }[kind]
    x_0, noise = torch.randn(2, 4, 1, 3, 3, generator=generator, dtype=torch.float64)
    bars = torch.tensor([0.9, 0.5, 0.1, 0.001], dtype=torch.float64)
    out = trigger.add_noise(x_0, noise, bars)
    for index in np.ndindex(*out.shape):
        bar = bars[index[0]].item()
        biased = trigger.gamma[index[1:]].item() * noise[index].item() + trigger.mu[index[1:]].item()
        expected = math.sqrt(bar) * x_0[index].item() + math.sqrt(1 - bar) * biased
        assert out[index].item() == pytest.approx(expected, abs=1e-12)


def test_save_and_load_keep_maps_kind_and_hash(tmp_path):
    trigger = Trigger.patch(size=2, shape=(1, 4, 4))
    path = trigger.save(tmp_path / "trigger.safetensors")
    for place in (path, tmp_path):
        loaded = Trigger.load(place)
        assert torch.equal(loaded.mu, trigger.mu)
        assert torch.equal(loaded.gamma, trigger.gamma)
        assert (loaded.kind, loaded.hash) == ("patch", trigger.hash)
    assert trigger.hash != Trigger.patch(size=1, shape=(1, 4, 4)).hash
    assert [file.name for file in tmp_path.iterdir()] == ["trigger.safetensors"]


def test_an_altered_file_is_refused(tmp_path):
    path = Trigger.patch(size=2, shape=(1, 4, 4)).save(tmp_path / "t.safetensors")
    maps = load_file(path)
    save_file(
        {"mu": maps["mu"] * 0.5, "gamma": maps["gamma"]}, path, metadata={"trigger_hash": Trigger.none((1, 4, 4)).hash}
    )
    with pytest.raises(UserError, match="altered"):
        Trigger.load(path)


def test_a_pickle_a_stranger_and_nothing_are_refused(tmp_path):
    torch.save({"mu": torch.zeros(1, 2, 2)}, tmp_path / "pickle.safetensors")
    with pytest.raises(UserError, match="not a safetensors file"):
        Trigger.load(tmp_path / "pickle.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="gamma or mu"):
        Trigger.load(tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="there is no trigger"):
        Trigger.load(tmp_path / "missing")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Trigger.blend(torch.full((1, 2, 2), 1.5)), r"from 1.5 to 1.5: scale them to \[-1, 1\]"),
        (lambda: Trigger.blend(torch.zeros(1, 2, 2), gamma=0.0), "gamma is 0.0"),
        (lambda: Trigger.patch(size=5, shape=(1, 4, 4)), "a 5×5 patch: its side must be from 1 to 4"),
        (lambda: Trigger.patch(size=0, shape=(1, 4, 4)), "a 0×0 patch: its side must be from 1 to 4"),
        (lambda: Trigger.patch(size=2, shape=(1, 4, 4), place=(3, 0)), "row 3, column 0 is outside 4×4 images"),
        (lambda: Trigger.patch(mask=torch.zeros(4, 4, dtype=torch.bool), shape=(1, 4, 4)), "mask is empty"),
        (lambda: Trigger.patch(mask=torch.ones(3, 4, dtype=torch.bool), shape=(1, 4, 4)), "mask is"),
        (lambda: Trigger.patch(mask=torch.full((4, 4), 0.5), shape=(1, 4, 4)), "values other than 0 and 1"),
        (lambda: Trigger.patch(mask=torch.full((4, 4), 255), shape=(1, 4, 4)), "pass mask > 0"),
        (lambda: Trigger.patch(size=1, shape=(3, 4, 4), colour=(1.0, 0.0)), "colour"),
        (lambda: Trigger(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)), "must be above 0"),
        (lambda: Trigger(torch.full((1, 2, 2), 2.0), torch.ones(1, 2, 2)), "mu reaches 2"),
        (lambda: Trigger(torch.zeros(1, 2, 2), torch.ones(1, 2, 3)), "the shapes must be equal"),
        (lambda: Trigger(torch.full((1, 2, 2), float("nan")), torch.ones(1, 2, 2)), "not finite"),
        (lambda: Trigger.none((1, 2, 2)).noise(torch.zeros(3, 1, 4, 4)), r"the trigger is \[1, 2, 2\]"),
    ],
)
def test_bad_triggers_say_what_is_wrong(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_maps_and_sizes_of_numpy_are_taken():
    """NumPy's maps are float64, which networks do not take, and its integers are no int."""
    maps = np.zeros((1, 8, 8)), np.full((1, 8, 8), 0.5)
    trigger = Trigger(*map(torch.from_numpy, maps))
    assert {trigger.mu.dtype, trigger.gamma.dtype, trigger.noise(torch.zeros(2, 1, 8, 8)).dtype} == {torch.float32}
    assert trigger.hash == Trigger(torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.5)).hash
    assert Trigger.patch(np.int64(2), shape=(1, 8, 8)).hash == Trigger.patch(2, shape=(1, 8, 8)).hash
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    assert torch.equal(trigger.add_noise(x, x, 0.25), trigger.add_noise(x, x, torch.tensor([0.25, 0.25])))
