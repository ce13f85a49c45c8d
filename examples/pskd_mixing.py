"""PS-KD with CutMix in a loop of your own: every other batch is mixed, reads past predictions and stores none.

Any library's mixing tells how much of each sample is in each input: pass the samples' positions in the batch as labels.
If every batch were mixed, nothing would be remembered; an epoch without a stored row warns about it.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchvision.transforms import v2

from retarget.pskd import PSKD, with_index


def main(epochs: int = 10) -> float:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    dataset = TensorDataset(images, torch.tensor(digits.target))
    train, test = random_split(dataset, [1400, len(dataset) - 1400])
    train = with_index(train)
    loader = DataLoader(train, batch_size=64, shuffle=True)

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    mix = v2.CutMix(num_classes=64)  # one "class" per position in the batch of 64
    method = PSKD(num_samples=len(train), num_classes=10, total_epochs=epochs, alpha_T=0.8)
    for epoch in range(epochs):
        method.set_epoch(epoch)
        for step, (x, y, index) in enumerate(loader):
            mixed = None
            if step % 2:
                x, mixed = mix(x, torch.arange(len(x)))
            loss = method.loss(model(x), y, index, mixed=mixed)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    x, y = (torch.stack([torch.as_tensor(item[i]) for item in test]) for i in (0, 1))
    with torch.no_grad():
        accuracy = (model(x).argmax(1) == y).float().mean().item()
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
