"""Whether a batch can tell the loss that PS-KD replaces from another, and what is done if none can."""

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer

from retarget.errors import UserError
from retarget.pskd import PSKDMixin, PSKDTrainer
from retarget.pskd.models import logits_of
from retarget.pskd.own_loss import SameLoss, refuse_other_loss, tells, with_other_labels

sys.path.insert(0, str(Path(__file__).parent))
import tiny

WEIGHTS = torch.tensor([1.0, 1.0, 20.0])


class Weighted(tiny.Plain):
    def forward(self, x, labels=None):
        logits = self.layer(x)
        return {"logits": logits, "loss": None if labels is None else F.cross_entropy(logits, labels, weight=WEIGHTS)}


class ManyLabels(tiny.Plain):
    def forward(self, x, labels=None):
        out = {"logits": self.layer(x)}
        if labels is not None:
            weight = torch.full((3,), 9.0)
            out["loss"] = F.binary_cross_entropy_with_logits(out["logits"], labels, pos_weight=weight)
        return out


@dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class GivesObject(tiny.Plain):
    def forward(self, x, labels=None):
        return Output(**super().forward(x, labels))


class GivesTensor(tiny.Plain):
    def forward(self, x, labels=None):
        return self.layer(x)


class OwnLoss(Trainer):
    weight = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs["logits"], labels, weight=self.weight)
        return (loss, outputs) if return_outputs else loss


class Ours(PSKDMixin, OwnLoss):
    pass


class WeightedOurs(Ours):
    weight = WEIGHTS


class Margin(tiny.Plain):
    """Lowers the logit of the label, as ArcFace and CosFace do, so that training must separate the classes by more."""

    def forward(self, x, labels=None):
        logits = self.layer(x)
        if labels is None:
            return {"logits": logits}
        logits = logits - F.one_hot(labels, 3)
        return {"logits": logits, "loss": F.cross_entropy(logits, labels)}


class NeedsLabels(Margin):
    def forward(self, x, labels):
        return super().forward(x, labels)


class OneSample(Weighted):
    """Accepts a single sample only."""

    def forward(self, x, labels=None):
        return super().forward(x.reshape(1, 5), labels)


def data(classes):
    """Samples in order, whose batches of four hold one class each unless ``classes`` says otherwise."""
    return [{**one, "labels": label} for one, label in zip(tiny.vectors(len(classes)), classes, strict=True)]


def make(kind, model, folder, samples, batch=4, **more):
    settings = dict(per_device_train_batch_size=batch, train_sampling_strategy="sequential", **more)
    return kind(model=model, args=tiny.arguments(folder, **settings), train_dataset=samples)


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("classes", [[0] * 4 + [1] * 4, [0, 1] * 4], ids=["one class", "not the weighted class"])
def test_a_first_batch_without_the_weighted_class_hides_no_weights(classes, batch, tmp_path):
    with pytest.raises(UserError, match=r"labels replaced by others.*silently replace another loss.*class weights"):
        make(PSKDTrainer, Weighted(), tmp_path, data(classes), batch).train()


@pytest.mark.parametrize("batch", [1, 4])
def test_a_first_batch_without_ones_hides_no_pos_weight(batch, tmp_path):
    samples = data([torch.zeros(3)] * 8)
    with pytest.raises(UserError, match=r"silently replace another loss.*pos_weight"):
        make(PSKDTrainer, ManyLabels(), tmp_path, samples, batch).train()


def test_a_margin_on_the_label_is_not_silently_left_out(tmp_path):
    samples = data([0, 1, 2, 0] * 2)
    with pytest.raises(UserError, match=r"logits depend on the labels.*margin.*required argument"):
        make(PSKDTrainer, Margin(), tmp_path, samples).train()
    needs, plain = NeedsLabels(), tiny.Plain()
    for model in (needs, plain):
        make(PSKDTrainer, model, tmp_path, samples).train()
    assert not torch.equal(needs.layer.weight, plain.layer.weight)


@pytest.mark.parametrize("classes", [[0] * 4 + [1, 2, 0, 0], [0, 1] * 4 + [2, 0, 1, 2]])
def test_a_trainers_loss_is_compared_until_the_classes_were_seen(classes, tmp_path):
    with pytest.raises(UserError, match="the trainer's own loss"):
        make(WeightedOurs, tiny.Plain(), tmp_path, data(classes)).train()
    plain = make(Ours, tiny.Plain(), tmp_path, data(classes))
    plain.train()
    assert plain._pskd_same.done
    assert plain._pskd_same.told


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_trainers_mean_over_each_batch_is_accepted_while_gradients_accumulate(accumulate, tmp_path):
    samples, more = data([0, 1, 2, 2, 1, 0, 0, 2, 1, 1]), {"gradient_accumulation_steps": accumulate}
    mean, plain = (make(kind, tiny.Plain(), tmp_path, samples, batch=2, **more) for kind in (Ours, PSKDTrainer))
    mean.train(), plain.train()
    assert torch.equal(mean.model.layer.weight, plain.model.layer.weight)
    with pytest.raises(UserError, match=r"the trainer's own loss.*class weights"):
        make(WeightedOurs, tiny.Plain(), tmp_path, samples, batch=2, **more).train()


@pytest.mark.parametrize(
    ("kind", "model", "whose"),
    [(WeightedOurs, tiny.Plain, "the trainer's own loss"), (PSKDTrainer, OneSample, "the model's own loss")],
)
def test_a_loss_that_no_batch_can_tell_is_warned_of(kind, model, whose, tmp_path):
    trainer = make(kind, model(), tmp_path, data([0, 1, 2, 0]), batch=1)
    with pytest.warns(UserWarning, match=f"could not check that {whose} .* 8 batches .* of one class") as caught:
        trainer.train()
    assert len(caught) == 1


@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_whose_loss_is_the_cross_entropy_is_asked_once_and_without_a_warning(batch, tmp_path):
    calls = []

    class Counted(tiny.Plain):
        def forward(self, x, labels=None):
            calls.append(labels is not None)
            return super().forward(x, labels)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(PSKDTrainer, Counted(), tmp_path, data([0] * 8), batch).train()
    assert sum(calls) == 3  # the labels themselves; then labels 0 and 1, 1 and 2 (or all of them, twice)


class Faint(tiny.Plain):
    """As an untrained classifier's head: all losses are nearly log 3, and weights change their mean by 0.3 %."""

    weight = None

    def __init__(self):
        super().__init__()
        self.layer.weight.data *= 0.02
        self.layer.bias.data = torch.tensor([0.01, 0.0, -0.01])

    def loss(self, logits, labels):
        weight = None if self.weight is None else self.weight.to(logits.dtype)
        return F.cross_entropy(logits, labels, weight=weight)

    def forward(self, x, labels=None):
        logits = self.layer(x.to(self.layer.weight.dtype))
        return {"logits": logits} if labels is None else {"logits": logits, "loss": self.loss(logits, labels)}


class FaintAndWeighted(Faint):
    weight = WEIGHTS


class ByHand(Faint):
    """In the type of its logits, without PyTorch's function for it."""

    def loss(self, logits, labels):
        log_probs = logits.softmax(1, dtype=torch.bfloat16).log()
        return -log_probs.gather(1, labels[:, None]).mean()


NARROW = pytest.mark.parametrize("narrow", ["bf16", torch.bfloat16, torch.float16], ids=str)


def make_narrow(model, narrow, folder, samples):
    model, still = model if narrow == "bf16" else model.to(narrow), {"learning_rate": 1e-6}
    return make(PSKDTrainer, model, folder, samples, bf16=narrow == "bf16", **still)


@NARROW
def test_weights_are_not_taken_for_rounding_while_all_losses_are_nearly_equal(narrow, tmp_path):
    with pytest.raises(
        UserError, match=r"the model's own loss is 1.103 .* silently replace another loss.*class weights"
    ):
        make_narrow(FaintAndWeighted(), narrow, tmp_path, data([0, 1, 2, 0] * 2)).train()


@NARROW
def test_nor_does_rounding_hide_that_a_model_has_no_weights(narrow, tmp_path):
    trainer = make_narrow(Faint(), narrow, tmp_path, data([0, 1, 2, 0] * 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train()
    assert trainer._pskd_same.told


@NARROW
def test_a_rounded_loss_of_another_make_is_compared_again_and_rounding_is_named(narrow, tmp_path):
    trainer = make_narrow(ByHand(), narrow, tmp_path, data([0, 1, 2, 0] * 2))
    with pytest.warns(UserWarning, match=r"4 batches .* differed by less than 4%.* rounding .* in float32"):
        trainer.train()


def test_while_rounding_hides_the_answer_rare_later_batches_are_compared():
    same = SameLoss("the model's own loss", asked=False, rounded=True, ignore_index=-100)
    compared = []
    for batch in range(1, 200):
        if same.due():
            compared.append(batch)
            same.note(batch == 160, batch == 160, blurred=batch < 160)
    assert compared == [*range(1, 21), 40, 80, 160]
    assert same.done
    assert same.told


def test_what_a_batch_can_tell():
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.2, 0.0]])
    assert tells(logits, torch.tensor([0, 2]), -100, 1e-4)
    assert not tells(logits, torch.tensor([2, 2]), -100, 1e-4)
    assert not tells(logits, torch.tensor([2, -100]), -100, 1e-4)
    assert not tells(logits, torch.tensor([-100, -100]), -100, 1e-4)
    assert not tells(torch.zeros(2, 3), torch.tensor([0, 2]), -100, 1e-4)
    assert tells(logits, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, -100.0]]), -100, 1e-4)
    assert not tells(logits, torch.zeros(2, 3), -100, 1e-4)
    assert not tells(logits, torch.ones(2, 3), -100, 1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("classes", [2, 3, 9, 1000])
def test_other_labels_connect_the_classes_and_are_as_many_for_any_batch(size, classes):
    inputs = {"x": torch.zeros(size, 5), "labels": torch.zeros(size, dtype=torch.long), "use_cache": False}
    batches = list(with_other_labels(inputs, classes, -100))
    assert len(batches) == min(8, classes - 1)
    joined = set(batches[0]["labels"].tolist())
    for one in batches:
        held = set(one["labels"].tolist())
        assert len(one["x"]) == len(one["labels"]) == max(size, 2)
        assert len(held) > 1
        assert held & joined
        joined |= held
    assert joined == set(range(classes)) or len(joined) == 8 * (max(size, 2) - 1) + 1


def test_a_single_sample_with_arguments_of_another_length_is_not_doubled():
    inputs = {"patches": torch.zeros(6, 5), "labels": torch.zeros(1, dtype=torch.long)}
    assert list(with_other_labels(inputs, 3, -100)) == []


def test_the_models_loss_is_asked_a_few_times_only():
    same = SameLoss("the model's own loss", asked=False, rounded=False, ignore_index=-100)
    for _ in range(19):
        same.note(False, False)
    assert not same.done
    with pytest.warns(UserWarning, match="20 batches"):
        same.note(False, False)
    assert same.done
    same.warn()  # not again, which would be an error here


def test_asking_leaves_the_training_as_it_was(tmp_path):
    """Without a loss the model is never asked; with one, dropout and batch norm go on as they would have."""

    class Silent(tiny.Normed):
        def forward(self, x, labels=None):
            return {"logits": self.layer(x)}

    trained = []
    for kind in (tiny.Normed, Silent):
        trainer = make(PSKDTrainer, kind(0.5), tmp_path, data([0, 1, 2, 0] * 3))
        trainer.train()
        trained.append(list(trainer.model.state_dict().values()))
    for one, other in zip(*trained, strict=True):
        assert torch.equal(one, other)


def test_labels_of_sequences_are_not_replaced():
    inputs = {"input_ids": torch.zeros(2, 4, dtype=torch.long), "labels": torch.zeros(2, 4, dtype=torch.long)}
    assert list(with_other_labels(inputs, 5, -100)) == []


@pytest.mark.parametrize("kind", [GivesObject, GivesTensor])
def test_a_model_may_return_an_object_or_a_tensor(kind, tmp_path):
    trained = []
    for model in (kind(), tiny.Plain()):
        trainer = make(PSKDTrainer, model, tmp_path, data([0, 1, 2, 0] * 2))
        trainer.train()
        trained.append(model.layer.weight)
    assert torch.equal(*trained)


def test_a_models_object_without_logits_is_named():
    with pytest.raises(UserError, match="no logits, only scores: name them logits"):
        logits_of(SimpleNamespace(scores=torch.zeros(2, 3)))


def test_batches_whose_labels_are_all_ignored_say_nothing():
    logits, labels = torch.randn(2, 4, 5), torch.full((2, 4), -100)
    flags = dict(asked=False, rounded=False, whose="the trainer's own loss")
    for own in (float("nan"), 0.0):
        for denominator in (None, 7.0):
            assert not refuse_other_loss(own, logits, labels, True, -100, denominator=denominator, **flags)
