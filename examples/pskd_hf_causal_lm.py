"""PS-KD in causal language-model fine-tuning: a small GPT-2 learns to answer sums. Only answers are trained on."""

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments, set_seed

from retarget.pskd import PSKDTrainer, TopK

ALPHABET = "0123456789+=. "


def encode(text: str) -> list[int]:
    return [ALPHABET.index(character) for character in text]


def sums(pairs: list[tuple[int, int]]) -> list[dict[str, list[int]]]:
    rows = []
    for a, b in pairs:
        prompt, answer = encode(f"{a}+{b}="), encode(f"{a + b}.")
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows


def collate(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    def padded(key: str, value: int) -> torch.Tensor:
        rows = [torch.tensor(feature[key]) for feature in features]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    ids = padded("input_ids", ALPHABET.index(" "))
    return {"input_ids": ids, "attention_mask": (ids != ALPHABET.index(" ")).long(), "labels": padded("labels", -100)}


def main(epochs: int = 12, folder: str = "sums") -> float:
    set_seed(0)
    pairs = [(a, b) for a in range(20) for b in range(20)]
    order = np.random.default_rng(0).permutation(len(pairs))
    train, test = ([pairs[i] for i in part] for part in (order[:360], order[360:]))
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(ALPHABET), n_positions=16, n_embd=64, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    trainer = PSKDTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=20, learning_rate=3e-3,
            save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        ),
        train_dataset=sums(train),
        eval_dataset=sums(test),
        data_collator=collate,
        alpha_T=0.5,
        store=TopK(5),
    )  # fmt: skip
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    print(f"loss on unseen sums {before:.2f} before, {after:.2f} after")
    return before - after


if __name__ == "__main__":
    main()
