"""Privileged self-distillation with TRL's SDFT: the teacher is the same model with a prefix in its prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

from retarget.pope.resume import last_checkpoint
from retarget.pope.settings import Optimisation
from retarget.pope.studies.testbed import load_base

UPDATE_RATE = 0.05
"""Update rate of the teacher, an exponential average of the student; TRL's default for ``teacher_model_kind="ema"``."""


def distil(
    model: Path, rows: Sequence[tuple[str, str]], settings: Optimisation, cycles: int, seed: int, save_every: int,
    output: Path, callbacks: Sequence[TrainerCallback] = (),
) -> int:  # fmt: skip
    """Train the model, on its own unguided rollouts, towards its predictions with the prefix in the prompt.

    It uses as many rollouts per cycle and as many updates as GRPO, and no reward. The teacher's prompt is in TRL's
    column ``privileged_context``; here it is the whole guided prompt.

    Args:
        model: directory of a generated base model.
        rows: (unguided prompt, guided prompt) of each problem.
        settings: batch, rollouts, learning rate, temperature, gradient norm.
        cycles: number of generation batches.
        seed: seed of the order and the rollouts.
        save_every: cycles between checkpoints.
        output: directory for the checkpoints and the model; training resumes from the newest checkpoint.
        callbacks: callbacks of the trainer.

    Returns:
        Number of tokens of the sampled completions. The teacher samples nothing.
    """
    network, tokenizer = load_base(model)
    passes = settings.prompts_per_batch * settings.rollouts // settings.micro_batch
    config = SDFTConfig(
        output_dir=str(output), max_steps=cycles * settings.updates_per_batch, seed=seed, learning_rate=settings.lr,
        lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=settings.max_grad_norm, weight_decay=0.01,
        per_device_train_batch_size=settings.micro_batch, steps_per_generation=passes,
        gradient_accumulation_steps=passes // settings.updates_per_batch, num_generations=settings.rollouts,
        max_prompt_length=settings.max_prompt_length, max_completion_length=settings.max_completion_length,
        temperature=settings.temperature, teacher_model_kind="ema", teacher_update_rate=UPDATE_RATE,
        distillation_mode="full_logits", disable_dropout=True,
        save_strategy="steps", save_steps=save_every * settings.updates_per_batch, save_total_limit=1,
        logging_strategy="steps", logging_steps=settings.updates_per_batch, report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    columns: list[dict[str, Any]] = [{"prompt": prompt, "privileged_context": guided} for prompt, guided in rows]
    trainer = SDFTTrainer(model=network, args=config, train_dataset=Dataset.from_list(columns),
                          processing_class=tokenizer, callbacks=list(callbacks))  # fmt: skip
    arguments: Any = trainer.args
    arguments.teacher_prompt_template = "{privileged_context}"  # set here: the configuration requires {prompt} in it
    trainer.remove_callback(PrinterCallback)
    checkpoint = last_checkpoint(output)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_model(str(output))
    name = "completions/mean_length"
    lengths = [line[name] for line in trainer.state.log_history if name in line]
    return round(sum(lengths) * settings.prompts_per_batch * settings.rollouts)
