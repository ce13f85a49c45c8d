"""``python -m benchmarks [NAME...]``: one JSON line a figure."""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Run the named benchmarks, or all of them, and print each figure as soon as it is measured."""
    known = sorted(path.stem for path in HERE.glob("[!_]*.py"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="One JSON line a figure.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all of them by default")
    names = parser.parse_args().names or known
    for name in names:
        if name not in known:
            parser.error(f"there is no benchmark {name!r}: choose from {', '.join(known)}")
    commit = committed()
    for name in names:
        for measured in import_module(f"benchmarks.{name}").figures():
            of_run = {"command": f"python -m benchmarks {name}", "hardware": hardware(), "commit": commit}
            print(json.dumps({**measured, **of_run}, ensure_ascii=False, allow_nan=False), flush=True)


def hardware() -> str:
    """Processor, CPUs and what else they were doing, threads, GPU if torch is loaded and sees one, Python."""
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = models[0] if models else processor
    parts = [processor, f"{os.cpu_count()} CPUs"]
    if hasattr(os, "getloadavg"):
        parts.append(f"load {os.getloadavg()[0]:.1f}")  # above the number of CPUs, times are longer than they need be
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
