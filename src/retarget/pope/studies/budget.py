"""Equal budgets: how many cycles an arm may train so that it spends at least what POPE does. Free of torch."""

import math

from retarget.settings import Strict


class Spent(Strict):
    """Rollouts, and tokens with the prompts' counted once for each rollout."""

    rollouts: int = 0
    tokens: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(rollouts=self.rollouts + other.rollouts, tokens=self.tokens + other.tokens)


class Costs(Strict):
    """What the base's run cost, and what a rollout costs.

    Attributes:
        mining: of the hard training problems, their candidates included; charged to every arm.
        search: of the prefixes; charged to the arms that use them.
        unguided, guided: mean tokens of a prompt of the hard problems, with the searched prefix and without.
        completion: mean tokens of the base's completions of hard problems.
    """

    mining: Spent
    search: Spent
    unguided: float
    guided: float
    completion: float


def cycles_of(costs: Costs, pope_cycles: int, batch: int, prompt: float, own: Spent) -> int:
    """Cycles with which an arm spends at least POPE's rollouts and at least its tokens, whichever needs more.

    Args:
        costs: of the base's run.
        pope_cycles: of the POPE arm, half of whose prompts are guided.
        batch: rollouts of a cycle.
        prompt: mean tokens of the arm's prompts.
        own: what the arm spends beside mining and training.

    >>> costs = Costs(mining=Spent(), search=Spent(rollouts=100, tokens=1000), unguided=10, guided=20, completion=5)
    >>> cycles_of(costs, 10, 50, 15.0, costs.search), cycles_of(costs, 10, 50, 10.0, Spent())
    (10, 15)
    """
    a_rollout = (costs.unguided + costs.guided) / 2 + costs.completion
    rollouts = pope_cycles * batch + costs.search.rollouts - own.rollouts
    tokens = pope_cycles * batch * a_rollout + costs.search.tokens - own.tokens
    return max(1, math.ceil(rollouts / batch - 1e-9), math.ceil(tokens / (batch * (prompt + costs.completion)) - 1e-9))
