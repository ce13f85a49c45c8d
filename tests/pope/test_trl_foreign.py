"""PopeTrainer with models, templates, rewards and mixtures of other kinds than the testbed's."""

import numpy as np
import pytest
import torch
from datasets import IterableDataset
from pope_training import TINY, make_rows, reward, run
from trl.trainer.grpo_config import GRPOConfig

from retarget.errors import UserError
from retarget.pope.curricula import Curriculum
from retarget.pope.functional import thinking_lengths
from retarget.pope.mixture import mix
from retarget.pope.settings import TrainingSettings, grpo_arguments
from retarget.pope.studies.chain import make_problems
from retarget.pope.studies.testbed import PROMPTS, load_base
from retarget.pope.trl import PopeTrainer, informed, ordered, train


def test_a_cycle_without_a_stratum_is_shown_by_the_bar(tiny, tmp_path):
    rows = mix(make_problems(4, 3, seed=3), {}, PROMPTS, seed=0, easy=make_problems(1, 2, seed=4))
    model, tokenizer = load_base(tiny.directory)
    changes = dict(
        cycles=3, prompts_per_batch=1, micro_batch=2, extra={"use_cpu": True, "disable_tqdm": False}, order="pool"
    )
    done = train(model, rows, reward(), TrainingSettings(**{**TINY, **changes}), tmp_path, tokenizer=tokenizer)
    lines = [one for one in done.state.log_history if "reward" in one]
    assert any(one.get("easy/reward") is None or np.isnan(one["easy/reward"]) for one in lines)
    assert done.state.global_step == 6


def test_every_end_token_of_the_model_ends_a_completion(tiny, tmp_path):
    model, tokenizer = load_base(tiny.directory)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 5]
    settings = TrainingSettings(**TINY)
    config = GRPOConfig(output_dir=str(tmp_path), **grpo_arguments(settings, 1, False))
    trainer = PopeTrainer(model=model, reward_funcs=[reward()], args=config, processing_class=tokenizer,
                          train_dataset=ordered(make_rows(), settings))  # fmt: skip
    assert trainer.reward_funcs[0].ends == {tokenizer.eos_token_id, 5, tokenizer.pad_token_id}


def test_the_first_of_several_rewards_says_what_is_solved(tiny, tmp_path):
    def wrong(completions, **_):
        return [0.0] * len(completions)

    def well_formed(completions, **_):
        return [1.0] * len(completions)

    class Seen(Curriculum):
        strata = ("unguided", "guided")

    model, tokenizer = load_base(tiny.directory)
    settings = TrainingSettings(**{**TINY, "micro_batch": 16, "updates_per_batch": 1})
    config = GRPOConfig(output_dir=str(tmp_path), **grpo_arguments(settings, 1, False))
    given = dict(model=model, reward_funcs=[wrong, well_formed], args=config, processing_class=tokenizer,
                 train_dataset=ordered(make_rows(), settings))  # fmt: skip
    trainer = PopeTrainer(**given, curriculum=Seen())
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    assert {one.correct for one in trainer._curriculum.groups} == {0}
    assert trainer._metrics["train"]["unguided/all_fail"] == [1.0]
    with pytest.raises(UserError, match="pass_at_k = 2 needs one reward function, not 2"):
        PopeTrainer(**given, pass_at_k=2)


def test_a_group_fails_where_no_reward_is_above_a_half(tiny, tmp_path):
    """Partial credit, and a reward function that gives None, solve nothing."""
    for given in (0.2, None):
        model, tokenizer = load_base(tiny.directory)
        settings = TrainingSettings(**{**TINY, "micro_batch": 16, "updates_per_batch": 1})
        trainer = PopeTrainer(
            model=model, reward_funcs=[lambda completions, one=given, **_: [one] * len(completions)],
            args=GRPOConfig(output_dir=str(tmp_path), **grpo_arguments(settings, 1, False)),
            processing_class=tokenizer, train_dataset=ordered(make_rows(), settings),
        )  # fmt: skip
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
        assert trainer._metrics["train"]["unguided/all_fail"] == [1.0]


SWITCHED = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% else %}<think>{% endif %}"
)


def test_switches_of_the_chat_template_reach_the_reward(tiny):
    _, tokenizer = load_base(tiny.directory)
    tokenizer.chat_template = SWITCHED
    prompt = [{"role": "user", "content": "2 + 2"}]
    assert informed(reward(), tokenizer, prompt).opens_thinking
    assert not informed(reward(), tokenizer, prompt, enable_thinking=False).opens_thinking


@pytest.mark.parametrize("template", [None, "{{ raise_exception('System role not supported') }}"])
def test_a_template_that_cannot_be_used_is_named(tiny, template):
    _, tokenizer = load_base(tiny.directory)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="--no-chat" if template is None else "System role not supported.*system.txt"):
        informed(reward(), tokenizer, [{"role": "system", "content": "Think."}])


def test_thinking_that_the_prompt_opened_and_nothing_closed_is_all_thinking():
    ids, lengths = torch.tensor([[5, 6, 5, 6], [5, 9, 5, 0]]), torch.tensor([4, 3])
    assert thinking_lengths(ids, lengths, 8, 9, opened=True).tolist() == [4, 2]
    assert thinking_lengths(ids, lengths, 8, 9).tolist() == [0, 2]


def test_a_value_that_trl_refuses_is_named(tiny, tmp_path):
    extra = {"use_cpu": True, "optim": "adamx"}
    with pytest.raises(UserError, match=r"trl.GRPOConfig does not accept .*extra = .*adamx.*please select one of"):
        run(tiny.directory, tmp_path / "out", extra=extra)
    assert not (tmp_path / "out").exists()


def uneven(tiny, output, curriculum=None, rows=None, **changes):
    """A trainer with a user's own arguments, of which two optimiser steps end inside a generation cycle."""
    model, tokenizer = load_base(tiny.directory)
    given = dict(
        output_dir=str(output), use_cpu=True, per_device_train_batch_size=4, num_generations=4, max_completion_length=4,
        steps_per_generation=3, gradient_accumulation_steps=2, max_steps=3, report_to="none", disable_tqdm=True,
        save_strategy="no", seed=3,
    )  # fmt: skip
    return PopeTrainer(
        model=model, reward_funcs=[reward()], args=GRPOConfig(**{**given, **changes}), processing_class=tokenizer,
        train_dataset=ordered(make_rows(), TrainingSettings(**TINY)) if rows is None else rows, curriculum=curriculum,
    )  # fmt: skip


def test_cycles_that_accumulation_does_not_divide(tiny, tmp_path):
    class Seen(Curriculum):
        strata = ("unguided", "guided")
        cycles = ()

        def present(self, row, cycle):
            self.cycles = (*self.cycles, cycle)
            return row

    message = "save_steps=1 saves inside a generation cycle of 3 optimiser steps"
    with pytest.raises(UserError, match=message):
        uneven(tiny, tmp_path, save_strategy="steps", save_steps=1)
    uneven(tiny, tmp_path, save_strategy="steps", save_steps=3)
    seen = Seen()
    uneven(tiny, tmp_path, seen, max_steps=6).train()
    assert sorted(set(seen.cycles)) == [0, 1, 2, 3]
    assert {one.cycle for one in seen.groups} == {0, 1, 2, 3}


def test_a_streamed_dataset(tiny, tmp_path):
    def stream(rows):
        return IterableDataset.from_generator(lambda: iter(rows))

    rows = make_rows() * 4
    trainer = uneven(tiny, tmp_path, rows=stream(rows))
    trainer.train()
    assert trainer.state.global_step == 3
    assert any(line.get("unguided/reward") is not None for line in trainer.state.log_history)
    with pytest.raises(UserError, match="no column 'stratum'; their columns: prompt, answer"):
        uneven(tiny, tmp_path, rows=stream([{"prompt": "1 =", "answer": "1"}]))
    with pytest.raises(UserError, match=r"'stratum': unknown values typo; choose"):
        uneven(tiny, tmp_path, rows=stream([{**row, "stratum": "typo"} for row in rows])).train()
