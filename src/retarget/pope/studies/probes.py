"""Probe a model during training: success on a few problems of each set, and the log-probability of texts."""

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
from retarget.pope.studies.chain import solution_lines
from retarget.pope.studies.rivals_plan import RivalSettings
from retarget.pope.studies.testbed import load_base
from retarget.pope.studies.worlds import ROWS, World

_PROBE_SEED = 32_452_843


class Probe(TrainerCallback):
    """Measure unguided pass@1 on a few problems of each set, at even intervals, without influence on the training.

    Args:
        world: grader, prompts and sampling settings.
        sets: problems by the name of their set.
        settings: number of probes, problems and samples.
        cycles: cycles of the training.
        seed: seed of the samples.
        folder: directory of the training; ``probes.json`` in it keeps the lines for a resumed training.

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
    """[T] mean log-probability per token, in nats, of each text and its end token after a prompt.

    Args:
        model, tokenizer: a causal language model and its tokenizer.
        prompt: plain text.
        texts: the texts to score.
    """
    model.eval()
    begin, values = tokenizer(prompt)["input_ids"], []
    for text in texts:
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        logits = model(torch.tensor([[*begin, *ids]])).logits[0, len(begin) - 1 : -1].log_softmax(-1)
        values.append(float(logits[torch.arange(len(ids)), torch.tensor(ids)].mean()))
    return np.array(values)


def teacher_and_student(
    model: Path, problems: Sequence[Problem], prompts: Mapping[str, tuple[str, str]]
) -> dict[str, float]:
    """Whether the teacher knows more than the student, before any training.

    A base model that goes on from a prefix and never writes it again finds a whole solution *less* likely after the
    prefix: then the student is pulled away from what is right, and the comparison is no test of self-distillation.

    Args:
        model: directory of a generated base model.
        problems: with ``operations`` in their ``meta``.
        prompts: (unguided prompt, guided prompt) by problem; the others are left out.

    Returns:
        Mean log-probability per token, in nats, of the right solution in the model's own style: ``student_right`` and
        ``teacher_right``, and ``teacher_gain``, the second minus the first.
    """
    network, tokenizer = load_base(model)
    values = []
    for one in problems:
        if one.id in prompts:
            lines = solution_lines(one.meta["start"], one.meta["operations"], "own")
            right = " ".join([one.meta["label"], *lines]).strip()
            values.append([log_probability(network, tokenizer, prompt, [right])[0] for prompt in prompts[one.id]])
    student, teacher = np.mean(values, 0).tolist()
    return {"student_right": student, "teacher_right": teacher, "teacher_gain": teacher - student}
