"""Multi-label PS-KD against a slow loop from the equations; sigmoid, binary cross-entropy, dense rows."""

import copy
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer, TrainingArguments, default_data_collator

from retarget.errors import UserError
from retarget.pskd import (
    PSKD,
    Dense,
    MemoryMapped,
    MultiLabelPSKD,
    PreviousModel,
    PSKDCallback,
    PSKDTrainer,
    TopK,
    with_index,
)

sys.path.insert(0, str(Path(__file__).parent))
import reference
import tiny

N, C, EPOCHS = 8, 3, 4


def data():
    g = torch.Generator().manual_seed(0)
    y = (torch.rand(N, C, generator=g) < 0.4).float()
    y[1, 2] = -100
    return torch.randn(N, 5, generator=g), y


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, C))


def order(epoch):
    return torch.randperm(N, generator=torch.Generator().manual_seed(100 + epoch)).split(4)


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def slow_loss(z, targets, rows, alpha):
    """Mean over yes-or-no targets that count of -t log p - (1 - t) log(1 - p)."""
    losses = []
    for logits, labels, past in zip(z, targets, rows, strict=True):
        for v, y, q in zip(logits, labels, past, strict=True):
            if y != -100:
                t = (1 - alpha) * y + alpha * q
                losses.append(-t * np.log(sigmoid(v)) - (1 - t) * np.log(1 - sigmoid(v)))
    return float(np.mean(losses))


def train(method, model, epochs=range(EPOCHS), see=None):
    x, y = data()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for epoch in epochs:
        method.set_epoch(epoch)
        for index in order(epoch):
            logits = model(x[index])
            loss = method.loss(logits, y[index], index, inputs=x[index])
            if see:
                see(epoch, index, logits.detach().double().numpy(), loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@pytest.mark.parametrize("store", ["dense", Dense("float16"), "file"])
def test_losses_equal_a_slow_loop_from_the_equations(store, tmp_path):
    method = MultiLabelPSKD(N, C, EPOCHS, store=MemoryMapped(tmp_path / "t", Dense()) if store == "file" else store)
    past, y = reference.PastRows(), data()[1].double().numpy()

    def see(epoch, index, z, loss):
        rows = [past.read(epoch, i) for i in index.tolist()]
        alpha = 0.8 * (epoch + 1) / EPOCHS if epoch else 0.0
        rows = [np.zeros(C) if row is None else row for row in rows]
        assert loss == pytest.approx(
            slow_loss(z, y[index.numpy()], rows, alpha), rel=1e-3 if "16" in str(store) else 1e-5
        )
        for i, row in zip(index.tolist(), z, strict=True):
            past.write(epoch, i, sigmoid(row))

    train(method, network(), see=see)
    assert method.fallbacks == 0


def test_the_previous_model_gives_its_sigmoid():
    model = network()
    method = MultiLabelPSKD(None, C, EPOCHS, store=PreviousModel(model))
    x, y = data()
    began = {}

    def see(epoch, index, z, loss):
        rows = [np.zeros(C)] * len(index)
        if epoch:
            with torch.no_grad():
                rows = sigmoid(began["model"](x[index]).double().numpy())
        alpha = 0.8 * (epoch + 1) / EPOCHS if epoch else 0.0
        assert loss == pytest.approx(slow_loss(z, y[index].double().numpy(), rows, alpha), rel=1e-5)

    for epoch in range(3):
        began["model"] = copy.deepcopy(model)
        train(method, model, epochs=[epoch], see=see)


def test_alpha_zero_and_epoch_zero_are_binary_cross_entropy():
    x, y = data()
    y = y.clamp_min(0)
    for epochs, alpha_T in ((range(EPOCHS), 0.0), (range(1), 0.8)):
        control, off = network(), network()
        for model, method in ((control, None), (off, MultiLabelPSKD(N, C, EPOCHS, alpha_T))):
            optimizer = torch.optim.SGD(model.parameters(), 0.5)
            for epoch in epochs:
                if method:
                    method.set_epoch(epoch)
                for index in order(epoch):
                    z, t = model(x[index]), y[index]
                    loss = method.loss(z, t, index) if method else F.binary_cross_entropy_with_logits(z, t)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        for p, q in zip(control.parameters(), off.parameters(), strict=True):
            assert torch.equal(p, q)


def test_soften_and_remember_are_loss_in_two_steps_and_ignored_targets_stay():
    one, two = MultiLabelPSKD(N, C, EPOCHS), MultiLabelPSKD(N, C, EPOCHS)
    x, y = data()
    logits, index = network()(x), torch.arange(N)
    for epoch in range(3):
        one.set_epoch(epoch), two.set_epoch(epoch)
        loss = one.loss(logits * (epoch + 1), y, index)
        soft = two.soften(y, index)
        two.remember(logits * (epoch + 1), y, index)
        counted = soft != -100
        assert (~counted).nonzero().tolist() == [[1, 2]]
        each = F.binary_cross_entropy_with_logits(logits * (epoch + 1), soft.clamp_min(0), reduction="none")
        torch.testing.assert_close((each * counted).sum() / counted.sum(), loss)


def test_a_batch_without_any_target_is_named_as_such():
    method = MultiLabelPSKD(N, C, EPOCHS)
    method.set_epoch(0)
    with pytest.raises(UserError, match="every label of the batch is -100"):
        method.loss(torch.randn(2, C), torch.full((2, C), -100.0), torch.arange(2))


def test_state_survives_and_softmax_rows_are_not_taken_for_sigmoids(tmp_path):
    method = MultiLabelPSKD(N, C, EPOCHS)
    train(method, network(), range(2))
    method.save(tmp_path / "s.safetensors")
    again = MultiLabelPSKD(N, C, EPOCHS)
    again.load(tmp_path / "s.safetensors")
    for one in (method, again):
        one.set_epoch(2)
    assert torch.equal(method.soften(data()[1], torch.arange(N)), again.soften(data()[1], torch.arange(N)))
    with pytest.raises(UserError, match="Independent"):
        PSKD(N, C, EPOCHS).load(tmp_path / "s.safetensors")


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match=r"a multi-label row is dense, but TopK\(k=2"):
        MultiLabelPSKD(N, C, EPOCHS, store=TopK(2))
    method = MultiLabelPSKD(N, C, EPOCHS)
    method.set_epoch(0)
    x, y = data()
    logits, index = network()(x[:4]), torch.tensor([3, 5, 7, 6])
    wrong = y[:4].clone()
    wrong[2, 1] = 1.5
    with pytest.raises(UserError, match=r"target 1\.5 for class 1 of sample 7, row 2 of the batch, lies outside"):
        method.loss(logits, wrong, index)
    with pytest.raises(UserError, match="logit nan for class 0 of sample 3"):
        method.loss(logits.detach().masked_fill(torch.arange(12).view(4, 3) == 0, float("nan")), y[:4], index)


class Module(pl.LightningModule):
    def __init__(self, method=None):
        super().__init__()
        self.network, self.method = network(), method

    def forward(self, x):
        return self.network(x)

    def on_train_epoch_start(self):
        if self.method:
            self.method.set_epoch(self.current_epoch)

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        if self.method:
            return self.method.loss(self(x), y, index)
        return F.binary_cross_entropy_with_logits(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


def test_the_lightning_callback_does_what_two_lines_do(tmp_path):
    x, y = data()
    loader = DataLoader(with_index(TensorDataset(x, y.clamp_min(0))), 4)
    quiet = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                 enable_model_summary=False, default_root_dir=tmp_path, max_epochs=EPOCHS)  # fmt: skip
    by_hand, by_callback = Module(MultiLabelPSKD(N, C, EPOCHS)), Module()
    pl.Trainer(**quiet).fit(by_hand, loader)
    pl.Trainer(**quiet, callbacks=[PSKDCallback(MultiLabelPSKD(N, C, EPOCHS))]).fit(by_callback, loader)
    for p, q in zip(by_hand.parameters(), by_callback.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


def test_the_hugging_face_trainer_takes_multi_label(tmp_path):
    samples = [{**one, "labels": [float(i % 2), 0.0, float(i % 3 == 0)]} for i, one in enumerate(tiny.texts())]

    def trained(kind, steps=1, **more):
        model = tiny.classifier()
        model.config.problem_type = "multi_label_classification"
        args = TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, num_train_epochs=3, per_device_train_batch_size=8 // steps,
            gradient_accumulation_steps=steps, learning_rate=0.2, optim="sgd", lr_scheduler_type="constant",
            max_grad_norm=0, report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no",
        )  # fmt: skip
        trainer = kind(model=model, args=args, train_dataset=samples, **more)
        trainer.train()
        return trainer

    plain, off = trained(Trainer), trained(PSKDTrainer, alpha_T=0.0)
    on, four = trained(PSKDTrainer), trained(PSKDTrainer, steps=4)
    assert isinstance(on.pskd, MultiLabelPSKD)
    for p, q in ((plain, off), (on, four)):
        for a, b in zip(p.model.parameters(), q.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert not torch.equal(on.model.classifier.weight, off.model.classifier.weight)


@pytest.mark.parametrize(("problem", "classes"), [(None, 3), (None, 2), ("multi_label_classification", 3)])
def test_labels_of_mixed_images_are_not_taken_for_multi_label(problem, classes, tmp_path):
    samples = [{**one, "labels": [0.0, 1.0, 0.0][:classes]} for one in tiny.texts()]

    def collated(rows):  # mixes a part of the batches, and not the first
        collated.batches += 1
        batch = default_data_collator(rows)
        if collated.batches == 3:
            batch["labels"] = 0.7 * batch["labels"] + 0.3 * batch["labels"].roll(1, 1)
        return batch

    collated.batches = 0
    model = tiny.classifier(classes=classes)
    model.config.problem_type = problem
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_steps=4, report_to=[], save_strategy="no",
                             per_device_train_batch_size=4)  # fmt: skip
    trainer = PSKDTrainer(model=model, args=args, train_dataset=samples, data_collator=collated)
    if problem:
        trainer.train()
        assert isinstance(trainer.pskd, MultiLabelPSKD)
    else:
        with pytest.raises(UserError, match=r"each row of the labels sums to 1, as those of Mixup .* mixed=shares"):
            trainer.train()


def test_many_classes_in_half_precision_are_no_divergence():
    method = MultiLabelPSKD(4, 20_000, 3)
    method.set_epoch(0)
    method.remember(torch.full((4, 20_000), -6.0, dtype=torch.float16), torch.zeros(4, 20_000), torch.arange(4))
    method.set_epoch(1)
    assert method.past_probs(torch.arange(4))[1].all()


def test_a_network_with_one_logit_for_yes_or_no():
    """Its loss is that of two classes whose logits are z and 0."""
    z, y, index = torch.randn(N, 1), torch.tensor([[0.0], [1.0]] * (N // 2)), torch.arange(N)
    one, two = MultiLabelPSKD(N, 1, 2), PSKD(N, 2, 2)
    for epoch in range(2):
        one.set_epoch(epoch), two.set_epoch(epoch)
        pair = torch.cat([torch.zeros(N, 1), z], 1)
        torch.testing.assert_close(one.loss(z, y, index), two.loss(pair, y[:, 0].long(), index))
        z = z + 1
    with pytest.raises(UserError, match="one logit for yes or no, use MultiLabelPSKD"):
        PSKD(N, 1, 2)


def test_a_sample_without_any_answer_is_not_counted_as_one_without_a_past():
    method, targets = MultiLabelPSKD(4, C, EPOCHS), torch.zeros(4, C)
    targets[1] = targets[2, 0] = -100
    method.set_epoch(0)
    method.loss(torch.zeros(1, C), targets[:1], torch.arange(1))
    method.set_epoch(1)
    method.loss(torch.zeros(4, C), targets, torch.arange(4))
    assert method.fallbacks == 2, "samples 2 and 3"
