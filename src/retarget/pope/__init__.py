"""POPE: put a prefix of an oracle solution into the prompt of problems that never give a reward (Qu et al. 2026)."""

from typing import TYPE_CHECKING

from retarget.lazy import lazy

if TYPE_CHECKING:
    from retarget.pope.grading import Grader
    from retarget.pope.mining import mine
    from retarget.pope.mixture import mix
    from retarget.pope.problems import Problem, read_problems, write_problems
    from retarget.pope.prompts import Prompts
    from retarget.pope.search import search_prefixes

__all__ = ["Grader", "Problem", "Prompts", "mine", "mix", "read_problems", "search_prefixes", "write_problems"]
__getattr__, __dir__ = lazy(
    __name__,
    {
        "Grader": "grading",
        "Problem": "problems",
        "Prompts": "prompts",
        "mine": "mining",
        "mix": "mixture",
        "read_problems": "problems",
        "search_prefixes": "search",
        "write_problems": "problems",
    },
)
