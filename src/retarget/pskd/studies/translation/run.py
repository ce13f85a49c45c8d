"""One training run of the translation study: a small Transformer in the Hugging Face Trainer, PS-KD plugged in."""

import re
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    DataCollatorForSeq2Seq,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)
from transformers.models.m2m_100.modeling_m2m_100 import shift_tokens_right

from retarget.files import write_json, write_text
from retarget.metrics import calibration as c
from retarget.pskd.past.rows import TopK
from retarget.pskd.past.table import table_bytes
from retarget.pskd.studies.translation.data import EOS, PAD, Pairs, Parts, encode, sentence_pairs, train_tokenizer
from retarget.pskd.studies.translation.settings import Settings
from retarget.pskd.trainer import PSKDSeq2SeqTrainer
from retarget.settings import resolve_settings
from retarget.study.record import Run, read_history

IGNORE = -100
SAMPLES = 5  # test pairs that the page shows


class Watch(TrainerCallback):
    """Logs each epoch, with the median time of its steps, before the checkpoint is saved."""

    def __init__(self, run: Run, validation: list[dict[str, list[int]]], collator: Any) -> None:
        self.run, self.validation, self.collator = run, validation, collator
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)
        self.run.progress(state.global_step, state.max_steps, "step")

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        tokens = TokenScores.of(model, self.validation, self.collator)
        self.run.log(
            round(state.epoch) - 1,
            val_nll=float(tokens.nll.mean()),
            val_token_accuracy=100 * tokens.correct.mean(),
            step_ms=1000 * float(np.median(self.seconds)),
        )
        self.seconds.clear()


class TokenScores:
    """A teacher-forced model's scores of every target token at one temperature.

    Attributes:
        nll, confidence: [tokens] float32.
        correct: [tokens], whether the likeliest token is the target.
    """

    def __init__(self, nll: np.ndarray, confidence: np.ndarray, correct: np.ndarray) -> None:
        self.nll, self.confidence, self.correct = nll, confidence, correct

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, samples: list[dict[str, list[int]]], collator: Any, temperature: float = 1.0) -> Any:
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for logits, labels in _forward(model, samples, collator):
            log_probs = F.log_softmax(logits / temperature, -1)
            confidence, best = log_probs.max(-1)
            parts.append((-log_probs.gather(1, labels[:, None])[:, 0], confidence.exp(), best == labels))
        return cls(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))


def _forward(model: Any, samples: list[dict[str, list[int]]], collator: Any) -> Any:
    """Logits [tokens, V] and labels [tokens] of batch after batch, in evaluation mode."""
    training = model.training
    model.eval()
    for start in range(0, len(samples), 100):
        batch = {name: value.to(model.device) for name, value in collator(samples[start : start + 100]).items()}
        labels = batch["labels"]
        logits = model(**{**batch, "labels": None}, use_cache=False).logits.float()
        yield logits[labels != IGNORE], labels[labels != IGNORE]
    model.train(training)


@torch.no_grad()
def fit_temperature(model: Any, samples: list[dict[str, list[int]]], collator: Any) -> float:
    """The temperature with the lowest token NLL, on a grid of 2.5 % steps from 0.4 to 3; one pass over the samples."""
    grid = 0.4 * 1.025 ** np.arange(82)
    total = np.zeros(len(grid))
    for logits, labels in _forward(model, samples, collator):
        for place, temperature in enumerate(grid):
            total[place] += float(F.cross_entropy(logits / temperature, labels, reduction="sum"))
    return float(grid[total.argmin()])


class PreNorm(M2M100ForConditionalGeneration):
    """The library's pre-norm Transformer, with the method that shifts labels outside, which its other models have."""

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The labels [B, T], shifted right behind the start token."""
        config: Any = self.config
        return shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)


def build(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """An encoder-decoder Transformer of the settings' size, one embedding for source, target and output."""
    s = settings
    pad, eos = (tokenizer.get_vocab()[name] for name in (PAD, EOS))
    shared: dict[str, Any] = dict(
        vocab_size=len(tokenizer), d_model=s.d_model, encoder_layers=s.layers, decoder_layers=s.layers,
        encoder_attention_heads=s.heads, decoder_attention_heads=s.heads, encoder_ffn_dim=s.ffn,
        decoder_ffn_dim=s.ffn, dropout=s.dropout, attention_dropout=0.0, encoder_layerdrop=0.0,
        decoder_layerdrop=0.0, activation_function="relu", scale_embedding=True, pad_token_id=pad, bos_token_id=eos,
        eos_token_id=eos, max_position_embeddings=2 * s.max_tokens,
    )  # fmt: skip
    if s.norm == "pre":
        model = PreNorm(M2M100Config(**shared, decoder_start_token_id=eos))
    else:
        model = MarianMTModel(MarianConfig(**shared, decoder_start_token_id=pad, init_std=s.d_model**-0.5))
    generation: Any = model.generation_config
    generation.max_length, generation.num_beams, generation.bad_words_ids = s.max_tokens, s.beams, [[pad]]
    generation.forced_eos_token_id = eos
    return model


def run(run: Run) -> dict[str, float]:
    """Train one arm with one seed, translate the test sentences, and return the metrics of the study."""
    settings = resolve_settings(Settings, run.settings)
    parts = sentence_pairs(settings)
    tokenizer = train_tokenizer(parts.train, settings.vocabulary)
    encoded = [encode(part, tokenizer, settings.max_tokens) for part in (parts.train, parts.validation, parts.test)]
    train, validation, test = (one.samples for one in encoded)
    _describe(run, parts, len(tokenizer), [one.cut for one in encoded])
    set_seed(run.seed)
    model = build(settings, tokenizer)
    collator = DataCollatorForSeq2Seq(tokenizer, model=model, padding=True)
    watch = Watch(run, validation, collator)
    trainer = _trainer(run, settings, model, train, collator, watch)
    trainer.train(resume_from_checkpoint=last_checkpoint(run.checkpoint))
    metrics, arrays = _evaluate(run, model, tokenizer, collator, parts, (validation, test))
    run.save_predictions(**arrays)
    metrics["val_nll"] = float(TokenScores.of(model, validation, collator).nll.mean())
    metrics["step_ms"] = float(np.median([line["step_ms"] for line in read_history(run.directory / "metrics.jsonl")]))
    targets = sum(len(one["labels"]) for one in train)
    nbytes = 0 if settings.targets == "hard" else table_bytes(targets, len(tokenizer), TopK(settings.topk))
    metrics["store_mb"] = nbytes / 1e6
    metrics["store_share"] = 100 * nbytes / (4 * targets * len(tokenizer))
    return metrics


def _describe(run: Run, parts: Parts, vocabulary: int, cut: list[int]) -> None:
    """Record for the page: pairs per part, pairs left out or cut, size of the vocabulary, and a few test pairs."""
    names, pairs = ("train", "validation", "test"), (parts.train, parts.validation, parts.test)
    counts = {
        name: {"pairs": len(part), "dropped": dropped, "cut": long}
        for name, part, dropped, long in zip(names, pairs, parts.dropped, cut, strict=True)
    }
    write_json(
        run.directory / "data.json",
        {
            "parts": counts,
            "repeated": _repeated(parts),
            "shared": _shared(parts),
            "vocabulary": vocabulary,
            "samples": parts.test[:SAMPLES],
        },
    )


def _repeated(parts: Parts) -> dict[str, int]:
    """How many pairs of the validation and of the test part are also in the training part."""
    known = _normal(parts.train)
    named = {"validation": parts.validation, "test": parts.test}
    return {name: _among(part, known) for name, part in named.items()}


def _shared(parts: Parts) -> int:
    """How many pairs of the test part are also in the validation part."""
    return _among(parts.test, _normal(parts.validation))


def _among(pairs: Pairs, known: Sequence[tuple[str, ...]]) -> int:
    """How many pairs are among those of ``known``."""
    there = set(known)
    return sum(pair in there for pair in _normal(pairs))


def _normal(pairs: Pairs) -> list[tuple[str, ...]]:
    """Pairs in the normal form that the tokenizer gives to every text: what it cannot tell apart is the same."""
    return [tuple(unicodedata.normalize("NFKC", side).strip() for side in pair) for pair in pairs]


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint: the library writes trainer_state.json last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def _trainer(run: Run, s: Settings, model: PreTrainedModel, train: list, collator: Any, watch: Watch) -> Seq2SeqTrainer:
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(run.checkpoint),
        num_train_epochs=s.epochs,
        per_device_train_batch_size=s.batch_sentences,
        gradient_accumulation_steps=s.accumulate,
        train_sampling_strategy="group_by_length",
        learning_rate=s.lr,
        lr_scheduler_type=s.lr_schedule,
        warmup_steps=s.warmup_steps,
        weight_decay=s.weight_decay,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        label_smoothing_factor=s.smoothing,
        seed=run.seed,
        save_strategy="epoch",
        save_total_limit=1,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=s.accelerator == "cpu",
        bf16=s.bf16,
        dataloader_pin_memory=s.accelerator != "cpu",
    )
    # A run has one device: on several, the library would multiply the batch by their number (and PS-KD refuses them).
    arguments._n_gpu = min(1, arguments.n_gpu)
    shared: dict[str, Any] = dict(
        model=model, args=arguments, train_dataset=train, data_collator=collator, callbacks=[watch]
    )
    if s.targets == "hard":
        return Seq2SeqTrainer(**shared, compute_loss_func=None if s.smoothing else _token_mean)
    return PSKDSeq2SeqTrainer(**shared, alpha_T=s.alpha_T, schedule=s.schedule, store=TopK(s.topk))


def _token_mean(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
    """Cross-entropy, the mean over an update's tokens. Marian and M2M100 average over a batch, although they accept
    num_items_in_batch."""
    return F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum") / num_items_in_batch


def _evaluate(
    run: Run, model: Any, tokenizer: PreTrainedTokenizerFast, collator: Any, parts: Parts, samples: Any
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    validation, test = samples
    temperature = fit_temperature(model, validation, collator)
    raw, scaled = (TokenScores.of(model, test, collator, t) for t in (1.0, temperature))
    hypotheses = translate(model, tokenizer, test)
    bleu, chrf = text_scores(run.directory, hypotheses, parts.test)
    metrics = {
        "bleu": bleu,
        "chrf": chrf,
        "nll": float(raw.nll.mean()),
        "ece": 100 * c.expected_calibration_error(raw.confidence, raw.correct),
        "nll_scaled": float(scaled.nll.mean()),
        "ece_scaled": 100 * c.expected_calibration_error(scaled.confidence, scaled.correct),
        "temperature": temperature,
        "token_accuracy": 100 * float(raw.correct.mean()),
    }
    arrays = {"test_nll": raw.nll, "test_confidence": raw.confidence, "test_correct": raw.correct}
    return metrics, arrays


@torch.no_grad()
def translate(
    model: Any, tokenizer: PreTrainedTokenizerFast, samples: list[dict[str, list[int]]], batch: int = 50
) -> list[str]:
    """Beam search by ``generate``: batches sentences of similar length, returns translations in the given order."""
    model.eval()
    order = sorted(range(len(samples)), key=lambda i: len(samples[i]["input_ids"]))
    text = [""] * len(samples)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        inputs = tokenizer.pad({"input_ids": [samples[i]["input_ids"] for i in chosen]}, return_tensors="pt")
        ids = model.generate(**{name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")})
        for i, words in zip(chosen, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            text[i] = words.strip()
    return text


_SPACELESS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff]")
"""Letters of Thai, Lao, Burmese, Khmer and Japanese."""
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff]")


def words_of(references: Sequence[str]) -> str:
    """How sacreBLEU takes texts apart: by characters if they have no spaces between words, Chinese in its own way.

    The script tells, and not the language's code, of which each collection has others (zh, zho_Hans, cmn).

    >>> words_of(["天气很好"]), words_of(["天気はとても良い"]), words_of(["Guten Tag"]), words_of(["안녕 세계"])
    ('zh', 'char', '13a', '13a')
    """
    text = "".join(references)
    letters = sum(map(str.isalpha, text))
    spaceless, han = len(_SPACELESS.findall(text)), len(_HAN.findall(text))
    if 2 * (spaceless + han) <= letters or not letters:
        return "13a"
    return "char" if 10 * spaceless > letters else "zh"


def text_scores(directory: Path, hypotheses: list[str], pairs: Pairs) -> tuple[float, float]:
    """BLEU and chrF; writes the translations and the signatures beside the run's metrics.

    The references are in the normal form that the study's tokenizer gives to every text.
    """
    references = [[unicodedata.normalize("NFKC", target) for _, target in pairs]]
    words = words_of(references[0])
    bleu, chrf = sacrebleu.metrics.BLEU(tokenize=words), sacrebleu.metrics.CHRF()  # type: ignore[attr-defined]
    scores = bleu.corpus_score(hypotheses, references), chrf.corpus_score(hypotheses, references)
    kept = {
        "bleu": {"score": scores[0].score, "signature": str(bleu.get_signature())},
        "chrf": {"score": scores[1].score, "signature": str(chrf.get_signature())},
    }
    write_json(directory / "scores.json", kept)
    write_text(directory / "translations.txt", "".join(f"{one}\n" for one in hypotheses))
    return scores[0].score, scores[1].score
