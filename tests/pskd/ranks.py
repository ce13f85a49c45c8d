"""Run by the tests as ``python ranks.py CASE STORE RANK WORLD FOLDER``: a small DDP training, result in FOLDER."""

import gc
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from retarget.errors import UserError
from retarget.pskd import PSKD, Dense, MemoryMapped, PreviousModel, TopK

C, EPOCHS, BATCH = 4, 4, 4
SAMPLES = {"pad": 14, "drop": 14, "even": 12}  # 14 on 4 ranks are padded to 16, so two are seen twice


def train(case: str, store: str, rank: int, world: int, folder: Path) -> None:
    n = SAMPLES[case]
    stores = {"dense": "dense", "topk": TopK(2), "file": MemoryMapped(folder / f"table-{world}", Dense())}
    method = PSKD(n, C, EPOCHS, store=stores[store])
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 6, generator=g, dtype=torch.float64), torch.randint(C, (n,), generator=g)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, C)).double()
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    sampler = DistributedSampler(range(n), world, rank, shuffle=True, seed=3, drop_last=case == "drop")
    state = folder / f"{case}-{world}.safetensors"
    for epoch in range(EPOCHS):
        if epoch == 2:  # everything is thrown away and read back
            method = PSKD(n, C, EPOCHS, store=stores[store])
            method.load(state)
        method.set_epoch(epoch)
        sampler.set_epoch(epoch)
        for index in torch.tensor(list(sampler)).split(BATCH // world):
            loss = method.loss(model(x[index]), y[index], index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch == 1:
            method.save(state)
            dist.barrier()
    method.end_epoch()
    kept = MemoryMapped(folder / f"empty-{world}", Dense()) if store == "file" else "dense"
    empty = PSKD(n, C, EPOCHS, store=kept)  # one rank sees nothing in the first epoch: others do not wait for ever
    empty.set_epoch(0)
    if rank == 0:
        empty.loss(torch.zeros(1, C), y[:1], torch.arange(1))
    empty.save(folder / f"empty-{world}.safetensors")
    dist.barrier()
    empty = PSKD(n, C, EPOCHS, store=kept)
    empty.load(folder / f"empty-{world}.safetensors")
    empty.set_epoch(1)
    assert empty.past_probs(torch.arange(1))[1].all()
    everyone = torch.arange(n)
    method.past.table.begin(EPOCHS)
    fields, written = method.past.table.gather(everyone)
    rows = next(iter(fields.values()))
    torch.save(
        {"weights": list(net.state_dict().values()), "rows": rows, "written": written}, folder / f"{world}-{rank}"
    )


def begin_or_resume(case: str, rank: int, world: int, folder: Path) -> None:
    """One epoch with a table in files and one in memory; or go on, and save what is said to that, empty if nothing."""
    n, said = SAMPLES["even"], ""
    files = PSKD(n, C, EPOCHS, store=MemoryMapped(folder / "table", Dense()))
    memory = PSKD(n, C, EPOCHS)
    mine = torch.arange(rank, n, world)
    for method, state in [(memory, folder / "memory"), (files, folder / "files")]:
        try:
            if case == "resume":
                method.load(state)
                continue
            method.set_epoch(0)
            method.loss(torch.zeros(len(mine), C), mine % C, mine)
            method.save(state)
        except UserError as error:
            said += str(error)
    memory.set_epoch(1)
    torch.save({"said": said, "written": memory.past_probs(torch.arange(n))[1]}, folder / f"{world}-{rank}")


def say(case: str, rank: int, world: int, folder: Path) -> None:
    """Save what each process is told, and whether it finds what the first one has saved.

    Each numbers samples of its own, or has a table of another length, or saves where only one of them can write.
    """
    n = 4 - (rank if case == "lengths" else 0)
    method, index = PSKD(n, C, EPOCHS), torch.arange(n)
    method.set_epoch(0)
    method.loss(torch.zeros(n, C), torch.full((n,), rank if case == "shards" else 0), index)
    said, state = "", folder / "file" / "state" if case == "unwritable" else folder / "state"
    if case == "second":
        state = folder / f"state-{rank}"
    if case == "unwritable" and rank == 0:
        state.parent.touch()
    try:
        method.save(state, writes=rank == 1 if case == "second" else None)
    except UserError as error:
        said = str(error)
    torch.save({"said": said, "found": state.is_file()}, folder / f"{world}-{rank}")


def train_previous(rank: int, world: int, folder: Path) -> None:
    """Batch norm's statistics differ between ranks after a step: save the past of the same inputs, and after a resume.

    The last step of the epoch is a validation, after which DDP does not send its buffers before the next one.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, C))
    model = DistributedDataParallel(net)
    x, y, everyone = torch.randn(16, 6), torch.arange(16) % C, torch.arange(16)
    method = PSKD(None, C, EPOCHS, store=PreviousModel(model))
    for epoch in range(2):
        method.set_epoch(epoch)
        method.loss(model(x[rank::world]), y[rank::world], inputs=x[rank::world]).backward()
        with torch.no_grad():
            model(x[rank::world])
    bare = PreviousModel(DistributedDataParallel(nn.Linear(6, C)))  # a network without buffers
    bare.begin(1)
    method.set_epoch(2)
    past, _ = method.past_probs(everyone, inputs=x)
    method.save(folder / "state")
    dist.barrier()
    method = PSKD(None, C, EPOCHS, store=PreviousModel(model))
    method.load(folder / "state")
    resumed, _ = method.past_probs(everyone, inputs=x)
    torch.save({"past": past, "resumed": resumed}, folder / f"{world}-{rank}")


def main(case: str, store: str, rank: int, world: int, folder: Path) -> None:
    """Train, then end: no rank leaves while another still talks to it, and no thread outlives the interpreter.

    Wrapped models hold on to the process group. While it lives, so do its threads, and one that lets go of a tensor
    when the interpreter is ending is stopped in C++ code that may not be left: the process aborts after its work.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init-{case}", rank=rank, world_size=world)
    if case in ("begin", "resume"):
        begin_or_resume(case, rank, world, folder)
    elif store == "say":
        say(case, rank, world, folder)
    elif store == "model":
        train_previous(rank, world, folder)
    else:
        train(case, store, rank, world, folder)
    dist.barrier()
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
