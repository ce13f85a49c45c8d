"""PS-KD's figures: a step in the Hugging Face Trainer beside the library's own."""

import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers import (
    MarianConfig,
    MarianMTModel,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from benchmarks._pairs import Pairs, figure
from retarget.pskd import PreviousModel, PSKDSeq2SeqTrainer, TopK


def figures(smallest: bool = False) -> Iterator[dict[str, Any]]:
    """Every figure of this module."""
    yield from _hf_step(**({"pairs": 2, "batch": 4, "vocabulary": 50} if smallest else {}))


def _hf_step(pairs: int = 30, batch: int = 64, vocabulary: int = 5000) -> Iterator[dict[str, Any]]:
    """A PS-KD step against the library's own in one Hugging Face Trainer, a small Transformer, 64 × 16 targets."""
    steps = 2 * pairs + 4
    words = torch.randint(
        3, vocabulary, (steps * batch, 16)
    ).tolist()  # equal lengths: both steps of a pair do the same work
    data = [{"input_ids": row, "labels": row} for row in words]
    for name, settings, reach in (("top-10", {"store": TopK(10)}, "<= 1.05"), ("previous model", {}, None)):
        model = MarianMTModel(
            MarianConfig(
                vocab_size=vocabulary, d_model=128, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4,
                decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256, pad_token_id=0, eos_token_id=1,
                forced_eos_token_id=1, decoder_start_token_id=0, max_position_embeddings=32,
            )
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            trainer = _EveryOtherUpdate(
                model=model,
                args=Seq2SeqTrainingArguments(
                    folder, num_train_epochs=2, per_device_train_batch_size=batch, report_to=[], disable_tqdm=True,
                    save_strategy="no", logging_strategy="no", use_cpu=True, dataloader_pin_memory=False,
                ),
                train_dataset=data,
                lengths=[16] * len(data),
                **(settings or {"store": PreviousModel(model)}),
            )  # fmt: skip
            trainer.remove_callback(PrinterCallback)  # its output would mix with the figures
            trainer.train()
        yield figure(f"PS-KD step against the library's in the HF Trainer, {name}, small Transformer, vocabulary "
                     f"{vocabulary:,}", trainer.pairs(), "ratio", reach)  # fmt: skip


class _EveryOtherUpdate(PSKDSeq2SeqTrainer):
    """In epoch 1 every other update is the library's own; times run from the end of one update to the next."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.seconds: tuple[list[float], list[float]] = ([], [])
        self.updates, self.ended = 0, 0.0
        trainer = self

        class Clock(TrainerCallback):
            def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                trainer.ended = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                now = time.perf_counter()
                if trainer.pskd and trainer.pskd.alpha > 0:
                    trainer.seconds[trainer.updates % 2].append(now - trainer.ended)
                    trainer.updates += 1
                trainer.ended = time.perf_counter()

        self.add_callback(Clock())

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The library's own loss in updates with an even number, PS-KD's in the others."""
        if self.pskd and self.pskd.alpha > 0 and self.updates % 2 == 0:
            inputs = {name: value for name, value in inputs.items() if name != "index"}
            return Seq2SeqTrainer.compute_loss(self, model, inputs, *args, **kwargs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def pairs(self, warm_up: int = 2) -> Pairs:
        """Times of the updates with PS-KD and without."""
        off, on = (times[warm_up:] for times in self.seconds)
        return Pairs(on[: len(off)], off[: len(on)])
