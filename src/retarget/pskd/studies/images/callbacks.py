"""Lightning callbacks of the image study: reseeding, smoothing, mixing, observing steps and gradients."""

import time
from collections import deque
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retarget.pskd.functional import alpha_at, widen
from retarget.pskd.lightning import PSKDCallback
from retarget.pskd.soft_labels import soft_targets
from retarget.pskd.studies.images.data import stream
from retarget.pskd.studies.images.settings import SAME_WEIGHTS, Settings
from retarget.study.record import Run


class Reseed(pl.Callback):
    """Makes a step's random numbers depend only on (seed, step), so that a resumed run draws the same ones."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        torch.manual_seed(stream(self.seed, trainer.global_step))


class Smoothing(pl.Callback):
    """Smooths labels by a fixed share, or by PS-KD's schedule of alpha."""

    def __init__(self, settings: Settings, num_classes: int) -> None:
        self.settings, self.num_classes = settings, num_classes

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        share = self.settings.smoothing
        if self.settings.targets == "smoothing_schedule":
            epoch = trainer.current_epoch
            share = alpha_at(epoch, self.settings.epochs, self.settings.alpha_T) if epoch else 0.0
        batch[1] = (1 - share) * F.one_hot(batch[1], self.num_classes).float() + share / self.num_classes


class Mixing(pl.Callback):
    """Applies CutMix or Mixup to whole batches, with probability ``mixing_prob``, after the labels have been softened.

    A mixed image's target mixes the two softened targets, λ t_i + (1 - λ) t_j. Its prediction belongs to neither
    image, so a mixed batch reads past rows but stores none; unmixed batches store them. (The ablation
    ``mixed_rows = "kept"`` stores them.) With the previous model as the past, images and hard labels are mixed first,
    and the prediction for the mixed image softens the mixed label.
    """

    def __init__(self, settings: Settings, num_classes: int, pskd: PSKDCallback | None) -> None:
        from torchvision.transforms import v2

        kind = v2.CutMix if settings.mixing == "cutmix" else v2.MixUp
        self.mix = kind(alpha=settings.mixing_alpha, num_classes=num_classes)
        self.num_classes = num_classes
        self.prob = settings.mixing_prob
        self.drop_rows = pskd.do_not_remember if pskd and settings.mixed_rows == "dropped" else None

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if torch.rand(()) < self.prob:
            batch[0], batch[1] = self.mix(batch[0], soft_targets(batch[1], self.num_classes))
            if self.drop_rows:
                self.drop_rows()


class Observe(pl.Callback):
    """Logs one line per epoch, reports progress, and starts a step's timing; the first of the callbacks."""

    def __init__(self, run: Run) -> None:
        self.run, self.steps = run, deque[float](maxlen=1000)

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def stop_clock(self) -> None:
        """End the timing of a step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append(time.perf_counter() - self._started)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": list(self.steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps.extend(state_dict["steps"])

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.run.log(trainer.current_epoch, **values)
        self.run.progress(trainer.current_epoch + 1, cast(int, trainer.max_epochs))


class StopClock(pl.Callback):
    """Ends the timing of a step, after the callbacks whose work belongs to it."""

    def __init__(self, observe: Observe) -> None:
        self.observe = observe

    def on_train_batch_end(self, *args: Any) -> None:
        self.observe.stop_clock()


class Gradients(pl.Callback):
    """Records the gradient of each sample's loss on its logits in two epochs, the middle one and the last.

    In the last epoch it keeps the L1 norm, by autograd, and for stored rows the largest error of the identity
    ``dL/dz_y = w (p_y - 1)`` with ``w = 1 - a (1 - q_y) / (1 - p_y)``. Under PS-KD it also keeps, in both epochs and at
    the *same logits*, the norm ``|p - t|_1`` for three targets t (:data:`SAME_WEIGHTS`): networks trained by different
    losses have fitted different samples, so only equal weights isolate the effect of the targets. It must come after
    every callback that changes labels.
    """

    def __init__(self, labels: Tensor, pskd: PSKDCallback | None) -> None:
        self.labels = labels
        self._pskd = pskd.method if pskd else None
        self._rows = pskd.method if pskd and not pskd.method.teacher else None
        self.norm, self.identity_error = np.full(len(labels), np.nan, np.float32), 0.0
        self.same_weights = np.full((2, len(SAME_WEIGHTS), len(labels)), np.nan, np.float32) if pskd else None

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._hook = module.network.register_forward_hook(self._see)

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._hook.remove()

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self._labels, self._index = batch[1], batch[2]
        if self._rows and self._rows.alpha > 0:
            self._past, self._written = self._rows.past_probs(batch[2])  # copies of the rows

    def on_before_backward(self, trainer: pl.Trainer, module: Any, loss: Tensor) -> None:
        self._targets = soft_targets(self._labels, self._logits.shape[1]).detach()  # before the step's labels lose them

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        epochs = cast(int, trainer.max_epochs)
        last = trainer.current_epoch == epochs - 1
        if self._pskd and trainer.current_epoch == (epochs - 1) // 2:
            self._compare(0, self._pskd.alpha)
        if self._pskd and last:
            self._compare(1, self._pskd.alpha)
        if last:
            self._differentiate()

    def _compare(self, moment: int, alpha: float) -> None:
        """Norms at this step's logits for PS-KD's targets, hard labels, and plain smoothing of the same amount."""
        assert self.same_weights is not None
        p, classes = F.softmax(self._logits.double(), 1), self._logits.shape[1]
        hard = F.one_hot(self.labels[self._index.cpu()].to(p.device), classes)
        for at, targets in enumerate((self._targets.double(), hard, (1 - alpha) * hard + alpha / classes)):
            self.same_weights[moment, at, self._index.cpu().numpy()] = (p - targets).abs().sum(1).cpu().numpy()

    def _differentiate(self) -> None:
        z = self._logits.double().requires_grad_()
        label = self.labels[self._index.cpu()].to(z.device)
        soft = self._targets.double()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(F.cross_entropy(z, soft, reduction="sum"), z)
        self.norm[self._index.cpu().numpy()] = gradient.abs().sum(1).cpu().numpy()
        alpha = self._rows.alpha if self._rows else 0.0
        if alpha > 0:
            at = label[:, None]
            p = F.softmax(z.detach(), 1).gather(1, at)
            q = self._past.double().gather(1, at)
            predicted = (p - 1) + alpha * (1 - q)  # w (p - 1) without the division, which fails for p = 1
            error = (gradient.gather(1, at) - predicted)[self._written].abs()
            self.identity_error = max(self.identity_error, float(error.max()) if len(error) else 0.0)

    def state_dict(self) -> dict[str, Any]:
        state = {"norm": torch.from_numpy(self.norm), "identity_error": self.identity_error}
        if self.same_weights is not None:
            state["same_weights"] = torch.from_numpy(self.same_weights)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.norm, self.identity_error = state_dict["norm"].numpy(), state_dict["identity_error"]
        if "same_weights" in state_dict:  # checkpoints of version 0.1 lack it
            self.same_weights = state_dict["same_weights"].numpy()

    def _see(self, network: nn.Module, args: Any, output: Tensor) -> None:
        self._logits = widen(output.detach())
