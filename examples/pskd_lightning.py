"""PS-KD in Lightning: add a callback; the module stays as it is.

The labels of a batch stay labels, so metrics do not change; ``F.cross_entropy`` looks up the softened rows for them. A
loss of your own must call ``soft_targets(y, num_classes=10)`` from ``retarget.pskd``; otherwise the first step stops
the run.
"""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy

from retarget.pskd import PSKD, PSKDCallback, with_index


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.train_accuracy = MulticlassAccuracy(10)

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        x, y = batch[:2]
        logits = self(x)
        self.train_accuracy.update(logits, y)  # uses the labels as they are
        self.log("train_accuracy", self.train_accuracy, on_step=False, on_epoch=True)
        return F.cross_entropy(logits, y)  # with PS-KD, uses the softened rows

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.log("test_accuracy", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(epochs: int = 10, folder: str = ".") -> float:
    pl.seed_everything(0, verbose=False)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    dataset = TensorDataset(images, torch.tensor(digits.target))
    train, test = random_split(dataset, [1400, len(dataset) - 1400])
    train = with_index(train)

    method = PSKD(num_samples=len(train), num_classes=10, total_epochs=epochs, alpha_T=0.8)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[PSKDCallback(method)],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,  # if there are checkpoints, the table is saved beside them
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Classifier()
    trainer.fit(module, DataLoader(train, batch_size=64, shuffle=True))
    accuracy = trainer.test(module, DataLoader(test, batch_size=500), verbose=False)[0]["test_accuracy"]
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
