"""Which row an epoch reads, in which form rows are stored, and what is left after a crash."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.errors import UserError
from retarget.pskd.past.files import MemoryMapped
from retarget.pskd.past.rows import Dense, TopK, largest
from retarget.pskd.past.table import Table, first_occurrence, row_format

sys.path.insert(0, str(Path(__file__).parent.parent))
import reference


def logits_that_store(values, classes=4):
    """Logits whose softmax tells the rows apart."""
    return torch.stack([torch.arange(classes) * 0.1 + float(v) * torch.eye(classes)[0] for v in values])


@given(
    st.lists(  # epochs of batches of samples: repeats, missing samples and empty epochs all occur
        st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), max_size=4), min_size=1, max_size=6
    ),
    st.sampled_from(["dense", "topk", "file"]),
)
@settings(max_examples=60, deadline=None)
def test_an_epoch_reads_the_newest_row_from_before_it(tmp_path_factory, epochs, kind):
    rows = TopK(4) if kind == "topk" else Dense()
    path = tmp_path_factory.mktemp("table") if kind == "file" else None
    table, slow = Table(rows, 6, 4, path=path), reference.PastRows()
    value = 0.0
    for epoch, batches in enumerate(epochs):
        table.begin(epoch)
        for batch in batches:
            index = torch.tensor(batch)
            fields, written = table.gather(index)
            past = rows.decode(fields, 4)
            past = past if isinstance(past, torch.Tensor) else past.dense(4)
            for row, sample in enumerate(batch):
                expected = slow.read(epoch, sample)
                assert bool(written[row]) == (expected is not None)
                if expected is not None:
                    np.testing.assert_allclose(past[row].numpy(), expected, atol=2e-3)
            logits = logits_that_store([value + row for row in range(len(batch))])
            value += len(batch)
            for row, sample in enumerate(batch):
                slow.write(epoch, sample, reference.softmax(logits[row : row + 1].double().numpy())[0])
            table.write(
                index, rows.encode(logits, torch.zeros(len(batch), dtype=torch.long)), torch.ones_like(index).bool()
            )


@pytest.mark.parametrize("classes", [7, 767, 768, 769, 832, 3000])  # in two steps from 768 on, in groups of 64
def test_the_largest_of_wide_rows_are_those_of_topk(classes):
    generator = torch.Generator().manual_seed(classes)
    z = torch.randn(5, classes, generator=generator)
    z[0, -3:] = 9.0 + torch.arange(3)  # in the last, incomplete group
    z[1, : 3 * (classes // 3)] = 2.0  # equal ones
    z[2, :] = torch.arange(classes)
    z[3, classes // 128 * 64 :][:3] = 9.0 + torch.arange(3)  # all in one group in the middle
    values, places = largest(z, 3)
    torch.testing.assert_close(values, z.topk(3, dim=1).values, rtol=0, atol=0)
    torch.testing.assert_close(z.gather(1, places), values, rtol=0, atol=0)
    assert all(len(row.unique()) == 3 for row in places)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dense_rows_keep_the_distribution(dtype):
    logits = torch.randn(50, 30)
    decoded = Dense(dtype).decode(Dense(dtype).encode(logits, torch.zeros(50, dtype=torch.long)), 30)
    tolerance = {"float32": 1e-7, "float16": 1e-3, "bfloat16": 1e-2}[dtype]
    np.testing.assert_allclose(decoded.numpy(), torch.softmax(logits, 1).numpy(), atol=tolerance)
    np.testing.assert_allclose(decoded.sum(1).numpy(), 1, atol=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from(["uniform", "renormalise"]))
@settings(max_examples=50, deadline=None)
def test_top_k_rows_keep_the_true_class_and_sum_to_one(seed, k, residual):
    g = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(8, 12, generator=g)
    labels = torch.randint(12, (8,), generator=g)
    form = TopK(k, residual)
    rows = form.decode(form.encode(logits, labels), 12)
    assert (rows.classes == labels[:, None]).any(1).all()
    assert all(len(set(row)) == k for row in rows.classes.tolist())
    dense = rows.dense(12)
    np.testing.assert_allclose(dense.sum(1).numpy(), 1, atol=1e-5)
    if residual == "uniform":  # listed probabilities are the softmax's own, up to float16 rounding
        listed = torch.softmax(logits, 1).gather(1, rows.classes)
        np.testing.assert_allclose(rows.values.numpy(), listed.numpy(), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("classes", [40_000, 65_536, 70_000])
def test_class_numbers_above_sixteen_bits_survive(classes):
    labels = torch.tensor([classes - 1, 0, classes // 2])
    form = TopK(3)
    rows = form.decode(form.encode(torch.randn(3, classes), labels), classes)
    assert (rows.classes == labels[:, None]).any(1).all()
    assert rows.classes.max() < classes
    assert form.fields(classes)["classes"][1] == (torch.int32 if classes > 65_536 else torch.int16)


def test_bytes_a_row():
    assert Table(TopK(10), 100, 1000).bytes_per_row <= 60
    assert Table(Dense("float16"), 100, 1000).bytes_per_row == 2004


def test_a_restarted_epoch_forgets_its_own_rows_and_keeps_the_earlier_ones(tmp_path):
    for table in (Table(Dense(), 3, 4), Table(Dense(), 3, 4, path=tmp_path / "t")):
        everyone, keep = torch.arange(3), torch.ones(3, dtype=torch.bool)
        for epoch in range(3):
            table.begin(epoch)
            table.write(
                everyone, Dense().encode(logits_that_store([epoch] * 3), torch.zeros(3, dtype=torch.long)), keep
            )
        table.begin(2)  # killed in epoch 2, resumed there
        fields, written = table.gather(everyone)
        assert written.all()
        torch.testing.assert_close(fields["probs"], torch.softmax(logits_that_store([1] * 3), 1))
        table.begin(0)
        assert not table.gather(everyone)[1].any()


def test_a_memory_mapped_table_is_found_again_and_refused_when_it_does_not_fit(tmp_path):
    path = tmp_path / "table"
    table = Table(TopK(2), 5, 7, path=path)
    table.begin(0)
    table.write(torch.tensor([3]), TopK(2).encode(torch.randn(1, 7), torch.tensor([6])), torch.tensor([True]))
    again = Table(TopK(2), 5, 7, path=path)
    again.begin(1)
    assert again.gather(torch.arange(5))[1].tolist() == [False, False, False, True, False]
    with pytest.raises(UserError, match=r"holds a table of another shape: found .*need"):
        Table(TopK(3), 5, 7, path=path)
    (path / "values.bin").write_bytes(b"short")
    with pytest.raises(UserError, match="the table is damaged"):
        Table(TopK(2), 5, 7, path=path)
    (path / "layout.json").unlink()  # as a kill leaves it while the files are made
    assert not Table(TopK(2), 5, 7, path=path).gather(torch.arange(5))[1].any()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(UserError, match="is not empty but holds no table"):
        Table(TopK(2), 5, 7, path=tmp_path / "other")


def test_first_occurrence_counts_only_the_places_asked_for():
    index = torch.tensor([2, 2, 5, 2, 5])
    assert first_occurrence(index, torch.ones(5).bool()).tolist() == [True, False, True, False, False]
    among = torch.tensor([False, True, True, True, False])
    assert first_occurrence(index, among).tolist() == [False, True, True, False, False]


def test_stores_that_make_no_sense_are_refused():
    for bad, message in [
        (lambda: TopK(0), "k of TopK must be at least 1"),
        (lambda: TopK(11).fields(10), r"TopK\(11\) is more than the 10"),
    ]:
        with pytest.raises(UserError, match=message):
            bad()
    assert row_format(MemoryMapped("x", TopK(3))) == TopK(3)
