"""The work of each process in a benchmark with several. Imports little, since every process imports it again."""

import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

from retarget.pskd.past.exchange import WriteLog, exchange
from retarget.pskd.past.rows import TopK
from retarget.pskd.past.table import Table


def exchange_an_epoch(rank: int, world: int, port: int, folder: str, samples: int, classes: int, batch: int) -> None:
    """Write this rank's share of an epoch's rows to its memory-mapped table, then exchange them with the others."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    rows, table, log = TopK(10), Table(TopK(10), samples, classes, path=Path(folder) / f"rank-{rank}"), WriteLog()
    logits, labels = torch.randn(batch, classes), torch.randint(classes, (batch,))
    fields, keep = rows.encode(logits, labels), torch.ones(batch, dtype=torch.bool)
    seconds = []
    for epoch in range(2):  # the first also brings the files into memory
        table.begin(epoch)
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(epoch))[rank::world]
        for index in order.split(batch):
            here = slice(len(index))
            table.write(index, {name: value[here] for name, value in fields.items()}, keep[here])
            log.add(index, keep[here])
        dist.barrier()
        started = time.perf_counter()
        exchange(table, log, None, str)
        dist.barrier()
        seconds.append(time.perf_counter() - started)
    written = int((table.tensors()["stamps"].view(2, -1)[:, :-1].amax(0) == 2).sum())
    if rank == 0:
        Path(folder, "result.json").write_text(json.dumps({"seconds": seconds[-1], "rows": written}))
    dist.destroy_process_group()
