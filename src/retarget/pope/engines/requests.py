"""Requests to a server: repeated while that may help; a failure is told with its reason and its remedy."""

import asyncio
import logging
import random
import ssl
from dataclasses import dataclass
from typing import Any

import httpx

from retarget.errors import UserError
from retarget.pope.engines.keys import redact
from retarget.pope.engines.replies import failure

_LOG = logging.getLogger(__name__)
_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
OF_ONE_PROMPT = {400, 413, 422}
"""Statuses that are about the prompt of the request, not about the server."""
_LONGEST_WAIT = 600.0
_SPREAD = 0.25
"""How much longer than asked a wait may be, as a fraction, so that requests refused together do not return together."""
_ACCOUNT = (
    "billing_hard_limit_reached", "billing_not_active", "insufficient_quota", "account_deactivated", "credit balance",
)  # fmt: skip
"""What answers say, in lower case and with several statuses, if the account can pay for no request."""


class Unanswered(UserError):
    """The server did not answer after all attempts, or with a status that no retry would change.

    Attributes:
        status: the last status; None if there was none, or 200 with something else than an answer.
        fault: what failed, without what to do.
        hopeless: whether every other request fails too: the account cannot pay, the certificate is not trusted.
    """

    def __init__(self, message: str, status: int | None, fault: str, hopeless: bool) -> None:
        super().__init__(message)
        self.status, self.fault, self.hopeless = status, fault, hopeless

    @property
    def temporary(self) -> bool:
        """Whether the status is one that retries may change, as that of an overloaded server."""
        return self.status in _RETRIED

    @property
    def of_the_prompt(self) -> bool:
        """Whether the prompt may be the cause: not so for a key, an address, an account or a limit of requests."""
        told = self.status is None or self.status in (_RETRIED - {429}) | OF_ONE_PROMPT
        return told and not self.hopeless


@dataclass
class Sender:
    """Sends the requests of one server.

    Attributes:
        shown: the server's address in messages.
        retries: further attempts after a failed connection or a temporary status.
        wait: seconds before the first retry.
        key: the API key, which no message shows.
        variable: environment variable of the key.
        retried: number of retries so far.
    """

    shown: str
    retries: int
    wait: float
    key: str | None
    variable: str
    retried: int = 0

    async def send(
        self, client: httpx.AsyncClient, method: str, url: str, body: Any = None, retries: int | None = None
    ) -> Any:
        """The JSON value of an answer.

        Args:
            client: holds the connections.
            method, url, body: the request.
            retries: further attempts; by default those of the server.

        Raises:
            Unanswered: there was no answer.
            UserError: the address is none.
        """
        retries = self.retries if retries is None else retries
        status, fault, location, account, certificate = None, "", "", False, False
        for attempt in range(retries + 1):
            after = ""
            try:
                response = await client.request(method, url, json=body)
            except httpx.InvalidURL as error:
                raise UserError(self.redacted(f"{url}: not an address: {error}")) from None
            except (httpx.TransportError, httpx.DecodingError) as error:
                status, fault, certificate = None, f"{type(error).__name__}: {error}", _of_certificate(error)
                if certificate:
                    break
            else:
                if response.is_success:
                    try:
                        value = response.json()
                    except (ValueError, RecursionError):  # a proxy's page, or a truncated answer
                        failed = f"not an answer in JSON: {response.text[:200]!r}"
                    else:
                        failed = failure(value)
                        if not failed:
                            return value
                    status, fault = None, failed
                else:
                    location = response.headers.get("Location", "") if response.is_redirect else ""
                    to = f" to {location}" if location else ""
                    status, fault = response.status_code, f"HTTP {response.status_code}{to}: {response.text[:300]}"
                account = any(word in fault.lower() for word in _ACCOUNT)
                if account or (status is not None and status not in _RETRIED):
                    break
                after = response.headers.get("Retry-After", "")
            if attempt < retries:
                self.retried += 1
                if self.retried & (self.retried - 1) == 0:  # log only the 1st, 2nd, 4th, 8th, ... retry
                    _LOG.warning("%s: retry %d of this run, after %s", self.shown, self.retried, self.redacted(fault))
                await asyncio.sleep(pause(self.wait * 2**attempt, after, f"{body} {attempt}"))
        remedy, fault = self._remedy(status, account, certificate, bool(location)), self.redacted(fault)
        raise Unanswered(
            self.redacted(
                f"{url} failed: {fault}. Finished units are in the journal: {remedy}run the same command again to "
                "continue"
            ),
            status, fault, account or certificate,
        )  # fmt: skip

    def redacted(self, text: str) -> str:
        """A text without the key, and without passwords in addresses."""
        return redact(text, self.key)

    def _remedy(self, status: int | None, account: bool, certificate: bool, redirected: bool) -> str:
        """What to do before the same request can succeed."""
        if certificate:
            return "set SSL_CERT_FILE to a file with the certificate of its authority, or its own, and "
        if account:
            return "settle the account, and "
        if redirected:
            return "give the address that it leads to, and "
        if status in (401, 403):
            sent = f"that in {self.variable} was sent" if self.key else "none was sent; see --key-variable"
            return f"give a key that the server accepts ({sent}), and "
        if status == 429:
            return "lower --concurrency, and "
        return "give its address, with /v1, and the model's name on it, and " * (status == 404)


def pause(backoff: float, after: str, request: str) -> float:
    """Seconds before the next attempt: at least ``backoff``, and what the server asks for up to ten minutes.

    Args:
        backoff: seconds that the number of attempts calls for.
        after: the header ``Retry-After``, empty if there is none; a date counts as none.
        request: decides how much is added, up to a quarter, so that equal calls give equal waits.

    >>> pause(8.0, "0", "") == pause(8.0, "", "") >= 8.0, 30.0 <= pause(8.0, "30", "") <= 37.5, pause(0.0, "", "")
    (True, True, 0.0)
    """
    asked = min(float(after), _LONGEST_WAIT) if after.replace(".", "", 1).isdecimal() and after.isascii() else 0.0
    return max(backoff, asked) * (1 + _SPREAD * random.Random(request).random())


def _of_certificate(error: BaseException | None) -> bool:
    """Whether a connection failed because the server's certificate is not trusted."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None
