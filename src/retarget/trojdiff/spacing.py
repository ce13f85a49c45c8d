"""Choose the timesteps that a sampler visits: descending, distinct, and exactly as many as requested."""

import numpy as np

from retarget.errors import UserError

SPACINGS = ("linear", "quadratic", "trailing")


def spaced_timesteps(count: int, num_train_timesteps: int = 1000, spacing: str = "linear") -> list[int]:
    """Timesteps of a sampler with ``count`` steps.

    ``linear`` and ``quadratic`` go from T - 1 to 0, evenly in t and in √t; ``trailing`` starts at T - 1 and ends one
    stride above 0. If rounding makes two neighbours equal, the upper one moves up by one, so the count is exact.

    Args:
        count: number of steps, in [1, T].
        spacing: one of ``SPACINGS``.

    Raises:
        UserError: the count is out of range, or the spacing is unknown.

    >>> spaced_timesteps(5, 1000, "quadratic")
    [999, 562, 250, 62, 0]
    >>> spaced_timesteps(4, 1000, "trailing")
    [999, 749, 499, 249]
    """
    if not 1 <= count <= num_train_timesteps:
        raise UserError(
            f"{count} sampling steps of {num_train_timesteps} training steps: use 1 to {num_train_timesteps}"
        )
    last = num_train_timesteps - 1
    if spacing == "trailing":
        grid = num_train_timesteps * (1 - np.arange(count) / count)[::-1] - 1
    elif spacing == "linear":
        grid = np.linspace(0, last, count) if count > 1 else np.array([last])
    elif spacing == "quadratic":
        grid = np.linspace(0, np.sqrt(last), count) ** 2 if count > 1 else np.array([last])
    else:
        raise UserError(f"spacing {spacing!r} is unknown: choose {', '.join(SPACINGS)}")
    steps: list[int] = []
    for value in np.rint(grid).astype(int).tolist():
        steps.append(max(value, steps[-1] + 1) if steps else value)
    return steps[::-1]
