"""A study of text classifiers: PS-KD against cross-entropy, with and without label smoothing, for each field of labels.

    retarget study own_study_text.py --set train=train.jsonl test=test.jsonl text=problem labels=type,level

Files of one JSON object per line (plain or .gz) hold a text and one or more fields to predict; a row without the text
or the field (or with null, NaN or nothing in it) is left out where that field is predicted. The classifier averages
vectors of words and pairs of words (Joulin et al. 2016), between dropout. A part of the training rows, the same for
every seed, fits the temperature, if they tell one. No claim is tested between classifiers that are no better than
naming the most frequent class.
"""

import gzip
import itertools
import json
import math
import re
from typing import Any, Literal

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor, nn

from retarget.errors import UserError
from retarget.metrics import calibration as c
from retarget.pskd import PSKD
from retarget.pskd.studies.images.analysis import better_than_chance
from retarget.study import Arm, Claim, Condition, Metric, Results, Run, StudyPlan
from retarget.study.config import SHARE, choose_arms
from retarget.study.elsewhere import slug
from retarget.study.figures import Analysis

SETTINGS = {
    "train": "", "test": "", "text": "text", "labels": "label", "train_rows": 0, "validation_rows": 1000,
    "vocabulary": 20_000, "width": 64, "dropout": 0.3, "epochs": 30, "batch_size": 64, "lr": 3e-3,
    "alpha_T": 0.0, "smoothing": 0.0,
}  # fmt: skip
ARMS = (
    Arm(name="cross_entropy", label="cross-entropy"),
    Arm(name="pskd", label="PS-KD", settings={"alpha_T": 0.8}),
    Arm(name="label_smoothing", label="label smoothing 0.1", settings={"smoothing": 0.1}),
    Arm(name="pskd_label_smoothing", label="PS-KD + label smoothing", settings={"alpha_T": 0.8, "smoothing": 0.1}),
)
METRICS = (
    Metric(name="top1", label="accuracy", **SHARE, better="higher", floor="top1_chance", floor_for="every arm"),
    Metric(name="top1_chance", label="share of the most frequent class, plus three standard errors", **SHARE),
    Metric(name="nll", label="NLL", better="lower", decimals=3),
    Metric(name="nll_scaled", label="NLL after temperature", better="lower", decimals=3, optional=True),
    Metric(name="ece_scaled", label="ECE after temperature", unit="%", better="lower", optional=True),
    Metric(name="aurc_scaled", label="AURC after temperature", unit="×10⁻³", better="lower", decimals=1, optional=True),
    Metric(name="temperature", label="fitted temperature", optional=True),
    Metric(name="best_epoch", label="epoch of the lowest validation NLL", decimals=0),
    Metric(name="repeated", label="test texts that are also texts of the training file", decimals=0),
    Metric(
        name="repeated_validation", label="validation texts that are also training texts", decimals=0, optional=True
    ),
)
WANTED = "One JSON object per line is read; convert CSV, TSV and JSON arrays"
TEMPERATURES = (0.1, 10.0)
"""Beyond these no temperature is told: nearly every validation row is right, or not more of them than by chance."""


def plan(preset: str, config: dict[str, Any] | None, seeds: list[int] | None, arms: list[str] | None) -> StudyPlan:
    settings = SETTINGS | (config or {})
    if unknown := settings.keys() - SETTINGS.keys():
        raise UserError(f"there is no setting {', '.join(sorted(unknown))}: choose from {', '.join(SETTINGS)}")
    if not (settings["train"] and settings["test"]):
        raise UserError("give --set train=FILE.jsonl test=FILE.jsonl")
    fields = [one.strip() for one in str(settings["labels"]).split(",") if one.strip()]
    if not fields or settings["validation_rows"] < 1:
        raise UserError("labels must name a field or several (type,level), and validation_rows be at least 1")
    return StudyPlan(
        study="text", title="Text classification", question="Does PS-KD help these text classifiers?", preset=preset,
        settings=settings, data=(settings["train"], settings["test"]), arms=choose_arms(ARMS, arms), metrics=METRICS,
        seeds=tuple(seeds or range(5)),
        conditions=tuple(Condition(name=slug(field), label=field, settings={"labels": field}) for field in fields),
        claims=tuple(claim for field in fields for claim in claims(field)),
    )  # fmt: skip


def claims(field: str) -> tuple[Claim, ...]:
    """What PS-KD promises beside cross-entropy, and beside label smoothing."""
    also = "PS-KD adds to label smoothing: better likelihoods"
    wanted: tuple[tuple[str, str, str, Literal["higher", "lower"], float, str, str], ...] = (
        ("accuracy", "PS-KD classifies texts more accurately", "top1", "higher", 0.5, "pskd", "cross_entropy"),
        ("likelihood", "PS-KD gives better likelihoods of texts", "nll_scaled", "lower", 0.01, "pskd", "cross_entropy"),
        ("calibration", "PS-KD is better calibrated on texts", "ece_scaled", "lower", 0.5, "pskd", "cross_entropy"),
        ("ranking", "PS-KD ranks texts better by confidence", "aurc_scaled", "lower", 5.0, "pskd", "cross_entropy"),
        ("combined", also, "nll_scaled", "lower", 0.01, "pskd_label_smoothing", "label_smoothing"),
    )
    return tuple(
        Claim(id=f"text_{name}_{slug(field)}", sentence=f"{says}.", metric=metric, direction=direction,
              condition=slug(field), smallest_effect=least, arms=(treated, control))
        for name, says, metric, direction, least, treated, control in wanted
    )  # fmt: skip


def run(run: Run) -> dict[str, float]:
    s = run.settings
    texts, names = read(s["train"], s["text"], s["labels"])
    test_texts, test_names = read(s["test"], s["text"], s["labels"])
    classes = sorted(set(names))
    if len(classes) < 2:
        raise UserError(f"{s['train']}: every row has {s['labels']} {classes[0]!r}, so there is nothing to predict")
    if len(texts) <= s["validation_rows"]:
        raise UserError(f"{s['train']}: {len(texts)} rows, of which validation_rows={s['validation_rows']} leaves none")
    if unknown := set(test_names) - set(classes):
        raise UserError(f"{s['test']}: no training row has {s['labels']} {', '.join(map(repr, sorted(unknown)))}")
    labels, test_labels = (torch.tensor([classes.index(name) for name in some]) for some in (names, test_names))
    order = np.random.default_rng(0).permutation(len(texts)).tolist()  # the same parts for every seed
    held, kept = order[: s["validation_rows"]], order[s["validation_rows"] :][: s["train_rows"] or None]
    words = CountVectorizer(ngram_range=(1, 2), max_features=s["vocabulary"], token_pattern=r"\\?\w+|[^\w\s]")
    words.fit(texts[place] for place in kept)
    train, validation = (Bags(words, [texts[place] for place in part]) for part in (kept, held))
    test, y, val_y = Bags(words, test_texts), labels[kept], labels[held]

    torch.manual_seed(run.seed)  # the same weights and the same order of rows in every arm
    width = s["width"]
    model = nn.Sequential(Mean(len(words.vocabulary_) + 1, width), nn.Dropout(s["dropout"]), nn.Linear(width, width),
                          nn.ReLU(), nn.Dropout(s["dropout"]), nn.Linear(width, len(classes)))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=s["lr"])
    method = PSKD(num_samples=len(y), num_classes=len(classes), total_epochs=s["epochs"], alpha_T=s["alpha_T"])
    losses: list[float] = []
    for epoch in range(s["epochs"]):
        method.set_epoch(epoch)
        for index in torch.randperm(len(y)).split(s["batch_size"]):
            optimizer.zero_grad()
            loss = method.loss(model(train.batch(index)), y[index], index, smoothing=s["smoothing"])
            loss.backward()
            optimizer.step()
        losses.append(c.negative_log_likelihood(c.softmax(logits(model, validation)), val_y))
        run.log(epoch, train_loss=loss.item(), val_nll=losses[-1])
        run.progress(epoch + 1, s["epochs"])
    temperature = c.fit_temperature(logits(model, validation), val_y)
    raw, scaled = (c.apply_temperature(logits(model, test), one) for one in (1.0, temperature))
    known, learnt = set(map(str.strip, texts)), {texts[place].strip() for place in kept}
    found = {
        "top1": 100 * c.accuracy(raw, test_labels), "top1_chance": better_than_chance(test_labels.numpy()),
        "nll": c.negative_log_likelihood(raw, test_labels), "best_epoch": float(np.argmin(losses)),
        "repeated": sum(one.strip() in known for one in test_texts),
        "repeated_validation": sum(texts[place].strip() in learnt for place in held),
    }  # fmt: skip
    if not TEMPERATURES[0] < temperature < TEMPERATURES[1]:
        return found
    return found | {
        "nll_scaled": c.negative_log_likelihood(scaled, test_labels),
        "ece_scaled": 100 * c.expected_calibration_error(scaled, test_labels),
        "aurc_scaled": 1000 * c.aurc(scaled, test_labels), "temperature": temperature,
    }  # fmt: skip


def analyse(results: Results) -> Analysis:
    """What the page must say of runs without a temperature, and of texts that are there in training, too."""
    notes: list[str] = []
    for condition, arm in itertools.product(results.plan.conditions, results.plan.arms):
        runs = zip(results.seeds, results.runs(condition.name, arm.name), strict=True)
        without = [str(seed) for seed, run in runs if run and "temperature" not in run.metrics]
        if without:
            notes.append(
                f"{condition.label}: nearly every validation row is right, or no more of them than by chance, for "
                f"{arm.label} (seed{'s' * (len(without) > 1)} {', '.join(without)}), so no temperature can be fitted: "
                "nothing after temperature is measured there. Set validation_rows higher, unless its texts are copies."
            )
    for condition in results.plan.conditions:
        runs = [run for arm in results.plan.arms for run in results.runs(condition.name, arm.name) if run]
        if count := max((int(run.metrics["repeated"]) for run in runs), default=0):
            notes.append(
                f"{condition.label}: {count:,} of the test texts are also texts of the training file: there the test "
                "part measures memory. Leave them out of the training file."
            )
        if count := max((int(run.metrics.get("repeated_validation", 0)) for run in runs), default=0):
            notes.append(
                f"{condition.label}: {count:,} of {results.plan.settings['validation_rows']:,} validation texts are "
                "training texts, too: the temperature is fitted to what may be known by heart, and what is said after "
                "temperature can be wrong. Leave one copy of each text in the training file."
            )
    return Analysis(notes=notes)


def read(file: str, text: str, label: str) -> tuple[list[str], list[str]]:
    """Texts and labels of the rows that have both.

    Raises:
        UserError: a row is not JSON in UTF-8, a text is a list, a label is no class, or no row has both.
    """
    opened = gzip.open if file.endswith(".gz") else open
    rows: list[tuple[int, dict[str, Any]]] = []
    with opened(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line.decode("utf-8-sig")) if line.strip() else {}
            except UnicodeDecodeError as error:
                raise UserError(f"{file}, line {number}: not UTF-8 ({error.reason}): convert the file") from error
            except ValueError as error:
                raise UserError(f"{file}, line {number}: not JSON: {error}. {WANTED}") from error
            if not isinstance(row, dict):
                raise UserError(f"{file}, line {number}: not a JSON object with {text} and {label}. {WANTED}")
            rows += [(number, row)] if row else []
    said = [(number, text_of(row.get(text), f"{file}, line {number}: {text}"), row.get(label)) for number, row in rows]
    found = [(one, class_of(value, f"{file}, line {number}: {label}")) for number, one, value in said if one]
    found = [(one, name) for one, name in found if name]
    if not found:
        there = f"The first row has {', '.join(rows[0][1])}" if rows else "It is empty"
        raise UserError(f"{file}: no row has both {text} and {label}. {there}")
    texts, labels = zip(*found, strict=True)
    return list(texts), list(labels)


def text_of(value: Any, where: str) -> str:
    """The text of a row, "" if it has none: null, NaN, or nothing but spaces."""
    if isinstance(value, list | dict):
        raise UserError(f"{where} is a {type(value).__name__}, but a text is one string: join its parts")
    return "" if _missing(value) or not str(value).strip() else str(value)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def class_of(value: Any, where: str) -> str:
    """The class that a label names, "" if it names none: 1, 1.0, "1.0" and true are one class.

    >>> class_of(1.0, ""), class_of("1.0", ""), class_of(True, ""), class_of("spam", ""), class_of(None, "")
    ('1', '1', '1', 'spam', '')
    """
    if _missing(value):
        return ""
    if isinstance(value, list | dict):
        raise UserError(f"{where} is a {type(value).__name__}, but a label is one class, a text or a whole number")
    if isinstance(value, float) and not value.is_integer():
        raise UserError(f"{where} is {value}, a score and no class: make classes of it")
    if isinstance(value, int | float) and value < 0:
        raise UserError(f"{where} is {value}: leave out rows without a label; if it is a class, name it by a text")
    return str(int(value)) if isinstance(value, int | float) else re.sub(r"^(\d+)\.0+$", r"\1", str(value).strip())


class Bags:
    """Texts as the numbers of their words and pairs of words, with 0 for none."""

    def __init__(self, words: CountVectorizer, texts: list[str]) -> None:
        split = words.build_analyzer()
        self.numbers = [
            torch.tensor([words.vocabulary_[one] + 1 for one in split(text) if one in words.vocabulary_] or [0])
            for text in texts
        ]

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers of several texts in one row, and where each text begins."""
        some = [self.numbers[place] for place in index.tolist()]
        return torch.cat(some), torch.tensor([0, *map(len, some[:-1])]).cumsum(0)


class Mean(nn.EmbeddingBag):
    """The mean of the vectors of a batch of bags."""

    def forward(self, bags: tuple[Tensor, Tensor]) -> Tensor:
        return super().forward(*bags)


@torch.no_grad()
def logits(model: nn.Module, bags: Bags) -> Tensor:
    """Logits of all texts, [N, C], without dropout."""
    model.eval()
    found = torch.cat([model(bags.batch(index)) for index in torch.arange(len(bags.numbers)).split(500)])
    model.train()
    return found
