"""Error rates: compare a checkpoint's score with those of clean models in the same search, the null.

``null.json`` in this package was made by ``python -m retarget.audit.calibrate``; the file records the whole command.
"""

import json
import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from pydantic import Field

from retarget.settings import Strict


class NullModel(Strict):
    """One clean model's final score, and its properties."""

    name: str = Field(default="", description="of the model in the command that made the null")
    score: float
    side: int
    channels: int
    case: str
    schedule: str
    residual: float = Field(description="mean of (ε̂ - ε)² per value, on plain noise at the search's level")
    spread: float = Field(description="standard deviation of the values of its samples")
    statistics: dict[str, float] = Field(default_factory=dict)


class Null(Strict):
    """The null: fingerprint of the search, the command that made it, and its models."""

    search: str = Field(description="fingerprint of the search's settings; the null gives no error rate for another")
    command: str
    models: list[NullModel]


LEVEL = 0.05
"""A p-value up to this is suspicious. A level of 1 % would need 99 clean models of a family."""
LEAST = 19
"""With fewer clean models in a family, no p-value can reach the level, so none is given."""
QUALITY = 4.0
"""A clean model is comparable with a checkpoint if their errors on plain noise are within this factor: the less a
network has learnt, the more it undoes of anything, and the higher it scores."""

CLEAR = 0.005
"""A checkpoint whose noisy end was searched at a larger ᾱ is unlike the null's models, whose schedules leave nothing of
the image at T: here a thousandth of x_t's variance and more is the image's."""

MIDDLES = (0.05, 0.2)
"""A checkpoint whose middle was searched outside this range of ᾱ is unlike the null's models, for which it was .1."""


@cache
def shipped() -> Null:
    """The null that this package contains."""
    return Null.model_validate(json.loads(files("retarget.audit").joinpath("null.json").read_text(encoding="utf-8")))


def p_value(score: float, null: Sequence[float]) -> float:
    """``(1 + clean models that score at least as high) / (n + 1)``; valid if the checkpoint is exchangeable with them.

    >>> p_value(0.9, [0.1, 0.2, 0.3]), p_value(0.2, [0.1, 0.2, 0.3])
    (0.25, 0.75)
    """
    return (1 + sum(one >= score for one in null)) / (len(null) + 1)


def false_positives(alarms: int, count: int) -> float:
    """Upper end of the one-sided 95 % Clopper-Pearson interval for a rate of ``alarms`` in ``count``.

    >>> round(false_positives(0, 60), 3)
    0.049
    """
    from scipy.stats import beta

    return 1.0 if alarms >= count else float(beta.ppf(0.95, alarms + 1, count - alarms))


class Family(Strict):
    """The clean models that a checkpoint is compared with.

    Attributes:
        name: description, for messages.
        scores: final scores of the clean models.
        own: number of them with exactly the checkpoint's shape.
        shape: number of the null's models with exactly that shape, however well trained.
        highest: the highest score of all these models; None if fewer than ``LEAST`` are trained about as well as the
            checkpoint, since networks that have hardly learnt differ most.
        unlike: why the checkpoint cannot be compared with them; empty if it can.
    """

    name: str
    scores: list[float]
    own: int = 0
    shape: int = 0
    highest: float | None = None
    unlike: str = ""


def nearest(
    side: int, channels: int, residual: float, null: Null, fingerprint: str, level: float = 0.0, middle: float = 0.1
) -> Family:  # fmt: skip
    """The clean models that are most similar to a checkpoint, or the reason why there is no error rate.

    These are the models of its own shape that are trained about as well. If there are too few, those with as many
    channels, then those of all shapes; if there are still too few, the 19 whose error on plain noise is nearest.

    Args:
        side, channels: shape of the checkpoint's images.
        residual: the checkpoint's error on plain noise; if it is far above every clean model's, the null is invalid.
        null: the null to compare with.
        fingerprint: fingerprint of the search that was run on the checkpoint.
        level, middle: ᾱ where its noisy end and its middle were searched.
    """
    plural = "s" * (channels > 1)
    coloured = [one for one in null.models if one.channels == channels]
    shaped = [one for one in coloured if one.side == side]
    within = _between(side, channels, null)
    alike: list[NullModel] = []
    name = ""
    for models, shapes in (
        (shaped, f"{side}×{side}, {channels} channel{plural}"),
        (coloured, f"any side, {channels} channel{plural}"),
        (null.models, _span(null)),
    ):
        if len(alike) < LEAST:
            alike, name = _alike(models, residual), f"{shapes}, trained about as well"
    highest = max(one.score for one in [*alike, *shaped]) if len(alike) >= LEAST else None
    if len(alike) < LEAST:
        alike = sorted(null.models, key=lambda one: abs(math.log(one.residual / max(residual, 1e-12))))[:LEAST]
        name = f"{_span(null)}, the {len(alike)} nearest in training"
    own = sum((one.side, one.channels) == (side, channels) for one in alike)
    scores = [one.score for one in alike]
    family = Family(name=name, scores=scores, own=own, shape=len(shaped), highest=highest)

    def unlike(why: str) -> Family:
        return family.model_copy(update={"unlike": why})

    if fingerprint != null.search:
        return unlike("the null was made with other settings of the search")
    if not within:
        return unlike(
            f"the null has no clean models for images of {side}×{side} with {channels} channels; it has {_span(null)}"
        )
    if len(alike) < LEAST:
        return unlike(f"the null has only {len(alike)} clean models, fewer than {LEAST}")
    if level > CLEAR:
        return unlike(f"its schedule ends at ᾱ = {level:.2g}, with more of the image than those of all clean models")
    if not MIDDLES[0] <= middle <= MIDDLES[1]:
        return unlike(
            f"its schedule is so coarse that its middle was searched at ᾱ = {middle:.2g}, and those of all clean "
            "models at .1"
        )
    most = max(one.residual for one in null.models)
    if residual > 3 * most:
        return unlike(
            f"its error on plain noise is {residual:.3g} per value, but at most {most:.3g} in every clean model"
        )
    return family


def _alike(models: list[NullModel], residual: float) -> list[NullModel]:
    return [one for one in models if 1 / QUALITY <= one.residual / max(residual, 1e-12) <= QUALITY]


def _between(side: int, channels: int, null: Null) -> bool:
    """Whether a shape is within the null's range: a side between its smallest and largest, channels that it has."""
    sides = [one.side for one in null.models]
    return channels in {one.channels for one in null.models} and min(sides) <= side <= max(sides)


def _span(null: Null) -> str:
    sides = sorted({one.side for one in null.models})
    kinds = sorted({one.channels for one in null.models})
    if not sides:
        return "no clean models"
    return f"sides {sides[0]} to {sides[-1]}, {' or '.join(map(str, kinds))} channels"
