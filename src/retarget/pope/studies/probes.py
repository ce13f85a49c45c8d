"""Looks at a model while it trains: success on a few problems of each set, and what a text's probability is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from transformers import TrainerCallback

from retarget.files import read_json, write_json
from retarget.pope.engines.local import TransformersEngine
from retarget.pope.problems import Problem
from retarget.pope.studies.rivals_plan import RivalSettings
from retarget.pope.studies.worlds import ROWS, World

_PROBE_SEED = 32_452_843


class Probe(TrainerCallback):
    """Unguided pass@1 of a few problems of each set, evenly often while training. Takes no part in it.

    Args:
        world: grader, prompts and sampling.
        sets: problems by name.
        settings: how many probes, problems and samples.
        cycles: of the training.
        seed: of the samples.
        folder: of the training; ``probes.json`` keeps the lines, so that a resumed training has them.

    Attributes:
        lines: ``{"cycle": ..., NAME: pass@1}``, in order.
    """

    def __init__(
        self, world: World, sets: Mapping[str, Sequence[Problem]], settings: RivalSettings, cycles: int, seed: int,
        folder: Path,
    ) -> None:  # fmt: skip
        self._world, self._sets, self._s = world, sets, settings
        self._at = {round(cycles * (i + 1) / (settings.probes + 1)) for i in range(settings.probes)} - {0}
        self._seed, self._path = seed + _PROBE_SEED, folder / "probes.json"
        self.lines: list[dict[str, float]] = read_json(self._path) if self._path.exists() else []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None,
                    **_: Any) -> None:  # fmt: skip
        cycle, rest = divmod(state.global_step, self._s.updates_per_batch)
        if rest or cycle not in self._at:
            return
        engine = TransformersEngine(model, processing_class, batch_size=ROWS, name="probe")
        params = self._world.evaluation.model_copy(update={"seed": self._seed, "purpose": f"probe-{cycle}"})
        sampler = self._world.sampler(engine, params, self._s.probe_samples)
        line: dict[str, float] = {"cycle": cycle}
        for name, problems in self._sets.items():
            graded = [sampler.graded(one, None, self._s.probe_samples) for one in problems[: self._s.probe_problems]]
            line[name] = float(np.mean([grade.correct for some in graded for _, grade in some]))
        self.lines = [*(one for one in self.lines if one["cycle"] < cycle), line]
        write_json(self._path, self.lines)


@torch.no_grad()
def log_probability(model: Any, tokenizer: Any, prompt: str, texts: Sequence[str]) -> Float[np.ndarray, "texts"]:
    """[T] mean log-probability of a token of each text, its end included, behind a prompt; in nats.

    Args:
        model, tokenizer: a causal language model.
        prompt: plain text.
        texts: what it might have written.
    """
    model.eval()
    begin, values = tokenizer(prompt)["input_ids"], []
    for text in texts:
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        logits = model(torch.tensor([[*begin, *ids]])).logits[0, len(begin) - 1 : -1].log_softmax(-1)
        values.append(float(logits[torch.arange(len(ids)), torch.tensor(ids)].mean()))
    return np.array(values)
