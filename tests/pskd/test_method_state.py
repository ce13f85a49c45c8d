"""PSKD's state: what a resumed run finds, and which states are refused."""

import re

import pytest
import torch
from plain_loop import EPOCHS, C, N, data, network, order, same_weights, train

from retarget.errors import UserError
from retarget.pskd import PSKD, Dense, MemoryMapped, PreviousModel, TopK


@pytest.mark.parametrize("begin", ["again", "loaded"])
@pytest.mark.parametrize("store", ["dense", TopK(2)])
def test_an_epoch_that_begins_again_forgets_the_labels_that_it_saw(store, begin, tmp_path):
    method = PSKD(N, C, EPOCHS, store=store)
    logits, index = torch.randn(4, C), torch.arange(4)
    if begin == "loaded":
        method.set_epoch(0)
        method.save(tmp_path / "state.safetensors")
    method.set_epoch(0)
    method.loss(logits, torch.tensor([0, 1, 2, 1]), index)
    if begin == "loaded":
        method.load(tmp_path / "state.safetensors")
    method.set_epoch(0)
    method.loss(logits, torch.tensor([2, 1, 0, 1]), index)
    method.set_epoch(1)
    with pytest.raises(UserError, match="but had another label when it was last seen"):
        method.loss(logits, torch.tensor([0, 1, 2, 1]), index)


@pytest.mark.parametrize("kind", ["dense", "topk", "file", "model"])
def test_killed_in_the_middle_of_an_epoch_and_resumed_equals_uninterrupted(kind, tmp_path):
    def make(model, place):
        stores = {"dense": "dense", "topk": TopK(2), "model": PreviousModel(model)}
        return PSKD(N, C, EPOCHS, store=stores.get(kind) or MemoryMapped(tmp_path / place, Dense()))

    model = network()
    straight, _ = train(make(model, "straight"), model=model)

    saved = {}

    def keep(epoch, model, optimizer):
        method.save(tmp_path / "pskd.safetensors")
        saved.update(model={k: v.clone() for k, v in model.state_dict().items()}, optimizer=optimizer.state_dict())
        saved["optimizer"] = torch.load(_dump(saved["optimizer"], tmp_path), weights_only=True)

    model = network()
    method = make(model, "table")
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    train(method, range(3), model, optimizer, keep)
    x, y = data()
    method.set_epoch(3)  # two steps of epoch 3, then the process is gone
    for index in order(3)[:2]:
        method.loss(model(x[index]), y[index], index, inputs=x[index])

    model = network(seed=1)
    model.load_state_dict(saved["model"])
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    optimizer.load_state_dict(saved["optimizer"])
    method = make(model, "table")
    method.load(tmp_path / "pskd.safetensors")
    resumed, _ = train(method, range(3, EPOCHS), model, optimizer)
    assert same_weights(straight, resumed)


def _dump(state, folder):
    torch.save(state, folder / "optimizer.pt")
    return folder / "optimizer.pt"


def test_a_state_of_another_run_is_refused_with_both_values_named(tmp_path):
    method = PSKD(N, C, EPOCHS)
    method.set_epoch(0)
    method.save(tmp_path / "state.safetensors")
    for other, message in [
        (PSKD(N + 1, C, EPOCHS), r"num_samples = 12 \(now 13\)"),
        (PSKD(N, C, EPOCHS, alpha_T=0.5), r"alpha_T = 0.8 \(now 0.5\)"),
        (PSKD(N, C, EPOCHS + 1), r"total_epochs = 5 \(now 6\)"),
        (PSKD(N, C, EPOCHS, store=TopK(2)), r"rows = Dense.* \(now TopK"),
    ]:
        with pytest.raises(UserError, match=message):
            other.load(tmp_path / "state.safetensors")
    with pytest.raises(UserError, match="no PS-KD state at"):
        method.load(tmp_path / "absent.safetensors")


def test_going_back_to_an_epoch_whose_past_is_overwritten_is_refused():
    method = PSKD(N, C, EPOCHS)
    for epoch in range(4):
        method.set_epoch(epoch)
    with pytest.raises(UserError, match="has been through epoch 3, so the rows that epoch 2 reads are overwritten"):
        method.set_epoch(2)
    method.set_epoch(3)
    method.set_epoch(0)


def test_starting_late_without_rows_warns():
    with pytest.warns(UserWarning, match=re.escape("set_epoch(2), but no earlier epoch has stored rows")):
        PSKD(N, C, EPOCHS).set_epoch(2)


def test_a_memory_mapped_table_that_ran_ahead_of_its_state_is_refused(tmp_path):
    store = MemoryMapped(tmp_path / "table", Dense())
    method = PSKD(N, C, EPOCHS, store=store)
    x, y = data()
    logits = network()(x)
    for epoch in range(4):
        method.set_epoch(epoch)
        method.loss(logits, y, torch.arange(N))
        if epoch in (1, 2):
            method.save(tmp_path / f"{epoch}.safetensors")
    with pytest.raises(UserError, match=r"saved in epoch 1, but the table at .* has been through epoch 3"):
        PSKD(N, C, EPOCHS, store=store).load(tmp_path / "1.safetensors")
    resumed = PSKD(N, C, EPOCHS, store=store)
    resumed.load(tmp_path / "2.safetensors")
    resumed.set_epoch(3)
    resumed.loss(logits, y, torch.arange(N))
    assert resumed.fallbacks == 0
