"""Grading functions with every fault that a user's function may have."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from retarget.pope.graders import Grade


def slow(completion, answer, meta):
    """Takes some milliseconds per item: slower than a test engine."""
    hashlib.sha256(bytes(4_000_000)).digest()
    return answer in completion


def faulty(completion, answer, meta):
    print("printed by the grader")
    if completion == "hang":
        while True:
            pass
    if completion == "die":
        os._exit(3)
    if completion == "memory":
        return len(bytearray(8 << 30)) > 0
    if completion == "raise":
        raise ValueError("no")
    if completion == "wrong type":
        return "yes"
    return Grade(float(completion == answer), f"{completion} of {meta.get('id')}")


def forking(completion, answer, meta):
    """Starts a process of its own, writes its number to the file that the answer names, and hangs."""
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    Path(answer).write_text(str(child.pid))
    while True:
        pass
