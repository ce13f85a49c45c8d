"""The world of a study: a generated base model with its problems, or a real model with problem files."""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retarget.errors import UserError
from retarget.pope.engines import open_engine
from retarget.pope.engines.local import TransformersEngine
from retarget.pope.grading import Grader
from retarget.pope.problems import Problem, read_problems
from retarget.pope.prompts import Prompts
from retarget.pope.rollouts import Engine, Sampling
from retarget.pope.sampler import Sampler
from retarget.pope.studies.chain import Corpus, make_problems
from retarget.pope.studies.plan import Settings
from retarget.pope.studies.testbed import PROMPTS, BaseModel, load_base, train_base
from retarget.study.config import StudyPlan

EASY_PROBLEMS = 32
ROWS = 256
"""Rows per call of ``generate`` on a generated base model, for which many rows cost little more than few."""
BASE_STEPS = {"chain": 1500, "arms": 2500, "ends": 1500}
"""Training steps that a base model of a family needs to solve its short problems."""
ENDS_LOSS = 0.5
"""Loss, in nats per token, at which the training of a base model of ``ends`` stops; the step differs between seeds."""
_HELD_OUT_SEED = 1_000_003


@dataclass(frozen=True)
class World:
    """A base model and its problems.

    Attributes:
        model: directory or name of the base model.
        candidates, held_candidates: problems from which the hard ones are mined, for training and held out.
        easy: problems that the base model often solves; none for a real model.
        grader, prompts: grader and prompts of these problems.
        mining, sampling, evaluation: sampling settings of mining, of search and training, and of evaluation.
        chunk: rollouts per unit of work in mining.
        settings: settings of the run.
    """

    model: str
    candidates: list[Problem]
    held_candidates: list[Problem]
    easy: list[Problem]
    grader: Grader
    prompts: Prompts
    mining: Sampling
    sampling: Sampling
    evaluation: Sampling
    chunk: int
    settings: Settings

    def engine(self, model: str | Path | None = None, name: str = "base") -> Engine:
        """An engine for the base model, or for a model that was trained from it."""
        if self.settings.engine == "vllm":
            return open_engine(f"vllm:{model or self.model}")
        if self.settings.model is not None:
            return open_engine(str(model or self.model))
        network, tokenizer = load_base(Path(model or self.model))
        return TransformersEngine(network, tokenizer, batch_size=ROWS, name=name)

    def sampler(self, engine: Engine, params: Sampling, chunk: int) -> Sampler:
        """A sampler with the engine and this world's grader and prompts."""
        return Sampler(engine, self.grader, self.prompts, params, chunk)


def make_world(
    settings: Settings,
    seed: int,
    cache: Path,
    progress: Callable[[int, int], None],
    network: dict[str, int] | None = None,
    restated: float = 0.0,
) -> World:
    """The world of a run; trains a generated base model if the cache does not have it.

    Args:
        settings: settings of the run.
        seed: seed of the base model and its problems.
        cache: directory for generated base models.
        progress: called with (finished steps, all steps) of the base model's training.
        network: fields of a generated base model that differ from the default, such as its ``width``.
        restated: ``restated`` of its corpus.

    Raises:
        UserError: a real model is given without problem files.
    """
    if settings.model is not None:
        return _real(settings, seed)
    corpus = corpus_of(settings.family, settings.style).model_copy(update={"restated": restated})
    steps = settings.base_steps or BASE_STEPS[settings.family]
    base = BaseModel(
        corpus=corpus, steps=steps, seed=seed, short_only_steps=steps // 3,
        stop_loss=ENDS_LOSS if settings.family == "ends" else None, **(network or {}),
    )  # fmt: skip
    directory = train_base(base, cache, progress)
    family, style = corpus.family, corpus.style
    length = corpus.long[1]
    # Some candidates are solved by chance, so there are a quarter more than needed.
    candidates = make_problems(_more(settings.hard_problems), length, seed, family, style)
    held = make_problems(_more(settings.held_problems), length, seed + _HELD_OUT_SEED, family, style,
                         skip=[problem.id for problem in candidates])  # fmt: skip
    easy = make_problems(EASY_PROBLEMS, corpus.short[1], seed + _HELD_OUT_SEED, family, style)
    return World(
        model=str(directory), candidates=candidates, held_candidates=held, easy=easy,
        grader=Grader(settings.grader, workers=0), prompts=PROMPTS, chunk=64, settings=settings,
        **_sampling(settings, seed),
    )  # fmt: skip


def corpus_of(family: str, style: str) -> Corpus:
    """The corpus of a base model of this family.

    In ``chain``, traces of long chains are sloppy. In ``arms``, the choice among chains is a habit. In ``ends``, no
    trace is sloppy, but only the ends of long chains occur, each after the beginning of a solution.
    """
    if family in ("chain", "ends"):
        return Corpus(family="chain", style="terse" if style == "terse" else "own", long_ends_only=family == "ends")
    return Corpus(
        family="arms", style="terse" if style == "terse" else "own", short=(1, 2), long=(3, 4), off_by_one=1.0
    )


def check(plan: StudyPlan) -> None:
    """The cheap checks of a study with a real model, for a dry run: its files, templates, grader and local model.

    Raises:
        UserError: one of them cannot be used.
    """
    settings = Settings.model_validate(plan.settings)
    _real(settings, 0)
    name = settings.model or ""
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"{name}: no such folder of a model")


def _real(settings: Settings, seed: int) -> World:
    if settings.model is None or settings.problems is None or settings.held_out is None:
        raise UserError("a study with a real model needs problem files: --set problems=FILE held_out=FILE")
    templates = Path(settings.templates) if settings.templates else None
    training, held = (
        read_problems(
            file, settings.format, fields=settings.fields, skip_invalid=settings.skip_invalid, write_rejects=False
        )
        for file in (settings.problems, settings.held_out)
    )
    both = {_plain(one.prompt) for one in training} & {_plain(one.prompt) for one in held}
    if both:
        raise UserError(
            f"{len(both)} problems of {settings.held_out} are in {settings.problems} too: leave them out of one file, "
            "since held-out problems must not be trained on"
        )
    # Files are often sorted, MATH's by subject: the first problems that are hard would all be of one kind.
    training, held = (
        [some[at] for at in np.random.default_rng(seed).permutation(len(some))] for some in (training, held)
    )
    return World(
        model=settings.model, candidates=training, held_candidates=held, easy=[], grader=Grader(settings.grader),
        prompts=Prompts.load(templates, chat=settings.chat), chunk=32, settings=settings, **_sampling(settings, seed),
    )  # fmt: skip


def _plain(prompt: str) -> str:
    """A prompt in one spelling: problems of two files are the same whatever their spaces and composed letters."""
    return " ".join(unicodedata.normalize("NFKC", prompt).split())


def _sampling(settings: Settings, seed: int) -> dict[str, Sampling]:
    sampling = Sampling(max_tokens=settings.max_completion_length, temperature=settings.temperature, seed=seed)
    drawn = {"top_p": settings.eval_top_p, "top_k": settings.eval_top_k}
    return {
        "sampling": sampling,
        "mining": sampling.model_copy(update={"max_tokens": settings.mine_tokens}),
        "evaluation": sampling.model_copy(update={"temperature": settings.eval_temperature, **drawn}),
    }


def _more(count: int) -> int:
    return count + -(-count // 4)
