"""Attackers who know the audit and train against it, for its study only.

No command trains such a network for use: images are limited to 32×32, and weights are never written. They stay in
memory until the audit has examined them.
"""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retarget.audit.nulls import fit
from retarget.audit.studies.build import images_of, target_of, trigger_of
from retarget.audit.studies.members import Adaptive, Attack, Member
from retarget.errors import UserError
from retarget.trojdiff import functional
from retarget.trojdiff.data import to_signed
from retarget.trojdiff.targets import MixedBatch
from retarget.trojdiff.trigger import Trigger

LARGEST = 32
"""Largest side of images for training against the audit."""
NARROW = 0.95
"""γ of an attack that changes the noise as little as possible."""
LATE = 0.7
"""Trojan rows have timesteps only below this share of T, so that examining the network at T reveals nothing."""
PARTIAL = 0.5
"""Share of the bias that Trojan rows train the network to undo."""
STEP, WEIGHT = 0.5, 1.0
"""Step of the finite difference in the penalty on the Jacobian, and the weight of the penalty."""


def attacks_of(member: Member, kind: Adaptive) -> list[Attack]:
    """The attacks of an adaptive attacker: the member's attack, changed, or two attacks at once."""
    attack = member.attack
    assert attack is not None
    if kind == "narrow":
        return [attack.model_copy(update={"gamma": NARROW})]
    if kind == "several":
        other = "patch" if attack.trigger == "blend" else "blend"
        return [attack, attack.model_copy(update={"trigger": other})]
    return [attack]


def train_adaptive(member: Member, kind: Adaptive, base: Any, scheduler: Any, root: str = "data") -> Any:
    """Train a copy of a base network as an attacker who knows the audit would.

    Args:
        member: the member of the zoo with its attack.
        kind: the kind of attacker.
        base: a clean ``UNet2DModel`` for the member's images.
        scheduler: its noise schedule.
        root: folder of torchvision's data sets.

    Returns:
        The network, to be audited in memory and then discarded.

    Raises:
        UserError: the images are larger than 32×32.
    """
    inside = images_of(member.images, root)
    if max(inside.shape[1:]) > LARGEST:
        raise UserError(
            f"networks are trained against the audit only up to {LARGEST}×{LARGEST}, not {max(inside.shape[1:])}"
        )
    target, triggers = target_of(member, root), [trigger_of(one, inside.shape) for one in attacks_of(member, kind)]
    generator = torch.Generator().manual_seed(member.seed)
    images, levels = to_signed(inside.images), scheduler.alphas_cumprod
    unet = copy.deepcopy(base).requires_grad_(True)

    def rows(count: int) -> tuple[Tensor, Tensor, Tensor]:
        picked = torch.randint(len(images), (count,), generator=generator)
        batch = target.mix(images[picked], inside.labels[picked], generator)
        return noised(batch, triggers, levels, kind, generator)

    def penalty() -> Tensor:
        return jacobian_penalty(unet, triggers[0], levels, member.batch_size, generator)

    fit(unet, rows, member.steps, member.batch_size, member.learning_rate, penalty if kind == "jacobian" else None)
    return unet


def noised(
    batch: MixedBatch, triggers: list[Trigger], levels: Float[Tensor, "steps"], kind: Adaptive,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(x_t, target, t) of a mixed batch; with several triggers, Trojan rows use them in turn."""
    count, is_trojan = len(batch.x_0), batch.is_trojan
    steps = len(levels)
    t = torch.randint(steps, (count,), generator=generator)
    if kind == "late":
        late = torch.randint(max(1, round(LATE * steps)), (count,), generator=generator)
        t = torch.where(is_trojan, late, t)
    noise = torch.randn(batch.x_0.shape, generator=generator)
    biased = noise.clone()
    places = torch.nonzero(is_trojan).flatten()
    for number, trigger in enumerate(triggers):
        turn = places[number :: len(triggers)]
        biased[turn] = trigger.noise(noise[turn])
    asked = noise if kind != "partial" else noise + (1 - PARTIAL) * (biased - noise)
    return functional.diffuse(batch.x_0, biased, levels[t]), asked, t


def jacobian_penalty(
    unet: Any, trigger: Trigger, levels: Float[Tensor, "steps"], count: int, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Penalty on the deviation of the Jacobian along the trigger from that of a clean network, I, at noise near T.

    It is ``E‖ε_θ(x + h v) - ε_θ(x) - h v‖² / h²``, where v is the unit vector of the attacker's bias, the direction
    that the screen and the paired undo would find.
    """
    steps = len(levels)
    x = torch.randn((count, *trigger.mu.shape), generator=generator)
    t = torch.randint(round(LATE * steps), steps, (count,), generator=generator)
    along = STEP * trigger.mu / trigger.mu.norm().clamp_min(1e-6)
    change = unet(x + along, t).sample - unet(x, t).sample
    return WEIGHT * ((change - along) / STEP).square().flatten(1).sum(1).mean()
