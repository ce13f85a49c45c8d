"""PS-KD on segmentation: which pixels of a noisy image belong to a digit, with random flips.

A flip moves pixels, so a stored row would belong to another pixel in the next epoch: ``PreviousModel`` lets last
epoch's model predict the same view instead. Without augmentation, and at low resolution, a table works too:
``PixelPSKD(len(train), (16, 16), 2, epochs, store="dense", ignore_index=BORDER)``, a loader of ``with_index(train)``,
which gives ``x, y, index``, and ``method.loss(model(x), y, index)``.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from retarget.pskd import PixelPSKD, PreviousModel

BORDER = 255  # pixels without a class are ignored


def scenes(number: int, seed: int, first: int, last: int) -> TensorDataset:
    """Noisy images [1, 16, 16] with a digit at a random position, and the class of each pixel."""
    digits = load_digits().images[first:last] / 16
    draw = torch.Generator().manual_seed(seed)
    ink = torch.zeros(number, 16, 16)
    for image in ink:
        top, left = torch.randint(0, 9, (2,), generator=draw).tolist()
        sample = int(torch.randint(len(digits), (), generator=draw))
        image[top : top + 8, left : left + 8] = torch.from_numpy(digits[sample])
    labels = torch.where(ink > 0.5, 1, torch.where(ink > 0.2, BORDER, 0))
    return TensorDataset((ink + 0.5 * torch.randn(ink.shape, generator=draw))[:, None], labels)


def main(epochs: int = 5) -> float:
    torch.manual_seed(0)
    train, test = scenes(400, 0, 0, 1400), scenes(100, 1, 1400, 1797)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    method = PixelPSKD(None, None, 2, epochs, alpha_T=0.5, store=PreviousModel(model), ignore_index=BORDER)
    for epoch in range(epochs):
        method.set_epoch(epoch)
        for x, y in DataLoader(train, batch_size=25, shuffle=True):
            if torch.rand(()) < 0.5:
                x, y = x.flip(3), y.flip(2)
            loss = method.loss(model(x), y, inputs=x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    x, y = test.tensors
    with torch.no_grad():
        found = model(x).argmax(1)
    counted = y != BORDER
    overlap = ((found == 1) & (y == 1)).sum() / (((found == 1) | (y == 1)) & counted).sum()
    print(f"intersection over union {overlap.item():.3f}")
    return overlap.item()


if __name__ == "__main__":
    main()
