"""The POPE study as data: settings, presets, arms, claims. Free of torch.

The unit of replication is the base model: a run's seed chooses the base, its problems and everything random, and each
arm trains several times on that base (``rl_seeds``) and reports the mean.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from retarget.errors import UserError
from retarget.pope.formats import Format
from retarget.pope.settings import Optimisation, TrainingSettings, forward_passes
from retarget.settings import resolve_settings
from retarget.study.config import (
    SHARE,
    Arm,
    Claim,
    Condition,
    Metric,
    StudyPlan,
    choose_arms,
    claims_under,
    refuse_decided,
)

_CODE = "the authors' training configuration"
_READERS = "reported by readers of the paper"


class Settings(Optimisation):
    """Settings of one run; an arm overrides ``role``."""

    # The world
    family: Literal["chain", "arms", "ends"] = Field(
        default="chain", description="generated problems; see studies/chain.py and corpus_of in studies/worlds.py"
    )
    style: Literal["terse", "own"] = Field(
        default="terse", description="style of the oracle: a result per two operations, or, as the model's own, per one"
    )
    model: str | None = Field(default=None, description="name or path of a real model, instead of a generated world")
    problems: str | None = Field(default=None, description="a real model's training problems; see problems.py")
    held_out: str | None = Field(default=None, description="a real model's held-out problems")
    format: Format = Field(default="auto", description="of these files: auto | plain | gsm8k | math | set")
    fields: dict[str, str] = Field(
        default={}, description="these files' names of id, prompt, solution and answer, as for --fields"
    )
    skip_invalid: bool = Field(default=False, description="whether to leave out invalid rows of these files")
    templates: str | None = Field(
        default=None, description="a real model's templates, as for --templates of `retarget pope mine`"
    )
    chat: bool = Field(default=True, description="send a real model's prompts through its chat template")
    engine: Literal["transformers", "vllm"] = Field(
        default="transformers", description="what samples completions: transformers | vllm"
    )
    grader: str = Field(default="math", description="math, boxed, exact, numeric, or module:function")
    base_steps: int | None = Field(
        default=None, ge=1, description="training steps of a generated base model; see BASE_STEPS in studies/worlds.py"
    )
    # Problems
    hard_problems: int = Field(ge=2, description=f"training problems with 0 of mine_k; 256 in the paper: {_READERS}")
    held_problems: int = Field(ge=2, description="held-out problems with 0 of mine_k")
    mine_k: int = Field(default=128, ge=1, description=f"128: {_CODE}")
    mine_tokens: int = Field(default=32768, ge=1, description=f"longest completion in mining, in tokens: {_READERS}")
    # Prefixes
    cuts: int = Field(default=4, ge=1, description="number of cuts to try; the paper's is not known")
    cap: float = Field(
        gt=0, lt=1, description=f"longest prefix, as a share of the solution; .25 in the paper: {_READERS}"
    )
    unit: Literal["sentence", "line", "step", "token"] = Field(
        default="sentence", description="boundary to cut at: sentence | line | step | token"
    )
    search_k: int = Field(default=64, ge=1, description="rollouts per cut, at most; the paper's number is not known")
    # Training, with the fields of Optimisation
    cycles: int = Field(ge=1, description="generation batches of the POPE arm")
    match_rollouts: bool = Field(default=True, description="unguided GRPO also gets the search's rollouts")
    rl_seeds: int = Field(default=3, ge=1, description="trainings per base model; a run reports their mean")
    save_every: int = Field(default=10, ge=1, description="cycles between checkpoints")
    # Evaluation
    samples: int = Field(default=32, ge=16, description=f"fresh unguided samples per problem; 32: {_CODE}")
    eval_temperature: float = Field(default=0.8, ge=0, description=_CODE)
    eval_top_p: float = Field(default=0.95, gt=0, le=1, description=_CODE)
    eval_top_k: int = Field(default=50, ge=0, description=f"0 disables it; 50: {_CODE}")
    # The arm
    role: Literal["base", "unguided", "pope", "trained", "searched"] = "base"


_TESTBED: dict[str, Any] = dict(
    grader="retarget.pope.tasks.chain:verify",  # the old import path, which unfinished studies have: see graders.MOVED
    cap=0.75, unit="line", prompts_per_batch=16, rollouts=16,
    updates_per_batch=2, micro_batch=128, lr=1e-4, max_grad_norm=1.0, entropy_bonus=0.0, clip_low=0.2, clip_high=0.2,
    temperature=1.0, max_completion_length=19, max_prompt_length=64, mine_tokens=19, eval_temperature=1.0,
    eval_top_p=1.0, eval_top_k=0,
)  # fmt: skip

# The demo has four base models instead of one, each with half of the problems and samples, and a fifth less training.
# Its length was chosen after a pilot: seeds 100 to 102 with base_steps=800 cycles=20 showed hardly any difference, and
# wide intervals (tools/demo_spread.py), so the training was made longer. It was once tried without the arm of
# GRPO alone, whose three claims spread most. The demo only demonstrates; evidence is in results/.
PRESETS: dict[str, dict[str, Any]] = {
    "demo": dict(
        **_TESTBED, base_steps=1200, hard_problems=16, held_problems=16, cycles=40, rl_seeds=1, samples=32,
    ),
    "small": dict(**_TESTBED, hard_problems=64, held_problems=64, cycles=80, rl_seeds=3, samples=256),
    # About an hour on two cores for a model of 135 million weights.
    "real": dict(
        hard_problems=12, held_problems=4, mine_k=16, mine_tokens=512, max_completion_length=512, cuts=3, cap=0.75,
        search_k=8, samples=16, prompts_per_batch=8, cycles=100, rl_seeds=1,
    ),
    "paper": dict(
        model="Qwen/Qwen3-4B-Instruct-2507", problems="problems.jsonl", held_out="held-out.jsonl", engine="vllm",
        hard_problems=256, held_problems=100, cuts=8, cap=0.25, cycles=400, rl_seeds=1,
    ),
}  # fmt: skip

SEEDS = {"demo": (0, 1, 2, 3), "small": (0, 1, 2, 3, 4), "real": (0,), "paper": (0,)}
MINUTES_PER_RUN = {"demo": 0.3, "small": 3.5, "real": 60.0, "paper": 2880.0}

REFERENCE = """@misc{qu2026pope,
  author = {Qu, Yuxiao and Setlur, Amrith and Smith, Virginia and Salakhutdinov, Ruslan and Kumar, Aviral},
  title = {{POPE}: Learning to Reason on Hard Problems via Privileged On-Policy Exploration},
  year = {2026}, eprint = {2601.18779}, archivePrefix = {arXiv}
}"""

PACKAGES = (("transformers", "rl"), ("trl", "rl"), ("datasets", "rl"), ("math_verify", "rl"))
"""The packages that runs of POPE's studies import, each with its extra."""

MINED = "mined.json"
"""The file of a base model's run with the numbers of mined problems of each kind, for training and held out."""

ARMS = (
    Arm(name="base", label="base model", settings={"role": "base"}),
    Arm(name="unguided", label="GRPO on hard problems", settings={"role": "unguided"}, needs=("base",)),
    Arm(name="pope", label="POPE", settings={"role": "pope"}, needs=("base",)),
)

METRICS = (
    Metric(name="hard_pass1", label="hard problems, pass@1", **SHARE, better="higher",
           description="unguided, fresh samples"),
    Metric(name="hard_pass16", label="hard problems, pass@16", **SHARE, better="higher"),
    Metric(name="hard_solved", label="hard problems solved", **SHARE, better="higher",
           description="at least one of the fresh samples; as many samples for every arm and the base"),
    Metric(name="held_pass1", label="held-out hard problems, pass@1", **SHARE, better="higher"),
    Metric(name="held_pass16", label="held-out hard problems, pass@16", **SHARE, better="higher"),
    Metric(name="held_solved", label="held-out hard problems solved", **SHARE, better="higher"),
    Metric(name="easy_pass1", label="short problems, pass@1", **SHARE, better="higher", optional=True, floor=1.0,
           description="what the base could do before"),
    Metric(name="signal", label="unguided groups with a reward", **SHARE, better="higher", optional=True,
           needs=("easy_pass1", 1.0),
           description="share of the unguided groups of training with at least one success"),
    Metric(name="guided_start", label="guided success before training, prefix found", **SHARE, better="higher",
           optional=True, description="fresh samples of the base on problems whose prefix the search found"),
    Metric(name="guided_helped", label="problems with a guided success before training, prefix found", **SHARE,
           better="higher", optional=True,
           description="share of those problems with a guided success among the fresh samples"),
    Metric(name="unguided_start", label="unguided success before training, prefix found", **SHARE, optional=True,
           description="fresh unguided samples of the base on the same problems"),
    Metric(name="guided_all", label="guided success before training, all hard problems", **SHARE, better="higher",
           optional=True, description="also those with the longest prefix because none helped in the search"),
    Metric(name="guided_all_helped", label="problems with a guided success before training, all hard problems", **SHARE,
           better="higher", optional=True),
    Metric(name="guided_gain", label="guided minus unguided before training", unit="points", better="higher",
           optional=True, description="fresh samples of the base on all hard problems, with and without the prefix"),
    Metric(name="guided_end", label="guided reward, last tenth of training", **SHARE, better="higher", optional=True),
    Metric(name="found", label="problems with a helpful prefix", **SHARE, optional=True),
    Metric(name="search_rollouts", label="rollouts of the search", decimals=0, optional=True),
    Metric(name="train_rollouts", label="rollouts of training", decimals=0, optional=True),
)  # fmt: skip


def claims(condition: str, suffix: str = "") -> tuple[Claim, ...]:
    """The abstract's claims under one condition; differences are in percentage points."""
    claim = claims_under(condition, suffix)
    return (
        claim("no_signal", "On hard problems, on-policy RL rarely sees a single correct rollout.", "signal", "lower",
              1.0, ("unguided",), against=5.0),
        claim("guided_reward", "With a prefix of an oracle solution in the prompt, rollouts get a reward.",
              "guided_gain", "higher", 0.5, ("base",), against=0.0, shown="guided_start"),
        claim("transfer", "What is learnt with guidance transfers to the original, unguided problems.", "hard_pass1",
              "higher", 1.0, ("pope", "base"), shown="hard_pass16"),
        claim("more_solved", "POPE solves more hard problems than RL on them alone, at equal rollouts.", "hard_solved",
              "higher", 2.0, ("pope", "unguided"), shown="hard_pass1"),
        claim("held_out", "The gain reaches hard problems that were not trained on.", "held_pass1", "higher", 1.0,
              ("pope", "unguided"), shown="held_pass16"),
    )  # fmt: skip


ELSEWHERE = (
    Claim(id="entropy", sentence="Entropy bonuses, wider clipping and pass@k objectives do not fix exploration.",
          metric="hard_pass1", direction="higher", smallest_effect=1.0, arms=("pope", "entropy")),
    Claim(id="easy_mix", sentence="Mixing easy and hard problems is counterproductive: ray interference.",
          metric="hard_pass1", direction="higher", smallest_effect=1.0, arms=("pope", "easy_and_hard")),
)  # fmt: skip

CONDITIONS = {
    f"{family}_{style}": Condition(
        name=f"{family}_{style}",
        label=f"{'long chains' if family == 'chain' else 'a choice among chains'}, "
        f"{'terse oracle' if style == 'terse' else 'oracle in the own style'}",
        settings={"family": family, "style": style},
    )
    for family in ("chain", "arms")
    for style in ("terse", "own")
}


def plan(
    preset: str = "demo",
    config: dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    arms: list[str] | None = None,
) -> StudyPlan:
    """The resolved plan of the study.

    Args:
        preset: ``demo`` (four generated base models, minutes), ``small`` (five base models × three trainings, both
            families and both oracle styles, hours on two cores; ``family`` and ``style`` in ``config`` choose some of
            them), ``real`` (a small model of your own: mining, search and guided rates on a CPU, by default without
            training) or ``paper`` (Qwen3-4B on GPUs with vLLM).
        config: settings that override the preset's (keys of :class:`Settings`).
        seeds: seeds of the base models, instead of the preset's.
        arms: names of the arms to run; by default all, and with ``real`` only ``base``.

    Raises:
        UserError: unknown preset, setting or arm, or ``real`` without a model and its files.
    """
    if preset not in PRESETS:
        raise UserError(f"no preset {preset!r} for pope: choose {', '.join(PRESETS)}")
    settings = resolve_settings(Settings, {**PRESETS[preset], **(config or {})})
    real = settings.model is not None
    if preset == "real" and not (real and settings.problems and settings.held_out):
        raise UserError("preset real needs a model and its problems: --set model=DIR problems=FILE held_out=FILE")
    chosen = choose_arms(ARMS, arms or (["base"] if preset == "real" else None))
    if real:
        _refuse_real(settings, config or {}, chosen)
    default = Condition(label="a real model" if real else CONDITIONS[f"{settings.family}_{settings.style}"].label)
    given = {key: value for key, value in (config or {}).items() if key in ("family", "style")}
    worlds = tuple(one for one in CONDITIONS.values() if given.items() <= one.settings.items())
    conditions = worlds if preset == "small" and not real else (default,)
    refuse_decided(set(config or {}) - set(given), ARMS, conditions)
    decided = [one for condition in conditions for one in claims(condition.name, _suffix(condition))]
    return StudyPlan(
        study="pope",
        title="POPE: privileged prefixes for problems that never give a reward"
        + ("" if real else ", on problems that this package generates"),
        question="Do prefixes of oracle solutions in the prompt let a model learn problems that it never solves?",
        preset=preset,
        task="retarget.pope.studies.run:run",
        task_name="pope",
        packages=PACKAGES,
        former_tasks=("retarget.pope.tasks.experiment:run",),
        analysis="retarget.pope.studies.analysis:analyse",
        check="retarget.pope.studies.worlds:check" if real else None,
        settings=settings.model_dump(mode="json", exclude=set(_GENERATED) if real else None),
        settings_model=Settings,
        data=tuple(
            path for path in (settings.problems, settings.held_out, settings.templates, settings.model) if real and path
        ),
        conditions=conditions,
        arms=chosen,
        seeds=tuple(seeds) if seeds else SEEDS[preset],
        metrics=METRICS,
        claims=(*decided, *(one.model_copy(update={"condition": conditions[0].name}) for one in ELSEWHERE)),
        minutes_per_run=MINUTES_PER_RUN[preset],
        references=(REFERENCE,),
    )


_GENERATED = ("family", "style", "base_steps")
"""Settings of generated problems and their base models."""


def _refuse_real(settings: Settings, given: dict[str, Any], arms: Sequence[Arm]) -> None:
    """Raise if a study of a real model has settings of generated ones, or such that an arm would fail after hours."""
    if wrong := sorted(given.keys() & set(_GENERATED)):
        raise UserError(f"{', '.join(wrong)}: for generated problems only; leave it out, or leave out model")
    if settings.mine_k < 2:
        raise UserError(
            "mine_k = 1: after one wrong answer nothing tells a hard problem from a wrong label; give at least 2"
        )
    if len(arms) > 1:
        optimisation = settings.model_dump(include=set(Optimisation.model_fields))
        forward_passes(TrainingSettings(cycles=settings.cycles, **optimisation), 1)
        if settings.hard_problems < settings.prompts_per_batch:
            raise UserError(
                f"hard_problems = {settings.hard_problems} do not fill one generation batch of "
                f"{settings.prompts_per_batch} prompts, each of another problem: set prompts_per_batch lower or "
                "hard_problems higher"
            )


def _suffix(condition: Condition) -> str:
    return "" if condition.name == "default" else f"_{condition.name}"
