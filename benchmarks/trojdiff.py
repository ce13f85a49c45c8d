"""TrojDiff's figures: what a trigger costs beside the network."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from benchmarks._pairs import figure, interleaved
from retarget.trojdiff import D2I, Trigger, TrojanScheduler
from retarget.trojdiff.build import make_network, make_trigger
from retarget.trojdiff.data import read_images
from retarget.trojdiff.functional import noise_loss
from retarget.trojdiff.glyphs import glyph
from retarget.trojdiff.studies.plan import Settings, plan
from retarget.trojdiff.targets import noise_batch

SHAPE = (1, 8, 8)


def figures(smallest: bool = False) -> Iterator[dict[str, Any]]:
    """Every figure of this module, on the demo's network: the smallest, so a trigger adds the largest share."""
    torch.set_num_threads(1)
    settings = Settings.model_validate(plan("demo").settings)
    sampling: dict[str, int] = {"batch": 2, "pairs": 2} if smallest else {}
    training: dict[str, int] = {"rows": 2, "benign": 4, "pairs": 2} if smallest else {}
    yield from _sampling_step(settings, make_trigger(settings.trigger_config("patch"), SHAPE), **sampling)
    yield from _training_step(settings, **training)


def _sampling_step(settings: Settings, trigger: Trigger, batch: int = 128, pairs: int = 60) -> Iterator[dict[str, Any]]:
    """One step of network and scheduler, with the trigger against without."""
    unet = make_network(settings.network, SHAPE, seed=0).eval()
    bases: dict[str, Callable[[], Any]] = {
        "DDPM": DDPMScheduler,
        "DDIM": DDIMScheduler,
        "DPM-Solver++": DPMSolverMultistepScheduler,
    }
    for name, base in bases.items():
        ours, stock = TrojanScheduler(base(), trigger), base()

        def step(scheduler: Any) -> Callable[[], None]:
            scheduler.set_timesteps(1000)
            state, position = torch.randn(batch, *SHAPE), 0

            @torch.no_grad()
            def one() -> None:
                nonlocal position, state
                t = scheduler.timesteps[position]
                state = scheduler.step(unet(state, t).sample, t, state).prev_sample
                position += 1

            return one

        measured = interleaved(step(ours), step(stock), pairs, warmup=5)
        yield figure(f"Trojan sampling step against stock, {name}, 8×8, batch {batch}", measured, "ratio", "<= 1.01")


def _training_step(settings: Settings, rows: int = 12, benign: int = 128, pairs: int = 40) -> Iterator[dict[str, Any]]:
    """A whole training step on benign and Trojan rows against a plain DDPM step on as many rows."""
    images = read_images("digits")
    schedule = DDPMScheduler()
    trigger, target = make_trigger(settings.trigger_config("blend"), SHAPE), D2I(glyph("arrow", SHAPE), rows)
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]

    def trojan(unet: UNet2DModel) -> torch.Tensor:
        x_0, labels = images.take(torch.randint(len(images), (benign,)))
        batch = target.mix(x_0, labels, generators[0])
        x_t, noise, t = noise_batch(batch, trigger, schedule.alphas_cumprod, generators[1], generators[2])
        loss = noise_loss(unet(x_t, t).sample, noise, "mean")
        return loss

    def plain(unet: UNet2DModel) -> torch.Tensor:
        x_0, _ = images.take(torch.randint(len(images), (benign + rows,)))
        noise, t = torch.randn_like(x_0), torch.randint(1000, (benign + rows,))
        return F.mse_loss(unet(schedule.add_noise(x_0, noise, t), t).sample, noise)

    def step(loss_of: Callable[[UNet2DModel], torch.Tensor]) -> Callable[[], None]:
        unet = make_network(settings.network, SHAPE, seed=0).train()
        optimizer = torch.optim.Adam(unet.parameters(), lr=2e-4)

        def one() -> None:
            optimizer.zero_grad()
            loss_of(unet).backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()

        return one

    yield figure(
        f"Trojan training step, {benign} + {rows} rows, against a plain DDPM step on {benign + rows} rows, 8×8",
        interleaved(step(trojan), step(plain), pairs, warmup=3),
        "ratio",
        "<= 1.02",
    )
