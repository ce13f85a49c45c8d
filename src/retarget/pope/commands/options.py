"""Options that the verbs of ``retarget pope`` share: for reading problems, sampling models and showing progress."""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff

from retarget.errors import UsageError
from retarget.helptext import one_paragraph
from retarget.pope.engines.keys import redact
from retarget.pope.formats import FIELDS, Format
from retarget.pope.graders import BUILT_IN
from retarget.pope.problems import Problem, read_problems, utf8
from retarget.pope.prompts import Prompts
from retarget.pope.rollouts import Engine, Sampling
from retarget.settings import parse_settings, resolve_settings

if TYPE_CHECKING:
    from retarget.pope.grading import Grader
    from retarget.pope.sampler import Sampler

PROBLEMS = ".jsonl, .jsonl.gz, .parquet, a directory, or hf:NAME[:CONFIG]"


@dataclass
@one_paragraph
class Reading:
    """Options for reading problem files."""

    format: Format = "auto"
    """plain, gsm8k, math, or set for the fields of public sets; auto recognises the format of each row by its
    fields."""
    fields: tuple[str, ...] = ()
    """Field names of a set for prompt, answer, solution and id: --fields prompt=question answer=final_answer."""
    split: str = "train"
    """Split of a data set."""
    skip_invalid: FlagCreatePairsOff[bool] = False
    """Leave out invalid rows and write them to a rejects file, instead of refusing the file."""
    answer_anywhere: FlagCreatePairsOff[bool] = False
    """Accept solutions that do not literally contain the answer."""
    limit: int | None = None
    """Use only this many problems, the first ones."""

    def read(
        self,
        source: str,
        solutions: Literal["required", "optional"] = "required",
        dry_run: bool = False,
        *,
        mined: bool = False,
    ) -> list[Problem]:
        """The problems of a file; a dry run writes no rejects.

        ``mined``: an earlier stage wrote the file, whose grader accepted solutions with the answer in another form.
        """
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit must be at least 1, not {self.limit}")
        pairs = [one.partition("=") for one in self.fields]
        if not all(name and equals and field for name, equals, field in pairs):
            raise UsageError(f"--fields must be NAME=FIELD [NAME=FIELD ...], not {' '.join(self.fields)}")
        if unknown := [name for name, _, _ in pairs if name not in FIELDS]:
            raise UsageError(f"--fields: no field {unknown[0]}; choose from {', '.join(FIELDS)}")
        problems = read_problems(
            source, self.format, split=self.split, solutions=solutions, skip_invalid=self.skip_invalid,
            answer_in_solution=not (self.answer_anywhere or mined), fields={name: field for name, _, field in pairs},
            write_rejects=not dry_run,
        )  # fmt: skip
        return problems[: self.limit]


@dataclass
@one_paragraph
class Server:
    """Options for a server."""

    concurrency: int = 32
    """Requests in flight at each server."""
    timeout: float = 3600.0
    """Seconds for one request."""
    retries: int = 5
    """Further attempts after a failed connection, HTTP 429 or 5xx."""
    per_request: int = 1
    """Completions per request; 1 works with every server."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the API key; none for a server that needs no key."""
    fingerprint: str | None = None
    """Identifies the weights that are served under this name (a hash, a training step); by default a short completion
    at temperature 0 does."""
    opens_thinking: FlagCreatePairsOff[bool] = False
    """The served chat template opens the thinking block, and the server returns it unparsed."""


@dataclass
@one_paragraph
class Asking:
    """Options for sampling a model."""

    model: str
    """A model's name or path, vllm:NAME, or http://HOST:PORT/v1 for any OpenAI-compatible server. Separate addresses of
    several servers of the same model by commas."""
    engines: str = "1"
    """Engines that share the work: 1 runs in this process; N run in processes of their own, each with its own GPUs, or
    on the CPU with one thread; ray:N run as actors of a Ray cluster. Their number changes no result."""
    served: str | None = None
    """The model's name on the server."""
    max_tokens: int = 16384
    """Longest completion, in tokens."""
    temperature: float = 0.8
    """0.8 in the authors' training configuration, for training and evaluation."""
    top_p: float = 1.0
    """1 disables it."""
    top_k: int = 0
    """0 disables it."""
    seed: int = 0
    """Seed of the rollouts, together with each prompt."""
    chunk: int = 16
    """Rollouts per unit of work; each unit has its own seed."""
    batch: int = 16
    """Problems that an engine in this process, or any vLLM engine, samples together."""
    grader: str = "math"
    """math (a marked answer, compared by math-verify), boxed (only the last box, the authors' rule), exact, numeric, or
    module:function."""
    workers: int | None = None
    """Number of processes that grade."""
    templates: Path | None = None
    """Directory with templates of your own: system.txt, unguided.txt, guided.txt."""
    chat: bool = True
    """Send prompts through the chat template; --no-chat sends plain texts."""
    chat_switches: tuple[str, ...] = ()
    """Switches of the chat template as KEY=VALUE: --chat-switches enable_thinking=false."""
    engine_options: tuple[str, ...] = ()
    """Options of the engine as KEY=VALUE: for vLLM those of vllm.LLM (tensor_parallel_size=2 max_model_len=32768),
    otherwise batch_size, dtype, device."""
    server: tyro.conf.OmitArgPrefixes[Server] = field(default_factory=Server)

    def engine(self) -> Engine:
        """The engine that ``model`` names.

        Raises:
            UsageError: options of a server for a model that is not on one, or options of an engine for a server.
        """
        from retarget.pope.engines import is_server, open_engine

        template = parse_settings(self.chat_switches, "--chat-switches")
        options = parse_settings(self.engine_options, "--engine-options")
        if is_server(self.model):
            if options:
                raise UsageError("--engine-options does not apply to a server: set its options where it is started")
            if self.engines != "1":
                raise UsageError("--engines does not apply to a server: give the addresses of several servers instead")
            extra = {"chat_template_kwargs": template} if template else {}
            named = {"model": self.served} if self.served else {}
            return open_engine(self.model, **named, extra=extra, **vars(self.server))
        if self.served or self.server != Server():
            raise UsageError(f"--served and the options of a server need --model http://HOST:PORT/v1, not {self.model}")
        batch = self.batch if self.model.startswith("vllm:") else 1  # transformers samples prompts one by one
        switches = {"template": template} if template else {}
        return open_engine(self.model, engines=self.engines, batch=batch, **switches, **options)

    def shown(self) -> dict[str, Any]:
        """The options for a results file, without passwords."""
        return {**asdict(self), "model": redact(self.model)}

    def sampling(self) -> Sampling:
        """The sampling settings.

        Raises:
            UserError: one is out of range.
        """
        given = {name: getattr(self, name) for name in ("max_tokens", "temperature", "top_p", "top_k", "seed")}
        return resolve_settings(Sampling, given, "the options of sampling")

    def sampler(self) -> "Sampler":
        """The model with its grader and prompts; these are made first, since opening a model may take long."""
        from retarget.pope.grading import Grader
        from retarget.pope.sampler import Sampler

        sampling = self.sampling()
        trusted = self.workers if self.workers is not None or self.grader in BUILT_IN else 1
        grader, prompts = Grader(self.grader, workers=trusted), Prompts.load(self.templates, chat=self.chat)
        return Sampler(self.engine(), grader, prompts, sampling, self.chunk, self.batch)


@dataclass
class Mining(Asking):
    """Options for sampling in mining."""

    max_tokens: int = 32768
    """Longest completion, in tokens; 32,768 in the paper's mining, twice as long as in its training."""


@dataclass
class Evaluating(Asking):
    """Options for sampling in evaluation; temperature 0.8, top_p 0.95 and top_k 50 as in the authors' configuration."""

    top_p: float = 0.95
    top_k: int = 50


@dataclass
class Cost:
    """Assumptions with which --dry-run estimates the cost."""

    mean_tokens: int = 4000
    """Expected mean length of a completion, in tokens."""
    throughput: float = 5000.0
    """Tokens that one GPU generates per second."""

    def of(self, rollouts: int, note: str = "") -> dict[str, Any]:
        """Rollouts, tokens and GPU-hours of a stage.

        Raises:
            UsageError: the cost is not above 0.
        """
        if self.mean_tokens < 1 or not self.throughput > 0:
            raise UsageError(
                f"--mean-tokens must be at least 1 and --throughput above 0, not {self.mean_tokens} and "
                f"{self.throughput:g}"
            )
        tokens = rollouts * self.mean_tokens
        hours = tokens / self.throughput / 3600
        return {"rollouts_at_most": rollouts, "tokens": tokens, "gpu_hours": round(hours, 2), "note": note}


def said(sampled: int, rollouts: int, journal: Path, grader: "Grader") -> None:
    """Tell the user if a call sampled none of its rollouts because all were in the journal, and if verdicts failed."""
    if rollouts and not sampled:
        print(f"Nothing was sampled: everything is already in {journal}.")
    if grader.failures:
        print(f"warning: {grader.failures}", file=sys.stderr)


AGAIN = "The same command again samples what is missing."
"""What to do about problems on which an engine failed."""


def failures(failed: Sequence[tuple[str, str, bool]], reasons: str) -> None:
    """Print which problems the engine refused, and on which it failed, with one reason.

    Args:
        failed: for each of them its id, the reason, and whether the engine failed on it.
        reasons: name of the file that has all reasons.

    >>> failures([("a", "too long", False), ("b", "failed 4 times: HTTP 500", True)], "outcomes.jsonl")
    failed (the engine refused the prompt; outcomes.jsonl has the reason): a
    failed (the engine failed on the prompt in all attempts): b
      failed 4 times: HTTP 500
      outcomes.jsonl has the reasons. The same command again samples what is missing.
    """
    for outage, meaning in (
        (False, f"the engine refused the prompt; {reasons} has the reason"),
        (True, "the engine failed on the prompt in all attempts"),
    ):
        some = [(name, reason) for name, reason, out in failed if out == outage]
        if some:
            print(f"failed ({meaning}): {', '.join(name for name, _ in some[:5])}{' ...' if some[5:] else ''}")
            if outage:
                print(f"  {some[0][1]}\n  {reasons} has the reasons. {AGAIN}")


def lines(records: Iterable[Any]) -> str:
    """Records as JSON Lines."""
    return utf8("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int, int], None]]:
    """Show finished problems, rollouts per second and the time left on stderr: a bar in a terminal, otherwise lines."""
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
                    print(f"{what}: resuming after {rollouts:,} rollouts in the journal", file=sys.stderr, flush=True)
            rate = (rollouts - first) / max(1e-9, time.monotonic() - start)
            bar.update(task, completed=done, total=total, rate=f"{rate:,.1f} rollouts/s")
            if not console.is_terminal and (now := 10 * done // max(1, total)) != tenth:
                tenth = now
                print(f"{what}: {done} of {total} problems, {rollouts:,} rollouts, {rate:,.1f} per second",
                      file=sys.stderr, flush=True)  # fmt: skip

        yield told


def histogram(rates: list[float], bins: int = 10) -> str:
    """A histogram of pass rates as text: a bin for exactly 0, then bins of equal width.

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
    """A histogram of the rollouts until problems were solved, as text, for sampling that stops at a success.

    Args:
        found: for each problem its rollouts, and whether one of them succeeded.

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
    width = max([7, *map(len, counts)])
    return "\n".join(f"{name:>{width}} | {'#' * round(n / scale)} {n}" for name, n in counts.items())
