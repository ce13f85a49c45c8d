"""Every plug-in: gradient accumulation, repeated augmentation, samplers without an end, and where states lie."""

import itertools
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from safetensors import safe_open
from timm.data import create_dataset, create_loader
from timm.data.distributed_sampler import RepeatAugSampler
from timm.utils import CheckpointSaver
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments

from retarget.errors import UserError
from retarget.pskd import PSKD, PSKDCallback, PSKDTrainer, with_index

sys.path.insert(0, str(Path(__file__).parent))
import tiny

N, C, EPOCHS = 12, 3, 3


class Views(Dataset):
    """Samples that look different each time they are fetched; ``named`` returns a dict."""

    def __init__(self, named=False, step=0.5):
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(N, 5, generator=g), (torch.arange(N) % C).tolist()
        self.fetched, self.named, self.step = [0] * N, named, step

    def __len__(self):
        return N

    def __getitem__(self, i):
        x = self.x[i] + self.step * self.fetched[i]
        self.fetched[i] += 1
        return {"x": x, "labels": self.y[i]} if self.named else (x, self.y[i])


class Module(pl.LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.network, self.lr = tiny.Plain().layer, lr

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


def run_plain(data, sampler, size, folder, *, lr, accumulate=1, loader=None):
    """Method and network after training; accumulated batches share a denominator."""
    network, method = tiny.Plain().layer, PSKD(N, C, EPOCHS)
    optimizer = torch.optim.SGD(network.parameters(), lr)
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        for step, (x, y, index) in enumerate(loader or DataLoader(with_index(data), size, sampler=sampler)):
            method.loss(network(x), y, index, denominator=float(size * accumulate)).backward()
            if (step + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    return method, network


def run_lightning(data, sampler, size, folder, *, lr, accumulate=1, limit=1.0):
    method, module = PSKD(N, C, EPOCHS), Module(lr)
    pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", callbacks=[PSKDCallback(method)], accumulate_grad_batches=accumulate,
        default_root_dir=folder, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, limit_train_batches=limit,
    ).fit(module, DataLoader(with_index(data), size, sampler=sampler))  # fmt: skip
    return method, module.network


def run_accelerate(data, sampler, size, folder, *, lr, accumulate=1):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    network, method = tiny.Plain().layer, PSKD(N, C, EPOCHS)
    network, optimizer, loader = accelerator.prepare(
        network, torch.optim.SGD(network.parameters(), lr), DataLoader(with_index(data), size, sampler=sampler)
    )
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        for x, y, index in loader:
            with accelerator.accumulate(network):
                accelerator.backward(method.loss(network(x), y, index))
                optimizer.step()
                optimizer.zero_grad()
    return method, network


def run_hugging_face(data, sampler, size, folder, *, lr, accumulate=1):
    class Sampled(PSKDTrainer):
        def _get_train_sampler(self, *args, **kwargs):
            return sampler

    args = TrainingArguments(
        str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=size, gradient_accumulation_steps=accumulate,
        learning_rate=lr, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0, report_to=[], disable_tqdm=True,
        save_strategy="no", logging_strategy="no", use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Sampled(model=tiny.Plain(), args=args, train_dataset=data)
    trainer.train()
    return trainer.pskd, trainer.model.layer


RUN = {
    "plain": run_plain, "lightning": run_lightning, "accelerate": run_accelerate, "hugging_face": run_hugging_face,
}  # fmt: skip


def data_for(name, **more):
    return Views(named=name == "hugging_face", **more)


@pytest.mark.parametrize("name", RUN)
def test_gradient_accumulation_changes_nothing(name, tmp_path):
    """Three batches of four per update, against one batch of twelve in a plain loop."""
    order = list(range(N))
    method, network = RUN[name](data_for(name, step=0.0), order, 4, tmp_path, lr=0.5, accumulate=3)
    whole, expected = run_plain(data_for("plain", step=0.0), order, N, tmp_path, lr=0.5)
    for p, q in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
    for found, row in zip(method.past_probs(torch.arange(N)), whole.past_probs(torch.arange(N)), strict=True):
        torch.testing.assert_close(found, row, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", RUN)
def test_repeated_augmentation_remembers_the_first_view(name, tmp_path):
    """timm's sampler takes each of a third of the samples three times an epoch; the weights stay as they are."""
    data = data_for(name)
    sampler = RepeatAugSampler(data, num_replicas=1, rank=0, shuffle=False, num_repeats=3, selected_round=0)
    assert list(sampler) == [i for i in range(4) for _ in range(3)]
    method, network = RUN[name](data, sampler, 4, tmp_path, lr=0.0)
    past, written = method.past_probs(torch.arange(N))
    assert written.tolist() == [True] * 4 + [False] * 8
    before = 3 * (EPOCHS - 2)  # views of the epochs before the one that is read
    expected = torch.softmax(network(data.x[:4] + data.step * before), 1)
    torch.testing.assert_close(past[:4], expected, rtol=0, atol=1e-6)


def endless():
    return itertools.cycle(range(N))


class Endless:
    def __iter__(self):
        return endless()


def test_an_endless_sampler_in_a_plain_loop_needs_epochs_of_its_own():
    network, counted, forgotten = tiny.Plain().layer, PSKD(N, C, EPOCHS), PSKD(N, C, EPOCHS)
    loader = DataLoader(with_index(Views(step=0.0)), 4, sampler=Endless())
    losses = []
    for step, (x, y, index) in zip(range(9), loader, strict=False):
        if step % 3 == 0:
            counted.set_epoch(step // 3)
        losses.append(counted.loss(network(x), y, index).item())
    assert counted.epoch == 2
    assert counted.fallbacks == 0
    assert losses[6:] != losses[:3]
    forgotten.set_epoch(0)
    with pytest.raises(UserError, match=r"244 samples since set_epoch\(0\), .* has 12: .* count steps"):
        sum(forgotten.loss(network(x), y, index).item() for x, y, index in loader)


def test_an_endless_loader_in_lightning_is_given_epochs_or_refused(tmp_path):
    with pytest.raises(UserError, match=r"an infinite loader has no epochs: set Trainer\(limit_train_batches"):
        run_lightning(Views(step=0.0), Endless(), 4, tmp_path, lr=0.5)
    _, limited = run_lightning(Views(step=0.0), Endless(), 4, tmp_path, lr=0.5, limit=3)
    _, finite = run_lightning(Views(step=0.0), list(range(N)), 4, tmp_path, lr=0.5)
    assert torch.equal(limited.weight, finite.weight)


@pytest.fixture
def images(tmp_path):
    for i in range(N):
        path = tmp_path / "images" / str(i % C) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(path)
    return tmp_path / "images"


def test_timms_endless_batches_keep_their_epochs(images):
    """Its loader of many epochs has a sampler without an end inside, and gives an epoch of batches a time."""
    loader = create_loader(
        with_index(create_dataset("folder", str(images))), input_size=(3, 8, 8), batch_size=4, is_training=True,
        no_aug=True, use_prefetcher=False, num_workers=0, persistent_workers=False, use_multi_epochs_loader=True,
        device=torch.device("cpu"),
    )  # fmt: skip
    network, method = nn.Sequential(nn.Flatten(), nn.Linear(192, C)), PSKD(N, C, EPOCHS)
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        seen = []
        for x, y, index in loader:
            method.loss(network(x), y, index)
            seen += index.tolist()
        assert sorted(seen) == list(range(N))
    assert method.fallbacks == 0


# -- the table lies beside the model's checkpoint


def keys(path):
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def test_accelerates_state_holds_no_table_and_resumes(tmp_path):
    def run(epochs, load=None, save=None):
        accelerator = Accelerator(cpu=True)
        network, method = tiny.Plain().layer, PSKD(N, C, EPOCHS)
        network, optimizer = accelerator.prepare(network, torch.optim.SGD(network.parameters(), 0.5, momentum=0.9))
        if load:
            accelerator.load_state(load)
            method.load(load / "pskd.safetensors")
        for epoch in epochs:
            method.set_epoch(epoch)
            for x, y, index in DataLoader(with_index(Views(step=0.0)), 4):
                optimizer.zero_grad()
                accelerator.backward(method.loss(network(x), y, index))
                optimizer.step()
        if save:
            accelerator.save_state(save)
            assert keys(save / "model.safetensors") == {"weight", "bias"}
            method.save(save / "pskd.safetensors")
        return network

    whole = run(range(EPOCHS))
    run(range(2), save=tmp_path / "state")
    assert torch.equal(run(range(2, EPOCHS), load=tmp_path / "state").weight, whole.weight)
    assert keys(tmp_path / "state" / "pskd.safetensors") == {"probs", "stamps"}


def test_lightnings_checkpoint_holds_no_table(tmp_path):
    method, module = PSKD(N, C, 1), Module(0.5)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[PSKDCallback(method)], default_root_dir=tmp_path, logger=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(with_index(Views()), 4))
    checkpoint = Path(trainer.checkpoint_callback.best_model_path)
    saved = torch.load(checkpoint, weights_only=True)
    assert set(saved["state_dict"]) == {"network.weight", "network.bias"}
    (name,) = saved["callbacks"]["PSKDCallback"].pop("states")
    assert saved["callbacks"]["PSKDCallback"] == method.state_dict()
    assert keys(checkpoint.parent / name) == {"probs", "stamps"}


def test_the_hugging_face_checkpoint_holds_the_table_in_a_file_of_its_own(tmp_path):
    args = TrainingArguments(
        str(tmp_path), num_train_epochs=1, report_to=[], disable_tqdm=True, save_strategy="epoch", use_cpu=True,
        logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    PSKDTrainer(model=tiny.Plain(), args=args, train_dataset=Views(named=True)).train()
    (folder,) = tmp_path.glob("checkpoint-*")
    assert keys(folder / "model.safetensors") == {"layer.weight", "layer.bias"}
    assert keys(folder / "pskd.safetensors") == {"probs", "stamps"}
    only = args.to_dict() | {"output_dir": str(tmp_path / "only"), "save_only_model": True}
    PSKDTrainer(model=tiny.Plain(), args=TrainingArguments(**only), train_dataset=Views(named=True)).train()
    assert not list((tmp_path / "only").glob("*/pskd.safetensors"))


def test_timms_checkpoint_holds_no_table(images, tmp_path):
    network, method = timm.create_model("test_resnet", num_classes=C), PSKD(N, C, EPOCHS)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    method.set_epoch(0)
    method.loss(network(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0]), torch.arange(4))
    saver = CheckpointSaver(network, optimizer, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=1.0)
    method.save(tmp_path / "pskd.safetensors")
    saved = torch.load(tmp_path / "last.pth.tar", weights_only=True)
    assert set(saved["state_dict"]) == set(network.state_dict())
    assert not {"probs", "stamps"} & set(saved)
    assert keys(tmp_path / "pskd.safetensors") == {"probs", "stamps"}
