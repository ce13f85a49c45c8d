"""Sentence pairs: a small generated language, or files; and a tokenizer trained on them."""

import gzip
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from retarget.errors import UserError
from retarget.pskd.studies.translation.plan import Settings

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Parts:
    """Sentence pairs (source, target) of a study."""

    train: Pairs
    validation: Pairs
    test: Pairs


def sentence_pairs(settings: Settings) -> Parts:
    """The pairs that the settings name.

    Raises:
        UserError: files that are missing or of different lengths.
    """
    dataset, limit, test = settings.dataset, settings.train_sentences, settings.test_sentences
    if dataset == "grammar":
        pairs = grammar((limit or 2000) + 500, settings.data_seed)
        return Parts(pairs[500:], pairs[:200], pairs[200:500][:test])
    folder = Path(dataset.removeprefix("files:"))
    languages = settings.source, settings.target
    parts = [read_pairs(folder, name, *languages) for name in ("train", "val", settings.test)]
    return Parts(parts[0][:limit], parts[1], parts[2][:test])


def read_pairs(folder: Path, name: str, source: str, target: str) -> Pairs:
    """The lines of ``name.source`` and ``name.target``, plain or as .gz; pairs with an empty side are left out."""
    sides = []
    for language in (source, target):
        plain, packed = folder / f"{name}.{language}", folder / f"{name}.{language}.gz"
        if packed.is_file():
            text = gzip.decompress(packed.read_bytes()).decode("utf-8")
        elif plain.is_file():
            text = plain.read_text(encoding="utf-8")
        else:
            raise UserError(f"no {plain.name} or {packed.name} in {folder}: name the folder by dataset = 'files:DIR'")
        sides.append([line.strip() for line in text.rstrip("\n").split("\n")])
    if len(sides[0]) != len(sides[1]):
        raise UserError(f"{folder}/{name}: {len(sides[0])} lines in {source}, {len(sides[1])} in {target}")
    return [(a, b) for a, b in zip(*sides, strict=True) if a and b]


def grammar(number: int, seed: int) -> Pairs:
    """Sentences of two generated languages.

    The source has articles, adjectives before nouns and the verb between; the target puts adjectives behind the noun,
    whose gender decides the article's form, and the verb last. A third of the nouns and verbs has a second
    translation, used three times in ten, so that no translator can be sure of every word.

    >>> len(grammar(5, seed=0)), grammar(5, seed=0) == grammar(5, seed=0)
    (5, True)
    """
    draw = random.Random(seed)
    words = _words(draw, 300)
    nouns = [(next(words), next(words), next(words), draw.choice("mf")) for _ in range(40)]
    adjectives = [(next(words), next(words)) for _ in range(20)]
    verbs = [(next(words), next(words), next(words)) for _ in range(20)]
    adverbs = [(next(words), next(words)) for _ in range(8)]
    articles = {"the": {"m": "lo", "f": "la"}, "a": {"m": "un", "f": "una"}}

    def translated(entry: tuple[str, ...], place: int) -> str:
        return entry[2] if place % 3 == 0 and draw.random() < 0.3 else entry[1]

    def noun_phrase() -> tuple[list[str], list[str]]:
        article, place = draw.choice(list(articles)), draw.randrange(len(nouns))
        noun = nouns[place]
        chosen = draw.sample(adjectives, draw.choice([0, 0, 1, 1, 2]))
        source = [article, *(a[0] for a in chosen), noun[0]]
        return source, [articles[article][noun[3]], translated(noun, place), *(a[1] for a in chosen)]

    pairs = []
    for _ in range(number):
        subject, place, thing = noun_phrase(), draw.randrange(len(verbs)), noun_phrase()
        adverb = [draw.choice(adverbs)] if draw.random() < 0.4 else []
        source = [*subject[0], verbs[place][0], *thing[0], *(a[0] for a in adverb)]
        target = [*(a[1] for a in adverb), *subject[1], *thing[1], translated(verbs[place], place)]
        pairs.append((" ".join(source), " ".join(target)))
    return pairs


def _words(draw: random.Random, number: int) -> Any:
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    made: dict[str, None] = {}
    while len(made) < number:
        made["".join(draw.choices(syllables, k=draw.choice([2, 2, 3])))] = None
    return iter(made)


def train_tokenizer(pairs: Pairs, vocabulary: int) -> PreTrainedTokenizerFast:
    """One byte-pair encoding for both languages, trained on the training pairs."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.NFKC()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    tokenizer.decoder = decoders.Metaspace()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[PAD, EOS, UNKNOWN], show_progress=False)  # type: ignore[call-arg]
    tokenizer.train_from_iterator((side for pair in pairs for side in pair), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def encode(pairs: Pairs, tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> list[dict[str, list[int]]]:
    """``input_ids`` and ``labels`` of each pair, cut to ``max_tokens``, the end of the sentence included."""

    def ids(side: list[str]) -> list[list[int]]:
        end = [tokenizer.eos_token_id]
        return [one[: max_tokens - 1] + end for one in tokenizer(side, add_special_tokens=False)["input_ids"]]  # type: ignore[index,union-attr]

    sources, targets = ids([a for a, _ in pairs]), ids([b for _, b in pairs])
    return [{"input_ids": a, "labels": b} for a, b in zip(sources, targets, strict=True)]
