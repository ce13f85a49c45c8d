"""README's first command in full; it takes minutes, so it is not in the fast suite."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DECIDED = ("holds", "does not hold")


@pytest.mark.slow
def test_make_demo_ends_with_a_page_and_decides_most_of_what_it_measures(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    out = tmp_path / "demo"
    done = subprocess.run(
        ["make", "demo", f"DEMO_OUT={out}"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = [
        claim["verdict"]
        for method in ("pskd", "trojdiff", "pope")
        for claim in json.loads((out / method / "summary.json").read_text())["claims"]
        if claim["verdict"] != "not measured"
    ]
    decided = [verdict for verdict in verdicts if verdict in DECIDED]
    assert 3 * len(decided) >= 2 * len(verdicts) > 0, verdicts
    assert (out / "report.html").is_file()
    for name, verdict in (("clean", "nothing found"), ("trojaned", "trojaned")):
        (audited,) = json.loads((out / "audit" / name / "audit.json").read_text())["audits"]
        assert audited["verdict"] == verdict
