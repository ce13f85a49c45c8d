"""PS-KD on the classification head of torchvision's Faster R-CNN: one line of the training loop differs."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, box_iou

from retarget.pskd import DetectionPSKD


class Shapes(Dataset):
    """Bright squares (class 1) and rings (class 2) on noise, one or two per image."""

    def __init__(self, number: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.samples = []
        for place in range(number):
            image = 0.3 * torch.rand(3, 48, 48, generator=draw)
            boxes, labels = [], []
            for half in range(int(torch.randint(1, 3, (), generator=draw))):
                side, x, y = (int(torch.randint(*span, (), generator=draw)) for span in ((10, 17), (0, 7), (0, 31)))
                x, label = x + 24 * half, int(torch.randint(1, 3, (), generator=draw))
                image[:, y : y + side, x : x + side] += 0.7
                if label == 2:
                    image[:, y + 3 : y + side - 3, x + 3 : x + side - 3] -= 0.7
                boxes.append([x, y, x + side, y + side])
                labels.append(label)
            # image_id: the image's index in the training set, by which PS-KD recognises its objects
            target = {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels),
                      "image_id": torch.tensor(place)}  # fmt: skip
            self.samples.append((image.clamp(0, 1), target))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int):
        return self.samples[place]


def make_detector() -> FasterRCNN:
    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    backbone = nn.Sequential(*block(3, 16, 2), *block(16, 32, 2), *block(32, 32, 1))
    backbone.out_channels = 32
    return FasterRCNN(
        backbone, min_size=48, max_size=48, rpn_anchor_generator=AnchorGenerator(((10, 16),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 2), box_head=TwoMLPHead(32 * 25, 64),
        box_predictor=FastRCNNPredictor(64, 3), box_batch_size_per_image=32, rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=50,
    )  # fmt: skip


def main(epochs: int = 8) -> float:
    torch.manual_seed(0)
    train, test = Shapes(80, seed=1), Shapes(40, seed=2)
    loader = DataLoader(train, batch_size=8, shuffle=True, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))
    detector = make_detector()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    method = DetectionPSKD(
        detector,
        objects=[len(target["labels"]) for _, target in train.samples],  # or store=PreviousModel(detector)
        num_classes=3,  # includes the background, as in torchvision
        total_epochs=epochs,
        alpha_T=0.3,
    )
    for epoch in range(epochs):
        detector.train()
        method.set_epoch(epoch)  # call 1
        for images, targets in loader:
            losses = method.losses(list(images), list(targets))  # call 2, instead of detector(images, targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()

    detector.eval()
    found, there = 0, 0
    with torch.no_grad():
        for image, target in test.samples:
            (seen,) = detector([image])
            for box, label in zip(target["boxes"], target["labels"], strict=True):
                there += 1
                near = box_iou(seen["boxes"], box[None])[:, 0] >= 0.5  # detections are sorted by score
                found += bool(near.any()) and bool(seen["labels"][near][0] == label)
    print(f"objects found with their class {found / there:.3f}")
    return found / there


if __name__ == "__main__":
    main()
