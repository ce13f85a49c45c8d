"""What an arm of the rivals' study trains on: its rows, its curriculum, and the model that it starts from."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retarget.files import read_json, write_json
from retarget.pope.controls import of_length, scrambled, unrelated
from retarget.pope.curricula import Adaptive, Annealed, Curriculum, Guides, HintWhenWrong, Phases, UnsolvedOnly
from retarget.pope.mixture import make_row, mix
from retarget.pope.problems import Problem
from retarget.pope.studies.budget import Costs, Spent
from retarget.pope.studies.chain import solution_lines
from retarget.pope.studies.imitation import imitate
from retarget.pope.studies.rivals_plan import RivalSettings
from retarget.pope.studies.worlds import World
from retarget.study.record import Run

_WARM_BATCH, _KEPT_COMPLETIONS = 16, 4


@dataclass(frozen=True)
class Recipe:
    """The rows that an arm trains on, and their costs.

    Attributes:
        rows: the rows of its mixture.
        prefixes: the prefixes of its guided prompts (of its teacher's, in self-distillation), by problem.
        own: what it spends besides mining and training.
        prompt: mean tokens per prompt in training.
    """

    rows: list[dict[str, Any]]
    prefixes: dict[str, str]
    own: Spent
    prompt: float


_ORACLE = ("minimal", "quarter", "random", "longest", "unrelated", "scrambled")


def uses_oracle(s: RivalSettings) -> bool:
    """Whether an arm uses oracle solutions in its prompts, as targets or in its reward."""
    return (
        s.prefix in _ORACLE
        or s.curriculum != "none"
        or s.warm_start != "none"
        or s.reward == "reference"
        or (s.learner == "distil")
    )


def recipe_of(
    s: RivalSettings, world: World, sets: dict[str, list[Problem]], base: Path, costs: Costs, seed: int
) -> Recipe:
    hard, prompts = sets["hard"], world.prompts
    found = {one["id"]: one["prefix"] for one in read_json(base / "prefixes.json") if one["prefix"]}
    searched = (
        s.prefix in ("minimal", "unrelated", "scrambled") or s.curriculum == "when_wrong" or (s.warm_start == "guided")
    )
    if s.prefix in ("quarter", "random", "longest"):
        prefixes = of_length(hard, s.prefix, s.cuts, s.cap, s.unit, seed, world.grader)
    elif s.prefix == "unrelated":
        prefixes = unrelated(found, seed)
    elif s.prefix == "scrambled":
        prefixes = scrambled(found, seed)
    else:
        prefixes = found if s.prefix == "minimal" else {}
    if s.learner == "distil":
        prefixes = prefixes or found
        asked = [prompts.without_prefix(one.prompt) for one in hard if one.id in prefixes]
        return Recipe([], prefixes, costs.search, mean_tokens(asked))
    easy = sets[s.easy] if s.easy != "none" else []
    rows = mix(hard, prefixes, prompts, easy=easy, ratio=s.ratio, seed=seed, prompts_per_batch=s.prompts_per_batch,
               unpaired="keep", kind="stratified")  # fmt: skip
    if s.prefix in ("unrelated", "scrambled"):
        rows = _graded_by(rows, own_beginnings(hard, prefixes))
    if s.prefix == "instruction":
        rows += [make_row(one, "guided", prompts.instruction_alone(one.prompt), first_step(one)) for one in hard]
    lengths = mean_tokens([row["prompt"] for row in rows])
    if s.curriculum == "when_wrong":
        lengths = costs.guided
    return Recipe(rows, prefixes, costs.search if searched else Spent(), lengths)


def own_beginnings(problems: Sequence[Problem], prefixes: Mapping[str, str]) -> dict[str, str]:
    """For control prefixes, the beginning of the problem's own solution that has as many words.

    The grader takes it in the place of what the prompt shows. A completion of a control is then right if it is a
    solution by itself, or if it goes on rightly from where the true prefix ends, as the final answer would tell of a
    real problem, without its luck. Joined to the prefix in the prompt, every completion that goes on would be wrong by
    construction. To be right after a wrong prefix, a model must still find the value that the prefix does not tell.
    """
    found = {}
    for one in problems:
        if one.id in prefixes:
            words = one.solution.split()
            found[one.id] = " ".join(words[: min(len(prefixes[one.id].split()), len(words) - 1)])
    return found


def first_step(problem: Problem) -> str:
    """The first operation of a generated problem with its result, which the instruction alone seems to have given.

    A base model goes on after the first operation if the mark of a prefix stands there without one. The grader accepts
    a solution that does, so that this control can be right at all, but the prompt does not tell the result.
    """
    (step,) = solution_lines(problem.meta["start"], problem.meta["operations"][:1], "own")
    return f"{problem.meta['label']} {step}".strip()


def _graded_by(rows: Sequence[dict[str, Any]], beginnings: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows with another prefix for the grader; prompts stay."""

    def meta(row: dict[str, Any]) -> str:
        return json.dumps({**json.loads(row["meta"]), "prefix": beginnings[row["problem"]]}, sort_keys=True)

    return [{**row, "meta": meta(row)} if row["guided"] else row for row in rows]


def curriculum_of(
    s: RivalSettings, world: World, recipe: Recipe, hard: list[Problem], cycles: int, found: Path
) -> Curriculum:
    if s.curriculum == "unsolved":
        return UnsolvedOnly(recipe.rows)
    if s.curriculum == "when_wrong":
        prefixes = {one["id"]: one["prefix"] for one in read_json(found) if one["prefix"]}
        shown = mix(hard, prefixes, world.prompts, ratio=math.inf, unpaired="keep")
        return HintWhenWrong({row["problem"]: row for row in shown if row["guided"]})
    if s.curriculum == "none":
        return Curriculum()
    guides = Guides(hard, world.prompts, s.cuts, s.cap, s.unit, world.grader)
    if s.curriculum == "phases":
        return Phases(guides, cycles)
    return Annealed(guides, cycles, s.cap) if s.curriculum == "annealed" else Adaptive(guides, cycles)


def warm_start(run: Run, s: RivalSettings, world: World, hard: list[Problem], base: Path) -> tuple[Path, Spent]:
    """The model that RL starts from, and its cost in rollouts and tokens (including those of supervised training)."""
    if s.warm_start == "none":
        return Path(world.model), Spent()
    prompts, spent = {one.id: str(world.prompts.without_prefix(one.prompt)) for one in hard}, Spent()
    pairs = [(prompts[one.id], one.solution.replace("\n", " ")) for one in hard]
    if s.warm_start == "guided":
        pairs, spent = _correct_guided(run, s, world, hard, base)
    folder = imitate(
        Path(world.model), pairs, s.warm_steps, s.warm_lr, _WARM_BATCH, run.seed, run.checkpoint / "warm",
        lambda done, total: run.progress(done, total, "supervised step"),
    )  # fmt: skip
    each = float(np.mean([tokens_of(prompt) + tokens_of(target) for prompt, target in pairs]))
    return folder, spent + Spent(tokens=round(s.warm_steps * _WARM_BATCH * each))


def _correct_guided(
    run: Run, s: RivalSettings, world: World, hard: list[Problem], base: Path
) -> tuple[list[tuple[str, str]], Spent]:
    """Up to four correct guided completions of each problem, after its prefix, and the cost of sampling them."""
    path = run.checkpoint / "guided.json"
    if not path.exists():
        params = world.sampling.model_copy(update={"seed": run.seed, "purpose": "imitate"})
        sampler = world.sampler(world.engine(), params, s.warm_rollouts)
        found = {one["id"]: one["prefix"] for one in read_json(base / "prefixes.json") if one["prefix"]}
        pairs, rollouts, tokens = [], 0, 0
        for at, problem in enumerate(one for one in hard if one.id in found):
            run.progress(at, len(found), "problem sampled with its prefix")
            prefix = found[problem.id]
            graded = sampler.graded(problem, prefix, s.warm_rollouts)
            rollouts += len(graded)
            tokens += sum(one.tokens for one, _ in graded) + len(graded) * tokens_of(sampler.guided(problem, prefix))
            right = list(dict.fromkeys(one.text for one, grade in graded if grade.correct))[:_KEPT_COMPLETIONS]
            pairs += [[str(sampler.unguided(problem)), f"{prefix} {text}".replace("\n", " ")] for text in right]
        write_json(path, {"pairs": pairs, "rollouts": rollouts, "tokens": tokens})
    kept = read_json(path)
    pairs = [(prompt, target) for prompt, target in kept["pairs"]]
    if not pairs:  # no guided rollout was correct: only the prefixes themselves can be imitated
        found = {one["id"]: one["prefix"] for one in read_json(base / "prefixes.json") if one["prefix"]}
        pairs = [(str(world.prompts.without_prefix(one.prompt)), found[one.id].replace("\n", " ")) for one in hard
                 if one.id in found]  # fmt: skip
    return pairs, Spent(rollouts=kept["rollouts"], tokens=kept["tokens"])


def tokens_of(prompt: Any) -> int:
    """Tokens of a text of the generated problems: one per word, and the start token."""
    return len(str(prompt).split()) + 1


def mean_tokens(prompts: Sequence[Any]) -> float:
    return float(np.mean([tokens_of(one) for one in prompts]))
