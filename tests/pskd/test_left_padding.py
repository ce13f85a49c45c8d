"""Causal language models padded on the left, where a sentence's first token is a target only behind padding."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Trainer

from retarget.errors import UserError
from retarget.pskd import PSKDTrainer, SequencePSKD
from retarget.pskd.own_loss import shifted
from retarget.pskd.sequences import LeftPadded

sys.path.insert(0, str(Path(__file__).parent))
import reference
import tiny

C, EPOCHS = 9, 4
SENTENCES = [[3, 1, 2], [5], [8, 8, 0, 2], [7, 2]]
MATES = ([[0, 1], [2, 3]], [[0, 3], [1], [2]], [[3, 1], [0, 2]], [[0, 1, 2, 3]])  # the batches of each epoch


def left(batch):
    width = max(len(SENTENCES[i]) for i in batch)
    return torch.tensor([[-100] * (width - len(SENTENCES[i])) + SENTENCES[i] for i in batch])


def test_losses_equal_a_slow_loop_whichever_sentences_are_padded_together():
    pskd, slow = SequencePSKD(LeftPadded(map(len, SENTENCES)), C, EPOCHS, store="dense"), reference.PastRows()
    for epoch, batches in enumerate(MATES):
        pskd.set_epoch(epoch)
        alpha = 0.8 * (epoch + 1) / EPOCHS if epoch else 0.0
        for step, batch in enumerate(batches):
            labels = left(batch)
            draw = torch.Generator().manual_seed(10 * epoch + step)
            logits = torch.randn(*labels.shape, C, generator=draw, dtype=torch.float64)
            z, targets = [], []
            for row, i in enumerate(batch):
                padding = labels.shape[1] - len(SENTENCES[i])
                for place, token in enumerate(SENTENCES[i]):
                    at = padding + place - 1  # the logits before a token predict it
                    if at < 0:
                        continue
                    past = slow.read(epoch, (i, place))
                    hard = np.eye(C)[token]
                    targets.append(hard if past is None else (1 - alpha) * hard + alpha * past)
                    z.append(logits[row, at].numpy())
                    slow.write(epoch, (i, place), reference.softmax(logits[row, at : at + 1].numpy())[0])
            if z:
                loss = pskd.loss(logits, shifted(labels, -100), torch.tensor(batch))
                assert loss.item() == pytest.approx(reference.loss(z, targets), abs=1e-6)


def test_only_the_first_target_may_be_missing():
    pskd = SequencePSKD(LeftPadded([3]), C, 2)
    pskd.set_epoch(0)
    pskd.loss(torch.zeros(1, 3, C), torch.tensor([[4, 5, -100]]), torch.tensor([0]))
    with pytest.raises(UserError, match=r"has 2 targets but 3 rows.*padded on the left.*attention_mask"):
        pskd.loss(torch.zeros(1, 4, C), torch.tensor([[-100, 4, 5, -100]]), torch.tensor([0]))
    with pytest.raises(UserError, match="has 1 targets but 3 rows"):
        pskd.loss(torch.zeros(1, 3, C), torch.tensor([[4, -100, -100]]), torch.tensor([0]))


def whole():
    """Sentences of which every token is trained on."""
    return [{**one, "labels": one["input_ids"]} for one in tiny.sentences(12)]


def train(kind, folder, collator, **more):
    trainer = kind(
        model=tiny.language_model(), args=tiny.arguments(folder, num_train_epochs=3), train_dataset=whole(),
        data_collator=collator, **more,
    )  # fmt: skip
    trainer.train()
    return trainer


def test_the_trainer_pads_on_the_left_and_trains_as_the_librarys_with_alpha_0(tmp_path):
    theirs = train(Trainer, tmp_path, tiny.pad_left)
    off, on = (train(PSKDTrainer, tmp_path, tiny.pad_left, alpha_T=alpha) for alpha in (0.0, 0.8))
    for p, q, r in zip(theirs.model.parameters(), off.model.parameters(), on.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
        assert r.isfinite().all()
    tokens = sum(len(one["input_ids"]) for one in whole())
    assert on.pskd.num_samples == tokens
    assert train(PSKDTrainer, tmp_path, tiny.pad).pskd.num_samples == tokens - len(whole())
