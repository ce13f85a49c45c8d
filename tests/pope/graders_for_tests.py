"""Grading functions with every fault that a user's function may have."""

import os

from retarget.pope.graders import Grade


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
