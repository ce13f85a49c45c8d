"""One training run of the detection study: a classifier that becomes a backbone, or the Faster R-CNN around it."""

from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR, MultiStepLR
from torch.utils.data import DataLoader
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from retarget.errors import UserError
from retarget.files import replace_file, write_json
from retarget.pskd.detection import DetectionPSKD
from retarget.pskd.lightning import SavedBeside, WholeCheckpoints
from retarget.pskd.past.previous import PreviousModel
from retarget.pskd.past.state import read_state, write_state
from retarget.pskd.studies.detection.data import DetectionSet, Parts, Scene, collate, crops, scenes
from retarget.pskd.studies.detection.plan import classifier_settings
from retarget.pskd.studies.detection.scores import Detections, draw, mean_average_precision, scores
from retarget.pskd.studies.detection.settings import Settings
from retarget.pskd.studies.images import run as classification
from retarget.pskd.studies.images.callbacks import Observe, Reseed, StopClock
from retarget.pskd.studies.images.data import EpochSampler, Normalise, split, stream
from retarget.pskd.studies.images.networks import build
from retarget.settings import resolve_settings
from retarget.study.record import Run, read_history

BACKBONE = "retarget.pskd.backbone"  # kind of the file that a classifier's run leaves
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def run(run: Run) -> dict[str, float]:
    """Train one arm with one seed and return its metrics (names of ``plan.METRICS``)."""
    settings = resolve_settings(Settings, run.settings)
    return _classifier(run, settings) if settings.stage == "classifier" else _detector(run, settings)


# -- the classifier


def _classifier(run: Run, s: Settings) -> dict[str, float]:
    """A run of the classification study; keeps weights and pixel statistics for the detectors."""
    settings = classifier_settings(s, _images(run, s))
    found = classification.train(run, settings)
    last = torch.load(run.checkpoint / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
    train = split(settings).train
    normalise = Normalise(train)
    weights = {name: value for name, value in last.items() if name.startswith("network.")}
    state = {"network": settings.network, "num_classes": train.num_classes}
    write_state(
        run.directory / "backbone.safetensors",
        BACKBONE,
        state,
        {**weights, "mean": normalise.mean, "std": normalise.std},
    )
    kept = {f"classifier_{name}": found[name] for name in ("top1", "nll", "ece")}
    return kept | {name: found[name] for name in ("train_loss", "step_ms", "store_mb")}


def _images(run: Run, s: Settings) -> str:
    """The classifier's dataset; crops of the training objects are written into the run's directory."""
    if s.pretrain.dataset != "crops":
        return s.pretrain.dataset
    parts, file = scenes(s), run.checkpoint / "crops.npz"
    arrays: dict[str, Any] = {}
    for name, part in (("train", parts.train), ("test", parts.test)):
        arrays[f"x_{name}"], arrays[f"y_{name}"] = crops(part, s.pretrain.crop_size)
    replace_file(file, lambda path: _savez(path, arrays))
    return f"npz:{file}"


def _savez(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:  # given a path, numpy would append .npz
        np.savez(file, **arrays)


# -- the detector


class Backbone(nn.Module):
    """The feature maps of a timm network at the given strides, and a feature pyramid on them.

    Raises:
        UserError: the network has no feature maps, or none of one of the strides.
    """

    def __init__(self, network: Any, strides: list[int], channels: int, freeze_norm: bool) -> None:
        super().__init__()
        if not hasattr(network, "forward_intermediates"):
            raise UserError(f"timm's {type(network).__name__} has no feature maps: choose another network")
        maps = {one["reduction"]: (place, one["num_chs"]) for place, one in enumerate(network.feature_info)}
        if set(strides) - set(maps):
            raise UserError(f"strides = {strides}, but the network has feature maps of strides {sorted(maps)}")
        self.network, self.freeze_norm = network, freeze_norm
        self.places = [maps[stride][0] for stride in strides]
        self.fpn = FeaturePyramidNetwork([maps[stride][1] for stride in strides], channels, LastLevelMaxPool())
        self.out_channels = channels

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if self.freeze_norm:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval().requires_grad_(False)
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.network.forward_intermediates(x, indices=self.places, stop_early=True, intermediates_only=True)
        return self.fpn(OrderedDict((str(level), one) for level, one in enumerate(maps)))


def build_detector(settings: Settings, num_classes: int, seed: int, classifier: Path | None) -> FasterRCNN:
    """torchvision's Faster R-CNN with the settings' backbone; weights that are not pre-trained depend only on the seed.

    Args:
        num_classes: number of classes without the background.
        classifier: ``backbone.safetensors`` of a classifier's run; None leaves the backbone untrained.

    Raises:
        UserError: the file belongs to another network.
    """
    s, state, tensors = settings, {"network": settings.network, "num_classes": num_classes}, {}
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    torch.manual_seed(stream(seed))
    if classifier:
        state, tensors = read_state(classifier, BACKBONE, "classifier of this study")
        if state["network"] != s.network:
            raise UserError(f"{classifier} belongs to the network {state['network']!r}, but {s.network!r} is needed")
        mean, std = (tensors.pop(name).tolist() for name in ("mean", "std"))
        if len(mean) != 3:
            raise UserError(f"the images of pretrain.dataset have {len(mean)} channels, but a detector needs 3")
    network: Any = build(s.network, state["num_classes"], 3)
    if classifier:
        network.load_state_dict({name.removeprefix("network."): value for name, value in tensors.items()})
    network.reset_classifier(0)
    torch.manual_seed(stream(seed, 1))
    strides = list(s.strides)
    sides = [s.anchor_scale * stride for stride in (*strides, 2 * strides[-1])]  # the last one is the pooled map
    features = Backbone(network, strides, s.fpn_channels, s.freeze_norm)
    return FasterRCNN(
        features,
        min_size=s.min_size,
        max_size=s.max_size,
        image_mean=list(mean),
        image_std=list(std),
        rpn_anchor_generator=AnchorGenerator(tuple((side,) for side in sides), ((0.5, 1.0, 2.0),) * len(sides)),
        rpn_pre_nms_top_n_train=2 * s.proposals,
        rpn_pre_nms_top_n_test=s.proposals,
        rpn_post_nms_top_n_train=2 * s.proposals,
        rpn_post_nms_top_n_test=s.proposals,
        box_roi_pool=MultiScaleRoIAlign([str(level) for level in range(len(strides))], s.roi_size, 2),
        box_head=TwoMLPHead(s.fpn_channels * s.roi_size**2, s.head_channels),
        box_predictor=FastRCNNPredictor(s.head_channels, num_classes + 1),
        box_batch_size_per_image=s.rois_per_image,
    )


class Detector(pl.LightningModule):
    """An ordinary detector; with PS-KD on its head, one line of ``training_step`` differs."""

    def __init__(self, detector: FasterRCNN, settings: Settings, method: DetectionPSKD | None) -> None:
        super().__init__()
        self.detector, self.settings, self.method = detector, settings, method
        self._seen = Detections()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        losses = self.method.losses(images, targets) if self.method else self.detector(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        self.log("train_loss", loss, on_epoch=True, on_step=False, batch_size=len(images))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        self._seen.add(self.detector(images), targets)

    def on_validation_epoch_end(self) -> None:
        self.log("val_map50", mean_average_precision(self._seen)["map50"])
        self._seen = Detections()

    def configure_optimizers(self) -> Any:
        s = self.settings
        optimizer = torch.optim.SGD(
            [one for one in self.parameters() if one.requires_grad],
            lr=s.lr,
            momentum=s.momentum,
            weight_decay=s.weight_decay,
        )
        schedules: list[Any] = [MultiStepLR(optimizer, [round(share * s.epochs) for share in s.drops])]
        if s.warmup_steps:
            warmup = LinearLR(optimizer, 1e-3, total_iters=s.warmup_steps)
            schedules.append({"scheduler": warmup, "interval": "step"})
        return [optimizer], schedules


class DetectionCallback(SavedBeside):
    """Announces epochs and saves the table; the module itself calls ``losses``."""


def _detector(run: Run, s: Settings) -> dict[str, float]:
    parts = scenes(s)
    _describe(run, parts)
    file = run.other(s.backbone) / "backbone.safetensors" if s.backbone else None
    detector = build_detector(s, len(parts.classes), run.seed, file)
    train = DetectionSet(parts.train, s, run.seed)
    method = _method(s, detector, train, len(parts.classes))
    module, observe = Detector(detector, s, method), Observe(run)
    callbacks = [Reseed(run.seed), observe, StopClock(observe)]
    if method:
        callbacks.append(DetectionCallback(method, run.checkpoint, keep=2))
    trainer = pl.Trainer(
        max_epochs=s.epochs,
        accelerator=s.accelerator,
        devices=1,  # a study runs several runs in parallel, each on one device
        precision=s.precision,
        gradient_clip_val=s.clip,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        plugins=[WholeCheckpoints()],
        callbacks=[*callbacks, ModelCheckpoint(run.checkpoint, "last", enable_version_counter=False)],
        default_root_dir=run.directory,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = run.checkpoint / "last.ckpt"
    loader = DataLoader(
        train,
        batch_size=s.batch_size,
        sampler=cast(Any, EpochSampler(train, num_replicas=1, rank=0, seed=run.seed)),
        drop_last=True,
        collate_fn=collate,
        num_workers=s.workers,
        persistent_workers=s.workers > 0,
    )
    trainer.fit(
        module,
        loader,
        _evaluation_loader(parts.validation, s),
        ckpt_path=last if last.exists() else None,
        weights_only=True,
    )
    module.to(trainer.strategy.root_device)  # the trainer has moved it back to the CPU
    validation, test = (_detect(module, part, s) for part in (parts.validation, parts.test))
    run.save_predictions(**validation.arrays("val"), **test.arrays("test"))
    if s.pictures:
        images = [DetectionSet(parts.test, s)[(0, i)][0] for i in range(min(s.pictures, len(parts.test)))]
        replace_file(run.directory / "detections.png", lambda path: draw(path, images, test, parts.classes))
    metrics = {**mean_average_precision(test), **scores(validation, test)}
    metrics["train_loss"] = read_history(run.directory / "metrics.jsonl")[-1]["train_loss"]
    metrics["step_ms"] = 1000 * float(np.median(observe.steps))
    metrics["store_mb"] = method.num_bytes / 1e6 if method else 0.0
    return metrics


def _method(settings: Settings, detector: FasterRCNN, train: DetectionSet, num_classes: int) -> DetectionPSKD | None:
    if settings.head_targets == "hard":
        return None
    previous = settings.head_targets == "previous"
    store = PreviousModel(detector) if previous else classification.table(settings.store)
    return DetectionPSKD(
        detector, train.objects, num_classes + 1, settings.epochs, settings.alpha_T,
        store=store, schedule=settings.schedule,
    )  # fmt: skip


def _evaluation_loader(part: list[Scene], settings: Settings) -> DataLoader:
    data = DetectionSet(part, settings)
    places: Any = [(0, sample) for sample in range(len(data))]
    return DataLoader(data, settings.batch_size, sampler=places, collate_fn=collate, num_workers=settings.workers)


@torch.no_grad()
def _detect(module: Detector, part: list[Scene], settings: Settings) -> Detections:
    found = Detections()
    module.eval()
    for images, targets in _evaluation_loader(part, settings):
        found.add(module.detector([image.to(module.device) for image in images]), targets)
    return found


def _describe(run: Run, parts: Parts) -> None:
    """Record for the page how many images and objects each part has, and what was left out or clipped."""
    counts = {
        name: {"images": len(part), "objects": int(sum((~one.ignored).sum() for one in part))}
        for name, part in (("train", parts.train), ("validation", parts.validation), ("test", parts.test))
    }
    held = {"classes": parts.classes, "parts": counts, "dropped": parts.dropped, "others": parts.others}
    write_json(run.directory / "data.json", held)
