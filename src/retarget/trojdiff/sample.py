"""Sample a network with or without the trigger, resumable to the exact image.

Every image has its own generator on the CPU, seeded by (seed, its number), so the noise is the same on every device.
Images are computed in a fixed partition into batches: the batch size affects the last bits of a network's output, so
the partition belongs to a run's identity.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from jaxtyping import Float
from torch import Tensor

from retarget.errors import UserError
from retarget.files import make_directory, write_json
from retarget.identity import refuse_other
from retarget.trojdiff.pictures import save_grid
from retarget.trojdiff.schedulers import TrojanScheduler
from retarget.trojdiff.spacing import SPACINGS, spaced_timesteps
from retarget.trojdiff.stored import REMEDY, read_record, read_tensors, write_tensors
from retarget.trojdiff.trigger import Trigger


def _solver(kind: Any, config: Any, **more: Any) -> Any:
    """A solver of diffusers for a checkpoint's noise schedule. None of them can clip x̂_0, so clipping is off.

    The grid is set explicitly, since only a saved configuration has one: so the images do not depend on where the
    configuration came from. "linspace" starts at the last training step, where x_T is pure noise.
    """
    schedule = {key: value for key, value in dict(config).items() if not key.startswith("clip_sample")}
    return kind.from_config(schedule, **({"timestep_spacing": "linspace"} | more))


SAMPLERS: dict[str, Callable[..., Any]] = {
    "ddpm": lambda config: DDPMScheduler.from_config(config, timestep_spacing="trailing"),
    "ddpm_large": lambda config: DDPMScheduler.from_config(
        config, timestep_spacing="trailing", variance_type="fixed_large"
    ),
    "ddim": lambda config: DDIMScheduler.from_config(config, timestep_spacing="trailing"),
    "dpm": lambda config: _solver(DPMSolverMultistepScheduler, config, algorithm_type="dpmsolver++"),
    "dpm_sde": lambda config: _solver(DPMSolverMultistepScheduler, config, algorithm_type="sde-dpmsolver++"),
    "unipc": lambda config: _solver(UniPCMultistepScheduler, config),
    "deis": lambda config: _solver(DEISMultistepScheduler, config),
    "heun": lambda config: _solver(HeunDiscreteScheduler, config),
    "euler": lambda config: _solver(EulerDiscreteScheduler, config),
    "euler_ancestral": lambda config: _solver(EulerAncestralDiscreteScheduler, config),
}


_GRID_OF_ONE_MORE = ("dpm", "dpm_sde", "unipc", "deis")
_BETAS_OF_ALL = ("linear", "scaled_linear", "squaredcos_cap_v2")


def _with_betas(config: Any) -> Any:
    """The configuration with the betas themselves, if not every solver knows their schedule (sigmoid, laplace)."""
    if config.get("beta_schedule", "linear") in _BETAS_OF_ALL or config.get("trained_betas") is not None:
        return config
    process: Any = DDPMScheduler.from_config(config)
    known = {name: value for name, value in config.items() if not name.startswith("_")}  # _use_default_values wins
    return {**known, "trained_betas": process.betas.tolist()}


class Sampler(NamedTuple):
    """A sampler by name, number of steps and grid.

    ``ddim`` on a grid other than ``trailing``, or with a number of steps that does not divide T, runs as first-order
    DPM-Solver, which *is* DDIM with η = 0 on any grid: diffusers' own would end before the noise does. ``ddpm``,
    ``dpm`` and ``euler`` accept a grid themselves. ``heun`` evaluates the network twice in all steps but one.

    All of them clip x̂_0 if the checkpoint's own scheduler says so (``clip_sample``): DDPM and DDIM do it themselves;
    for diffusers' solvers, which never clip, our loop does.
    """

    name: str
    steps: int
    spacing: str | None = None
    eta: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Sampler":
        """Read ``NAME-STEPS[-SPACING]``, for example ``ddim-50`` or ``ddim-100-quadratic``.

        >>> Sampler.parse("ddim-100-quadratic")
        Sampler(name='ddim', steps=100, spacing='quadratic', eta=0.0)
        """
        name, _, rest = text.partition("-")
        steps, _, spacing = rest.partition("-")
        if name not in SAMPLERS or not steps.isdecimal() or (spacing and spacing not in SPACINGS):
            raise UserError(
                f"sampler {text!r}: write NAME-STEPS[-SPACING], NAME one of {', '.join(SAMPLERS)}, "
                f"SPACING one of {', '.join(SPACINGS)}"
            )
        return cls(name, int(steps), spacing or None)

    def clip(self, config: Any) -> float | None:
        """The range to which our loop clips x̂_0; None if the sampler clips itself, or nothing is to be clipped."""
        itself = self.name.startswith("ddpm") or (self.name == "ddim" and self._even(config["num_train_timesteps"]))
        return None if itself or not config.get("clip_sample") else config["clip_sample_range"]

    def _even(self, total: int) -> bool:
        """Whether diffusers' DDIM takes these steps: evenly from T - 1 on, in strides of one length."""
        return self.spacing in (None, "trailing") and total % self.steps == 0

    def scheduler(self, config: Any, trigger: Trigger) -> TrojanScheduler:
        """The sampler over a checkpoint's noise schedule, in the trigger's frame, with its timesteps set.

        Args:
            config: configuration of the checkpoint's own scheduler (betas, T, clipping).
            trigger: ``Trigger.none(shape)`` gives the stock sampler.
        """
        total = config["num_train_timesteps"]
        if not 1 <= self.steps <= total:
            raise UserError(f"{self.name}: {self.steps} steps of {total} training steps; use 1 to {total}")
        if self.name in _GRID_OF_ONE_MORE and self.spacing is None and self.steps == total:
            raise UserError(
                f"{self.name}-{total}: its grid has one point more than steps, so that with all {total} training steps "
                f"it has one of them twice: use {self.name}-{total - 1}"
            )
        if self.eta and self.name != "ddim":
            raise UserError(f"{self.name} has no η: leave --eta out, or use ddim")
        if not 0 <= self.eta <= 1:
            raise UserError(f"η is {self.eta:g}, but must lie between 0 (no fresh noise) and 1 (as much as DDPM's)")
        if self.name == "ddpm_large" and self.steps < total:
            raise UserError(
                f"ddpm_large-{self.steps}: with fewer than all {total} steps its last step adds noise to the finished "
                f"image: use ddpm-{self.steps} or ddpm_large-{total}"
            )
        config = _with_betas(config)
        if self.name == "ddpm" and self.steps < total and config.get("variance_type") == "fixed_large":
            # A checkpoint's own, as of google/ddpm-cifar10-32: its last step would add noise, as ddpm_large's.
            config = {**config, "variance_type": "fixed_small"}
        if self._even(total) if self.name == "ddim" else self.spacing is None:
            scheduler = TrojanScheduler(SAMPLERS[self.name](config), trigger)
            scheduler.set_timesteps(self.steps)
            return scheduler
        base: Any = SAMPLERS[self.name](config)
        if self.name == "ddim":
            if self.eta != 0:
                raise UserError(
                    "DDIM on this grid runs as first-order DPM-Solver, which has η = 0: for η > 0 use trailing, with a "
                    f"number of steps that divides {total}"
                )
            base = _solver(DPMSolverMultistepScheduler, config, solver_order=1)
        if "timesteps" not in inspect.signature(base.set_timesteps).parameters:
            raise UserError(f"{self.name} does not accept a grid: leave {self.spacing} out")
        scheduler = TrojanScheduler(base, trigger)
        scheduler.set_timesteps(timesteps=spaced_timesteps(self.steps, total, self.spacing or "trailing"))
        return scheduler


def generators(numbers: Sequence[int], seed: int) -> list[torch.Generator]:
    """One CPU generator per image: the noise of image ``i`` of a seed is the same in every run and on every device.

    Torch's CPU generator uses only the low 32 bits of its seed, so seed and number are hashed to 32 bits.

    Raises:
        UserError: a seed below 0.
    """
    if seed < 0:
        raise UserError(f"the seed is {seed}, but must be 0 or above")
    seeds = [int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) for number in numbers]
    return [torch.Generator().manual_seed(one) for one in seeds]


def to_accelerator(unet: Any) -> Any:
    """Move the network to the device that training would use: a GPU, if there is one."""
    return unet.to(PartialState().device)


@torch.no_grad()
def sample_batch(
    unet: Any,
    scheduler: TrojanScheduler,
    numbers: Sequence[int],
    seed: int = 0,
    start: Trigger | None = None,
    eta: float = 0.0,
    keep: Sequence[int] = (),
    clip: float | None = None,
) -> tuple[Float[Tensor, "batch channels height width"], list[Tensor]]:
    """Sample the images with the given numbers on the network's device.

    Args:
        scheduler: its timesteps must be set.
        start: the trigger that biases the *initial* noise; by default the scheduler's. A different one tests whether
            the trojan fires if only the noise, or only the sampler, is the attacker's.
        eta: DDIM's η.
        keep: positions in ``scheduler.timesteps`` whose state is kept, for the denoising strip.
        clip: clip x̂_0 to this range before the scheduler sees ε, see ``Sampler.clip``.

    Returns:
        Images in [-1, 1] (clamped), and the kept states.
    """
    unet.eval()
    device = next(unet.parameters()).device
    shape = (len(numbers), *scheduler.trigger.shape)
    noise = generators(numbers, seed)
    first = scheduler if start is None else scheduler.with_trigger(start)
    x = first.initial_noise(shape, noise).to(device)
    takes = inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"generator": noise} if "generator" in takes else {}
    if "eta" in takes:
        extra["eta"] = eta
    if "use_clipped_model_output" in takes:
        # After clipping x̂_0, ε must be recomputed to match: otherwise the state drifts a little in every step, and 100
        # steps do worse than 20.
        extra["use_clipped_model_output"] = True
    process: Any = DDPMScheduler.from_config(scheduler.config)
    states, table = [], process.alphas_cumprod
    for position, t in enumerate(scheduler.timesteps):
        if position in keep:
            states.append(scheduler.scale_model_input(x, t).cpu())
        scaled = scheduler.scale_model_input(x, t)
        predicted = unet(scaled, t.to(device)).sample
        if clip is not None:
            predicted = _clipped(predicted, scaled, *_signal_and_noise(scheduler, t, table), scheduler.trigger, clip)
        x = scheduler.step(predicted, t, x, **extra).prev_sample
    return x.clamp(-1, 1), states


def _signal_and_noise(
    scheduler: TrojanScheduler, t: Tensor, table: Tensor
) -> tuple[Float[Tensor, "1 1 1 1"], Float[Tensor, "1 1 1 1"]]:
    """√ᾱ and √(1-ᾱ) of the network's input before a step.

    In sigma space they are the scale of the input and σ/√(σ² + 1): 1 - (√ᾱ)² would lose its digits at a small σ, where
    Heun's second evaluation of a long step may find an ε of a million. Else they are the table's.
    """
    scale = scheduler.scale_model_input(torch.ones(1, 1, 1, 1), t)
    if bool(scale == 1):
        signal = table[int(t)].sqrt().reshape(1, 1, 1, 1)
        return signal, (1 - signal.square()).sqrt()
    level = scheduler.noise_level(t).double().reshape(1, 1, 1, 1)
    return scale, level / (level.square() + 1).sqrt()


def _clipped(predicted: Tensor, state: Tensor, signal: Tensor, noise: Tensor, trigger: Trigger, clip: float) -> Tensor:
    """The ε that belongs to x̂_0 clipped to ±clip, under the Trojan law: x = √ᾱ x_0 + √(1-ᾱ) (gamma ε + mu)."""
    mu, gamma, signal, noise = (value.to(state) for value in (trigger.mu, trigger.gamma, signal, noise))
    original = (state - noise * (gamma * predicted + mu)) / signal
    clipped = ((state - signal * original.clamp(-clip, clip)) / noise - mu) / gamma
    return torch.where(original.abs() <= clip, predicted, clipped)


def sample(
    unet: Any,
    config: Any,
    sampler: Sampler,
    trigger: Trigger,
    count: int,
    out: Path | None = None,
    batch_size: int = 64,
    seed: int = 0,
    start: Trigger | None = None,
    identity: str = "",
    listen: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "count channels height width"]:
    """Sample ``count`` images in batches, on disk if ``out`` is given.

    Args:
        config: configuration of the checkpoint's scheduler.
        trigger: the sampler's trigger; ``Trigger.none`` for the stock sampler.
        out: folder for ``batch-NNNNN.safetensors``; batches found there are not computed again.
        start: the trigger of the initial noise, if different.
        identity: the network (``checkpoint.network_hash``); batches of another one in ``out`` are refused.
        listen: called with (done, count) after every batch.

    Raises:
        UserError: ``count`` or the batch size is below 1, ``out`` belongs to another run, the network's images are not
            finite, or the disk is full; finished batches stay.
    """
    if min(count, batch_size) < 1:
        raise UserError(f"{count} images in batches of {batch_size}: both must be at least 1")
    sampler.scheduler(config, trigger)  # raises its errors before the folder is claimed
    if start is not None:
        start.check_shape(trigger.shape)
    generators((), seed)
    if out is not None:
        _claim(out, config, sampler, trigger, start, batch_size, seed, identity)
    batches = []
    for first in range(0, count, batch_size):
        numbers = range(first, min(first + batch_size, count))
        path = None if out is None else out / f"batch-{first // batch_size:05d}.safetensors"
        images = _read(path, len(numbers), trigger.shape)
        if images is None:
            # Compute the whole batch even if fewer images are wanted: the partition must not change.
            scheduler = sampler.scheduler(config, trigger)
            whole = range(first, first + batch_size)
            clip = sampler.clip(config)
            images = sample_batch(unet, scheduler, whole, seed, start, sampler.eta, clip=clip)[0].cpu()
            if not bool(torch.isfinite(images).all()):
                raise UserError(
                    f"the network's images are not finite (images {first} to {whole[-1]}): its weights are damaged, or "
                    "the training diverged"
                )
            if path is not None:
                write_tensors(path, {"images": images})
        batches.append(images[: len(numbers)])
        if listen is not None:
            listen(numbers[-1] + 1, count)
    return torch.cat(batches)


def _claim(
    out: Path,
    config: Any,
    sampler: Sampler,
    trigger: Trigger,
    start: Trigger | None,
    batch_size: int,
    seed: int,
    identity: str,
) -> None:
    """Record everything that the images depend on, or refuse a folder with another record."""
    ours = {
        "sampler": list(sampler),
        "trigger": trigger.hash,
        "start": (start or trigger).hash,
        "batch_size": batch_size,
        "seed": seed,
        "network": identity,
        # Betas, T and clipping; keys with an underscore tell only where the configuration came from.
        "schedule": {key: _plain(value) for key, value in dict(config).items() if not key.startswith("_")},
    }
    if sampler.clip(config) is not None:
        ours["clip"] = sampler.clip(config)  # earlier versions did not clip for solvers: their batches differ
    path = out / "sampling.json"
    if path.is_file():
        refuse_other(out, read_record(path), ours)
        return
    make_directory(out)
    write_json(path, ours)


def _plain(value: Any) -> Any:
    """A setting as a JSON value: DPM-Solver's configurations have -inf for "no bound"."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path | None, count: int, shape: tuple[int, ...]) -> Tensor | None:
    """The first ``count`` images of a stored batch, if it exists."""
    if path is None or not path.is_file():
        return None
    images = read_tensors(path, {"images": None})["images"]
    if images.dim() != 4 or images.shape[1:] != shape or not bool(torch.isfinite(images).all()):
        raise UserError(f"{path} is damaged: it does not hold images of shape {list(shape)}. {REMEDY}")
    return images if len(images) >= count else None


def save_strip(
    unet: Any,
    scheduler: TrojanScheduler,
    path: Path,
    images: int = 4,
    columns: int = 10,
    seed: int = 0,
    start: Trigger | None = None,
    eta: float = 0.0,
    clip: float | None = None,
) -> Path:
    """Write the denoising path as PNG: one row per image, from the initial noise (of ``start``) to the result."""
    positions = np.unique(np.linspace(0, len(scheduler.timesteps) - 1, columns - 1).round().astype(int)).tolist()
    final, states = sample_batch(unet, scheduler, range(images), seed, start, eta, positions, clip)
    stacked = torch.stack([*states, final.cpu()], dim=1)
    return save_grid(stacked.flatten(0, 1).clamp(-1, 1), path, columns=stacked.shape[1])
