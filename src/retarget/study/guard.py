"""Guard a study's command: against a script that starts it anew in each worker, and against interrupts."""

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from retarget.errors import UserError


def refuse_unguarded() -> None:
    """Refuse a call from a worker that is still importing the script it was spawned for."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing.spawn itself asks
        raise UserError(
            "run_study was called again by a worker, which imports the script that starts the study: put the call, and "
            'all that should happen once, under `if __name__ == "__main__":`'
        )


@contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM act like Ctrl-C, so that a stopped study stops its workers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore a second Ctrl-C while workers are stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
