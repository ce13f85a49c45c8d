"""An engine in a process of its own: the side of the process that starts it."""

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
"""Seconds that a process has to end by itself after it closed its output."""


class ProcessWorker:
    """A process of this machine with a fixed number of threads and its own GPUs; see :class:`.pool.Worker`.

    On the CPU it has one thread, unless ``OMP_NUM_THREADS`` is set: N engines then use N cores, and their number does
    not change the order of any sum. The process leads a process group that ends with it, and it ends with its starter.

    Args:
        spec: the engine to open; see :func:`retarget.pope.engines.open_engine`.
        options: options of the opener.
        opener: import path of the function that opens the engine.
        gpus: value of ``CUDA_VISIBLE_DEVICES``; None does not set it.
    """

    def __init__(
        self, spec: str, options: dict[str, Any], *, opener: str = OPENER, gpus: Sequence[str] | None = None
    ) -> None:
        # -P and the working directory at the end of the path: no file in a data folder can shadow a package.
        self._command = [
            sys.executable, "-P", "-m", "retarget.pope.engines.worker", opener, spec, json.dumps(options)
        ]  # fmt: skip
        self._gpus = gpus
        self._process: subprocess.Popen[bytes] | None = None
        self._opening = False

    @property
    def pid(self) -> int | None:
        """Id of the process; None if it does not run."""
        process = self._process  # which another thread may end meanwhile
        return process.pid if process and process.poll() is None else None

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
            start_new_session=True,  # so that Ctrl-C reaches only the process that started it
        )  # fmt: skip
        self._opening = True

    def ask(self, prompts: Sequence[Prompt], n: int, params: Sampling) -> list[Answer]:
        """See :meth:`.pool.Worker.ask`."""
        assert self._process is not None
        assert self._process.stdin is not None
        request = {"prompts": list(prompts), "n": n, "params": params.model_dump(mode="json")}
        with contextlib.suppress(BrokenPipeError):  # it is dying: `_answer` will report that
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        found = self._answer("while it sampled")
        if "failed" in found:
            raise UserError(found["failed"])
        return [received(one) for one in found["answers"]]

    def kill(self) -> None:
        """End the process, whatever it is doing. A thread that waits for its answer then raises ``Died``."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def end(self) -> None:
        """End the process while no thread waits for its answer."""
        if self._process is None:
            return
        self._opening = False
        self.kill()  # kills the group: processes that the engine started may have outlived it
        process, self._process = self._process, None
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):  # closing flushes the rest of a request
                if pipe is not None:
                    pipe.close()

    def _answer(self, when: str) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.endswith(b"\n"):
            with contextlib.suppress(subprocess.TimeoutExpired):  # its own exit code tells more than that of a kill
                process.wait(_LAST_WORDS)
            self.end()
            raise Died(f"process {process.pid} ended {when}, with exit code {process.returncode}")
        return json.loads(line)
