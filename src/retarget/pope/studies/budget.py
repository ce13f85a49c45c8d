"""Equal budgets: the number of cycles with which an arm is expected to spend at least as much as POPE. Free of torch.

What an arm then spends differs: its completions become longer or shorter than the base model's. The tokens that were
used are counted (metric ``tokens``), and the study's page shows their ratio to POPE's.
"""

import math

from retarget.settings import Strict


class Spent(Strict):
    """Rollouts and tokens; the tokens of a prompt are counted once per rollout."""

    rollouts: int = 0
    tokens: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(rollouts=self.rollouts + other.rollouts, tokens=self.tokens + other.tokens)


class Costs(Strict):
    """Costs of a base model's run, and of a rollout.

    Attributes:
        mining: cost of mining the hard training problems, including all candidates; charged to every arm.
        search: cost of the prefix search; charged to the arms that use its prefixes.
        unguided, guided: mean tokens per prompt of the hard problems, without and with the prefix of the search.
        completion: mean tokens per completion of the base model on hard problems.
    """

    mining: Spent
    search: Spent
    unguided: float
    guided: float
    completion: float


def cycles_of(costs: Costs, pope_cycles: int, batch: int, prompt: float, own: Spent) -> int:
    """The number of cycles with which an arm spends at least POPE's rollouts and, at equal completions, its tokens.

    Args:
        costs: costs of the base model's run.
        pope_cycles: cycles of the POPE arm, half of whose prompts are guided.
        batch: rollouts per cycle.
        prompt: mean tokens per prompt of the arm.
        own: what the arm spends besides mining and training.

    >>> costs = Costs(mining=Spent(), search=Spent(rollouts=100, tokens=1000), unguided=10, guided=20, completion=5)
    >>> cycles_of(costs, 10, 50, 15.0, costs.search), cycles_of(costs, 10, 50, 10.0, Spent())
    (10, 15)
    """
    a_rollout = (costs.unguided + costs.guided) / 2 + costs.completion
    rollouts = pope_cycles * batch + costs.search.rollouts - own.rollouts
    tokens = pope_cycles * batch * a_rollout + costs.search.tokens - own.tokens
    return max(1, math.ceil(rollouts / batch - 1e-9), math.ceil(tokens / (batch * (prompt + costs.completion)) - 1e-9))
