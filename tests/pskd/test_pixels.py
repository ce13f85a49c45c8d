"""PS-KD for segmentation: one row per pixel against a slow loop, the previous model on the view, refusals."""

from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from retarget.errors import UserError
from retarget.pskd import PixelPSKD, PreviousModel, TopK
from retarget.pskd.pixels import MOST_ROWS

N, C, H, W, EPOCHS = 4, 3, 2, 3, 3


def data():
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(C, (N, H, W), generator=g)
    labels[1, 0, 2] = labels[3, 1, 1] = 255
    return torch.randn(N, 2, H, W, generator=g, dtype=torch.float64), labels


def network():
    torch.manual_seed(0)
    return nn.Conv2d(2, C, 3, padding=1).double()


def softmax(row):
    e = np.exp(row - row.max())
    return e / e.sum()


def slow_loss(logits, labels, past, alpha):
    """Mean over pixels that count; logits [B, C, H, W], past[image in batch][row][column] a row or None."""
    losses = []
    for b, i, j in np.ndindex(labels.shape):
        if labels[b, i, j] == 255:
            continue
        hard = np.eye(C)[labels[b, i, j]]
        row = past[b][i][j]
        target = hard if row is None else (1 - alpha) * hard + alpha * row
        losses.append(-(target * np.log(softmax(logits[b, :, i, j]))).sum())
    return float(np.mean(losses))


@pytest.mark.parametrize("store", ["dense", TopK(C)], ids=str)
def test_rows_equal_a_slow_loop_from_the_equations(store):
    method = PixelPSKD(N, (H, W), C, EPOCHS, store=store, ignore_index=255)
    x, y = data()
    model, table = network(), {}
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        alpha = 0.8 * (epoch + 1) / EPOCHS
        now = {}
        for index in torch.randperm(N, generator=torch.Generator().manual_seed(epoch)).split(2):
            logits = model(x[index])
            z = logits.detach().numpy()
            rows = [[[table.get((i, h, w)) for w in range(W)] for h in range(H)] for i in index.tolist()]
            expected = slow_loss(z, y[index].numpy(), rows, alpha)
            loss = method.loss(logits, y[index], index)
            assert loss.item() == pytest.approx(expected, rel=1e-6 if store == "dense" else 1e-3)
            now |= {(int(index[b]), i, j): softmax(z[b, :, i, j]) for b, i, j in np.ndindex(2, H, W)}
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        table = now
    assert method.fallbacks == 0  # the ignored pixels have no row, and no label to keep
    soft = method.soften(y, torch.arange(N))
    assert soft.shape == (N, H, W, C)
    torch.testing.assert_close(soft.sum(3), (y != 255).to(soft.dtype), atol=1e-3, rtol=0)


def test_the_previous_model_sees_the_view_of_the_student():
    model = network()
    method = PixelPSKD(None, None, C, EPOCHS, store=PreviousModel(model), ignore_index=255)
    x, y = data()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        before = deepcopy(model)
        for flip in (False, True):  # and a crop: sizes may change from batch to batch
            view, labels = (x.flip(3)[..., 1:], y.flip(2)[..., 1:]) if flip else (x, y)
            logits = model(view)
            with torch.no_grad():
                past = before(view).movedim(1, -1).numpy()
            rows = [[[softmax(row) if epoch else None for row in line] for line in one] for one in past]
            expected = slow_loss(logits.detach().numpy(), labels.numpy(), rows, 0.8 * (epoch + 1) / EPOCHS)
            loss = method.loss(logits, labels, inputs=view)
            assert loss.item() == pytest.approx(expected, rel=1e-9)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_alpha_zero_is_cross_entropy_of_maps():
    method = PixelPSKD(N, (H, W), C, EPOCHS, alpha_T=0.0, store="dense", ignore_index=255)
    x, y = data()
    logits = network()(x)
    for epoch in range(2):
        method.set_epoch(epoch)
        torch.testing.assert_close(
            method.loss(logits, y, torch.arange(N)), F.cross_entropy(logits, y, ignore_index=255)
        )


def test_too_many_pixels_are_refused_with_the_way_out():
    with pytest.raises(UserError, match=r"2,975 images of 1024 x 2048 have .* at most 268,435,456: use PreviousModel"):
        PixelPSKD(2975, (1024, 2048), 19, 5, store=TopK(2))
    PixelPSKD(MOST_ROWS // 16, (4, 4), C, 5, store=TopK(2), device="meta")  # the last that is allowed: no table yet
    with pytest.raises(UserError, match=r"GB .* is too large for memory: use MemoryMapped"):
        PixelPSKD(4000, (128, 128), 150, 5, store="dense")


def test_bad_batches_are_refused():
    method = PixelPSKD(N, (H, W), C, EPOCHS, store=TopK(1))
    x, y = data()
    y = y.clamp_max(C - 1)
    logits, index = network()(x), torch.arange(N)
    method.set_epoch(0)
    wrong = y.clone()
    wrong[2, 1, 0] = C
    for z, labels, at, message in [
        (logits, wrong, index, r"label 3 of pixel \(1, 0\) of image 2"),
        (logits, y, index + 1, r"image index 4 in row 3 of the batch lies outside \[0, 4\)"),
        (logits[..., :2], y[..., :2], index, r"targets must be \[B, 2, 3\]: got \[4, 2, 2\]"),
        (logits.movedim(1, -1), y, index, r"logits must be \[B, C, H, W\]"),
    ]:
        with pytest.raises(UserError, match=message):
            method.loss(z, labels, at)
    method.loss(logits, y, index)
    method.set_epoch(1)
    with pytest.raises(UserError, match="but had another label when it was last seen"):  # a flipped image
        method.loss(logits, (y + 1) % C, index)
