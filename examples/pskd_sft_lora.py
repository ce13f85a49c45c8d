"""PS-KD in TRL's SFTTrainer, with LoRA and packed sequences: a small Llama learns to answer sums.

List ``PSKDMixin`` before the trainer among the bases; the trainer keeps measuring what it measures (entropy, token
accuracy, tokens). ``packing_strategy="wrapped"`` packs once, so that a packed row is a sample and has a past. TRL's
default, "bfd", packs each batch again without padding; use ``store=PreviousModel()`` there, which needs no index.
"""

import datasets
import torch
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from retarget.pskd import PSKDMixin, TopK

ALPHABET = "0123456789+=. "


class PSKDSFTTrainer(PSKDMixin, SFTTrainer):
    """Arguments of both trainings."""


def main(epochs: int = 12, folder: str = "sft-sums") -> float:
    set_seed(0)
    words = {character: place for place, character in enumerate([*ALPHABET, "<eos>"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token=" ")), pad_token=" ", eos_token="<eos>"
    )
    texts = [f"{a}+{b}={a + b}." for a in range(16) for b in range(16)]
    rows = datasets.Dataset.from_list([{"input_ids": [words[one] for one in text]} for text in texts])
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=32, pad_token_id=words[" "], bos_token_id=None, eos_token_id=words["<eos>"],
        )
    )  # fmt: skip
    trainer = PSKDSFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=16, learning_rate=1e-2,
            packing=True, packing_strategy="wrapped", max_length=24, save_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=True, bf16=False, logging_steps=10,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, target_modules="all-linear", modules_to_save=["lm_head", "embed_tokens"]),
        alpha_T=0.5,
        store=TopK(5),
    )  # fmt: skip
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    print(f"training loss {losses[0]:.2f} at the start, {losses[-1]:.2f} at the end")
    return losses[0] - losses[-1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
