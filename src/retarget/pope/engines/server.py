"""Any OpenAI-compatible server as an engine: vLLM, SGLang, llama.cpp or a hosted teacher."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import httpx

from retarget.errors import UserError
from retarget.identity import Extends
from retarget.pope.engines.keys import is_local, key_for, redact
from retarget.pope.engines.replies import Repeats, rollouts_in
from retarget.pope.engines.requests import OF_ONE_PROMPT, Sender, Unanswered
from retarget.pope.journal import ANSWERED_BY, VARIES
from retarget.pope.prompts import Prompt
from retarget.pope.rollouts import Ask, Failed, Refused, Rollout, Sampling, run_async, sample_through

_LOG = logging.getLogger(__name__)
_FILLING_IN = {"vllm", "sglang", "llamacpp"}
"""What servers call themselves (``owned_by``) that fill in settings which a request lacks: from the model's
``generation_config.json`` (a top_k of 20 for Qwen3, a repetition penalty for Qwen2.5), or their own."""
_NOTHING_MORE = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Values of these settings that change nothing."""
_TELLING = ("id", "root", "parent", "owned_by", "max_model_len")
_PROBE = "Prove in your own words that there are infinitely many prime numbers."
_PROBE_TOKENS = 64
_REFUSED_IN_A_ROW = 8
"""After this many refusals without an answer, also of a short prompt, the server is taken to have failed."""


class ServerEngine:
    """Samples over HTTP with limited concurrency and with retries.

    Messages go to ``/chat/completions``, texts to ``/completions``. Each request has its own seed, so a server that
    honours seeds samples the same after a resume. Not every server does under load.

    Args:
        url: base address, with ``/v1``; a query (``?api-version=...``) stays at the end of every address. For this
            machine the proxies of the environment (``HTTP_PROXY``, ...) are not used.
        model: name of the model on the server.
        concurrency: number of requests in flight.
        per_request: completions per request (``n``); 1 works with every server.
        retries: further attempts after a failed connection or a temporary status (429, 5xx). The waits double from
            ``wait`` seconds on, and are longer if ``Retry-After`` says so.
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
        self.retries, self.timeout = retries, timeout
        self.extra, self.fingerprint, self.opens_thinking = extra or {}, fingerprint, opens_thinking
        self._key = key_for(self.url, key_variable)
        self._sender = Sender(self.shown, retries, wait, self._key, key_variable)
        self._counts_nothing = False
        self._answered_by: str | None = None
        self._probed = False
        self._refused = 0
        self._further: dict[str, Any] = {}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The values that decide the rollouts, besides the name, which may stand for other weights tomorrow.

        They include the server's own entry for the model, and the given fingerprint or else the hash of a short
        completion at temperature 0 (the probe); None if the server does not provide them. The probe is asked for twice,
        and is :data:`~retarget.pope.journal.VARIES` if the two differ. The name that the server answers under is
        included if it is another. Requests to a server that would fill in the model's own generation settings then turn
        these off, as the other engines do.

        Raises:
            UserError: the server cannot be reached, or accepts no request.
        """
        told = run_async(self._identify())
        thinking = {"opens_thinking": True} if self.opens_thinking else {}
        return {"per_request": self.per_request, "extra": self.extra, **told, **thinking}

    @property
    def identity_extends(self) -> dict[str, Extends]:
        """When another value continues a journal, which it otherwise refuses.

        A probe that varies tells nothing, and an explicit fingerprint stands in its place. The name of an answer (full,
        dated, of a folder) is recorded, and never a reason to refuse.
        """
        given = self.fingerprint is not None
        return {
            "probe": lambda had, now: had is None or given or VARIES in (had, now),
            ANSWERED_BY: lambda had, now: True,
        }

    async def _identify(self) -> dict[str, Any]:
        async with self.client() as client:
            served = await self._listed(client)
            off = {}
            if (served or {}).get("owned_by") in _FILLING_IN:
                self._further, off = _NOTHING_MORE, {"generation_config": "off"}
            if self.fingerprint is not None:
                return {"served": served, "fingerprint": self.fingerprint, **off}
            probe = await self._probe(client)
            named = {ANSWERED_BY: self._answered_by} if self._answered_by else {}
            return {"served": served, "probe": probe, **named, **off}

    async def _listed(self, client: httpx.AsyncClient) -> dict[str, Any] | None:
        """The server's own entry for the model; None if there is none."""
        try:
            listed = await self._sender.send(client, "GET", self._address("models"))
            entries = {one.get("id"): one for one in listed["data"]}
        except Unanswered as error:
            if error.status is None or error.hopeless:
                raise
            return None  # the route is optional
        except (KeyError, TypeError, AttributeError):
            return None
        if self.model not in entries:
            if entries:
                named = ", ".join(map(str, list(entries)[:5])) + ", ..." * (len(entries) > 5)
                _LOG.warning("%s does not list the model %s (--served) among its models: %s",
                             self.shown, self.model, named)  # fmt: skip
            return None
        return {name: entries[self.model][name] for name in _TELLING if entries[self.model].get(name) is not None}

    async def _probe(self, client: httpx.AsyncClient) -> str | None:
        """The hash of a greedy completion, or that it varies; None if the server completes neither form of prompt."""
        greedy = Sampling(max_tokens=_PROBE_TOKENS, temperature=0.0)
        failed: Unanswered | None = None
        for prompt in ([{"role": "user", "content": _PROBE}], _PROBE):
            try:
                texts = [(await self.request(client, prompt, 0, 1, greedy))[0].text for _ in range(2)]
            except Unanswered as error:
                if error.status in (None, 401, 403) or error.hopeless:
                    raise
                if error.temporary:
                    failed = error
                continue  # a server may have only one of the two routes
            self._probed = True
            if texts[0] == texts[1]:
                return hashlib.sha256(texts[0].encode()).hexdigest()[:16]
            _LOG.warning(
                "%s: the completion at temperature 0 varies, so it cannot tell whether other weights are served under "
                "the same name; --fingerprint can", self.shown,
            )  # fmt: skip
            return VARIES
        if failed is not None:
            raise failed
        return None

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
        # A proxy cannot reach this machine under that name, and would be sent the key in plain text.
        direct: dict[str, None] = dict.fromkeys(("http://", "https://", "all://") if is_local(self.url) else ())
        return httpx.AsyncClient(headers=headers, timeout=self.timeout, limits=limits, mounts=direct)

    async def ask(
        self, client: httpx.AsyncClient, prompt: Prompt, first: int, count: int, params: Sampling
    ) -> list[Rollout]:
        """:meth:`request`, with failures of one prompt told from those of the server by a short prompt.

        Raises:
            Refused: the server refuses this prompt, or (Failed) fails on it in all attempts, and answers the short one.
            Unanswered: the server failed.
        """
        try:
            rollouts = await self.request(client, prompt, first, count, params)
        except Unanswered as error:
            if not error.of_the_prompt:
                raise
            refused = error.status in OF_ONE_PROMPT
            if not refused and not self.retries:
                raise  # one failure tells nothing
            address = redact(self._route(prompt))
            answers = await self._answers(client, prompt, params)
            if refused:
                self._refused = 0 if answers else self._refused + 1
                if not answers and (self._probed or self._refused >= _REFUSED_IN_A_ROW):
                    raise
                raise Refused(f"{address} refused the prompt: {error.fault}") from None
            if not answers:
                raise
            try:  # it may have failed before, and be back
                return await self.request(client, prompt, first, count, params, retries=0)
            except Unanswered as again:
                if not again.of_the_prompt:
                    raise
                tried = f"{self.retries + 2} times"
                raise Failed(f"{address} failed on this prompt {tried}, and answers another: {again.fault}") from None
        self._refused = 0
        return rollouts

    async def _answers(self, client: httpx.AsyncClient, instead: Prompt, params: Sampling) -> bool:
        """Whether the server answers a short prompt, of the same kind as another that it did not answer."""
        number = params.unit_seed(instead)  # no cache has it
        text = f"{number}: {_PROBE}"
        prompt: Prompt = text if isinstance(instead, str) else [{"role": "user", "content": text}]
        few = params.model_copy(update={"max_tokens": min(params.max_tokens, _PROBE_TOKENS)})
        try:
            await self.request(client, prompt, 0, 1, few, retries=0)
        except UserError:
            return False
        return True

    async def request(
        self,
        client: httpx.AsyncClient,
        prompt: Prompt,
        first: int,
        count: int,
        params: Sampling,
        retries: int | None = None,
    ) -> list[Rollout]:
        """Rollouts number ``first`` to ``first + count - 1`` of a prompt; see :meth:`sample`.

        Raises:
            Unanswered: there was no answer.
            UserError: the answer has another form, or not ``count`` completions.
        """
        chat = not isinstance(prompt, str)
        body: dict[str, Any] = {
            "model": self.model, "n": count, "max_tokens": params.max_tokens, "temperature": params.temperature,
            "top_p": params.top_p, "seed": (params.unit_seed(prompt) + first) % 2**31,
            ("messages" if chat else "prompt"): prompt,
            **self._further, **({"top_k": params.top_k} if params.top_k else {}), **self.extra,
        }  # fmt: skip
        answer = await self._sender.send(client, "POST", self._route(prompt), body, retries)
        try:
            rollouts, counted = rollouts_in(answer, self.opens_thinking)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            said = self._sender.redacted(str(answer)[:200])
            raise UserError(f"{self.shown}: not an answer of an OpenAI-compatible server: {said}") from error
        if len(rollouts) != count:
            remedy = "set --per-request 1" if count > 1 else "it ignores n: use another server"
            raise UserError(f"{self.shown} returned {len(rollouts)} completions for n={count}: {remedy}")
        if not counted and not self._counts_nothing:
            self._counts_nothing = True
            _LOG.warning("%s reports no token counts (usage): all figures of tokens are 0", self.shown)
        by = answer.get("model")
        if isinstance(by, str) and by not in ("", self.model) and self._answered_by is None:
            self._answered_by = by
            _LOG.warning(
                "%s answers as the model %s, not as %s (--served): if that is no other name of the same model, such as "
                "its full or dated one, the rollouts are of another model",
                self.shown, self._sender.redacted(by), self.model,
            )  # fmt: skip
        return rollouts

    def _route(self, prompt: Prompt) -> str:
        return self._address("completions" if isinstance(prompt, str) else "chat/completions")

    def _address(self, route: str) -> str:
        """The address of a route, with the query of the base address at its end."""
        parts = urlsplit(self.url)
        return parts._replace(path=f"{parts.path.rstrip('/')}/{route}", fragment="").geturl()


@asynccontextmanager
async def opened_servers(servers: Sequence[ServerEngine]) -> AsyncIterator[Ask]:
    """One queue for several servers of the same model: the next request goes to a free connection of any of them.

    A server that does not answer after all attempts is left out from then on, and its requests go to another. The error
    of the last server is raised. A prompt that a server alone does not answer, among others, is refused.
    """
    free: asyncio.Queue[tuple[ServerEngine, httpx.AsyncClient]] = asyncio.Queue()
    gone: set[ServerEngine] = set()
    repeats, shown = Repeats(), ", ".join(server.shown for server in servers)
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
                    return await server.ask(client, prompt, first, min(server.per_request, n - first), params)
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
                rollouts = [one for some in await asyncio.gather(*tasks) for one in some]
            finally:
                for task in tasks:
                    task.cancel()
            repeats.see(shown, rollouts, params.temperature)
            return rollouts

        yield ask
