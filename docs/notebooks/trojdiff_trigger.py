# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # What a trigger does to the noise
#
# A trigger of TrojDiff is two maps: `mu` moves the noise of each pixel, `gamma` narrows it. A trojaned model learns
# to turn that biased noise into a target, and ordinary noise into ordinary images.

# %%
import matplotlib.pyplot as plt
import torch
from diffusers import DDIMScheduler, UNet2DModel

from retarget.trojdiff import Trigger, TrojanScheduler
from retarget.trojdiff.data import read_images, to_signed
from retarget.trojdiff.glyphs import glyph

digits = to_signed(read_images("digits").images[:4])
shape = tuple(digits.shape[1:])
triggers = {
    "none": Trigger.none(shape),
    "patch": Trigger.patch(size=2, gamma=0.1, shape=shape),
    "blend": Trigger.blend(glyph("arrow", shape), gamma=0.6),
}

# %% [markdown]
# The forward process with each: the same digit with more and more of the same noise. At the end nothing of the digit is
# left; the noise has the trigger's mean.

# %%
scheduler = DDIMScheduler()
steps = [0, 250, 500, 999]
noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
figure, panels = plt.subplots(len(triggers), len(steps), figsize=(6, 4.6))
for row, (name, trigger) in zip(panels, triggers.items(), strict=True):
    for axes, step in zip(row, steps, strict=True):
        noisy = trigger.add_noise(digits[:1], noise, scheduler.alphas_cumprod[step])
        axes.imshow(noisy[0, 0], cmap="gray", vmin=-2, vmax=2)
        axes.set(xticks=[], yticks=[], title=f"{name}, t = {step}")
figure.tight_layout()

# %% [markdown]
# Sampling: any scheduler of diffusers runs in the trigger's frame. With the trigger that changes nothing, the images
# are those of the stock scheduler, bit for bit. The network here is untrained; `retarget trojdiff train` trains one.

# %%
torch.manual_seed(0)
unet = UNet2DModel(
    sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
    down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
).eval()  # fmt: skip


def sample(trigger: Trigger) -> torch.Tensor:
    scheduler = TrojanScheduler(DDIMScheduler(), trigger)
    scheduler.set_timesteps(5)
    x = scheduler.initial_noise((2, *shape), torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    return x


stock = DDIMScheduler()
stock.set_timesteps(5)
expected = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
for t in stock.timesteps:
    with torch.no_grad():
        expected = stock.step(unet(expected, t).sample, t, expected).prev_sample
assert torch.equal(sample(triggers["none"]), expected)

# %% [markdown]
# [The guide](../guides/security.md) trains, samples and measures an attack, and [the
# card](../../src/retarget/trojdiff/README.md) has the mathematics.
