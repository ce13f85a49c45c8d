# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # POPE's stages on problems of your own
#
# Mining, prefix search and mixing need an *engine*: anything with a name that samples completions. Here a few lines
# stand for a model that finishes a sum if it is given the first step, and never by itself. With a real model it is one
# line, `engine = open_engine("path/to/model")`, with `from retarget.pope.engines import open_engine`.

# %%
from retarget.pope import Problem, mine, mix, search_prefixes
from retarget.pope.rollouts import Rollout

problems = [
    Problem(
        id=f"sum-{a}",
        prompt=f"What is {a} + {a} + 1?",
        solution=f"Twice {a} is {2 * a}.\nAdd 1 to that.\nThe answer is {2 * a + 1}.",
        answer=str(2 * a + 1),
    )
    for a in (12, 17, 31, 44)
]


class FinishesSums:
    """Right in one rollout of four if the prompt holds the first step of the solution."""

    name = "finishes-sums"

    def sample(self, prompts, n, params):
        return [[self._one(str(prompt), number) for number in range(n)] for prompt in prompts]

    def _one(self, prompt, number):
        problem = next(one for one in problems if one.prompt in prompt)
        guided = problem.solution.split("\n")[0] in prompt
        answer = problem.answer if guided and number % 4 == 0 else str(number)
        return Rollout(f"The answer is \\boxed{{{answer}}}.", tokens=8, truncated=False)


engine = FinishesSums()

# %% [markdown]
# **Mine**: which problems are never solved? Every answer is graded. A problem whose label looks wrong is set aside.

# %%
hard = mine(problems, engine, k=16)
for outcome in hard.outcomes:
    print(outcome.problem.id, outcome.kind)

# %% [markdown]
# **Search**: the shortest beginning of the solution with which the model succeeds at least once. A beginning that
# states the answer is refused.

# %%
prefixes = search_prefixes(hard, engine, cuts=4, cap=0.8, k=8)
for one in prefixes.found:
    print(one.problem, one.status, repr(one.prefix))

# %% [markdown]
# **Mix**: each hard problem twice, once with its prefix in the prompt and once without, both in one batch.
# Any trainer takes these rows: nothing else changes.

# %%
rows = mix(hard, prefixes, prompts_per_batch=4)
for row in rows[:2]:
    print("guided" if row["guided"] else "unguided", row["prompt"], sep="\n", end="\n\n")

# %% [markdown]
# `retarget pope train` trains on them with TRL; `retarget pope export` writes them for verl, OpenRLHF and prime-rl.
# [The guide](../guides/reinforcement.md) continues from here.
