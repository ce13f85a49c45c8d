"""Compare results/registered.toml with the history; writes nothing.

    python tools/registrations.py        # exits with 1 if the history contradicts a registration

For each setting: its ``commit`` has it, and the commits before that have not; that commit has no folder of results with
its name; its claims, command and data are the same today; both it and ``code`` are in the history. A full clone is
needed.
"""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

from records import ROOT, settings

FILE = "results/registered.toml"
FIXED = ("claims", "command", "data")
"""What may not change after the registration."""


def main() -> int:
    """Print what the history contradicts; returns the exit code."""
    wrong = [f"{FILE}: {one['name']}: {fault}" for one in settings() for fault in faults(one)]
    print("\n".join(wrong), file=sys.stderr, end="\n" * bool(wrong))
    return bool(wrong)


def faults(setting: dict[str, Any]) -> Iterator[str]:
    """What the history contradicts in a setting."""
    name, commit = setting["name"], setting["commit"]
    for each in (commit, setting["code"]):
        if subprocess.run(
            ["git", "merge-base", "--is-ancestor", each, "HEAD"], cwd=ROOT, capture_output=True
        ).returncode:
            yield f"commit {each} is not in the history of this clone"
            return
    then = registered_at(commit).get(name)
    if then is None:
        yield f"commit {commit} has no such setting"
        return
    parents = _git("show", "--no-patch", "--format=%P", commit).split()
    if any(name in registered_at(parent) for parent in parents):
        yield f"it was registered before commit {commit}"
    if _git("ls-tree", commit, f"results/{name}/"):
        yield f"commit {commit} has results of it"
    for key in FIXED:
        if then.get(key) != setting.get(key):
            yield f"its {key} changed after commit {commit}"


def registered_at(commit: str) -> dict[str, dict[str, Any]]:
    """The settings that a commit has, by name."""
    if not _git("ls-tree", commit, FILE):
        return {}
    return {one["name"]: one for one in tomllib.loads(_git("show", f"{commit}:{FILE}"))["setting"]}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
