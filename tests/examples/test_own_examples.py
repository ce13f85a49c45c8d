"""The studies of one's own run end to end, page and all, and go on where they were."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from retarget.cli import main

FOLDER = Path(__file__).parent.parent.parent / "examples"


def test_the_first_example_is_short():
    assert len((FOLDER / "own_study.py").read_text().splitlines()) <= 40


@pytest.mark.parametrize("name", [path.stem for path in FOLDER.glob("own_*.py")])
def test_it_is_studied(name, tmp_path, capfd):
    words = ["study", str(FOLDER / f"{name}.py"), "--seeds", "0", "1", "--out", str(tmp_path / "out"), "--no-progress"]
    assert main(words) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["claims"][0]["n"] == 2
    assert summary["claims"][0]["sentence"] in (tmp_path / "out" / "report.html").read_text()
    assert main([*words, "--dry-run"]) == 0
    assert "4 runs, 4 of them finished" in capfd.readouterr().err


def test_a_file_that_imports_no_torch_is_planned_without_it():
    code = f"from retarget.cli import main; main(['study', {str(FOLDER / 'own_study_script.py')!r}, '--dry-run'])"
    check = f"{code}; import sys; assert not {{'torch', 'sklearn'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)
