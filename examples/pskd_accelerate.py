"""PS-KD with accelerate: the plain loop on any number of processes.

Try ``torchrun --nproc-per-node 2 examples/pskd_accelerate.py``; ``accelerate launch --cpu --num_processes 2`` starts
only one process. The processes exchange their rows once per epoch, inside ``set_epoch``.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from retarget.pskd import PSKD, with_index


def main(epochs: int = 10) -> float:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    set_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    dataset = TensorDataset(images, torch.tensor(digits.target))
    train, test = random_split(dataset, [1400, len(dataset) - 1400])
    train = with_index(train)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model, optimizer, loader, test_loader = accelerator.prepare(
        model,
        torch.optim.AdamW(model.parameters(), lr=3e-3),
        DataLoader(train, batch_size=32, shuffle=True),
        DataLoader(test, batch_size=100),
    )
    method = PSKD(num_samples=len(train), num_classes=10, total_epochs=epochs, alpha_T=0.8)
    for epoch in range(epochs):
        method.set_epoch(epoch)  # on every process
        for x, y, index in loader:
            with accelerator.accumulate(model):
                loss = method.loss(model(x), y, index)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()

    model.eval()
    right = []
    for x, y in test_loader:
        with torch.no_grad():
            right.append(accelerator.gather_for_metrics(model(x).argmax(1) == y))
    accuracy = torch.cat(right).float().mean().item()
    accelerator.print(f"test accuracy {accuracy:.3f}")
    accelerator.end_training()
    return accuracy


if __name__ == "__main__":
    main()
