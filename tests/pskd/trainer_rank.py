"""Run by the tests as ``python trainer_rank.py FOLDER WORLD`` with torchrun's variables: one rank of several."""

import os
import sys
from pathlib import Path

import torch
from transformers import Seq2SeqTrainingArguments

from retarget.pskd import PreviousModel, PSKDSeq2SeqTrainer, PSKDTrainer, TopK

sys.path.insert(0, str(Path(__file__).parent))
import tiny


def train(folder: Path, world: int, store: str) -> dict[str, object]:
    args = Seq2SeqTrainingArguments(
        output_dir=str(folder / f"{world}-{store}"), use_cpu=True, num_train_epochs=3,
        per_device_train_batch_size=4 // world, gradient_accumulation_steps=2, learning_rate=0.2, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=0, report_to=[], disable_tqdm=True, save_strategy="epoch",
        dataloader_pin_memory=False, seed=5, ddp_backend="gloo" if world > 1 else None,
    )  # fmt: skip
    model = tiny.translator()
    trainer = PSKDSeq2SeqTrainer(
        model=model, args=args, train_dataset=tiny.pairs(16), data_collator=tiny.pad,
        store=PreviousModel(model) if store == "model" else TopK(4),
    )  # fmt: skip
    trainer.train()
    trainer.pskd.end_epoch()
    weights = [p.detach().clone() for p in model.parameters()]
    if store == "model":
        return {"weights": weights, "past": list(trainer.pskd.teacher.tensors().values())}
    # the row beyond the last takes what is not stored
    table = {
        name: value.view(2, -1, *value.shape[1:])[:, :-1].clone()
        for name, value in trainer.pskd.past.table.tensors().items()
    }
    return {"weights": weights, "table": table}


def train_normed(folder: Path, world: int) -> list[torch.Tensor]:
    """The past of a network with batch norm, whose statistics differ between ranks after each step."""
    args = tiny.arguments(folder / f"{world}-normed", ddp_backend="gloo" if world > 1 else None)
    trainer = PSKDTrainer(model=tiny.Normed(), args=args, train_dataset=tiny.vectors(16), store=PreviousModel())
    trainer.train()
    return list(trainer.pskd.teacher.tensors().values())


def main(folder: Path, world: int) -> None:
    torch.set_num_threads(1)
    result = {store: train(folder, world, store) for store in ("rows", "model")}
    result["normed"] = train_normed(folder, world)
    torch.save(result, folder / f"{world}-{os.environ['RANK']}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
