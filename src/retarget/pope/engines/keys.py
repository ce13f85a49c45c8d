"""API keys and passwords: decide where they may be sent, and remove them from messages and files."""

import os
import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from retarget.errors import UserError

NO_KEY = "none"
_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s@]*+@(?:[^/?#\s@]*+@)*+")
_IN_QUERY = re.compile(r"(?i)([?&](?:[\w.-]*(?:key|token|secret|password|signature)|sig|code)=)[^&#\s]+")
"""Fields of an address's query that are keys by their names: ``api-key``, ``access_token``, ``sig`` and the like."""
_HEADER = re.compile(r"[\x21-\x7e]+")


def redact(text: str, *secrets: str | None) -> str:
    """A text with the secrets, and the user, password and keys in any address, replaced by ``***``.

    >>> redact("http://me:pass@host/v1 refused key-1", "key-1")
    'http://***@host/v1 refused ***'
    >>> redact("https://host/v1?api-version=2&api-key=abc")
    'https://host/v1?api-version=2&api-key=***'
    """
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return _IN_QUERY.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def key_for(url: str, variable: str) -> str | None:
    """The API key for an address; None if the variable is not set, or ``variable`` is ``none``.

    Args:
        url: address of the server.
        variable: name of the environment variable with the key.

    Raises:
        UserError: a key, or a password in the address, would be sent over plain HTTP to another machine; or the key has
            a character that no header can contain.
    """
    key = None if variable == NO_KEY else os.environ.get(variable)
    try:
        parts = urlsplit(url)
        secret = "a password in the address" if parts.username or parts.password else ""
        secret = "a key in the address" if _IN_QUERY.search(url) else secret
    except ValueError as error:
        raise UserError(f"{redact(url)}: not an address: {error}") from error
    secret = f"the key in {variable}" if key else secret
    if secret and parts.scheme == "http" and not is_local(url):
        raise UserError(
            f"{redact(url)}: {secret} would be sent over plain HTTP, where others can read it. Use https, a tunnel to "
            f"localhost, or --key-variable {NO_KEY} for a server that needs no key"
        )
    if key and not _HEADER.fullmatch(key):
        raise UserError(
            f"the key in {variable} contains a space, a line break or another character that a key cannot have"
        )
    return key or None


def is_local(url: str) -> bool:
    """Whether the host of an address is this machine: ``localhost`` or a loopback address.

    Raises:
        ValueError: it is not an address.

    >>> is_local("http://127.0.0.1:8000/v1"), is_local("http://[::1]:8000/v1"), is_local("http://example.org/v1")
    (True, True, False)
    """
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
