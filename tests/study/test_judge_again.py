"""Recorded verdicts are judged anew by a command that writes nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def judge_again(*directories):
    command = [sys.executable, str(ROOT / "tools" / "judge_again.py"), *map(str, directories)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_a_verdict_that_changes_is_listed_and_the_record_stays(tmp_path):
    record = tmp_path / "pskd-confidence"
    shutil.copytree(ROOT / "results" / "pskd-confidence", record)
    summary = json.loads((record / "summary.json").read_text())
    ids = [claim["id"] for claim in summary["claims"]]
    summary["claims"][0]["verdict"] = "holds"  # it surely does not
    (record / "summary.json").write_text(json.dumps(summary))
    before = {path.name: path.read_bytes() for path in record.iterdir()}
    done = judge_again(record)
    assert done.stdout.splitlines()[0].startswith(f"pskd-confidence/{ids[0]}: holds [")
    assert "-> does not hold [" in done.stdout.splitlines()[0]
    assert done.stderr.endswith(f"of {len(ids)} recorded verdicts change\n")
    assert {path.name: path.read_bytes() for path in record.iterdir()} == before


def test_every_recorded_study_can_be_judged_anew():
    recorded = [json.loads(path.read_text()) for path in (ROOT / "results").glob("*/summary.json")]
    total = sum(len(one["claims"]) for one in recorded)
    assert total > 0
    assert f"of {total} recorded verdicts change" in judge_again().stderr
