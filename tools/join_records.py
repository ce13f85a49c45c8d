"""Join the records of one study that ran on several machines, each with seeds of its own, into one record.

    python tools/join_records.py results/pskd-overfit studies/pskd-overfit --out joined

Only recorded values are joined, so predictions and weights need not be kept. Where they are, it is better to copy the
runs into one directory and to repeat the study's command, which computes the intervals over items again: these are left
out here. A metric that compares a run with those of other seeds compares it with those of the same machine.
"""

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retarget.errors import UserError
from retarget.files import make_directory, read_json, write_json
from retarget.study.config import StudyPlan
from retarget.study.figures import Analysis, Bars, Figure, Lines, Series
from retarget.study.record import read_plan
from retarget.study.results import Summary
from retarget.study.summary import Values, summarise, unplanned_looks

COPIED = ("config.json", "metrics.jsonl", "status.json")
"""What a record keeps of a run."""


def main() -> int:
    """Join the named records; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directories", nargs="+", type=Path, help="records, in the order of their runs")
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    given = parser.parse_args()
    try:
        join(given.directories, given.out)
    except UserError as error:
        print(f"join_records: {error}", file=sys.stderr)
        return 2
    return 0


def join(directories: Sequence[Path], out: Path) -> None:
    """Write the joined record into a new directory.

    Raises:
        UserError: the records are of different studies or data, share a seed, or ``out`` exists.
    """
    if out.exists():
        raise UserError(f"{out} exists already: choose another --out")
    records = [read_json(one / "study.json") for one in directories]
    plans = [read_plan(one / "study.json") for one in directories]
    summaries = [Summary.model_validate(read_json(one / "summary.json")) for one in directories]
    analyses = [Analysis.model_validate(read_json(one / "analysis.json")) for one in directories]
    seeds = [seed for one in summaries for seed in one.seeds]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seed {next(seed for seed in seeds if seeds.count(seed) > 1)} is in two of the records")
    for directory, plan in zip(directories[1:], plans[1:], strict=True):
        if _setting(plan) != _setting(plans[0]):
            changed = [key for key, value in _setting(plans[0]).items() if value != _setting(plan)[key]]
            raise UserError(f"{directory} and {directories[0]} differ in {', '.join(changed)}: they are two studies")
    _refuse_other_content(directories)
    plan = plans[0].model_copy(update={"seeds": tuple(seeds)})
    looks = [*dict.fromkeys(tuple(look) for one in summaries for look in one.looks), tuple(seeds)]
    analysis = Analysis(
        figures=_figures(analyses, [len(one.seeds) for one in summaries]), lead=analyses[0].lead,
        notes=[
            *_notes(plans, summaries, analyses),
            *(one for one in (unplanned_looks(plan, looks), _apart(summaries)) if one),
        ],
    )  # fmt: skip
    make_directory(out)
    for directory in directories:
        _copy_runs(directory, out)
    earlier = [line for one in records for line in [*one.get("earlier_commands", []), one["command"]]]
    record = records[-1] | {"plan": plan.model_dump(mode="json"), "earlier_commands": list(dict.fromkeys(earlier))}
    record["joined"] = [{"seeds": one.seeds, "commit": record["commit"], "hardware": record["hardware"]}
                        for one, record in zip(summaries, records, strict=True)]  # fmt: skip
    write_json(out / "study.json", record)
    write_json(out / "analysis.json", analysis.model_dump(mode="json"))
    write_json(out / "summary.json", summarise(plan, _values(plan, summaries), analysis) | {"looks": looks})


def _refuse_other_content(directories: Sequence[Path]) -> None:
    """Refuse records whose runs read other data, or ran other code of the user's, under the same name."""
    first: dict[str, tuple[str, Path]] = {}
    for directory in directories:
        for path in sorted(directory.glob("runs/**/config.json")):
            for name, content in (read_json(path).get("content") or {}).items():
                known, where = first.setdefault(name, (content, directory))
                if known != content:
                    raise UserError(
                        f"{directory} and {where} were made with other content of {name}: they are two studies"
                    )


def _setting(plan: StudyPlan) -> dict[str, Any]:
    """A plan without what may differ between machines, or is only words."""
    setting = json.loads(plan.model_copy(update={"seeds": ()}).model_dump_json())
    for metric in setting["metrics"]:
        del metric["label"], metric["description"]
    return setting


def _values(plan: StudyPlan, summaries: Sequence[Summary]) -> Values:
    """Every metric's values over the seeds of all records; None where a record lacks it."""

    def of(one: Summary, condition: str, arm: str, metric: str) -> list[float | None]:
        spread = one.conditions.get(condition, {}).get(arm, {}).get(metric)
        return list(spread.values) if spread else [None] * len(one.seeds)

    values: Values = {}
    for condition in (one.name for one in plan.conditions):
        for arm in (one.name for one in plan.arms):
            known = [name for one in summaries for name in one.conditions.get(condition, {}).get(arm, {})]
            values.setdefault(condition, {})[arm] = {
                name: [value for one in summaries for value in of(one, condition, arm, name)]
                for name in dict.fromkeys(known)
            }
    return values


def _figures(analyses: Sequence[Analysis], seeds: Sequence[int]) -> list[Figure]:
    """The curves and bars that every record has, with the seeds of all; others cannot be joined."""
    joined: list[Figure] = []
    for first in analyses[0].figures:
        same = [next((f for f in one.figures if f.title == first.title), None) for one in analyses]
        lines, bars = [one for one in same if isinstance(one, Lines)], [one for one in same if isinstance(one, Bars)]
        if len(lines) == len(same) and all(_drawn(one) == _drawn(lines[0]) for one in lines):
            series = [
                _seeds_of_all(whole)
                for whole in zip(*(one.series for one in lines), strict=True)
                if [len(one.y) for one in whole] == list(seeds)
            ]  # fmt: skip
            joined.append(lines[0].model_copy(update={"series": series}))
        elif len(bars) == len(same) and all((b.groups, b.labels) == (bars[0].groups, bars[0].labels) for b in bars):
            values = [
                [[value for part in parts for value in part] for parts in zip(*series, strict=True)]
                for series in zip(*(one.values for one in bars), strict=True)
            ]
            joined.append(bars[0].model_copy(update={"values": values}))
    return joined


def _seeds_of_all(whole: Sequence[Series]) -> Series:
    counts = [seed for one in whole for seed in one.counts or []] if all(one.counts for one in whole) else None
    return whole[0].model_copy(update={"y": [seed for one in whole for seed in one.y], "counts": counts})


def _drawn(figure: Lines) -> list[tuple[str, list[float]]]:
    return [(one.label, list(one.x)) for one in figure.series]


def _notes(plans: Sequence[StudyPlan], summaries: Sequence[Summary], analyses: Sequence[Analysis]) -> list[str]:
    """The notes of all records but those on looks; what not every record has begins with the seeds it is about."""
    looks = {unplanned_looks(plan, one.looks) for plan, one in zip(plans, summaries, strict=True)}
    found = dict.fromkeys(note for one in analyses for note in one.notes if note not in looks)
    about = {note: [summary.seeds for summary, one in zip(summaries, analyses, strict=True) if note in one.notes]
             for note in found}  # fmt: skip
    return [
        note if len(seeds) == len(analyses) else f"Seeds {', '.join(map(str, itertools.chain(*seeds)))}: {note}"
        for note, seeds in about.items()
    ]


def _apart(summaries: Sequence[Summary]) -> str:
    parts = " and ".join(", ".join(map(str, one.seeds)) for one in summaries)
    return (
        f"Seeds {parts} ran on different machines, and only their recorded values were joined: intervals over items "
        "are left out, and a metric that needs a run of another seed took one of the same machine."
    )


def _copy_runs(directory: Path, out: Path) -> None:
    for status in sorted((directory / "runs").glob("**/status.json")):
        target = out / status.parent.relative_to(directory)
        make_directory(target)
        for name in COPIED:
            if (status.parent / name).is_file():
                shutil.copyfile(status.parent / name, target / name)


if __name__ == "__main__":
    sys.exit(main())
