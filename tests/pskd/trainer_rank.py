"""Run by the tests as ``python trainer_rank.py FOLDER WORLD`` with torchrun's variables: one rank of a training."""

import os
import sys
from pathlib import Path

import torch
from transformers import Seq2SeqTrainingArguments

from retarget.pskd import PSKDSeq2SeqTrainer, TopK

sys.path.insert(0, str(Path(__file__).parent))
import tiny


def main(folder: Path, world: int) -> None:
    torch.set_num_threads(1)
    args = Seq2SeqTrainingArguments(
        output_dir=str(folder / str(world)), use_cpu=True, num_train_epochs=3, per_device_train_batch_size=4 // world,
        gradient_accumulation_steps=2, learning_rate=0.2, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0,
        report_to=[], disable_tqdm=True, save_strategy="epoch", dataloader_pin_memory=False, seed=5,
        ddp_backend="gloo" if world > 1 else None,
    )  # fmt: skip
    trainer = PSKDSeq2SeqTrainer(
        model=tiny.translator(), args=args, train_dataset=tiny.pairs(16), data_collator=tiny.pad, store=TopK(4)
    )
    trainer.train()
    trainer.pskd.end_epoch()
    tensors = {name: value.clone() for name, value in trainer.pskd._table.tensors().items()}
    # the row beyond the last takes what is not stored
    tensors = {name: value.view(2, -1, *value.shape[1:])[:, :-1].clone() for name, value in tensors.items()}
    stamps = tensors.pop("stamps")
    result = {"weights": [p.detach().clone() for p in trainer.model.parameters()], "rows": tensors, "stamps": stamps}
    torch.save(result, folder / f"{world}-{os.environ['RANK']}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
