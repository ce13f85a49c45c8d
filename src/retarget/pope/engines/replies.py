"""What servers answer: the rollouts in it, why there are none, and whether they are samples at all."""

import logging
from collections.abc import Sequence
from typing import Any

from retarget.pope.answers import THINKING_BEGINS, after_thinking
from retarget.pope.rollouts import Rollout

_LOG = logging.getLogger(__name__)
_ABORTED = {"abort", "error"}
_CUT_OFF = {"length", "max_tokens", "max_output_tokens", "model_length", "content_filter"}
"""Reasons, in lower case, why servers end a completion before the model does: by fault, and by rule."""
_SHORT = 20
_SUSPICIOUS = (3, 12)
"""So many units and rollouts in a row that repeat one text each are no chance; texts below ``_SHORT`` characters may
well be equal."""


def failure(answer: Any) -> str:
    """Why an answer with status 200 has no completions, or none that the model ended; empty if it has."""
    if not isinstance(answer, dict):
        return ""
    choices = answer.get("choices")
    if not choices and answer.get("error"):
        return f"HTTP 200 with an error: {str(answer['error'])[:300]}"
    if choices == []:
        return "HTTP 200 without completions"
    if isinstance(choices, list):
        ended = [_reason(one) for one in choices if isinstance(one, dict)]
        if stopped := [one for one in ended if one in _ABORTED]:
            return f"{len(stopped)} of {len(ended)} completions were not finished by the server ({stopped[0]})"
    return ""


def rollouts_in(answer: Any, opens_thinking: bool) -> tuple[list[Rollout], bool]:
    """The rollouts in an answer, and whether it counts tokens.

    A server counts the tokens of all completions of a request together. They are divided equally, and the remainder
    goes to the first, so that sums are exact.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is no answer of an OpenAI-compatible server.
    """
    choices = answer["choices"]
    usage = answer.get("usage") or {}
    total = usage.get("completion_tokens")
    each, more = divmod(int(total or 0), max(1, len(choices)))
    told = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
    thinking = int(told) if told is not None and len(choices) == 1 else None
    found = [_rollout(one, each + (at < more), thinking, opens_thinking) for at, one in enumerate(choices)]
    return found, total is not None


def _reason(choice: dict[str, Any]) -> str:
    return str(choice.get("finish_reason")).lower()


def _rollout(choice: dict[str, Any], tokens: int, told: int | None, opens_thinking: bool) -> Rollout:
    message = choice.get("message")
    text = _clean(_joined(message.get("content") or "") if message is not None else choice["text"])
    # Servers that parse out the thinking block return it in a field of its own.
    thinking = (message or {}).get("reasoning_content") or (message or {}).get("reasoning")
    if thinking:
        # Without an answer, the block was not closed: the completion then has no answer, as in the other engines.
        thought = f"{THINKING_BEGINS}{_clean(thinking)}"
        text = f"{thought}</think>{text}" if text else thought
    elif opens_thinking:
        text = f"{THINKING_BEGINS}{text}"
    # Only the server can count tokens: its tokenizer is not available here.
    thought_tokens = told if after_thinking(text) != text else 0
    return Rollout(text, tokens, _reason(choice) in _CUT_OFF, thought_tokens)


def _joined(content: str | list[dict[str, Any]]) -> str:
    """The text of a message whose content is a text, or a list of parts with a text each."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _clean(text: str) -> str:
    r"""A text that can be encoded as UTF-8: half a surrogate pair, which JSON can contain, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Repeats:
    """Warns once if a server answers every seed alike, as caching proxies do: then k rollouts are worth one.

    Units of one rollout, at temperature 0, and of texts below 20 characters tell nothing. The others have to repeat one
    text each, at least 3 units and 12 rollouts in a row.
    """

    def __init__(self) -> None:
        self._units = self._rollouts = 0
        self._told = False

    def see(self, shown: str, rollouts: Sequence[Rollout], temperature: float) -> None:
        """Take note of a unit.

        Args:
            shown: what the warning calls the servers.
            rollouts: all rollouts of one prompt and chunk, in any order.
            temperature: that they were sampled at.
        """
        texts = {one.text for one in rollouts}
        if self._told or temperature == 0 or len(rollouts) < 2:
            return
        if len(texts) > 1:
            self._units = self._rollouts = 0
        elif len(texts.pop()) >= _SHORT:
            self._units, self._rollouts = self._units + 1, self._rollouts + len(rollouts)
            if self._units >= _SUSPICIOUS[0] and self._rollouts >= _SUSPICIOUS[1]:
                self._told = True
                _LOG.warning(
                    "%s: in %d units in a row all rollouts are the same text (%d rollouts at temperature %g, each "
                    "request with its own seed). A cache in a proxy, or a server that does not sample, makes pass@k "
                    "equal to pass@1: turn it off", shown, self._units, self._rollouts, temperature,
                )  # fmt: skip
