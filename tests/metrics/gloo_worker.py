"""One of two processes: ``gloo_worker.py RANK RENDEZVOUS DATA.npz OUT.json``.

Every metric is there twice: one sees a part of the data on each rank, one all of it on rank 0 and nothing on rank 1.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from retarget import metrics

rank, rendezvous, data, out = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
arrays = np.load(data)
probs, labels = torch.from_numpy(arrays["probs"]), torch.from_numpy(arrays["labels"])
mine = slice(0, 30) if rank == 0 else slice(30, None)
results = {}
for name in (name for name in metrics.__all__ if isinstance(getattr(metrics, name), type)):
    if not issubclass(getattr(metrics, name), torch.nn.Module):
        continue
    uneven, lonely = getattr(metrics, name)(), getattr(metrics, name)()
    for part, target in zip(probs[mine].split(7), labels[mine].split(7), strict=True):
        uneven.update(part, target)
    if rank == 0:
        lonely.update(probs, labels)
    results[name] = [uneven.compute().item(), lonely.compute().item()]
Path(out).write_text(json.dumps(results))
dist.destroy_process_group()
