"""The testbed's language model: a word tokenizer and a tiny Llama, trained from scratch and cached."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Integer
from pydantic import Field
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from retarget.files import locked, make_directory, replace_folder
from retarget.identity import fingerprint
from retarget.pope.prompts import Prompts
from retarget.pope.studies.chain import HINT, START, WORDS, Corpus, traces
from retarget.settings import Strict

PROMPTS = Prompts(unguided=f"{{problem}} {START}", guided=f"{{problem}} {HINT} {{prefix}} {START}", chat=False)
SPECIAL = ("<pad>", "<s>", "</s>")
IGNORED = -100
_LOSSES = 20


class BaseModel(Strict):
    """Everything that decides a base model's weights. Its fingerprint is the name of its directory."""

    corpus: Corpus = Corpus()
    layers: int = Field(default=3, ge=1)
    width: int = Field(default=64, ge=8)
    heads: int = Field(default=4, ge=1)
    steps: int = Field(default=1500, ge=1)
    short_only_steps: int = Field(default=500, ge=0, description="first steps, on short problems only")
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=2e-3, gt=0, description="AdamW, warm-up of 50 steps, then cosine to 0")
    initializer_range: float = Field(
        default=0.08, gt=0, description="with the library's 0.02 it learns far more slowly"
    )
    stop_loss: float | None = Field(
        default=None, gt=0, description="training ends when the mean loss of 20 steps on all lengths falls below it"
    )
    seed: int = 0
    version: int = 1

    @property
    def fingerprint(self) -> str:
        """The name of its directory. Settings that earlier versions did not have are left out at their default."""
        values, later = self.model_dump(mode="json"), ("restated", "long_ends_only")
        values["corpus"] = {k: v for k, v in values["corpus"].items() if k not in later or v}
        if self.stop_loss is None:
            del values["stop_loss"]
        return fingerprint(values)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, which puts ``<s>`` in front."""
    words = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left",
        model_max_length=128,
    )  # fmt: skip


def make_model(base: BaseModel) -> LlamaForCausalLM:
    """A model with random weights from the base model's seed."""
    torch.manual_seed(base.seed)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=base.width, intermediate_size=2 * base.width,
        num_hidden_layers=base.layers, num_attention_heads=base.heads, max_position_embeddings=128,
        tie_word_embeddings=False, initializer_range=base.initializer_range,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def train_base(base: BaseModel, cache: Path, progress: Callable[[int, int], None] | None = None) -> Path:
    """The directory of a trained base model and its tokenizer; trains the model if the cache does not have it.

    Args:
        base: configuration of the base model.
        cache: has one directory ``base-FINGERPRINT`` per configuration, written completely or not at all.
        progress: called with (finished steps, all steps).
    """
    directory = cache / f"base-{base.fingerprint}"
    if directory.exists():
        return directory
    make_directory(cache)
    with locked(cache / ".lock", wait=True, what=f"{cache}"):
        if not directory.exists():  # another process may have finished the same base model meanwhile
            model, tokenizer = _trained(base, progress), make_tokenizer()

            def save(folder: Path) -> None:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)

            replace_folder(directory, save)
    return directory


def _trained(base: BaseModel, progress: Callable[[int, int], None] | None) -> LlamaForCausalLM:
    tokenizer, model = make_tokenizer(), make_model(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=base.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, base.steps))
    model.train()
    recent: deque[float] = deque(maxlen=_LOSSES)
    for step, (inputs, labels) in enumerate(_batches(base, tokenizer)):
        if step == base.steps:
            break
        loss = model(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress:
            progress(step + 1, base.steps)
        if step >= base.short_only_steps:
            recent.append(float(loss.detach()))
        if base.stop_loss and len(recent) == _LOSSES and sum(recent) / _LOSSES < base.stop_loss:
            break
    return model


def load_base(directory: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Load a model and a tokenizer that :func:`train_base` or a trainer saved."""
    model: Any = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model, PreTrainedTokenizerFast.from_pretrained(directory, padding_side="left")


def _batches(
    base: BaseModel, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[Integer[Tensor, "batch time"], Integer[Tensor, "batch time"]]]:
    words = tokenizer.get_vocab()
    short, mixed = (traces(base.corpus, base.seed, short_only) for short_only in (True, False))
    step = 0
    while True:
        rows = [next(short if step < base.short_only_steps else mixed) for _ in range(base.batch_size)]
        encoded = [([words[w] for w in prompt.split()], [words[w] for w in target.split()]) for prompt, target in rows]
        length = max(len(prompt) + len(target) for prompt, target in encoded) + 2
        inputs = torch.zeros(base.batch_size, length, dtype=torch.long)
        labels = torch.full((base.batch_size, length), IGNORED)
        for row, (prompt, target) in enumerate(encoded):
            ids = [1, *prompt, *target, 2]
            inputs[row, : len(ids)] = torch.tensor(ids)
            labels[row, len(prompt) + 1 : len(ids)] = inputs[row, len(prompt) + 1 : len(ids)]
        yield inputs, labels
        step += 1


def _cosine(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / 50)
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))
