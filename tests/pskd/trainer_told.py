"""Run by a test under torchrun as ``python trainer_told.py FOLDER``: only one rank's first batch has a target."""

import faulthandler
import sys
from pathlib import Path

import torch
from transformers import TrainingArguments

from retarget.pskd import PSKDTrainer

sys.path.insert(0, str(Path(__file__).parent))
import tiny


def main(folder: Path) -> None:
    faulthandler.dump_traceback_later(120, exit=True)
    torch.set_num_threads(1)
    rows = tiny.sentences(8)
    for row in rows[2:4]:  # the first batch of the second rank
        row["labels"] = [-100] * len(row["labels"])
    model = tiny.language_model()
    model.register_buffer("steps", torch.zeros(1))  # DDP sends buffers to the other ranks whenever it is called
    args = TrainingArguments(
        output_dir=str(folder), use_cpu=True, max_steps=2, per_device_train_batch_size=2, report_to=[],
        disable_tqdm=True, logging_strategy="no", save_strategy="no", dataloader_pin_memory=False, ddp_backend="gloo",
        train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = PSKDTrainer(model=model, args=args, train_dataset=rows, data_collator=tiny.pad)
    trainer.train()
    (folder / f"told-{trainer.args.process_index}").write_text(str(trainer._pskd_same.told))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
