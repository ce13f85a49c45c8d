"""What PSKD refuses: bad batches, settings and indices."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from plain_loop import EPOCHS, C, N, data, network

from retarget.errors import UserError
from retarget.pskd import PSKD, Dense, TopK
from retarget.pskd.checks import check_shapes


@pytest.mark.parametrize("store", ["dense", Dense("float16"), TopK(2)])
@pytest.mark.parametrize("call", ["loss", "soften"])
def test_an_index_that_moves_between_epochs_is_refused(store, call):
    """The commonest mistake: to pass the position in the epoch's order instead of the index in the training set."""
    method = PSKD(N, C, EPOCHS, store=store)
    logits = 5.0 * F.one_hot(torch.arange(4) % C, C)  # top-2 rows list the label and one more
    before, after = torch.tensor([0, 1, 2, 3]), torch.tensor([3, 1, 2, 0])
    method.set_epoch(0)
    method.loss(logits, before, torch.arange(4))
    method.set_epoch(1)
    with pytest.raises(UserError, match=r"sample 0 has the label 3 \(row 0 of the batch\), but had another label when"):
        method.loss(logits, after, torch.arange(4)) if call == "loss" else method.soften(after, torch.arange(4))


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
        (logits[:0], y[:0], index[:0], "the batch is empty: there is nothing to learn from"),
    ]
    for z, targets, at, message in cases:
        with pytest.raises(UserError, match=message):
            method.loss(z, targets, at)
    method.set_epoch(1)
    method.soften(y[:4], index)
    assert method.fallbacks == 4, "a refused batch must leave no row"


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("smoothing", [-0.1, 1.5, float("nan")])
def test_smoothing_outside_its_range_is_refused_in_every_epoch(epoch, smoothing):
    method = PSKD(4, C, EPOCHS)
    method.set_epoch(0)
    method.loss(torch.zeros(4, C), torch.arange(4), torch.arange(4))
    method.set_epoch(epoch)
    for mixed in (None, torch.eye(4)):
        with pytest.raises(UserError, match=r"smoothing is a share of the target, in \[0, 1\]: got"):
            method.loss(torch.zeros(4, C), torch.arange(4), torch.arange(4), smoothing=smoothing, mixed=mixed)


def test_targets_of_another_type_are_named():
    with pytest.raises(UserError, match=r"probabilities \[2, 3\] as floats: got torch.int64 \[2, 3\]"):
        check_shapes(None, torch.eye(3)[:2].long(), torch.arange(2), 3)


OTHER_INDEX = """
import numpy, torch
from retarget.pskd import PSKD
for kind in (list, numpy.array):
    method = PSKD(9, 4, 2)
    method.set_epoch(0)
    method.loss(torch.zeros(4, 4), torch.arange(4), kind([3, 1, 2, 7]))
    method.set_epoch(1)
    print(method.past_probs(torch.arange(9))[1].nonzero().flatten().tolist())
try:
    method.loss(torch.zeros(2, 4), ("a", "b"), torch.arange(2))
except Exception as error:
    print(type(error).__name__, error)
"""

TEXTS = """
import numpy, torch
from retarget.errors import UserError
from retarget.pskd import PSKD, MultiLabelPSKD, PixelPSKD
from retarget.pskd.peers import TemporalEnsembling
for method, shape in [
    (PSKD(9, 4, 2), ()), (TemporalEnsembling(9, 4, 2), ()), (PixelPSKD(9, (2, 2), 4, 2, store="dense"), (2, 2)),
    (MultiLabelPSKD(9, 4, 2), None),
]:
    method.set_epoch(0)
    targets = torch.zeros(2, 4) if shape is None else torch.zeros(2, *shape).long()
    for index in (["a", "b"], ("a", "b"), numpy.array(["a", "b"]), [None, None]):
        try:
            method.loss(torch.zeros(2, 4, *(shape or ())), targets, index)
        except UserError as error:
            print(error)
"""


def test_a_list_is_an_index_and_texts_are_no_labels():
    """In a process of its own: the tests check types, which users' programs do not."""
    done = subprocess.run([sys.executable, "-c", OTHER_INDEX], capture_output=True, text=True, check=False)
    *rows, error = done.stdout.splitlines()
    assert rows == ["[1, 2, 3, 7]"] * 2, done.stderr
    assert error == "UserError targets must be a tensor of class numbers or probabilities: got a tuple"


def test_texts_are_no_index():
    """default_collate makes a list of the keys of a dataset of texts."""
    done = subprocess.run([sys.executable, "-c", TEXTS], capture_output=True, text=True, check=False)
    lines, start = done.stdout.splitlines(), "index holds whole numbers [B] in [0, 9): got a "
    assert len(lines) == 16, done.stderr
    for line, got in zip(
        lines, 4 * ["list with 'a'", "tuple with 'a'", "ndarray with ", "list with None"], strict=True
    ):
        assert line.startswith(start + got), line


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


def test_a_batch_of_ignored_labels_alone_is_refused():
    method = PSKD(N, C, EPOCHS)
    method.set_epoch(0)
    with pytest.raises(UserError, match="every label of the batch is -100"):
        method.loss(torch.zeros(2, C), torch.tensor([-100, -100]), torch.arange(2))
