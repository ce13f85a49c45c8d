"""PS-KD in the Hugging Face Seq2SeqTrainer: a small Transformer learns to write a sequence backwards.

The table has one row per target token of each sentence. ``TopK(5)`` keeps the five likeliest words of each row.
"""

import numpy as np
import torch
from transformers import MarianConfig, MarianMTModel, Seq2SeqTrainingArguments, set_seed

from retarget.pskd import PSKDSeq2SeqTrainer, TopK

PAD, EOS, WORDS = 0, 1, 10


def pairs(number: int, seed: int) -> list[dict[str, list[int]]]:
    draw = np.random.default_rng(seed)
    sources = [draw.integers(2, 2 + WORDS, draw.integers(3, 6)).tolist() for _ in range(number)]
    return [{"input_ids": [*words, EOS], "labels": [*reversed(words), EOS]} for words in sources]


def collate(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    def padded(key: str, value: int) -> torch.Tensor:
        rows = [torch.tensor(feature[key]) for feature in features]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    ids = padded("input_ids", PAD)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": padded("labels", -100)}


def exact(prediction) -> dict[str, float]:
    def words(row):
        return [int(token) for token in row if token > EOS]

    pairs = zip(prediction.predictions, prediction.label_ids, strict=True)
    return {"exact": float(np.mean([words(ours) == words(theirs) for ours, theirs in pairs]))}


def main(epochs: int = 10, folder: str = "reverse") -> float:
    set_seed(0)
    model = MarianMTModel(
        MarianConfig(
            vocab_size=2 + WORDS, d_model=48, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, dropout=0.0, scale_embedding=True,
            pad_token_id=PAD,
            eos_token_id=EOS, forced_eos_token_id=EOS, decoder_start_token_id=PAD, max_position_embeddings=16,
        )
    )  # fmt: skip
    trainer = PSKDSeq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=25, learning_rate=3e-3,
            warmup_steps=100,
            label_smoothing_factor=0.1, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
            predict_with_generate=True, generation_max_length=8, generation_num_beams=2,
        ),
        train_dataset=pairs(1500, seed=0),
        eval_dataset=pairs(100, seed=1),
        data_collator=collate,
        compute_metrics=exact,
        alpha_T=0.5,
        store=TopK(5),
    )  # fmt: skip
    trainer.train()
    share = trainer.evaluate()["eval_exact"]
    print(f"sequences reversed without a mistake {share:.2f}")
    return share


if __name__ == "__main__":
    main()
