"""PSKD's state: what a resumed run finds, and which states are refused."""

import re
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from plain_loop import EPOCHS, C, N, data, network, order, same_weights, train

from retarget.errors import UserError
from retarget.pskd import PSKD, Dense, MemoryMapped, PreviousModel, SequencePSKD, TopK
from retarget.pskd.past.state import write_state


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


def test_an_epoch_that_is_set_in_each_step_is_warned_of():
    def run(steps, begins, steps_per_epoch=4):
        method = PSKD(8, C, 2)
        for step in range(steps):
            if begins(step):
                method.set_epoch(step // steps_per_epoch)
            index = torch.arange(2) + 2 * (step % steps_per_epoch)
            method.loss(torch.randn(2, C), index % C, index)

    with pytest.warns(UserWarning, match=r"set_epoch\(0\) was called a third time, after 2 samples.*forgets") as caught:
        run(4, lambda step: True)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(8, lambda step: step % 4 == 0)  # as the card says
        retried = PSKD(8, C, 2)
        for epoch in (0, 0, 1, 1):
            retried.set_epoch(epoch)
            retried.loss(torch.randn(8, C), torch.arange(8) % C, torch.arange(8))


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


def test_rows_in_files_that_no_state_was_loaded_for_are_told_of(tmp_path):
    store = MemoryMapped(tmp_path / "table", Dense())
    method = PSKD(N, C, EPOCHS, store=store)
    method.set_epoch(0)
    method.loss(network()(data()[0]), data()[1], torch.arange(N))
    again = PSKD(N, C, EPOCHS, store=MemoryMapped(tmp_path / "table", Dense()))
    with pytest.warns(
        UserWarning, match=r"set_epoch\(1\), but no saved state was loaded: the rows in .*table are used"
    ):
        again.set_epoch(1)
    assert again.past_probs(torch.arange(N))[1].all()


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


def test_a_memory_mapped_table_that_is_older_than_its_state_is_refused(tmp_path):
    def make(place):
        return PSKD(N, C, EPOCHS, store=MemoryMapped(tmp_path / place, Dense()))

    method = make("table")
    for epoch in range(4):
        part(method, epoch, ROWS_IN_ORDER)
        method.save(tmp_path / f"{epoch}.safetensors")
        shutil.copytree(tmp_path / "table", tmp_path / f"copy-{epoch}")
    with pytest.raises(
        UserError, match=r"3.safetensors was saved in epoch 3, .* rows of epoch 2, but the latest in the table at "
        r".*copy-1 are of epoch 1: its files are older than the state, so put back those of its time"
    ):  # fmt: skip
        make("copy-1").load(tmp_path / "3.safetensors")
    again = make("copy-2")  # has what epoch 3 reads, but not what it wrote
    again.load(tmp_path / "3.safetensors")
    message = r"had rows of epoch 3, but the latest in the table at .*copy-2 are of epoch 2"
    with pytest.raises(UserError, match=message):
        again.set_epoch(4)
    with pytest.raises(UserError, match=message):
        part(again, 3, ROWS_IN_ORDER[2:], begin=False)
    again = make("copy-2")
    again.load(tmp_path / "3.safetensors")
    assert part(again, 3, ROWS_IN_ORDER) == part(
        make_loaded(make("copy-3"), tmp_path / "3.safetensors"), 3, ROWS_IN_ORDER
    )


def make_loaded(method, state):
    method.load(state)
    return method


def test_epochs_that_remember_nothing_do_not_make_a_memory_mapped_table_old(tmp_path):
    def make():
        return PSKD(N, C, EPOCHS, store=MemoryMapped(tmp_path / "table", Dense()))

    method, (_, y) = make(), data()
    part(method, 0, ROWS_IN_ORDER)
    for epoch in (1, 2, 3):  # all inputs are changed ones, or mixed: only the place of what is not stored is written
        method.set_epoch(epoch)
        method.save(tmp_path / "begun")
        make_loaded(make(), tmp_path / "begun")
        method.loss(torch.randn(N, C), y, torch.arange(N), remember=False)
        method.loss(torch.randn(N, C), y, torch.arange(N), mixed=torch.full((N, N), 1 / N))
        method.save(tmp_path / "state")
    again = make_loaded(make(), tmp_path / "state")
    again.set_epoch(4)
    assert again.past_probs(torch.arange(N))[1].all()


def test_a_memory_mapped_table_that_may_be_older_than_a_state_of_version_0_1_is_told_of(tmp_path):
    """Such a state does not say which rows there were."""
    store = MemoryMapped(tmp_path / "table", Dense())
    method = PSKD(N, C, EPOCHS, store=store)
    for epoch in range(2):
        part(method, epoch, ROWS_IN_ORDER)
    for epoch in (1, 2, 3):
        write_state(tmp_path / "old", "retarget.pskd", {**method.state_dict(), "epoch": epoch}, {})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            PSKD(N, C, EPOCHS, store=store).load(tmp_path / "old")
        assert [re.findall("are of epoch 1: unless", str(one.message)) for one in caught] == [
            ["are of epoch 1: unless"]
        ] * (epoch == 3)


def part(method, epoch, batches, begin=True):
    """Train nothing: each epoch's logits are its own, so every loss tells which past it was softened with."""
    if begin:
        method.set_epoch(epoch)
    logits, (_, y) = 3 * torch.randn(N, C, generator=torch.Generator().manual_seed(epoch)), data()
    return [method.loss(logits[index], y[index], index).item() for index in batches]


ROWS_IN_ORDER = torch.arange(N).split(4)


@pytest.mark.parametrize(
    ("epoch", "ran_on", "exact"),
    [
        (2, [(2, 2, 3)], True),  # killed later in the same epoch
        (2, [(2, 2, 3), (3, 0, 2)], True),  # in the next one, which had seen what was done before the save
        (2, [(2, 2, 3), (3, 0, 3)], False),
        (0, [(0, 2, 3), (1, 0, 3)], True),  # the first epoch reads no past
    ],
)
def test_a_state_of_the_middle_of_an_epoch_with_rows_in_files_is_resumed_exactly_or_refused(
    epoch, ran_on, exact, tmp_path
):
    def make(place="killed"):
        return PSKD(N, C, EPOCHS, store=MemoryMapped(tmp_path / place, Dense()))

    whole = make("whole")
    expected = [part(whole, number, ROWS_IN_ORDER) for number in range(EPOCHS)]

    killed = make()
    for number in range(epoch):
        part(killed, number, ROWS_IN_ORDER)
    part(killed, epoch, ROWS_IN_ORDER[:2])
    killed.save(tmp_path / "middle")
    for number, first, last in ran_on:
        part(killed, number, ROWS_IN_ORDER[first:last], begin=number > epoch)

    again = make()
    again.load(tmp_path / "middle")
    if not exact:
        message = (
            r"middle was saved in epoch 2, and going on within it needs the past of sample {}, which epoch 3 has "
            r"overwritten in the table at .*killed: resume from a later state, saved at the end of epoch 2"
        )
        with pytest.raises(UserError, match=message.format(8)):
            part(again, epoch, ROWS_IN_ORDER[2:], begin=False)
        with pytest.raises(UserError, match=message.format(0)):
            again.set_epoch(epoch)
        again.set_epoch(epoch + 1)  # as after a state of the epoch's end
        assert part(again, epoch + 1, ROWS_IN_ORDER, begin=False) == expected[epoch + 1]
        return
    assert part(again, epoch, ROWS_IN_ORDER[2:], begin=False) == expected[epoch][2:]
    assert [part(again, number, ROWS_IN_ORDER) for number in range(epoch + 1, EPOCHS)] == expected[epoch + 1 :]


def test_rows_in_files_are_not_lost_on_the_way_into_memory(tmp_path):
    method = PSKD(N, C, EPOCHS, store=MemoryMapped(tmp_path / "table", Dense("float16")))
    train(method, epochs=range(2))
    method.save(tmp_path / "state")
    with pytest.raises(UserError, match=r"has no rows: .*pass MemoryMapped"):
        PSKD(N, C, EPOCHS, store=Dense("float16")).load(tmp_path / "state")


def test_a_table_belongs_to_one_process_at_a_time(tmp_path):
    store = MemoryMapped(tmp_path / "table", Dense())
    words = f"""
import torch
from retarget.pskd import PSKD, Dense, MemoryMapped
method = PSKD({N}, {C}, {EPOCHS}, store=MemoryMapped({str(tmp_path / "table")!r}, Dense()))
method.set_epoch(0)
method.loss(torch.randn(1, {C}), torch.tensor([0]), torch.tensor([0]))
"""
    held = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=False)
    assert held.returncode == 0, held.stderr
    train(PSKD(N, C, EPOCHS, store=store), epochs=range(1))
    train(PSKD(N, C, EPOCHS, store=store), epochs=range(1))  # again in this process, as in a notebook
    refused = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=False)
    assert "is in use by another process: give each run a path of its own" in refused.stderr


@pytest.mark.parametrize("there", ["a file", "damaged"])
def test_a_place_that_holds_no_table_is_named(tmp_path, there):
    if there == "a file":
        (tmp_path / "table").write_text("")
    else:
        (tmp_path / "table").mkdir()
        (tmp_path / "table" / "layout.json").write_text("{")
    with pytest.raises(UserError, match="is a file" if there == "a file" else "is damaged"):
        train(PSKD(N, C, EPOCHS, store=MemoryMapped(tmp_path / "table", Dense())), epochs=range(1))


def test_saves_within_an_epoch_neither_warn_of_what_is_few_nor_hide_what_is_all(tmp_path):
    """Samples drawn with replacement: a third has no past row, and each part of an epoch is counted in the whole."""
    drawn = np.random.default_rng(0).integers(0, 1000, size=(2, 10, 100))
    method = PSKD(1000, 3, 4)
    for epoch in range(2):
        method.set_epoch(epoch)
        for batch in torch.from_numpy(drawn[epoch]):
            index = batch.unique()
            method.loss(torch.randn(len(index), 3), index % 3, index)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                method.save(tmp_path / "state")
    assert 300 < method.fallbacks < 450
    method = PSKD(1000, 3, 4)
    method.set_epoch(0)
    method.loss(torch.randn(1, 3), torch.tensor([0]), torch.tensor([0]))  # all that is remembered
    method.set_epoch(1)
    for number, index in enumerate(torch.arange(1000).view(10, 100)):
        method.soften(index % 3, index)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            method.save(tmp_path / "state")
        assert len(caught) == (number == 0), "once in an epoch"


def test_a_state_that_was_restored_without_its_rows_is_refused_by_a_form_with_several_rows_per_sample():
    """It reads them through a form of its own."""
    logits, words, index = torch.randn(2, 3, C), torch.ones(2, 3).long(), torch.arange(2)

    def make():
        return SequencePSKD([3, 3], C, EPOCHS)

    method, restored = make(), make()
    for epoch in range(2):
        method.set_epoch(epoch)
        method.loss(logits, words, index)
    restored.load_state_dict(method.state_dict())
    with pytest.raises(UserError, match="has restored epoch 1 alone"):
        restored.loss(logits, words, index)
    method.load_state_dict(method.state_dict())  # its own: nothing is lacking
    method.set_epoch(2)


@pytest.mark.parametrize("kind", ["dense", "file", "model"])
def test_a_state_that_was_restored_without_its_table_is_refused_before_it_is_read(kind, tmp_path):
    """accelerate's ``register_for_checkpointing`` saves and restores ``state_dict()`` alone."""
    x, y, index = torch.randn(N, 6), torch.arange(N) % C, torch.arange(N)

    def make():
        model = network()
        past = {"dense": Dense(), "file": MemoryMapped(tmp_path / "table"), "model": PreviousModel(model)}[kind]
        return PSKD(N, C, EPOCHS, store=past)

    method = make()
    for epoch in range(2):
        method.set_epoch(epoch)
        method.loss(torch.randn(N, C), y, index, inputs=x)
    state = method.state_dict()
    method.save(tmp_path / "state")
    restored = make()
    restored.load_state_dict(state)
    told = r"load_state_dict\(\) has restored epoch 1 alone, and the past .*: call load\(\) with the file"
    uses = [lambda: restored.soften(y, index, inputs=x), lambda: restored.set_epoch(1),
            lambda: restored.save(tmp_path / "other")]  # fmt: skip
    for use in uses if kind == "model" else [*uses, lambda: restored.set_epoch(2)]:  # a model begins with its weights
        with pytest.raises(UserError, match=told):
            use()
    restored.load(tmp_path / "state")
    restored.set_epoch(2)
    anew = make()
    anew.load_state_dict(state)
    anew.set_epoch(0)
    anew.loss(torch.randn(N, C), y, index, inputs=x)
