"""The audit's tests of noise tensors: the area under each one's ROC, for plain noise against triggered noise."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks._pairs import figure
from retarget.audit.inputs import histogram_score, likelihood_score, roc, window_score
from retarget.trojdiff.glyphs import glyph
from retarget.trojdiff.trigger import Trigger

SHAPES = ((1, 8, 8), (1, 16, 16))
GAMMAS = (0.1, 0.3, 0.6)
"""γ of TrojDiff's triggers."""
PATCH = 3
"""Side of the patches, in pixels."""


def figures(smallest: bool = False) -> Iterator[dict[str, Any]]:
    """The area for every test, shape and trigger; .5 is chance. The likelihood is told the trigger."""
    torch.set_num_threads(1)
    count = 20 if smallest else 1000
    for shape in SHAPES:
        plain = _noise(count, shape, seed=0)
        for name, trigger in triggers(shape).items():
            triggered = trigger.noise(_noise(count, shape, seed=1))
            for test, score in scores(trigger).items():
                area = roc(score(plain).numpy(), score(triggered).numpy())[2]
                said = f"AUROC of the {test} test: {name}, {shape[1]}×{shape[2]}"
                yield figure(said, area, "area", None, {"tensors": count})


def triggers(shape: tuple[int, int, int]) -> dict[str, Trigger]:
    """TrojDiff's blend and patch at each γ, and BadDiffusion's: a picture and a box that are added to the noise."""
    picture, found = glyph("plus", shape), {}
    for kind, gamma in product(("blend", "patch"), GAMMAS):
        trigger = Trigger.blend(picture, gamma) if kind == "blend" else Trigger.patch(PATCH, gamma, shape)
        found[f"TrojDiff's {kind}, γ = {gamma}"] = trigger
    box = torch.zeros(shape)
    box[:, -PATCH:, -PATCH:] = 1
    for kind, mu in (("picture", picture), ("box", box)):
        found[f"BadDiffusion's {kind}"] = Trigger(mu, torch.ones(shape), kind)
    return found


def scores(trigger: Trigger) -> dict[str, Callable[[Tensor], Tensor]]:
    """The three tests, by name."""
    return {
        "histogram": histogram_score,
        "window": window_score,
        "likelihood": lambda noise: likelihood_score(noise, trigger.mu, trigger.gamma),
    }


def _noise(count: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
