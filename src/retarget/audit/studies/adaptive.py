"""Attackers who know the audit and train against it: for its study alone.

No command trains such a network, none above 32×32 is trained, and no weights are ever written: they live in memory
until the audit has looked at them.
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
"""Side above which nothing is trained against the audit."""
NARROW = 0.95
"""γ of an attack that changes the noise as little as it can."""
LATE = 0.7
"""Trojan rows only below this share of T: what is asked at T sees nothing."""
PARTIAL = 0.5
"""Share of the bias that a Trojan row is asked to undo."""
STEP, WEIGHT = 0.5, 1.0
"""Size of the finite difference of the Jacobian's penalty, and its weight."""


def attacks_of(member: Member, kind: Adaptive) -> list[Attack]:
    """What an adaptive attacker puts into a network: the member's attack, changed, or two at once."""
    attack = member.attack
    assert attack is not None
    if kind == "narrow":
        return [attack.model_copy(update={"gamma": NARROW})]
    if kind == "several":
        other = "patch" if attack.trigger == "blend" else "blend"
        return [attack, attack.model_copy(update={"trigger": other})]
    return [attack]


def train_adaptive(member: Member, kind: Adaptive, base: Any, scheduler: Any, root: str = "data") -> Any:
    """A copy of a base network, trained by an attacker who knows the audit; on one thread of the CPU.

    Args:
        base: a clean ``UNet2DModel`` of the member's images.

    Returns:
        The network, which is to be judged in memory and forgotten.

    Raises:
        UserError: images larger than 32×32.
    """
    inside = images_of(member.images, root)
    if max(inside.shape[1:]) > LARGEST:
        raise UserError(f"no network above {LARGEST}×{LARGEST} is trained against the audit; side {inside.shape[1]}")
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
    """(x_t, what the network is asked for, t) of a mixed batch; several triggers take the Trojan rows in turn."""
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
    """How far the Jacobian along the trigger, at plain noise near T, is from a clean network's, which is I.

    ``E‖ε_θ(x + h v) - ε_θ(x) - h v‖² / h²``, v the unit vector of the attacker's own bias: the screen and the paired
    undo look along it.
    """
    steps = len(levels)
    x = torch.randn((count, *trigger.mu.shape), generator=generator)
    t = torch.randint(round(LATE * steps), steps, (count,), generator=generator)
    along = STEP * trigger.mu / trigger.mu.norm().clamp_min(1e-6)
    change = unet(x + along, t).sample - unet(x, t).sample
    return WEIGHT * ((change - along) / STEP).square().flatten(1).sum(1).mean()
