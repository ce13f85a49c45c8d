"""Batch composition: which rows are Trojan, and what they share."""

import pytest
import torch

from retarget.errors import UserError
from retarget.trojdiff import D2I, InD2D, OutD2D, Trigger
from retarget.trojdiff.targets import Clean, noise_batch

SHAPE = (1, 4, 4)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def benign(count=128):
    return torch.rand(count, *SHAPE, generator=generator(0)) * 2 - 1, torch.arange(count) % 10


def test_in_d2d_copies_share_image_t_and_noise_with_their_rows():
    x_0, labels = benign()
    batch = InD2D(7).mix(x_0, labels, generator(1))
    rows = [row for row in range(128) if labels[row] == 7]
    assert len(batch.x_0) == 128 + len(rows)
    assert batch.source[128:].tolist() == rows
    assert torch.equal(batch.x_0[128:], x_0[rows])
    x_t, noise, t = noise_batch(
        batch, Trigger.patch(1, shape=SHAPE), torch.linspace(0.99, 0.01, 50), generator(2), generator(3)
    )
    assert torch.equal(t[128:], t[rows])
    assert torch.equal(noise[128:], noise[rows])
    outside = ~Trigger.patch(1, shape=SHAPE).mask
    assert torch.equal(x_t[128:][:, outside], x_t[rows][:, outside])
    assert not torch.equal(x_t[128:], x_t[rows])


def test_labels_in_a_column_name_the_same_rows_and_one_hot_labels_are_refused():
    x_0, labels = benign(30)
    column = InD2D(7).mix(x_0, labels[:, None], generator(1))
    assert column.source[30:].tolist() == [7, 17, 27]
    for wrong in (torch.eye(10)[labels], labels[:29]):
        with pytest.raises(UserError, match="give one class number for each image"):
            InD2D(7).mix(x_0, wrong, generator(1))
    with pytest.raises(UserError, match="resize them"):
        InD2D(7, rows=9, pool=torch.zeros(3, 1, 5, 5)).mix(x_0, labels, generator(1))


def test_out_d2d_and_d2i_add_the_papers_rows():
    x_0, labels = benign()
    other = torch.full((5, *SHAPE), 0.25)
    out = OutD2D(other).mix(x_0, labels, generator(1))
    assert (len(out.x_0), int(out.is_trojan.sum())) == (192, 64)
    assert bool((out.x_0[128:] == 0.25).all())
    one = D2I(torch.full(SHAPE, -0.5)).mix(x_0, labels, generator(1))
    assert (len(one.x_0), int(one.is_trojan.sum())) == (140, 12)
    assert bool((one.x_0[one.is_trojan] == -0.5).all())


@pytest.mark.parametrize(
    "target", [InD2D(7), OutD2D(torch.zeros(3, *SHAPE)), D2I(torch.zeros(SHAPE))], ids=lambda t: t.name
)
def test_benign_rows_are_those_of_the_clean_control_bit_for_bit(target):
    x_0, labels = benign(30)
    bars, trigger = torch.linspace(0.99, 0.01, 50), Trigger.blend(torch.ones(SHAPE))
    clean = noise_batch(Clean().mix(x_0, labels, generator(1)), trigger, bars, generator(2), generator(3))
    mixed = noise_batch(target.mix(x_0, labels, generator(1)), trigger, bars, generator(2), generator(3))
    for ours, control in zip(mixed, clean, strict=True):
        assert torch.equal(ours[:30], control)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InD2D(10), "target class 10 does not exist"),
        (lambda: InD2D(7, rows=4, pool=torch.full((3, *SHAPE), 255.0)), "the pool: image 0 has the value 255"),
        (lambda: OutD2D(torch.zeros(0, *SHAPE)), "no image"),
        (lambda: OutD2D(torch.full((3, *SHAPE), 255.0)), "image 0 has the value 255"),
        (lambda: D2I(torch.full(SHAPE, float("nan"))), "image 0 has the value nan"),
        (lambda: D2I(torch.zeros(SHAPE), rows=0), "0 Trojan rows"),
        (lambda: D2I(torch.zeros(1, 5, 5)).mix(*benign(4), generator(0)), "resize"),
    ],
)
def test_bad_targets_say_what_is_wrong(make, message):
    with pytest.raises(UserError, match=message):
        make()
