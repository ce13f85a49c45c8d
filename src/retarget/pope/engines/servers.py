"""Several servers of the same model behind one queue."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any

from retarget.errors import UserError
from retarget.identity import refuse_unlike
from retarget.pope.engines.server import ServerEngine, opened_servers
from retarget.pope.prompts import Prompt
from retarget.pope.rollouts import Ask, Rollout, Sampling, sample_through


class Servers:
    """Samples over HTTP from whichever server has a free connection.

    Each request carries its own seed, so which server answers changes nothing that its seed decides. Name and identity
    are those of one server: a journal goes on with more of them or fewer. A server that has not answered after all
    attempts is left out, and what it was asked goes to another.

    Args:
        servers: of the same model, under the same name.

    Raises:
        UserError: no servers, or the same address twice.
    """

    identity_since = ServerEngine.identity_since

    def __init__(self, servers: Sequence[ServerEngine]) -> None:
        shown = [server.shown for server in servers]
        if not servers or len(set(shown)) < len(shown):
            raise UserError(f"several servers are at addresses of their own, not {', '.join(shown) or 'none'}")
        self.servers, self.name = list(servers), servers[0].name

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the rollouts beside the name, the same at all of them; see :attr:`.ServerEngine.identity`.

        Raises:
            UserError: one cannot be reached, or serves another model than the first.
        """
        first, *others = self.servers
        for other in others:
            refuse_unlike(
                first.shown, first.identity, other.shown, other.identity,
                "Give servers of one model; where their greedy completions differ by rounding alone, a --fingerprint",
            )  # fmt: skip
        return first.identity

    def window(self, n: int) -> int:
        """Prompts in flight; see :meth:`.ServerEngine.window`."""
        return sum(server.window(n) for server in self.servers)

    def sample(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[list[Rollout]]:
        """n rollouts of each prompt; see :meth:`.ServerEngine.sample`."""
        self.identity  # noqa: B018 - other models are refused before any is asked
        return sample_through(self, prompts, n, params)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Ask]:
        """Open connections to all of them; see :class:`retarget.pope.rollouts.StreamingEngine`."""
        async with opened_servers(self.servers) as ask:
            yield ask
