"""``retarget pope train``."""

import json
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from retarget.errors import UsageError, UserError
from retarget.extras import require
from retarget.files import write_text
from retarget.helptext import one_paragraph
from retarget.pope.commands.options import Cost, lines
from retarget.pope.resume import refuse_own_model
from retarget.pope.settings import TrainingSettings, check_columns, drawn, grpo_arguments
from retarget.settings import merged, parse_settings, read_config, resolve_settings

_LOG = logging.getLogger(__name__)


@dataclass
@one_paragraph
class Train:
    """Train with TRL's GRPOTrainer. To use several processes: accelerate launch -m retarget pope train ..."""

    rows: Annotated[Positional[Path], arg(metavar="ROWS", help="Parquet file that `mix` wrote")]
    model: str
    """Name or path of the model to train."""
    out: Path
    """Directory for the model and its checkpoints."""
    config: Path | None = None
    """TOML file with settings of TrainingSettings; the method card gives the source of each default."""
    set: tuple[str, ...] = ()
    """Settings as KEY=VALUE [KEY=VALUE ...], with VALUE as in TOML."""
    cycles: int = 100
    """Total number of generation batches."""
    grader: str = "math"
    """math, boxed, exact, numeric, or module:function."""
    lora_rank: int | None = None
    """Train a LoRA adapter of this rank instead of all weights."""
    resume: bool = True
    """Continue from the newest complete checkpoint."""
    track: Literal["tensorboard", "trackio", "wandb", "mlflow"] | None = None
    """Send the trainer's log to a tracker. This changes no result, and a training may resume with another tracker."""
    cost: tyro.conf.OmitArgPrefixes[Cost] = field(default_factory=Cost)
    dry_run: FlagCreatePairsOff[bool] = False
    """Only print the settings and the rollouts, tokens and GPU-hours of sampling. Too few rows, a batch that does not
    divide into the processes, and a field that TRL does not have are refused as in the training."""
    processes: int | None = None
    """For --dry-run: the number of processes that accelerate will launch. The training itself reads WORLD_SIZE."""

    def run(self) -> int:

        from retarget.pope.mixture import read_rows
        from retarget.study.tracking import refuse_missing

        if self.track:
            refuse_missing(self.track)
        given: dict[str, Any] = {"cycles": self.cycles, **(read_config(self.config) if self.config else {})}
        given = merged(given, parse_settings(self.set))
        try:
            settings = resolve_settings(TrainingSettings, given, "training settings")
        except UserError as error:
            raise UsageError(str(error)) from error
        if self.lora_rank is not None and self.lora_rank < 1:
            raise UsageError(f"--lora-rank must be at least 1, not {self.lora_rank}: leave it out to train all weights")
        if self.lora_rank and settings.lr <= type(settings).model_fields["lr"].default:
            _LOG.warning(
                "lr=%g is that of the authors' configuration, for all weights; an adapter hardly moves at it: use "
                "--set lr=1e-5 or more",
                settings.lr,
            )
        rows = read_rows(self.rows)
        if self.processes is not None and not self.dry_run:
            raise UsageError(
                "--processes is only for --dry-run: set the number for a training by accelerate launch --num_processes"
            )
        if self.dry_run:
            self._check(rows, settings)
            rollouts = settings.cycles * settings.prompts_per_batch * settings.rollouts
            cost = self.cost.of(rollouts, "sampling only, without updates")
            print(json.dumps({"settings": settings.model_dump(mode="json"), "rows": len(rows), **cost}, indent=1))
            return 0
        return self._train(rows, settings)

    def _check(self, rows: list[dict[str, Any]], settings: TrainingSettings) -> None:
        """Refuse the settings that a launch would refuse only after all its processes have loaded the model."""
        processes = self.processes or int(os.environ.get("WORLD_SIZE", "1"))
        grpo_arguments(settings, processes, cuda=settings.precision == "bf16")
        refuse_own_model(self.model, self.out)
        check_columns(rows)
        drawn(rows, settings.model_copy(update={"cycles": 1}))
        if settings.extra:
            require("trl", "rl")
            from retarget.pope.trl import refuse_unknown

            refuse_unknown(settings)

    def _loggers(self) -> list[Any]:
        """The trainer's own callback for the chosen tracker."""
        from transformers.integrations.integration_utils import get_reporting_integration_callbacks

        return [kind() for kind in get_reporting_integration_callbacks([self.track])] if self.track else []

    def _train(self, rows: list[dict[str, Any]], settings: TrainingSettings) -> int:
        require("trl", "rl")
        from retarget.pope.grading import Grader, reward_function
        from retarget.pope.trl import train

        lora = None
        if self.lora_rank:
            peft = require("peft", "rl")
            lora = peft.LoraConfig(r=self.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
        with Grader(self.grader) as grader:
            trainer = train(self.model, rows, reward_function(grader), settings, self.out, peft_config=lora,
                            resume=self.resume, callbacks=self._loggers())  # fmt: skip
            failures = grader.failures
        history = [line for line in trainer.state.log_history if "reward" in line]
        if trainer.accelerator.is_main_process:
            write_text(self.out / "history.jsonl", lines(history))
            last = history[-1] if history else {}
            shown = {
                key: round(value, 4)
                for key, value in last.items()
                if key.endswith(("/reward", "/all_fail")) and value is not None
            }
            count = trainer.accelerator.num_processes
            steps = f"{trainer.state.global_step} steps" + f" by {count} processes" * (count > 1)
            print(f"{self.out}: {steps}; last cycle {shown}")
        if failures:
            print(f"warning: {failures}", file=sys.stderr)
        return 0
