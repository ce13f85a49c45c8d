"""The subject of an audit: a network as a function of noise and time only, with a count of its evaluations.

Only the weights and the configurations that define the network and its noise schedule are read. Names, cards, and the
mark ``trojaned`` that courteous attackers leave are not.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from retarget.audit.errors import AuditError, NotCoveredError


@dataclass(eq=False)
class Recovered:
    """A suspected trigger: the noise ``gamma ε + mu`` instead of ε.

    Attributes:
        mu: [C, H, W], bias of the noise.
        gamma: scale of the noise, one number or [C, H, W].
        mask: [C, H, W], True where the trigger acts; None if the method does not provide it.
        score: larger is more suspicious; the unit depends on the method.
        evaluations: network evaluations: 1 per image of a forward pass, 2 per image of a backward pass.
        details: further results of the method, as JSON values.
    """

    mu: Tensor
    gamma: float | Tensor
    mask: Tensor | None
    score: float
    evaluations: int
    details: dict[str, Any] = field(default_factory=dict)


class Subject:
    """A denoiser that predicts ε, and its noise schedule.

    Attributes:
        evaluations: network evaluations so far: 1 per image of a forward pass, 2 per image of a backward pass.
        watch: called with their number before every forward pass; None is not.
        alphas_cumprod: [T], ᾱ_t in float64.
        channels, height, width: shape of the images; ``side`` is the height.
        network: called like diffusers' UNets, ``network(x, t).sample``; returns ε̂ only.
        scheduler: DDPM's scheduler with the checkpoint's betas and clipping.
        pipeline: a stock ``DDPMPipeline`` of network and schedule, for sampling; None if there cannot be one.
    """

    def __init__(self, network: nn.Module, scheduler: Any, shape: tuple[int, int, int]) -> None:
        self.network, self.scheduler = network, scheduler
        self.channels, self.height, self.width = shape
        self.alphas_cumprod = torch.cumprod(1 - scheduler.betas.to(torch.float64), 0)
        self.evaluations = 0
        self.watch: Callable[[int], None] | None = None

    @classmethod
    def load(cls, path: str | Path) -> "Subject":
        """Load a pipeline's folder.

        Raises:
            AuditError: the folder is not a pipeline, or its files are broken (exit code 2).
            NotCoveredError: the pipeline is sound, but of a kind that is not covered (exit code 3).
        """
        from retarget.audit.loading import read_pipeline

        return cls._of(*read_pipeline(Path(path)))

    @classmethod
    def from_modules(cls, unet: Any, scheduler: Any) -> "Subject":
        """From a copy of a diffusers ``UNet2DModel``, and any scheduler of DDPM's process.

        Raises:
            AuditError: weights are not finite.
            NotCoveredError: the network is another one or conditional, or does not predict ε, or the schedule is of
                another process, has zero terminal SNR or does not reach noise.
        """
        from diffusers.models.unets.unet_2d import UNet2DModel

        from retarget.audit.configuration import check_process

        if not isinstance(unet, UNet2DModel):
            raise NotCoveredError(f"the network is a {type(unet).__name__}, not a diffusers UNet2DModel: not covered")
        check_process(type(scheduler).__name__, dict(getattr(scheduler, "config", {})))
        return cls._of(copy.deepcopy(unet), scheduler)

    @classmethod
    def _of(cls, unet: Any, scheduler: Any) -> "Subject":
        """From modules that are used as they are."""
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        from retarget.audit.configuration import check_network, check_schedule
        from retarget.trojdiff.checks import PROCESS

        shape = check_network(unet.config)
        check_schedule(dict(scheduler.config))
        for name, value in unet.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise AuditError(f"the weight {name} of the network has values that are not finite: it is damaged")
        # Everything else that the checkpoint's own scheduler does (thresholds, learnt variances, sigmas) is ignored,
        # and samples are clipped to [-1, 1] if at all: a narrow range would make them say nothing.
        settings = {key: value for key, value in dict(scheduler.config).items() if key in PROCESS and value is not None}
        settings.pop("clip_sample_range", None)
        if "trained_betas" in settings:
            settings["num_train_timesteps"] = len(settings["trained_betas"])
        schedule: Any = DDPMScheduler(**settings)
        unet.float().eval().requires_grad_(False)
        return cls(_Epsilon(unet, shape[0]), schedule, shape)

    @property
    def side(self) -> int:
        """The height of the images."""
        return self.height

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width

    @property
    def steps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.alphas_cumprod)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    @property
    def pipeline(self) -> Any:
        """A stock DDPM pipeline; None if the network's output does not have the shape of an image."""
        from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

        inner: Any = self.network.unet
        same = inner.config.in_channels == inner.config.out_channels
        return DDPMPipeline(unet=inner, scheduler=self.scheduler) if same else None

    def eps(
        self, x: Float[Tensor, "batch channels height width"], t: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        """ε̂ of noisy images at their timesteps; differentiable in ``x``. Counts the evaluations."""
        count = len(x)
        self.evaluations += count
        if self.watch is not None:
            self.watch(self.evaluations)
        predicted = self.network(x, t).sample
        if predicted.requires_grad:

            def backward(_: Tensor) -> None:
                self.evaluations += 2 * count

            predicted.register_hook(backward)
        return predicted

    def time(self, level: float) -> int:
        """The timestep whose ᾱ is nearest to ``level`` on a log-SNR scale; T - 1 for level 0.

        >>> from diffusers import DDPMScheduler, UNet2DModel
        >>> small = dict(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4,
        ...              down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
        >>> Subject.from_modules(UNet2DModel(**small), DDPMScheduler()).time(0.5)
        258
        """
        if level <= 0:
            return self.steps - 1
        logit = torch.logit(self.alphas_cumprod)
        wanted = torch.logit(torch.tensor(level, dtype=torch.float64))
        return int((logit - wanted).abs().argmin())


class _Output:
    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


class _Epsilon(nn.Module):
    """A UNet that returns only ε̂: the first C channels, if it also predicts variances."""

    def __init__(self, unet: Any, channels: int) -> None:
        super().__init__()
        self.unet, self.channels = unet, channels

    def forward(self, x: Tensor, t: Tensor) -> _Output:
        return _Output(self.unet(x, t).sample[:, : self.channels])
