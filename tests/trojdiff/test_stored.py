"""What a run wrote before and something damaged: one clear error that names the file and the remedy."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from retarget.errors import UserError
from retarget.trojdiff import Trigger
from retarget.trojdiff.config import TrainConfig
from retarget.trojdiff.sample import Sampler, sample
from retarget.trojdiff.train import train

CONFIG = TrainConfig(steps=4, batch_size=8, save_every=2, log_every=1)


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path):
    path.write_bytes(b"q" * 300)


def flipped(path):
    """One bit of the last value: well-formed, and another number."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def other(path):
    save_file({"a": torch.zeros(1)}, path)


def reshaped(path):
    save_file({name: torch.zeros(1) for name in load_file(path)}, path)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return tmp_path_factory.mktemp("begun")


TENSORS = (half, garbage, flipped, other, reshaped, lambda path: path.unlink())
DAMAGES = [(name, damage) for name in ("model.safetensors", "ema.safetensors") for damage in TENSORS]
DAMAGES += [("optimizer.pt", damage) for damage in (half, garbage, flipped, lambda path: path.unlink())]
DAMAGES += [("loop.json", damage) for damage in (half, garbage)]
DAMAGES += [("loop.json", lambda path, text=text: path.write_text(text)) for text in ("[1]", "{}", '{"step": "x"}')]
DAMAGES += [("../training.json", lambda path: path.write_text("[1]"))]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_state_is_one_clear_error(tmp_path, begun, make_unet, scheduler, digits, name, damage):
    if not (begun / "state-00000002").exists():
        train(make_unet(), scheduler, digits, CONFIG, begun)
        shutil.rmtree(begun / "pipeline")
    shutil.copytree(begun, tmp_path / "run")
    damage(tmp_path / "run" / "state-00000002" / name)
    with pytest.raises(UserError, match=name.removeprefix("../")) as found:
        train(make_unet(), scheduler, digits, CONFIG, tmp_path / "run")
    assert "elete " in str(found.value)
    assert not (tmp_path / "run" / "pipeline").exists()


def misshapen(path):
    save_file({"images": torch.zeros(4, 3, 8, 8)}, path)


def nan(path):
    save_file({"images": torch.full((4, 1, 8, 8), float("nan"))}, path)


@pytest.mark.parametrize("damage", [half, garbage, flipped, other, misshapen, nan])
def test_a_damaged_batch_is_one_clear_error(tmp_path, unet, scheduler, damage):
    trigger = Trigger.patch(2, shape=(1, 8, 8))
    arguments = dict(config=scheduler.config, sampler=Sampler.parse("ddim-2"), trigger=trigger, batch_size=4)
    whole = sample(unet, count=4, out=tmp_path, **arguments)
    path = tmp_path / "batch-00000.safetensors"
    damage(path)
    with pytest.raises(UserError, match=r"batch-00000\.safetensors (is damaged|does not fit).*Delete it and run"):
        sample(unet, count=4, out=tmp_path, **arguments)
    path.unlink()
    assert torch.equal(sample(unet, count=4, out=tmp_path, **arguments), whole)


def test_batches_of_earlier_versions_have_no_checksum_and_are_read(tmp_path, unet, scheduler):
    trigger = Trigger.patch(2, shape=(1, 8, 8))
    arguments = dict(config=scheduler.config, sampler=Sampler.parse("ddim-2"), trigger=trigger, batch_size=4)
    sample(unet, count=4, out=tmp_path, **arguments)
    save_file({"images": torch.full((4, 1, 8, 8), 0.5)}, tmp_path / "batch-00000.safetensors")
    assert float(sample(unet, count=4, out=tmp_path, **arguments).mean()) == 0.5


def test_a_record_that_is_none_is_named(tmp_path, unet, scheduler):
    (tmp_path / "sampling.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match=r"sampling\.json is damaged: it is not a record"):
        sample(unet, scheduler.config, Sampler.parse("ddim-2"), Trigger.none((1, 8, 8)), 2, tmp_path)


def test_what_is_refused_claims_no_folder(tmp_path, unet, scheduler):
    """An invalid seed or η leaves no record that would later cause the right one to be refused."""
    for change in (dict(seed=-1), dict(sampler=Sampler.parse("ddim-2")._replace(eta=2.0))):
        arguments = dict(sampler=Sampler.parse("ddim-2"), count=2, out=tmp_path) | change
        with pytest.raises(UserError):
            sample(unet, scheduler.config, trigger=Trigger.none((1, 8, 8)), **arguments)
    assert not list(tmp_path.iterdir())
