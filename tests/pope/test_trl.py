import inspect
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import peft
import pope_training
import pytest
import torch
import trl
from datasets import Dataset
from pope_training import TINY, make_rows, reward, run
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from retarget.errors import UserError
from retarget.identity import fingerprint
from retarget.pope.resume import last_checkpoint
from retarget.pope.settings import TrainingSettings, grpo_arguments
from retarget.pope.studies.testbed import load_base
from retarget.pope.trl import PopeTrainer, fitting, ordered, train


def weights(directory):
    return load_file(Path(directory) / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def make_trainer(tiny, output, rows=None, cls=PopeTrainer, **changes):
    model, tokenizer = load_base(tiny.directory)
    settings = TrainingSettings(**{**TINY, **changes})
    config = GRPOConfig(output_dir=str(output), **grpo_arguments(settings, 1, False))
    return cls(model=model, reward_funcs=[reward()], args=config, processing_class=tokenizer,
               train_dataset=ordered(rows or make_rows(), settings))  # fmt: skip


@pytest.fixture
def generated(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, micro_batch=16, updates_per_batch=1)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = next(iter(trainer.get_train_dataloader()))
    return trainer, batch, trainer._generate_and_score_completions(batch)


def test_trl_still_has_the_private_names_that_the_subclass_leans_on():
    assert trl.__version__.startswith("1.16.")
    parameters = {
        name: list(inspect.signature(getattr(GRPOTrainer, name)).parameters)
        for name in ("_calculate_rewards", "_generate_and_score_completions", "_compute_loss")
    }
    assert parameters == {
        "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        "_generate_and_score_completions": ["self", "inputs"],
        "_compute_loss": ["self", "model", "inputs"],
    }
    assert hasattr(GRPOTrainer, "_get_per_token_logps_and_entropies")
    source = inspect.getsource(GRPOTrainer)
    assert "return logps, entropies, aux_loss" in source
    assert 'self._metrics = {"train"' in source


def test_the_papers_settings_in_trls_terms():
    found = grpo_arguments(TrainingSettings(cycles=10), processes=4, cuda=True)
    expected = dict(
        max_steps=10, num_generations=8, per_device_train_batch_size=8, gradient_accumulation_steps=8,
        steps_per_generation=8, learning_rate=1e-6, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.01,
        max_grad_norm=0.3, beta=0.0, loss_type="luspo", importance_sampling_level="token", scale_rewards="none",
        epsilon=1.0, epsilon_high=4.0, temperature=0.8, max_completion_length=16384, bf16=True, shuffle_dataset=False,
    )  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert found["entropy_coef"] == pytest.approx(1e-4 * 4000)
    with pytest.raises(UserError, match="32 prompts × 8 rollouts does not divide into 3 processes"):
        grpo_arguments(TrainingSettings(cycles=1), processes=3, cuda=False)


def test_groups_are_of_one_stratum_and_the_advantage_is_the_reward_minus_their_mean(generated):
    trainer, batch, output = generated
    rewards = trainer._rewards.sum(1).numpy().reshape(4, 4)
    assert 0 < rewards.sum() < 16
    assert np.allclose(output["advantages"].numpy().reshape(4, 4), rewards - rewards.mean(1, keepdims=True))
    strata = output["stratum"].reshape(4, 4)
    assert (strata == strata[:, :1]).all()
    names = [trainer._strata[index] for index in strata[:, 0]]
    assert Counter(names) == {"guided": 2, "unguided": 2}
    assert [row["stratum"] for row in batch[::4]] == names
    metrics = trainer._metrics["train"]
    for name in ("guided", "unguided"):
        of = np.array([one == name for one in names])
        assert metrics[f"{name}/reward"] == [pytest.approx(rewards[of].mean())]
        assert metrics[f"{name}/all_fail"] == [(rewards[of].sum(1) == 0).mean()]
        equal = (rewards[of] == rewards[of][:, :1]).all(1)
        assert metrics[f"{name}/zero_advantage"] == [equal.mean()]
        lengths = output["completion_mask"].sum(1).reshape(4, 4)[torch.tensor(of)]
        assert metrics[f"{name}/length"] == [pytest.approx(lengths.float().mean().item())]


def test_the_loss_is_on_completions_alone(generated):
    trainer, batch, output = generated
    tokenizer, model = trainer.processing_class, trainer.model
    for row, ids in zip(batch, output["prompt_ids"], strict=True):
        assert tokenizer.decode(ids, skip_special_tokens=True) == row["prompt"].replace("\n", " ")
    trainer._compute_loss(model, output).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    # From the equations: the batch's mean of -A_i times the log-probability of the completion, token by token.
    plain, _ = load_base(Path(model.config._name_or_path))
    total = torch.zeros(())
    for index in range(16):
        prompt = output["prompt_ids"][index][output["prompt_mask"][index].bool()]
        completion = output["completion_ids"][index][output["completion_mask"][index].bool()]
        logits = plain(torch.cat([prompt, completion])[None]).logits[0].log_softmax(-1)
        for at, token in enumerate(completion):
            total = total - output["advantages"][index] * logits[len(prompt) + at - 1, token] / 16
    total.backward()
    for name, parameter in plain.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-6), name


def test_entropy_per_stratum_is_a_mean_over_tokens(generated):
    trainer, _, output = generated
    trainer._compute_loss(trainer.model, output)
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    plain, _ = load_base(Path(trainer.model.config._name_or_path))
    with torch.no_grad():
        logits = plain(ids, attention_mask=mask, position_ids=positions).logits.double()
    log_p = logits[:, -output["completion_ids"].shape[1] - 1 : -1].log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    for index, name in enumerate(trainer._strata):
        kept = output["completion_mask"].bool() & (output["stratum"] == index)[:, None]
        assert trainer._metrics["train"][f"{name}/entropy"] == [pytest.approx(entropy[kept].mean().item(), abs=1e-4)]


class Watching(PopeTrainer):
    def _generate_and_score_completions(self, inputs):
        self.__dict__.setdefault("batches", []).append([row["id"] for row in inputs])
        return super()._generate_and_score_completions(inputs)


def test_the_batches_that_the_trainer_draws_hold_both_strata_over_two_epochs(tiny, tmp_path):
    trainer = make_trainer(tiny, tmp_path, cls=Watching, cycles=6)  # 12 rows, 4 prompts a batch: three batches an epoch
    trainer.train()
    assert len(trainer.batches) == 6
    for batch in trainer.batches:
        assert Counter(one.rpartition("/")[2] for one in batch) == {"guided": 8, "unguided": 8}
        assert set(Counter(batch).values()) == {4}
    epochs = [sorted({one for batch in trainer.batches[at : at + 3] for one in batch}) for at in (0, 3)]
    assert epochs[0] == epochs[1] == sorted(row["id"] for row in make_rows())
    assert trainer.batches[:3] != trainer.batches[3:]
    line = next(line for line in trainer.state.log_history if "guided/reward" in line)
    for name in ("guided", "unguided"):
        for metric in ("reward", "all_fail", "zero_advantage", "length", "entropy"):
            assert f"{name}/{metric}" in line


def test_without_guided_rows_the_weights_are_plain_grpos_bit_for_bit(tiny, tmp_path):
    rows = make_rows(ratio=0.0)
    trained = {}
    for cls in (PopeTrainer, GRPOTrainer):
        trainer = make_trainer(tiny, tmp_path / cls.__name__, rows, cls)
        trainer.train()
        trained[cls] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert same(trained[PopeTrainer], trained[GRPOTrainer])
    assert not same(trained[PopeTrainer], load_base(tiny.directory)[0].state_dict())


def test_resuming_at_the_end_of_a_cycle_equals_an_uninterrupted_run(tiny, tmp_path):
    run(tiny.directory, tmp_path / "whole", save_every=2)
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "resumed" / "checkpoint-4")
    shutil.copy(tmp_path / "whole" / "work.json", tmp_path / "resumed")
    (tmp_path / "resumed" / "checkpoint-6").mkdir()  # left by a killed process
    trainer = run(tiny.directory, tmp_path / "resumed", save_every=2)
    assert trainer.state.global_step == 8
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "resumed"))
    strata = [
        [(line["step"], line["guided/reward"], line["unguided/entropy"]) for line in read_log(tmp_path / name)]
        for name in ("whole", "resumed")
    ]
    assert strata[0] == strata[1]


def read_log(directory):
    last = max(directory.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    state = json.loads((last / "trainer_state.json").read_text())
    return [line for line in state["log_history"] if "guided/reward" in line]


def test_only_whole_checkpoints_are_resumed_from(tmp_path, caplog):
    for step, state in ((2, '{"global_step": 2}'), (4, '{"global_st'), (6, None), (8, '{"global_step": 7}')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert caplog.text.count("is incomplete") == 2
    assert last_checkpoint(tmp_path / "none") is None


def test_checkpoints_inside_a_cycle_are_refused(tiny, tmp_path):
    extra = {**TINY["extra"], "save_steps": 3}
    with pytest.raises(UserError, match="save_steps=3 saves inside a generation cycle of 2 optimiser steps"):
        make_trainer(tiny, tmp_path, save_every=1, extra=extra)


def test_evaluation_is_unguided(tiny, tmp_path):
    model, tokenizer = load_base(tiny.directory)
    settings = TrainingSettings(**TINY)
    with pytest.raises(UserError, match="evaluation must be unguided"):
        train(model, make_rows(), reward(), settings, tmp_path, tokenizer=tokenizer, eval_rows=make_rows())
    trainer = make_trainer(tiny, tmp_path)
    unguided = make_rows(ratio=0.0)
    assert "eval_reward" in trainer.evaluate(Dataset.from_list(unguided[:4]))
    with pytest.raises(UserError, match="evaluation must be unguided"):
        trainer.evaluate(Dataset.from_list(make_rows()[:4]))


def test_rows_without_a_known_stratum_are_refused(tiny, tmp_path):
    model, tokenizer = load_base(tiny.directory)
    config = GRPOConfig(output_dir=str(tmp_path), **grpo_arguments(TrainingSettings(**TINY), 1, False))
    for rows, message in (([{"prompt": "1 =", "answer": "1"}] * 4, "no column 'stratum'"),
                          ([{"prompt": "1 =", "stratum": "hint"}] * 4, "unknown values hint")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            PopeTrainer(model=model, reward_funcs=[reward()], args=config, processing_class=tokenizer,
                        train_dataset=Dataset.from_list(rows))  # fmt: skip


def test_prompts_that_do_not_fit_are_dropped_with_a_count(caplog):
    rows = make_rows()
    with caplog.at_level(logging.WARNING):
        kept = fitting(rows, 5, lambda prompt: len(prompt.split()))
    assert {row["stratum"] for row in kept} == {"unguided"}
    assert "6 of 12 prompts (6 of them guided) have more than 5 tokens" in caplog.text
    with pytest.raises(UserError, match="every prompt has more than 1 tokens"):
        fitting(rows, 1, lambda prompt: len(prompt.split()))


def test_a_training_without_a_prompt_that_fits_claims_no_directory(tiny, tmp_path):
    settings = TrainingSettings(**{**TINY, "max_prompt_length": 1})
    with pytest.raises(UserError, match="every prompt has more than 1 tokens"):
        train(str(tiny.directory), make_rows(), reward(), settings, tmp_path)
    assert not (tmp_path / "work.json").exists()


def test_lora(tiny, tmp_path):
    model, tokenizer = load_base(tiny.directory)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = train(model, make_rows(), reward(), TrainingSettings(**{**TINY, "cycles": 2}), tmp_path,
                    tokenizer=tokenizer, peft_config=lora)  # fmt: skip
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any(value.abs().sum() > 0 for name, value in saved.items() if "lora_B" in name)
    assert trainer.state.global_step == 4


def test_two_processes_draw_balanced_batches_and_log_the_same_keys(tiny, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone",
        pope_training.__file__, str(tiny.directory), str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0]["ranks"] == 2
    seen = set()
    for first, second in zip(ranks[0]["drawn"], ranks[1]["drawn"], strict=True):
        assert len(set(first)) == len(set(second)) == 1  # a rank holds one whole group
        strata = {one.rpartition("/")[2] for one in (first[0], second[0])}
        assert strata == {"guided", "unguided"}
        seen |= {first[0], second[0]}
    assert len(ranks[0]["drawn"]) == 12  # two epochs of six batches
    assert seen == {row["id"] for row in make_rows()}
    lines = [[line for line in rank["log"] if "guided/reward" in line] for rank in ranks]
    keys = [name for name in lines[0][0] if name.startswith(("guided/", "unguided/"))]
    assert len(keys) == 10
    for first, second in zip(*lines, strict=True):
        assert {key: first[key] for key in keys} == {key: second[key] for key in keys}


def newest(directory):
    return max((int(folder.name.rpartition("-")[2]) for folder in directory.glob("checkpoint-*")), default=0)


def check_kills(tiny, tmp_path, kills, cycles, random):
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["trl.trainer.grpo_trainer", "retarget.pope.trl"])
    run(tiny.directory, tmp_path / "whole", save_every=1, cycles=cycles)
    killed, codes = tmp_path / "killed", []
    for attempt in range(kills + 1):
        before = newest(killed)
        process = server.Process(target=pope_training.run_quietly, args=(tiny.directory, killed, cycles))
        process.start()
        if attempt < kills:
            while process.is_alive() and newest(killed) == before:
                process.join(0.01)
            process.join(float(random.uniform(0.0, 0.02)))  # well before the next few checkpoints are done
            process.kill()
        process.join()
        codes.append(process.exitcode)
    assert -signal.SIGKILL in codes
    assert codes[-1] == 0
    begun = [int(line) for line in (killed / "begun.txt").read_text().split()]
    assert begun[0] == 0
    assert max(begun) > 0
    assert same(weights(tmp_path / "whole"), weights(killed))


def test_killed_training_ends_with_the_same_weights(tiny, tmp_path):
    check_kills(tiny, tmp_path, 3, 6, np.random.default_rng(0))


@pytest.mark.slow
def test_training_killed_twenty_times(tiny, tmp_path):
    check_kills(tiny, tmp_path, 20, 24, np.random.default_rng(1))


def test_a_directory_of_other_work_is_not_resumed(tiny, tmp_path):
    run(tiny.directory, tmp_path, save_every=2)
    with pytest.raises(UserError, match=r"was made with lr = 0.001 \(now 0.002\)\."):
        run(tiny.directory, tmp_path, save_every=2, lr=2e-3)
    model, tokenizer = load_base(tiny.directory)
    settings = TrainingSettings(**{**TINY, "save_every": 2})
    for resume in (True, False):
        with pytest.raises(UserError, match=r"was made with rows = \w+ \(now"):
            train(model, make_rows(ratio=0.0), reward(), settings, tmp_path, tokenizer=tokenizer, resume=resume)
    (tmp_path / "work.json").unlink()
    with pytest.raises(UserError, match=r"checkpoints, but no work\.json"):
        run(tiny.directory, tmp_path, save_every=2)


def test_the_pool_lasts_for_every_cycle():
    settings = TrainingSettings(**{**TINY, "order": "pool", "cycles": 20})
    assert len(ordered(make_rows()[:7], settings)) == 20 * 4


def test_evaluation_rows_are_guided_by_their_stratum_too(tiny, tmp_path):
    rows = [{key: value for key, value in row.items() if key != "guided"} for row in make_rows()]
    trainer = make_trainer(tiny, tmp_path)
    with pytest.raises(UserError, match="evaluation must be unguided"):
        trainer.evaluate(Dataset.from_list(rows[:4]))
    model, tokenizer = load_base(tiny.directory)
    with pytest.raises(UserError, match="evaluation must be unguided"):
        train(model, make_rows(), reward(), TrainingSettings(**TINY), tmp_path, tokenizer=tokenizer, eval_rows=rows)


def test_packages_that_are_missing_are_found_out_first(tiny, tmp_path):
    for changes, message in (({"vllm": "server"}, "vllm is not installed"),
                             ({"extra": {"report_to": "no_such_tracker"}}, "pip install no_such_tracker")):  # fmt: skip
        with pytest.raises((UserError, ImportError), match=message):
            run(tiny.directory, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_the_model_card_names_its_base(tiny, tmp_path):
    run(tiny.directory, tmp_path, save_every=4)
    cards = [path.read_text() for path in tmp_path.rglob("README.md")]
    assert cards
    for card in cards:
        assert "None" not in card
        assert f"`{tiny.directory.name}`" in card


def test_more_cycles_go_on_from_those_that_are_done(tiny, tmp_path):
    run(tiny.directory, tmp_path / "whole", save_every=1)
    run(tiny.directory, tmp_path / "extended", save_every=1, cycles=2)
    before = json.loads((tmp_path / "extended" / "work.json").read_text())
    # As earlier versions wrote it.
    settings = TrainingSettings(**{**TINY, "save_every": 1, "cycles": 2})
    former = {key: value for key, value in before.items() if key != "cycles"}
    former["settings"] = fingerprint(settings.model_dump(mode="json", exclude={"pass_at_k"}))
    (tmp_path / "extended" / "work.json").write_text(json.dumps(former))
    begun = []

    class Begun(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            begun.append(state.global_step)

    run(tiny.directory, tmp_path / "extended", [Begun()], save_every=1)
    assert begun == [4]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "extended"))
    with pytest.raises(UserError, match=r"cycles = 4 \(now 3\)"):
        run(tiny.directory, tmp_path / "extended", save_every=1, cycles=3)
