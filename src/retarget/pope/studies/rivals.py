"""One run of a rivals' study: a base model with its problems and costs, or an arm that is trained on that model."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from retarget.files import read_json, write_json
from retarget.pope.curricula import Group
from retarget.pope.evaluation import Evaluation
from retarget.pope.grading import Grader, reward_function
from retarget.pope.problems import Problem, read_problems, write_problems
from retarget.pope.rollouts import Engine
from retarget.pope.search import search_prefixes
from retarget.pope.settings import Optimisation, TrainingSettings
from retarget.pope.studies.budget import Costs, Spent, cycles_of
from retarget.pope.studies.distil import distil
from retarget.pope.studies.easy import RECORD, far_problems, near_problems
from retarget.pope.studies.measures import (
    majority_calibration,
    rank_correlation,
    solved_while_training,
    state_overlap,
    transfer_rates,
)  # fmt: skip
from retarget.pope.studies.probes import Probe, log_probability, teacher_and_student
from retarget.pope.studies.recipes import (
    Recipe,
    curriculum_of,
    mean_tokens,
    recipe_of,
    tokens_of,
    uses_oracle,
    warm_start,
)
from retarget.pope.studies.rivals_plan import RivalSettings
from retarget.pope.studies.run import (
    FRESH_SEED,
    Progress,
    evaluate_on,
    guided_scores,
    log_histories,
    mine_hard,
    scores_of,
    write_samples,
)  # fmt: skip
from retarget.pope.studies.testbed import load_base
from retarget.pope.studies.worlds import World, corpus_of, make_world
from retarget.pope.trl import train
from retarget.study.record import Run

PARTS = ("hard", "held", "near", "far")
CALIBRATED = ("hard", "held", "far")
"""Problem sets that every base model has."""
_CHOICE_SEED = 49_979_687
"""Added to a run's seed for the samples that choose near problems: those that measure them are fresh."""
_STATES = 32
_CHAIN = "retarget.pope.studies.chain"
_REWARDS = {"reference": "verify_with_reference", "continued": "verify_continued", "restated": "verify_restated"}


def run(run: Run) -> dict[str, float]:
    """Final metrics of one run, shares in percent; see :mod:`retarget.pope.studies.rivals_plan`."""
    settings = RivalSettings.model_validate(run.settings)
    if settings.role == "base":
        return _base(run, settings)
    return _searched(run, settings) if settings.role == "searched" else _trained(run, settings)


def world_of(run: Run, s: RivalSettings, cache: Path) -> World:
    """The generated world of a run."""
    network = {"width": s.width} if s.width != 64 else {}
    return make_world(s, run.seed, cache, lambda done, total: run.progress(done, total, "step"), network, s.restated)


def _base(run: Run, s: RivalSettings) -> dict[str, float]:
    world, journals = world_of(run, s, run.checkpoint), run.checkpoint
    engine = world.engine()
    mined = mine_hard(world, engine, world.candidates, journals / "mine.jsonl", run)
    hard = mined.hard[: s.hard_problems]
    held = mine_hard(world, engine, world.held_candidates, journals / "mine-held.jsonl", run)
    prefixes = search_prefixes(
        hard, world.sampler(engine, world.sampling, min(32, s.search_k)), s.cuts, s.search_k, cap=s.cap, unit=s.unit,
        journal=journals / "search.jsonl",
        progress=lambda done, total, _: run.progress(done, total, "problem searched"),
    )  # fmt: skip
    sets = {"hard": hard, "held": held.hard[: s.held_problems], **_easy(run, s, world, engine)}
    for name, problems in sets.items():
        write_problems(run.directory / f"{name}.jsonl", problems)
    searched = [one.to_json() for one in prefixes.found]
    write_json(run.directory / "prefixes.json", searched)
    write_samples(run.directory / "samples.json", world, engine, hard, searched, True, run.seed)
    parts = {name: evaluate_on(world, engine, problems, run, name) for name, problems in sets.items()}
    measured = {**_guided(run, world, hard, dict(prefixes)), **_met(run, world, engine, hard, dict(prefixes))}
    found = np.array([one.status == "found" for one in prefixes.found])
    run.save_predictions(
        **{name: one.correct[None] for name, one in parts.items()}, found=found,
        cut=np.array([one.cut.fraction if one.cut else math.nan for one in prefixes.found]), **measured,
    )  # fmt: skip
    asked = [(tokens_of(world.prompts.without_prefix(one.problem.prompt)), one) for one in mined.outcomes]
    shown = [(tokens_of(world.prompts.with_prefix(p.prompt, prefixes[p.id])), f.rollouts)
             for p, f in zip(hard, prefixes.found, strict=True) if p.id in prefixes]  # fmt: skip
    costs = Costs(
        mining=Spent(rollouts=mined.rollouts, tokens=mined.tokens + sum(n * one.n for n, one in asked)),
        search=Spent(rollouts=prefixes.rollouts, tokens=prefixes.tokens + sum(n * count for n, count in shown)),
        unguided=mean_tokens([world.prompts.without_prefix(p.prompt) for p in hard]),
        guided=float(np.mean([n for n, _ in shown])), completion=parts["hard"].tokens / (len(hard) * s.samples),
    )  # fmt: skip
    write_json(run.directory / "costs.json", costs.model_dump(mode="json"))
    guided = guided_scores(measured["guided"], parts["hard"].pass_of_problems(1), found)
    return {
        **_finals([parts]), **majority_calibration([(sets[name], parts[name]) for name in CALIBRATED]),
        **guided, **_means(measured), "reliance": _mean(measured["reliance"]),
        "rollouts": costs.mining.rollouts + costs.search.rollouts, "tokens": costs.mining.tokens + costs.search.tokens,
    }  # fmt: skip


def _searched(run: Run, s: RivalSettings) -> dict[str, float]:
    """Search again on the base model's hard problems, and measure the prefixes with fresh rollouts."""
    base = run.other("base")
    world = world_of(run, s, base / "checkpoint")
    hard = read_problems(base / "hard.jsonl", answer_in_solution=False)
    engine = world.engine()
    prefixes = search_prefixes(
        hard, world.sampler(engine, world.sampling, min(16, s.search_k)), s.cuts, s.search_k, cap=s.cap, unit=s.unit,
        strategy=s.strategy, journal=run.checkpoint / "search.jsonl",
        progress=lambda done, total, _: run.progress(done, total, "problem searched"),
    )  # fmt: skip
    write_json(run.directory / "prefixes.json", [one.to_json() for one in prefixes.found])
    params = world.evaluation.model_copy(update={"seed": run.seed + FRESH_SEED, "purpose": "guided"})
    sampler, guided = world.sampler(engine, params, s.samples), np.zeros(len(hard))
    for at, problem in enumerate(hard):
        run.progress(at, len(hard), "problem sampled with its prefix")
        if problem.id in prefixes:
            graded = sampler.graded(problem, prefixes[problem.id], s.samples)
            guided[at] = np.mean([grade.correct for _, grade in graded])
    found = np.array([one.status == "found" for one in prefixes.found])
    before = load_file(base / "predictions.safetensors")
    scores = guided_scores(guided, before["hard"][0] / s.samples, found)
    cuts = [one.cut.fraction for one in prefixes.found if one.cut is not None]
    run.save_predictions(guided=guided, found=found)
    return {**scores, "search_rollouts": prefixes.rollouts, "prefix_length": 100 * float(np.mean(cuts))}


def _easy(run: Run, s: RivalSettings, world: World, engine: Engine) -> dict[str, list[Problem]]:
    """Easy problems: ``near`` ones, if the base model has enough of them, and ``far`` ones, the shortest."""
    corpus = corpus_of(s.family, s.style)

    def rates(problems: list[Problem]) -> np.ndarray:
        return evaluate_on(world, engine, problems, run, "candidates", seed=_CHOICE_SEED).pass_of_problems(1)

    near = near_problems(corpus, s.hard_problems, run.seed, rates)
    write_json(run.directory / RECORD, {"candidates": near.candidates, "within": near.within, "asked": s.hard_problems})
    easy = {"near": near.problems, "far": far_problems(corpus, s.hard_problems, run.seed)}
    return {name: problems for name, problems in easy.items() if problems}


def _sets(base: Path) -> dict[str, list[Problem]]:
    """The problem sets of a base model's run; without ``near`` if it has too few such problems."""
    paths = {name: base / f"{name}.jsonl" for name in PARTS}
    return {name: read_problems(path, answer_in_solution=False) for name, path in paths.items() if path.exists()}


def _guided(run: Run, world: World, hard: list[Problem], prefixes: dict[str, str]) -> dict[str, np.ndarray]:
    """For the base model, each [H]: success of fresh guided samples, and reliance on the prefix."""
    engine, samples = world.engine(), world.settings.samples
    params = world.evaluation.model_copy(update={"seed": run.seed + FRESH_SEED, "purpose": "guided"})
    sampler = world.sampler(engine, params, samples)
    measured = {"reliance": np.full(len(hard), np.nan), "guided": np.zeros(len(hard))}
    for at, problem in enumerate(hard):
        run.progress(at, len(hard), "problem sampled with its prefix")
        prefix = prefixes.get(problem.id)
        if prefix is None:
            continue
        graded = sampler.graded(problem, prefix, samples)
        measured["guided"][at] = np.mean([grade.correct for _, grade in graded])
        right = list(dict.fromkeys(rollout.text for rollout, grade in graded if grade.correct))
        if right:
            network, tokenizer = load_base(Path(world.model))
            prompts = [str(sampler.guided(problem, prefix)), str(sampler.unguided(problem))]
            with_it, without = (log_probability(network, tokenizer, prompt, right) for prompt in prompts)
            measured["reliance"][at] = float((with_it - without).mean())
    return measured


def _met(
    run: Run, world: World, engine: Engine, hard: Sequence[Problem], prefixes: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Where guided and unguided rollouts of a model meet, each [H]; NaN for a problem without a prefix.

    Every model is asked with the prefixes of the search, whether it was trained with them or not.
    """
    params = world.evaluation.model_copy(update={"seed": run.seed + FRESH_SEED, "purpose": "states"})
    sampler = world.sampler(engine, params, _STATES)
    found = np.full((2, len(hard)), np.nan)
    for at, problem in enumerate(hard):
        run.progress(at, len(hard), "problem sampled with its prefix")
        if prefix := prefixes.get(problem.id):
            shown, alone = ([rollout.text for rollout, _ in sampler.graded(problem, one, _STATES)]
                            for one in (prefix, None))  # fmt: skip
            found[:, at] = state_overlap(problem, prefix, shown, alone)
    return {"overlap": found[0], "overlap_chance": found[1]}


def _means(met: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The shares of :func:`_met` in per cent, mean over problems."""
    return {name: 100 * _mean(met[name]) for name in ("overlap", "overlap_chance")}


def _trained(run: Run, s: RivalSettings) -> dict[str, float]:
    base = run.other("base")
    world = world_of(run, s, base / "checkpoint")
    sets = _sets(base)
    if s.easy != "none" and s.easy not in sets:
        return {}  # the analysis says why
    costs = Costs.model_validate(read_json(base / "costs.json"))
    recipe = recipe_of(s, world, sets, base, costs, run.seed)
    start, warm = warm_start(run, s, world, sets["hard"], base)
    own, batch = recipe.own + warm, s.prompts_per_batch * s.rollouts
    cycles = max(1, round(s.budget * cycles_of(costs, s.cycles, batch, recipe.prompt, own)))
    searched = read_json(base / "prefixes.json")
    found = {one["id"]: one["prefix"] for one in searched if one["prefix"]}
    parts: list[dict[str, Evaluation]] = []
    trainings, met = [], []
    for index in range(s.rl_seeds):
        folder = run.checkpoint / f"rl-{index}"
        trainings.append(_train(run, replace(world, model=str(start)), sets, recipe, cycles, index, folder, base))
        engine = world.engine(folder, name=f"{run.arm}-{index}")
        parts.append({name: evaluate_on(world, engine, some, run, name, index) for name, some in sets.items()})
        met.append(_means(_met(run, world, engine, sets["hard"], found)))
        if index == 0:
            write_samples(
                run.directory / "samples.json", world, engine, sets["hard"], searched, bool(recipe.prefixes), run.seed
            )
    log_histories(run, [one["history"] for one in trainings])
    write_json(run.directory / "probes.json", [one["probes"] for one in trainings])
    write_json(run.directory / "groups.json", [one["groups"] for one in trainings])
    run.save_predictions(**{name: np.stack([one[name].correct for one in parts]) for name in sets})
    calibration = [majority_calibration([(sets[name], one[name]) for name in CALIBRATED]) for one in parts]
    trained = float(np.mean([one["tokens"] for one in trainings]))
    final = {
        **_finals(parts),
        **{key: float(np.mean([one[key] for one in some])) for some in (calibration, met) for key in some[0]},
        **_along(trainings, [one.id for one in sets["hard"]], parts, base), "oracle": float(uses_oracle(s)),
        "rollouts": costs.mining.rollouts + own.rollouts + cycles * batch,
        "tokens": costs.mining.tokens + own.tokens + trained,
    }  # fmt: skip
    return {name: value for name, value in final.items() if math.isfinite(value)}


def _finals(parts: Sequence[dict[str, Evaluation]]) -> dict[str, float]:
    """Scores on the problem sets, mean over trainings; only pass@1 for the easy ones, near (if there are) and far."""
    easy = (("near", "easy_pass1"), ("far", "far_pass1"))
    found = [
        {**scores_of({name: one[name] for name in ("hard", "held")}),
         **{metric: 100 * one[name].pass_at(1) for name, metric in easy if name in one}}
        for one in parts
    ]  # fmt: skip
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def _along(
    trainings: Sequence[dict[str, Any]], hard: Sequence[str], parts: Sequence[dict[str, Evaluation]], base: Path
) -> dict[str, float]:
    """Measurements during training, mean over trainings; NaN if they do not apply to the arm."""
    before = load_file(base / "predictions.safetensors")
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    for one, after in zip(trainings, parts, strict=True):
        history, groups = one["history"], [Group(*group) for group in one["groups"]]
        tenth = max(1, len(history) // 10)
        for name, lines in (("entropy_start", history[:tenth]), ("entropy_end", history[-tenth:])):
            note(name, _mean([line.get("unguided/entropy") for line in lines]))
        note("clip_share", 100 * _mean([line.get("clip_ratio/region_mean") for line in history]))
        note("signal", 100 * _mean([float(g.correct > 0) for g in groups if g.stratum == "unguided"]))
        note("guided_end", 100 * _mean([line.get("guided/reward") for line in history[-tenth:]]))
        grown = solved_while_training(groups, hard)
        note("grew", 100 * len(grown) / len(hard) if groups else math.nan)
        note("kept", 100 * _mean([float(name in after["hard"].solved) for name in grown]))
        gains = {name: float((one.pass_of_problems(1) - before[name][0] / one.samples).mean())
                 for name, one in after.items()}  # fmt: skip
        note("ray", 100 * (gains.get("near", math.nan) - gains["hard"]))
        note("hard_rollouts", float(sum(g.n for g in groups if g.stratum == "unguided")) if groups else math.nan)
        for name, value in one.get("teacher", {}).items():
            note(name, value)
        note("reliance_rank", rank_correlation(before["reliance"], transfer_rates(groups, hard)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _mean(values: Iterable[float | None]) -> float:
    """The mean of the values that are there; NaN if none is."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _train(
    run: Run, world: World, sets: dict[str, list[Problem]], recipe: Recipe, cycles: int, index: int, folder: Path,
    base: Path,
) -> dict[str, Any]:  # fmt: skip
    """Train once; returns the log, groups, probes and tokens. A finished training is not repeated."""
    s, finished = world.settings, folder / "finished.json"
    assert isinstance(s, RivalSettings)
    if finished.exists():
        return read_json(finished)
    steps, seed = cycles * s.updates_per_batch, 1000 * run.seed + index
    probe = Probe(world, sets, s, cycles, run.seed, folder)
    callbacks = [Progress(run, index * steps, s.rl_seeds * steps), probe]
    if s.learner == "distil":
        pairs = {
            one.id: (str(world.prompts.without_prefix(one.prompt)),
                     str(world.prompts.with_prefix(one.prompt, recipe.prefixes[one.id])))
            for one in sets["hard"] if one.id in recipe.prefixes
        }  # fmt: skip
        teacher = teacher_and_student(Path(world.model), sets["hard"], pairs)
        sampled = distil(Path(world.model), [*pairs.values()], s, cycles, seed, s.save_every, folder, callbacks)
        tokens = cycles * s.prompts_per_batch * s.rollouts * recipe.prompt + sampled
        done: dict[str, Any] = {"history": [], "groups": [], "tokens": tokens, "teacher": teacher}
    else:
        curriculum = curriculum_of(s, world, recipe, sets["hard"], cycles, base / "prefixes.json")
        name = _REWARDS.get(s.reward) or _REWARDS.get(s.guided_reward)
        grader = Grader(f"{_CHAIN}:{name}", workers=0) if name else world.grader
        extra = {"disable_tqdm": True, "save_total_limit": 1, "use_cpu": True, "adam_epsilon": s.adam_epsilon}
        settings = TrainingSettings(
            cycles=cycles, seed=seed, extra=extra, save_every=s.save_every, order="stratified", expected_length=1.0,
            pass_at_k=s.pass_at_k, **s.model_dump(include=set(Optimisation.model_fields)),
        )  # fmt: skip
        model, tokenizer = load_base(Path(world.model))
        trainer = train(model, recipe.rows, reward_function(grader), settings, folder, tokenizer=tokenizer,
                        callbacks=callbacks, curriculum=curriculum)  # fmt: skip
        lines = [line for line in trainer.state.log_history if "reward" in line]
        kept = ("unguided/", "guided/", "easy/", "clip_ratio/region_mean", "grad_norm")
        history = [
            {key: float(value) for key, value in line.items()
             if key.startswith(kept) and value is not None and math.isfinite(float(value))}
            for line in lines
        ]  # fmt: skip
        done = {"history": history, "groups": curriculum.state(), "tokens": lines[-1]["num_tokens"]}
    write_json(finished, {**done, "probes": probe.lines})
    return read_json(finished)
