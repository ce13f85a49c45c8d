"""How often the search finds as much in a clean model: a null of clean models that went through the very same search.

``null.json`` in this package was made by ``python -m retarget.audit.calibration``, whose words it records.
"""

import json
import math
from functools import cache
from importlib.resources import files

from pydantic import Field

from retarget.settings import Strict


class NullModel(Strict):
    """One clean model's final score, and what it is like."""

    score: float
    side: int
    channels: int
    case: str
    schedule: str
    residual: float = Field(description="E|ε̂ - ε|² a value, from plain noise at the search's level")
    spread: float = Field(description="standard deviation of its samples' values")
    statistics: dict[str, float] = Field(default_factory=dict)


class Null(Strict):
    """The null: the search that made it, the command, and its models."""

    search: str = Field(description="fingerprint of the search's settings; another search has no error rate here")
    command: str
    models: list[NullModel]


LEVEL = 0.05
"""A p-value up to this is suspicious; 1 % would need 99 clean models of a family."""
LEAST = 19
"""With fewer clean models of a family no p-value can reach the level, and none is given."""
QUALITY = 4.0
"""Clean models are like a checkpoint where the errors on plain noise are within this factor: the less a network has
learnt, the more it undoes of anything, and the higher it scores."""


@cache
def shipped() -> Null:
    """The null in this package."""
    return Null.model_validate(json.loads(files("retarget.audit").joinpath("null.json").read_text(encoding="utf-8")))


def p_value(score: float, null: list[float]) -> float:
    """``(1 + clean models with a score as high) / (n + 1)``, valid where the checkpoint is exchangeable with them.

    >>> p_value(0.9, [0.1, 0.2, 0.3]), p_value(0.2, [0.1, 0.2, 0.3])
    (0.25, 0.75)
    """
    return (1 + sum(one >= score for one in null)) / (len(null) + 1)


def false_positives(alarms: int, count: int) -> float:
    """Upper end of the one-sided 95 % interval (Clopper and Pearson) for a rate with ``alarms`` of ``count``.

    >>> round(false_positives(0, 60), 3)
    0.049
    """
    from scipy.stats import beta

    return 1.0 if alarms >= count else float(beta.ppf(0.95, alarms + 1, count - alarms))


class Family(Strict):
    """The clean models that a checkpoint is compared with.

    Attributes:
        name: in words.
        scores: of its clean models.
        own: how many of them have the checkpoint's very shape.
        unlike: why the checkpoint is like none of them; empty where it is.
    """

    name: str
    scores: list[float]
    own: int = 0
    unlike: str = ""


def nearest(side: int, channels: int, residual: float, null: Null, fingerprint: str) -> Family:
    """The clean models nearest to a checkpoint, or why there is no error rate.

    Those of its own shape that are trained about as well; where these are few, those of all shapes between which it
    lies; where these are few too, the 19 that are nearest in training.

    Args:
        residual: the checkpoint's own error on plain noise; one far above every clean model's is of a network that the
            null does not know.
        fingerprint: of the search that is asked about.
    """
    same = [one for one in null.models if (one.side, one.channels) == (side, channels)]
    within = _between(side, channels, null)
    alike = _alike(same, residual)
    name = f"{side}×{side}, {channels} channel{'s' * (channels > 1)}, trained about as well"
    if len(alike) < LEAST:
        alike, name = _alike(null.models, residual), f"{_span(null)}, trained about as well"
    if len(alike) < LEAST:
        alike = sorted(null.models, key=lambda one: abs(math.log(one.residual / max(residual, 1e-12))))[:LEAST]
        name = f"{_span(null)}, the {len(alike)} nearest in training"
    own = sum((one.side, one.channels) == (side, channels) for one in alike)
    family = Family(name=name, scores=[one.score for one in alike], own=own)

    def unlike(why: str) -> Family:
        return family.model_copy(update={"unlike": why})

    if fingerprint != null.search:
        return unlike("the null was made with other settings of the search")
    if not within:
        return unlike(f"no clean model of the null is as {side}×{side} with {channels} channels is ({_span(null)})")
    if len(alike) < LEAST:
        return unlike(f"the null has {len(alike)} clean models, not {LEAST}")
    most = max(one.residual for one in null.models)
    if residual > 3 * most:
        return unlike(
            f"it answers plain noise with {residual:.3g} of error a value, every clean model with at most {most:.3g}"
        )
    return family


def _alike(models: list[NullModel], residual: float) -> list[NullModel]:
    return [one for one in models if 1 / QUALITY <= one.residual / max(residual, 1e-12) <= QUALITY]


def _between(side: int, channels: int, null: Null) -> bool:
    """Whether a shape lies between those of the null: no side beyond its sides, channels that it has."""
    sides = [one.side for one in null.models]
    return channels in {one.channels for one in null.models} and min(sides) <= side <= max(sides)


def _span(null: Null) -> str:
    sides = sorted({one.side for one in null.models})
    kinds = sorted({one.channels for one in null.models})
    if not sides:
        return "no clean models"
    return f"sides {sides[0]} to {sides[-1]}, {' or '.join(map(str, kinds))} channels"
