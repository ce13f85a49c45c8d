"""Join a Ray cluster (``pip install 'retarget[cluster]'``): an existing one, or one started on this machine."""

import os
import signal
import socket
import threading
from typing import Any

from retarget.errors import UserError
from retarget.extras import require

ANSWER_WITHIN = 10.0
"""Seconds to wait until the head of a cluster accepts a connection."""


def address_of(given: str = "") -> str:
    """The address given, or else that of ``RAY_ADDRESS``; empty for a cluster on this machine or a new one.

    Raises:
        UserError: the address is one of Ray Client.
    """
    address = given or os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        name = "address" if given else "RAY_ADDRESS"
        raise UserError(
            f"{name} = {address} is one of Ray Client: run the command on a machine of the cluster "
            f"(ray job submit -- retarget ...), with {name}=auto"
        )
    return address


def join(address: str, *, remedy: str) -> Any:
    """Join the cluster at an address of :func:`address_of`, unless this process has joined one; return ``ray``.

    Ray's own handler of SIGTERM is replaced by the one that was there.

    Args:
        address: of the head, or empty.
        remedy: what else can be done if no cluster answers, to end the message.

    Raises:
        MissingExtraError: Ray is not installed.
        UserError: no cluster can be used there.
    """
    ray = require("ray", "cluster")
    if ray.is_initialized():
        return ray
    host, colon, port = address.rpartition(":")
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        if colon:  # Ray itself tries for minutes before it gives up
            socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN).close()
        ray.init(address=address or None, log_to_driver=False, configure_logging=False)
    except Exception as error:  # Ray raises bare Exceptions too, as when a node is slow to start
        if not isinstance(error, (OSError, RuntimeError, ValueError)) and type(error) is not Exception:
            raise
        reason = str(error).strip().partition("\n")[0][:200]
        token = "If it was started with a token, set RAY_AUTH_MODE=token. " * bool(
            colon and not os.environ.get("RAY_AUTH_MODE")
        )
        raise UserError(
            f"no Ray cluster can be used at {address or 'this machine'} ({reason}). {token}Start one with ray start "
            f"--head, or {remedy}"
        ) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
    return ray
