"""Sampling of completions: the interface of every engine. Free of torch; the engines themselves are in engines/."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar, runtime_checkable

from pydantic import Field

from retarget.errors import UserError
from retarget.pope.answers import THINKING_BEGINS, THINKING_ENDS, after_thinking
from retarget.pope.prompts import Prompt
from retarget.settings import Strict

T = TypeVar("T")

_LOOK_EVERY = 0.5
"""Seconds after which a wait for a thread begins anew: a signal just before it began does not end it."""


class Sampling(Strict):
    """Settings for sampling completions.

    The defaults are the paper's for training rollouts (temperature 0.8); its evaluation adds top_p 0.95 and top_k 50.

    Attributes:
        max_tokens: longest completion in tokens, thinking included. The paper's mining allows 32,768.
        temperature: 0 is greedy.
        top_p, top_k: 1 and 0 disable them.
        seed: decides the completions, together with the prompt, ``purpose`` and ``chunk``.
        chunk: number of the chunk among a problem's rollouts, from 0.
        purpose: what the completions are for (``mine``, ``evaluate``, ...); set by mining, search, oracle and
            evaluation. With the same seed, an evaluation thus does not repeat the rollouts that selected its problems.
    """

    max_tokens: int = Field(default=16384, ge=1)
    temperature: float = Field(default=0.8, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    seed: int = 0
    chunk: int = Field(default=0, ge=0)
    purpose: str = ""

    def of(self, purpose: str) -> "Sampling":
        """These settings with a purpose, unless they already have one."""
        return self.model_copy(update={"purpose": self.purpose or purpose})

    def unit_seed(self, prompt: Prompt) -> int:
        """Seed (31 bits) of one unit of work: it depends on the prompt and the chunk, not on the rest of the batch.

        >>> Sampling().unit_seed("a") == Sampling().unit_seed("a") != Sampling(chunk=1).unit_seed("a")
        True
        """
        text = json.dumps([self.seed, self.purpose, self.chunk, prompt], sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Rollout:
    """One completion.

    Attributes:
        text: without special tokens. If the engine returns a thinking block, it is included, with its ``<think>`` even
            if the prompt template wrote that.
        tokens: number of generated tokens.
        truncated: whether ``max_tokens`` ended the completion.
        thinking: number of tokens before the answer: those of the thinking block, all tokens if it never ends, 0 if
            there is none. None if a server does not report it.
    """

    text: str
    tokens: int
    truncated: bool
    thinking: int | None = 0

    @property
    def answer_text(self) -> str:
        """The text after the thinking block, or the whole text if there is no block; see ``after_thinking``.

        >>> Rollout("<think>1</think> 2", 9, False).answer_text
        ' 2'
        """
        return after_thinking(self.text)


def opened(rendered: str, text: str) -> str:
    """A completion, with ``<think>`` in front if its prompt ended with that.

    Args:
        rendered: the end of the prompt as the model read it.
        text: the text that the model generated.

    >>> opened("<|assistant|><think>\\n", "4?"), opened("<|assistant|>", "4")
    ('<think>4?', '4')
    """
    return f"{THINKING_BEGINS}{text}" if rendered.rstrip().endswith(THINKING_BEGINS) else text


def tag_keeper(tokenizer: Any) -> Callable[[Sequence[int]], str] | None:
    """A decoder that leaves out special tokens but keeps thinking tags that are special.

    Returns:
        The decoder; None if no thinking tag is a special token, so that the tokenizer's own decoding keeps them.
    """
    special = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    tags = {THINKING_BEGINS, THINKING_ENDS} & special.keys()
    dropped = {number for token, number in special.items() if token not in tags}

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode([one for one in ids if one not in dropped], skip_special_tokens=False)

    return decode if tags else None


def thinking_tokens(text: str, tokens: int, count: Callable[[str], int]) -> int:
    """Number of tokens of a completion before its answer begins (see :attr:`Rollout.thinking`).

    Args:
        text: the completion.
        tokens: its total number of tokens.
        count: returns the number of tokens of a text.

    >>> thinking_tokens("<think> a b </think> 2", 5, lambda text: len(text.split())), thinking_tokens("2", 1, len)
    (4, 0)
    """
    answer = after_thinking(text)
    if not answer:
        return tokens if text else 0
    return min(tokens, count(text.removesuffix(answer))) if answer != text else 0


@runtime_checkable
class Engine(Protocol):
    """The interface of an engine, which samples completions.

    ``sample(prompts, n, params)`` returns n rollouts per prompt, in order. The rollouts of a prompt may depend only on
    that prompt, ``params`` and ``n``, so that a resumed run, whose batches differ, samples the same. An engine may have
    an ``identity``: a dictionary of JSON values that decide its rollouts, in addition to its name (a hash of the
    weights, a batch size). Journals record it, and refuse to continue with another.
    """

    name: str

    def sample(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
        """n rollouts of each prompt.

        Raises:
            Refused: the engine refuses a prompt.
        """
        ...


class Refused(UserError):
    """The engine gives no rollouts of a prompt: it refuses it (too long, filtered), or fails on it again and again.

    Its problem fails; the others continue. Nothing is journalled of it, so the next call asks again.
    """


class Failed(Refused):
    """The engine fails on a prompt in all attempts, and answers others. The prompt need not be to blame."""


Ask = Callable[[Prompt, int, Sampling], Awaitable[list[Rollout]]]
"""``await ask(prompt, n, params)`` gives n rollouts of one prompt."""


@runtime_checkable
class StreamingEngine(Protocol):
    """The interface of an engine that answers prompts independently of each other, several at a time.

    ``session()`` opens the engine and yields an :data:`Ask`; ``window(n)`` is the number of prompts, each with n
    rollouts, to have in flight.
    """

    name: str

    def session(self) -> AbstractAsyncContextManager[Ask]:
        """Open the engine for any number of prompts."""
        ...

    def window(self, n: int) -> int:
        """The number of prompts to have in flight, if each asks for n rollouts."""
        ...


def sample_through(engine: StreamingEngine, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
    """:meth:`Engine.sample` for a streaming engine: n rollouts of each prompt, in order, in one session."""

    async def all_of_them() -> list[list[Rollout]]:
        async with engine.session() as ask:
            tasks = [asyncio.ensure_future(ask(prompt, n, params)) for prompt in prompts]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

    return run_async(all_of_them())


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Wait for asynchronous work, as ``asyncio.run`` does, also where an event loop runs already: in a notebook.

    There the work has a thread of its own. An interrupt cancels it.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    begun: list[tuple[asyncio.AbstractEventLoop, Any]] = []
    ready, interrupted = threading.Event(), threading.Event()
    ended: SimpleQueue[Future[T]] = SimpleQueue()  # an interrupt of its `get` leaves no lock behind, unlike a future's

    async def begin() -> T:
        begun.append((asyncio.get_running_loop(), asyncio.current_task()))
        if interrupted.is_set():  # before there was a task to cancel
            work.close()
            raise asyncio.CancelledError
        return await work

    def in_thread() -> T:
        ready.wait()
        return asyncio.run(begin())

    with ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(in_thread).add_done_callback(ended.put)
            ready.set()
            future = None
            while future is None:
                with suppress(Empty):
                    future = ended.get(timeout=_LOOK_EVERY)
            return future.result()
        except BaseException:
            interrupted.set()
            ready.set()
            with suppress(RuntimeError):  # the loop has ended
                for loop, task in begun:
                    loop.call_soon_threadsafe(task.cancel)
            raise
