"""The batch samplers that two peers need."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DistributedSampler

from retarget.pskd import peers


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(0, 5), st.integers(1, 7))
@settings(max_examples=50, deadline=None)
def test_partners_are_other_samples_of_the_class(labels, epoch, size):
    plain = [list(range(at, min(at + size, len(labels)))) for at in range(0, len(labels), size)]
    sampler = peers.SameClassPairs(plain, labels, seed=1)
    sampler.set_epoch(epoch)
    pairs = list(sampler)
    assert len(pairs) == len(sampler) == len(plain)
    for batch, own in zip(pairs, plain, strict=True):
        assert batch[: len(own)] == own
        for sample, partner in zip(own, batch[len(own) :], strict=True):
            assert labels[sample] == labels[partner]
            assert sample != partner or labels.count(labels[sample]) == 1
    assert pairs == list(sampler), "a function of seed and epoch alone"


def test_partners_are_drawn_evenly():
    labels = [0] * 5
    counts = np.zeros((5, 5))
    sampler = peers.SameClassPairs([[0]], labels, seed=0)
    for epoch in range(2000):
        sampler.set_epoch(epoch)
        counts[np.arange(5), sampler.partners()] += 1
    off = counts[~np.eye(5, dtype=bool)]
    assert counts.trace() == 0
    assert np.abs(off - 500).max() < 5 * np.sqrt(500 * 0.75)


def test_the_epoch_reaches_the_sampler_inside():
    inside = DistributedSampler(range(10), num_replicas=1, rank=0, seed=2)
    for sampler in (
        peers.LastBatch(BatchSampler(inside, 5, drop_last=True)),
        peers.SameClassPairs(BatchSampler(inside, 5, drop_last=True), [0] * 10, seed=0),
    ):
        sampler.sampler.set_epoch(4)
        assert inside.epoch == sampler.epoch == 4
        assert next(iter(sampler))[:5] == list(inside)[:5]
