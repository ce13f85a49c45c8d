"""The translation task: every arm trains, files are read, killed and resumed equals uninterrupted."""

import gzip
import json
from functools import cached_property

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import DataCollatorForSeq2Seq, TrainingArguments

from retarget.errors import UserError
from retarget.pskd import TopK
from retarget.pskd.past.table import table_bytes
from retarget.pskd.studies.translation import run as translation
from retarget.pskd.studies.translation.analysis import analyse, read_lines
from retarget.pskd.studies.translation.data import Parts, encode, grammar, sentence_pairs, train_tokenizer
from retarget.pskd.studies.translation.plan import ARMS, plan
from retarget.pskd.studies.translation.settings import Settings
from retarget.report import build
from retarget.study.record import Results, Run, read_history
from retarget.study.runner import run_study

QUICK = {
    "epochs": 3, "train_sentences": 200, "d_model": 32, "ffn": 32, "layers": 1, "dropout": 0.1, "warmup_steps": 4,
    "beams": 2, "max_tokens": 24, "test_sentences": 30,
}  # fmt: skip


def settings(arm, **more):
    study = plan("demo", {**QUICK, **more})
    chosen = next(one for one in study.arms if one.name == arm)
    return study.run_settings(study.conditions[0], chosen)


@pytest.mark.parametrize("more", [{}, {"norm": "pre", "lr_schedule": "cosine", "bf16": True}], ids=["post", "pre"])
@pytest.mark.parametrize("arm", [arm.name for arm in ARMS])
def test_every_arm_trains_and_reports_its_metrics(arm, more, tmp_path):
    metrics = translation.run(Run.create(tmp_path, settings=settings(arm, **more), arm=arm, seed=1))
    assert set(metrics) == {metric.name for metric in plan("demo").metrics}
    history = read_history(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in history] == [0, 1, 2]
    assert history[-1]["val_nll"] < history[0]["val_nll"]
    assert (metrics["store_mb"] > 0) == ("pskd" in arm)
    assert metrics["step_ms"] > 0
    assert metrics["nll_scaled"] <= metrics["nll"] + 0.05
    kept = json.loads((tmp_path / "scores.json").read_text())
    assert "version" in kept["bleu"]["signature"]
    assert len((tmp_path / "translations.txt").read_text().splitlines()) == 30


def last_weights(folder):
    return load_file(f"{translation.last_checkpoint(folder / 'checkpoint')}/model.safetensors")


def test_a_run_stopped_in_the_middle_goes_on_to_the_same_end(tmp_path):
    class Stopped(Run):
        def log(self, step, **metrics):
            if step == 2:
                raise KeyboardInterrupt
            super().log(step, **metrics)

    whole = translation.run(Run.create(tmp_path / "whole", settings=settings("pskd")))
    with pytest.raises(KeyboardInterrupt):
        translation.run(Stopped.create(tmp_path / "stopped", settings=settings("pskd")))
    broken = tmp_path / "stopped" / "checkpoint" / "checkpoint-99"  # killed while it was being saved
    broken.mkdir()
    again = translation.run(Run.create(tmp_path / "stopped", settings=settings("pskd")))
    assert {**again, "step_ms": 0} == {**whole, "step_ms": 0}


def test_a_run_has_one_device_and_the_batch_that_was_asked_for(tmp_path, monkeypatch):
    """On a machine with several GPUs the library would take a batch on each of them."""

    class Seen(Exception):
        """What the trainer is given."""

    def setup(arguments):
        arguments._n_gpu = 8
        return torch.device("cpu")

    def trainer(args, **_):
        raise Seen(args.n_gpu, args.train_batch_size)

    several = cached_property(setup)
    several.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", several)
    monkeypatch.setattr(translation, "Seq2SeqTrainer", trainer)
    with pytest.raises(Seen) as seen:
        translation.run(Run.create(tmp_path, settings=settings("cross_entropy", batch_sentences=10)))
    assert seen.value.args == (1, 10)


def test_alpha_zero_trains_as_cross_entropy_does(tmp_path):
    off = translation.run(Run.create(tmp_path / "off", settings=settings("pskd", alpha_T=0.0)))
    control = translation.run(Run.create(tmp_path / "control", settings=settings("cross_entropy")))
    assert off["nll"] == control["nll"]
    a, b = last_weights(tmp_path / "off"), last_weights(tmp_path / "control")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("arm", [arm.name for arm in ARMS])
def test_batches_that_accumulate_train_as_one_does(arm, norm, tmp_path):
    nll = []
    for batches in (1, 4):
        asked = settings(arm, norm=norm, dropout=0.0, epochs=2, batch_sentences=40 // batches, accumulate=batches)
        nll.append(translation.run(Run.create(tmp_path / str(batches), settings=asked))["nll"])
    assert nll[0] == pytest.approx(nll[1], abs=1e-5)


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_a_table_is_a_small_share_of_a_dense_one(preset):
    """Both slots and stamps against one buffer of float32, at the preset's vocabulary."""
    vocabulary, k = (plan(preset).settings[name] for name in ("vocabulary", "topk"))
    assert table_bytes(400_000, vocabulary, TopK(k)) <= 400_000 * vocabulary * 4 / 200


def write_sentences(folder, pairs):
    """As Multi30k's: files of three parts, English plain and German packed."""
    for name in ("train", "val", "test_2016_flickr"):
        for side, language in enumerate(("en", "de")):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            if language == "de":
                (folder / f"{name}.de.gz").write_bytes(gzip.compress(text.encode()))
            else:
                (folder / f"{name}.en").write_text(text)


def test_files_are_read_and_both_directions_are_conditions(tmp_path):
    pairs = grammar(60, seed=3)
    write_sentences(tmp_path, pairs)
    study = plan("small", {"dataset": f"files:{tmp_path}", "train_sentences": 20})
    assert [c.name for c in study.conditions] == ["en-de", "de-en"]
    assert len({claim.id for claim in study.claims}) == 10
    there, back = (sentence_pairs(Settings(**study.run_settings(c, study.arms[0]))) for c in study.conditions)
    assert len(there.train) == 20
    assert [(b, a) for a, b in there.test] == back.test == [(b, a) for a, b in pairs]


def test_text_survives_the_tokenizer():
    pairs = grammar(200, seed=0)
    tokenizer = train_tokenizer(pairs, 200)
    samples = encode(pairs[:20], tokenizer, 40).samples
    decoded = tokenizer.batch_decode([one["labels"] for one in samples], skip_special_tokens=True)
    assert decoded == [target for _, target in pairs[:20]]
    short = encode(pairs, tokenizer, 8)
    assert max(len(one["labels"]) for one in short.samples) == 8
    whole = encode(pairs, tokenizer, 400)
    longer = sum(max(len(one["input_ids"]), len(one["labels"])) > 8 for one in whole.samples)
    assert (short.cut, whole.cut) == (longer, 0)
    assert len({source for source, _ in pairs}) > 190


def test_an_overconfident_models_temperature_is_found():
    tokenizer = train_tokenizer(grammar(100, seed=0), 150)
    torch.manual_seed(0)
    model = translation.build(Settings(**settings("cross_entropy")), tokenizer)
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    samples = encode(grammar(30, seed=0), tokenizer, 24).samples
    loss = {t: translation.TokenScores.of(model, samples, collator, t).nll.mean() for t in (0.4, 0.5, 1.0, 2.0, 2.9)}
    best = translation.fit_temperature(model, samples, collator)
    assert translation.TokenScores.of(model, samples, collator, best).nll.mean() <= min(loss.values()) + 1e-3
    assert best > 1, "a model that has learnt nothing must be made less sure"


def test_a_study_runs_and_its_analysis_draws(tmp_path):
    config = {**QUICK, "epochs": 1, "train_sentences": 60}
    run_study(plan("demo", config, seeds=[0], arms=["cross_entropy", "pskd"]), tmp_path)
    analysis = analyse(Results.load(tmp_path))
    assert [figure.kind for figure in analysis.figures] == ["lines", "lines", "text"]
    assert any("signature" in note for note in analysis.notes)
    (counts,) = [note for note in analysis.notes if "the vocabulary has" in note]
    assert counts.startswith("train 60 pairs, 0 more left out for an empty side, ")
    assert "test 30 pairs" in counts
    first = analysis.figures[2].blocks[0].splitlines()
    assert [line.partition(": ")[0] for line in first[:2]] == ["source", "reference"]
    assert analysis.figures[2].labels[0] == "sentence 1"
    assert len(first) == 4
    assert len(analysis.figures[2].blocks) == 5
    assert np.isfinite(analysis.figures[0].series[0].y[0][0])


@pytest.mark.parametrize("languages", [("de", "en"), ("en", "de")], ids="-".join)
def test_a_baseline_far_below_the_published_one_is_marked_undertrained(languages, tmp_path):
    """The published one is of German to English."""
    write_sentences(tmp_path, grammar(60, seed=3))
    source, target = languages
    files = {"dataset": f"files:{tmp_path}", "source": source, "target": target, "test": "test_2016_flickr"}
    study = plan("demo", {**QUICK, **files, "epochs": 1}, seeds=[0], arms=["cross_entropy"])
    done = run_study(study, tmp_path / "study", page=build)
    marked = languages == ("de", "en")
    assert ("cross-entropy (undertrained)" in done.page.read_text()) == marked
    kept = json.loads((tmp_path / "study" / "analysis.json").read_text())
    assert any(note.startswith("undertrained: cross-entropy reaches") for note in kept["notes"]) == marked


def test_bad_settings_are_refused():
    for config, message in (
        ({"layer": 3}, "layer"),
        ({"d_model": 30, "heads": 4}, "d_model = 30 is not a multiple of heads = 4"),
    ):
        with pytest.raises(UserError, match=message):
            plan("demo", config)
    with pytest.raises(UserError, match="no arm nothing"):
        plan("demo", arms=["nothing"])


PERFECT = (
    "我们今天去公园散步，天气很好！他在哪里？", "私たちは今日公園を散歩しました。", "วันนี้เราไปเดินเล่นที่สวนสาธารณะ",
    "Tô\u0302i đi bộ tro\u0302ng công viên hôm nay.", "Il a 5\u202fm² de terrain… et l’été arrive bientôt ici.",
)  # fmt: skip


@pytest.mark.parametrize("text", PERFECT)
def test_a_faultless_translator_has_full_marks_in_every_script(text, tmp_path):
    tokenizer = train_tokenizer([(text, text)] * 20, 200)
    said = tokenizer.batch_decode([tokenizer.encode(text)], skip_special_tokens=True)[0].strip()
    bleu, chrf = translation.text_scores(tmp_path, [said] * 3, [("x", text)] * 3)
    assert (bleu, chrf) == (pytest.approx(100), pytest.approx(100))
    one_wrong = translation.text_scores(tmp_path, [f"{said[:-3]}x{said[-2:]}"] * 3, [("x", text)] * 3)[0]
    assert 20 < one_wrong < 100


def test_the_names_of_tokens_in_a_sentence_are_text():
    tokenizer = train_tokenizer([("a b", "c <s> d </s> <pad> e")] * 20, 200)
    (sample,) = encode([("a b", "c </s> <pad> e")], tokenizer, 50).samples
    assert (sample["labels"].count(tokenizer.eos_token_id), sample["labels"][-1]) == (1, tokenizer.eos_token_id)
    assert tokenizer.pad_token_id not in sample["labels"]


def test_pairs_that_are_also_training_pairs_are_counted():
    parts = Parts([("a", "x"), ("b", "y")], [("a", "z")], [("a", "x"), ("a", "x"), ("c", "y")])
    assert translation._repeated(parts) == {"validation": 0, "test": 2}
    assert translation._shared(parts) == 0
    assert translation._shared(Parts([], [("a", "z"), ("c", "y")], [("a", "x"), ("c", "y"), ("c", "y")])) == 2
    other = Parts([("\u00c5l", "\ufb01n")], [("A\u030al", "fin")], [(" A\u030al", "\uff46in\u00a0"), ("l", "fin")])
    assert translation._repeated(other) == {"validation": 1, "test": 1}, "texts that the tokenizer cannot tell apart"
    assert translation._shared(other) == 1


def test_a_translation_with_another_line_separator_stays_one_line(tmp_path):
    said = ["a\u2028dog", "a\u0085 cat\x0c", "two\rbirds", ""]
    translation.text_scores(tmp_path, said, [("x", one or "y") for one in said])
    assert read_lines(tmp_path / "translations.txt") == said
