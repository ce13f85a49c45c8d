"""Any OpenAI-compatible server as an engine: vLLM, SGLang, llama.cpp or a hosted teacher."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cached_property
from typing import Any

import httpx

from retarget.errors import UserError
from retarget.pope.answers import THINKING_BEGINS, after_thinking
from retarget.pope.engines.keys import key_for, redact
from retarget.pope.prompts import Prompt
from retarget.pope.rollouts import Ask, Refused, Rollout, Sampling, run_async, sample_through

_LOG = logging.getLogger(__name__)
_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
_OF_ONE_PROMPT = {400, 413, 422}
"""Statuses that are about the prompt of the request, not about the server."""
_ABORTED = {"abort", "error"}
_CUT_OFF = {"length", "max_tokens", "max_output_tokens", "model_length", "content_filter"}
"""Reasons, in lower case, why servers end a completion before the model does: by fault, and by rule."""
_LONGEST_WAIT = 600.0
_FILLING_IN = {"vllm", "sglang", "llamacpp"}
"""What servers call themselves (``owned_by``) that fill in settings which a request lacks: from the model's
``generation_config.json`` (a top_k of 20 for Qwen3, a repetition penalty for Qwen2.5), or their own."""
_NOTHING_MORE = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Values of these settings that change nothing."""
_TELLING = ("id", "root", "parent", "owned_by", "max_model_len")
_PROBE = "Prove in your own words that there are infinitely many prime numbers."


class ServerEngine:
    """Samples over HTTP with limited concurrency and with retries.

    Messages go to ``/chat/completions``, texts to ``/completions``. Each request has its own seed, so a server that
    honours seeds samples the same after a resume. Not every server does under load.

    Args:
        url: base address, with ``/v1``.
        model: name of the model on the server.
        concurrency: number of requests in flight.
        per_request: completions per request (``n``); 1 works with every server.
        retries: further attempts after a failed connection or a temporary status (429, 5xx). The waits double from
            ``wait`` seconds on, or are as ``Retry-After`` says.
        wait: seconds before the first retry.
        timeout: seconds for one request.
        key_variable: environment variable with the API key; ``none`` for no key.
        extra: further fields of the request (``{"chat_template_kwargs": {"enable_thinking": False}}``, ...).
        fingerprint: identifies the served weights (a hash, a training step), instead of a probe.
        opens_thinking: whether the served template opens the thinking block and the server does not parse it out.

    Raises:
        UserError: see :func:`~retarget.pope.engines.keys.key_for`.
    """

    identity_since = ("served", "probe", "fingerprint", "opens_thinking")
    """Entries that journals of earlier versions do not have."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        concurrency: int = 32,
        per_request: int = 1,
        retries: int = 5,
        wait: float = 1.0,
        timeout: float = 3600.0,
        key_variable: str = "OPENAI_API_KEY",
        extra: dict[str, Any] | None = None,
        fingerprint: str | None = None,
        opens_thinking: bool = False,
    ) -> None:
        if concurrency < 1 or per_request < 1 or retries < 0 or timeout <= 0:
            raise UserError(
                "concurrency and per_request must be at least 1, retries at least 0 and timeout above 0, not "
                f"{concurrency}, {per_request}, {retries} and {timeout}"
            )
        self.url, self.model, self.name = url.rstrip("/"), model, model
        self.shown = redact(self.url)
        self.concurrency, self.per_request = concurrency, per_request
        self.retries, self.wait, self.timeout = retries, wait, timeout
        self.extra, self.fingerprint, self.opens_thinking = extra or {}, fingerprint, opens_thinking
        self._key, self._variable = key_for(self.url, key_variable), key_variable
        self._retried = 0
        self._counts_nothing = False
        self._further: dict[str, Any] = {}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The values that decide the rollouts, besides the name, which may stand for other weights tomorrow.

        They include the server's own entry for the model, and the given fingerprint or else the hash of a short
        completion at temperature 0 (the probe); None if the server does not provide them. Requests to a server that
        would fill in the model's own generation settings then turn these off, as the other engines do.

        Raises:
            UserError: the server cannot be reached.
        """
        told = run_async(self._identify())
        thinking = {"opens_thinking": True} if self.opens_thinking else {}
        return {"per_request": self.per_request, "extra": self.extra, **told, **thinking}

    async def _identify(self) -> dict[str, Any]:
        async with self.client() as client:
            try:
                listed = await self._send(client, "GET", f"{self.url}/models")
                entries = [one for one in listed["data"] if one.get("id") == self.model]
                served = {name: entries[0][name] for name in _TELLING if entries[0].get(name) is not None}
            except Unanswered as error:
                if error.status is None:
                    raise
                served = None  # the route is optional
            except (KeyError, IndexError, TypeError, AttributeError):
                served = None
            off = {}
            if (served or {}).get("owned_by") in _FILLING_IN:
                self._further, off = _NOTHING_MORE, {"generation_config": "off"}
            if self.fingerprint is not None:
                return {"served": served, "fingerprint": self.fingerprint, **off}
            probe = None
            for prompt in ([{"role": "user", "content": _PROBE}], _PROBE):
                try:
                    (one,) = await self.request(client, prompt, 0, 1, Sampling(max_tokens=64, temperature=0.0))
                except Refused:
                    continue
                except Unanswered as error:
                    if error.status is None:
                        raise
                    continue  # a server may have only one of the two routes
                probe = hashlib.sha256(one.text.encode()).hexdigest()[:16]
                break
            return {"served": served, "probe": probe, **off}

    def window(self, n: int) -> int:
        """Number of prompts to have in flight: more than connections, as the last request of each may take long.

        Requests are sent in the order of the prompts, so that only few prompts are unfinished at any time.
        """
        return 4 * self.concurrency

    def sample(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
        """n rollouts of each prompt; see :class:`retarget.pope.rollouts.Engine`.

        Raises:
            Refused: the server refuses a prompt.
            UserError: the server cannot be reached, refuses every request, or answers in another form.
        """
        return sample_through(self, prompts, n, params)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Ask]:
        """Open connections; see :class:`retarget.pope.rollouts.StreamingEngine`."""
        async with opened_servers([self]) as ask:
            yield ask

    def client(self) -> httpx.AsyncClient:
        """An HTTP client with at most ``concurrency`` connections."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=self.concurrency)
        return httpx.AsyncClient(headers=headers, timeout=self.timeout, limits=limits)

    async def request(
        self, client: httpx.AsyncClient, prompt: Prompt, first: int, count: int, params: Sampling
    ) -> list[Rollout]:
        """Rollouts number ``first`` to ``first + count - 1`` of a prompt; see :meth:`sample`."""
        chat = not isinstance(prompt, str)
        body: dict[str, Any] = {
            "model": self.model, "n": count, "max_tokens": params.max_tokens, "temperature": params.temperature,
            "top_p": params.top_p, "seed": (params.unit_seed(prompt) + first) % 2**31,
            ("messages" if chat else "prompt"): prompt,
            **self._further, **({"top_k": params.top_k} if params.top_k else {}), **self.extra,
        }  # fmt: skip
        address = f"{self.url}/{'chat/completions' if chat else 'completions'}"
        try:
            answer = await self._send(client, "POST", address, body)
        except Unanswered as error:
            if error.status in _OF_ONE_PROMPT:
                raise Refused(self._redacted(f"{address} refused the prompt: {error}")) from None
            raise
        try:
            choices = answer["choices"]
            usage = answer.get("usage") or {}
            total = int(usage.get("completion_tokens", 0))
            if "completion_tokens" not in usage and not self._counts_nothing:
                self._counts_nothing = True
                _LOG.warning("%s reports no token counts (usage): all figures of tokens are 0", self.shown)
            told = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
            thinking = int(told) if told is not None and len(choices) == 1 else None
            tokens = total // max(1, len(choices))
            rollouts = [_rollout(choice, tokens, thinking, self.opens_thinking) for choice in choices]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            said = self._redacted(str(answer)[:200])
            raise UserError(f"{self.shown}: not an answer of an OpenAI-compatible server: {said}") from error
        if len(rollouts) != count:
            remedy = "set --per-request 1" if count > 1 else "it does not heed n"
            raise UserError(f"{self.shown} returned {len(rollouts)} completions for n={count}: {remedy}")
        return rollouts

    async def _send(self, client: httpx.AsyncClient, method: str, url: str, body: Any = None) -> Any:
        status, fault = None, ""
        for attempt in range(self.retries + 1):
            wait = self.wait * 2**attempt
            try:
                response = await client.request(method, url, json=body)
            except httpx.InvalidURL as error:
                raise UserError(self._redacted(f"{url}: not an address: {error}")) from None
            except (httpx.TransportError, httpx.DecodingError) as error:
                fault = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    try:
                        value = response.json()
                    except (ValueError, RecursionError):  # a proxy's page, or a truncated answer
                        failed = f"not an answer in JSON: {response.text[:200]!r}"
                    else:
                        failed = _failure(value)
                        if not failed:
                            return value
                    status, fault = None, failed
                else:
                    status, fault = response.status_code, f"HTTP {response.status_code}: {response.text[:300]}"
                if status is not None and status not in _RETRIED:
                    break
                after = response.headers.get("Retry-After", "")
                wait = min(float(after), _LONGEST_WAIT) if after.replace(".", "", 1).isdigit() else wait
            if attempt < self.retries:
                self._retried += 1
                if self._retried & (self._retried - 1) == 0:  # log only the 1st, 2nd, 4th, 8th, ... retry
                    _LOG.warning("%s: retry %d of this run, after %s", self.shown, self._retried, self._redacted(fault))
                await asyncio.sleep(wait)
        raise Unanswered(
            self._redacted(
                f"{url} failed: {fault}. Finished units are in the journal: {self._remedy(status)}run the same command "
                "again to continue"
            ),
            status,
        )

    def _remedy(self, status: int | None) -> str:
        """What to do before the same request can succeed."""
        if status in (401, 403):
            sent = f"that in {self._variable} was sent" if self._key else "none was sent; see --key-variable"
            return f"give a key that the server accepts ({sent}), and "
        return "give its address, with /v1, and the model's name on it, and " * (status == 404)

    def _redacted(self, text: str) -> str:
        return redact(text, self._key)


class Unanswered(UserError):
    """The server did not answer after all attempts, or with a status that no retry would change."""

    def __init__(self, message: str, status: int | None) -> None:
        super().__init__(message)
        self.status = status


@asynccontextmanager
async def opened_servers(servers: Sequence[ServerEngine]) -> AsyncIterator[Ask]:
    """One queue for several servers of the same model: the next request goes to a free connection of any of them.

    A server that does not answer after all attempts is left out from then on, and its requests go to another. The error
    of the last server is raised.
    """
    free: asyncio.Queue[tuple[ServerEngine, httpx.AsyncClient]] = asyncio.Queue()
    gone: set[ServerEngine] = set()
    async with AsyncExitStack() as stack:
        opened = [(server, await stack.enter_async_context(server.client())) for server in servers]
        for turn in range(max(server.concurrency for server in servers)):  # alternate between the servers
            for slot in opened:
                if turn < slot[0].concurrency:
                    free.put_nowait(slot)

        async def part(prompt: Prompt, first: int, n: int, params: Sampling) -> list[Rollout]:
            while True:
                server, client = await free.get()
                if server in gone:
                    continue
                try:
                    return await server.request(client, prompt, first, min(server.per_request, n - first), params)
                except Unanswered as error:
                    if server not in gone:
                        gone.add(server)
                        if len(gone) < len(servers):
                            _LOG.warning("%s is left out from now on: %s", server.shown, error)
                    if len(gone) == len(servers):
                        raise
                finally:
                    if server not in gone:
                        free.put_nowait((server, client))

        async def ask(prompt: Prompt, n: int, params: Sampling) -> list[Rollout]:
            starts = range(0, n, servers[0].per_request)
            tasks = [asyncio.ensure_future(part(prompt, first, n, params)) for first in starts]
            try:
                return [one for some in await asyncio.gather(*tasks) for one in some]
            finally:
                for task in tasks:
                    task.cancel()

        yield ask


def _failure(answer: Any) -> str:
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


def _reason(choice: dict[str, Any]) -> str:
    return str(choice.get("finish_reason")).lower()


def _rollout(choice: dict[str, Any], tokens: int, told: int | None, opens_thinking: bool) -> Rollout:
    message = choice.get("message")
    text = _clean((message.get("content") or "") if message is not None else choice["text"])
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


def _clean(text: str) -> str:
    r"""A text that can be encoded as UTF-8: half a surrogate pair, which JSON can contain, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
