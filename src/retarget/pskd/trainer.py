"""PS-KD in the Hugging Face Trainer: classification, sequence to sequence, causal language models.

The trainer adds an index to every training sample, around the caller's dataset and collator, removes it from the batch
before the model is called, and computes the loss. Everything else is the library's.
"""

import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_utils import get_last_checkpoint

from retarget.errors import UserError
from retarget.pskd import models, own_loss
from retarget.pskd.index import KeepIndex, indexed, with_index
from retarget.pskd.method import PSKD
from retarget.pskd.multilabel import MultiLabelPSKD
from retarget.pskd.past.base import Store
from retarget.pskd.past.files import MemoryMapped
from retarget.pskd.past.previous import PreviousModel, share_buffers
from retarget.pskd.sequences import Offsets, SequencePSKD

STATE_FILE = "pskd.safetensors"
"""Name of the table's file in a checkpoint's folder."""
IGNORE = -100  # the library's value, by which it counts num_items_in_batch
_MIXED_WITHIN = 10  # updates in which mixed labels are looked for: collators may leave the first batches alone

_Base = Trainer if TYPE_CHECKING else object


class PSKDMixin(_Base):
    """Makes any ``Trainer`` train with PS-KD; put it before the trainer among the bases.

    It works for models that return ``logits`` and take ``labels`` that are classes, [B] for classification, [B, T] for
    sequence to sequence, causal language models (whose labels are shifted as the library does) and tagging; or floats
    in [0, 1], [B, C], for multi-label classification. Labels of -100 have no loss and no row.
    ``label_smoothing_factor`` smooths the hard labels before they are softened (not for multi-label), and
    ``num_items_in_batch`` divides the loss, so that gradient accumulation changes nothing. Evaluation is the library's
    own: no row is read or written.

    A trainer that computes its own loss (TRL's ``SFTTrainer``) still does so in each step, without gradients, for the
    metrics that it logs. On the first batch the loss of the model, or of such a trainer, is compared with the hard
    cross-entropy of the same logits, and any other loss is refused. A warning says if the batches could not tell.

    Args:
        alpha_T: weight of the past in the last epoch, in [0, 1]; ``hyperparameter_search`` can vary it by this name.
        store: ``"dense"``, ``TopK(k)`` or ``MemoryMapped(path, rows)``; by default dense for one label per sample
            or fewer than 40 classes, else ``TopK(10)``. Rows of multi-label classification are always dense.
            ``PreviousModel()`` instead forwards last epoch's weights of the trained model on the same inputs; it needs
            no index, so it accepts streams, packed batches and ``model_init``. A stream has no epochs: its
            ``max_steps`` are divided into ``num_train_epochs`` equal parts.
        schedule: ``"linear"`` or ``"constant"``.
        shift_labels: True if logits [B, T, C] predict the next label, as a causal language model's do; False if they
            predict the label at their own position. By default it depends on how the library classifies the model.
        lengths: number of targets of each training sequence, for labels [B, T]; by default they are counted in a pass
            over the training set before the first step.

    Other arguments are the trainer's. The table (with ``PreviousModel`` the past weights) is saved as
    ``pskd.safetensors`` in each checkpoint's folder, and ``train(resume_from_checkpoint=...)`` loads it.

    Raises:
        UserError: a dataset without stable indices, an endless sampler, a checkpoint without a table; a loss that is
            not cross-entropy, whether the caller's (``compute_loss_func``), the model's or the trainer's; several GPUs
            in one process (start one process per GPU instead), context or sequence parallelism; labels that are not
            classes; ``PreviousModel`` of another model, or of one whose weights are sharded (FSDP, DeepSpeed).
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        first = next((one for one in order if issubclass(one, Trainer) and not issubclass(one, PSKDMixin)), None)
        if first is not None and order.index(first) < order.index(PSKDMixin):
            raise UserError(
                f"{cls.__name__} lists PSKDMixin after {first.__name__}, whose methods would replace PS-KD's: write "
                f"class {cls.__name__}(PSKDMixin, {first.__name__})"
            )

    def __init__(
        self,
        *args: Any,
        alpha_T: float = 0.8,
        store: Store | None = None,
        schedule: Literal["linear", "constant"] = "linear",
        lengths: Iterable[int] | None = None,
        shift_labels: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None:
            raise UserError("PS-KD and compute_loss_func both replace the loss: use only one of them")
        if self.args.n_gpu > 1:
            raise UserError("several GPUs in one process are not supported: start one process per GPU, with torchrun")
        if self.get_cp_size() > 1 or self.get_sp_size() > 1:
            raise UserError("context and sequence parallelism are not supported: they split the targets of a sample")
        self._pskd_teacher = store if isinstance(store, PreviousModel) else None
        if self._pskd_teacher and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise UserError(
                "PreviousModel copies whole weights, but FSDP and DeepSpeed shard them over processes: use TopK(k) or "
                "MemoryMapped(path, rows)"
            )
        self.pskd: PSKD | SequencePSKD | MultiLabelPSKD | None = None
        self._pskd_settings: dict[str, Any] = {"alpha_T": alpha_T, "schedule": schedule, "store": store}
        self._pskd_lengths = None if lengths is None else list(lengths)
        self._pskd_shift = shift_labels
        self._pskd_epoch, self._pskd_epochs, self._pskd_resume = 0, 1, None
        self._pskd_part: int | None = None  # steps per epoch of a stream
        self._pskd_begun: int | None = None
        self._pskd_reached = False  # whether PS-KD's loss was seen in a backward pass
        self._pskd_probe: Tensor | None = None
        self._pskd_fills = self._pskd_teacher is not None and self._pskd_teacher.model is None
        self._pskd_host = super().compute_loss.__func__ is not Trainer.compute_loss  # the trainer has a loss of its own
        # As the user set it: a model's own loss sets it by the labels.
        self._pskd_problem = getattr(getattr(self._bare_model(), "config", None), "problem_type", None)
        self._pskd_same = self._new_comparison()
        self.loss_is_scaled_for_ga = True  # our loss is always divided by the targets of the whole update
        self.add_callback(_Epochs(self))

    # -- data: the index goes around the dataset and the collator

    def get_train_dataloader(self) -> DataLoader:
        """The library's loader, with ``index`` in each batch: the samples' indices in ``train_dataset``."""
        if self._pskd_teacher:
            return super().get_train_dataloader()
        dataset, collator = self.train_dataset, self.data_collator
        self.train_dataset, self.data_collator = self._indexed_dataset(), KeepIndex(collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = dataset, collator

    def _get_train_sampler(self, train_dataset: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The library's; it finds a column of lengths, for grouping by length, only in the caller's own dataset."""
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        dataset = dataset.dataset if isinstance(dataset, with_index) else dataset
        return super()._get_train_sampler(dataset, *args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """One update's batches and number of targets, which the library counts only for some models."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if items is None and batches and "labels" in batches[0]:
            models.refuse_no_tensor(batches[0]["labels"])
            items = torch.stack([self._targets(batch["labels"]).ne(IGNORE).sum() for batch in batches]).sum().to(device)
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                items = self.accelerator.gather(items).sum() / self.get_tp_size()  # type: ignore[union-attr]
        return batches, items

    # -- a step

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The PS-KD loss in training, the library's in evaluation."""
        index = inputs.pop("index", None)
        if not model.training:
            if self.label_smoother is not None and "labels" in inputs:  # the library removes the labels
                inputs = models.with_decoder_inputs(self._bare_model(), inputs, inputs["labels"], smoothed=True)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if (index is None and not self._pskd_teacher) or "labels" not in inputs:
            raise UserError(
                f"a training batch needs labels and index: it has only {', '.join(inputs)}. The index is added by "
                "get_train_dataloader: if you override that method, let it call super().get_train_dataloader(), or "
                "override _get_train_sampler instead"
            )
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        smoothed = self.label_smoother is not None
        inputs = models.with_decoder_inputs(self._bare_model(), inputs, labels, smoothed=smoothed)
        own = self._host_loss(model, inputs, labels, num_items_in_batch)
        outputs = model(**(inputs | {"labels": labels} if models.needs_labels(self._bare_model()) else inputs))
        logits = models.logits_of(outputs)
        method, shared = self._method(logits, labels), {"inputs": inputs, "denominator": num_items_in_batch}
        if isinstance(method, MultiLabelPSKD) and self.state.global_step < _MIXED_WITHIN:
            models.refuse_mixed(labels, self._pskd_problem)
        if self._pskd_same.due():
            models.refuse_labels(labels, logits, IGNORE)  # before the model's own loss, which would name no sample
            told = self._same_loss(model, inputs, labels, num_items_in_batch, own, logits)
            # One rank's answer is enough, and all must stop asking at once: asking calls the wrapped model, which waits
            # for the other ranks.
            all_told: Any = self.accelerator.gather(torch.tensor([told], device=labels.device))
            self._pskd_same.note(*all_told.any(0).tolist())
        if not isinstance(method, MultiLabelPSKD):
            shared["smoothing"] = self.args.label_smoothing_factor
        loss = method.loss(logits, self._targets(labels), index, **shared)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self._ranks_averaged()
        if not self._pskd_reached:
            self._pskd_probe = torch.zeros((), device=loss.device, requires_grad=True)
            loss = loss + self._pskd_probe
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The library's, without ``index``, which neither ``forward`` nor ``generate`` accepts."""
        inputs = {name: value for name, value in inputs.items() if name != "index"}
        return super().prediction_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The library's; adds alpha, and how many samples of this process had no past row, to the training loss."""
        if self.pskd and "loss" in logs:
            logs = {**logs, "pskd_alpha": self.pskd.alpha, "pskd_fallbacks": self.pskd.fallbacks}
        super().log(logs, *args, **kwargs)

    # -- checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """The library's, but refuses a checkpoint without a table, which would resume on hard labels."""
        self._pskd_resume = None
        if resume_from_checkpoint:
            if resume_from_checkpoint is True:
                resume_from_checkpoint = get_last_checkpoint(str(self.args.output_dir))
                if resume_from_checkpoint is None:
                    raise UserError(f"{self.args.output_dir} holds no checkpoint to resume from")
            self._pskd_resume = Path(resume_from_checkpoint) / STATE_FILE
            if not self._pskd_resume.is_file():
                raise UserError(
                    f"{resume_from_checkpoint} has no {STATE_FILE}: it was not saved by this trainer, or only in part; "
                    "choose another checkpoint, or start again without resume_from_checkpoint"
                )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """The library's, but refuses a checkpoint whose epochs have another number of steps now."""
        begun: Any = super()._init_training_state(*args, **kwargs)
        saved, now = (self.state.epoch or 0.0), begun[0]
        if self._pskd_resume and self.state.num_train_epochs != sys.maxsize and now != int(saved + 1e-6):
            raise UserError(
                f"the checkpoint was saved after {saved:g} epochs, but with the present batch size its "
                f"{self.state.global_step} steps are {now} whole epochs, and the past of another epoch would be used: "
                "resume with the same batch size, processes and gradient accumulation"
            )
        return begun

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save the table first: the library writes trainer_state.json last, so its presence shows that all is there."""
        if self.pskd and not self.args.save_only_model:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            self.pskd.save(folder / STATE_FILE, writes=self.args.should_save)  # by the process that saves the model
        super()._save_checkpoint(model, trial)

    def _hp_search_setup(self, trial: Any) -> None:
        """The library's, with alpha_T among the training arguments that it may vary."""
        self.args.alpha_T = self._pskd_settings["alpha_T"]  # type: ignore[attr-defined]
        try:
            super()._hp_search_setup(trial)
            self._pskd_settings["alpha_T"] = self.args.alpha_T  # type: ignore[attr-defined]
        finally:
            del self.args.alpha_T  # type: ignore[attr-defined]

    # -- inside

    def _begin_training(self) -> None:
        self.pskd, self._pskd_part, self._pskd_begun = None, None, None
        self._pskd_reached, self._pskd_probe = False, None
        self._pskd_same = self._new_comparison()
        self._pskd_epochs = self.state.num_train_epochs
        if self.state.num_train_epochs == sys.maxsize:  # so the library marks a loader without a length
            if not self._pskd_teacher:
                raise UserError(
                    "the training loader has no length, so its epochs never end and no past could be used: give the "
                    "sampler a __len__ of one pass, and set num_train_epochs; or use PreviousModel(), which divides "
                    "max_steps into num_train_epochs parts"
                )
            self._pskd_part = math.ceil(self.state.max_steps / math.ceil(self.args.num_train_epochs))
            self._pskd_epochs = math.ceil(self.state.max_steps / self._pskd_part)
        if self._pskd_teacher:
            self._pskd_teacher.past = None
            trained = self.accelerator.unwrap_model(self.model)
            if self._pskd_fills:
                self._pskd_teacher.model = trained
            if self._pskd_teacher.model not in (self.model, trained):
                raise UserError(
                    "PreviousModel must be given the model that this trainer trains, not a copy of it; "
                    "PreviousModel() takes it from the trainer, also with model_init"
                )

    def _begin_epoch(self, epoch: int) -> None:
        self._pskd_epoch = epoch
        if self._pskd_teacher:
            share_buffers(self.model_wrapped)
        if self.pskd:
            self.pskd.set_epoch(epoch)
        elif self._pskd_teacher:
            self._pskd_teacher.begin(epoch)  # before a forward pass changes batch norm's statistics

    def _begin_part(self, step: int) -> None:
        """Begin an epoch of a stream, which is a part of its ``max_steps``."""
        if self._pskd_part and step // self._pskd_part != self._pskd_begun:
            self._pskd_begun = step // self._pskd_part
            self._begin_epoch(self._pskd_begun)

    def _end_step(self) -> None:
        """Refuse a subclass whose ``compute_loss`` has trained a step without this one."""
        if self.pskd is None:
            raise UserError(
                f"{type(self).__name__}.compute_loss does not call PS-KD's, so only the hard labels would be learnt: "
                "let it call super().compute_loss(...). A trainer with another loss is refused behind the mixin too, "
                "class Mine(PSKDMixin, MyTrainer), unless the loss is cross-entropy"
            )
        if not self._pskd_reached and self._pskd_probe is not None and self._pskd_probe.grad is None:
            raise UserError(
                f"{type(self).__name__}.compute_loss calls PS-KD's and returns another loss, so only the hard labels "
                "would be learnt: let it return the loss of super().compute_loss(...), alone or in a sum"
            )
        self._pskd_reached, self._pskd_probe = True, None

    def _ranks_averaged(self) -> int:
        """Number of processes that the gradient is averaged over; it multiplies a loss divided by all targets."""
        return self.accelerator.num_processes // self.get_tp_size()

    def _host_loss(self, model: Any, inputs: dict[str, Any], labels: Tensor, items: Any) -> Tensor | None:
        """Let a trainer with its own loss compute it, for the metrics that it logs and for the first batch's check."""
        if not self._pskd_host:
            return None
        with torch.no_grad(), own_loss.same_draws(labels):
            loss: Any = super().compute_loss(model, {**inputs, "labels": labels}, num_items_in_batch=items)
        return loss

    def _new_comparison(self) -> own_loss.SameLoss:
        return own_loss.SameLoss(
            "the trainer's own loss" if self._pskd_host else "the model's own loss",
            asked=self._pskd_shift is not None,
            rounded=self.accelerator.mixed_precision != "no",
            ignore_index=IGNORE,
        )

    def _same_loss(
        self, model: Any, inputs: dict[str, Any], labels: Tensor, items: Any, host: Tensor | None, logits: Tensor
    ) -> own_loss.Answer:
        """Refuse a model, or a trainer, whose own loss is not the cross-entropy that PS-KD replaces.

        ``host`` is the trainer's own loss of these logits, None for the model's. Returns what this batch says.
        """
        shifts = self._shifts(labels)
        if host is not None:
            shared = {"smoothing": self.args.label_smoothing_factor}
            if items is not None:
                shared["denominator"] = items / (
                    self._ranks_averaged() if self.args.average_tokens_across_devices else 1
                )
            return self._pskd_same.compare(float(host), logits, labels, shifts, **shared)
        bare = self._bare_model()
        unlabelled = "labels" not in inputs and not models.needs_labels(bare)
        answer = self._pskd_same.compare_model(model, bare, {**inputs, "labels": labels}, shifts, unlabelled)
        unasked = self._pskd_shift is None and not shifts
        if answer is None and unasked and labels.ndim == 2 and not labels.is_floating_point():
            own_loss.refuse_copying(inputs.get("input_ids"), labels, IGNORE)
        return answer or own_loss.Answer(True, True)

    def _method(self, logits: Tensor, labels: Tensor) -> PSKD | SequencePSKD | MultiLabelPSKD:
        """The PS-KD object, made in the first step, when the number of classes is known."""
        if self.pskd:
            return self.pskd
        multilabel = models.is_multilabel(logits, labels)
        if multilabel and self.args.label_smoothing_factor:
            raise UserError("label_smoothing_factor smooths classes, but these labels are multi-label: set it to 0")
        if not multilabel and logits.shape[-1] == 1:
            raise UserError(
                "the model has one logit (num_labels=1), but class labels need two classes or more: set num_labels=2; "
                'or, for yes or no, give the labels as floats [B, 1] with problem_type="multi_label_classification"'
            )
        settings = {"num_classes": logits.shape[-1], "total_epochs": self._pskd_epochs, **self._pskd_settings}
        if not isinstance(settings["store"], MemoryMapped):
            settings["device"] = logits.device
        if not multilabel and labels.ndim == 2:
            lengths = self._pskd_lengths
            if lengths is None and not self._pskd_teacher:
                lengths = self._count_targets()
            method = SequencePSKD(lengths, **settings)
        else:
            settings["store"] = settings["store"] or "dense"
            kind = MultiLabelPSKD if multilabel else PSKD
            samples = None if self._pskd_teacher else len(self.train_dataset)  # type: ignore[arg-type]
            method = kind(samples, **settings)
        resume = self._pskd_resume
        if resume:
            begun = self._pskd_teacher.past if self._pskd_teacher else None
            method.load(resume)
            if self._pskd_teacher and method.epoch != self._pskd_epoch:  # saved at the end of the previous epoch
                self._pskd_teacher.past = begun
        # A checkpoint from the middle of an epoch: this epoch's rows belong to steps that are not repeated.
        if not resume or self.args.ignore_data_skip or method.epoch != self._pskd_epoch:
            method.set_epoch(self._pskd_epoch)
        self.pskd = method
        return method

    def _indexed_dataset(self) -> Any:
        return indexed(self.train_dataset, lambda one: self._remove_unused_columns(one, description="training"))

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """The library's, also of a column that is called ``index`` by chance: the index is added to what is left."""
        if self.args.remove_unused_columns and "index" in getattr(dataset, "column_names", ()):
            dataset = dataset.remove_columns("index")
        return super()._remove_unused_columns(dataset, description)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = self._signature_columns
        if columns is not None and "index" not in columns:
            columns.append("index")

    def _count_targets(self) -> Offsets:
        """Count targets in one pass over the training set and the collator."""
        loader = DataLoader(
            self._indexed_dataset(),
            batch_size=64,
            collate_fn=cast(Callable, self._get_collator_with_removed_columns(KeepIndex(self.data_collator))),
            num_workers=self.args.dataloader_num_workers,
            generator=torch.Generator(),
        )
        return models.count_targets(loader, self._targets, IGNORE)

    def _targets(self, labels: Tensor) -> Tensor:
        """Labels as targets of the logits at the same position: shifted, if the model predicts the next token."""
        return own_loss.shifted(labels, IGNORE) if self._shifts(labels) else labels

    def _shifts(self, labels: Tensor) -> bool:
        if labels.ndim != 2 or labels.is_floating_point():
            return False
        return self._is_causal() if self._pskd_shift is None else self._pskd_shift

    def _is_causal(self) -> bool:
        # The library's own flag first; it misses GPT2LMHeadModel and similar models, which are in the list.
        listed = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        return getattr(self, "_loss_shifts_labels", False) or models.is_causal(self._bare_model(), listed)

    def _bare_model(self) -> Any:
        """The model without its wrappers, PEFT's included."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model


class PSKDTrainer(PSKDMixin, Trainer):
    """The Hugging Face ``Trainer`` with PS-KD; see :class:`PSKDMixin`."""


class PSKDSeq2SeqTrainer(PSKDMixin, Seq2SeqTrainer):
    """The Hugging Face ``Seq2SeqTrainer`` with PS-KD; see :class:`PSKDMixin`."""


class _Epochs(TrainerCallback):
    """Tells the trainer when an epoch begins."""

    def __init__(self, trainer: PSKDMixin) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._begin_training()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.trainer._pskd_part:
            self.trainer._begin_epoch(int((state.epoch or 0.0) + 1e-6))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._begin_part(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._end_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._pskd_same.warn()
