"""What the Hugging Face plug-in learns from the first batch about the loss that it replaces."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import GPT2LMHeadModel, GPT2PreTrainedModel, Trainer

from retarget.errors import UserError
from retarget.pskd import PSKDMixin, PSKDTrainer

sys.path.insert(0, str(Path(__file__).parent))
import tiny


class Around(nn.Module):
    """A causal language model inside a module of the user's own."""

    def __init__(self, gives_loss=True, dropout=0.0):
        super().__init__()
        self.inner, self.gives_loss = tiny.language_model(dropout), gives_loss

    def forward(self, input_ids, attention_mask=None, labels=None):
        outputs = self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        return {"loss": outputs.loss, "logits": outputs.logits} if self.gives_loss else {"logits": outputs.logits}


class Renamed(GPT2PreTrainedModel):
    """Shifts labels inside, which neither its name nor its base class shows."""

    forward = GPT2LMHeadModel.forward


def train(model, folder, data=None, **more):
    settings = {key: more.pop(key) for key in ("bf16", "label_smoothing_factor") if key in more}
    trainer = PSKDTrainer(
        model=model, args=tiny.arguments(folder, **settings), train_dataset=data or tiny.sentences(),
        data_collator=tiny.pad, **more,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize("bf16", [False, True])
def test_a_language_model_inside_a_module_is_not_taught_to_copy(bf16, tmp_path):
    with pytest.raises(UserError, match=r"the model's own loss .* shifted by one token.* shift_labels=True"):
        train(Around(), tmp_path, bf16=bf16)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nor_is_one_under_a_name_that_no_list_holds(smoothing, tmp_path):
    model = tiny.language_model()
    model.__class__ = type("OfAnotherName", (Renamed,), {})
    with pytest.raises(UserError, match="shift_labels=True"):
        train(model, tmp_path, label_smoothing_factor=smoothing)
    train(model, tmp_path, label_smoothing_factor=smoothing, shift_labels=True)


def test_said_to_shift_it_trains_as_the_model_does_alone(tmp_path):
    around = train(Around(), tmp_path, shift_labels=True)
    alone = train(tiny.language_model(), tmp_path)
    for p, q in zip(around.model.inner.parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-7)


def test_a_model_without_a_loss_whose_labels_repeat_its_input_is_asked_about(tmp_path):
    with pytest.raises(UserError, match=r"the labels repeat input_ids.*shift_labels=True"):
        train(Around(gives_loss=False), tmp_path)
    for answer in (True, False):
        assert train(Around(gives_loss=False), tmp_path, shift_labels=answer).pskd.epoch == 1


def test_equal_logits_say_nothing_and_the_next_batch_is_asked(tmp_path):
    model = Around()
    model.inner.lm_head = nn.Linear(16, tiny.VOCABULARY, bias=False)  # every logit is 0 until it has learnt
    nn.init.zeros_(model.inner.lm_head.weight)
    with pytest.raises(UserError, match="shift_labels=True"):
        train(model, tmp_path)


def test_a_model_that_labels_its_own_places_under_a_causal_name_is_named(tmp_path):
    class Tagger(GPT2LMHeadModel):
        def forward(self, input_ids, attention_mask=None, labels=None, **kwargs):
            outputs = super().forward(input_ids=input_ids, attention_mask=attention_mask)
            loss = (
                None if labels is None else nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
            )
            return {"loss": loss, "logits": outputs.logits}

    model = tiny.language_model()
    model.__class__ = Tagger
    with pytest.raises(UserError, match=r"not shifted by one token.*shift_labels=False"):
        train(model, tmp_path)


class Weighted(tiny.Plain):
    def forward(self, x, labels=None):
        out = super().forward(x)
        if labels is not None:
            out["loss"] = nn.functional.cross_entropy(out["logits"], labels, weight=torch.tensor([1.0, 2.0, 5.0]))
        return out


def test_class_weights_inside_a_model_are_not_dropped_without_a_word(tmp_path):
    with pytest.raises(UserError, match=r"silently replace another loss.*class weights"):
        PSKDTrainer(model=Weighted(), args=tiny.arguments(tmp_path), train_dataset=tiny.vectors()).train()


class OwnLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs["logits"], labels, weight=self.weight)
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 5.0])])
def test_a_trainer_with_a_loss_of_its_own_is_held_against_ours(weight, tmp_path):
    class Ours(PSKDMixin, OwnLoss):
        pass

    ours = Ours(model=tiny.Plain(), args=tiny.arguments(tmp_path), train_dataset=tiny.vectors())
    ours.weight = weight
    if weight is None:
        ours.train()
        plain = PSKDTrainer(model=tiny.Plain(), args=tiny.arguments(tmp_path), train_dataset=tiny.vectors())
        plain.train()
        assert torch.equal(ours.model.layer.weight, plain.model.layer.weight)
    else:
        with pytest.raises(UserError, match="the trainer's own loss"):
            ours.train()


class InFront(PSKDTrainer):
    """The documentation's own way to change a loss, in front of PS-KD's."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs.pop("index", None)
        return OwnLoss.compute_loss(self, model, inputs, return_outputs)


def test_a_loss_in_front_of_ours_is_refused_in_the_first_step(tmp_path):
    trainer = InFront(model=tiny.Plain(), args=tiny.arguments(tmp_path), train_dataset=tiny.vectors())
    trainer.weight = torch.tensor([1.0, 2.0, 5.0])
    with pytest.raises(
        UserError, match=r"InFront.compute_loss does not call PS-KD's.*let it call super\(\).compute_loss"
    ):
        trainer.train()
    assert trainer.state.global_step <= 1


class OnTop(PSKDTrainer):
    """Weighs classes as usual, by another loss of the outputs."""

    share = 0.0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        loss, out = super().compute_loss(model, inputs, True, num_items_in_batch)
        own = torch.nn.functional.cross_entropy(out["logits"], labels, weight=torch.tensor([1.0, 2.0, 5.0]))
        loss = own + self.share * loss if self.share else own
        return (loss, out) if return_outputs else loss


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_replaces_ours_afterwards_is_refused_in_the_first_step(accumulate, tmp_path):
    arguments = tiny.arguments(tmp_path, gradient_accumulation_steps=accumulate)
    trainer = OnTop(model=tiny.Plain(), args=arguments, train_dataset=tiny.vectors())
    with pytest.raises(UserError, match=r"OnTop.compute_loss calls PS-KD's and returns another loss"):
        trainer.train()
    assert trainer.state.global_step <= 1
    trainer = OnTop(model=tiny.Plain(), args=arguments, train_dataset=tiny.vectors())
    trainer.share = 0.5
    trainer.train()
    assert trainer.state.global_step > 1, "a part of the sum is learnt"


def test_the_mixin_behind_a_trainer_is_refused():
    with pytest.raises(UserError, match=r"lists PSKDMixin after OwnLoss.*class Wrong\(PSKDMixin, OwnLoss\)"):
        type("Wrong", (OwnLoss, PSKDMixin), {})


@pytest.mark.parametrize("use", ["train", "evaluate", "predict"])
def test_a_column_called_index_is_dropped_like_any_other(use, tmp_path):
    rows = tiny.vectors()
    data = Dataset.from_dict({"x": [one["x"].tolist() for one in rows], "labels": [one["labels"] for one in rows]})
    named = data.add_column("index", [f"row {at}" for at in range(len(data))])
    trainer = PSKDTrainer(model=tiny.Plain(), args=tiny.arguments(tmp_path), train_dataset=named, eval_dataset=named)
    if use == "train":
        trainer.train()
        assert trainer.pskd.past_probs(torch.arange(len(data)))[1].all()
    else:
        found = trainer.evaluate() if use == "evaluate" else trainer.predict(named).predictions
        assert len(found) > 0


def test_asking_leaves_dropout_and_batch_norm_as_they_were(tmp_path):
    """The first epoch of a network with both equals the library's bit for bit."""

    def run(kind):
        torch.manual_seed(0)
        trainer = kind(model=tiny.Normed(0.5), args=tiny.arguments(tmp_path), train_dataset=tiny.vectors(12), **(
            {} if kind is Trainer else {"alpha_T": 0.0}))  # fmt: skip
        trainer.train()
        return trainer.model

    for p, q in zip(run(PSKDTrainer).state_dict().values(), run(Trainer).state_dict().values(), strict=True):
        assert torch.equal(p, q)


def test_samples_that_are_tuples_train_with_a_collator_of_their_own(tmp_path):
    pairs = [(one["x"], one["labels"]) for one in tiny.vectors()]

    def collate(rows):
        return {"x": torch.stack([x for x, _ in rows]), "labels": torch.tensor([y for _, y in rows])}

    trainer = PSKDTrainer(model=tiny.Plain(), args=tiny.arguments(tmp_path), train_dataset=pairs, data_collator=collate)
    trainer.train()
    assert trainer.pskd.fallbacks == 0


class AsksForLabels(tiny.Plain):
    """Cannot be called without labels, and returns a tuple."""

    def forward(self, x, labels):
        logits = self.layer(x)
        return nn.functional.cross_entropy(logits, labels), logits


def test_a_model_that_requires_labels_trains_as_one_that_does_not(tmp_path):
    trained = []
    for model in (AsksForLabels(), tiny.Plain()):
        PSKDTrainer(model=model, args=tiny.arguments(tmp_path), train_dataset=tiny.vectors()).train()
        trained.append(model.layer.weight)
    assert torch.equal(*trained)


class Unnamed(tiny.Plain):
    """Gives its logits another name."""

    def forward(self, x, labels=None):
        return {"scores": self.layer(x)}


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (tiny.Plain, {"labels": 3}, r"label 3 in row \d of the batch lies outside the classes \[0, 3\)"),
        (Unnamed, {}, "the model's output has no logits, only scores"),
    ],
)
def test_a_first_batch_that_cannot_be_learnt_is_named(model, change, message, tmp_path):
    data = [{**one, **change} for one in tiny.vectors()]
    trainer = PSKDTrainer(model=model(), args=tiny.arguments(tmp_path), train_dataset=data)
    with pytest.raises(UserError, match=message):
        trainer.train()


@pytest.mark.parametrize(("first", "then"), [(2, 4), (4, 2)])
def test_a_checkpoint_is_not_resumed_with_other_epochs(first, then, tmp_path):
    def make(batch):
        more = dict(per_device_train_batch_size=batch, save_strategy="steps", save_steps=4)
        return PSKDTrainer(model=tiny.Plain(), args=tiny.arguments(tmp_path, **more), train_dataset=tiny.vectors())

    make(first).train()
    with pytest.raises(UserError, match="resume with the same batch size"):
        make(then).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_processes_ask_the_model_for_its_loss_equally_often(tmp_path):
    """A process that asked once more than the others would wait for them for ever: a wrapped model's call is shared."""
    script = str(Path(__file__).parent / "trainer_told.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, script, str(tmp_path)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / f"told-{rank}").read_text() for rank in (0, 1)] == ["True", "True"]


def test_a_detectors_list_of_boxes_is_refused_by_name(tmp_path):
    class Detector(tiny.Plain):
        def forward(self, x, labels=None):
            logits = self.layer(x)
            return {"logits": logits, "loss": logits.sum()}

    def collate(samples):
        return {
            "x": torch.stack([one["x"] for one in samples]),
            "labels": [{"boxes": torch.zeros(1, 4)}] * len(samples),
        }

    trainer = PSKDTrainer(
        model=Detector(), args=tiny.arguments(tmp_path), train_dataset=tiny.vectors(8), data_collator=collate
    )
    with pytest.raises(UserError, match=r"labels are a list, not a tensor.*DetectionPSKD"):
        trainer.train()


@pytest.mark.parametrize("kept", [0, 4], ids=["first", "second"])
def test_an_update_without_targets_changes_nothing(kept, tmp_path):
    rows, model = tiny.sentences(8), tiny.language_model()
    for row in rows[4 - kept : 8 - kept]:
        row["labels"] = [-100] * len(row["labels"])
    settings = {"train_sampling_strategy": "sequential", "num_train_epochs": 2}
    arguments = tiny.arguments(tmp_path, **settings)
    PSKDTrainer(model=model, args=arguments, train_dataset=rows, data_collator=tiny.pad).train()
    alone = tiny.language_model()
    PSKDTrainer(model=alone, args=arguments, train_dataset=rows[kept : kept + 4], data_collator=tiny.pad).train()
    for one, other in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)
