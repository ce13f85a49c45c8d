"""Sentence pairs: a small generated language, or files; and a tokenizer trained on them."""

import gzip
import random
import re
import unicodedata
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from retarget.errors import UserError
from retarget.pskd.studies.translation.plan import file_of
from retarget.pskd.studies.translation.settings import Settings

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
Pairs = list[tuple[str, str]]
_MARKUP = re.compile(
    r"\s*<(url|seg|doc|srcset|refset|tstset|mteval|keywords|title|description|speaker|talkid|reviewer|translator)\b"
)
"""Beginning of a line that is no sentence in the published files of IWSLT and WMT."""
_CHECKED = 5000  # pairs on which a vocabulary is tried before the study
_MOST_CUT = 0.05  # share of cut pairs above which a warning is issued


@dataclass(frozen=True)
class Parts:
    """Sentence pairs (source, target) of a study.

    Attributes:
        dropped: number of pairs in each part that were left out because a side is empty.
    """

    train: Pairs
    validation: Pairs
    test: Pairs
    dropped: tuple[int, int, int] = (0, 0, 0)


def sentence_pairs(settings: Settings) -> Parts:
    """The pairs that the settings name.

    Raises:
        UserError: files are missing, damaged, empty or differ in length.
    """
    limit, test = settings.train_sentences, settings.test_sentences
    if settings.dataset == "grammar":
        pairs = grammar((limit or 2000) + 500, settings.data_seed)
        return Parts(pairs[500:], pairs[:200], pairs[200:500][:test])
    read = [read_pairs(settings, name) for name in ("train", "val", settings.test)]
    (train, _), (validation, _), (tested, _) = read
    return Parts(train[:limit], validation, tested[:test], (read[0][1], read[1][1], read[2][1]))


def read_pairs(settings: Settings, name: str) -> tuple[Pairs, int]:
    """The lines of ``name.SOURCE`` and ``name.TARGET``, plain or as .gz; pairs with an empty side are left out.

    Returns:
        The pairs, and how many were left out. Empty lines at the end of a file are not counted.

    Raises:
        UserError: a file is missing, damaged or not in UTF-8, the two differ in length, or no pair is left.
    """
    files = [file_of(settings, name, language) for language in (settings.source, settings.target)]
    a, b = (_lines(file, settings) for file in files)
    last = [max((at for at, line in enumerate(side, 1) if line), default=0) for side in (a, b)]
    if min(len(a), len(b)) < max(last):
        raise UserError(f"{files[0]} has {last[0]} lines but {files[1]} has {last[1]}: each line must have a partner")
    a, b = a[: max(last)], b[: max(last)]
    pairs = [pair for pair in zip(a, b, strict=True) if all(pair)]
    if not pairs:
        raise UserError(f"{files[0]} and {files[1]} contain no pair of sentences")
    return pairs, len(a) - len(pairs)


def _lines(file: Path, settings: Settings) -> list[str]:
    """The lines of a file; only a line feed ends a line."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = content.decode("utf-8-sig")
    except FileNotFoundError as error:
        there = {one.name.removesuffix(".gz") for one in file.parent.glob(f"*.{settings.source}*")}
        named = f"; it has {', '.join(sorted(there))}: test=NAME names the test files" * bool(there)
        raise UserError(
            f"no {file.name} or {file.name}.gz in {file.parent}{named or '. Name the folder: dataset=files:DIR'}"
        ) from error
    except NotADirectoryError as error:
        raise UserError(
            f"{file.parent} is a file: dataset=files:DIR names a folder, with {file.name} and the like, one sentence "
            "per line"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        marked = error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
        likely = "utf-16" if marked else _two_bytes(error.object) if b"\0" in error.object else "latin1"
        raise UserError(
            f"{file}, line {line}: byte {error.object[error.start]:#04x} is not UTF-8; convert the file, for example "
            f"with iconv -f {likely} -t utf-8"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(
            f"{file}, line {line}: a NUL byte, so it is not UTF-8; convert the file, for example with "
            f"iconv -f {_two_bytes(content)} -t utf-8"
        )
    if "\r" in text and "\n" not in text:
        raise UserError(f"{file}: its lines end with CR alone, so that it is one line; convert it with tr '\\r' '\\n'")
    lines = text.removesuffix("\n").split("\n")
    if all("\t" in line for line in lines):
        raise UserError(f"{file}: every line has a tab, so it is a table; keep one sentence per line, as cut -f1 does")
    for number, line in enumerate(lines, 1):
        if tag := _MARKUP.match(line):
            raise UserError(
                f"{file}, line {number}: {tag[0].strip()}…> is markup of the published file, not a sentence; keep the "
                "sentences alone, in both languages: of a file of tags and sentences grep -v '^ *<' FILE does it, of "
                r"one with <seg> sed -n 's/.*<seg[^>]*> *\(.*\)<\/seg>.*/\1/p' FILE"
            )
    return [line.replace("\r", " ").replace("\t", " ").strip() for line in lines]


def _two_bytes(content: bytes) -> str:
    """The name of UTF-16 without a mark: in Latin letters every second byte is NUL."""
    return "utf-16le" if content[1::2].count(0) >= content[::2].count(0) else "utf-16be"


def grammar(number: int, seed: int) -> Pairs:
    """Sentences of two generated languages.

    The source has articles, adjectives before nouns, and the verb between subject and object. The target has adjectives
    after the noun, articles that agree with its gender, and the verb last. A third of the nouns and verbs have a second
    translation, used three times in ten, so that no translator can be certain of every word.

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


class Encoded(NamedTuple):
    """Sentence pairs as token ids.

    Attributes:
        samples: ``input_ids`` and ``labels`` of each pair.
        cut: number of pairs of which a side was too long and was cut.
    """

    samples: list[dict[str, list[int]]]
    cut: int


def encode(pairs: Pairs, tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> Encoded:
    """Token ids of each pair, both sides cut to ``max_tokens``, the end-of-sentence token included."""

    def ids(side: list[str]) -> list[list[int]]:
        # A sentence may hold the text </s>: it is no end there.
        return tokenizer(side, add_special_tokens=False, split_special_tokens=True)["input_ids"]  # type: ignore[index,union-attr,return-value]

    end = [cast(int, tokenizer.eos_token_id)]
    sources, targets = ids([a for a, _ in pairs]), ids([b for _, b in pairs])
    samples = [
        {"input_ids": a[: max_tokens - 1] + end, "labels": b[: max_tokens - 1] + end}
        for a, b in zip(sources, targets, strict=True)
    ]
    return Encoded(samples, sum(max(len(a), len(b)) >= max_tokens for a, b in zip(sources, targets, strict=True)))


def warn_if_cut(pairs: Pairs, settings: Settings) -> None:
    """Warn if the letters fill much of the vocabulary, or if many pairs are longer than ``max_tokens``.

    Longer pairs are counted among the first ones, with a vocabulary that is trained on these.
    """
    letters = len({letter for pair in pairs for side in pair for letter in unicodedata.normalize("NFKC", side)})
    if 2 * letters > settings.vocabulary:
        warnings.warn(
            f"vocabulary={settings.vocabulary} has little room for more than the {letters} letters of the training "
            "sentences, so that words fall apart into letters: take thousands (the paper's preset has 10,000)",
            stacklevel=2,
        )
    tried = pairs[:_CHECKED]
    cut = encode(tried, train_tokenizer(tried, settings.vocabulary), settings.max_tokens).cut
    if cut > _MOST_CUT * len(tried):
        warnings.warn(
            f"{cut:,} of the first {len(tried):,} training pairs are longer than max_tokens={settings.max_tokens} with "
            f"vocabulary={settings.vocabulary} and would be cut: take a larger vocabulary, or a larger max_tokens",
            stacklevel=2,
        )
