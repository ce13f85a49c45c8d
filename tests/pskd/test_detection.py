"""A softened detection head: equal to slow loops, off equals absent, and the parts of torchvision that it uses."""

import inspect
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign

from retarget.errors import UserError
from retarget.pskd import DetectionPSKD, PreviousModel, TopK
from retarget.pskd.detection import watch

sys.path.insert(0, str(Path(__file__).parent))
import reference

C, EPOCHS, OBJECTS = 4, 4, [2, 0, 3, 1]


def detector(kind=FasterRCNN, **more):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
    backbone.out_channels = 8
    return kind(
        backbone, rpn_anchor_generator=AnchorGenerator(((8, 16),), ((1.0,),)), box_head=TwoMLPHead(8 * 9, 16),
        box_predictor=FastRCNNPredictor(16, C), box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2), min_size=32, max_size=40,
        box_batch_size_per_image=16, rpn_batch_size_per_image=16, rpn_post_nms_top_n_train=30, **more,
    ).train()  # fmt: skip


def batch(index):
    """Images [3, 32, 40] and targets, a function of the image's number alone."""
    images, targets = [], []
    for i in index:
        draw = torch.Generator().manual_seed(i)
        images.append(torch.rand(3, 32, 40, generator=draw))
        corner = torch.randint(0, 16, (OBJECTS[i], 2), generator=draw).float()
        labels = torch.randint(1, C, (OBJECTS[i],), generator=draw)
        targets.append({"boxes": torch.cat([corner, corner + 14], 1), "labels": labels, "image_id": torch.tensor(i)})
    return images, targets


def by_hand(model, images, targets):
    """The sampled proposals and their logits, from the detector's parts."""
    packed, scaled = model.transform(images, targets)
    features = {"0": model.backbone(packed.tensors)}
    proposals, _ = model.rpn(packed, features, scaled)
    heads = model.roi_heads
    proposals, matched, labels, _ = heads.select_training_samples(proposals, scaled)
    return packed, proposals, matched, labels, logits_of(model, packed, proposals)


def logits_of(model, packed, proposals):
    heads, features = model.roi_heads, {"0": model.backbone(packed.tensors)}
    return heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, packed.image_sizes)))[0]


def step_down(model, losses):
    model.zero_grad()
    sum(losses.values()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.02 * parameter.grad


BATCHES = ([2, 0], [1, 3])


@pytest.mark.parametrize("store", ["dense", TopK(C)], ids=str)
def test_object_rows_give_the_losses_of_a_slow_loop(store):
    model = detector()
    method, slow, softened = DetectionPSKD(model, OBJECTS, C, EPOCHS, store=store), reference.PastRows(), 0
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        alpha = 0.8 * (epoch + 1) / EPOCHS if epoch else 0.0
        for number, index in enumerate(BATCHES):
            images, targets = batch(index)
            torch.manual_seed(10 * epoch + number)
            with torch.no_grad():
                _, _, matched, labels, logits = by_hand(model, images, targets)
            torch.manual_seed(10 * epoch + number)
            losses = method.losses(images, targets)
            z = logits.double().numpy()
            keys = [(i, int(m)) for i, per_image in zip(index, matched, strict=True) for m in per_image]
            classes, wanted, seen = torch.cat(labels).tolist(), [], {}
            for row, (key, y) in enumerate(zip(keys, classes, strict=True)):
                target = np.eye(C)[y]
                if y > 0:  # a background proposal keeps its hard target
                    past = slow.read(epoch, key)
                    target = target if past is None else (1 - alpha) * target + alpha * past
                    softened += past is not None
                    seen.setdefault(key, []).append(reference.softmax(z[row : row + 1])[0])
                wanted.append(target)
            tolerance = 2e-3 if isinstance(store, TopK) else 1e-5  # 16-bit rows
            assert losses["loss_classifier"].item() == pytest.approx(reference.loss(z, wanted), rel=tolerance)
            for key, rows in seen.items():
                slow.write(epoch, key, sum(rows) / len(rows))
            step_down(model, losses)
    assert softened > 20


def test_the_previous_detector_gives_the_losses_of_a_slow_loop_on_the_same_proposals():
    model = detector()
    method = DetectionPSKD(model, None, C, EPOCHS, store=PreviousModel(model))
    for epoch in range(EPOCHS):
        method.set_epoch(epoch)
        alpha, past = 0.8 * (epoch + 1) / EPOCHS if epoch else 0.0, deepcopy(model)
        for number, index in enumerate(BATCHES):
            images, targets = batch(index)
            torch.manual_seed(10 * epoch + number)
            with torch.no_grad():
                packed, proposals, _, labels, logits = by_hand(model, images, targets)
                q = reference.softmax(logits_of(past, packed, proposals).double().numpy())
            torch.manual_seed(10 * epoch + number)
            losses = method.losses(images, targets)
            wanted = reference.soft_target(torch.cat(labels).tolist(), q, alpha, C)
            assert losses["loss_classifier"].item() == pytest.approx(
                reference.loss(logits.double().numpy(), wanted), rel=1e-5
            )
            step_down(model, losses)


def test_the_pretrained_detector_is_the_past_of_the_first_epoch_if_asked():
    model = detector()
    method = DetectionPSKD(model, None, C, 1, store=PreviousModel(model, "train", "pretrained"))
    method.set_epoch(0)
    assert method.alpha > 0
    assert method.teacher.mode == "train"
    torch.manual_seed(0)
    plain = model(*batch([0]))["loss_classifier"].item()
    torch.manual_seed(0)
    assert method.losses(*batch([0]))["loss_classifier"].item() != plain  # equal bit for bit on hard targets


@pytest.mark.parametrize("previous", [False, True])
def test_alpha_zero_is_absent_bit_for_bit(previous):
    with_method, without = detector(), detector()
    store = PreviousModel(with_method) if previous else "dense"
    method = DetectionPSKD(with_method, OBJECTS, C, 2, alpha_T=0.0, store=store)
    for epoch in range(2):
        method.set_epoch(epoch)
        for index in BATCHES:
            torch.manual_seed(epoch)
            a = method.losses(*batch(index))
            torch.manual_seed(epoch)
            b = without(*batch(index))
            assert {name: value.item() for name, value in a.items()} == {
                name: value.item() for name, value in b.items()
            }
            step_down(with_method, a)
            step_down(without, b)
    state = without.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in with_method.state_dict().items())


def test_only_the_classification_loss_is_changed_and_gradients_reach_the_backbone():
    model = detector()
    method = DetectionPSKD(model, OBJECTS, C, 2)
    method.set_epoch(0)
    for index in BATCHES:
        torch.manual_seed(0)
        method.losses(*batch(index))
    method.set_epoch(1)
    torch.manual_seed(0)
    soft = method.losses(*batch(BATCHES[0]))
    torch.manual_seed(0)
    hard = model(*batch(BATCHES[0]))
    assert [name for name in hard if soft[name].item() != hard[name].item()] == ["loss_classifier"]
    soft["loss_classifier"].backward()
    assert model.backbone[0].weight.grad.abs().sum() > 0


def test_what_is_used_of_torchvision_is_there():
    """Fails when a torchvision release renames or reorders what :mod:`retarget.pskd.detection` leans on."""
    assert list(inspect.signature(RoIHeads.select_training_samples).parameters) == ["self", "proposals", "targets"]
    model = detector()
    images, targets = batch([0, 2])
    with watch(model) as step:
        losses = model(images, targets)
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert F.cross_entropy(step.logits, torch.cat(step.labels)).item() == losses["loss_classifier"].item()
    assert step.images.shape[:2] == (2, 3)
    assert step.shapes == [(32, 40), (32, 40)]
    assert [len(one) for one in step.proposals] == [len(one) for one in step.matched]
    for proposals, matched, labels, target in zip(step.proposals, step.matched, step.labels, step.targets, strict=True):
        assert (target["labels"][matched][labels > 0] == labels[labels > 0]).all()
        assert proposals.shape[1] == 4
    assert "select_training_samples" not in vars(model.roi_heads), "a detector is left as it was"
    assert not model.backbone._forward_pre_hooks
    assert not model.roi_heads.box_predictor._forward_hooks


def test_mask_rcnn_is_called_alike():
    model = detector(
        MaskRCNN, mask_roi_pool=MultiScaleRoIAlign(["0"], 3, 2), mask_head=nn.Conv2d(8, 8, 1),
        mask_predictor=nn.ConvTranspose2d(8, C, 2, 2),
    )  # fmt: skip
    method = DetectionPSKD(model, OBJECTS, C, 2)
    images, targets = batch([0, 2])
    for target in targets:
        target["masks"] = torch.ones(len(target["boxes"]), 32, 40, dtype=torch.uint8)
    for epoch in range(2):
        method.set_epoch(epoch)
        assert "loss_mask" in method.losses(images, targets)


def test_a_detector_in_distributed_data_parallel_gets_the_same_gradients(tmp_path):
    models = detector(), detector()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(models[0])
        methods = DetectionPSKD(wrapped, OBJECTS, C, 2), DetectionPSKD(models[1], OBJECTS, C, 2)
        for epoch in range(2):
            for model, method in zip(models, methods, strict=True):
                method.set_epoch(epoch)
                torch.manual_seed(epoch)
                model.zero_grad()
                sum(method.losses(*batch([0, 2])).values()).backward()
        for a, b in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
    finally:
        dist.destroy_process_group()


def test_an_object_keeps_its_row_where_an_augmentation_drops_another():
    model = detector()
    method = DetectionPSKD(model, OBJECTS, C, 2)
    images, (target,) = batch([2])
    kept = torch.tensor([2, 0])
    part = {"boxes": target["boxes"][kept], "labels": target["labels"][kept], "object_id": kept,
            "image_id": target["image_id"]}  # fmt: skip
    method.set_epoch(0)
    method.losses(images, [part])
    method.set_epoch(1)
    _, written = method.past_probs(torch.arange(sum(OBJECTS)))
    assert written.tolist() == [False, False, True, False, True, False]  # rows of image 2 are 2, 3, 4
    method.losses(images, [target])
    assert method.fallbacks > 0, "the object that was dropped has its hard label"


def test_fewer_boxes_than_objects_are_refused_unless_it_is_said_which_they_are():
    method = DetectionPSKD(detector(), OBJECTS, C, 2)
    images, (target,) = batch([2])
    method.set_epoch(0)
    for kept in (torch.tensor([1, 2]), torch.tensor([], dtype=torch.long)):
        cut = {**target, "boxes": target["boxes"][kept], "labels": target["labels"][kept]}
        with pytest.raises(UserError, match=rf"image 2 has {len(kept)} boxes .* objects lists 3.*set object_id"):
            method.losses(images, [cut])
        method.losses(images, [{**cut, "object_id": kept}])


def test_a_saved_table_goes_on_and_that_of_other_images_is_refused(tmp_path):
    model = detector()
    first, second = (DetectionPSKD(model, OBJECTS, C, 2) for _ in range(2))
    first.set_epoch(0)
    for index in BATCHES:
        first.losses(*batch(index))
    first.save(tmp_path / "state.safetensors")
    second.load(tmp_path / "state.safetensors")
    values = []
    for method in (first, second):
        method.set_epoch(1)
        torch.manual_seed(1)
        values.append(method.losses(*batch([0, 2]))["loss_classifier"].item())
    assert values[0] == values[1]
    with pytest.raises(UserError, match="objects = "):
        DetectionPSKD(model, OBJECTS[::-1], C, 2).load(tmp_path / "state.safetensors")


def test_bad_input_is_refused():
    model = detector()
    method = DetectionPSKD(model, OBJECTS, C, 2)
    method.set_epoch(0)
    images, (target,) = batch([0])

    def losses(**more):
        return method.losses(images, [{**target, **more}])

    with pytest.raises(UserError, match=r"image_id 9 lies outside \[0, 4\)"):
        losses(image_id=torch.tensor(9))
    with pytest.raises(UserError, match="object 1 of image 3 has no row: the argument objects lists 1 for it"):
        losses(image_id=torch.tensor(3))
    with pytest.raises(UserError, match="2 boxes but 1 object_id"):
        losses(object_id=torch.tensor([0]))
    with pytest.raises(UserError, match='no "image_id"'):
        method.losses(images, [{"boxes": target["boxes"], "labels": target["labels"]}])
    with pytest.raises(UserError, match='no "labels"'):
        method.losses(images, [{"boxes": target["boxes"], "image_id": target["image_id"]}])
    with pytest.raises(UserError, match=r"call detector.train\(\) first"):
        DetectionPSKD(detector().eval(), OBJECTS, C, 2).losses(images, [target])
    with pytest.raises(UserError, match="Linear has no backbone"):
        DetectionPSKD(nn.Linear(1, 1), OBJECTS, C, 2)
    with pytest.raises(UserError, match="pass objects"):
        DetectionPSKD(model, None, C, 2)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias.fill_(torch.nan)
    with pytest.raises(UserError, match="loss_classifier is nan"):
        losses()


def test_a_loss_that_is_not_torchvisions_is_refused(monkeypatch):
    from torchvision.models.detection import roi_heads

    usual = roi_heads.fastrcnn_loss
    monkeypatch.setattr(roi_heads, "fastrcnn_loss", lambda *args: (2 * usual(*args)[0], usual(*args)[1]))
    method = DetectionPSKD(detector(), OBJECTS, C, 2)
    method.set_epoch(0)
    with pytest.raises(UserError, match="is not the cross-entropy of its sampled proposals"):
        method.losses(*batch([0]))


def test_a_sampling_of_the_users_own_is_used_in_every_step():
    model, calls = detector(), []
    usual = model.roi_heads.select_training_samples

    def counted(proposals, targets):
        calls.append(len(targets))
        return usual(proposals, targets)

    model.roi_heads.select_training_samples = counted
    method = DetectionPSKD(model, OBJECTS, C, 2)
    method.set_epoch(0)
    for index in BATCHES:
        method.losses(*batch(index))
    assert calls == [2, 2]
    assert model.roi_heads.select_training_samples is counted


@pytest.mark.parametrize("weight", [[1.0, 10.0, 10.0, 10.0], [1.0, 1.0, 1.0, 10.0]], ids=str)
def test_class_weights_are_refused_when_images_with_the_classes_come(weight, monkeypatch):
    from torchvision.models.detection import roi_heads

    usual = roi_heads.fastrcnn_loss

    def weighted(logits, deltas, labels, targets):
        loss = nn.functional.cross_entropy(logits, torch.cat(labels), weight=torch.tensor(weight))
        return loss, usual(logits, deltas, labels, targets)[1]

    monkeypatch.setattr(roi_heads, "fastrcnn_loss", weighted)
    method = DetectionPSKD(detector(), OBJECTS, C, 2)
    method.set_epoch(0)
    method.losses(*batch([1]))  # an image without objects

    def go_on():
        for index in (0, 2, 3):
            method.losses(*batch([index]))

    with pytest.raises(UserError, match="without class weights"):
        go_on()


@pytest.mark.parametrize("previous", [False, True])
@pytest.mark.parametrize(("shift", "label"), [(-1, 0), (3, 4)])
def test_labels_that_are_no_objects_are_refused_before_the_pass(shift, label, previous):
    """Counted from 0 they would be trained as background."""
    model, passes = detector(), []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    method = DetectionPSKD(
        model, None if previous else OBJECTS, C, 2, store=PreviousModel(model) if previous else "dense"
    )
    method.set_epoch(0)
    images, targets = batch([1, 2])
    targets[1]["labels"] = torch.tensor([2, 1 + shift, 1])
    image = "image 1 of the batch" if previous else "image 2"
    message = rf"object 1 of {image} has the label {label}, which lies outside \[1, 4\): labels count from 1"
    with pytest.raises(UserError, match=message):
        method.losses(images, targets)
    assert passes == []


@pytest.mark.parametrize("name", ["000002.jpg", None, torch.tensor([2, 3])], ids=str)
def test_an_image_id_that_is_no_number_is_refused(name):
    method = DetectionPSKD(detector(), OBJECTS, C, 2)
    method.set_epoch(0)
    images, (target,) = batch([2])
    with pytest.raises(UserError, match=r"image_id .* is not one whole number: set it to the image's index"):
        method.losses(images, [{**target, "image_id": name}])


def test_a_forgotten_background_is_said_in_the_first_step():
    model = detector()
    method = DetectionPSKD(model, None, C - 1, EPOCHS, store=PreviousModel(model))
    method.set_epoch(0)
    with pytest.raises(UserError, match="has 4 classes, the background included, but num_classes is 3"):
        method.losses(*batch([0, 2]))
