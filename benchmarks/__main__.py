"""``python -m benchmarks [NAME...]``: print one JSON line per figure to stdout, then a table to stderr."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent


def main(words: Sequence[str] | None = None) -> None:
    """Run the named benchmarks, or all of them; print each figure as soon as it is measured, and a table at the end."""
    known = sorted(path.stem for path in HERE.glob("[!_]*.py"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Print one JSON line per figure.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(known)}; by default all")
    parser.add_argument("--smallest", action="store_true", help="run in seconds, with sizes too small to mean anything")
    given = parser.parse_args(words)
    names, more = given.names or known, " --smallest" if given.smallest else ""
    for name in names:
        if name not in known:
            parser.error(f"there is no benchmark {name!r}: choose from {', '.join(known)}")
    commit, all_of_them = committed(), []
    for name in names:
        for measured in import_module(f"benchmarks.{name}").figures(given.smallest):
            of_run = {"command": f"python -m benchmarks {name}{more}", "hardware": hardware(), "commit": commit}
            print(json.dumps({**measured, **of_run}, ensure_ascii=False, allow_nan=False), flush=True)
            all_of_them.append(measured)
    Console(stderr=True).print(table(all_of_them))


def table(figures: list[dict[str, Any]]) -> Table:
    """Each figure with its value, the bound that was set beforehand, and whether the value keeps it."""
    made = Table("figure", "value", "reach", "reached")
    for one in figures:
        reached = {True: "yes", False: "NO", None: ""}[one["reached"]]
        made.add_row(one["figure"], f"{one['value']:,g} {one['unit']}", one["reach"] or "", reached)
    return made


def hardware() -> str:
    """Processor, number of CPUs and their load, torch threads and GPU if torch is loaded, Python version."""
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = models[0] if models else processor
    parts = [processor, f"{os.cpu_count()} CPUs"]
    if hasattr(os, "getloadavg"):
        parts.append(f"load {os.getloadavg()[0]:.1f}")  # above the number of CPUs, other work slowed the benchmark
    if torch := sys.modules.get("torch"):
        parts.append(f"{torch.get_num_threads()} torch threads")
        if torch.cuda.is_available():
            parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"Python {platform.python_version()}"])


def committed() -> str | None:
    """The commit that was measured, with ``+changes`` if tracked files differ from it; None outside of git."""

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", HERE, *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    main()
