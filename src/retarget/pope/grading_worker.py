"""The worker process of :class:`retarget.pope.grading.Grader`: reads items, writes verdicts, one JSON line each."""

import json
import os
import resource
import sys

from retarget.errors import UserError
from retarget.pope.graders import Grade, as_grade, load
from retarget.pope.grading import to_json


def main() -> None:
    """Serve until the input ends. What graders print goes to stderr, so that it cannot be taken for a verdict."""
    spec, memory_mb = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def write(line: str) -> None:
        answers.write(line + "\n")
        answers.flush()

    try:
        function = load(spec)
        if spec == "math":
            function("\\boxed{1}", "1", {})  # imports sympy now, outside the first item's time
    except (UserError, ImportError) as error:
        write(json.dumps({"failed": str(error)}))
        return
    limit = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    write(json.dumps({"ready": True}))
    for line in sys.stdin:
        completion, answer, meta = json.loads(line)
        try:
            grade = as_grade(function(completion, answer, meta))
        except MemoryError:
            os._exit(1)  # the state after it is unknown: the parent sees a crash and starts another worker
        except Exception as error:  # noqa: BLE001 - untrusted input may raise anything; it is counted by the parent
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            grade = Grade(0.0, None, "error")
        write(to_json(grade))


if __name__ == "__main__":
    main()
