"""What a user installs: a wheel that needs no repository, early errors for missing extras, one version everywhere."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import retarget
from retarget.cli import main

ROOT = Path(__file__).parent.parent
STUDIES = {
    "lightning": ("vision", ["pskd"]),
    "timm": ("vision", ["pskd", "--set", "network=timm:test_resnet"]),
    "sacrebleu": ("text", ["pskd", "--set", "task=translation"]),
    "pycocotools": ("detection", ["pskd", "--set", "task=detection"]),
    "diffusers": ("diffusion", ["trojdiff"]),
    "trl": ("rl", ["pope"]),
    "torch_fidelity": ("diffusion", ["audit"]),
}
IN_A_CLONE = "(in a clone: pip install '.[{}]')"
FIRST_USES = {
    "trojdiff train --help": ("accelerate", "diffusion"),
    "trojdiff sample p --out o": ("diffusers", "diffusion"),
    "trojdiff evaluate p --data digits --out o": ("diffusers", "diffusion"),
    "pope mine p.jsonl --model m --out o": ("math_verify", "rl"),
    "pope mine p.jsonl --grader exact --model m --out o": ("transformers", "rl"),
    "pope mine p.jsonl --grader exact --model http://127.0.0.1:9/v1 --served m --out o": ("httpx", "rl"),
    "retarget.trojdiff.TrojanScheduler": ("diffusers", "diffusion"),
    "retarget.metrics.AURC": ("torchmetrics", "vision"),
    "retarget.pskd.peers.PeerCallback": ("lightning", "vision"),
}


@pytest.mark.parametrize("package", STUDIES)
def test_a_missing_extra_is_named_before_anything_is_begun(package, tmp_path, monkeypatch, capsys):
    extra, words = STUDIES[package]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    remedy = f"{package} is not installed; it comes with: pip install 'retarget[{extra}]' {IN_A_CLONE.format(extra)}"
    assert main(["study", *words, "--dry-run"]) == 1
    assert remedy in capsys.readouterr().err
    assert main(["study", *words]) == 1
    assert capsys.readouterr().err.strip() == f"retarget: {remedy}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("use", FIRST_USES)
def test_the_first_use_of_a_missing_package_names_its_extra(use, tmp_path):
    package, extra = FIRST_USES[use]
    (tmp_path / "p.jsonl").write_text('{"prompt": "1 + 1?", "solution": "It is 2.", "answer": "2"}\n')
    module, _, name = use.rpartition(".")
    used = f"from {module} import {name}" if name.isidentifier() else f"sys.exit(main({use.split()}))"
    code = f"import sys; sys.modules[{package!r}] = None; from retarget.cli import main; {used}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    told = f"{package} is not installed; it comes with: pip install 'retarget[{extra}]' {IN_A_CLONE.format(extra)}"
    assert done.stderr.strip().splitlines()[-1].removeprefix("retarget: ").endswith(told)
    assert ("Traceback" in done.stderr) == name.isidentifier()


def test_one_version_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {retarget.__version__}\n" in citation
    assert f"\n## {retarget.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"retarget-{retarget.__version__}-py3" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_lock_is_of_the_constraints():
    def versions(name):
        return dict(
            re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / name).read_text(encoding="utf-8").lower(), re.MULTILINE)
        )

    lock = {name.replace("_", "-"): version for name, version in versions("requirements.lock").items()}
    named = {name.replace("_", "-"): version for name, version in versions("constraints.txt").items()}
    assert len(lock.keys() & named.keys()) > 100
    assert {name: (named[name], lock[name]) for name in lock.keys() & named.keys() if named[name] != lock[name]} == {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(one for name in extras if name != "vllm" for one in extras[name])]
    names = {re.match(r"[\w.-]+", one)[0].lower() for one in asked} - {"retarget"}
    assert names - lock.keys() == set(), "run `make lock`"


def test_workflows_hooks_and_the_container_name_what_is_there():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    flows = "".join(path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    assert set(re.findall(r"run: make (\w+)", flows)) <= targets
    pythons = set(re.findall(r'"(3\.\d+)"', flows))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert pythons == set(re.findall(r"Python :: (3\.\d+)", project))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Containerfile").read_text(encoding="utf-8"), re.MULTILINE)
    for name in [*re.findall(r"python (tools/\w+\.py)", hooks), *" ".join(copied).split()]:
        assert (ROOT / name).exists(), name


def test_make_alone_lists_every_target():
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(["make"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in done.stdout.splitlines()}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == targets


@pytest.mark.slow
def test_a_wheel_runs_without_the_repository(tmp_path):
    """Install it into an empty environment, first alone, then with one extra; needs an index or a folder of wheels."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_CONSTRAINT")}

    def run(*words, code=0):
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", "dist", str(ROOT))
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"retarget/py.typed", "retarget/report/templates/page.html.jinja"} <= set(names)
    assert all(name.startswith("retarget") for name in names)
    venv.create(tmp_path / "venv", with_pip=True)
    python, program = (str(tmp_path / "venv" / "bin" / name) for name in ("python", "retarget"))
    constraint = ["--constraint", str(ROOT / "constraints.txt")]
    run(python, "-m", "pip", "install", "--quiet", *constraint, str(wheel))
    assert "usage: retarget VERB" in run(program, "--help").stdout
    assert "Arms, for --arms" in run(program, "study", "pskd", "--help").stdout
    refused = run(program, "study", "pskd", "--preset", "demo", code=1)
    assert "pip install 'retarget[vision]'" in refused.stderr
    assert not (tmp_path / "studies").exists()
    run(python, "-m", "pip", "install", "--quiet", *constraint, f"{wheel}[vision]")
    asked = ("--arms", "cross_entropy", "pskd", "--seeds", "0", "1", "--jobs", "2", "--out", "out")
    run(program, "study", "pskd", "--preset", "demo", *asked)
    assert "PS-KD" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    words = [
        "-b",
        "html",
        "-q",
        "-W",
        "--keep-going",
        "-d",
        str(tmp_path / "trees"),
        str(ROOT / "docs"),
        str(tmp_path / "site"),
    ]
    done = subprocess.run([sys.executable, "-m", "sphinx", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    assert (site / "searchindex.js").exists()
    loaded = [
        (page.name, address)
        for page in site.rglob("*.html")
        for address in re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text(encoding="utf-8")
        )
    ]
    assert loaded == []
