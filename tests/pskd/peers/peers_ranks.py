"""Run by the tests as ``python peers_ranks.py RANK WORLD FOLDER``: small DDP trainings, their weights in FOLDER."""

import gc
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from retarget.pskd import peers

N, C, EPOCHS, BATCH = 12, 4, 4, 4


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=world)
    made = (peers.OnlineLabelSmoothing, peers.TemporalEnsembling, peers.BSD)
    weights = [train(make, rank, world, folder) for make in made]
    weights.append([classes(rank)])
    torch.save(weights, folder / f"{world}-{rank}")
    dist.barrier()  # no rank leaves while another still talks to it
    gc.collect()  # wrapped models hold on to the process group, whose threads must not outlive the interpreter
    dist.destroy_process_group()


def train(make, rank: int, world: int, folder: Path) -> list[torch.Tensor]:
    method = make(N, C, EPOCHS)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(N, 6, generator=g, dtype=torch.float64), torch.arange(N) % C
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, C)).double()
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    sampler = DistributedSampler(range(N), world, rank, shuffle=True, seed=3)
    state = folder / f"{make.__name__}-{world}.safetensors"
    for epoch in range(EPOCHS):
        if epoch == 2:  # everything is thrown away and read back
            method = make(N, C, EPOCHS)
            method.load(state)
        method.set_epoch(epoch)
        sampler.set_epoch(epoch)
        for index in torch.tensor(list(sampler)).split(BATCH // world):
            loss = method.loss(model(x[index]), y[index], index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.save(folder / f"middle-{make.__name__}-{world}.safetensors")  # a save in mid-epoch changes nothing
        if epoch == 1:
            method.save(state)
            dist.barrier()
    return list(net.state_dict().values())


def classes(rank: int) -> torch.Tensor:
    """The table of online label smoothing after an epoch in which only the first rank had data."""
    method = peers.OnlineLabelSmoothing(N, C, EPOCHS)
    method.set_epoch(0)
    if rank == 0:
        index = torch.arange(C)
        method.loss(4 * torch.eye(C), index, index)
    method.set_epoch(1)
    return method.rows


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
