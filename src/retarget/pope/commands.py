"""The verbs of ``retarget pope``. What needs torch is imported inside a verb."""

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from retarget.errors import UsageError, UserError
from retarget.identity import fingerprint
from retarget.pope.identity import weights_of
from retarget.pope.options import Asking, Cost, Evaluating, Mining, Reading, histogram, progress, stops
from retarget.pope.problems import read_problems, write_problems, write_text
from retarget.pope.prompts import Prompts

_JSONL = "problems: .jsonl, .jsonl.gz, .parquet, a directory, or hf:NAME"


@dataclass
class Oracle:
    """Ask a teacher for missing solutions; keep those whose final answer the grader accepts."""

    problems: Annotated[Positional[str], arg(help=_JSONL)]
    out: Path
    """JSONL with the problems that have a solution now; the others go to OUT.unsolved.jsonl."""
    asking: tyro.conf.OmitArgPrefixes[Asking]
    reading: tyro.conf.OmitArgPrefixes[Reading] = field(default_factory=Reading)
    attempts: int = 4
    """Samples a problem."""

    def run(self) -> int:
        from retarget.pope.oracle import ask_oracle

        problems = self.reading.read(self.problems, "optional")
        solved, unsolved = ask_oracle(
            problems, self.asking.engine(), self.attempts, grader=self.asking.tools()["grader"],
            params=self.asking.sampling(), batch=self.asking.batch, journal=Path(f"{self.out}.journal.jsonl"),
        )  # fmt: skip
        write_problems(self.out, solved)
        write_problems(Path(f"{self.out}.unsolved.jsonl"), unsolved)
        print(f"{self.out}: {len(solved)} problems with a solution; {len(unsolved)} without")
        return 0


@dataclass
class Mine:
    """Sample every problem k times without guidance, and keep those that are never solved."""

    problems: Annotated[Positional[str], arg(help=_JSONL)]
    out: Path
    """Directory for the journal, outcomes.jsonl and hard.jsonl."""
    asking: tyro.conf.OmitArgPrefixes[Mining]
    reading: tyro.conf.OmitArgPrefixes[Reading] = field(default_factory=Reading)
    cost: tyro.conf.OmitArgPrefixes[Cost] = field(default_factory=Cost)
    k: int = 128
    """Rollouts a problem."""
    rates: FlagCreatePairsOff[bool] = False
    """Sample all k of every problem, for pass rates; by default a problem ends at its first success."""
    accept: tuple[str, ...] = ("hard",)
    """Kinds that go on: hard, and of the doubtful ones truncated, unparsed, suspect."""
    checkpoint: str | None = None
    """A later model: mine OUT/hard.jsonl again with it. What it now solves goes to graduates.jsonl, what is hard still
    to still-hard.jsonl, the rest (truncated, unparsed, suspect) to left-over.jsonl."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Print rollouts, tokens and GPU-hours; do nothing."""

    def run(self) -> int:
        from retarget.pope.mining import KINDS, mine

        if unknown := set(self.accept) - set(KINDS):
            raise UsageError(f"--accept takes {', '.join(KINDS)}, not {', '.join(sorted(unknown))}")
        if self.checkpoint:
            return self._graduate()
        problems = self.reading.read(self.problems, "optional")
        if self.dry_run:
            print(json.dumps(self.cost.of(len(problems) * self.k, "less where a problem ends at its first success")))
            return 0
        tools = self.asking.tools()  # before a model is opened, which may take long
        with progress("mining") as told:
            found = mine(
                problems, self.asking.engine(), self.k, stop_at_success=not self.rates, accepted=tuple(self.accept),  # type: ignore[arg-type]
                journal=self.out / "mine.jsonl", progress=told, **tools,
            )  # fmt: skip
        write_text(self.out / "outcomes.jsonl", _lines(one.to_json() for one in found.outcomes))
        write_problems(self.out / "hard.jsonl", found.hard)
        rates = [one.rate for one in found.outcomes if one.rate is not None]
        print(histogram(rates) if self.rates else stops([(one.n, one.correct > 0) for one in found.outcomes if one.n]))
        counts = ", ".join(f"{name} {count}" for name, count in found.counts.items() if count)
        print(f"{len(problems)} problems: {counts}. {found.rollouts:,} rollouts, {found.tokens:,} tokens.")
        _examples(found.outcomes)
        print(f"{self.out / 'hard.jsonl'}: {len(found)} problems")
        return 0

    def _graduate(self) -> int:
        from dataclasses import replace

        from retarget.pope.mining import mine

        hard = read_problems(self.out / "hard.jsonl", solutions="optional", answer_in_solution=False)
        if self.dry_run:
            print(json.dumps(self.cost.of(len(hard) * self.k, "less where a problem ends at its first success")))
            return 0
        model = str(self.checkpoint)
        tools = self.asking.tools()
        tools["params"] = tools["params"].of("mine again")
        # A journal for each model: a path whose weights have changed is another one.
        journal = self.out / f"mine-again-{weights_of(model) or fingerprint(model)}.jsonl"
        with progress("mining again") as told:
            now = mine(hard, replace(self.asking, model=model).engine(), self.k, accepted=tuple(self.accept),  # type: ignore[arg-type]
                       journal=journal, progress=told, **tools)  # fmt: skip
        solved = [one.problem for one in now.outcomes if one.kind == "solved"]
        other = [one.problem for one in now.outcomes if one.kind not in ("solved", *self.accept)]
        write_text(self.out / "outcomes-again.jsonl", _lines(one.to_json() for one in now.outcomes))
        for name, some in (("graduates", solved), ("still-hard", now.hard), ("left-over", other)):
            write_problems(self.out / f"{name}.jsonl", some)
        print(f"{len(solved)} of {len(hard)} hard problems are solved now: {self.out / 'graduates.jsonl'}")
        for one in now.outcomes:
            if one.kind == "solved":
                print(f"  {one.problem.id}: solved with {one.n} rollouts")
        print(f"{len(now)} are hard still: {self.out / 'still-hard.jsonl'}; {len(other)} are neither: "
              f"{self.out / 'left-over.jsonl'}")  # fmt: skip
        _examples(now.outcomes)
        return 0


@dataclass
class Search:
    """Find the shortest prefix of each solution with which the model succeeds at least once."""

    problems: Annotated[Positional[str], arg(help="hard problems, as `mine` wrote them")]
    out: Path
    """Directory for the journal and prefixes.jsonl."""
    asking: tyro.conf.OmitArgPrefixes[Asking]
    reading: tyro.conf.OmitArgPrefixes[Reading] = field(default_factory=Reading)
    cost: tyro.conf.OmitArgPrefixes[Cost] = field(default_factory=Cost)
    cuts: int = 8
    """Fractions that are tried, uniform up to the cap."""
    k: int = 64
    """Rollouts a cut, at most."""
    cap: float = 0.25
    """Longest prefix as a fraction of the solution."""
    unit: Literal["sentence", "line", "step", "token"] = "sentence"
    """Where a cut may stand."""
    fallback: Literal["longest", "none"] = "longest"
    """What a problem gets for which no cut works."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Print rollouts, tokens and GPU-hours; do nothing."""

    def run(self) -> int:
        from retarget.pope.search import search_prefixes

        problems = self.reading.read(self.problems)
        if self.dry_run:
            rollouts = len(problems) * self.cuts * self.k
            print(json.dumps(self.cost.of(rollouts, "a cut ends at its first success, and longer ones are not tried")))
            return 0
        tools = self.asking.tools()
        with progress("searching") as told:
            found = search_prefixes(
                problems, self.asking.engine(), self.cuts, self.k, cap=self.cap, unit=self.unit,
                fallback=self.fallback, journal=self.out / "search.jsonl", progress=told, **tools,
            )  # fmt: skip
        write_text(self.out / "prefixes.jsonl", _lines(one.to_json() for one in found.found))
        statuses = [one.status for one in found.found]
        counts = ", ".join(f"{name} {statuses.count(name)}" for name in dict.fromkeys(statuses))
        bare = sum(one.bare > 0 for one in found.found)
        asked = sum(one.bare > 0 and one.in_question for one in found.found)
        print(f"{len(problems)} problems: {counts}. {found.rollouts:,} rollouts, {found.tokens:,} tokens.")
        print(f"{sum(one.leaks for one in found.found)} cuts state the answer and were refused; in {bare} prefixes the "
              f"answer's token occurs, in {asked} of them it stands in the question already.")  # fmt: skip
        print(self.out / "prefixes.jsonl")
        return 0


@dataclass
class Mix:
    """Write the rows to train on: guided and unguided variants of each hard problem."""

    problems: Annotated[Positional[str], arg(help="hard problems")]
    prefixes: Annotated[Positional[Path], arg(help="prefixes.jsonl, as `search` wrote it")]
    out: Path
    """Parquet file; a data card OUT.md is written beside it."""
    reading: tyro.conf.OmitArgPrefixes[Reading] = field(default_factory=Reading)
    easy: str | None = None
    """Easy problems to mix in, unguided."""
    ratio: float = 1.0
    """Guided rows over unguided ones."""
    found_only: FlagCreatePairsOff[bool] = False
    """Leave out guided rows whose prefix helped in no rollout of the search."""
    variant: str = "guided"
    """Template of the guided prompt; guided_no_restate is the paper's ablation."""
    templates: Path | None = None
    """Directory with templates of your own."""
    chat: bool = True
    """Messages; --no-chat for plain texts."""
    seed: int = 0
    prompts_per_batch: int = 32
    """Prompts of a generation batch, for the order."""

    def run(self) -> int:
        from retarget.pope.mixture import mix, write_rows

        hard = self.reading.read(self.problems)
        easy = self.reading.read(self.easy, "optional") if self.easy else []
        prefixes = _prefixes(self.prefixes, self.found_only)
        prompts = Prompts.load(self.templates, self.variant, self.chat)
        rows = mix(hard, prefixes, prompts, easy=easy, ratio=self.ratio, seed=self.seed,
                   prompts_per_batch=self.prompts_per_batch)  # fmt: skip
        write_rows(self.out, rows, {"problems": self.problems, "prefixes": self.prefixes, "easy": self.easy or "none",
                                    "ratio": self.ratio, "template": self.variant, "seed": self.seed})  # fmt: skip
        guided = sum(row["guided"] for row in rows)
        print(f"{self.out}: {len(rows)} rows, {guided} of them guided; {self.out}.md describes them")
        return 0


@dataclass
class Export:
    """Write a mixture for another trainer."""

    rows: Annotated[Positional[Path], arg(help="Parquet file that `mix` wrote")]
    to: Literal["verl", "openrlhf", "prime-rl"]
    """The host."""
    out: Path

    def run(self) -> int:
        from retarget.pope.export import export
        from retarget.pope.mixture import read_rows

        export(read_rows(self.rows), self.to, self.out)
        print(self.out)
        return 0


@dataclass
class Train:
    """Train with TRL's GRPOTrainer. For several processes: accelerate launch -m retarget pope train ..."""

    rows: Annotated[Positional[Path], arg(help="Parquet file that `mix` wrote")]
    model: str
    """Name or path."""
    out: Path
    """Directory of the model and its checkpoints."""
    config: Path | None = None
    """TOML file with settings of TrainingSettings; the defaults are the paper's."""
    set: tuple[str, ...] = ()
    """Settings as KEY=VALUE [KEY=VALUE ...], with VALUE as in TOML."""
    cycles: int = 100
    """Generation batches in all."""
    grader: str = "math"
    lora_rank: int | None = None
    """Train a LoRA adapter of this rank instead of all weights."""
    resume: bool = True
    """Go on from the newest whole checkpoint."""
    cost: tyro.conf.OmitArgPrefixes[Cost] = field(default_factory=Cost)
    dry_run: FlagCreatePairsOff[bool] = False
    """Print the settings, rollouts, tokens and GPU-hours of sampling; do nothing."""

    def run(self) -> int:
        from pydantic import ValidationError

        from retarget.pope.mixture import read_rows
        from retarget.pope.settings import TrainingSettings
        from retarget.settings import parse_setting, read_config

        given: dict[str, Any] = {"cycles": self.cycles, **(read_config(self.config) if self.config else {})}
        for one in self.set:
            given |= parse_setting(one)
        try:
            settings = TrainingSettings.model_validate(given)
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise UsageError("settings of training: " + "; ".join(faults)) from error
        rows = read_rows(self.rows)
        if self.dry_run:
            rollouts = settings.cycles * settings.prompts_per_batch * settings.rollouts
            cost = self.cost.of(rollouts, "sampling only; updates come on top")
            print(json.dumps({"settings": settings.model_dump(mode="json"), "rows": len(rows), **cost}, indent=1))
            return 0
        return self._train(rows, settings)

    def _train(self, rows: list[dict[str, Any]], settings: Any) -> int:
        from retarget.extras import require

        require("trl", "rl")
        from retarget.pope.grading import Grader, reward_function
        from retarget.pope.trl import train

        lora = None
        if self.lora_rank:
            peft = require("peft", "rl")
            lora = peft.LoraConfig(r=self.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
        with Grader(self.grader) as grader:
            trainer = train(self.model, rows, reward_function(grader), settings, self.out, peft_config=lora,
                            resume=self.resume)  # fmt: skip
            failed = {status: count for status, count in grader.counts.items() if status != "ok"}
        history = [line for line in trainer.state.log_history if "reward" in line]
        if trainer.accelerator.is_main_process:
            write_text(self.out / "history.jsonl", _lines(history))
            last = history[-1] if history else {}
            shown = {key: round(value, 4) for key, value in last.items() if key.endswith(("/reward", "/all_fail"))}
            print(f"{self.out}: {trainer.state.global_step} steps; last cycle {shown}; grader failures {failed or 0}")
        return 0


@dataclass
class Evaluate:
    """Sample without guidance and estimate pass@1 and pass@k with intervals over problems."""

    problems: Annotated[Positional[str], arg(help=_JSONL)]
    out: Path
    """Directory for the journal and evaluation.json."""
    asking: tyro.conf.OmitArgPrefixes[Evaluating]
    reading: tyro.conf.OmitArgPrefixes[Reading] = field(default_factory=Reading)
    samples: int = 32
    """Rollouts a problem; for solved sets take 256 or more, as many for the base as for the trained model."""
    k: tuple[int, ...] = (1, 16)

    def run(self) -> int:
        from retarget.pope.evaluation import evaluate

        problems = self.reading.read(self.problems, "optional")
        tools = self.asking.tools()
        with progress("evaluating") as told:
            found = evaluate(problems, self.asking.engine(), self.samples, journal=self.out / "evaluate.jsonl",
                             progress=told, **tools)  # fmt: skip
        summary = found.to_json(self.k)
        write_text(self.out / "evaluation.json", json.dumps({**summary, "settings": asdict(self.asking)}, default=str))
        for k, one in summary["pass"].items():
            low, high = one["interval"]
            print(f"pass@{k} {one['mean']:.4f} [{low:.4f}, {high:.4f}] over {len(problems)} problems")
        print(f"solved {summary['solved']} of {summary['problems']} with {self.samples} samples each; "
              f"{summary['truncated']} completions truncated")  # fmt: skip
        rollouts = self.samples * len(problems)
        before = "unknown" if found.thinking is None else f"{found.thinking / rollouts:.1f}"
        print(f"tokens a completion {found.tokens / rollouts:.1f}, of them in a thinking block {before}")
        return 0


VERBS: dict[str, type] = {
    "oracle": Oracle, "mine": Mine, "search": Search, "mix": Mix, "export": Export, "train": Train,
    "evaluate": Evaluate,
}  # fmt: skip


def pope(words: list[str]) -> int:
    """``retarget pope VERB ...``; the exit code.

    Raises:
        UsageError: no such verb.
    """
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:<9} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
        print("usage: retarget pope VERB ...\n\n" + "\n".join(lines) + "\n\nretarget pope VERB --help says more.",
              file=sys.stdout if words else sys.stderr)  # fmt: skip
        return 0 if words else 2
    if words[0] not in VERBS:
        raise UsageError(f"there is no verb {words[0]!r} of pope: choose {', '.join(VERBS)}")
    return tyro.cli(VERBS[words[0]], args=words[1:], prog=f"retarget pope {words[0]}").run()


def _examples(outcomes: Any) -> None:
    for kind, meaning in (
        ("broken", "the grader rejects the problem's own solution"),
        ("truncated", "most rollouts ran into the token budget"),
        ("unparsed", "most rollouts hold no final answer"),
        ("suspect", "most answers agree with each other and not with the label"),
    ):
        some = [one for one in outcomes if one.kind == kind]
        if some:
            print(f"{kind} ({meaning}): {', '.join(one.problem.id for one in some[:5])}{' ...' if some[5:] else ''}")


def _prefixes(path: Path, found_only: bool) -> dict[str, str]:
    if not path.exists():
        raise UserError(f"{path}: no such file; `retarget pope search` writes it")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    if not all({"id", "prefix", "status"} <= set(one) for one in records):
        raise UserError(f"{path}: `retarget pope search` did not write it: not every line has id, prefix and status")
    return {
        one["id"]: one["prefix"] for one in records if one["prefix"] and (not found_only or one["status"] == "found")
    }


def _lines(records: Any) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
