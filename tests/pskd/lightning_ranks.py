"""Run by the tests under torchrun or alone, ``lightning_ranks.py FOLDER``: PS-KD in Lightning, weights in FOLDER."""

import gc
import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, DistributedSampler

from retarget.pskd import PSKD, PreviousModel, PSKDCallback, with_index

N, C, EPOCHS, BATCH = 16, 4, 4, 8


class Module(pl.LightningModule):
    def __init__(self, middle):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 8), middle, torch.nn.Linear(8, C)).double()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        z = self(batch[0])
        assert batch[1].dtype == torch.int64, "labels stay labels, for metrics"
        return F.cross_entropy(z, batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    module = Module(torch.nn.Tanh())
    fit(module, PSKD(N, C, EPOCHS), folder, world, rank)
    torch.save([p.detach().clone() for p in module.parameters()], folder / f"{world}-{rank}")
    module = Module(torch.nn.BatchNorm1d(8))
    method = PSKD(None, C, EPOCHS, store=PreviousModel(module.net))
    fit(module, method, folder, world, rank)
    torch.save(list(method.teacher.tensors().values()), folder / f"past-{world}-{rank}")


def fit(module: Module, method: PSKD, folder: Path, world: int, rank: int) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(N, 6, generator=g, dtype=torch.float64), torch.randint(C, (N,), generator=g)
    data = with_index(list(zip(x, y, strict=True)))
    callback = PSKDCallback(method, directory=folder / f"tables-{method.past.kind}")
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        callbacks=[callback],
        use_distributed_sampler=False,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    sampler = DistributedSampler(data, world, rank, seed=3)
    trainer.fit(module, DataLoader(data, BATCH // world, sampler=sampler))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        gc.collect()  # the wrapped module holds on to the process group
        torch.distributed.destroy_process_group()
