"""Tiny training runs for the tests: as a module, so that other processes can run them too."""

import json
import os
from pathlib import Path

from retarget.pope.grading import Grader, reward_function
from retarget.pope.mixture import mix
from retarget.pope.settings import TrainingSettings
from retarget.pope.studies.chain import make_problems
from retarget.pope.studies.testbed import PROMPTS, load_base

TINY = dict(
    cycles=4, prompts_per_batch=4, rollouts=4, updates_per_batch=2, micro_batch=8, lr=1e-3, temperature=1.0,
    max_completion_length=8, max_prompt_length=64, entropy_bonus=0.0, save_every=0, seed=3,
    extra={"disable_tqdm": True, "use_cpu": True},
)  # fmt: skip


def reward():
    return reward_function(Grader("retarget.pope.studies.chain:verify", workers=0))


def make_rows(ratio=1.0):
    problems = make_problems(6, 3, seed=3)
    prefixes = {problem.id: problem.solution.split("\n")[0] for problem in problems}
    return mix(problems, prefixes if ratio else {}, PROMPTS, seed=0)


def run(base, output, callbacks=(), **changes):
    import torch

    from retarget.pope.trl import train

    torch.set_num_threads(1)
    model, tokenizer = load_base(Path(base))
    settings = TrainingSettings(**{**TINY, **changes})
    return train(model, make_rows(), reward(), settings, Path(output), tokenizer=tokenizer, callbacks=callbacks)


def run_quietly(base, output, cycles):
    """For a process that will be killed: a checkpoint after every cycle; begun.txt keeps the steps it began at."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import TrainerCallback

    class Begun(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            with Path(output, "begun.txt").open("a") as file:
                file.write(f"{state.global_step}\n")

    run(base, output, [Begun()], save_every=1, cycles=cycles)


def main(base, output):
    """One rank of two: writes the strata of every batch that it drew, and its logged lines."""
    from retarget.pope import trl

    drawn = []

    class Watching(trl.PopeTrainer):
        def _generate_and_score_completions(self, inputs):
            drawn.append([row["id"] for row in inputs])
            return super()._generate_and_score_completions(inputs)

    trl.PopeTrainer = Watching
    # Two prompts a batch: one guided and one unguided, so each rank sees one stratum only.
    trainer = run(base, output, prompts_per_batch=2, micro_batch=2, cycles=12, updates_per_batch=1)
    found = {"drawn": drawn, "log": trainer.state.log_history, "ranks": trainer.accelerator.num_processes}
    Path(output, f"rank-{trainer.accelerator.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    import sys

    import torch

    main(*sys.argv[1:])
    torch.distributed.destroy_process_group()
