"""Peers in Lightning: the module calls ``method.loss``, the callback does the rest."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from retarget.errors import UserError
from retarget.pskd.lightning import SavedBeside
from retarget.pskd.peers.base import Peer


class PeerCallback(SavedBeside):
    """Announces epochs, mixes batches, follows optimizer steps, and saves the method beside each checkpoint.

    The module needs one line in ``training_step``, ``loss = method.loss(self(x), y, index, inputs=x)``, and must
    evaluate ``method.evaluated`` if that is a network. The sampler that ``needs`` names belongs in the data module. The
    state is saved beside the checkpoint as ``peer-epoch-E-RUN.safetensors`` (the newest ``keep`` of them are kept) and
    loaded when the trainer resumes. Resume only at the end of an epoch.

    Args:
        method: any peer.
        input, label: their keys in the batch, which is a list or dict.
        directory: where the state is saved; by default beside the checkpoints.
        keep: how many of the newest saved states to keep.
    """

    prefix = "peer"

    def __init__(
        self,
        method: Peer,
        *,
        input: int | str = 0,
        label: int | str = 1,
        directory: str | Path | None = None,
        keep: int = 2,
    ) -> None:
        super().__init__(method, directory, keep)
        self.input, self.label = input, label
        self._steps = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.method.to(pl_module.device)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._steps = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if not self.method.needs.mix:
            return
        if not isinstance(batch, list | dict):
            raise UserError(f"the batch is a {type(batch).__name__}, which cannot be changed: return a list or a dict")
        parts: Any = batch
        parts[self.input], parts[self.label] = self.method.mix(parts[self.input], parts[self.label])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._steps:  # not while gradients accumulate
            self._steps = trainer.global_step
            self.method.after_step()
