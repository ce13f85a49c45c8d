"""Check the cuts of `retarget pope search` on real problem files: how many problems keep a prefix, and does one leak?

    python tools/check_prefixes.py gsm8k/train.jsonl math/train.jsonl.gz

For each file and cap, prints one JSON line: problems with a prefix at any of eight cuts that does not state the answer,
the prefixes themselves, and of these those that ``--grader math`` rewards as a completion (0 by construction), those
that hold the answer's characters as a token, and those whose last number is the answer, as the grader ``numeric`` reads
it: the last two also where the question has that number. Exits with 1 if the grader rewards a prefix.
"""

import argparse
import json
import sys
from pathlib import Path

from retarget.pope.grading import Grader
from retarget.pope.prefixes import bare_occurrences, cut_points
from retarget.pope.problems import read_problems
from retarget.pope.quantities import last_number, one_number
from retarget.pope.search import clean_cuts

CAPS = (0.25, 0.75)
CUTS = 8


def main(words: list[str] | None = None) -> int:
    """Check every file; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="problem files")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(words)
    wrong = 0
    for file in given.files:
        problems = read_problems(file, answer_in_solution=False, skip_invalid=True, write_rejects=False)
        with Grader("math", workers=given.workers) as grader:
            for cap in CAPS:
                places = {one.id: cut_points(one.solution, CUTS, cap) for one in problems}
                clean = clean_cuts(problems, places, grader)
                shown = [(one, one.solution[: cut.end], cut.end) for one in problems for cut in clean[one.id]]
                grades = grader.grade([text for _, text, _ in shown], [one.answer for one, _, _ in shown])
                leaked = sum(grade.correct for grade in grades)
                wrong += leaked
                found = {
                    "file": file.name, "cap": cap, "problems": len(problems),
                    "with a prefix": sum(map(bool, clean.values())), "prefixes": len(shown), "rewarded": leaked,
                    "hold the answer": sum(bare_occurrences(one, end)[0] > 0 for one, _, end in shown),
                    "end in the answer": sum(ends_in(text, one.answer) for one, text, _ in shown),
                }  # fmt: skip
                print(json.dumps(found), flush=True)
    return int(wrong > 0)


def ends_in(text: str, answer: str) -> bool:
    """Whether the last number of a text is the answer's value."""
    gold, last = one_number(answer), last_number(text)
    value = None if last is None else one_number(last)
    return gold is not None and value is not None and value.equals(gold)


if __name__ == "__main__":
    sys.exit(main())
