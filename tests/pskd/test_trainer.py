"""The Hugging Face Trainer with PS-KD, on tiny real models."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from torch.utils.data import IterableDataset, Sampler
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback, TrainingArguments

from retarget.errors import UserError
from retarget.pskd import (
    PSKD,
    MemoryMapped,
    PreviousModel,
    PSKDSeq2SeqTrainer,
    PSKDTrainer,
    SequencePSKD,
    TopK,
    with_index,
)
from retarget.pskd.trainer import STATE_FILE

sys.path.insert(0, str(Path(__file__).parent))
import tiny

EPOCHS = 3
KINDS = {
    "classifier": (tiny.classifier, tiny.texts, None, PSKDTrainer, Trainer),
    "translator": (tiny.translator, tiny.pairs, tiny.pad, PSKDSeq2SeqTrainer, Seq2SeqTrainer),
    "self_shifting": (tiny.self_shifting_translator, tiny.pairs, tiny.pad, PSKDSeq2SeqTrainer, Seq2SeqTrainer),
    "language_model": (tiny.language_model, tiny.sentences, tiny.pad, PSKDTrainer, Trainer),
    "plain": (tiny.Plain, tiny.vectors, None, PSKDTrainer, Trainer),
}
NORMED = {"normed": (tiny.Normed, tiny.vectors, None, PSKDTrainer, Trainer)}


def arguments(folder, seq2seq=False, **more):
    settings = dict(
        output_dir=str(folder), use_cpu=True, num_train_epochs=EPOCHS, per_device_train_batch_size=8, learning_rate=0.2,
        optim="sgd", lr_scheduler_type="constant", max_grad_norm=0, report_to=[], disable_tqdm=True,
        logging_strategy="no", save_strategy="no", dataloader_pin_memory=False, seed=5,
    )  # fmt: skip
    return (Seq2SeqTrainingArguments if seq2seq else TrainingArguments)(**{**settings, **more})


def trainer(kind, folder, *, plain=False, dropout=None, pskd=None, data=None, collator=None, **more):
    model, samples, pad, ours, theirs = {**KINDS, **NORMED}[kind]
    args = arguments(folder, seq2seq=ours is PSKDSeq2SeqTrainer, **more)
    network = model() if dropout is None else model(dropout)
    shared = dict(
        model=network, args=args, train_dataset=data or samples(), eval_dataset=samples(), data_collator=collator or pad
    )
    if pskd and pskd.get("store") == "model":
        pskd = {**pskd, "store": PreviousModel(network)}
    return theirs(**shared) if plain else ours(**shared, **(pskd or {}))


def weights(one):
    return [p.detach().clone() for p in one.model.parameters()]


def assert_close(a, b, atol):
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_alpha_zero_equals_the_librarys_trainer(kind, smoothing, tmp_path):
    if kind in ("plain", "self_shifting") and smoothing:
        pytest.skip("the library reads model.config, or lets the model shift its labels, for label smoothing")
    more = {"label_smoothing_factor": smoothing, "per_device_train_batch_size": 4}
    control = trainer(kind, tmp_path, plain=True, collator=_with_decoder_inputs(kind, smoothing), **more)
    off = trainer(kind, tmp_path, pskd={"alpha_T": 0.0}, **more)
    control.train(), off.train()
    assert_close(weights(control), weights(off), atol=1e-6 if smoothing else 0)
    on = trainer(kind, tmp_path, **more)
    on.train()
    assert max((p - q).abs().max() for p, q in zip(weights(on), weights(off), strict=True)) > 1e-5


def _with_decoder_inputs(kind, smoothing):
    """The library's label smoothing leaves decoder_input_ids to the collator; PS-KD makes them."""
    if kind != "translator" or not smoothing:
        return None
    model = tiny.translator()

    def collate(features):
        batch = tiny.pad(features)
        return {**batch, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(batch["labels"])}

    return collate


@pytest.mark.parametrize("store", [TopK(3), "model"], ids=str)
@pytest.mark.parametrize("kind", ["classifier", "translator", "language_model"])
def test_it_trains_as_a_plain_loop_does(kind, store, tmp_path):
    """One batch per epoch, so that the order of samples does not matter."""
    ours = trainer(kind, tmp_path, pskd={"store": store}, label_smoothing_factor=0.1)
    ours.train()
    model, samples, pad, *_ = KINDS[kind]
    network, data = model(), samples()
    store = PreviousModel(network) if store == "model" else store
    if kind == "classifier":
        batch = {"input_ids": torch.stack([one["input_ids"] for one in data])}
        labels = torch.tensor([one["labels"] for one in data])
        method = PSKD(8, 3, EPOCHS, store=store)
    else:
        batch = pad(data)
        labels = batch.pop("labels")
        if kind == "translator":
            batch["decoder_input_ids"] = network.prepare_decoder_input_ids_from_labels(labels)
        else:
            labels = torch.cat([labels[:, 1:], torch.full((8, 1), -100)], 1)
        method = SequencePSKD((labels != -100).sum(1).tolist(), tiny.VOCABULARY, EPOCHS, store=store)
    optimizer = torch.optim.SGD(network.parameters(), 0.2)
    network.train()
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        method.loss(network(**batch).logits, labels, torch.arange(8), inputs=batch, smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_close(weights(ours), [p.detach() for p in network.parameters()], atol=1e-6)


@pytest.mark.parametrize("store", [None, "model"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_accumulation_changes_nothing(kind, store, tmp_path):
    more = {"pskd": {"store": store}}
    one, four = (
        trainer(kind, tmp_path, per_device_train_batch_size=8 // steps, gradient_accumulation_steps=steps, **more)
        for steps in (1, 4)
    )
    one.train(), four.train()
    assert_close(weights(one), weights(four), atol=1e-6)
    assert one.pskd.fallbacks == four.pskd.fallbacks == 0


def test_padding_on_the_left_changes_nothing(tmp_path):
    right, left = (trainer("language_model", tmp_path, collator=pad) for pad in (tiny.pad, tiny.pad_left))
    for one in (right, left):  # positions of the tokens must not depend on padding: leave them out
        torch.nn.init.zeros_(one.model.transformer.wpe.weight)
        one.model.transformer.wpe.weight.requires_grad_(False)
        one.train()
    assert_close(weights(right), weights(left), atol=1e-5)


def _with_index(features):
    """A caller's collator that keeps the index, which ``generate`` would refuse."""
    batch = tiny.pad(features)
    if "index" in features[0]:
        batch["index"] = torch.tensor([one["index"] for one in features])
    return batch


@pytest.mark.parametrize("kind", ["classifier", "translator"])
def test_evaluation_reads_and_writes_no_row(kind, tmp_path):
    more = {"predict_with_generate": True, "collator": _with_index} if kind == "translator" else {}
    quiet = trainer(kind, tmp_path, per_device_train_batch_size=4)
    watched = trainer(
        kind, tmp_path, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=1, eval_on_start=True, **more
    )
    watched.eval_dataset = with_index(KINDS[kind][1]())  # even where the evaluation set has an index
    quiet.train(), watched.train()
    before = {name: value.clone() for name, value in watched.pskd.past.table.tensors().items()}
    assert all(torch.equal(before[name], value) for name, value in quiet.pskd.past.table.tensors().items())
    assert_close(weights(quiet), weights(watched), atol=0)
    prediction = watched.predict(watched.eval_dataset)
    assert all(torch.equal(before[name], value) for name, value in watched.pskd.past.table.tensors().items())
    if kind == "translator":
        assert prediction.predictions.dtype.kind == "i"
    # in evaluation the loss is that of the hard labels
    plain = trainer(kind, tmp_path, plain=True)
    plain.model.load_state_dict(watched.model.state_dict())
    assert watched.evaluate(KINDS[kind][1]())["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"])


@pytest.mark.parametrize("generate", [False, True])
def test_label_smoothing_evaluates_without_decoder_inputs_from_the_collator(generate, tmp_path):
    settings = {"label_smoothing_factor": 0.1, "predict_with_generate": generate}
    ours = trainer("translator", tmp_path, **settings)
    ours.train()
    theirs = trainer("translator", tmp_path, plain=True, collator=_with_decoder_inputs("translator", 0.1), **settings)
    theirs.model.load_state_dict(ours.model.state_dict())
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"])


def test_a_class_of_the_users_own_is_causal_as_its_base_is(tmp_path):
    own, plain = trainer("language_model", tmp_path), trainer("language_model", tmp_path)
    own.model.__class__ = type("MyOwn", (type(own.model),), {})
    own.train(), plain.train()
    assert_close(weights(own), weights(plain), atol=0)


@pytest.mark.parametrize("save", ["epoch", "middle"])
@pytest.mark.parametrize(
    ("kind", "store"), [("classifier", None), ("translator", "file"), ("translator", "model"), ("normed", "model")]
)
def test_a_resumed_run_equals_an_uninterrupted_one(kind, store, save, tmp_path):
    steps = {"epoch": 4, "middle": 3}[save]  # two steps per epoch
    more = dict(dropout=0.1, per_device_train_batch_size=4, save_strategy="steps", save_steps=steps)

    def make(name):
        pskd = {"store": MemoryMapped(tmp_path / f"table-{name}", TopK(5)) if store == "file" else store}
        return trainer(kind, tmp_path / name, pskd=pskd, **more)

    whole = make("whole")
    whole.train()
    killed = make("killed")
    killed.add_callback(_StopAt(steps))
    killed.train()
    again = make("killed")
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2 * EPOCHS
    assert_close(weights(whole), weights(again), atol=0)
    assert (tmp_path / "whole" / f"checkpoint-{steps}" / STATE_FILE).is_file()


def test_the_previous_model_is_a_copy_under_mixed_precision_too(tmp_path):
    keep = _KeepWeights()
    ours = trainer("translator", tmp_path, pskd={"store": "model"}, bf16=True)
    ours.add_callback(keep)
    ours.train()
    batch = tiny.pad(tiny.pairs())
    labels = batch.pop("labels")
    model = tiny.translator().eval()
    batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        past, now = ours.pskd.teacher.logits(batch), ours.model.eval()(**batch).logits
        model.load_state_dict(keep.began[-1])
        torch.testing.assert_close(past.float(), model(**batch).logits.float(), rtol=0, atol=0)
    assert (past - now).abs().max() > 0.01


class _KeepWeights(TrainerCallback):
    def __init__(self):
        self.began = []

    def on_epoch_begin(self, args, state, control, model=None, **kwargs):
        self.began.append({name: value.clone() for name, value in model.state_dict().items()})


def test_a_previous_model_of_another_model_is_refused(tmp_path):
    ours = PSKDTrainer(
        model=tiny.classifier(), args=arguments(tmp_path), train_dataset=tiny.texts(),
        store=PreviousModel(tiny.classifier()),
    )  # fmt: skip
    with pytest.raises(UserError, match="not a copy of it"):
        ours.train()


class _StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_a_checkpoint_without_a_table_is_refused(tmp_path):
    control = trainer("classifier", tmp_path, plain=True, save_strategy="epoch")
    control.train()
    with pytest.raises(UserError, match=f"checkpoint-3 has no {STATE_FILE}"):
        trainer("classifier", tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(UserError, match="no checkpoint"):
        trainer("classifier", tmp_path / "empty").train(resume_from_checkpoint=True)


def test_a_memory_mapped_table_that_is_gone_is_refused(tmp_path):
    def make(table):
        return trainer("classifier", tmp_path, pskd={"store": MemoryMapped(tmp_path / table, TopK(2))})

    saved = trainer(
        "classifier", tmp_path, pskd={"store": MemoryMapped(tmp_path / "a", TopK(2))}, save_strategy="epoch"
    )
    saved.train()
    with pytest.raises(UserError, match="b is empty"):
        make("b").train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_other_settings_than_the_checkpoints_are_refused(tmp_path):
    trainer("classifier", tmp_path, save_strategy="epoch").train()
    changed = trainer("classifier", tmp_path, pskd={"alpha_T": 0.5}, num_train_epochs=5)
    with pytest.raises(UserError, match=r"total_epochs = 3 \(now 5\), alpha_T = 0.8 \(now 0.5\)"):
        changed.train(resume_from_checkpoint=True)


def test_the_index_survives_a_datasets_dataset_with_columns_the_model_does_not_take(tmp_path):
    rows = [{**one, "input_ids": one["input_ids"].tolist()} for one in tiny.texts()]
    table = datasets.Dataset.from_list(rows)
    ours, lists = trainer("classifier", tmp_path, data=table), trainer("classifier", tmp_path)
    ours.train(), lists.train()
    assert_close(weights(ours), weights(lists), atol=0)
    assert ours.pskd.fallbacks == 0


def test_training_twice_starts_anew(tmp_path):
    ours = trainer("classifier", tmp_path)
    ours.train()
    first = ours.pskd
    ours.train()
    assert ours.pskd is not first
    assert ours.pskd.epoch == EPOCHS - 1


def test_the_log_names_alpha_and_samples_without_a_row(tmp_path):
    ours = trainer("classifier", tmp_path, logging_strategy="epoch")
    ours.train()
    lines = [line for line in ours.state.log_history if "pskd_alpha" in line]
    assert [line["pskd_alpha"] for line in lines] == pytest.approx([0.0, 0.8 * 2 / 3, 0.8])
    assert [line["pskd_fallbacks"] for line in lines] == [0, 0, 0]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(tiny.texts())


class Packing:
    """Packs two sentences into one row."""

    def __call__(self, features):
        return tiny.pad([{k: a[k] + b[k] for k in a} for a, b in zip(features[::2], features[1::2], strict=True)])


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("classifier", {"data": Stream(), "max_steps": 2}, "iterable dataset has neither stable indices"),
        ("language_model", {"collator": Packing()}, "the collator made 4 rows of 8 samples, so the targets cannot"),
        ("classifier", {"pskd": {"alpha_T": 2.0}}, "alpha_T must lie in"),
        ("plain", {"data": [{**one, "labels": 0.5} for one in tiny.vectors()]}, "needs class labels"),
        ("translator", {"pskd": {"lengths": [1] * 8}}, "rows in the table"),
        ("self_shifting", {"label_smoothing_factor": 0.1}, "let the collator add decoder_input_ids"),
    ],
)
def test_what_cannot_work_is_refused(kind, change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        trainer(kind, tmp_path, **change).train()


def test_an_endless_sampler_is_refused(tmp_path):
    class Endless(Sampler):
        def __iter__(self):
            return itertools.cycle(range(8))

    class Sampled(PSKDTrainer):
        def _get_train_sampler(self, *_):
            return Endless()

    with pytest.raises(UserError, match="the training loader has no length"):
        Sampled(model=tiny.classifier(), args=arguments(tmp_path, max_steps=6), train_dataset=tiny.texts()).train()


def test_a_loss_of_the_callers_own_is_refused(tmp_path):
    with pytest.raises(UserError, match="compute_loss_func"):
        PSKDTrainer(
            model=tiny.classifier(),
            args=arguments(tmp_path),
            train_dataset=tiny.texts(),
            compute_loss_func=lambda outputs, labels, num_items_in_batch: outputs.logits.sum(),
        )


def test_two_processes_equal_one(tmp_path):
    """Eight translations of different lengths in an update, on one process, and on two."""

    def train(world):
        port = str(29_500 + os.getpid() % 2000 + world)
        ranks = [
            subprocess.Popen(
                [sys.executable, str(Path(__file__).parent / "trainer_rank.py"), str(tmp_path), str(world)],
                env={
                    **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                    "MASTER_ADDR": "localhost", "MASTER_PORT": port,
                },
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for rank in range(world)
        ]  # fmt: skip
        for rank in ranks:
            output, _ = rank.communicate(timeout=900)
            assert rank.returncode == 0, output
        return [torch.load(tmp_path / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]

    (one,), two = train(1), train(2)
    for rank in two:
        for store in ("rows", "model"):
            assert_close(rank[store]["weights"], one[store]["weights"], atol=1e-6)
        assert_close(rank["model"]["past"], one["model"]["past"], atol=1e-6)
        assert_close(rank["normed"], two[0]["normed"], atol=0)
        for name, values in rank["rows"]["table"].items():
            assert torch.equal(values, two[0]["rows"]["table"][name]), "ranks differ in their rows"
        assert torch.equal(rank["rows"]["table"]["stamps"], one["rows"]["table"]["stamps"])
