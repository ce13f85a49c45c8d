"""PS-KD in a training loop of your own: one object, two calls."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from retarget.pskd import PSKD, with_index


def main(epochs: int = 10) -> float:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    dataset = TensorDataset(images, torch.tensor(digits.target))
    train, test = random_split(dataset, [1400, len(dataset) - 1400])
    train = with_index(train)  # (image, label) becomes (image, label, index)
    loader = DataLoader(train, batch_size=64, shuffle=True)

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    method = PSKD(num_samples=len(train), num_classes=10, total_epochs=epochs, alpha_T=0.8)
    for epoch in range(epochs):
        method.set_epoch(epoch)  # call 1
        for x, y, index in loader:
            loss = method.loss(model(x), y, index)  # call 2: softens with the past, remembers the present
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
