"""An engine in a process of its own, started by processes.py: reads requests and writes answers as JSON lines."""

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any

from retarget.errors import UserError
from retarget.extras import MissingExtraError
from retarget.own import load
from retarget.pope.prompts import Prompt
from retarget.pope.rollouts import Engine, Refused, Rollout, Sampling


class Held:
    """An engine whose answers are JSON values.

    Args:
        opener: import path of the function that opens the engine.
        spec: the engine to open.
        options: options of the opener.
    """

    def __init__(self, opener: str, spec: str, options: dict[str, Any]) -> None:
        self.opener, self.spec, self.options = opener, spec, options
        self.engine: Engine | None = None

    def open(self) -> dict[str, Any]:
        """Open the engine; returns its name and identity, or ``failed`` with the reason."""
        try:
            engine = self.engine = load(self.opener)(self.spec, **self.options)
        except (UserError, MissingExtraError) as error:
            return {"failed": str(error)}
        except Exception as error:  # noqa: BLE001 - raised again where the engine is opened
            return _failed(error)
        return {"name": engine.name, "identity": getattr(engine, "identity", {})}

    def sample(self, prompts: Sequence[Prompt], n: int, params: dict[str, Any]) -> dict[str, Any]:
        """For each prompt its n rollouts, or the reason for its refusal; or ``failed`` if the engine fails."""
        assert self.engine is not None
        sampling = Sampling(**params)
        try:
            answers = self.engine.sample(prompts, n, sampling)
        except Refused as refusal:
            if len(prompts) == 1:
                return {"answers": [str(refusal)]}
            parts = [self.sample([prompt], n, params) for prompt in prompts]
            failed = next((part for part in parts if "failed" in part), None)
            return failed or {"answers": [one for part in parts for one in part["answers"]]}
        except UserError as error:
            return {"failed": str(error)}
        except Exception as error:  # noqa: BLE001 - raised again where the answer is awaited
            return _failed(error)
        return {"answers": [[asdict(one) for one in some] for some in answers]}


def _failed(error: Exception) -> dict[str, Any]:
    traceback.print_exception(error)
    return {"failed": f"an engine failed with {type(error).__name__}: {error} (its process printed the traceback)"}


def received(answer: list[dict[str, Any]] | str) -> "list[Rollout] | Refused":
    """Convert an answer of :meth:`Held.sample` back."""
    return Refused(answer) if isinstance(answer, str) else [Rollout(**one) for one in answer]


def main() -> None:
    """Serve until the input ends. Whatever libraries print goes to stderr, so that it is not mistaken for an answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()

    def write(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    held = Held(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
    write(opened := held.open())
    while "failed" not in opened:
        write(held.sample(**requests.get()))


def _read(requests: "SimpleQueue[dict[str, Any]]") -> None:
    """Read requests. When the parent process ends, for whatever reason, end this process and all that it started."""
    for line in sys.stdin:
        requests.put(json.loads(line))
    os.killpg(os.getpgrp(), signal.SIGKILL)  # this process leads its own process group


if __name__ == "__main__":
    main()
