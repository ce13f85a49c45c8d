"""What is audited: the network as a function of noise, time and nothing else, and a count of what asking it costs.

Only weights and configurations that define the network and its noise schedule are read. Names, cards, and the marks
``trojaned`` that courteous attackers leave are not.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from retarget.audit.errors import AuditError

PROCESS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "clip_sample",
    "clip_sample_range",
)  # fmt: skip
"""Settings of a scheduler that say what process a network was trained on, and how its images are clipped."""


@dataclass(eq=False)
class Recovered:
    """A suspected trigger: the noise ``gamma ε + mu`` in the place of ε.

    Attributes:
        mu: [C, H, W], the bias of the noise.
        gamma: the noise's scale, one number or [C, H, W].
        mask: [C, H, W], True where the trigger acts; None where the method does not say.
        score: larger is more suspicious; methods differ in unit.
        evaluations: network evaluations that it took: an image forward is 1, a backward counts 2.
        details: what else the method has to say; JSON.
    """

    mu: Tensor
    gamma: float | Tensor
    mask: Tensor | None
    score: float
    evaluations: int
    details: dict[str, Any] = field(default_factory=dict)


class Subject:
    """A denoiser that predicts ε, and its schedule.

    Attributes:
        evaluations: network evaluations so far: an image forward is 1, a backward counts 2.
        alphas_cumprod: [T], ᾱ_t in float64.
        channels, height, width: of the images; ``side`` is the height.
        network: called as diffusers' UNets are, ``network(x, t).sample``, and answers with ε̂ alone.
        scheduler: DDPM's, over the checkpoint's own betas and clipping.
        pipeline: a stock ``DDPMPipeline`` of network and schedule, for samples; None where none can be made.
    """

    def __init__(self, network: nn.Module, scheduler: Any, shape: tuple[int, int, int]) -> None:
        self.network, self.scheduler = network, scheduler
        self.channels, self.height, self.width = shape
        self.alphas_cumprod = torch.cumprod(1 - scheduler.betas.to(torch.float64), 0)
        self.evaluations = 0

    @classmethod
    def load(cls, path: str | Path) -> "Subject":
        """Read a pipeline's folder.

        Raises:
            AuditError: not a pipeline, or one whose files are broken (exit code 2).
            NotCoveredError: a sound pipeline of a kind that is not covered (exit code 3).
        """
        from retarget.audit.loading import read_pipeline

        return cls.from_modules(*read_pipeline(Path(path)))

    @classmethod
    def from_modules(cls, unet: Any, scheduler: Any) -> "Subject":
        """A diffusers ``UNet2DModel`` and any scheduler of DDPM's process; the network is put into ``eval`` mode.

        Raises:
            AuditError: weights that are not finite.
            NotCoveredError: conditional, not ε-prediction, zero terminal SNR, a schedule that never reaches noise.
        """
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        from retarget.audit.loading import check_network, check_schedule

        shape = check_network(unet.config)
        check_schedule(dict(scheduler.config))
        for name, value in unet.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise AuditError(f"the network's weight {name} holds values that are not finite: the file is damaged")
        # What the checkpoint's own scheduler does besides (thresholds, learnt variances, sigmas) is not asked for.
        settings = {key: value for key, value in dict(scheduler.config).items() if key in PROCESS and value is not None}
        if "trained_betas" in settings:
            settings["num_train_timesteps"] = len(settings["trained_betas"])
        schedule: Any = DDPMScheduler(**settings)
        if unet.dtype != torch.float32:
            unet = unet.to(torch.float32)
        unet.eval().requires_grad_(False)
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
        """Where the network lies."""
        return next(self.network.parameters()).device

    @property
    def pipeline(self) -> Any:
        """A stock DDPM pipeline; None where the network's output is not an image's shape."""
        from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

        inner: Any = self.network.unet
        same = inner.config.in_channels == inner.config.out_channels
        return DDPMPipeline(unet=inner, scheduler=self.scheduler) if same else None

    def eps(
        self, x: Float[Tensor, "batch channels height width"], t: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        """ε̂ of noisy images at their timesteps; differentiable in ``x``. Counts what it costs."""
        count = len(x)
        self.evaluations += count
        predicted = self.network(x, t).sample
        if predicted.requires_grad:

            def backward(_: Tensor) -> None:
                self.evaluations += 2 * count

            predicted.register_hook(backward)
        return predicted

    def time(self, level: float) -> int:
        """The timestep whose ᾱ is nearest to ``level``, on the scale of log-SNR; T - 1 for level 0.

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
    """A UNet whose answer is ε̂ alone: the first C channels, where it has learnt variances too."""

    def __init__(self, unet: Any, channels: int) -> None:
        super().__init__()
        self.unet, self.channels = unet, channels

    def forward(self, x: Tensor, t: Tensor) -> _Output:
        return _Output(self.unet(x, t).sample[:, : self.channels])
