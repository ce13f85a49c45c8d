"""Generated parts of documents agree with the recorded files and the docstrings."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_map_and_the_result_tables_are_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "write_documents.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
