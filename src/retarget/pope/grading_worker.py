"""The worker process of :class:`retarget.pope.grading.Grader`: reads items and writes verdicts as JSON lines."""

import ctypes
import json
import math
import os
import resource
import signal
import sys
from dataclasses import asdict

from retarget.errors import UserError
from retarget.pope.graders import Grade, as_grade, load

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until the input ends. Whatever graders print goes to stderr, so that it is not mistaken for a verdict."""
    spec, memory_mb, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    end_with(parent)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def write(line: str) -> None:
        answers.write(line + "\n")
        answers.flush()

    try:
        function = load(spec)
        if spec in ("math", "boxed"):  # imports math-verify and sympy now, outside the first item's time
            function("\\boxed{x+1}", "1+x", {})  # written otherwise, or it would be equal without them
    except (UserError, ImportError) as error:
        write(json.dumps({"failed": str(error)}))
        return
    limit = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    write(json.dumps({"ready": True}))
    for line in sys.stdin:
        completion, answer, meta, seconds = json.loads(line)
        bound_processor(seconds)
        try:
            reply = asdict(as_grade(function(completion, answer, meta)))
        except MemoryError:
            os._exit(1)  # the state after it is unknown: the parent sees a crash and starts another worker
        except Exception as error:  # noqa: BLE001 - untrusted input may raise anything; it is counted by the parent
            reply = {**asdict(Grade(0.0, None, "error")), "error": f"{type(error).__name__}: {error}"[:500]}
        write(json.dumps(reply))


def end_with(parent: int) -> None:
    """On Linux, have the operating system kill this process when its parent ends, for whatever reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent has already ended
            os._exit(1)


def bound_processor(seconds: float) -> None:
    """Limit this process, and any that it starts, to this many seconds of processor time from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    main()
