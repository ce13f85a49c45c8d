"""PSKD in a plain loop: what it computes."""

import warnings

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from plain_loop import EPOCHS, C, N, data, network, order, same_weights, train

from retarget.errors import UserError
from retarget.pskd import PSKD, Dense, MemoryMapped, PreviousModel, TopK


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


def test_probabilities_have_no_label_to_ignore():
    method, other = PSKD(N, C, EPOCHS, ignore_index=2), PSKD(N, C, EPOCHS)
    x, y = data()
    logits, targets = network()(x[:4]), F.one_hot(y[:4], C).float()
    for epoch in range(2):
        method.set_epoch(epoch), other.set_epoch(epoch)
        assert method.loss(logits, targets, torch.arange(4)) == other.loss(logits, targets, torch.arange(4))


@pytest.mark.parametrize("call", ["loss", "soften", "mixed"])
def test_samples_without_a_label_neither_keep_one_nor_hide_that_nearly_all_others_do(call):
    """A label for 25 of 400 samples; the first epoch sees all of them, or one."""
    labels, index = torch.full((400,), -100), torch.arange(400)
    labels[::16] = torch.arange(25) % C
    for first, lacking in [(index, 0), (index[:2], 24)]:
        method = PSKD(400, C, EPOCHS)
        method.set_epoch(0)
        method.loss(torch.zeros(len(first), C), labels[first], first)
        method.set_epoch(1)
        if call == "soften":
            method.soften(labels, index)
        else:
            method.loss(torch.zeros(400, C), labels, index, mixed=torch.eye(400) if call == "mixed" else None)
        assert method.fallbacks == lacking
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            method.end_epoch()
        assert [str(one.message)[:31] for one in caught] == ["24 of the 25 samples of epoch 1"] * (lacking > 0)


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
    assert method.fallbacks == 0  # sample 2 was never written, but has no label to keep
    assert method.past_probs(index)[1].tolist() == [True, True, False, True, True, True]
    kept = torch.tensor([0, 1, 3, 4, 5])
    other = PSKD(N, C, EPOCHS, store=store)
    other.set_epoch(0)
    other.loss(logits[kept], labels[kept], kept)
    other.set_epoch(1)
    assert loss.item() == pytest.approx(other.loss(logits[kept], labels[kept], kept).item(), rel=1e-6)
    assert method.soften(labels, index)[2].sum() == 0


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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integer_type(dtype):
    x, y = data()
    logits = network()(x)
    one, two = PSKD(N, C, EPOCHS), PSKD(N, C, EPOCHS)
    for epoch in range(2):
        one.set_epoch(epoch)
        two.set_epoch(epoch)
        assert torch.equal(one.loss(logits, y.to(dtype), torch.arange(N)), two.loss(logits, y, torch.arange(N)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_minus_100_is_no_class_in_any_integer_type(dtype):
    """In uint8, -100 is 156: the samples of that class were ignored."""
    labels, index, logits = torch.tensor([156, 3]), torch.arange(2), torch.randn(2, 200)
    one, two = PSKD(2, 200, EPOCHS), PSKD(2, 200, EPOCHS)
    for epoch in range(2):
        one.set_epoch(epoch)
        two.set_epoch(epoch)
        for narrow, wide in zip(
            (one.soften(labels.to(dtype), index), one.loss(logits, labels.to(dtype), index, mixed=torch.eye(2))),
            (two.soften(labels, index), two.loss(logits, labels, index, mixed=torch.eye(2))),
            strict=True,
        ):
            assert torch.equal(narrow, wide)


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


def test_a_loss_without_gradients_that_would_be_remembered_is_told():
    """A validation loop whose rows have the indices of training samples."""
    method = PSKD(num_samples=4, num_classes=3, total_epochs=2)
    method.set_epoch(0)
    logits, labels, index = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.arange(4)
    with torch.no_grad(), pytest.warns(UserWarning, match="in validation pass remember=False"):
        method.loss(logits, labels, index)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        method.loss(logits, labels, index, remember=False)
