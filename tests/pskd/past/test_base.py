"""Pasts as objects: made from ``store=``, passed in, and wrapped around another one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from retarget.pskd import PSKD, Dense, MemoryMapped, PreviousModel, TopK
from retarget.pskd.past.base import Past, past_of
from retarget.pskd.past.of_class import PastOfClass

N, C, EPOCHS = 6, 3, 3


@pytest.mark.parametrize("store", ["dense", TopK(2), "file", "model"], ids=str)
def test_every_store_names_a_past_and_a_past_names_itself(store, tmp_path):
    stores = {"file": MemoryMapped(tmp_path / "t", Dense()), "model": PreviousModel(nn.Linear(2, C))}
    past = past_of(stores.get(store, store) if isinstance(store, str) else store, N, C)
    assert isinstance(past, Past)
    assert past_of(past, None, C) is past
    assert past.num_rows == (None if store == "model" else N)


def test_a_past_of_the_users_own_softens_the_targets():
    class Uniform:
        """Predicts the same for every sample and stores nothing."""

        num_rows, num_bytes, kind = N, 0, "Uniform"

        def name(self, key):
            return f"sample {key}"

        def begin(self, epoch):
            self.begun = epoch

        def end(self): ...
        def check_labels(self, *batch): ...
        def write(self, *batch): ...

        def locate(self, keys, device):
            return keys

        def read(self, keys, device, inputs):
            return torch.full((len(keys), C), 1 / C), (keys != 5).float()

        def save(self):
            return {}

        def load(self, path, epoch, saved): ...

    method = PSKD(N, C, EPOCHS, alpha_T=0.6, store=Uniform())
    labels, index = torch.tensor([0, 2]), torch.tensor([1, 5])
    method.set_epoch(0)
    assert torch.equal(method.soften(labels, index), F.one_hot(labels, C).float())
    method.set_epoch(1)
    soft = method.soften(labels, index)
    torch.testing.assert_close(soft[0], 0.6 * torch.eye(C)[0] + 0.4 / C)
    torch.testing.assert_close(soft[1], torch.eye(C)[2])
    assert method.fallbacks == 1


@pytest.mark.parametrize("store", ["dense", TopK(C)], ids=str)
def test_the_past_of_a_class_is_another_samples_of_it_drawn_anew_each_epoch(store):
    labels = torch.tensor([0, 0, 0, 0, 1, 2])  # the last two are alone in their classes
    past = PastOfClass(past_of(store, N, C), labels, lambda epoch: np.random.default_rng([7, epoch]))
    method, plain = PSKD(N, C, EPOCHS, store=past), PSKD(N, C, EPOCHS, store=store)
    logits, others = torch.randn(N, C, generator=torch.Generator().manual_seed(0)), []
    for epoch in range(EPOCHS):
        method.set_epoch(epoch), plain.set_epoch(epoch)
        if epoch:
            (mixed, _), (own, _) = method.past_probs(torch.arange(N)), plain.past_probs(torch.arange(N))
            other = (mixed[:, None] - own[None]).abs().amax(2).argmin(1)
            assert torch.equal(mixed, own[other])
            assert torch.equal(labels[other], labels)
            assert (other[:4] != torch.arange(4)).all()
            assert other[4:].tolist() == [4, 5]
            others.append(other.tolist())
        for one in (method, plain):
            one.loss(logits * (epoch + 1), labels, torch.arange(N))
    assert others[0] != others[1]
    assert method.state_dict() == plain.state_dict()
