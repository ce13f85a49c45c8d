"""Run the commands of a file in order and record their output, for a result block of a document.

    python tools/record_commands.py NAME FILE.sh        # writes results/NAME/commands.json

Commands run in the working directory, so the file names its data and outputs by relative paths. What they write to
stderr (progress, warnings) is shown but not recorded. If a command fails, the recording ends and nothing is written.
"""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

from retarget.study.environment import environment

ROOT = Path(__file__).parent.parent


def main(name: str, file: str) -> int:
    """Run and record the commands; returns the exit code of the last one."""
    target = ROOT / "results" / name / "commands.json"
    record = {"file": file, "environment": environment(), "commands": []}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for command in commands(Path(file).read_text(encoding="utf-8")):
        print(f"$ {command}", file=sys.stderr, flush=True)
        before = _cpu_seconds()
        done = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, text=True, check=False,
                              env={**os.environ, "PATH": path})  # fmt: skip
        print(done.stdout, end="", flush=True)
        if done.returncode:
            print(f"exit code {done.returncode}: nothing is recorded", file=sys.stderr)
            return done.returncode
        took = round(_cpu_seconds() - before)
        record["commands"].append({"command": command, "output": done.stdout, "cpu_seconds": took})
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def commands(text: str) -> list[str]:
    r"""The commands of a shell file: its lines without comments, continued lines joined.

    >>> commands("# first\na \\\n  b\nc\n")
    ['a \\\n  b', 'c']
    """
    return re.findall(r"^(?!#|\s*$).*(?:(?<=\\)\n.*)*", text, re.MULTILINE)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
