"""The trainer with a curriculum and with the pass@k objective, on a tiny real model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pope_training import TINY, make_rows, reward
from safetensors.torch import load_file
from trl.trainer.grpo_config import GRPOConfig

from retarget.errors import UserError
from retarget.pope.curricula import HintWhenWrong
from retarget.pope.functional import pass_at_k_rewards
from retarget.pope.settings import TrainingSettings, grpo_arguments
from retarget.pope.studies.imitation import imitate
from retarget.pope.studies.probes import log_probability
from retarget.pope.studies.testbed import PROMPTS, load_base
from retarget.pope.trl import CURRICULUM, PopeTrainer, ordered, train


def hints():
    return HintWhenWrong({row["problem"]: row for row in make_rows() if row["guided"]})


def trained(tiny, output, curriculum, **changes):
    model, tokenizer = load_base(tiny.directory)
    settings = TrainingSettings(**{**TINY, "save_every": 2, **changes})
    rows = make_rows(ratio=0.0)
    return train(model, rows, reward(), settings, output, tokenizer=tokenizer, curriculum=curriculum)


def test_a_resumed_curriculum_goes_on_as_it_would_have(tiny, tmp_path):
    whole, resumed = hints(), hints()
    trainer = trained(tiny, tmp_path / "whole", whole)
    assert {group.cycle for group in whole.groups} == {0, 1, 2, 3}
    assert len(whole.groups) == 16
    wrong, shown = set(), 0
    for group in whole.groups:  # six problems, so each is seen again: with its hint exactly if it was all wrong before
        assert (group.stratum == "guided") == (group.problem in wrong)
        shown += group.stratum == "guided"
        wrong.discard(group.problem)
        if group.stratum == "unguided" and not group.correct:
            wrong.add(group.problem)
    assert shown
    lines = [line for line in trainer.state.log_history if "guided/reward" in line]
    assert len(lines) == 4
    kept = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", kept / "checkpoint-4")
    shutil.copy(tmp_path / "whole" / "work.json", kept)
    trained(tiny, kept, resumed)
    assert resumed.groups == whole.groups
    first, second = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", kept))
    assert all(torch.equal(first[name], second[name]) for name in first)
    (kept / "checkpoint-8" / CURRICULUM).write_text('[[1, "p"]]')
    with pytest.raises(UserError, match="a list of"):
        trained(tiny, kept, hints(), cycles=6)
    with pytest.raises(UserError, match="curriculum"):
        trained(tiny, kept, None)
    assert "curriculum" in json.loads((kept / "work.json").read_text())


def test_the_pass_at_k_objective_changes_advantages_and_no_metric(tiny, tmp_path):
    advantages, logged = {}, {}
    for k in (1, 3):
        model, tokenizer = load_base(tiny.directory)
        settings = TrainingSettings(**{**TINY, "micro_batch": 16, "updates_per_batch": 1, "pass_at_k": k})
        config = GRPOConfig(output_dir=str(tmp_path), **grpo_arguments(settings, 1, False))
        trainer = PopeTrainer(model=model, reward_funcs=[reward()], args=config, processing_class=tokenizer,
                              train_dataset=ordered(make_rows(), settings), pass_at_k=k)  # fmt: skip
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        output = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
        correct = trainer._rewards.sum(1).view(4, 4) > 0.5
        expected = pass_at_k_rewards(correct, k)
        expected = expected - expected.mean(1, keepdim=True)
        assert torch.allclose(output["advantages"].view(4, 4), expected, atol=1e-6)
        advantages[k] = output["advantages"]
        logged[k] = {name: values for name, values in trainer._metrics["train"].items() if "guided/" in name}
    assert not torch.allclose(advantages[1], advantages[3])
    assert logged[1] == logged[3]
    with pytest.raises(UserError, match="pass_at_k=5"):
        grpo_arguments(TrainingSettings(**{**TINY, "pass_at_k": 5}), 1, False)


def test_imitation_makes_its_completions_likelier(tiny, tmp_path):
    prompt, text = str(PROMPTS.without_prefix(tiny.problems[0].prompt)), tiny.problems[0].solution.replace("\n", " ")
    before = log_probability(tiny.model, tiny.tokenizer, prompt, [text, text])
    assert before[0] == before[1] <= 0
    folder = imitate(tiny.directory, [(prompt, text)], 20, 1e-3, 4, 0, tmp_path / "warm", lambda done, total: None)
    network, tokenizer = load_base(Path(folder))
    after = log_probability(network, tokenizer, prompt, [text])
    assert after[0] > before[0]
    # Against the definition, token by token.
    ids = tokenizer(f"{prompt} {text}")["input_ids"] + [tokenizer.eos_token_id]
    begin, total = len(tokenizer(prompt)["input_ids"]), []
    for at in range(begin, len(ids)):
        with torch.no_grad():
            logits = network(torch.tensor([ids[:at]])).logits[0, -1].double()
        total.append(float(logits.log_softmax(-1)[ids[at]]))
    assert after[0] == pytest.approx(np.mean(total), abs=1e-5)
    again = imitate(tiny.directory, [], 20, 1e-3, 4, 0, tmp_path / "warm", lambda done, total: None)
    assert again == folder  # what is there is not made again
