"""Several servers of the same model behind one queue."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

from retarget.errors import UserError
from retarget.identity import Extends, refuse_unlike
from retarget.pope.engines.server import ServerEngine, opened_servers
from retarget.pope.journal import ANSWERED_BY, VARIES
from retarget.pope.prompts import Prompt
from retarget.pope.rollouts import Ask, Rollout, Sampling, sample_through


class Servers:
    """Samples over HTTP from whichever server has a free connection.

    Each request has its own seed, so it does not matter which server answers. Name and identity are those of one
    server, so a journal can be continued with more or fewer of them. A server that does not answer after all attempts
    is left out, and its requests go to another.

    Args:
        servers: servers of the same model, under the same name.

    Raises:
        UserError: there are no servers, or two have the same address.
    """

    identity_since = ServerEngine.identity_since

    def __init__(self, servers: Sequence[ServerEngine]) -> None:
        shown = [server.shown for server in servers]
        if not servers or len(set(shown)) < len(shown):
            raise UserError(f"every server needs an address of its own; given: {', '.join(shown) or 'none'}")
        self.servers, self.name = list(servers), servers[0].name

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The identity, which all servers must share; see :attr:`.ServerEngine.identity`.

        Raises:
            UserError: a server cannot be reached, or serves another model than the first.
        """
        first, *others = self.servers
        varies = any(server.identity.get("probe") == VARIES for server in self.servers)
        for other in others:
            refuse_unlike(
                first.shown, _telling(first, varies), other.shown, _telling(other, varies),
                "Give servers of the same model; set --fingerprint if only rounding makes greedy completions differ",
            )  # fmt: skip
        return {**first.identity, **({"probe": VARIES} if varies else {})}

    @property
    def identity_extends(self) -> dict[str, Extends]:
        """See :attr:`.ServerEngine.identity_extends`."""
        return self.servers[0].identity_extends

    def window(self, n: int) -> int:
        """Number of prompts to have in flight; see :meth:`.ServerEngine.window`."""
        return sum(server.window(n) for server in self.servers)

    def sample(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
        """n rollouts of each prompt; see :meth:`.ServerEngine.sample`."""
        self.identity  # noqa: B018 - refuses servers of different models before any prompt is sent
        return sample_through(self, prompts, n, params)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Ask]:
        """Open connections to all servers; see :class:`retarget.pope.rollouts.StreamingEngine`."""
        async with opened_servers(self.servers) as ask:
            yield ask


def _telling(server: ServerEngine, varies: bool) -> dict[str, Any]:
    """A server's identity without what says nothing: the name of its answers, and probes if one of them varies."""
    without = {ANSWERED_BY, *(("probe",) if varies else ())}
    return {name: value for name, value in server.identity.items() if name not in without}
