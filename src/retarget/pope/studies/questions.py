"""What the studies of POPE's rivals ask, as data: arms, conditions, and the claims that pairs of arms decide.

Every arm is a configuration of the same trainer (:mod:`retarget.pope.studies.rivals`). It gets at least POPE's
rollouts and, at the length of the base model's completions, at least its tokens, prompts included. Completions change
while a model learns, so the tokens that were used are counted and shown. Mining is charged to all arms, the search to
those that use it.
"""

from typing import Any

from retarget.pope.studies.plan import CONDITIONS as WORLDS
from retarget.settings import Strict
from retarget.study.config import Arm, Claim, Condition, claims_under


class Question(Strict):
    """A study of some arms, with its claims.

    Attributes:
        name, title: of the study.
        asks: what it asks, in a sentence for its page.
        arms, conditions: its arms and conditions.
        pairs: its claims, as (id, sentence, metric, better arm, other arm, smallest effect); see also :data:`FLOORS`.
    """

    name: str
    title: str
    asks: str
    arms: tuple[Arm, ...]
    conditions: tuple[Condition, ...]
    pairs: tuple[tuple[str, str, str, str, str, float], ...] = ()


def _arm(name: str, label: str, **settings: Any) -> Arm:
    return Arm(name=name, label=label, settings={"role": "trained", **settings}, needs=("base",))


BASE = Arm(name="base", label="base model", settings={"role": "base"})
UNGUIDED = _arm("unguided", "GRPO on hard problems")
POPE = _arm("pope", "POPE", prefix="minimal")
CORE = (
    BASE,
    UNGUIDED,
    POPE,
    _arm("entropy", "GRPO, entropy bonus .01", entropy_bonus=0.01),
    _arm("wide_clip", "GRPO, clip to [0.8, 5]", clip_high=4.0),
    _arm("pass_at_8", "GRPO, pass@8 objective", pass_at_k=8),
    _arm("hard_easy", "GRPO, hard + easy", easy="near"),
    _arm("unrelated", "control: prefix of an unrelated problem", prefix="unrelated"),
    _arm("instruction", "control: instruction alone", prefix="instruction"),
    _arm("sft_oracle", "SFT on oracle solutions, then GRPO", warm_start="oracle"),
)
DISTIL = (
    _arm("distil", "self-distillation with the prefix in the prompt", learner="distil"),
    _arm("distil_unrelated", "control: self-distillation with an unrelated prefix", learner="distil",
         prefix="unrelated"),
)  # fmt: skip
MORE = (
    _arm("scrambled", "control: prefix with its numbers scrambled", prefix="scrambled"),
    _arm("sft_guided", "SFT on correct guided completions, then GRPO", warm_start="guided"),
    _arm("entropy_scaled", "GRPO, entropy bonus .01, Adam's epsilon at the reward's gradient", entropy_bonus=0.01,
         adam_epsilon=1e-3),
    _arm("hard_easier", "GRPO, hard + easier", easy="far"),
    _arm("pope_easy", "POPE + easy", prefix="minimal", easy="near"),
    _arm("unguided_half", "control: GRPO on hard problems, half of the rollouts", budget=0.5),
    _arm("questa", "QuestA: half of the solution, then a quarter", curriculum="phases"),
    _arm("when_wrong", "prefix after an all-wrong group", curriculum="when_wrong"),
    _arm("unsolved", "POPE on problems not yet solved", prefix="minimal", curriculum="unsolved"),
    _arm("annealed", "annealed prefix", curriculum="annealed"),
    _arm("adaptive", "prefix kept at half success, then withdrawn", curriculum="adaptive"),
    *DISTIL,
    _arm("reference", "GRPO, the reference in the reward", reward="reference"),
)  # fmt: skip

NO_RIVALS = ("unrelated", "instruction", "scrambled", "unguided_half", "distil_unrelated", "pope_easy")
"""Controls, and POPE itself in another mixture: none of them is another method."""

SWEEPS = (
    BASE,
    *(_arm(f"entropy_{at:g}", f"GRPO, entropy bonus {at:g}", entropy_bonus=at) for at in (0.001, 0.01, 0.1)),
    *(
        _arm(f"scaled_{at:g}", f"GRPO, entropy bonus {at:g}, Adam's epsilon 1e-3", entropy_bonus=at, adam_epsilon=1e-3)
        for at in (0.001, 0.01, 0.1)
    ),
    *(_arm(f"clip_{high:g}", f"GRPO, clip to [0.8, {1 + high:g}]", clip_high=high) for high in (0.28, 1.0, 4.0)),
    *(_arm(f"pass_at_{k}", f"GRPO, pass@{k} objective", pass_at_k=k) for k in (4, 8, 16)),
)

ENDS = Condition(name="ends_terse", label="long chains of which the base saw the ends, terse oracle",
                 settings={"family": "ends", "style": "terse", "mine_k": 1024})  # fmt: skip
FAMILIES = (WORLDS["chain_terse"], WORLDS["arms_terse"], ENDS)
SIZES = tuple(
    Condition(name=f"width_{width}", label=f"width {width}", settings={"width": width}) for width in (32, 64, 96)
)

DISTIL_SENTENCE = "RL behind a prefix beats self-distillation from the model's own predictions behind it."
_PAIRS = (
    ("transfer", "What is learnt with guidance transfers to the original, unguided problems.", "hard_pass1", "pope",
     "base", 1.0),
    ("more_solved", "The set of solvable problems grows: POPE solves more than RL on hard problems alone.",
     "hard_solved", "pope", "unguided", 2.0),
    ("held_out", "The gain reaches hard problems that were not trained on.", "held_pass1", "pope", "unguided", 1.0),
    ("entropy", "An entropy bonus, at Adam's full step, does not fix exploration: POPE solves more.", "hard_pass1",
     "pope", "entropy", 1.0),
    ("entropy_scaled", "An entropy bonus scaled to the reward's gradient does not fix exploration: POPE solves more.",
     "hard_pass1", "pope", "entropy_scaled", 1.0),
    ("wide_clip", "More permissive clipping does not fix exploration: POPE solves more.", "hard_pass1", "pope",
     "wide_clip", 1.0),
    ("pass_at_k", "Optimising pass@k directly does not fix exploration: POPE solves more.", "hard_pass1", "pope",
     "pass_at_8", 1.0),
    ("destabilise", "An entropy bonus, at Adam's full step, destabilises: it costs the shortest problems.", "far_pass1",
     "unguided", "entropy", 1.0),
    ("destabilise_scaled", "An entropy bonus scaled to the reward's gradient destabilises: it costs the shortest "
     "problems.", "far_pass1", "unguided", "entropy_scaled", 1.0),
    ("ray", "Ray interference: easy problems in the mixture cost hard ones. After as many rollouts on hard problems, "
     "fewer are right than after RL on hard problems alone.", "hard_pass1", "unguided_half", "hard_easy", 1.0),
    ("easy_mix", "Mixing easy and hard problems is counterproductive: fewer hard rollouts are right than after RL on "
     "hard problems alone.", "hard_pass1", "unguided", "hard_easy", 1.0),
    ("ray_far", "Ray interference by the shortest problems: after as many rollouts on hard problems, fewer are right.",
     "hard_pass1", "unguided_half", "hard_easier", 1.0),
    ("far_mix", "Mixing hard problems with the shortest ones is counterproductive: fewer hard rollouts are right.",
     "hard_pass1", "unguided", "hard_easier", 1.0),
    ("beats_mix", "POPE solves more hard problems than hard and easy ones mixed.", "hard_pass1", "pope", "hard_easy",
     1.0),
    ("imitation", "The prefix as privileged information beats the solution as a training target.", "hard_pass1", "pope",
     "sft_oracle", 1.0),
    ("imitation_held", "… on hard problems that were not trained on.", "held_pass1", "pope", "sft_oracle", 1.0),
    ("unrelated", "It is the solution's own beginning that helps: a prefix of an unrelated problem helps less.",
     "hard_pass1", "pope", "unrelated", 1.0),
    ("instruction", "It is the prefix that helps: the instruction alone helps less.", "hard_pass1", "pope",
     "instruction", 1.0),
    ("scrambled", "It is the prefix's content that helps: with its numbers scrambled it helps less.", "hard_pass1",
     "pope", "scrambled", 1.0),
    ("adaptive", "A fixed prefix beats one whose length is adapted to keep half of the rollouts right.", "hard_pass1",
     "pope", "adaptive", 1.0),
    ("when_wrong", "Prefixes on half of the rows beat prefixes after an all-wrong group only.", "hard_pass1", "pope",
     "when_wrong", 1.0),
    ("questa", "The shortest prefix that helps beats half of the solution and then a quarter.", "hard_pass1", "pope",
     "questa", 1.0),
    ("distil", DISTIL_SENTENCE, "hard_pass1", "pope", "distil", 1.0),
    ("imitation_guided", "Privileged on-policy exploration beats imitating correct guided completions.", "hard_pass1",
     "pope", "sft_guided", 1.0),
    ("easy_mends", "Easy problems in POPE's mixture mend what it forgets of the shortest ones.", "far_pass1",
     "pope_easy", "pope", 1.0),
)  # fmt: skip

FLOORS: dict[str, tuple[str, float, str]] = {
    "ray": ("signal", 5.0, "unguided_half"),
    "ray_far": ("signal", 5.0, "unguided_half"),
    "wide_clip": ("clip_share", 1.0, "unguided"),
    "distil": ("teacher_gain", 0.0, "distil"),
}
"""Claims of which an arm must have something to show, as (metric, least mean, arm), or they are not measured.

Easy problems cannot cost hard ones anything if these get no reward without them either; a wider clip changes nothing
where the narrow one clips nothing; a teacher that finds right solutions no likelier than its student teaches nothing.
"""

_SHOWN = {"hard_pass1": "hard_solved", "hard_solved": "hard_pass1", "held_pass1": "held_pass16"}
_MECHANISM = {
    "entropy": "entropy_end", "entropy_scaled": "entropy_end", "destabilise": "entropy_end",
    "destabilise_scaled": "entropy_end", "wide_clip": "clip_share", "pass_at_k": "signal", "ray": "signal",
    "ray_far": "signal", "stitching": "overlap", "distil_unrelated": "teacher_gain",
}  # fmt: skip
"""What is shown beside a claim: what its mechanism did, or else another score on the same problems."""

RATIOS = (("one_to_none", "1:0", 1e6), ("three_to_one", "3:1", 3.0), ("one_to_one", "1:1", 1.0),
          ("one_to_three", "1:3", 1 / 3))  # fmt: skip
"""1e6 leaves no unguided row; infinity cannot be written as JSON."""

QUESTIONS = {
    one.name: one
    for one in (
        Question(name="rivals", title="rivals and controls at equal budget",
                 asks="What do prefixes do that rivals with the same budget do not?",
                 arms=(*CORE, *MORE), conditions=FAMILIES, pairs=_PAIRS),
        Question(name="sweeps", title="settings of the rivals, on bases of their own",
                 asks="Which settings of its rivals should POPE be compared with?", arms=SWEEPS,
                 conditions=FAMILIES[:2]),
        Question(
            name="mixture", title="guided to unguided rows",
            asks="How many guided and unguided rows should the mixture have?", conditions=FAMILIES[:1],
            arms=(BASE, *(_arm(name, f"guided to unguided {label}", prefix="minimal", ratio=ratio)
                          for name, label, ratio in RATIOS)),
            pairs=(("needs_unguided", "The mixture needs unguided rows.", "hard_pass1", "one_to_one", "one_to_none",
                    1.0),),
        ),
        Question(
            name="prefixes", title="which prefix",
            asks="Which prefix should a guided prompt show?", conditions=FAMILIES[:1],
            arms=(BASE, *(_arm(name, label, prefix=name) for name, label in (
                ("minimal", "the shortest that helps"), ("quarter", "a quarter of the solution"),
                ("random", "of random length"), ("longest", "the longest allowed")))),
            pairs=(("minimal", "The shortest prefix that helps is better than the longest.", "hard_pass1", "minimal",
                    "longest", 1.0),),
        ),
        Question(
            name="gradient_clip", title="clipping the gradient at the authors' number and at 64 times it",
            asks="Does clipping the gradient at the authors' value hold POPE back?",
            conditions=FAMILIES[:1],
            arms=(BASE, _arm("clip_0.3", "POPE, gradient norm 0.3", prefix="minimal", max_grad_norm=0.3),
                  _arm("clip_19.2", "POPE, gradient norm 19.2", prefix="minimal", max_grad_norm=19.2)),
            pairs=(("gradient_clip", "Clipping 64 times less lets POPE learn more.", "hard_pass1", "clip_19.2",
                    "clip_0.3", 1.0),),
        ),
        Question(name="sizes", title="three sizes of the model",
                 asks="Does POPE help models of other sizes?", arms=(BASE, UNGUIDED, POPE), conditions=SIZES,
                 pairs=_PAIRS[:3]),
        Question(
            name="search", title="the search by halves against the whole grid",
            asks="Does halving find prefixes as good as those of the whole grid, in fewer rollouts?",
            conditions=FAMILIES[:1],
            arms=(BASE, *(
                Arm(name=name, label=label, needs=("base",),
                    settings={"role": "searched", "strategy": name, "cuts": 8, "unit": "token"})
                for name, label in (("grid", "all cuts from the shortest on"), ("bisect", "halving the cuts"))
            )),
        ),
        Question(
            name="instruction", title="may a guided completion write the given part again?",
            asks="Why does it transfer: must a completion pass through what unguided rollouts reach?",
            conditions=(Condition(label="a base that does so half of the time", settings={"restated": 0.5}),),
            arms=(BASE, POPE, _arm("continued", "POPE, the given part must not be repeated", prefix="minimal",
                                   guided_reward="continued"),
                  _arm("restated", "POPE, the given part must be repeated", prefix="minimal",
                       guided_reward="restated")),
            pairs=(("stitching", "Forbidding to repeat the given part lowers what transfers.", "hard_pass1", "pope",
                    "continued", 1.0),),
        ),
        Question(
            name="distil", title="reinforcement or self-distillation behind a prefix",
            asks="Where a model behind a prefix knows the solution better than without, is RL or self-distillation the "
            "better use of it?",
            conditions=(Condition(label="a base that always writes the given part again", settings={"restated": 1.0}),),
            arms=(BASE, UNGUIDED, POPE, *DISTIL),
            pairs=(
                ("distil", DISTIL_SENTENCE, "hard_pass1", "pope", "distil", 1.0),
                ("teaches", "Self-distillation from the prefix solves hard problems.", "hard_pass1", "distil", "base",
                 1.0),
                ("distil_unrelated", "It is the prefix that teaches: an unrelated one teaches less.", "hard_pass1",
                 "distil", "distil_unrelated", 1.0),
            ),
        ),
    )
}  # fmt: skip


def claims(question: Question, condition: Condition, suffix: str) -> tuple[Claim, ...]:
    """The question's claims under one condition; differences are in percentage points."""
    claim = claims_under(condition.name, suffix)
    first: tuple[Claim, ...] = ()
    if question.name == "rivals":
        first = (
            claim("no_signal", "On hard problems, on-policy RL rarely sees a single correct rollout.", "signal",
                  "lower", 1.0, ("unguided",), against=5.0),
            claim("guided_reward", "With a prefix of an oracle solution in the prompt, rollouts get a reward.",
                  "guided_gain", "higher", 0.5, ("base",), against=0.0),
        )  # fmt: skip
    if question.name == "search":
        pair = ("bisect", "grid")
        first = (
            claim("cheaper", "Halving the cuts needs fewer rollouts than trying all of them.", "search_rollouts",
                  "lower", 100.0, pair),
            claim("as_good", "Fresh guided rollouts succeed as often, within half a point.", "guided_all", "higher",
                  0.25, pair, margin=0.5),
            claim("as_many", "As many problems get a helpful prefix, within five points.", "found", "higher", 1.0, pair,
                  margin=5.0),
            claim("as_short", "Prefixes are as short, within five points of the solution.", "prefix_length", "lower",
                  1.0, pair, margin=5.0),
        )  # fmt: skip
    return first + tuple(
        claim(name, sentence, metric, "higher", effect, (treated, control), **_beside(name, metric))
        for name, sentence, metric, treated, control, effect in question.pairs
    )


def _beside(name: str, metric: str) -> dict[str, Any]:
    """A claim's floor, if it has one, and the metric that is shown with it."""
    beside: dict[str, Any] = {"shown": _MECHANISM.get(name) or _SHOWN.get(metric)}
    if name in FLOORS:
        floor, least, arm = FLOORS[name]
        beside |= {"floor": (floor, least), "floor_arm": arm}
    return beside
