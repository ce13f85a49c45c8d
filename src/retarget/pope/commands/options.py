"""What the verbs of ``retarget pope`` share: how problems are read, models asked and progress shown."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff

from retarget.errors import UsageError
from retarget.pope.engines.keys import redact
from retarget.pope.formats import Format
from retarget.pope.graders import BUILT_IN
from retarget.pope.problems import Problem, read_problems, utf8
from retarget.pope.prompts import Prompts
from retarget.pope.rollouts import Engine, Sampling
from retarget.settings import merged, parse_setting

if TYPE_CHECKING:
    from retarget.pope.sampler import Sampler

PROBLEMS = "problems: .jsonl, .jsonl.gz, .parquet, a directory, or hf:NAME"


@dataclass
class Reading:
    """How problem files are read."""

    format: Format = "auto"
    """plain, gsm8k, math, or set for the fields of public sets; auto tells by the fields of each row."""
    fields: tuple[str, ...] = ()
    """Where a set keeps prompt, answer, solution and id: --fields prompt=question answer=final_answer."""
    split: str = "train"
    """Split of a data set."""
    skip_invalid: FlagCreatePairsOff[bool] = False
    """Leave invalid rows out and write them to a rejects file, instead of refusing the file."""
    answer_anywhere: FlagCreatePairsOff[bool] = False
    """Accept solutions in which the answer does not occur literally."""
    limit: int | None = None
    """Take the first problems only."""

    def read(
        self, source: str, solutions: Literal["required", "optional"] = "required", dry_run: bool = False
    ) -> list[Problem]:
        """The problems of a file; a dry run writes no rejects."""
        pairs = [one.partition("=") for one in self.fields]
        if not all(name and equals and field for name, equals, field in pairs):
            raise UsageError(f"--fields takes NAME=FIELD, not {' '.join(self.fields)}")
        problems = read_problems(
            source, self.format, split=self.split, solutions=solutions, skip_invalid=self.skip_invalid,
            answer_in_solution=not self.answer_anywhere, fields={name: field for name, _, field in pairs},
            write_rejects=not dry_run,
        )  # fmt: skip
        return problems[: self.limit]


@dataclass
class Server:
    """How a server is asked."""

    concurrency: int = 32
    """Requests in flight at each server."""
    timeout: float = 3600.0
    """Seconds for one request."""
    retries: int = 5
    """Further attempts after a failed connection, HTTP 429 or 5xx."""
    per_request: int = 1
    """Completions asked for in one request; 1 works with every server."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the API key; none for a server that wants no key."""
    fingerprint: str | None = None
    """Says which weights are served under this name (a hash, a training step); by default a short completion at
    temperature 0 tells."""
    opens_thinking: FlagCreatePairsOff[bool] = False
    """The served chat template opens the thinking block, and the server returns it unparsed."""


@dataclass
class Asking:
    """Which model is sampled, and how."""

    model: str
    """A model's name or path, vllm:NAME, or http://HOST:PORT/v1 for any OpenAI-compatible server; commas between the
    addresses of several servers of the same model."""
    engines: str = "1"
    """Engines that share the work: 1 in this process, N in processes of their own (each with GPUs of its own, or on the
    CPU with one thread), ray:N as actors of a Ray cluster. How many there are changes no result."""
    served: str | None = None
    """The model's name on the server."""
    max_tokens: int = 16384
    """Budget of one completion."""
    temperature: float = 0.8
    """0.8 in the authors' training configuration, for training and evaluation."""
    top_p: float = 1.0
    """1 for none."""
    top_k: int = 0
    """0 for none."""
    seed: int = 0
    chunk: int = 16
    """Rollouts of one unit of work; each unit has a seed of its own."""
    batch: int = 16
    """Problems that are sampled together by one engine of this process, or of vLLM's."""
    grader: str = "math"
    """math (a marked answer, compared by math-verify), boxed (the last box alone: the authors' rule), exact, numeric,
    or module:function."""
    workers: int | None = None
    """Processes that grade."""
    templates: Path | None = None
    """Directory with system.txt, unguided.txt, guided.txt of your own."""
    chat: bool = True
    """Messages through a chat template; --no-chat for plain texts."""
    chat_switches: tuple[str, ...] = ()
    """Switches of the chat template as KEY=VALUE: --chat-switches enable_thinking=false."""
    engine_options: tuple[str, ...] = ()
    """Options of the engine as KEY=VALUE: of vllm.LLM (tensor_parallel_size=2 max_model_len=32768), or batch_size,
    dtype, device for a model in this process."""
    server: tyro.conf.OmitArgPrefixes[Server] = field(default_factory=Server)

    def engine(self) -> Engine:
        """The engine that ``model`` names.

        Raises:
            UsageError: options of a server for a model that is none, or of an engine for a server.
        """
        from retarget.pope.engines import is_server, open_engine

        template, options = _pairs(self.chat_switches), _pairs(self.engine_options)
        if is_server(self.model):
            if options:
                raise UsageError("--engine-options are for a model in this process: a server has its own")
            if self.engines != "1":
                raise UsageError("--engines are for a model that is opened here: give the addresses of several servers")
            extra = {"chat_template_kwargs": template} if template else {}
            named = {"model": self.served} if self.served else {}
            return open_engine(self.model, **named, extra=extra, **vars(self.server))
        if self.served or self.server != Server():
            raise UsageError(f"--served and the options of a server are for http://HOST:PORT/v1, not {self.model}")
        batch = self.batch if self.model.startswith("vllm:") else 1  # transformers takes them one by one
        switches = {"template": template} if template else {}
        return open_engine(self.model, engines=self.engines, batch=batch, **switches, **options)

    def shown(self) -> dict[str, Any]:
        """The settings for a results file, without passwords."""
        return {**asdict(self), "model": redact(self.model)}

    def sampling(self) -> Sampling:
        """The sampling settings."""
        return Sampling(max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k,
                        seed=self.seed)  # fmt: skip

    def sampler(self) -> "Sampler":
        """The model with its grader and prompts; these are made first, since opening a model may take long."""
        from retarget.pope.grading import Grader
        from retarget.pope.sampler import Sampler

        trusted = self.workers if self.workers is not None or self.grader in BUILT_IN else 1
        grader, prompts = Grader(self.grader, workers=trusted), Prompts.load(self.templates, chat=self.chat)
        return Sampler(self.engine(), grader, prompts, self.sampling(), self.chunk, self.batch)


@dataclass
class Mining(Asking):
    """As mining asks."""

    max_tokens: int = 32768
    """Budget of one completion: 32k in the paper's mining, twice that of its training."""


@dataclass
class Evaluating(Asking):
    """As evaluation asks: temperature 0.8, top_p 0.95, top_k 50 in the authors' training configuration."""

    top_p: float = 0.95
    top_k: int = 50


@dataclass
class Cost:
    """For --dry-run: what the completions will cost."""

    mean_tokens: int = 4000
    """Expected length of a completion."""
    throughput: float = 5000.0
    """Tokens that one GPU generates in a second."""

    def of(self, rollouts: int, note: str = "") -> dict[str, Any]:
        """Rollouts, tokens and GPU-hours of a stage."""
        tokens = rollouts * self.mean_tokens
        hours = tokens / self.throughput / 3600
        return {"rollouts_at_most": rollouts, "tokens": tokens, "gpu_hours": round(hours, 2), "note": note}


def _pairs(words: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in words:
        found = merged(found, parse_setting(one))
    return found


def said(sampled: int, journal: Path) -> None:
    """Say it where a call sampled nothing, since everything stood in the journal."""
    if not sampled:
        print(f"Nothing was sampled: all of it stands in {journal} already.")


def lines(records: Iterable[Any]) -> str:
    """Records as JSON Lines."""
    return utf8("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int, int], None]]:
    """A bar with problems, rollouts a second and the time left, on stderr; lines where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
               TimeRemainingColumn())  # fmt: skip
    console = Console(stderr=True)
    start, first, tenth = time.monotonic(), -1, -1
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, rate="")

        def told(done: int, total: int, rollouts: int) -> None:
            nonlocal first, tenth
            if first < 0:
                first = rollouts  # a resumed journal's rollouts took no time
                if rollouts:
                    print(f"{what}: going on after {rollouts:,} rollouts in the journal", file=sys.stderr, flush=True)
            rate = (rollouts - first) / max(1e-9, time.monotonic() - start)
            bar.update(task, completed=done, total=total, rate=f"{rate:,.1f} rollouts/s")
            if not console.is_terminal and (now := 10 * done // max(1, total)) != tenth:
                tenth = now
                print(f"{what}: {done} of {total} problems, {rollouts:,} rollouts, {rate:,.1f} a second",
                      file=sys.stderr, flush=True)  # fmt: skip

        yield told


def histogram(rates: list[float], bins: int = 10) -> str:
    """Pass rates as text: exactly 0 by itself, then equal bins.

    >>> print(histogram([0.0, 0.0, 0.5], bins=2))
          0 | ## 2
       -50% | # 1
      -100% |  0
    """
    counts = [0] * (bins + 1)
    for rate in rates:
        counts[0 if rate == 0 else min(bins, 1 + int(rate * bins - 1e-9))] += 1
    names = ["0", *(f"-{100 * (index + 1) // bins}%" for index in range(bins))]
    return _bars(dict(zip(names, counts, strict=True)))


def stops(found: list[tuple[int, bool]]) -> str:
    """How many problems were solved with how many rollouts, as text, where sampling stops at a success: no rates.

    Args:
        found: rollouts and whether one succeeded, a problem.

    >>> print(stops([(16, True), (32, False), (16, True)]))
      solved with 16 | ## 2
    not solved in 32 | # 1
    """
    counts = Counter((not solved, n) for n, solved in found)
    return _bars(
        {f"{'not solved in' if missed else 'solved with'} {n}": counts[missed, n] for missed, n in sorted(counts)}
    )


def _bars(counts: dict[str, int]) -> str:
    scale = max(1, max(counts.values(), default=0) / 40)
    width = max(7, *map(len, counts))
    return "\n".join(f"{name:>{width}} | {'#' * round(n / scale)} {n}" for name, n in counts.items())
