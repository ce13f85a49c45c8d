"""List the records whose code is older than a change that would give other numbers; writes nothing.

    python tools/old_records.py            # every record: later commits to its code, and changes of its numbers
    python tools/old_records.py --check    # exits with 1 if results/changes.toml contradicts the history

results/changes.toml names each such change by its commit, with the records that are older. Which these are follows from
the history, so a full clone is needed. Other commits to a record's code may also have changed its numbers: to find out,
run one seed again with the recorded command.
"""

import subprocess
import sys
from typing import Any

from records import ROOT, Record, names, read_toml, record

CODE = {"pskd": "pskd", "pskd-peers": "pskd", "pskd-translation": "pskd", "pskd-detection": "pskd",
        "pope": "pope", "trojdiff": "trojdiff"}  # fmt: skip


def main() -> int:
    """List or check the records; returns the exit code."""
    changes = read_toml("changes.toml")["change"]
    studies = [one for one in map(record, names()) if (one.folder / "study.json").exists()]
    if "--check" in sys.argv[1:]:
        wrong = [line for change in changes for line in _wrong(change, studies)]
        print("\n".join(wrong), file=sys.stderr, end="\n" * bool(wrong))
        return bool(wrong)
    for one in studies:
        print(f"{one.name}: made at {_commit(one)[:10]}; {_later(one)} later commits to its code")
        for change in one.changes:
            print(f"  {'older' if one.older else 'older, not in what its claims are judged by'}: {change['what']}")
    print(
        f"{sum(bool(one.older) for one in studies)} of {len(studies)} records are older than a change of their numbers"
    )
    return 0


def _wrong(change: dict[str, Any], studies: list[Record]) -> list[str]:
    """Records that are listed although they are not older, or older although not listed."""
    older = {one.name for one in studies if _is_of(one, change) and _is_before(_commit(one), change["commit"])}
    listed, where = set(change["records"]), f"results/changes.toml: {change['commit'][:10]}"
    return [f"{where}: {name} is older but not listed" for name in sorted(older - listed)] + [
        f"{where}: {name} is listed but not older" for name in sorted(listed - older)
    ]


def _is_of(one: Record, change: dict[str, Any]) -> bool:
    plan, asked = one.study["plan"], change["settings"]
    if plan["study"] != change["study"] or any(plan["settings"].get(key) != asked[key] for key in asked):
        return False
    return "arms" not in change or any(arm["name"] in change["arms"] for arm in plan["arms"])


def _commit(one: Record) -> str:
    return one.study["commit"]["hash"]


def _is_before(commit: str, other: str) -> bool:
    """Whether ``other`` is missing from the history of ``commit``."""
    for each in (commit, other):
        if subprocess.run(["git", "cat-file", "-e", f"{each}^{{commit}}"], cwd=ROOT, capture_output=True).returncode:
            raise SystemExit(f"commit {each} is not in this clone: fetch its whole history")
    return bool(subprocess.run(["git", "merge-base", "--is-ancestor", other, commit], cwd=ROOT).returncode)


def _later(one: Record) -> int:
    folder = f"src/retarget/{CODE.get(one.study['plan']['study'], '')}"
    command = ["git", "rev-list", "--count", "--no-merges", f"{_commit(one)}..HEAD", "--", folder, "src/retarget/data"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"commit {_commit(one)} is not in this clone: fetch its whole history")
    return int(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
