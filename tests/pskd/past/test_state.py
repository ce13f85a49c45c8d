"""States on disk: files that earlier versions wrote still open, a write is whole or absent, other work is refused."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from retarget.errors import UserError
from retarget.pskd import PSKD, MultiLabelPSKD, PixelPSKD, PreviousModel, SequencePSKD, TopK
from retarget.pskd.past.state import read_state, write_state

STATES = Path(__file__).parent / "states"  # written by version 0.1 in epoch 2 of 4, with 8 samples of 5 classes
N, C, EPOCHS = 8, 5, 4
EVERYONE = torch.arange(N)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, C))


def sequence_labels():
    labels = torch.zeros(N, 4, dtype=torch.long)
    labels[1, 2:] = labels[4, 0] = -100
    return labels


METHODS = {
    "dense": lambda: PSKD(N, C, EPOCHS),
    "topk": lambda: PSKD(N, C, EPOCHS, store=TopK(2)),
    "model": lambda: PSKD(N, C, EPOCHS, store=PreviousModel(network())),
    "multi": lambda: MultiLabelPSKD(N, C, EPOCHS),
    "seq_topk": lambda: SequencePSKD((sequence_labels() != -100).sum(1).tolist(), C, EPOCHS, store=TopK(2)),
    "pix_topk": lambda: PixelPSKD(N, (2, 3), C, EPOCHS, store=TopK(2)),
}


def content(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("name", METHODS)
def test_a_state_of_an_earlier_version_opens_and_is_written_back_the_same(name, tmp_path):
    method = METHODS[name]()
    method.load(STATES / f"{name}.safetensors")
    assert method.epoch == 2
    method.save(tmp_path / "again.safetensors")
    (_, before), (_, after) = content(STATES / f"{name}.safetensors"), content(tmp_path / "again.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(before[field], after[field]) for field in before)
    assert (
        read_state(STATES / f"{name}.safetensors", "retarget.pskd", "state")[0]
        == read_state(tmp_path / "again.safetensors", "retarget.pskd", "state")[0]
    )


def test_the_rows_of_an_earlier_version_are_read(tmp_path):
    method = METHODS["dense"]()
    method.load(STATES / "dense.safetensors")
    method.set_epoch(3)
    past, written = method.past_probs(EVERYONE)
    assert written.tolist() == [sample != 3 for sample in range(N)], "sample 3 had an ignored label"
    torch.testing.assert_close(past[written].sum(1), torch.ones(N - 1))


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "state.safetensors"
    write_state(path, "kind", {"epoch": 1}, {"rows": torch.ones(2)})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_state(path, "kind", {"epoch": torch.ones(1)}, {"rows": torch.zeros(2)})
    state, tensors = read_state(path, "kind", "state")
    assert state == {"epoch": 1}
    assert tensors["rows"].tolist() == [1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]
    with pytest.raises(UserError, match="cannot write"):
        write_state(path / "below", "kind", {"epoch": 1}, {})


def test_what_is_no_state_is_said(tmp_path):
    (tmp_path / "junk.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(
        UserError, match=r"junk\.safetensors is not a PS-KD state: it is not a complete safetensors file"
    ):
        PSKD(4, 3, 2).load(tmp_path / "junk.safetensors")
    write_state(tmp_path / "other.safetensors", "kind", {}, {})
    with pytest.raises(UserError, match=r"other\.safetensors is not a PS-KD state$"):
        PSKD(4, 3, 2).load(tmp_path / "other.safetensors")


def test_a_state_of_another_shape_is_refused():
    method = METHODS["dense"]()
    with pytest.raises(UserError, match=r"not a PS-KD state: it has \['epoch'\], expected \['alpha_T'"):
        method.load_state_dict({"epoch": 1})


def test_a_damaged_header_is_refused_and_a_state_without_a_checksum_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    write_state(path, "kind", {"epoch": 3}, {"rows": torch.ones(2)})
    assert read_state(path, "kind", "state")[0] == {"epoch": 3}
    raw = path.read_bytes()
    for damaged in (raw.replace(b'epoch\\": 3', b'epoch\\": 7'), raw.replace(b'epoch\\": 3', b'epoch\\"  3')):
        assert damaged != raw
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.safetensors is damaged: its values do not match their checksum"):
            read_state(path, "kind", "state")
    save_file({"rows": torch.ones(2)}, path, metadata={"kind": '{"epoch": 2}'})
    assert read_state(path, "kind", "state")[0] == {"epoch": 2}
