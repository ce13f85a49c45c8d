"""``PreviousModel`` needs no index: streams, packed batches, ``model_init``; and alpha_T in a search."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import DataCollatorWithFlattening, Trainer, TrainerCallback
from transformers.trainer_utils import HPSearchBackend

from retarget.errors import UserError
from retarget.pskd import PreviousModel, PSKDTrainer

sys.path.insert(0, str(Path(__file__).parent))
import tiny


class Stream(IterableDataset):
    """The same twelve texts, again and again."""

    def __iter__(self):
        while True:
            yield from ({k: v for k, v in one.items() if k != "note"} for one in tiny.texts(12))


class Alphas(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(self.trainer.pskd.alpha)


def stream(folder, model, resume=None, **more):
    settings = {"max_steps": 6, "num_train_epochs": 3, **more}
    trainer = PSKDTrainer(model=model, args=tiny.arguments(folder, **settings), train_dataset=Stream(),
                          store=PreviousModel())  # fmt: skip
    alphas = Alphas()
    alphas.trainer = trainer
    trainer.add_callback(alphas)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, alphas.seen


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_a_streams_epochs_are_parts_of_its_steps(tmp_path):
    trainer, alphas = stream(tmp_path, tiny.classifier())
    assert alphas == pytest.approx([0, 0, 0.8 * 2 / 3, 0.8 * 2 / 3, 0.8, 0.8])
    plain = Trainer(model=tiny.classifier(), args=tiny.arguments(tmp_path, max_steps=6), train_dataset=Stream())
    plain.train()
    assert not same(trainer, plain)


@pytest.mark.parametrize("steps", [3, 4])
def test_a_stream_is_resumed_in_the_middle_of_a_part_and_at_its_end(steps, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": steps}
    whole, _ = stream(tmp_path, tiny.classifier(), **saves)
    again, alphas = stream(tmp_path, tiny.classifier(), resume=str(tmp_path / f"checkpoint-{steps}"), **saves)
    assert len(alphas) == 6 - steps
    assert same(whole, again)


def test_packed_batches(tmp_path):
    rows = [{"input_ids": one["input_ids"]} for one in tiny.sentences()]

    def run(kind, **more):
        trainer = kind(
            model=tiny.language_model(), args=tiny.arguments(tmp_path, num_train_epochs=3), train_dataset=rows,
            data_collator=DataCollatorWithFlattening(), **more,
        )  # fmt: skip
        trainer.train()
        return trainer

    plain, off = run(Trainer), run(PSKDTrainer, store=PreviousModel(), alpha_T=0.0)
    for p, q in zip(plain.model.parameters(), off.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
    assert not same(plain, run(PSKDTrainer, store=PreviousModel()))
    with pytest.raises(UserError, match=r"cannot be stored per sample.*PreviousModel\(\)"):
        run(PSKDTrainer)


def test_a_model_that_the_trainer_makes(tmp_path):
    args = tiny.arguments(tmp_path, per_device_train_batch_size=8)  # one batch, whatever its order
    ours = PSKDTrainer(
        model_init=lambda: tiny.classifier(), args=args, train_dataset=tiny.texts(), store=PreviousModel()
    )
    ours.train()
    first = ours.model
    ours.train()
    assert ours.model is not first
    assert ours.pskd.teacher.model is ours.model
    model = tiny.classifier()
    given = PSKDTrainer(model=model, args=args, train_dataset=tiny.texts(), store=PreviousModel(model))
    given.train()
    for p, q in zip(ours.model.parameters(), given.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
    stranger = PSKDTrainer(
        model_init=lambda: tiny.classifier(),
        args=tiny.arguments(tmp_path),
        train_dataset=tiny.texts(),
        store=PreviousModel(model),
    )
    with pytest.raises(UserError, match=r"not a copy of it; PreviousModel\(\) takes it from the trainer"):
        stranger.train()


@pytest.mark.parametrize("store", [None, "previous"])
def test_a_search_sets_alpha(store, tmp_path):
    def make(**more):
        return PSKDTrainer(
            model_init=lambda: tiny.classifier(), args=tiny.arguments(tmp_path), train_dataset=tiny.texts(),
            store=PreviousModel() if store else None, **more,
        )  # fmt: skip

    searched, expected = make(), make(alpha_T=0.3)
    searched.hp_search_backend = HPSearchBackend.WANDB
    searched._hp_search_setup({"alpha_T": 0.3, "learning_rate": 0.2})
    searched.train(), expected.train()
    assert searched.pskd.alpha_T == 0.3
    assert same(searched, expected)
    assert not hasattr(searched.args, "alpha_T")


def test_one_epoch_is_plain_training_and_says_so(tmp_path):
    def run(**more):
        trainer = PSKDTrainer(model=tiny.classifier(), args=tiny.arguments(tmp_path, num_train_epochs=1),
                              train_dataset=tiny.texts(), **more)  # fmt: skip
        trainer.train()
        return trainer

    with pytest.warns(UserWarning, match=r"total_epochs = 1 is plain training.*first_past"):
        alone = run()
    plain = Trainer(
        model=tiny.classifier(), args=tiny.arguments(tmp_path, num_train_epochs=1), train_dataset=tiny.texts()
    )
    plain.train()
    assert same(alone, plain)
    first = run(store=PreviousModel(first_past="pretrained"))
    assert first.pskd.alpha == 0.8
    assert not same(first, plain)
