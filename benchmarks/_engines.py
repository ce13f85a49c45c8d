"""Engines for benchmarks of many engines: one computes, one waits. Imports little, since every worker imports it."""

import hashlib
import time
from collections.abc import Sequence
from typing import Any

from retarget.pope.prompts import Prompt
from retarget.pope.rollouts import Rollout, Sampling


class Busy:
    """Computes hashes for as long as a rollout would compute: processor time that threads cannot share."""

    name = "busy"

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def sample(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
        """The same wrong answer n times, after the work."""
        for _ in prompts:
            for _ in range(n * self.rounds):
                hashlib.sha256(b"4").digest()
        return [[Rollout("#### 5", 2, False)] * n for _ in prompts]


class Waiting:
    """Sleeps, as an engine does whose GPU computes."""

    name = "waiting"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def sample(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
        """The same wrong answer n times, after the wait."""
        time.sleep(self.seconds * len(prompts))
        return [[Rollout("#### 5", 2, False)] * n for _ in prompts]


def engine(spec: str, **options: Any) -> Busy | Waiting:
    """Open one of the two by name."""
    return Busy(**options) if spec == "busy" else Waiting(**options)
