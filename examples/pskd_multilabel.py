"""PS-KD on multi-label targets: which of the ten digits does an image of two digits show?

The loop is that of ``pskd_plain_pytorch.py`` with another method: each class has a target of 0 or 1, and the loss is
binary cross-entropy.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from retarget.pskd import MultiLabelPSKD, with_index


def pairs_of_digits(number: int, seed: int, first: int, last: int) -> TensorDataset:
    """Two digits side by side, [128] pixels, and which digits they are, [10]."""
    digits = load_digits()
    images = torch.tensor(digits.data[first:last], dtype=torch.float32) / 16
    labels = torch.tensor(digits.target[first:last])
    two = torch.randint(len(images), (number, 2), generator=torch.Generator().manual_seed(seed))
    targets = torch.zeros(number, 10).scatter_(1, labels[two], 1.0)
    return TensorDataset(images[two].flatten(1), targets)


def main(epochs: int = 10) -> float:
    torch.manual_seed(0)
    train, test = with_index(pairs_of_digits(2000, 0, 0, 1400)), pairs_of_digits(500, 1, 1400, 1797)
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    method = MultiLabelPSKD(num_samples=len(train), num_classes=10, total_epochs=epochs, alpha_T=0.5)
    for epoch in range(epochs):
        method.set_epoch(epoch)
        for x, y, index in DataLoader(train, batch_size=64, shuffle=True):
            loss = method.loss(model(x), y, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    x, y = test.tensors
    with torch.no_grad():
        right = ((model(x) > 0) == (y > 0.5)).float().mean().item()
    print(f"share of right yes-or-no answers {right:.3f}")
    return right


if __name__ == "__main__":
    main()
