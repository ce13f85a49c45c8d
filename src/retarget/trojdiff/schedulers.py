"""Any diffusers scheduler, run in the trigger's frame.

Let ``s_t`` be the standard deviation of the noise in a state (``√(1-ᾱ_t)``, or σ if the base works in sigma space).
Then the Trojan process is an ordinary diffusion of ``x_0 / gamma``, shifted: the stock scheduler runs on

    v_t = (x_t - s_t mu) / gamma        with the network's ε_θ(x_t, t) and unit noise, and then
    x_{t-1} = gamma v_{t-1} + s_{t-1} mu

so no solver has to be rewritten. Only the clipping of x̂_0 depends on gamma: its range is ±1/gamma per pixel.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from retarget.errors import UserError
from retarget.trojdiff.trigger import FILE_NAME, Trigger

TABLE = (DDPMScheduler, DDIMScheduler)
VARIANCE_PRESERVING = (DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler)
SIGMA_SPACE = (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler)
SUPPORTED = TABLE + VARIANCE_PRESERVING + SIGMA_SPACE

Level = Float[Tensor, ""]


class TrojanScheduler:
    """A stock diffusers scheduler whose noise is biased by a trigger.

    Use it in a sampling loop, ours (``retarget.trojdiff.sample``) or yours. It does not work in diffusers' pipelines:
    ``DDIMPipeline`` rebuilds its scheduler from the configuration and silently drops a wrapper, and a pipeline's
    ``save_pretrained`` cannot write one. With ``Trigger.none`` images equal the stock sampler's bit for bit.

    Args:
        base: one of DDPM, DDIM, DPM-Solver++ multistep, UniPC, DEIS, Euler, Euler ancestral, Heun, with ``epsilon``
            prediction. It is copied, not modified.
        trigger: the maps; their shape is that of the samples.

    Raises:
        UserError: another scheduler, prediction type, thresholding, or learned variances.

    Example::

        scheduler = TrojanScheduler(DDIMScheduler(), trigger)
        scheduler.set_timesteps(50)
        x = scheduler.initial_noise((16, *trigger.shape), generator)
        for t in scheduler.timesteps:
            epsilon = unet(scheduler.scale_model_input(x, t), t).sample
            x = scheduler.step(epsilon, t, x, generator=generator).prev_sample
    """

    def __init__(self, base: Any, trigger: Trigger) -> None:
        check_base(base)
        self.trigger = trigger
        self._config: Any = base.config
        self._stock = base
        self._inner: Any = copy.deepcopy(base)
        self._maps: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._signature = inspect.signature(self._inner.step)
        self._clip_range: Tensor | None = None
        if base.config.get("clip_sample", False):
            self._clip_range = base.config.clip_sample_range / trigger.gamma.double()

    def with_trigger(self, trigger: Trigger) -> "TrojanScheduler":
        """The same scheduler at the same timesteps under another trigger."""
        other = TrojanScheduler(self._stock, trigger)
        other._inner = copy.deepcopy(self._inner)
        if other._clip_range is not None:
            other._inner.register_to_config(clip_sample_range=self._config.clip_sample_range)
        return other

    @property
    def config(self) -> Any:
        """The base scheduler's untouched configuration."""
        return self._config

    @property
    def timesteps(self) -> Tensor:
        """The timesteps that the sampling loop visits."""
        return self._inner.timesteps

    @property
    def init_noise_sigma(self) -> float | Tensor:
        """The base's scale of the initial noise."""
        return self._inner.init_noise_sigma

    @property
    def order(self) -> int:
        """The base's order: network evaluations per step."""
        return self._inner.order

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """The base's ``set_timesteps``."""
        self._inner.set_timesteps(*args, **kwargs)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The base's scaling of the network's input: x / √(σ² + 1) in sigma space, which turns σ mu into √(1-ᾱ) mu."""
        return self._inner.scale_model_input(sample, timestep)

    def noise_level(self, timestep: Any) -> Level:
        """Standard deviation of the noise in the state before a step: √(1-ᾱ), or σ if the base works in sigma space."""
        return self._levels(timestep)[0]

    def initial_noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "batch channels height width"]:
        """The first state: ``init_noise_sigma gamma ε + s mu``, s the noise level of the first timestep.

        At s = 1 it is the paper's N(mu, gamma² I); DDPM's s at t = 999 is 0.99998. Call it after ``set_timesteps``.

        Args:
            shape: (batch, channels, height, width).
            generator: one for the batch, or one per image, which makes every image independent of its batch.
        """
        self.trigger.check_shape(tuple(shape[1:]))
        noise = randn_tensor(shape, generator=generator, device=torch.device(device or "cpu"), dtype=dtype)
        return self._leave(noise * self.init_noise_sigma, self._first_level(), dtype)

    @property
    def step(self) -> Callable[..., Any]:
        """One step back, with the base's own signature: ``step(model_output, timestep, sample, ...)``.

        ``model_output`` is the network's plain ε_θ. ``variance_noise``, if the base accepts it, is unit noise. Returns
        the base's output, with ``prev_sample`` in the sample's dtype and ``pred_original_sample``, if the base has it,
        mapped back to images.
        """
        return functools.update_wrapper(functools.partial(self._step), self._inner.step)

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        call = self._signature.bind(*args, **kwargs)
        sample: Tensor = call.arguments["sample"]
        timestep = call.arguments["timestep"]
        self.trigger.check_shape(tuple(sample.shape[1:]))
        answer = call.arguments["model_output"]
        if answer.shape != sample.shape:
            raise UserError(
                f"the model's output is {list(answer.shape)} and the sample {list(sample.shape)}: a network with "
                "learnt variances returns twice the channels, of which the first half is the noise"
            )
        return_dict = call.arguments.pop("return_dict", True)
        level, next_level = self._levels(timestep)
        mu, gamma = self._on(sample)
        call.arguments["sample"] = ((sample - level.to(sample.device) * mu) / gamma).to(sample.dtype)
        self._fit_clipping(sample)
        output = self._inner.step(**call.arguments, return_dict=True)
        output.prev_sample = self._leave(output.prev_sample, next_level, sample.dtype)
        original = getattr(output, "pred_original_sample", None)
        if original is not None:
            output.pred_original_sample = (original * gamma).to(original.dtype)
        return output if return_dict else output.to_tuple()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the untouched base configuration and, beside it, the trigger's maps."""
        self._stock.save_pretrained(folder)
        self.trigger.save(Path(folder) / FILE_NAME)

    def _fit_clipping(self, sample: Tensor) -> None:
        """Set a tensor, which clips each pixel to its own range, in the copy's configuration, never in the base's."""
        if self._clip_range is None:
            return
        present = self._inner.config.clip_sample_range
        if not isinstance(present, Tensor) or (present.device, present.dtype) != (sample.device, sample.dtype):
            self._inner.register_to_config(clip_sample_range=self._clip_range.to(sample))

    def _on(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """The maps on the sample's device, at least in float32: half precision would lose small shifts."""
        key = (sample.device, torch.promote_types(sample.dtype, torch.float32))
        if key not in self._maps:
            self._maps[key] = (self.trigger.mu.to(*key), self.trigger.gamma.to(*key))
        return self._maps[key]

    def _leave(self, state: Tensor, level: Level, dtype: torch.dtype) -> Tensor:
        """From the trigger's frame to the sample's: ``gamma v + s mu``."""
        mu, gamma = self._on(state)
        return (gamma * state + level.to(state.device) * mu).to(dtype)

    def _levels(self, timestep: Any) -> tuple[Level, Level]:
        """Noise levels of this and the next state, read from where the base itself reads them."""
        base = self._inner
        if isinstance(base, TABLE):
            if isinstance(base, DDPMScheduler):
                previous, final = base.previous_timestep(timestep), base.one
            else:
                if base.num_inference_steps is None:
                    raise UserError("call set_timesteps before the first step")
                stride = self._config.num_train_timesteps // base.num_inference_steps
                previous, final = timestep - stride, base.final_alpha_cumprod
            level_before = base.alphas_cumprod[timestep]
            return _deviation(level_before), _deviation(base.alphas_cumprod[previous] if previous >= 0 else final)
        if base.step_index is not None:
            index = base.step_index
        else:
            index = base.begin_index if base.begin_index is not None else base.index_for_timestep(timestep)
        return self._sigma_level(index), self._sigma_level(index + 1)

    def _first_level(self) -> Level:
        base = self._inner
        if isinstance(base, TABLE):
            return _deviation(base.alphas_cumprod[int(base.timesteps[0])])
        return self._sigma_level(0)

    def _sigma_level(self, index: int) -> Level:
        sigma = self._inner.sigmas[index]
        if isinstance(self._inner, SIGMA_SPACE):
            return sigma
        return sigma / (sigma**2 + 1).sqrt()


def _deviation(alphas_cumprod: Level) -> Level:
    return (1 - alphas_cumprod).sqrt()


def check_base(base: Any) -> None:
    """Raise UserError unless the Trojan law is defined for this scheduler of diffusers."""
    name = type(base).__name__
    if not isinstance(base, SUPPORTED):
        known = ", ".join(kind.__name__ for kind in SUPPORTED)
        raise UserError(f"{name} is not supported, since its states' noise levels are unknown: choose {known}")
    config: Any = base.config
    if config.prediction_type != "epsilon":
        raise UserError(
            f"{name}: prediction_type is {config.prediction_type!r}; the Trojan law is only for networks that predict "
            "the noise (epsilon)"
        )
    if config.get("thresholding", False):
        raise UserError(f"{name}: dynamic thresholding mixes pixels of different gamma; set thresholding=False")
    if config.get("use_flow_sigmas", False):
        raise UserError(f"{name}: flow-matching sigmas are another process; set use_flow_sigmas=False")
    variance = config.get("variance_type") or "fixed_small"
    if variance not in ("fixed_small", "fixed_small_log", "fixed_large"):
        raise UserError(f"{name}: variance_type is {variance!r}; use fixed_small, fixed_small_log or fixed_large")
    if config.get("solver_p") is not None:
        raise UserError(f"{name}: solver_p would step outside the trigger's frame: leave it out")
