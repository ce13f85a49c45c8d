"""Settings of POPE's training, with the source of each. Free of torch and TRL."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from retarget.errors import UserError
from retarget.pope.mixture import order
from retarget.settings import Strict

_CODE = "the authors' training configuration"
_GOVERNED = {
    "max_steps": "cycles", "num_train_epochs": "cycles", "per_device_train_batch_size": "micro_batch",
    "gradient_accumulation_steps": "updates_per_batch", "steps_per_generation": "prompts_per_batch",
    "generation_batch_size": "prompts_per_batch", "num_generations": "rollouts", "num_iterations": "updates_per_batch",
    "shuffle_dataset": "order", "learning_rate": "lr", "weight_decay": "weight_decay", "max_grad_norm": "max_grad_norm",
    "beta": "kl", "epsilon": "clip_low", "epsilon_high": "clip_high", "entropy_coef": "entropy_bonus",
    "temperature": "temperature", "top_p": "top_p", "max_completion_length": "max_completion_length",
    "bf16": "precision", "gradient_checkpointing": "gradient_checkpointing", "seed": "seed", "use_vllm": "vllm",
    "vllm_mode": "vllm",
}  # fmt: skip
"""Fields of ``trl.GRPOConfig`` that a setting decides, alone or with others, and that setting."""


class Optimisation(Strict):
    """Settings that a training and a study share. The defaults are the paper's, as far as they are known.

    A *cycle* samples one generation batch of ``prompts_per_batch`` × ``rollouts`` completions and takes
    ``updates_per_batch`` optimiser steps on it.
    """

    prompts_per_batch: int = Field(default=32, ge=1, description=f"32: {_CODE}")
    rollouts: int = Field(default=8, ge=2, description=f"completions per prompt, which form one group; 8: {_CODE}")
    updates_per_batch: int = Field(default=1, ge=1, description="optimiser steps per generation batch")
    micro_batch: int = Field(default=8, ge=1, description="rows per forward pass on one device")
    lr: float = Field(
        default=1e-6, gt=0, description=f"AdamW, constant, no warm-up; {_CODE} has a cosine over 100,000 steps"
    )
    max_grad_norm: float = Field(
        default=0.3,
        gt=0,
        description=f"0.3: {_CODE}, whose unit may differ from this one by a factor of 64; see the method card",
    )
    entropy_bonus: float = Field(
        default=1e-4,
        ge=0,
        description=f"weight per token, in a sum over tokens; 1e-4: {_CODE}, where it decays to 0; see "
        "`expected_length`",
    )
    clip_low: float = Field(
        default=1.0, ge=0, description=f"the ratio is clipped to [1 - low, 1 + high]; [0, 5]: {_CODE}"
    )
    clip_high: float = Field(default=4.0, ge=0, description=_CODE)
    temperature: float = Field(default=0.8, gt=0, description=_CODE)
    max_completion_length: int = Field(default=16384, ge=1, description=_CODE)
    max_prompt_length: int = Field(
        default=2048, ge=1, description="rows with longer prompts are dropped, and their number logged; ours"
    )


class TrainingSettings(Optimisation):
    """Settings of GRPO on a mixture."""

    cycles: int = Field(ge=1, description="total number of generation batches")
    order: Literal["paired", "stratified", "pool"] = Field(
        default="paired", description=f"see retarget.pope.mixture.order; pool: {_CODE}"
    )
    weight_decay: float = Field(default=0.01, ge=0, description=_CODE)
    kl: float = Field(default=0.0, ge=0, description=f"weight of the KL term; 0: {_CODE}")
    expected_length: float = Field(
        default=4000.0, gt=0, description="mean length of a completion, in tokens: TRL averages the entropy bonus over "
        "tokens, so its coefficient is entropy_bonus × expected_length"
    )  # fmt: skip
    top_p: float = Field(default=1.0, gt=0, le=1)
    pass_at_k: int = Field(default=1, ge=1, description="above 1: the direct pass@k objective; see functional.py")
    save_every: int = Field(default=25, ge=0, description="cycles between checkpoints; 0 for no checkpoints")
    log_every: int = Field(default=1, ge=1, description="cycles between log entries")
    seed: int = 0
    precision: Literal["auto", "bf16", "fp32"] = Field(default="auto", description="bf16 on a GPU: the authors'")
    gradient_checkpointing: bool = False
    vllm: Literal["none", "colocate", "server"] = Field(
        default="none", description="whether vLLM generates, in the training's processes or on a server; needs a GPU"
    )
    extra: dict[str, Any] = Field(
        default={}, description="further fields of trl.GRPOConfig, but for those that a setting above decides"
    )


def grpo_arguments(settings: TrainingSettings, processes: int, cuda: bool) -> dict[str, Any]:
    """Fields of ``trl.GRPOConfig`` for these settings.

    ``loss_type="luspo"`` with token-level ratios is exactly the paper's aggregation: the sum over tokens divided by the
    batch size. ``dr_grpo`` would divide by the longest possible completion, so that clipping the gradient at 0.3 would
    never bind. ``scale_rewards="none"`` gives the advantage r - mean(r), not divided by the standard deviation.

    Args:
        settings: the settings.
        processes: number of processes that train.
        cuda: whether they have GPUs.

    Raises:
        UserError: the batch does not divide evenly into processes, forward passes and updates, a group has fewer than
            ``pass_at_k`` rollouts, or ``extra`` has a field that a setting decides.
    """
    if governed := [f"{name} (set {_GOVERNED[name]})" for name in settings.extra if name in _GOVERNED]:
        raise UserError(f"extra: a setting of POPE decides {', '.join(governed)}: leave it out of extra")
    passes = forward_passes(settings, processes)
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and cuda)
    saving = {"save_strategy": "steps", "save_steps": settings.save_every * settings.updates_per_batch}
    return {
        "max_steps": settings.cycles * settings.updates_per_batch,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": passes // settings.updates_per_batch,
        "steps_per_generation": passes,
        "num_generations": settings.rollouts,
        "num_iterations": 1,
        "shuffle_dataset": False,  # the rows are already in order: see mixture.order
        "learning_rate": settings.lr,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "beta": settings.kl,
        "loss_type": "luspo",
        "importance_sampling_level": "token",
        "scale_rewards": "none",
        "epsilon": settings.clip_low,
        "epsilon_high": settings.clip_high,
        "entropy_coef": settings.entropy_bonus * settings.expected_length,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_completion_length": settings.max_completion_length,
        "bf16": bf16,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "seed": settings.seed,
        "logging_strategy": "steps",
        "logging_steps": settings.log_every * settings.updates_per_batch,
        **(saving if settings.save_every else {"save_strategy": "no"}),
        "report_to": "none",
        # Without it, several processes on CPUs would train independently of each other.
        **({"use_cpu": True} if processes > 1 and not cuda else {}),
        "remove_unused_columns": False,
        # With sequence-level masks, vLLM's correction would drop long samples; at token level it does not.
        **({"use_vllm": True, "vllm_mode": settings.vllm, "vllm_importance_sampling_mode": "token_truncate"}
           if settings.vllm != "none" else {}),
        **settings.extra,
    }  # fmt: skip


def check_columns(rows: Sequence[dict[str, Any]]) -> None:
    """Refuse rows that lack a column that the training reads itself; a reward may need more.

    Raises:
        UserError: a row lacks one.
    """
    for at, row in enumerate(rows):
        if lacking := [name for name in ("prompt", "problem", "stratum", "guided") if name not in row]:
            raise UserError(
                f"row {at} has no {' and no '.join(lacking)}; its columns: {', '.join(row)}. Train on rows that "
                "`retarget pope mix` wrote or `mix` returned"
            )


def drawn(rows: Sequence[dict[str, Any]], settings: TrainingSettings) -> list[int]:
    """Indices of the rows of all generation batches of a run, in order.

    Raises:
        UserError: the rows do not fill one batch.
    """
    batch = settings.prompts_per_batch
    if settings.order == "pool":  # an epoch leaves out the rows that do not fill a batch
        epochs = -(-settings.cycles // max(1, len(rows) // batch))
    else:
        epochs = -(-settings.cycles * batch // max(1, len(rows))) + 1
    at = order([row["stratum"] for row in rows], batch, epochs, settings.seed, settings.order,
               [row["problem"] for row in rows])  # fmt: skip
    return at[: settings.cycles * batch]


def forward_passes(settings: TrainingSettings, processes: int) -> int:
    """Forward passes of each process per generation batch."""
    if settings.pass_at_k > settings.rollouts:
        raise UserError(
            f"pass_at_k={settings.pass_at_k} needs at least as many rollouts per prompt, but rollouts="
            f"{settings.rollouts}"
        )
    rows = settings.prompts_per_batch * settings.rollouts
    passes, rest = divmod(rows, settings.micro_batch * processes)
    if rest or passes % settings.updates_per_batch:
        raise UserError(
            f"a generation batch of {settings.prompts_per_batch} prompts × {settings.rollouts} rollouts does not "
            f"divide into {processes} processes × micro_batch {settings.micro_batch} × "
            f"{settings.updates_per_batch} updates: change one of these numbers"
        )
    return passes
