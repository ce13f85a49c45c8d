"""A small language model for POPE: trained from scratch on the solutions of a problem file, it errs as models do.

python examples/pope_small_language_model.py gsm8k/train.jsonl models/small --epochs 6
retarget pope mine other.jsonl --model models/small --no-chat --templates models/small/templates ...

The model sees each problem in the prompt that `retarget pope` makes from the templates beside it, followed by its
solution. A prefix of the solution stands where the answer begins, so that the model continues it as any text.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from retarget.pope import Problem, Prompts, read_problems

TEMPLATES = {
    "system.txt": "",
    "unguided.txt": "Question: {problem}\nAnswer:",
    "guided.txt": "Question: {problem}\nAnswer: {prefix}",
}
BEGIN, END, PAD = "<s>", "</s>", "<pad>"


def texts_of(problems: list[Problem], prompts: Prompts) -> list[str]:
    """Each problem's unguided prompt, followed by its solution."""
    return [f"{prompts.without_prefix(one.prompt)} {one.solution}" for one in problems]


def make_tokenizer(texts: list[str], size: int, longest: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with one token for each digit, so that arithmetic is written digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[PAD, BEGIN, END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BEGIN, eos_token=END, padding_side="left",
        model_max_length=longest,
    )  # fmt: skip


def main(words: list[str] | None = None) -> None:
    """Train the tokenizer and the model, and save both with the templates; a model that is there is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", help="problems with solutions, as for `retarget pope mine`")
    parser.add_argument("target", type=Path, help="folder for the model")
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--longest", type=int, default=512, help="tokens of the longest text; longer ones are left out")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--bf16", action="store_true", help="twice as fast where the processor has bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)

    templates = given.target / "templates"
    templates.mkdir(parents=True, exist_ok=True)
    for name, text in TEMPLATES.items():
        (templates / name).write_text(text + "\n" * bool(text), encoding="utf-8")
    texts = texts_of(read_problems(given.problems), Prompts.load(templates, chat=False))
    tokenizer = make_tokenizer(texts, given.vocabulary, given.longest)
    rows = [{"input_ids": [*ids, tokenizer.eos_token_id]} for ids in tokenizer(texts, verbose=False)["input_ids"]]
    kept = [row for row in rows if len(row["input_ids"]) <= given.longest]
    torch.manual_seed(given.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=given.width, intermediate_size=3 * given.width,
        num_hidden_layers=given.layers, num_attention_heads=given.width // 64, max_position_embeddings=given.longest,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    print(f"{len(kept)} of {len(rows)} texts, {sum(len(row['input_ids']) for row in kept):,} tokens; "
          f"{model.num_parameters():,} weights")  # fmt: skip
    if (given.target / "model.safetensors").is_file():
        print(f"{given.target} was trained before")
        return
    settings = TrainingArguments(
        output_dir=str(given.target / "training"), num_train_epochs=given.epochs, seed=given.seed, report_to=[],
        per_device_train_batch_size=given.batch_size, learning_rate=given.learning_rate, weight_decay=0.1,
        lr_scheduler_type="cosine", warmup_steps=100, adam_beta2=0.95, save_strategy="no", logging_steps=50,
        bf16=given.bf16, use_cpu=not torch.cuda.is_available(), disable_tqdm=True, dataloader_pin_memory=False,
        train_sampling_strategy="group_by_length",
    )  # fmt: skip
    # An end that is padding too would have no loss, so that the model would never end: PAD and END differ.
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    Trainer(model=model, args=settings, train_dataset=kept, data_collator=collator).train()  # type: ignore[arg-type]
    model.save_pretrained(given.target)
    tokenizer.save_pretrained(given.target)
    print(given.target)


if __name__ == "__main__":
    main()
