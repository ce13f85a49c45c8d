"""PSKD in a plain loop: what it computes, what it refuses, what a resumed run finds."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from retarget.errors import UserError
from retarget.pskd import PSKD, Dense, MemoryMapped, PreviousModel, TopK, with_index

sys.path.insert(0, str(Path(__file__).parent))
import reference

N, C, EPOCHS = 12, 4, 5


def data(seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, 6, generator=g), torch.randint(C, (N,), generator=g)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, C))


def order(epoch):
    return torch.randperm(N, generator=torch.Generator().manual_seed(100 + epoch)).split(4)


def train(method, epochs=range(EPOCHS), model=None, optimizer=None, after=None):
    """A plain loop; ``method`` None is cross-entropy."""
    x, y = data()
    model = model or network()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    losses = []
    for epoch in epochs:
        if method:
            method.set_epoch(epoch)
        for index in order(epoch):
            logits = model(x[index])
            if method:
                loss = method.loss(logits, y[index], index, inputs=x[index])
            else:
                loss = F.cross_entropy(logits, y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if after:
            after(epoch, model, optimizer)
    return model, losses


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("store", ["dense", Dense("float16"), TopK(2), TopK(C, "renormalise")])
def test_alpha_zero_gives_the_weights_of_cross_entropy_bit_for_bit(store):
    control, _ = train(None)
    off, _ = train(PSKD(N, C, EPOCHS, alpha_T=0.0, store=store))
    assert same_weights(control, off)


@pytest.mark.parametrize("store", ["dense", TopK(2)])
def test_epoch_zero_is_cross_entropy_bit_for_bit(store):
    control, _ = train(None, epochs=range(1))
    first, _ = train(PSKD(N, C, EPOCHS, store=store), epochs=range(1))
    assert same_weights(control, first)


@pytest.mark.parametrize("store", ["dense", TopK(C), "file"])
def test_losses_equal_a_slow_loop_from_the_equations(store, tmp_path):
    method = PSKD(N, C, EPOCHS, alpha_T=0.8, store=MemoryMapped(tmp_path / "t", Dense()) if store == "file" else store)
    x, y = data()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    past = reference.PastRows()
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        alpha = 0.8 * (epoch + 1) / EPOCHS
        for index in order(epoch):
            logits = model(x[index])
            z = logits.detach().double().numpy()
            rows = [past.read(epoch, i) for i in index.tolist()]
            rows = [np.eye(C)[y[i]] if row is None else row for i, row in zip(index.tolist(), rows, strict=True)]
            expected = reference.loss(z, reference.soft_target(y[index].tolist(), rows, alpha, C))
            loss = method.loss(logits, y[index], index)
            assert loss.item() == pytest.approx(expected, rel=1e-3 if store == TopK(C) else 1e-5)
            for i, row in zip(index.tolist(), reference.softmax(z), strict=True):
                past.write(epoch, i, row)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert method.fallbacks == 0


def test_soften_and_remember_are_loss_in_two_steps():
    one, two = PSKD(N, C, EPOCHS), PSKD(N, C, EPOCHS)
    x, y = data()
    model = network()
    for epoch in range(3):
        one.set_epoch(epoch)
        two.set_epoch(epoch)
        for index in order(epoch):
            logits = model(x[index]) * (epoch + 1)
            loss = one.loss(logits, y[index], index)
            soft = two.soften(y[index], index)
            two.remember(logits, y[index], index)
            torch.testing.assert_close(F.cross_entropy(logits, soft), loss)


@pytest.mark.parametrize("store", ["dense", TopK(2)])
def test_probability_targets_are_softened_from_where_they_are(store):
    method = PSKD(N, C, EPOCHS, store=store)
    x, y = data()
    index = torch.arange(4)
    smooth = 0.9 * F.one_hot(y[:4], C).float() + 0.1 / C
    logits = network()(x[:4])
    method.set_epoch(0)
    assert method.loss(logits, smooth, index).item() == pytest.approx(F.cross_entropy(logits, smooth).item())
    method.set_epoch(1)
    past = method.soften(y[:4], index) - (1 - method.alpha) * F.one_hot(y[:4], C)
    expected = F.cross_entropy(logits, (1 - method.alpha) * smooth + past)
    assert method.loss(logits, smooth, index).item() == pytest.approx(expected.item(), rel=1e-5)


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


def test_probabilities_have_no_label_to_ignore():
    method, other = PSKD(N, C, EPOCHS, ignore_index=2), PSKD(N, C, EPOCHS)
    x, y = data()
    logits, targets = network()(x[:4]), F.one_hot(y[:4], C).float()
    for epoch in range(2):
        method.set_epoch(epoch), other.set_epoch(epoch)
        assert method.loss(logits, targets, torch.arange(4)) == other.loss(logits, targets, torch.arange(4))


@pytest.mark.parametrize("store", ["dense", TopK(2)])
def test_ignored_samples_have_no_loss_and_no_row(store):
    method = PSKD(N, C, EPOCHS, store=store)
    x, y = data()
    index = torch.arange(6)
    labels = y[:6].clone()
    labels[2] = -100
    logits = network()(x[:6]).detach().requires_grad_()
    method.set_epoch(0)
    method.loss(logits, labels, index)
    method.set_epoch(1)
    loss = method.loss(logits, labels, index)
    loss.backward()
    assert logits.grad[2].abs().sum() == 0
    assert method.fallbacks == 1  # sample 2 was never written
    kept = torch.tensor([0, 1, 3, 4, 5])
    other = PSKD(N, C, EPOCHS, store=store)
    other.set_epoch(0)
    other.loss(logits[kept], labels[kept], kept)
    other.set_epoch(1)
    assert loss.item() == pytest.approx(other.loss(logits[kept], labels[kept], kept).item(), rel=1e-6)
    assert method.soften(labels, index)[2].sum() == 0


@pytest.mark.parametrize("store", ["dense", Dense("float16"), TopK(2)])
@pytest.mark.parametrize("call", ["loss", "soften"])
def test_an_index_that_moves_between_epochs_is_refused(store, call):
    """The commonest mistake: the place in the epoch's order, not in the training set."""
    method = PSKD(N, C, EPOCHS, store=store)
    logits = 5.0 * F.one_hot(torch.arange(4) % C, C)  # top-2 rows list the label and one more
    before, after = torch.tensor([0, 1, 2, 3]), torch.tensor([3, 1, 2, 0])
    method.set_epoch(0)
    method.loss(logits, before, torch.arange(4))
    method.set_epoch(1)
    with pytest.raises(UserError, match=r"sample 0 has the label 3 \(row 0 of the batch\), but had another label when"):
        method.loss(logits, after, torch.arange(4)) if call == "loss" else method.soften(after, torch.arange(4))


def test_samples_without_a_row_keep_the_hard_label_and_are_counted():
    method = PSKD(N, C, EPOCHS)
    x, y = data()
    logits = network()(x[:4])
    method.set_epoch(0)
    method.loss(logits[:2], y[:2], torch.arange(2))
    method.set_epoch(1)
    soft = method.soften(y[:4], torch.arange(4))
    assert method.fallbacks == 2
    torch.testing.assert_close(soft[2:], F.one_hot(y[2:4], C).float())
    np.testing.assert_allclose(soft.sum(1).numpy(), 1, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("store", ["dense", TopK(2)])
def test_narrow_logits(dtype, store):
    wide, narrow = PSKD(N, C, EPOCHS, store=store), PSKD(N, C, EPOCHS, store=store)
    x, y = data()
    logits = network()(x).to(dtype)
    for epoch in range(3):
        wide.set_epoch(epoch)
        narrow.set_epoch(epoch)
        a = wide.loss(logits.float(), y, torch.arange(N))
        b = narrow.loss(logits, y, torch.arange(N))
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b)


def test_the_constant_schedule_starts_after_epoch_zero():
    method = PSKD(N, C, EPOCHS, alpha_T=0.6, schedule="constant")
    for epoch, expected in [(0, 0.0), (1, 0.6), (4, 0.6)]:
        method.set_epoch(epoch)
        assert method.alpha == expected


def test_previous_model_is_last_epochs_weights_on_the_current_input():
    x, y = data()
    model = network()
    method = PSKD(N, C, EPOCHS, store=PreviousModel(model))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for epoch in range(3):
        before = [p.clone() for p in model.parameters()]
        method.set_epoch(epoch)
        for index in order(epoch):
            past = torch.func.functional_call(
                model, dict(zip([n for n, _ in model.named_parameters()], before, strict=True)), (x[index],)
            )
            logits = model(x[index])
            loss = method.loss(logits, y[index], index, inputs=x[index])
            target = (1 - method.alpha) * F.one_hot(y[index], C) + method.alpha * torch.softmax(past, 1)
            assert loss.item() == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with pytest.raises(UserError, match="PreviousModel forwards the input"):
        method.loss(logits, y[index], index)


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


def test_bad_batches_are_refused_with_sample_row_and_value():
    method = PSKD(N, C, EPOCHS)
    x, y = data()
    logits, index = network()(x[:4]).detach(), torch.tensor([3, 5, 7, 9])
    with pytest.raises(UserError, match=r"call set_epoch\(epoch\) before the first step"):
        method.loss(logits, y[:4], index)
    method.set_epoch(0)
    inf, nan = logits.clone(), logits.clone()
    inf[2, 1], nan[0, 3] = float("inf"), float("nan")
    short = torch.full((4, C), 0.2)
    label = y[:4].clone()
    label[1] = C
    cases = [
        (logits, y[:4], torch.tensor([3, 5, N, 9]), r"sample index 12 in row 2 of the batch lies outside \[0, 12\)"),
        (logits, y[:4], torch.tensor([3, 5, -1, 9]), r"sample index -1 in row 2"),
        (logits, label, index, r"label 4 of sample 5, row 1 of the batch, lies outside the classes \[0, 4\)"),
        (
            logits,
            torch.tensor([0, 1, 2, 3]),
            torch.tensor([3, 5, 3, 9]),
            "sample 3 has two labels in this batch, 0 in",
        ),
        (inf, y[:4], index, "logit inf for class 1 of sample 7, row 2"),
        (nan, y[:4], index, "logit nan for class 3 of sample 3, row 0"),
        (
            logits,
            short,
            index,
            "target of sample 3, row 0 of the batch, is not a probability distribution: it sums to 0.8",
        ),
        (logits[:, :3], y[:4], index, r"logits are \[B, C\] = \[4, 4\]: got \[4, 3\]"),
    ]
    for z, targets, at, message in cases:
        with pytest.raises(UserError, match=message):
            method.loss(z, targets, at)
    method.set_epoch(1)
    method.soften(y[:4], index)
    assert method.fallbacks == 4, "a refused batch must leave no row"


def test_bad_settings_are_refused():
    for settings, message in [
        (dict(alpha_T=1.2), r"alpha_T must lie in \[0, 1\]: got 1.2"),
        (dict(total_epochs=0), "total_epochs >= 1: got 0"),
        (dict(num_samples=0), "got 0 and 4"),
        (dict(store=TopK(9)), r"TopK\(9\) is more than the 4"),
    ]:
        with pytest.raises(UserError, match=message):
            PSKD(**{"num_samples": N, "num_classes": C, "total_epochs": EPOCHS, **settings})
    with pytest.raises(UserError, match=r"epoch 5 lies outside \[0, total_epochs = 5\)"):
        PSKD(N, C, EPOCHS).set_epoch(5)


def test_with_index_keeps_the_sample_and_adds_its_place():
    pairs = with_index([("a", 0), ("b", 1)])
    assert (len(pairs), pairs[1]) == (2, ("b", 1, 1))
    assert with_index([{"text": "a"}])[0] == {"text": "a", "index": 0}
    with pytest.raises(UserError, match='already have a key "index"'):
        with_index([{"index": 3}])[0]
    with pytest.raises(UserError, match="a sample must be a tuple or a mapping: sample 0 is a int"):
        with_index([5])[0]
    with pytest.raises(UserError, match="no stable index"):
        with_index(iter([1]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integer_type(dtype):
    x, y = data()
    logits = network()(x)
    one, two = PSKD(N, C, EPOCHS), PSKD(N, C, EPOCHS)
    for epoch in range(2):
        one.set_epoch(epoch)
        two.set_epoch(epoch)
        assert torch.equal(one.loss(logits, y.to(dtype), torch.arange(N)), two.loss(logits, y, torch.arange(N)))


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


def test_past_probs_are_the_rows_and_count_nothing():
    method = PSKD(N, C, EPOCHS)
    x, y = data()
    logits = network()(x)
    method.set_epoch(0)
    with pytest.raises(UserError, match="uses no past predictions"):
        method.past_probs(torch.arange(2))
    method.loss(logits[:3], y[:3], torch.arange(3))
    method.set_epoch(1)
    probs, written = method.past_probs(torch.tensor([1, 7]))
    assert written.tolist() == [True, False]
    torch.testing.assert_close(probs[0], torch.softmax(logits[1], 0))
    assert method.fallbacks == 0


def test_a_batch_of_ignored_labels_alone_is_refused():
    method = PSKD(N, C, EPOCHS)
    method.set_epoch(0)
    with pytest.raises(UserError, match="every label of the batch is -100"):
        method.loss(torch.zeros(2, C), torch.tensor([-100, -100]), torch.arange(2))


@pytest.mark.parametrize("store", ["dense", TopK(2)])
def test_another_default_dtype_changes_nothing(store):
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        method = PSKD(N, C, EPOCHS, store=store)
        torch.set_default_dtype(dtype)
        try:
            for epoch in (0, 1):
                method.set_epoch(epoch)
                last = method.loss(
                    torch.arange(2 * C, dtype=torch.float32).view(2, C), torch.tensor([1, 0]), torch.arange(2)
                )
        finally:
            torch.set_default_dtype(torch.float32)
        losses.append(last.item())
    assert losses[0] == losses[1]
