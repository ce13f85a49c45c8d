"""The plan of a study of POPE, its rivals and controls: settings, metrics and presets. Free of torch.

What it asks is in :mod:`retarget.pope.studies.questions`.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from retarget.errors import UserError
from retarget.pope.studies.plan import METRICS as FIRST
from retarget.pope.studies.plan import PACKAGES, Settings
from retarget.pope.studies.plan import PRESETS as FIRST_PRESETS
from retarget.pope.studies.questions import QUESTIONS, Question, claims
from retarget.settings import resolve_settings
from retarget.study.config import SHARE, Arm, Condition, Metric, StudyPlan, choose_arms, refuse_decided

Prefix = Literal["none", "minimal", "quarter", "random", "longest", "unrelated", "instruction", "scrambled"]


class RivalSettings(Settings):
    """Settings of one run; an arm overrides the fields of its recipe."""

    # The recipe of an arm
    prefix: Prefix = Field(default="none", description="the prefix in guided prompts; see controls.py")
    ratio: float = Field(default=1.0, ge=0, description="guided rows / unguided rows; 1e6 for guided rows only")
    easy: Literal["none", "near", "far"] = Field(
        default="none", description="easy problems in the mixture, as many as hard ones: near takes those that the "
        "base solves in 20 to 80 % of samples, far the shortest; an arm without enough of them is not measured"
    )  # fmt: skip
    curriculum: Literal["none", "phases", "annealed", "when_wrong", "unsolved", "adaptive"] = Field(
        default="none", description="see curricula.py"
    )
    warm_start: Literal["none", "oracle", "guided"] = Field(
        default="none",
        description="supervised training before RL, on oracle solutions or on correct guided completions",
    )
    warm_steps: int = Field(default=200, ge=1, description="steps of supervised training, with 16 solutions each; ours")
    warm_lr: float = Field(default=3e-4, gt=0, description="learning rate of supervised training, with AdamW; ours")
    warm_rollouts: int = Field(
        default=32, ge=1, description="guided rollouts per problem from which correct completions are taken"
    )
    pass_at_k: int = Field(default=1, ge=1, description="above 1: the direct pass@k objective; see functional.py")
    reward: Literal["correct", "reference"] = Field(
        default="correct", description="reference gives wrong completions half the share of correct steps as reward"
    )
    guided_reward: Literal["any", "continued", "restated"] = Field(
        default="any",
        description="whether a guided completion may, must not or must repeat the part given in its prompt",
    )
    learner: Literal["grpo", "distil"] = Field(
        default="grpo",
        description="distil is TRL's SDFT, whose teacher is the same model with the searched prefix in its prompt",
    )
    strategy: Literal["grid", "bisect"] = Field(
        default="grid", description="strategy of the prefix search; see search.py"
    )
    adam_epsilon: float = Field(
        default=1e-8,
        gt=0,
        description="with the size of the reward's gradient, an entropy bonus alone takes no full step",
    )
    budget: float = Field(
        default=1.0, gt=0, description="factor on the number of cycles that equal budgets give the arm"
    )
    # The world
    restated: float = Field(default=0.0, ge=0, le=1, description="of the guided rows of a generated corpus; see Corpus")
    width: int = Field(default=64, ge=8, description="width of a generated base model")
    # Measured during training
    probes: int = Field(default=3, ge=0, description="evaluations during training, evenly spaced")
    probe_problems: int = Field(default=24, ge=1, description="problems of each set in a probe")
    probe_samples: int = Field(default=8, ge=1, description="samples per problem in a probe")


_OTHERWISE = ("easy_pass1", "search_rollouts", "train_rollouts", "signal")
_SIGNAL = next(one for one in FIRST if one.name == "signal").model_copy(update={"needs": ("far_pass1", 1.0)})

METRICS = (
    *(one for one in FIRST if one.name not in _OTHERWISE),
    _SIGNAL,
    Metric(name="far_pass1", label="shortest problems, pass@1", **SHARE, better="higher"),
    Metric(name="easy_pass1", label="near easy problems, pass@1", **SHARE, better="higher", optional=True,
           description="the base solved 20 to 80 % of other samples of each; missing if it has too few such problems"),
    Metric(name="entropy_start", label="entropy of unguided rollouts, first tenth", unit="nats", optional=True),
    Metric(name="entropy_end", label="entropy of unguided rollouts, last tenth", unit="nats", optional=True),
    Metric(name="clip_share", label="tokens whose ratio was clipped", **SHARE, optional=True),
    Metric(name="grew", label="hard problems solved unguided while training", **SHARE, better="higher", optional=True,
           description="at least one rollout, at the training temperature"),
    Metric(name="kept", label="hard problems solved in training, share solved afterwards", **SHARE, better="higher",
           optional=True),
    Metric(name="ray", label="gain of near easy minus gain of hard problems", unit="points", optional=True,
           description="pass@1 after minus before; also without interference if hard problems never get a reward"),
    Metric(name="ece", label="ECE of the majority answer", **SHARE, better="lower", optional=True,
           description="its share among the samples against whether it is right, on hard, held-out and the shortest "
           "problems"),
    Metric(name="aurc", label="AURC of the majority answer", **SHARE, better="lower", optional=True,
           description="expected over the orders of equal shares"),
    Metric(name="overlap", label="right states of guided rollouts that unguided ones reach", **SHARE, optional=True,
           description="after training, on hard problems with the search's prefixes, weighted by visits; 32 rollouts "
           "each"),
    Metric(name="overlap_chance", label="right states of guided rollouts that unguided ones reach by chance", **SHARE,
           optional=True,
           description="expected of unguided rollouts of the same form with random results"),
    Metric(name="reliance", label="hint reliance", unit="nats", optional=True,
           description="log-probability of the base's right guided rollouts, per token: with the prefix minus without"),
    Metric(name="reliance_rank", label="rank correlation of reliance and transfer", decimals=2, optional=True,
           description="over problems: reliance against the share of unguided rollouts that were right while training"),
    Metric(name="student_right", label="log-probability of the right solution, student", unit="nats", optional=True,
           description="self-distillation: of the base, per token, unguided"),
    Metric(name="teacher_right", label="log-probability of the right solution, teacher", unit="nats", optional=True,
           description="of the base, with the prefix in the prompt"),
    Metric(name="teacher_gain", label="gain of the right solution by the teacher's prefix", unit="nats", optional=True,
           description="below 0 the student is pulled away from what is right"),
    Metric(name="hard_rollouts", label="rollouts on hard problems without a prefix", decimals=0, optional=True,
           description="while training"),
    Metric(name="oracle", label="uses the oracle", decimals=0, optional=True, deterministic=True),
    Metric(name="rollouts", label="rollouts in all", decimals=0, optional=True,
           description="mining, search where it is used, and training"),
    Metric(name="tokens", label="tokens in all, prompts included", decimals=0, optional=True),
)  # fmt: skip

SEARCH_METRICS = (
    Metric(name="search_rollouts", label="rollouts of the search", better="lower", decimals=0, optional=True),
    Metric(name="prefix_length", label="length of the prefix", **SHARE, better="lower", optional=True,
           description="of the solution; a problem without a helpful prefix has the longest"),
    *(one.model_copy(update={"optional": True}) for one in METRICS),
)  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        **FIRST_PRESETS["demo"],
        "probes": 2,
        "samples": 32,
        "hard_problems": 16,
        "held_problems": 16,
        "cycles": 30,
    },
    "small": {**FIRST_PRESETS["small"], "rl_seeds": 1, "samples": 64},
}
MINUTES_PER_RUN = {"demo": 1.5, "small": 2.0}


def plan(
    name: str,
    preset: str = "demo",
    config: dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    arms: list[str] | None = None,
) -> StudyPlan:
    """The resolved plan of one question's study.

    Args:
        name: one of :data:`QUESTIONS`.
        preset: ``demo`` (one generated base model, minutes) or ``small`` (five base models, with one training of each
            arm on each).
        config: settings that override the preset's (keys of :class:`RivalSettings`); ``family`` and ``style`` choose
            among the question's conditions.
        seeds: seeds of the base models, instead of the preset's.
        arms: names of the arms to run.

    Raises:
        UserError: unknown question, preset, setting or arm; a real model; a cap that an arm exceeds; or no condition of
            this family and style.
    """
    config = dict(config or {})
    if name not in QUESTIONS:
        raise UserError(f"no question {name!r} for pope: choose {', '.join(QUESTIONS)}")
    if preset not in PRESETS:
        raise UserError(f"no preset {preset!r} for question {name} of pope: choose {', '.join(PRESETS)}")
    if "model" in config:
        raise UserError(
            f"question {name} needs generated base models, whose states can be compared exactly: leave out model"
        )
    question = QUESTIONS[name]
    worlds = {key: config.pop(key) for key in ("family", "style") if key in config}
    resolve_settings(RivalSettings, {**PRESETS[preset], **worlds})  # refuses unknown values
    conditions = tuple(one for one in question.conditions if _is_of(one, worlds))
    if not conditions:
        asked = ", ".join(f"{key}={value}" for key, value in worlds.items())
        raise UserError(f"question {name} has no condition with {asked}; its conditions: {_names(question)}")
    if preset == "demo":
        conditions = conditions[:1]
    refuse_decided(config, question.arms, conditions)
    settings = resolve_settings(RivalSettings, {**PRESETS[preset], **config})
    several = len(conditions) > 1
    chosen = choose_arms(question.arms, arms)
    _refuse_cap(settings.cap, chosen)
    return StudyPlan(
        study=f"pope.{name}",
        title=f"POPE: {question.title}, on problems that this package generates",
        question=question.asks,
        preset=preset,
        task="retarget.pope.studies.rivals:run",
        task_name="pope.rivals-2",
        packages=PACKAGES,
        analysis="retarget.pope.studies.rivals_analysis:analyse",
        settings=settings.model_dump(mode="json"),
        settings_model=RivalSettings,
        conditions=conditions,
        arms=chosen,
        seeds=tuple(seeds) if seeds else ((0, 1, 2, 3, 4) if preset == "small" else (0,)),
        metrics=SEARCH_METRICS if name == "search" else METRICS,
        claims=tuple(claim for one in conditions for claim in claims(question, one, f"_{one.name}" if several else "")),
        minutes_per_run=MINUTES_PER_RUN[preset],
    )


def _refuse_cap(cap: float, arms: Sequence[Arm]) -> None:
    """Raise if the longest prefix is shorter than what an arm shows first."""
    if cap < 0.5 and any(arm.settings.get("curriculum") == "phases" for arm in arms):
        raise UserError(
            f"cap = {cap:g}, but the arm questa begins with half of the solution: give a cap of at least 0.5, or leave "
            "the arm out of --arms"
        )


def _is_of(condition: Condition, worlds: dict[str, Any]) -> bool:
    has = {"family": "chain", "style": "terse", **condition.settings}
    return all(has[key] == value for key, value in worlds.items())


def _names(question: Question) -> str:
    return ", ".join(one.label or one.name for one in question.conditions)
