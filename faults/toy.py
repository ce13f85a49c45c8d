"""A user's own study that trains nothing: three steps of a random walk, with checkpoint, log and predictions."""

import json
from typing import Any

import numpy as np

from retarget.files import write_json
from retarget.study.config import Arm, Claim, Metric, StudyPlan
from retarget.study.record import Run

STEPS = 3


def plan(
    preset: str = "demo", config: dict[str, Any] | None = None, seeds: list[int] | None = None,
    arms: list[str] | None = None,
) -> StudyPlan:  # fmt: skip
    """A plain random walk as control, and one that rises by 1."""
    del arms
    return StudyPlan(
        study="toy", title="A random walk", question="Is a lifted walk higher?", preset=preset, task="faults.toy:walk",
        settings={"lift": 0.0, **(config or {})}, seeds=tuple(seeds or (0, 1)),
        arms=(Arm(name="control", label="control"), Arm(name="lifted", label="lifted", settings={"lift": 1.0})),
        metrics=(Metric(name="height", label="height", better="higher"),),
        claims=(Claim(id="higher", sentence="A lifted walk is higher.", metric="height", direction="higher",
                      arms=("lifted", "control"), smallest_effect=0.5),),
    )  # fmt: skip


def walk(run: Run) -> dict[str, float]:
    """Continue from the checkpoint; the result depends only on settings and seed."""
    path = run.checkpoint / "state.json"
    state = json.loads(path.read_text()) if path.exists() else {"step": 0, "height": 0.0}
    for step in range(state["step"], STEPS):
        height = state["height"] + np.random.default_rng([run.seed, step]).normal() + run.settings["lift"] / STEPS
        state = {"step": step + 1, "height": height}
        run.log(step, height=height)
        write_json(path, state)
    run.save_predictions(heights=np.full((200, 50), state["height"]))
    return {"height": state["height"]}
