"""Sample completions: what every engine answers to. Free of torch; the engines stand in engines/."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pydantic import Field

from retarget.errors import UserError
from retarget.pope.answers import THINKING_BEGINS, after_thinking
from retarget.pope.prompts import Prompt
from retarget.settings import Strict


class Sampling(Strict):
    """How completions are drawn.

    The defaults are the paper's for training rollouts (temperature 0.8); its evaluation adds top_p 0.95, top_k 50.

    Attributes:
        max_tokens: budget of one completion, thinking included. The paper mines at 32,768.
        temperature: 0 is greedy.
        top_p, top_k: 1 and 0 switch them off.
        seed: with the prompt, ``purpose`` and ``chunk`` it decides the completions.
        chunk: which chunk of a problem's rollouts this is.
        purpose: what the completions are for (``mine``, ``evaluate``, ...). Mining, search, oracle and evaluation fill
            it in: at equal seeds an evaluation does not repeat the rollouts by which its problems were selected.
    """

    max_tokens: int = Field(default=16384, ge=1)
    temperature: float = Field(default=0.8, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    seed: int = 0
    chunk: int = Field(default=0, ge=0)
    purpose: str = ""

    def of(self, purpose: str) -> "Sampling":
        """These settings for a purpose; one that was given already stays."""
        return self.model_copy(update={"purpose": self.purpose or purpose})

    def unit_seed(self, prompt: Prompt) -> int:
        """Seed (31 bits) of one unit of work: one prompt and one chunk, whatever else is in the batch.

        >>> Sampling().unit_seed("a") == Sampling().unit_seed("a") != Sampling(chunk=1).unit_seed("a")
        True
        """
        text = json.dumps([self.seed, self.purpose, self.chunk, prompt], sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Rollout:
    """One completion.

    Attributes:
        text: without special tokens; a thinking block is part of it where the engine returns one, with its ``<think>``
            where the prompt's template wrote that.
        tokens: tokens that were generated.
        truncated: whether the budget ended it.
        thinking: tokens before the answer begins: those of the thinking block, all of them where it never ends, 0
            without one. None where a server does not say.
    """

    text: str
    tokens: int
    truncated: bool
    thinking: int | None = 0

    @property
    def answer_text(self) -> str:
        """What follows the thinking block, or the whole text of a model that does not think; see ``after_thinking``.

        >>> Rollout("<think>1</think> 2", 9, False).answer_text
        ' 2'
        """
        return after_thinking(self.text)


def opened(rendered: str, text: str) -> str:
    """A completion with the ``<think>`` that its prompt's template opened for it, where one did.

    Args:
        rendered: the end of the prompt as the model read it.
        text: what the model wrote.

    >>> opened("<|assistant|><think>\\n", "4?"), opened("<|assistant|>", "4")
    ('<think>4?', '4')
    """
    return f"{THINKING_BEGINS}{text}" if rendered.rstrip().endswith(THINKING_BEGINS) else text


def thinking_tokens(text: str, tokens: int, count: Callable[[str], int]) -> int:
    """Tokens of a completion up to where its answer begins (see :attr:`Rollout.thinking`).

    Args:
        text: the completion.
        tokens: its tokens in all.
        count: number of tokens of a text.

    >>> thinking_tokens("<think> a b </think> 2", 5, lambda text: len(text.split())), thinking_tokens("2", 1, len)
    (4, 0)
    """
    answer = after_thinking(text)
    if not answer:
        return tokens if text else 0
    return min(tokens, count(text.removesuffix(answer))) if answer != text else 0


@runtime_checkable
class Engine(Protocol):
    """Whatever samples completions.

    ``sample(prompts, n, params)`` returns n rollouts for each prompt, in order. The rollouts of one prompt depend on
    that prompt, ``params`` and ``n`` alone, so that a resumed run, which asks for other batches, samples the same.
    An engine may have ``identity``, a dictionary of JSON values that decide its rollouts beside its name (the hash of
    the weights, a batch size); journals keep it and refuse to go on with another.
    """

    name: str

    def sample(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
        """n rollouts of each prompt.

        Raises:
            Refused: the engine refuses a prompt.
        """
        ...


class Refused(UserError):
    """The engine refuses one prompt (too long, filtered): its problem fails, and the others go on."""


Ask = Callable[[Prompt, int, Sampling], Awaitable[list[Rollout]]]
"""n rollouts of one prompt."""


@runtime_checkable
class StreamingEngine(Protocol):
    """An engine that answers prompts one by one, several at a time.

    ``session()`` opens it and gives :data:`Ask`; ``window(n)`` says how many prompts of n rollouts keep it busy.
    """

    name: str

    def session(self) -> AbstractAsyncContextManager[Ask]:
        """Open the engine for many questions."""
        ...

    def window(self, n: int) -> int:
        """Questions to have in flight."""
        ...


def sample_through(engine: StreamingEngine, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
    """n rollouts of each prompt, in order, from a session of its own: :meth:`Engine.sample` of a streaming engine."""

    async def all_of_them() -> list[list[Rollout]]:
        async with engine.session() as ask:
            tasks = [asyncio.ensure_future(ask(prompt, n, params)) for prompt in prompts]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

    return asyncio.run(all_of_them())
