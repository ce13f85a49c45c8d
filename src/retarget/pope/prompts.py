"""The guided and the unguided prompt. Their wording stands in template files that a user may replace."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.identity import fingerprint

TEMPLATES = Path(__file__).parent / "templates"
VARIANTS = ("guided", "guided_no_restate")
_PLACE = re.compile(r"\{(problem|prefix)\}")

Prompt = str | list[dict[str, Any]]
"""A plain text, or chat messages with ``role`` and ``content``."""


@dataclass(frozen=True)
class Prompts:
    """Two prompts for one problem: alone, and with the beginning of an oracle solution.

    The prefix stands in the *user's* turn with an instruction to go on from it; the system message is the same for
    both (section 4 of the paper). Because it is prompt, it comes before any thinking block of a model that thinks,
    and no token of it ever has a loss.

    Attributes:
        unguided: template with ``{problem}``.
        guided: template with ``{problem}`` and ``{prefix}``.
        system: system message, empty for none.
        chat: messages for a chat template; False gives one text, for models without one.
    """

    unguided: str
    guided: str
    system: str = ""
    chat: bool = True

    def __post_init__(self) -> None:
        for name, needed in (("unguided", {"problem"}), ("guided", {"problem", "prefix"})):
            places = _PLACE.findall(getattr(self, name))
            if set(places) != needed or len(places) != len(needed):
                wanted = " and ".join(f"{{{place}}}" for place in sorted(needed, reverse=True))
                raise UserError(f"the {name} template must hold {wanted} once and nothing else, it holds {places}")

    @classmethod
    def load(cls, directory: Path | None = None, variant: str = "guided", chat: bool = True) -> "Prompts":
        """Read ``system.txt``, ``unguided.txt`` and ``VARIANT.txt``; a file that a user's directory lacks is ours.

        Args:
            directory: a user's templates.
            variant: ``guided``, or ``guided_no_restate``, which forbids repeating the given part (the ablation of
                the paper in which guided success rises and unguided success falls).
            chat: see the class.

        Raises:
            UserError: no such directory or variant, or a template without its places.
        """
        if directory is not None and not directory.is_dir():
            raise UserError(f"{directory}: no such directory of templates")

        def read(name: str) -> str:
            own = directory / f"{name}.txt" if directory else None
            path = own if own and own.exists() else TEMPLATES / f"{name}.txt"
            if not path.exists():
                raise UserError(f"no template {name}.txt: choose {', '.join(VARIANTS)} or write one")
            return path.read_text(encoding="utf-8").removesuffix("\n")

        return cls(unguided=read("unguided"), guided=read(variant), system=read("system"), chat=chat)

    @property
    def fingerprint(self) -> str:
        """Identifies the wording of both prompts."""
        return fingerprint([self.unguided, self.guided, self.system, self.chat])

    def without_prefix(self, problem: str) -> Prompt:
        """The unguided prompt.

        >>> Prompts("Q: {problem}", "Q: {problem} So far: {prefix}", chat=False).without_prefix("1 + 1?")
        'Q: 1 + 1?'
        """
        return self._prompt(self.unguided, {"problem": problem})

    def with_prefix(self, problem: str, prefix: str) -> Prompt:
        """The guided prompt.

        Raises:
            UserError: an empty prefix, which would make an unguided row that counts as guided.
        """
        if not prefix.strip():
            raise UserError("the prefix is empty: a guided prompt needs one")
        return self._prompt(self.guided, {"problem": problem, "prefix": prefix})

    def instruction_alone(self, problem: str) -> Prompt:
        """The guided prompt with nothing where the prefix stands: a control, which tells the instruction's effect
        from the prefix's.
        """
        prompt = self._prompt(self.guided, {"problem": problem, "prefix": ""})
        return prompt.replace("  ", " ") if isinstance(prompt, str) else prompt

    def _prompt(self, template: str, values: dict[str, str]) -> Prompt:
        # One pass, so that braces in a problem (LaTeX) are never taken for places.
        text = _PLACE.sub(lambda found: values[found[1]], template)
        if not self.chat:
            return f"{self.system}\n\n{text}" if self.system else text
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": text}]
