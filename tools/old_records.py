"""List the records whose code is older than a change that would give other numbers; writes nothing.

    python tools/old_records.py            # every record: later commits to its code, and changes of its numbers
    python tools/old_records.py --check    # exits with 1 if results/changes.toml contradicts the history

results/changes.toml names each such change by its commit, with the records that are older. ``--check`` tests only this:
are the records of a change those of its study, settings, arms and claims that were made before its commit? A full clone
is needed. It does not find changes that nobody listed: other commits to a record's code may also have changed its
numbers. To find out, run one seed again with the recorded command; tools/resolve_again.py tells whether that still asks
for the same.
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
    worlds = [plan["settings"] | condition["settings"] for condition in plan["conditions"]]
    if plan["study"] != change["study"] or not any(all(one.get(key) == asked[key] for key in asked) for one in worlds):
        return False
    for what, key in (("arms", "name"), ("claims", "id")):
        if what in change and not any(each[key] in change[what] for each in plan[what]):
            return False
    return True


def _commit(one: Record) -> str:
    return one.study["commit"]["hash"]


def _is_before(commit: str, other: str) -> bool:
    """Whether ``other`` is missing from the history of ``commit``."""
    for each in (commit, other):
        if subprocess.run(["git", "cat-file", "-e", f"{each}^{{commit}}"], cwd=ROOT, capture_output=True).returncode:
            raise SystemExit(f"commit {each} is not in this clone: fetch its whole history")
    return bool(subprocess.run(["git", "merge-base", "--is-ancestor", other, commit], cwd=ROOT).returncode)


def _later(one: Record) -> int:
    folders = [CODE.get(one.study["plan"]["study"], ""), "data", "metrics", "study"]
    paths = [f"src/retarget/{folder}" for folder in folders]
    command = ["git", "rev-list", "--count", "--no-merges", f"{_commit(one)}..HEAD", "--", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"commit {_commit(one)} is not in this clone: fetch its whole history")
    return int(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
