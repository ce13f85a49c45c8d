"""What a training refuses, and that a refused one leaves its folder free."""

import json
import logging
import shutil
from pathlib import Path

import peft
import pytest
from datasets import Dataset
from pope_training import TINY, make_rows, reward
from transformers import GPT2Config, GPT2LMHeadModel
from trl.trainer.grpo_config import GRPOConfig

from retarget.cli import main
from retarget.errors import UserError
from retarget.pope.engines.local import TransformersEngine
from retarget.pope.grading import Grader, reward_function
from retarget.pope.mixture import write_parquet
from retarget.pope.settings import TrainingSettings, grpo_arguments
from retarget.pope.studies.testbed import load_base
from retarget.pope.trl import PopeTrainer, train


def settings(**changes):
    return TrainingSettings(**{**TINY, **changes})


def begin(tiny, output, rows=None, rewards=None, **changes):
    return train(str(tiny.directory), rows or make_rows(), rewards or reward(), settings(**changes), output)


def test_a_training_does_not_write_over_its_own_model(tiny, tmp_path, capsys):
    base, rows = tmp_path / "base", tmp_path / "rows.parquet"
    shutil.copytree(tiny.directory, base)
    shutil.copytree(tiny.directory, base / "checkpoint-4")
    write_parquet(rows, make_rows())
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    for model in (base, base / "checkpoint-4", tmp_path / "x" / ".." / "base"):
        with pytest.raises(UserError, match="the training would write over its own model"):
            train(str(model), make_rows(), reward(), settings(), base)
    with pytest.raises(UserError, match="the training would write over its own model"):
        train(load_base(base)[0], make_rows(), reward(), settings(), base)
    words = ["pope", "train", str(rows), "--model", str(base), "--out", f"{base}/", "--set", "prompts_per_batch=4"]
    assert main([*words, "--dry-run"]) == main(words) == 1
    assert capsys.readouterr().err.count("the training would write over its own model") == 2
    with pytest.raises(UserError, match=r"there is a model, but no work\.json"):
        train(str(tiny.directory), make_rows(), reward(), settings(), base / "checkpoint-4")
    assert before == {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}


def test_a_refused_training_leaves_its_folder_free(tiny, tmp_path):
    for changes, message in (({"prompts_per_batch": 32}, "12 rows do not fill one generation batch of 32 prompts"),
                             ({"save_every": 1, "extra": {**TINY["extra"], "save_steps": 3}}, "inside a generation"),
                             ({"pass_at_k": 5}, "needs at least as many rollouts")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            begin(tiny, tmp_path, **changes)
        assert not (tmp_path / "work.json").exists()
    (tmp_path / "work.json").write_text('{"cycles": 9, "settings": "0", "rows": "0"}')  # killed before a checkpoint
    begin(tiny, tmp_path, cycles=1, save_every=1)
    work = json.loads((tmp_path / "work.json").read_text())
    assert (work["cycles"], work["chosen"]["lr"]) == (1, 1e-3)


def test_a_training_is_not_continued_with_another_reward(tiny, tmp_path, monkeypatch):
    def graded(spec):
        return reward_function(Grader(spec, workers=0))

    begin(tiny, tmp_path, cycles=1, save_every=1, rewards=graded("exact"))
    with pytest.raises(UserError, match=r"grader = exact \(now numeric\)"):
        begin(tiny, tmp_path, save_every=1, rewards=graded("numeric"))

    def other(completions, **_):
        return [0.0] * len(completions)

    with pytest.raises(UserError, match=r"grader = exact \(now nothing\)"):
        begin(tiny, tmp_path, save_every=1, rewards=other)
    work = json.loads((tmp_path / "work.json").read_text())
    assert work["grader"] == "exact"
    (tmp_path / "work.json").write_text(
        json.dumps({name: one for name, one in work.items() if name not in ("grader", "grader_rules", "chosen")})
    )  # as earlier versions wrote it
    assert begin(tiny, tmp_path, cycles=2, save_every=1, rewards=graded("exact")).state.global_step == 4


@pytest.mark.parametrize(
    ("name", "value", "setting"),
    [("num_generations", 2, "rollouts"), ("max_steps", 1, "cycles"), ("use_vllm", True, "vllm"),
     ("shuffle_dataset", True, "order"), ("learning_rate", 1.0, "lr")],
)  # fmt: skip
def test_fields_that_a_setting_decides_are_refused(tiny, tmp_path, name, value, setting):
    extra = {**TINY["extra"], name: value}
    with pytest.raises(UserError, match=rf"extra: a setting of POPE decides {name} \(set {setting}\)"):
        begin(tiny, tmp_path, extra=extra)
    with pytest.raises(UserError, match=rf"{name} \(set {setting}\)"):
        grpo_arguments(settings(extra=extra), 1, False)


def test_a_dry_run_refuses_what_the_training_would(tmp_path, capsys):
    write_parquet(tmp_path / "rows.parquet", make_rows())
    words = ["pope", "train", str(tmp_path / "rows.parquet"), "--model", "m", "--out", str(tmp_path / "o"), "--dry-run"]
    assert main(words) == 1
    assert "12 rows do not fill one generation batch of 32 prompts" in capsys.readouterr().err
    assert main([*words, "--set", "prompts_per_batch=4", "extra.num_generations=2"]) == 1
    assert "num_generations (set rollouts)" in capsys.readouterr().err
    assert main([*words, "--set", "prompts_per_batch=4"]) == 0


def test_completions_beyond_a_table_of_positions_are_refused(tiny, tmp_path, caplog):
    base = tmp_path / "gpt2"
    tiny.tokenizer.save_pretrained(base)
    config = GPT2Config(vocab_size=len(tiny.tokenizer), n_positions=32, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(base)
    with pytest.raises(UserError, match=r"max_completion_length=30 exceed the model's context of 32 tokens"):
        train(str(base), make_rows(), reward(), settings(max_completion_length=30), tmp_path / "out")
    assert not (tmp_path / "out" / "work.json").exists()
    # Rotary positions have no table.
    with caplog.at_level(logging.WARNING):
        begin(tiny, tmp_path / "rotary", cycles=1, max_completion_length=125)
    assert "exceed the model's context of 128 tokens" in caplog.text


@pytest.mark.parametrize("name", ["prompt", "problem", "stratum", "guided"])
def test_a_column_that_rows_lack_is_named(tiny, tmp_path, name):
    rows = [{key: value for key, value in row.items() if key != name} for row in make_rows()]
    with pytest.raises(UserError, match=f"row 0 has no {name}; its columns: .*answer"):
        begin(tiny, tmp_path, rows)


def test_rows_given_by_position_are_checked_too(tiny, tmp_path):
    model, _ = load_base(tiny.directory)
    config = GRPOConfig(output_dir=str(tmp_path), **grpo_arguments(settings(), 1, False))
    with pytest.raises(UserError, match="no column 'stratum'"):
        PopeTrainer(model, [reward()], config, Dataset.from_list([{"prompt": "1 =", "answer": "1"}] * 4))


def test_a_trained_adapter_opens_from_another_working_directory(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.directory, "base")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    train("base", make_rows(), reward(), settings(cycles=1, save_every=1), Path("out"), peft_config=lora)
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-2"):
        found = json.loads((folder / "adapter_config.json").read_text())
        assert found["base_model_name_or_path"] == str(tmp_path / "base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "base" in TransformersEngine.load("../out").identity
