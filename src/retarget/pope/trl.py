"""Train with TRL's GRPOTrainer, in a thin subclass that keeps track of each row's stratum."""

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from retarget.errors import UserError
from retarget.extras import require
from retarget.files import cannot_write, make_directory, read_json, write_json, write_text
from retarget.pope.curricula import Curriculum, Group
from retarget.pope.functional import pass_at_k_rewards, thinking_lengths
from retarget.pope.grading import Reward
from retarget.pope.identity import check_folder
from retarget.pope.mixture import STRATA
from retarget.pope.prompts import templated
from retarget.pope.resume import check_work, claim, last_checkpoint, refuse_own_model, work_of
from retarget.pope.rollouts import opened, tag_keeper
from retarget.pope.settings import TrainingSettings, check_columns, drawn, grpo_arguments

_log = logging.getLogger(__name__)
_NAN = float("nan")
CURRICULUM = "curriculum.json"


class PopeTrainer(GRPOTrainer):
    """A GRPOTrainer that logs metrics per stratum, evaluates unguided rows only, and resumes exactly.

    Rows need a ``stratum`` column (``unguided``, ``guided``, ``easy``). One row is one group with its own baseline, so
    guided rollouts are never compared with unguided ones. For each stratum S among the training rows, every log entry
    has ``S/reward``, ``S/all_fail`` (share of groups without a success), ``S/zero_advantage`` (share of groups in which
    all rewards are equal), ``S/length`` (tokens per completion) and ``S/entropy`` (mean per token); if the tokenizer
    has ``</think>``, also ``S/thinking`` (tokens per completion before its answer begins).

    Args:
        args, kwargs: arguments of TRL's trainer.
        pass_at_k: 1 for the plain reward; above 1, the direct pass@k objective (see
            :func:`retarget.pope.functional.pass_at_k_rewards`). The metrics per stratum are of the plain reward.
        curriculum: chooses each row's prompt in each cycle, and receives the result of every group.

    A streamed dataset is not read in advance: metrics are logged for all strata, and a row's unknown stratum is refused
    when it is drawn.

    With several reward functions, the first decides which completions are correct, for ``S/all_fail`` and the
    curriculum: one that rewards a format, say, solves nothing.

    Raises:
        UserError: there is no ``stratum`` column, evaluation rows are guided, or checkpoints would fall inside a
            generation cycle, from where TRL does not resume to the same result.
    """

    def __init__(self, *args: Any, pass_at_k: int = 1, curriculum: Curriculum | None = None, **kwargs: Any) -> None:
        given = signature(GRPOTrainer.__init__).bind_partial(self, *args, **kwargs).arguments
        for name in ("train_dataset", "eval_dataset"):
            if given.get(name) is not None:
                _check_rows(given[name], name == "eval_dataset")
        super().__init__(*args, **kwargs)
        config: Any = self.args
        self._generation = config.steps_per_generation * config.num_iterations
        # The fewest optimiser steps after which a cycle ends: more than one cycle's if accumulation does not divide it.
        between = math.lcm(self._generation, config.gradient_accumulation_steps) // config.gradient_accumulation_steps
        if config.save_strategy == "steps" and (config.save_steps < 1 or config.save_steps % between):
            raise UserError(
                f"save_steps={config.save_steps} saves inside a generation cycle of {between} optimiser steps; a run "
                f"resumed there would differ from an uninterrupted one: use a multiple of {between}"
            )
        rows: Any = self.train_dataset
        present = set(STRATA if isinstance(rows, IterableDataset) else rows["stratum"])
        present |= set(curriculum.strata if curriculum else ())
        self._strata = [name for name in STRATA if name in present]
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        words = tokenizer.get_vocab()
        self._think = (words.get("<think>", -1), words["</think>"]) if "</think>" in words else None
        self._rewards: Tensor | None = None
        self._entropies: Tensor | None = None
        self._pass_at_k, self._curriculum = pass_at_k, curriculum
        if pass_at_k > 1 and len(self.reward_funcs) != 1:
            raise UserError(f"pass_at_k = {pass_at_k} needs one reward function, not {len(self.reward_funcs)}")
        ends = frozenset({*self.eos_token_ids, tokenizer.pad_token_id} - {None})
        self.reward_funcs: Any = [
            replace(one, ends=ends) if isinstance(one, Reward) else one for one in self.reward_funcs
        ]
        self._opened = any(isinstance(one, Reward) and one.opens_thinking for one in self.reward_funcs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write TRL's model card, with the model's name where TRL writes None for a model given by path."""
        super().create_model_card(*args, **kwargs)
        if not self.is_world_process_zero():
            return  # the card is written by one process
        card, model = Path(str(self.args.output_dir)) / "README.md", self.model
        if card.exists():
            named = Path(str(getattr(model.config, "_name_or_path", "") or "a model")).name  # type: ignore[union-attr]
            text = card.read_text(encoding="utf-8")
            text = text.replace("[None](https://huggingface.co/None)", f"`{named}`")
            write_text(card, text.replace('model="None"', f'model="{card.parent.name}"'))

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards: Any = super()._calculate_rewards(*args, **kwargs)
        self._rewards = rewards
        ids = args[3] if len(args) > 3 else kwargs["completion_ids_list"]
        self._lengths = torch.tensor([len(one) for one in ids], device=rewards.device)
        model: Any = self.model
        if self._pass_at_k == 1 or not model.training:
            return rewards
        size: Any = self.num_generations
        return pass_at_k_rewards(rewards.sum(1).view(-1, size) > 0.5, self._pass_at_k).view(-1, 1)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        model: Any = self.model
        training = model.training
        if not training and any(row.get("guided") or row.get("stratum") == "guided" for row in inputs):
            raise UserError("evaluation must be unguided, but these rows have guided prompts: leave them out")
        cycle = self._cycle()
        if training and self._curriculum is not None:
            inputs = [self._curriculum.present(row, cycle) for row in inputs]
        output = super()._generate_and_score_completions(inputs)
        if training and self._curriculum is not None:
            self._observe(self._curriculum, inputs, cycle)
        if training:
            if unknown := {row["stratum"] for row in inputs} - set(self._strata):
                raise _unknown_strata(unknown)
            strata = [self._strata.index(row["stratum"]) for row in inputs]
            output["stratum"] = torch.tensor(strata, device=output["completion_ids"].device)
            self._log_groups(output)
        return output

    def _cycle(self) -> int:
        """Number of generation cycles before this one; of optimiser steps, if these accumulate several cycles."""
        step, accumulated = int(self.state.global_step), int(self.args.gradient_accumulation_steps)
        return step if accumulated > self._generation else math.ceil(step * accumulated / self._generation)

    def _observe(self, curriculum: Curriculum, inputs: list[dict[str, Any]], cycle: int) -> None:
        size: Any = self.num_generations
        assert self._rewards is not None
        rows: list[Any] = gather_object([(row["problem"], row["stratum"]) for row in inputs])[::size]
        correct = (self._rewards[:, 0].view(-1, size) > 0.5).sum(1).tolist()
        curriculum.observe(
            [Group(cycle, one, stratum, int(size), c) for (one, stratum), c in zip(rows, correct, strict=True)]
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self._curriculum is not None and self.args.should_save:
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            make_directory(folder)
            write_json(folder / CURRICULUM, self._curriculum.state())
        super()._save_checkpoint(model, trial)  # writes trainer_state.json last

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._entropies = result[1]
        return result

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        if "stratum" in inputs and self._entropies is not None:
            self._log_entropy(inputs, self._entropies.detach())
        self._entropies = None
        return loss

    def _log_groups(self, output: dict[str, Any]) -> None:
        # Gathered in the order of the ranks, like TRL's own rewards, so that every rank logs the same keys and values.
        assert self._rewards is not None
        lengths = self._lengths  # the mask of a truncated completion may be 0
        ids = output["completion_ids"]
        thinking = thinking_lengths(ids, lengths, *self._think, opened=self._opened) if self._think else lengths
        gathered = self.accelerator.gather(torch.stack([output["stratum"], lengths, thinking], dim=1).float())
        assert isinstance(gathered, Tensor)
        weights = self.reward_weights.to(self._rewards.device)
        size: Any = self.num_generations
        rewards = (self._rewards * weights).nansum(1).view(-1, size)
        correct = self._rewards[:, 0].view(-1, size)
        strata, lengths, thinking = (column.view_as(rewards) for column in gathered.T)
        metrics = self._metrics["train"]
        for index, name in enumerate(self._strata):
            of = strata[:, 0] == index
            some = bool(of.any())
            group = rewards[of]
            metrics[f"{name}/reward"].append(group.mean().item() if some else _NAN)
            metrics[f"{name}/all_fail"].append((~(correct[of] > 0.5)).all(1).float().mean().item() if some else _NAN)
            equal = (group == group[:, :1]).all(1)
            metrics[f"{name}/zero_advantage"].append(equal.float().mean().item() if some else _NAN)
            metrics[f"{name}/length"].append(lengths[of].mean().item() if some else _NAN)
            if self._think:
                metrics[f"{name}/thinking"].append(thinking[of].mean().item() if some else _NAN)

    def _log_entropy(self, inputs: dict[str, Any], entropies: Tensor) -> None:
        mask = inputs["completion_mask"]
        per_row = torch.stack([(entropies * mask).sum(1), mask.sum(1).float()], dim=1)
        sums = torch.zeros(len(self._strata), 2, device=per_row.device, dtype=per_row.dtype)
        sums.index_add_(0, inputs["stratum"], per_row)
        totals = self.accelerator.reduce(sums, reduction="sum")
        assert isinstance(totals, Tensor)
        for (total, count), name in zip(totals.tolist(), self._strata, strict=True):
            self._metrics["train"][f"{name}/entropy"].append(total / count if count else _NAN)


class Bar(ProgressCallback):
    """The library's progress bar, showing the rewards, instead of a printed line with every metric."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        # TRL logs None for a stratum that was not in the cycle.
        given = {key: value for key, value in (logs or {}).items() if value is not None}
        rewards = {key: f"{value:.3f}" for key, value in given.items() if key.endswith("/reward")}
        if self.training_bar is not None and rewards:
            self.training_bar.set_postfix(rewards)


def train(
    model: Any,
    rows: Sequence[dict[str, Any]],
    reward: Callable[..., list[float]],
    settings: TrainingSettings,
    output: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    eval_rows: Sequence[dict[str, Any]] | None = None,
    peft_config: Any = None,
    resume: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    curriculum: Curriculum | None = None,
) -> PopeTrainer:
    """Train on a mixture and save the model to ``output``.

    Args:
        model: a causal language model, or its name or path.
        rows: the rows that :func:`retarget.pope.mixture.mix` returned.
        reward: the result of :func:`retarget.pope.grading.reward_function`, or any other reward function of TRL.
        settings: see :class:`~retarget.pope.settings.TrainingSettings`.
        output: directory for the model and its checkpoints.
        tokenizer: by default the model's own.
        eval_rows: unguided rows, for TRL's evaluation loop (set ``extra={"eval_strategy": ...}``).
        peft_config: a LoRA configuration of ``peft``; None trains all weights.
        resume: continue from the newest complete checkpoint in ``output``, whose ``work.json`` must be of the same
            rows, settings and model.
        callbacks: further callbacks of the trainer.
        curriculum: see :class:`PopeTrainer`. Pass a new one: the groups of an interrupted training are restored.

    Raises:
        UserError: no prompt is short enough, the batch does not divide evenly, rows lack a column, evaluation rows are
            guided, ``output`` belongs to other work or has the model, or a completion may be longer than the model's
            table of positions.
    """
    require_packages(settings)
    refuse_unknown(settings)
    refuse_own_model(model, output)
    check_columns(rows)
    config = _config(settings, output)
    words = tokenizer or _tokenizer_of(model)
    switches: Any = config.chat_template_kwargs or {}
    length = _length(words, switches)
    kept = fitting(rows, settings.max_prompt_length, length)
    data = ordered(kept, settings)
    work = work_of(model, rows, settings, peft_config, curriculum, reward)
    check_work(output, work, resume, settings)
    trainer = PopeTrainer(
        model=model,
        reward_funcs=[informed(reward, words, kept[0]["prompt"], **switches)],
        args=config,
        train_dataset=data,
        eval_dataset=Dataset.from_list(list(eval_rows)) if eval_rows else None,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=list(callbacks),
        pass_at_k=settings.pass_at_k,
        curriculum=curriculum,
    )
    _check_context(trainer.model, kept, length, settings)
    _name_base(trainer.model)
    claim(output, work)
    trainer.remove_callback(PrinterCallback)  # it would print every log entry
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(Bar)
    _run(trainer, output, last_checkpoint(output) if resume else None, curriculum)
    return trainer


def _check_context(
    model: Any, rows: Sequence[dict[str, Any]], length: Callable[[Any], int], settings: TrainingSettings
) -> None:
    """Refuse completions beyond the table of a model that looks up its positions, as GPT-2 does; warn of others."""
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    if not context or settings.max_prompt_length + settings.max_completion_length <= context:
        return
    longest = max(length(row["prompt"]) for row in rows)
    if longest + settings.max_completion_length <= context:
        return
    said = (
        f"a prompt of {longest} tokens and max_completion_length={settings.max_completion_length} exceed the model's "
        f"context of {context} tokens: lower max_completion_length or max_prompt_length"
    )
    if any(getattr(config, name, None) for name in ("rope_parameters", "rope_scaling", "rope_theta")):
        _log.warning("%s; it was not trained on longer texts", said)
    else:
        raise UserError(said)


def _name_base(model: Any) -> None:
    """Name an adapter's local base by its absolute path, so that the adapter opens from any working directory."""
    for one in getattr(model, "peft_config", {}).values():
        if one.base_model_name_or_path and Path(one.base_model_name_or_path).is_dir():
            one.base_model_name_or_path = str(Path(one.base_model_name_or_path).resolve())


def _config(settings: TrainingSettings, output: Path) -> GRPOConfig:
    arguments = grpo_arguments(settings, _processes(), torch.cuda.is_available())
    try:
        return GRPOConfig(output_dir=str(output), **arguments)
    except (TypeError, ValueError) as error:
        given = f", with extra = {settings.extra}," if settings.extra else ""
        raise UserError(f"trl.GRPOConfig does not accept the settings{given}: {error}") from error


def _run(trainer: PopeTrainer, output: Path, checkpoint: Path | None, curriculum: Curriculum | None) -> None:
    """Train from a checkpoint or from the beginning, and save the model."""
    if checkpoint and curriculum is not None:
        curriculum.load(read_json(checkpoint / CURRICULUM))
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.save_model(str(output))
    except (OSError, SafetensorError) as error:
        raise cannot_write(output, error) from error


def require_packages(settings: TrainingSettings) -> None:
    """Refuse settings that need a package which is not installed, before anything is loaded.

    Raises:
        MissingExtraError: vLLM is missing.
        UserError: the package of a tracker is missing.
    """
    if settings.vllm != "none":
        require("vllm", "vllm")
    wanted = settings.extra.get("report_to") or ()
    for name in (wanted,) if isinstance(wanted, str) else wanted:
        if name not in ("none", "all") and find_spec(name) is None:
            raise UserError(f"report_to={name} needs a package that is not installed: pip install {name}")


def refuse_unknown(settings: TrainingSettings) -> None:
    """Refuse fields in ``extra`` that TRL's configuration does not have.

    Raises:
        UserError: a field is unknown; the message suggests the most similar one.
    """
    known = [one.name for one in fields(GRPOConfig)]
    for name in settings.extra.keys() - set(known):
        near = get_close_matches(name, known, n=1)
        raise UserError(f"extra: trl.GRPOConfig has no field {name}" + (f"; did you mean {near[0]}?" if near else ""))


def informed(
    reward: Callable[..., list[float]], tokenizer: Any, prompt: Any, **switches: Any
) -> Callable[..., list[float]]:
    """Tell a :class:`~retarget.pope.grading.Reward` how completions end and whether the template opens their thinking.

    :class:`PopeTrainer` adds the end tokens that the model's generation settings name.

    Args:
        reward: a reward function; any other than a ``Reward`` is returned unchanged.
        tokenizer: the model's tokenizer.
        prompt: one of the rows' prompts.
        switches: of the chat template.
    """
    if not isinstance(reward, Reward):
        return reward
    rendered = prompt if isinstance(prompt, str) else templated(tokenizer, prompt, tokenize=False, **switches)
    ends = frozenset({tokenizer.eos_token_id, tokenizer.pad_token_id} - {None})
    return replace(reward, ends=ends, opens_thinking=opened(rendered, "") != "", decode=tag_keeper(tokenizer))


def ordered(rows: Sequence[dict[str, Any]], settings: TrainingSettings) -> Dataset:
    """The rows of all generation batches of a run, in order; TRL reads them without shuffling."""
    return Dataset.from_list(list(rows)).select(drawn(rows, settings))


def fitting(rows: Sequence[dict[str, Any]], limit: int, length: Callable[[Any], int]) -> list[dict[str, Any]]:
    """The rows whose prompt has at most ``limit`` tokens; the number of dropped rows is logged.

    Raises:
        UserError: there is no such row.
    """
    kept = [row for row in rows if length(row["prompt"]) <= limit]
    if len(kept) < len(rows):
        guided = sum(row["guided"] for row in rows) - sum(row["guided"] for row in kept)
        _log.warning(
            "%d of %d prompts (%d of them guided) have more than %d tokens and were dropped",
            len(rows) - len(kept), len(rows), guided, limit,
        )  # fmt: skip
    if not kept:
        raise UserError(f"every prompt has more than {limit} tokens: raise max_prompt_length")
    return kept


def _check_rows(rows: Any, evaluation: bool) -> None:
    parts = rows.values() if isinstance(rows, dict) else [rows]
    for part in parts:
        streamed = isinstance(part, IterableDataset)
        columns = part.column_names or list(next(iter(part), {}))
        if not evaluation and "stratum" not in columns:
            raise UserError(f"the training rows have no column 'stratum'; their columns: {', '.join(columns)}")
        if streamed:
            continue  # each row is checked when it is drawn
        strata = part["stratum"] if "stratum" in columns else []
        if evaluation and ("guided" in strata or ("guided" in columns and any(part["guided"]))):
            raise UserError("evaluation must be unguided: leave guided rows out of the evaluation set")
        if not evaluation and (unknown := set(strata) - set(STRATA)):
            raise _unknown_strata(unknown)


def _unknown_strata(unknown: set[str]) -> UserError:
    return UserError(
        f"column 'stratum': unknown values {', '.join(sorted(map(str, unknown)))}; choose {', '.join(STRATA)}"
    )


def _length(tokenizer: Any, switches: dict[str, Any]) -> Callable[[Any], int]:
    def length(prompt: Any) -> int:
        if isinstance(prompt, str):
            return len(tokenizer(prompt)["input_ids"])
        return len(templated(tokenizer, prompt, tokenize=True, return_dict=True, **switches)["input_ids"])

    return length


def _tokenizer_of(model: Any) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    name = model if isinstance(model, str) else model.config._name_or_path
    if isinstance(model, str):
        check_folder(model)
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: this model's tokenizer cannot be loaded: {error}") from error


def _processes() -> int:
    # Set by torchrun and accelerate. Asking accelerate would initialise its state before TRL's configuration does.
    return int(os.environ.get("WORLD_SIZE", "1"))
