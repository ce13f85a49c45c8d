"""The guided and the unguided prompt, made from template files that a user can replace."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.identity import fingerprint

TEMPLATES = Path(__file__).parent / "templates"
VARIANTS = ("guided", "guided_no_restate")
_PLACE = re.compile(r"\{(problem|prefix)\}")
_LITERAL = re.compile(r"(?<![\\\w}\]^])\{[^\W\d]\w+\}")
"""A word in braces that are no argument of a LaTeX command."""
_LOG = logging.getLogger(__name__)

Prompt = str | list[dict[str, Any]]
"""A plain text, or chat messages with ``role`` and ``content``."""


def templated(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> Any:
    """Chat messages in the tokenizer's template, with the words that begin the answer.

    Raises:
        UserError: the tokenizer has no template, or the template refuses the messages.
    """
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        name = tokenizer.name_or_path or "the tokenizer"
        raise UserError(f"{name} has no chat template: use plain prompts (--no-chat, for search and mix alike)")
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
    except TemplateError as error:
        raise UserError(
            f"the model's chat template refuses the prompt: {error}. If it knows no system message, give --templates a "
            "folder with an empty system.txt"
        ) from error


@dataclass(frozen=True)
class Prompts:
    """Templates of two prompts for a problem: alone, and with the beginning of an oracle solution.

    The prefix is in the *user's* turn, with the instruction to continue it; the system message is the same in both
    prompts (section 4 of the paper). As part of the prompt, it comes before any thinking block, and none of its tokens
    has a loss.

    Attributes:
        unguided: template with ``{problem}``.
        guided: template with ``{problem}`` and ``{prefix}``.
        system: system message, empty for none.
        chat: True makes messages for a chat template; False makes one text, for models without a chat template.

    Raises:
        UserError: a template lacks a placeholder, or has one twice.
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
                held = ", ".join(re.findall(r"\{\w+\}", getattr(self, name))) or "none"
                raise UserError(
                    f"the {name} template must contain {wanted} exactly once and no other placeholder; it has: {held}"
                )
        for name in ("system", "unguided", "guided"):
            text = getattr(self, name) if name == "system" else _PLACE.sub(" ", getattr(self, name))
            if literal := list(dict.fromkeys(_LITERAL.findall(text))):
                _LOG.warning(
                    "the %s template has %s, which is no placeholder there: the model reads it as it is written", name,
                    ", ".join(literal),
                )  # fmt: skip

    @classmethod
    def load(cls, directory: Path | None = None, variant: str = "guided", chat: bool = True) -> "Prompts":
        """Read ``system.txt``, ``unguided.txt`` and ``VARIANT.txt``.

        Args:
            directory: templates of your own; files that it lacks are taken from the package.
            variant: ``guided``, or ``guided_no_restate``, which forbids repeating the given part (the ablation of
                the paper in which guided success rises and unguided success falls).
            chat: see the class.

        Raises:
            UserError: there is no such directory or variant, the directory has none of these files, or a template
                lacks a placeholder.
        """
        if directory is not None and not directory.is_dir():
            raise UserError(f"{directory}: no such directory of templates")
        known = [f"{name}.txt" for name in dict.fromkeys(("system", "unguided", *VARIANTS, variant))]
        if directory is not None and not any((directory / name).is_file() for name in known):
            raise UserError(f"{directory} has no template: name at least one file there {' or '.join(known)}")

        def read(name: str) -> str:
            own = directory / f"{name}.txt" if directory else None
            path = own if own and own.exists() else TEMPLATES / f"{name}.txt"
            if not path.exists():
                raise UserError(f"no template {name}.txt: choose {', '.join(VARIANTS)}, or write one in --templates")
            try:
                return path.read_text(encoding="utf-8").removesuffix("\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{path} is not UTF-8 (byte {error.start}): save the template as UTF-8") from error

        return cls(unguided=read("unguided"), guided=read(variant), system=read("system"), chat=chat)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the templates."""
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
            UserError: the prefix is empty, so the prompt would be unguided but count as guided.
        """
        if not prefix.strip():
            raise UserError("the prefix is empty: a guided prompt needs one; use without_prefix for an unguided prompt")
        return self._prompt(self.guided, {"problem": problem, "prefix": prefix})

    def instruction_alone(self, problem: str) -> Prompt:
        """The guided prompt without a prefix: a control that separates the instruction's effect from the prefix's."""
        prompt = self._prompt(self.guided, {"problem": problem, "prefix": ""})
        return prompt.replace("  ", " ") if isinstance(prompt, str) else prompt

    def _prompt(self, template: str, values: dict[str, str]) -> Prompt:
        # One pass, so that braces in a problem (LaTeX) are never mistaken for placeholders.
        text = _PLACE.sub(lambda found: values[found[1]], template)
        if not self.chat:
            return f"{self.system}\n\n{text}" if self.system else text
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": text}]
