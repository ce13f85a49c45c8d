"""POPE: begin problems that never give a reward with a piece of an oracle solution, in the prompt (Qu et al. 2026)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retarget.pope.grading import Grader
    from retarget.pope.mining import mine
    from retarget.pope.mixture import mix
    from retarget.pope.problems import Problem, read_problems, write_problems
    from retarget.pope.prompts import Prompts
    from retarget.pope.search import search_prefixes

_HOME = {
    "Grader": "grading",
    "Problem": "problems",
    "Prompts": "prompts",
    "mine": "mining",
    "mix": "mixture",
    "read_problems": "problems",
    "search_prefixes": "search",
    "write_problems": "problems",
}
__all__ = ["Grader", "Problem", "Prompts", "mine", "mix", "read_problems", "search_prefixes", "write_problems"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
