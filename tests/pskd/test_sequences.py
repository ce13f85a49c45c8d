"""Rows of (sentence, position): the same numbers as a slow loop, whatever the padding; what is refused; bytes."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from retarget.errors import UserError
from retarget.pskd import PSKD, MemoryMapped, SequencePSKD, TopK
from retarget.pskd.past.table import table_bytes
from retarget.pskd.places import MEMORY_LIMIT
from retarget.pskd.sequences import Offsets

sys.path.insert(0, str(Path(__file__).parent))
import reference

C, EPOCHS = 9, 4
SENTENCES = [[3, 1, 2], [5], [], [8, 8, 0, 2], [7, 2]]


def collate(index, left=False, width=6):
    """Labels [B, width], with padding on either side."""
    labels = torch.full((len(index), width), -100)
    for row, i in enumerate(index):
        sentence = torch.tensor(SENTENCES[i], dtype=torch.long)
        if left:
            labels[row, width - len(sentence) :] = sentence
        else:
            labels[row, : len(sentence)] = sentence
    return labels


def method(store=None, **more):
    return SequencePSKD([len(s) for s in SENTENCES], C, EPOCHS, store=store or TopK(C), **more)


def logits_for(seed, shape):
    return torch.randn(*shape, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["topk", "dense", "file"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_equal_a_slow_loop_whatever_the_padding(kind, smoothing, tmp_path):
    store = {"topk": TopK(C), "dense": "dense", "file": MemoryMapped(tmp_path / "t", TopK(C))}[kind]
    pskd, slow = method(store), reference.PastRows()
    for epoch in range(EPOCHS):
        pskd.set_epoch(epoch)
        alpha = 0.8 * (epoch + 1) / EPOCHS if epoch else 0.0
        for step, batch in enumerate(([4, 0, 2], [1, 3])):
            labels = collate(batch, left=(epoch + step) % 2 == 1, width=4 + epoch)
            logits = logits_for(10 * epoch + step, labels.shape)
            z, targets = [], []
            for row, i in enumerate(batch):
                places = [t for t in range(labels.shape[1]) if labels[row, t] != -100]
                for position, t in enumerate(places):
                    p = reference.softmax(logits[row, t : t + 1].numpy())[0]
                    past = slow.read(epoch, (i, position))
                    hard = (1 - smoothing) * np.eye(C)[labels[row, t]] + smoothing / C
                    targets.append(hard if past is None else (1 - alpha) * hard + alpha * past)
                    z.append(logits[row, t].numpy())
                    slow.write(epoch, (i, position), p)
            expected = reference.loss(z, targets)
            loss = pskd.loss(logits, labels, torch.tensor(batch), smoothing=smoothing)
            assert loss.item() == pytest.approx(expected, abs=2e-3 if kind != "dense" else 1e-6)
    assert pskd.fallbacks == 0


def test_a_denominator_makes_microbatches_equal_one_batch():
    torch.manual_seed(0)
    whole, parts = method(), method()
    labels, index = collate([0, 1, 3, 4]), torch.tensor([0, 1, 3, 4])
    count = (labels != -100).sum()
    for epoch in range(2):
        whole.set_epoch(epoch), parts.set_epoch(epoch)
        logits = logits_for(epoch, labels.shape)
        one = whole.loss(logits, labels, index)
        four = sum(
            parts.loss(logits[i : i + 1], labels[i : i + 1], index[i : i + 1], denominator=count) for i in range(4)
        )
        torch.testing.assert_close(one, four, rtol=0, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_alpha_zero_is_cross_entropy(smoothing):
    pskd = method(alpha_T=0.0)
    labels = collate([0, 3])
    for epoch in range(2):
        pskd.set_epoch(epoch)
        logits = logits_for(epoch, labels.shape)
        expected = F.cross_entropy(logits.reshape(-1, C), labels.reshape(-1), label_smoothing=smoothing)
        assert torch.equal(pskd.loss(logits, labels, torch.tensor([0, 3]), smoothing=smoothing), expected)


def test_the_gradient_of_a_sparse_smoothed_loss_is_that_of_the_dense_one():
    dense, sparse = method("dense"), method(TopK(C))
    labels, index = collate([0, 3]), torch.tensor([0, 3])
    gradients = []
    for pskd in (dense, sparse):
        for epoch in range(2):
            pskd.set_epoch(epoch)
            logits = logits_for(epoch, labels.shape).requires_grad_()
            pskd.loss(logits, labels, index, smoothing=0.1).backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-4)
    assert gradients[1][labels == -100].abs().max() == 0


def test_softened_targets_are_probabilities_and_zero_where_ignored():
    pskd = method()
    labels, index = collate([1, 3]), torch.tensor([1, 3])
    for epoch in range(2):
        pskd.set_epoch(epoch)
        soft = pskd.soften(labels, index)
        pskd.remember(logits_for(epoch, labels.shape), labels, index)
    torch.testing.assert_close(soft.sum(2), (labels != -100).float(), atol=1e-5, rtol=0)
    assert 0.3 < soft[0, 0, 5] < 1


def test_state_survives_and_other_sentences_are_refused(tmp_path):
    pskd = method(TopK(3))
    labels, index = collate([0, 3]), torch.tensor([0, 3])
    pskd.set_epoch(0)
    pskd.loss(logits_for(0, labels.shape), labels, index)
    pskd.save(tmp_path / "s.safetensors")
    again = method(TopK(3))
    again.load(tmp_path / "s.safetensors")
    for one in (pskd, again):
        one.set_epoch(1)
    assert torch.equal(pskd.soften(labels, index), again.soften(labels, index))
    other = SequencePSKD([3, 1, 1, 3, 2], C, EPOCHS, store=TopK(3))  # as many targets in all
    with pytest.raises(UserError, match="lengths"):
        other.load(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels, index: (labels, index + 4), "sequence index 7 in row 1 .* outside \\[0, 5\\)"),
        (lambda labels, index: (labels[:, :2], index), "sequence 0 has 2 targets but 3 rows"),
        (lambda labels, index: (labels.masked_fill(labels == 2, C), index), "label 9 of target 2 of sequence 0, row 2"),
    ],
)
def test_bad_batches_are_refused(change, message):
    pskd = method()
    pskd.set_epoch(0)
    labels, index = change(collate([0, 3]), torch.tensor([0, 3]))
    with pytest.raises(UserError, match=message):
        pskd.loss(logits_for(0, labels.shape), labels, index)


def test_targets_that_change_from_epoch_to_epoch_are_refused():
    pskd = method(TopK(1))
    labels, index = collate([0, 3]), torch.tensor([0, 3])
    for epoch in range(2):
        pskd.set_epoch(epoch)
        if epoch == 1:
            labels[1, 1] = 4  # random masking does this
            with pytest.raises(UserError, match="target 1 of sequence 3 has the label 4"):
                pskd.loss(logits_for(1, labels.shape), labels, index)
        else:
            pskd.loss(logits_for(0, labels.shape), labels, index)


def test_rows_of_a_sentence_lie_together_and_take_few_bytes():
    where = Offsets([3, 1, 0, 4])
    rows = where.rows(torch.tensor([3, 0]), collate([3, 0]) != -100)
    assert rows[0, :4].tolist() == [4, 5, 6, 7]
    assert rows[1, :3].tolist() == [0, 1, 2]
    assert [where.find(row) for row in (0, 3, 4)] == [(0, 0), (1, 0), (3, 0)]
    pskd = SequencePSKD([20] * 50, 10_000, 2, store=TopK(10), device="cpu")
    assert pskd.num_bytes == table_bytes(1000, 10_000, TopK(10))
    assert pskd.num_bytes <= 1000 * 10_000 * 4 / 200
    with pytest.raises(UserError, match="MemoryMapped"):
        SequencePSKD([MEMORY_LIMIT // 80], 10_000, 2)


def test_a_sequence_of_one_target_is_a_sample():
    """SequencePSKD on [B, 1] does what PSKD does on [B]."""
    sequence, plain = SequencePSKD([1] * 6, C, EPOCHS, store="dense"), PSKD(6, C, EPOCHS)
    labels = torch.tensor([3, 1, 0, 2, 8, 5])
    for epoch in range(EPOCHS):
        sequence.set_epoch(epoch), plain.set_epoch(epoch)
        logits = logits_for(epoch, (6,))
        index = torch.arange(6)
        assert torch.equal(sequence.loss(logits[:, None], labels[:, None], index), plain.loss(logits, labels, index))


@pytest.mark.parametrize("kind", ["topk", "dense", "file"])
@pytest.mark.parametrize("sentence", range(len(SENTENCES)))
def test_another_label_than_in_the_epoch_before_is_refused(kind, sentence, tmp_path):
    """Padding leaves the labels of the others alone."""
    pskd = method({"topk": TopK(2), "dense": "dense", "file": MemoryMapped(tmp_path / "t")}[kind])
    labels = collate(range(len(SENTENCES)))
    for epoch in range(2):
        pskd.set_epoch(epoch)
        pskd.loss(logits_for(epoch, labels.shape), labels, torch.arange(len(labels)))
    pskd.set_epoch(2)
    labels[sentence] = torch.where(labels[sentence] == -100, -100, 6)
    if not SENTENCES[sentence]:
        pskd.loss(logits_for(2, labels.shape), labels, torch.arange(len(labels)))
        return
    with pytest.raises(UserError, match=f"target . of sequence {sentence} has the label 6"):
        pskd.loss(logits_for(2, labels.shape), labels, torch.arange(len(labels)))


def test_prompts_and_padding_are_no_passes_over_the_training_set():
    sequences, width = 50, 100
    wide = SequencePSKD([2] * sequences, C, EPOCHS, store=TopK(C))
    wide.set_epoch(0)
    labels = torch.full((sequences, width), -100)
    labels[:, -2:] = 3
    for index in torch.arange(sequences).split(10):
        wide.loss(torch.zeros(len(index), width, C), labels[index], index)
    assert wide.fallbacks == 0
    step = torch.zeros(10, width, C), labels[:10], torch.arange(10)
    for _ in range(95):
        wide.loss(*step)
    with pytest.raises(UserError, match="1,010 samples since set_epoch\\(0\\), but the training set has 50"):
        wide.loss(*step)


def test_a_batch_without_a_target_has_no_loss_where_others_of_the_update_have():
    one = SequencePSKD([0, 2], C, EPOCHS, store=TopK(C))
    one.set_epoch(0)
    logits = torch.zeros(1, 3, C, requires_grad=True)
    loss = one.loss(logits, torch.full((1, 3), -100), torch.tensor([0]), denominator=2.0)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()
    with pytest.raises(UserError, match="every label of the batch is -100"):
        one.loss(logits, torch.full((1, 3), -100), torch.tensor([0]))
