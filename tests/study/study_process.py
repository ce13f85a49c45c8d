"""``retarget study toy ...`` in its own process, which can be told to kill itself at its n-th rename."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def kill_at(count):
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if event == "os.rename":
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    from retarget import cli

    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where a shell started the tests in the background
    if "RETARGET_TEST_KILL_PARENT_AT" in os.environ:
        kill_at(int(os.environ["RETARGET_TEST_KILL_PARENT_AT"]))
    cli.METHODS["toy"] = "tasks_for_tests"
    raise SystemExit(cli.main(sys.argv[1:]))
