"""The audit's figures: evaluations in batches that stay in the cache, a whole audit, and its cost against TERD's."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from benchmarks._pairs import figure, interleaved
from retarget.audit.baselines import terd
from retarget.audit.demo import BASE
from retarget.audit.inversion import Search
from retarget.audit.nulls import train_clean
from retarget.audit.run import audit_pipeline
from retarget.audit.scores import BATCH, CPU_BATCH, TOP, Probe, draw_noise
from retarget.audit.seek import expected_evaluations
from retarget.audit.subject import Subject
from retarget.trojdiff.build import make_network
from retarget.trojdiff.checkpoint import save_pipeline
from retarget.trojdiff.config import NetworkConfig


def figures(smallest: bool = False) -> Iterator[dict[str, Any]]:
    """Time per image at MNIST's size and at CIFAR-10's, and of one 8×8 network as the demo has it."""
    torch.set_num_threads(1)
    for shape in ((1, 28, 28), (3, 32, 32)):
        yield _batches(shape, **({"count": 4, "pairs": 2} if smallest else {}))
    yield _one_audit(smallest)
    yield _against_terd()


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


def _one_audit(smallest: bool) -> dict[str, Any]:
    """Seconds for the demo's clean model on two threads, with its pictures."""
    torch.set_num_threads(2)
    model = BASE.model_copy(update={"steps": 20}) if smallest else BASE
    search = Search(screen=64, maps=2, first=1, steps=1, keep=1, fresh=4, symmetric=2) if smallest else Search()
    with TemporaryDirectory() as folder:
        save_pipeline(Path(folder, "pipeline"), *train_clean(model))
        one = audit_pipeline(Path(folder, "pipeline"), Path(folder, "audit"), search=search)
    torch.set_num_threads(1)
    return figure("an audit of one 8×8 network on two threads", one.seconds, "s", "<= 60",
                  {"verdict": one.verdict, "evaluations": one.evaluations})  # fmt: skip


def _against_terd() -> dict[str, Any]:
    """Network evaluations that a search in CIFAR-10's images is expected to need, over those of TERD as published.

    TERD's are counted in one iteration of each of its stages, on a small network: they do not depend on it.
    """
    network = NetworkConfig(channels=(8,), layers=1, attention_side=None, groups=8, dropout=0.0)
    subject = Subject(make_network(network, (1, 8, 8), seed=0).eval(), DDPMScheduler(), (1, 8, 8))
    settings = terd.PUBLISHED
    once = replace(settings, iterations=1, refinements=1)
    first, both = (terd.terd(subject, once, refine=refine).evaluations for refine in (False, True))
    theirs = settings.iterations * first + settings.refinements * (both - first)
    ours = expected_evaluations((3, 32, 32), Search())
    detail = {"ours": ours, "theirs": theirs}
    name = "evaluations of a search in 32×32 images, 3 channels, against TERD's published settings"
    return figure(name, ours / theirs, "ratio", "<= 0.333", detail)
