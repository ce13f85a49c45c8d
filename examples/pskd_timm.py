"""PS-KD in timm's training loop: its dataset, loader and model, with three lines changed.

The same three lines change timm's own ``train.py``: wrap the dataset, make the loader with ``use_prefetcher=False``
(``--no-prefetcher``; the prefetcher drops all but image and label), and take the loss from the method. If timm's
``ImageDataset`` cannot read an image, it returns the next one; ``with_index`` then returns the index of that image, so
that no image gets the past of another. Repeated augmentation works: of several views of an image in an epoch, the
first is remembered.

Mixup and CutMix: timm's own ``Mixup``, given the images' positions in the batch as labels, tells how much of each image
is in each input. The prediction for a mixed input is not remembered, so leave some batches unmixed (``prob`` below 1).
Label smoothing then moves into the loss: ``method.loss(..., smoothing=0.1)``.
"""

import tempfile
from pathlib import Path

import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import Mixup, create_dataset, create_loader
from timm.optim import create_optimizer_v2

from retarget.pskd import PSKD, with_index


def folder_of_digits(root: Path, first: int, last: int) -> None:
    digits = load_digits()
    for i in range(first, last):
        path = root / str(digits.target[i]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15.9).astype("uint8")).resize((32, 32)).save(path)


def main(epochs: int = 4, images: int = 500, mixing: float = 0.0) -> float:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        train_root, test_root = Path(folder) / "train", Path(folder) / "test"
        folder_of_digits(train_root, 0, images)
        folder_of_digits(test_root, 1500, 1700)
        (train_root / "0" / "damaged.png").write_bytes(b"not an image")  # timm skips it and warns

        train = with_index(create_dataset("folder", str(train_root)))  # 1: wrap the dataset
        test = create_dataset("folder", str(test_root))
        shape = dict(input_size=(3, 32, 32), device=torch.device("cpu"), num_workers=0, persistent_workers=False)
        loader = create_loader(  # 2: no prefetcher
            train, batch_size=50, is_training=True, no_aug=True, num_aug_repeats=0, use_prefetcher=False, **shape
        )
        test_loader = create_loader(test, batch_size=100, use_prefetcher=False, crop_pct=1.0, **shape)

        model = timm.create_model("resnet10t", num_classes=10)
        optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3)
        mix = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, prob=mixing, label_smoothing=0.0, num_classes=50)  # batch size
        method = PSKD(num_samples=len(train), num_classes=10, total_epochs=epochs, alpha_T=0.8)
        for epoch in range(epochs):
            method.set_epoch(epoch)
            model.train()
            for x, y, index in loader:
                mixed = None
                if mixing:
                    x, mixed = mix(x, torch.arange(len(x)))
                loss = method.loss(model(x), y, index, mixed=mixed)  # 3: the loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        model.eval()
        with torch.no_grad():
            right = [(model(x).argmax(1) == y).float() for x, y in test_loader]
    accuracy = torch.cat(right).mean().item()
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
