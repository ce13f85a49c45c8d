"""One run of the POPE study: a base model with its hard problems and prefixes, or an arm's trainings on that model."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from retarget.errors import UserError
from retarget.files import write_json, write_text
from retarget.pope.evaluation import Evaluation, evaluate
from retarget.pope.grading import reward_function
from retarget.pope.mining import Mined, mine
from retarget.pope.mixture import mix
from retarget.pope.problems import Problem, read_problems, write_problems
from retarget.pope.rollouts import Engine
from retarget.pope.search import Prefixes, search_prefixes
from retarget.pope.settings import Optimisation, TrainingSettings
from retarget.pope.studies.plan import MINED, Settings
from retarget.pope.studies.testbed import load_base
from retarget.pope.studies.worlds import World, make_world
from retarget.pope.trl import train
from retarget.study.record import Run, read_status

FRESH_SEED, SHOWN_SEED = 7_919, 15_485_863
"""Added to a run's seed for evaluation and for the samples on the page, so that they differ from the selection's."""
SHOWN = 3


def run(run: Run) -> dict[str, float]:
    """Final metrics of one run, shares in percent; see :mod:`retarget.pope.study`."""
    settings = Settings.model_validate(run.settings)
    return _base(run, settings) if settings.role == "base" else _trained(run, settings)


def _base(run: Run, s: Settings) -> dict[str, float]:
    world = make_world(s, run.seed, run.checkpoint, lambda done, total: run.progress(done, total, "step"))
    engine, journals = world.engine(), run.checkpoint
    mined = [
        mine_hard(world, engine, problems, journals / file, run, wanted)
        for problems, file, wanted in ((world.candidates, "mine.jsonl", s.hard_problems),
                                       (world.held_candidates, "mine-held.jsonl", s.held_problems))
    ]  # fmt: skip
    write_json(run.directory / MINED, [one.counts for one in mined])
    hard, held = mined[0].hard[: s.hard_problems], mined[1].hard[: s.held_problems]
    prefixes = search_prefixes(
        hard, world.sampler(engine, world.sampling, min(32, s.search_k)), s.cuts, s.search_k, cap=s.cap, unit=s.unit,
        journal=journals / "search.jsonl",
        progress=lambda done, total, _: run.progress(done, total, "problem searched"),
    )  # fmt: skip
    searched = [one.to_json() for one in prefixes.found]
    write_problems(run.directory / "hard.jsonl", hard)
    write_problems(run.directory / "held-out.jsonl", held)
    write_text(run.directory / "prefixes.json", json.dumps(searched, indent=1))
    write_samples(run.directory / "samples.json", world, engine, hard, searched, True, run.seed)
    easy = evaluate_on(world, engine, world.easy, run, "easy") if world.easy else None
    parts = {
        "hard": evaluate_on(world, engine, hard, run, "hard"),
        "held": evaluate_on(world, engine, held, run, "held"),
    }
    guided = guided_rates(world, engine, hard, prefixes, run)
    found = np.array([one.status == "found" for one in prefixes.found])
    run.save_predictions(
        hard=parts["hard"].correct[None], held=parts["held"].correct[None], guided_rates=guided, found=found,
        cut=np.array([one.cut.fraction if one.cut else math.nan for one in prefixes.found]),
    )  # fmt: skip
    return {
        **scores_of(parts), **({"easy_pass1": 100 * easy.pass_at(1)} if easy else {}),
        **guided_scores(guided, parts["hard"].pass_of_problems(1), found), "search_rollouts": prefixes.rollouts,
    }  # fmt: skip


def guided_scores(guided: np.ndarray, unguided: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """The effect of prefixes before any training, in percent; without any prefix only the share of those found.

    Args:
        guided: [H], success rates of fresh guided samples; NaN for a problem without a prefix, which does not count.
        unguided: [H], success rates of fresh unguided samples of the same model.
        found: [H], whether the search saw a success with the prefix; the other problems have the longest prefix.

    >>> guided_scores(np.array([0.5, 0.0]), np.array([0.25, 0.0]), np.array([True, False]))["guided_gain"]
    12.5
    """
    shown = ~np.isnan(guided)
    scores = {"found": found.mean()}
    if shown.any():
        scores |= {"guided_all": guided[shown].mean(), "guided_all_helped": (guided[shown] > 0).mean(),
                   "guided_gain": (guided - unguided)[shown].mean()}  # fmt: skip
    if found.any():
        scores |= {"guided_start": guided[found].mean(), "guided_helped": (guided[found] > 0).mean(),
                   "unguided_start": unguided[found].mean()}  # fmt: skip
    return {name: 100 * float(value) for name, value in scores.items()}


def _trained(run: Run, s: Settings) -> dict[str, float]:
    base = run.other("base")
    world = make_world(s, run.seed, base / "checkpoint", lambda done, total: None)
    hard = read_problems(base / "hard.jsonl", answer_in_solution=False)
    held = read_problems(base / "held-out.jsonl", answer_in_solution=False)
    searched = json.loads((base / "prefixes.json").read_text(encoding="utf-8"))
    status = read_status(base)
    assert status is not None  # Run.other has checked that
    search_rollouts = status["metrics"]["search_rollouts"]
    guided = s.role == "pope"
    prefixes = {one["id"]: one["prefix"] for one in searched if one["prefix"]} if guided else {}
    if guided and not prefixes:
        raise UserError(
            "no hard problem has a prefix, so there are no guided prompts: every beginning of a solution up to the cap "
            "states the answer, or solutions have only one part. Set cap or cuts higher, or unit finer"
        )
    cycles = s.cycles
    if not guided and s.match_rollouts:
        cycles += math.ceil(search_rollouts / (s.prompts_per_batch * s.rollouts))
    # "stratified", as in the recorded studies.
    rows = mix(
        hard, prefixes, world.prompts, seed=run.seed, prompts_per_batch=s.prompts_per_batch, unpaired="keep",
        kind="stratified",
    )  # fmt: skip
    parts: dict[str, list[Evaluation]] = {"hard": [], "held": [], "easy": []}
    histories = []
    for index in range(s.rl_seeds):
        folder = run.checkpoint / f"rl-{index}"
        history = _train(run, world, rows, cycles, index, folder)
        histories.append(history)
        engine = world.engine(folder, name=f"{s.role}-{index}")
        for name, problems in (("hard", hard), ("held", held), ("easy", world.easy)):
            if problems:
                parts[name].append(evaluate_on(world, engine, problems, run, name, index))
        if index == 0:
            write_samples(run.directory / "samples.json", world, engine, hard, searched, guided, run.seed)
    log_histories(run, histories)
    run.save_predictions(**{name: np.stack([e.correct for e in some]) for name, some in parts.items() if some})
    scores = [scores_of({"hard": one, "held": other}) for one, other in zip(parts["hard"], parts["held"], strict=True)]
    final = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    if parts["easy"]:
        final["easy_pass1"] = 100 * float(np.mean([one.pass_at(1) for one in parts["easy"]]))
    lines = [line for one in histories for line in one]
    failed = [line["unguided/all_fail"] for line in lines if "unguided/all_fail" in line]
    if failed:
        final["signal"] = 100 * float(np.mean([1 - share for share in failed]))
    if guided:
        final["search_rollouts"] = search_rollouts
        tenths = [line for one in histories for line in one[-max(1, len(one) // 10) :]]
        if last := [line["guided/reward"] for line in tenths if "guided/reward" in line]:
            final["guided_end"] = 100 * float(np.mean(last))
    return final | {"train_rollouts": cycles * s.prompts_per_batch * s.rollouts}


def _train(
    run: Run, world: World, rows: Sequence[dict[str, Any]], cycles: int, index: int, folder: Path
) -> list[dict[str, float]]:
    """Train once and return the log entry of every cycle. A finished training is not repeated."""
    s, finished = world.settings, folder / "finished.json"
    if finished.exists():
        return json.loads(finished.read_text(encoding="utf-8"))
    generated = s.model is None
    extra: dict[str, Any] = {"disable_tqdm": True, "save_total_limit": 1, **({"use_cpu": True} if generated else {})}
    settings = TrainingSettings(
        cycles=cycles, seed=1000 * run.seed + index, vllm="colocate" if s.engine == "vllm" else "none", extra=extra,
        save_every=s.save_every, order="stratified", **s.model_dump(include=set(Optimisation.model_fields)),
    )  # fmt: skip
    model, tokenizer = load_base(Path(world.model)) if generated else (world.model, None)
    steps = cycles * s.updates_per_batch
    trainer = train(
        model, rows, reward_function(world.grader), settings, folder, tokenizer=tokenizer,
        callbacks=[Progress(run, index * steps, s.rl_seeds * steps)],
    )  # fmt: skip
    kept = ("unguided/", "guided/")
    history = [
        {key: value for key, value in line.items() if key.startswith(kept) and value is not None}
        for line in trainer.state.log_history
        if "unguided/reward" in line
    ]
    write_text(finished, json.dumps(history))
    return history


class Progress(TrainerCallback):
    """Reports the progress of a run's trainings to the study's display."""

    def __init__(self, run: Run, before: int, total: int) -> None:
        self.run, self.before, self.total = run, before, total

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.run.progress(self.before + state.global_step, self.total, "step")


def log_histories(run: Run, histories: list[list[dict[str, float]]]) -> None:
    """Log the mean over the trainings for every cycle."""
    for cycle, lines in enumerate(zip(*histories, strict=True), 1):
        names = sorted(set.intersection(*(set(line) for line in lines)))
        run.log(cycle, **{name: float(np.mean([line[name] for line in lines])) for name in names})


def mine_hard(
    world: World, engine: Engine, problems: list[Problem], journal: Path, run: Run, wanted: int | None = None
) -> Mined:
    """Find the problems that are never solved. Generated labels are correct, so ``suspect`` problems count as hard.

    A real model's file can hold far more problems than a study needs: they are mined ``wanted`` at a time, until as
    many are hard.
    """
    real, k = world.settings.model is not None, world.settings.mine_k
    step = wanted if real and wanted else len(problems)
    for end in range(step, len(problems) + step, step):
        mined = mine(
            problems[:end], world.sampler(engine, world.mining, min(world.chunk, k)), k, journal=journal,
            accepted=("hard",) if real else ("hard", "suspect"),
            progress=lambda done, total, _: run.progress(done, total, "problem mined"),
        )  # fmt: skip
        if len(mined) >= (wanted or len(problems)):
            break
    if len(mined) < 2:
        kinds = ", ".join(f"{count} {kind}" for kind, count in mined.counts.items() if count and kind != "hard")
        remedy = "; set mine_tokens higher" if mined.counts["truncated"] > len(mined.outcomes) / 2 else ""
        raise UserError(
            f"a study needs at least two hard problems, but {len(mined)} of {len(mined.outcomes)} are hard for this "
            f"base model ({kinds}){remedy}. `retarget pope mine` says more of each"
        )
    return mined


def guided_rates(world: World, engine: Engine, hard: list[Problem], prefixes: Prefixes, run: Run) -> np.ndarray:
    """[H] success rates of *fresh* guided samples: those of the search stop at a success and would overestimate it.

    A problem without a prefix has NaN.
    """
    params = world.evaluation.model_copy(update={"seed": run.seed + FRESH_SEED, "purpose": "guided"})
    samples = world.settings.samples
    sampler = world.sampler(engine, params, samples)
    rates = np.full(len(hard), np.nan)
    for at, problem in enumerate(hard):
        run.progress(at, len(hard), "problem sampled with its prefix")
        if problem.id in prefixes:
            graded = sampler.graded(problem, prefixes[problem.id], samples)
            rates[at] = np.mean([grade.correct for _, grade in graded])
    return rates


def evaluate_on(
    world: World, engine: Engine, problems: list[Problem], run: Run, name: str, index: int = 0, seed: int = FRESH_SEED
) -> Evaluation:
    samples = world.settings.samples
    params = world.evaluation.model_copy(update={"seed": run.seed + seed})
    return evaluate(
        problems, world.sampler(engine, params, samples), samples,
        journal=run.checkpoint / f"evaluate-{name}-{index}.jsonl",
        progress=lambda done, total, _: run.progress(done, total, "problem evaluated"),
    )  # fmt: skip


def scores_of(parts: dict[str, Evaluation]) -> dict[str, float]:
    scores = {}
    for name, one in parts.items():
        scores[f"{name}_pass1"] = 100 * one.pass_at(1)
        scores[f"{name}_pass16"] = 100 * one.pass_at(16)
        scores[f"{name}_solved"] = 100 * len(one.solved) / len(one.problems)
    return scores


def write_samples(
    path: Path, world: World, engine: Engine, hard: list[Problem], searched: list[dict[str, Any]], guided: bool,
    seed: int,
) -> None:  # fmt: skip
    """Write a few rollouts on one problem for the page: the first with a found prefix, or else with any prefix."""
    ranks = {"found": 0, "fallback": 1}
    best = min(range(len(hard)), key=lambda at: ranks.get(searched[at]["status"], 2))
    problem, prefix = hard[best], searched[best]["prefix"]
    params = world.evaluation.model_copy(update={"seed": seed + SHOWN_SEED, "purpose": "page"})
    sampler = world.sampler(engine, params, SHOWN)

    def graded(prefix: str | None) -> list[tuple[str, bool]]:
        return [(one.text, grade.correct) for one, grade in sampler.graded(problem, prefix, SHOWN)]

    shown: dict[str, Any] = {
        "prompt": problem.prompt, "solution": problem.solution, "prefix": prefix, "status": searched[best]["status"],
        "unguided": graded(None),
    }  # fmt: skip
    if guided and prefix:
        shown["guided"] = graded(prefix)
    write_text(path, json.dumps(shown, ensure_ascii=False))
