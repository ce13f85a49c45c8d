"""Record where a study ran: package versions, hardware, commit. Imports nothing heavy."""

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import retarget


def environment() -> dict[str, Any]:
    """The facts about this machine and its packages that study.json and every config.json record."""
    return {"versions": versions(), "hardware": hardware(), "commit": commit()}


def versions() -> dict[str, str]:
    """Versions of Python, of this package, and of its installed requirements, optional ones included."""
    found = {"python": platform.python_version(), "retarget": retarget.__version__}
    try:
        requirements = metadata.requires("retarget") or []
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return found
    for name in sorted({re.split(r"[^A-Za-z0-9._-]", one, maxsplit=1)[0] for one in requirements} - {"retarget"}):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, number of cores that this process may use, memory in GiB, and the GPUs that the driver lists."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _processor(),
        "cores": cores,
        "memory_gib": round(memory, 1),
        "gpus": _gpus(),
    }


def commit() -> dict[str, Any] | None:
    """``{"hash", "dirty"}`` of the checkout that tracks this package's files, or None."""
    package = Path(retarget.__file__).parent
    git = shutil.which("git")
    if git is None or _output([git, "-C", str(package), "ls-files", "--error-unmatch", "__init__.py"]) is None:
        return None
    head = _output([git, "-C", str(package), "rev-parse", "HEAD"])
    changed = _output([git, "-C", str(package), "status", "--porcelain", "--untracked-files=no"])
    return {"hash": head.strip(), "dirty": bool(changed and changed.strip())} if head else None


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(len(_gpus()))]
    return [one.strip() for one in named.split(",") if one.strip()]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        if named:
            return named.group(1).strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    text = _output([tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]) if tool else None
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def _output(command: list[str]) -> str | None:
    """A command's output, or None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
