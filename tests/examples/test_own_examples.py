"""Examples of own studies. Those without settings run end to end in the test of their guide."""

import gzip
import importlib
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from retarget.errors import UserError
from retarget.study import Run, own
from retarget.study.record import run_directory, write_status
from retarget.study.runner import analyse

FOLDER = Path(__file__).parent.parent.parent / "examples"


def test_the_first_example_is_short():
    assert len((FOLDER / "own_study.py").read_text().splitlines()) <= 40


def test_no_example_is_left_out():
    names = {path.stem for path in FOLDER.glob("own_*.py")}
    known = {"own_study", "own_study_script", "own_study_fine_tuning", "own_study_text", "own_study_audit"}
    assert names == known | {"own_study_removal"}


def test_a_file_that_imports_no_torch_is_planned_without_it():
    code = f"from retarget.cli import main; main(['study', {str(FOLDER / 'own_study_script.py')!r}, '--dry-run'])"
    check = f"{code}; import sys; assert not {{'torch', 'sklearn'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


@pytest.fixture
def model(tmp_path):
    """Write a tiny random model with a word tokenizer; returns its folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel
    from transformers import PreTrainedTokenizerFast as Words

    def write(kind):
        words = ["[PAD]", "[UNK]", "[EOS]", *map(str, range(40)), "plus", "is", "even", "odd"]
        made = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
        made.pre_tokenizer = Whitespace()
        Words(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]").save_pretrained(tmp_path)
        if kind == "causal":
            tiny = GPT2Config(vocab_size=len(words), n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=2,
                              eos_token_id=2)  # fmt: skip
            GPT2LMHeadModel(tiny).save_pretrained(tmp_path)
        else:
            tiny = BertConfig(vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                              num_attention_heads=2, max_position_embeddings=16, num_labels=5)  # fmt: skip
            BertForSequenceClassification(tiny).base_model.save_pretrained(tmp_path)
        return tmp_path

    return write


@pytest.mark.parametrize("kind", ["causal", "classifier"])
def test_a_model_of_ones_own_is_fine_tuned(kind, model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    example = importlib.import_module("own_study_fine_tuning")
    if kind == "causal":
        rows = [{"prompt": f"{a} plus {b} is", "completion": str(a + b)} for a in range(8) for b in range(8)]
    else:
        rows = [{"text": f"{a} plus {b}", "label": a % 2} for a in range(8) for b in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = dict(model=str(model(kind)), data=str(tmp_path / "rows.jsonl"), lr=0.01, epochs=8, batch_size=10, listed=5)
    study = example.plan("demo", given, [0], None)
    found = {}
    for arm in study.arms:
        settings = study.run_settings(study.conditions[0], arm)
        run = Run.create(tmp_path / arm.name, settings=settings, arm=arm.name)
        found[arm.name] = example.run(run)["nll"]
    assert found["hard"] != found["pskd"]
    assert max(found.values()) < {"causal": 3.5, "classifier": 0.69}[kind]
    with pytest.raises(UserError, match="give --set model=DIR data="):
        example.plan("demo", {}, None, None)


def test_texts_of_ones_own_are_classified(tmp_path, monkeypatch):
    """Two fields to predict; a row without one of them, and one without a text, are left out."""
    monkeypatch.syspath_prepend(FOLDER)
    example = importlib.import_module("own_study_text")
    draw = random.Random(0)
    rows = [{"says": draw.choice(["red sky", "a red \\frac12", "green", "the green hill", ""]), "n": draw.randint(0, 1)}
            for _ in range(300)]  # fmt: skip
    for row in rows:
        if draw.random() < 0.9:
            row["colour"] = "red" if "red" in row["says"] else "green"
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[:200])
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[200:]))
    given = dict(train=str(tmp_path / "train.jsonl.gz"), test=str(tmp_path / "test.jsonl"), text="says",
                 labels="colour,n", validation_rows=50, epochs=8, batch_size=10)  # fmt: skip
    study = example.plan("demo", given, [0], ["cross_entropy", "pskd_label_smoothing"])
    assert len(study.claims) == 10
    found = {}
    for condition in study.conditions:
        for arm in study.arms:
            settings = study.run_settings(condition, arm)
            run = Run.create(tmp_path / condition.name / arm.name, settings=settings, arm=arm.name)
            found[condition.name, arm.name] = example.run(run)
    assert found["colour", "cross_entropy"]["top1"] == 100
    assert "nll_scaled" not in found["colour", "cross_entropy"]  # all of it is right: no temperature can be fitted
    assert found["n", "cross_entropy"]["top1"] < 75
    assert found["n", "cross_entropy"]["temperature"] > example.TEMPERATURES[0]
    assert found["n", "cross_entropy"]["nll"] != found["n", "pskd_label_smoothing"]["nll"]
    assert example.read(str(tmp_path / "test.jsonl"), "says", "n")[0] == [r["says"] for r in rows[200:] if r["says"]]
    with pytest.raises(UserError, match=r"no row has both says and colors\. The first row has says, n, colour"):
        example.read(str(tmp_path / "train.jsonl.gz"), "says", "colors")
    for content, message in (
        ('{"says": "a", "n": 1}\n\n{says}\n', "line 3: not JSON"), ('[{"says": "a"}]', "line 1: not a JSON object"),
        ("says,n\na,1\n", r"line 1: not JSON: .*\. One JSON object per line is read; convert CSV, TSV and JSON arrays"),
        ('{"says": ["a", "b"], "n": 1}', "line 1: says is a list, but a text is one string"),
        ('{"says": NaN, "n": 1}\n{"says": " ", "n": 1}\n', "no row has both says and n"),
        ("\n", "no row has both says and n. It is empty"),
    ):  # fmt: skip
        (tmp_path / "odd.jsonl").write_text(content)
        with pytest.raises(UserError, match=message):
            example.read(str(tmp_path / "odd.jsonl"), "says", "n")
    odd = tmp_path / "odd.jsonl"
    odd.write_bytes('{"says": "a", "n": 1}\n{"says": "caf\u00e9", "n": 1}\n'.encode("latin-1"))
    with pytest.raises(UserError, match=r"odd\.jsonl, line 2: not UTF-8 \(.*\): convert the file"):
        example.read(str(odd), "says", "n")
    odd.write_text('{"says": " ", "n": -1}\n{"says": null, "n": [1]}\n{"says": "a", "n": 1}\n')
    assert example.read(str(odd), "says", "n") == (["a"], ["1"])  # the label of a row without a text is not looked at
    odd.write_text("".join(f'{{"says": "a", "n": {n}}}\n' for n in ("1", "true", '"1.0"', "0", "false", '"0.00"')))
    assert example.read(str(odd), "says", "n")[1] == ["1", "1", "1", "0", "0", "0"]
    odd.write_text("".join(f'{{"says": "a", "n": {n}}}\n' for n in ("1", "1.0", '"1"', "NaN", "null", '""', '" "')))
    assert example.read(str(odd), "says", "n")[1] == ["1", "1", "1"]
    one = {**example.SETTINGS, **given, "train": str(odd), "labels": "n"}
    with pytest.raises(UserError, match=r"odd\.jsonl: every row has n '1', so there is nothing to predict"):
        example.run(Run.create(tmp_path / "one", settings=one, arm="pskd"))
    for label, message in (
        ("-1", "n is -1: leave out rows without a label"), ("[1]", "n is a list"), ("0.5", "n is 0.5, a score"),
        ("Infinity", "n is inf, a score"),
    ):  # fmt: skip
        odd.write_text(f'{{"says": "a", "n": 1}}\n{{"says": "b", "n": {label}}}\n')
        with pytest.raises(UserError, match=rf"odd\.jsonl, line 2: {message}"):
            example.read(str(odd), "says", "n")
    few = {**example.SETTINGS, **given, "train": given["test"], "labels": "n", "validation_rows": 200}
    with pytest.raises(UserError, match=r"test\.jsonl: \d+ rows, of which validation_rows=200 leaves none"):
        example.run(Run.create(tmp_path / "r", settings=few, arm="pskd"))
    assert [one.name for one in example.plan("demo", given | {"labels": "Label Type, n,"}, [0], None).conditions] == [
        "label-type", "n"
    ]  # fmt: skip
    for settings, message in (
        ({}, r"give --set train=FILE\.jsonl test="),
        (given | {"validation_rows": -5}, "at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            example.plan("demo", settings, None, None)


def test_a_text_classifier_that_only_names_the_most_frequent_class_decides_nothing(tmp_path, monkeypatch):
    """Every validation row is right: the fitted temperature was .01, and 3.98 against 2.89 "held" as a likelihood."""
    monkeypatch.syspath_prepend(FOLDER)
    labels = ["ham"] * 200
    for place in np.random.default_rng(0).permutation(200)[60:64]:  # beyond the validation rows
        labels[place] = "spam"
    for name, some in (("train", labels), ("test", ["ham"] * 39 + ["spam"])):
        rows = [{"text": f"a letter of {place % 7}", "label": label} for place, label in enumerate(some)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")} | {"validation_rows": 50, "epochs": 2}
    study = own.read("own_study_text", "demo", given, [0, 1], ["cross_entropy", "pskd"])
    for arm in study.arms:
        for seed in study.seeds:
            folder = run_directory(tmp_path / "out", study, "label", arm.name, seed)
            run = Run.create(folder, settings=study.run_settings(study.conditions[0], arm), arm=arm.name, seed=seed)
            write_status(folder, {"state": "complete", "metrics": sys.modules["own_study_text"].run(run)})
    summary = analyse(tmp_path / "out", study)
    found = summary["conditions"]["label"]["pskd"]
    assert found["top1"]["values"] == [97.5, 97.5]
    assert found["top1_chance"]["mean"] == 100
    assert not {"temperature", "nll_scaled", "ece_scaled", "aurc_scaled"} & found.keys()
    assert {claim["verdict"] for claim in summary["claims"]} == {"not measured"}
    notes = json.loads((tmp_path / "out" / "analysis.json").read_text())["notes"]
    said = "or no more of them than by chance, for cross-entropy (seeds 0, 1), so no temperature can be fitted"
    assert said in notes[0]
    assert notes[2].startswith("label: 40 of the test texts are also texts of the training file: there the test part")
    assert notes[3].startswith("label: 50 of 50 validation texts are training texts, too: the temperature is fitted")


def test_a_network_with_weights_of_a_package(monkeypatch):
    """The package's names are not timm's, its order is: the last layer becomes new for other classes."""
    monkeypatch.syspath_prepend(FOLDER)
    example = importlib.import_module("efficientnet_lite0")
    own = example.network(1000).eval()
    given = {f"_{name}": value for name, value in own.state_dict().items()}
    other = example.network(1000).eval()
    other.load_state_dict(example.renamed(given))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(own(x), other(x))
        assert example.network(7, 1).eval()(x[:, :1]).shape == (2, 7)
    given.popitem()
    with pytest.raises(ValueError, match="not the weights of EfficientNet-Lite0"):
        example.renamed(given)
