"""The audit's figure: network evaluations on a CPU in batches that stay in the cache, against large ones."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from benchmarks._pairs import figure, interleaved
from retarget.audit.scores import BATCH, CPU_BATCH, TOP, Probe, draw_noise
from retarget.audit.subject import Subject
from retarget.trojdiff.build import make_network
from retarget.trojdiff.config import NetworkConfig


def figures(smallest: bool = False) -> Iterator[dict[str, Any]]:
    """Time per image, at MNIST's size and at CIFAR-10's."""
    torch.set_num_threads(1)
    for shape in ((1, 28, 28), (3, 32, 32)):
        yield _batches(shape, **({"count": 4, "pairs": 2} if smallest else {}))


def _batches(shape: tuple[int, int, int], count: int = BATCH, pairs: int = 8) -> dict[str, Any]:
    network = NetworkConfig(channels=(16, 32), layers=1, attention_side=None, groups=8, dropout=0.0)
    subject = Subject(make_network(network, shape, seed=0).eval(), DDPMScheduler(), shape)
    probe = Probe(subject, TOP, draw_noise(count, shape, torch.Generator().manual_seed(0)))

    def answer(batch: int) -> Callable[[], None]:
        def one() -> None:
            probe.batch = batch
            probe.answer(probe.noise)

        return one

    channels, side, _ = shape
    return figure(
        f"{count} evaluations of {side}×{side} images, {channels} channel{'s' * (channels > 1)}, in batches of "
        f"{CPU_BATCH} against {BATCH}",
        interleaved(answer(CPU_BATCH), answer(BATCH), pairs, warmup=1),
        "ratio",
        "<= 0.8",
    )
