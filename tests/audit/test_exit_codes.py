"""The exit code of a process: 1 only for a verdict, whoever reads the output, and whatever breaks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retarget.audit.commands import combined

SOURCE = Path(__file__).parents[2] / "src"
CALL = "from retarget.cli import main; raise SystemExit(main({words!r}))"


def ended(words, unread=("stdout", "stderr"), before=""):
    """Exit code of a command, and what it wrote to the streams that are read; the reader of the others has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    out, err = (writer if name in unread else subprocess.PIPE for name in ("stdout", "stderr"))
    command, environment = [sys.executable, "-c", before + CALL.format(words=words)], {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, stdout=out, stderr=err, text=True, check=False, env={**os.environ, **environment})
    os.close(writer)
    return done.returncode, (done.stdout or "") + (done.stderr or "")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["missing", "--bogus"], 2),
        (["missing"], 2),
        (["--clean", "x", "a", "b"], 2),
        (["--help"], 0),
    ],
)
def test_a_reader_that_has_gone_makes_no_verdict(words, code, tmp_path):
    out = [] if words == ["--help"] else ["--out", str(tmp_path / "out")]
    assert ended(["audit", *words, *out]) == (code, "")


def test_help_whose_reader_has_gone_is_no_error():
    assert ended(["audit", "--help"], unread=("stdout",)) == (0, "")


def test_a_verdict_and_its_report_outlive_the_readers(untrained, tmp_path):
    """The model is undecided; that its code is 0 is said to nobody."""
    assert ended(["audit", str(untrained), "--allow-undecided", "--out", str(tmp_path / "out")]) == (0, "")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.html", "audit.json", "audit.sarif"}


@pytest.mark.parametrize("what", ["ImportError('damaged')", "OSError('no file')", "ZeroDivisionError"])
def test_a_package_that_fails_on_import_is_an_error_and_no_verdict(what, tmp_path):
    """The module of the verb is imported before anything of it can catch the error."""
    (tmp_path / "tyro.py").write_text(f"raise {what}\n")
    before = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    code, said = ended(["audit", "missing"], unread=(), before=before)
    assert code == 2
    assert "Traceback" in said
    assert what.partition("(")[0] in said
    assert ended(["audit", "missing"], before=before) == (2, "")


def test_codes_are_ordered():
    assert combined([0, 0]) == 0
    assert combined([0, 3, 2, 1]) == 1
    assert combined([3, 2]) == 2
