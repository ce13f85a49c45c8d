"""Engines that a worker process opens, light and with faults; what they answered is written into a file."""

import hashlib
import os
import signal
from pathlib import Path

import numpy as np

from retarget.errors import UserError
from retarget.pope.rollouts import Refused, Rollout


class Guesser:
    """Right with a rate of its own, decided by each unit's seed; a fault is asked for by a word of the prompt.

    ``rounds`` of hashing are the work of a rollout. ``dies`` ends its process at every such prompt, ``dies_once`` at
    the first one that any process is given, which leaves a file in ``folder``; ``hangs`` never answers; ``refuses``,
    ``fails`` and ``raises`` say it. ``asked.txt`` has a line for each unit that was begun.
    """

    def __init__(
        self, name, folder, rate=0.2, rounds=0, dies=(), dies_once=(), hangs=(), raises=(), refuses=(), fails=()
    ):
        self.name, self.folder, self.rate, self.identity = name, Path(folder), rate, {"rate": rate}
        self.rounds = rounds
        self.faults = {
            "die": dies,
            "die once": dies_once,
            "hang": hangs,
            "raise": raises,
            "refuse": refuses,
            "fail": fails,
        }

    def sample(self, prompts, n, params):
        return [self.one(prompt, n, params) for prompt in prompts]

    def one(self, prompt, n, params):
        with (self.folder / "asked.txt").open("a") as file:
            file.write(f"{os.getpid()} {prompt} {params.chunk}\n")
        for fault, words in self.faults.items():
            for word in words:
                if word in prompt.split():
                    self.fault(fault, word)
        for _ in range(n * self.rounds):
            hashlib.sha256(b"4").digest()
        right = np.random.default_rng(params.unit_seed(prompt)).random(n) < self.rate
        return [Rollout(f"#### {4 if one else 5}", 2, False) for one in right]

    def fault(self, fault, word):
        if fault == "refuse":
            raise Refused(f"{word} is too long")
        if fault == "fail":
            raise UserError(f"{word} cannot be sampled")
        if fault == "raise":
            raise RuntimeError("a bug")
        if fault == "hang":
            signal.pause()
        mark = self.folder / f"{word}.died"
        if fault == "die" or not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def guesser(spec, **options):
    print("a library greets you")  # which is no answer
    if spec == "none":
        raise UserError("none: no model there")
    if spec == "ends":
        os._exit(7)
    if late := options.pop("late", None):
        Path(late).read_text()
    return Guesser(spec, **options)


class Cut:
    """An engine whose completion ends while it thinks."""

    def sample(self, prompts, n, params):
        return [[Rollout("", 8, True)] * n for _ in prompts]
