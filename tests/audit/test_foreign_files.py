"""Files as other code, or an attacker, writes them: what is read of them, what is refused, and why."""

import json

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file

from retarget.audit import AuditError, Subject

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def split(pipeline):
    """Split the weights over several files; their index."""
    unet = UNet2DModel.from_pretrained(pipeline / "unet")
    (pipeline / WEIGHTS).unlink()
    unet.save_pretrained(pipeline / "unet", max_shard_size="10KB")
    return pipeline / f"{WEIGHTS}.index.json"


@pytest.mark.parametrize("name", ["part.bin", "../part.safetensors", 3])
def test_an_index_makes_nobody_open_a_pickle_or_a_file_elsewhere(pipeline, name):
    index = split(pipeline)
    places = json.loads(index.read_text())
    first = min(places["weight_map"].values())
    if name == "part.bin":
        torch.save(load_file(pipeline / "unet" / first), pipeline / "unet" / name)
    renamed = {one: name if place == first else place for one, place in places["weight_map"].items()}
    index.write_text(json.dumps(places | {"weight_map": renamed}))
    with pytest.raises(AuditError, match=r"names .*part|names 3") as caught:
        Subject.load(pipeline)
    assert "only safetensors files beside the index are read" in str(caught.value)
    assert caught.value.code == 2
