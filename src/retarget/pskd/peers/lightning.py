"""PS-KD's peers in Lightning: the module calls ``method.loss``, the callback does the rest."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from retarget.errors import UserError
from retarget.pskd.peers.base import Peer


class PeerCallback(pl.Callback):
    """Announces epochs, mixes batches, follows optimizer steps, and saves the method beside each checkpoint.

    What is left to the module is one line of ``training_step``,
    ``loss = method.loss(self(x), y, index, inputs=x)``, and to evaluate ``method.evaluated`` where there is one.
    The sampler that ``needs`` names belongs to the data module. The state lies beside the checkpoint as
    ``peer-epoch-E.safetensors`` (the newest ``keep`` stay) and is read back when the trainer resumes; resume at epoch
    ends.

    Args:
        method: any peer.
        input, label: their keys in the batch, a list or dict.
        directory: where the state is saved; by default beside the checkpoints.
        keep: saved states to keep.
    """

    def __init__(
        self,
        method: Peer,
        *,
        input: int | str = 0,
        label: int | str = 1,
        directory: str | Path | None = None,
        keep: int = 2,
    ) -> None:
        self.method, self.input, self.label = method, input, label
        self.directory, self.keep = Path(directory) if directory else None, keep
        self._steps = 0
        self._restore: str | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.method.to(pl_module.device)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._restore:
            beside = Path(str(trainer.ckpt_path)).parent if trainer.ckpt_path else self._home(trainer)
            self.method.load((self.directory or beside) / self._restore)
            self._restore = None
        self._steps = trainer.global_step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.method.set_epoch(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.method.needs.mix:
            return
        if not isinstance(batch, list | dict):
            raise UserError(f"the batch is a {type(batch).__name__}, in which nothing can be replaced; give a list")
        parts: Any = batch
        parts[self.input], parts[self.label] = self.method.mix(parts[self.input], parts[self.label])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._steps:  # not while gradients accumulate
            self._steps = trainer.global_step
            self.method.after_step()

    def state_dict(self) -> dict[str, Any]:
        return self.method.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.method.load_state_dict(state_dict)
        self._restore = self._file_name(state_dict["epoch"])

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        home = self._home(trainer)
        self.method.save(home / self._file_name(self.method.epoch))
        if trainer.is_global_zero:
            saved = sorted(home.glob("peer-epoch-*.safetensors"), key=lambda path: int(path.stem.rpartition("-")[2]))
            for old in saved[: -self.keep]:
                old.unlink()

    def _home(self, trainer: pl.Trainer) -> Path:
        beside = getattr(trainer.checkpoint_callback, "dirpath", None)
        return self.directory or Path(beside or trainer.default_root_dir)

    @staticmethod
    def _file_name(epoch: int) -> str:
        return f"peer-epoch-{epoch}.safetensors"
