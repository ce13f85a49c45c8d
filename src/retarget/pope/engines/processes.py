"""An engine in a process of its own, as its starter sees it."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence
from threading import Event
from typing import Any

from retarget.errors import UserError
from retarget.pope.engines.pool import LOOK_EVERY, OPENER, Answer, Died, Opened
from retarget.pope.engines.worker import received
from retarget.pope.graders import here_last
from retarget.pope.prompts import Prompt
from retarget.pope.rollouts import Sampling

_LAST_WORDS = 5.0
"""Seconds for a process that has closed its output to end by itself."""


class ProcessWorker:
    """One process of this machine, its threads bounded and its GPUs its own; see :class:`.pool.Worker`.

    On the CPU it has one thread unless ``OMP_NUM_THREADS`` says otherwise: N engines fill N cores, and how many there
    are changes no sum's order. It leads a process group, which ends with it, and it ends with this process.

    Args:
        spec: what to open.
        options: of the opener.
        opener: import path of the function that opens an engine.
        gpus: what ``CUDA_VISIBLE_DEVICES`` is to be; None leaves it alone.
    """

    def __init__(
        self, spec: str, options: dict[str, Any], *, opener: str = OPENER, gpus: Sequence[str] | None = None
    ) -> None:
        # -P, and the working directory last of all: a file in a data folder is never taken for a package.
        self._command = [
            sys.executable, "-P", "-m", "retarget.pope.engines.worker", opener, spec, json.dumps(options)
        ]  # fmt: skip
        self._gpus = gpus
        self._process: subprocess.Popen[bytes] | None = None
        self._opening = False

    @property
    def pid(self) -> int | None:
        """Of the process; None where none runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, over: Event) -> Opened | None:
        """See :meth:`.pool.Worker.start`."""
        if not self._opening:
            self.end()
            self._launch()
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(self._process.stdout, selectors.EVENT_READ)
            while not ready.select(LOOK_EVERY):
                if over.is_set():
                    return None
        self._opening = False
        found = self._answer("while it opened the engine")
        if "failed" in found:
            self.end()
            raise UserError(found["failed"])
        return Opened(found["name"], found["identity"])

    def _launch(self) -> None:
        visible = {} if self._gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(self._gpus)}
        threads = {} if self._gpus else {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        path = {"PYTHONPATH": os.pathsep.join(here_last(sys.path)), "TQDM_DISABLE": "1"}
        environment = {**os.environ, **path, **threads, **visible}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            start_new_session=True,  # Ctrl-C is for this process alone
        )  # fmt: skip
        self._opening = True

    def ask(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[Answer]:
        """See :meth:`.pool.Worker.ask`."""
        assert self._process is not None
        assert self._process.stdin is not None
        request = {"prompts": list(prompts), "n": n, "params": params.model_dump(mode="json")}
        with contextlib.suppress(BrokenPipeError):  # it is dying: the answer's absence says so
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        found = self._answer("while it sampled")
        if "failed" in found:
            raise UserError(found["failed"])
        return [received(one) for one in found["answers"]]

    def kill(self) -> None:
        """End the process, whatever it does: who waits for its answer sees that it died."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """End the process; nobody waits for its answer."""
        if self._process is None:
            return
        self._opening = False
        self.kill()  # the group, too: what an engine started may outlive it
        process, self._process = self._process, None
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):  # closing writes what is left of a request
                if pipe is not None:
                    pipe.close()

    def _answer(self, when: str) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.endswith(b"\n"):
            with contextlib.suppress(subprocess.TimeoutExpired):  # its own code says more than that of a kill
                process.wait(_LAST_WORDS)
            self.end()
            raise Died(f"process {process.pid} ended {when}, with code {process.returncode}")
        return json.loads(line)
