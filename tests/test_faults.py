"""The suite of damaged inputs, in its smallest form, and its own counting."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # faults/ is no part of the package

from faults.damage import BYTES
from faults.fuzz import Target, fuzz
from faults.interruptions import SAME, interrupt

from retarget.errors import UserError


def test_every_target_takes_damage_without_a_traceback():
    command = [sys.executable, "-m", "faults", "--inputs", "55", "--kills", "0", "--seed", "7"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 11


def test_verbs_that_are_killed_crowded_or_short_of_room_end_with_the_same_bytes():
    for name in ("killed: pope mine", "full disk: trojdiff sample", "2 at once: pope export"):
        tallies = list(interrupt(name, kills=2, seed=7))
        assert [one.examples for one in tallies] in ([{}], [])  # none where small file systems are not ours to make
        assert all(set(one.counts) <= {SAME, "clear error"} for one in tallies)


def use(folder):
    text = (folder / "a").read_bytes()
    if text == b"whole":
        return "whole"
    if len(text) < 5:
        raise UserError("it is cut short")
    if b"\x00" in text:
        raise ZeroDivisionError
    return "edited"


@pytest.mark.parametrize("fits", [None, lambda found, whole: found == whole])
def test_what_is_wrong_is_counted_as_such(fits):
    target = Target("toy", lambda folder: (folder / "a").write_bytes(b"whole"), {"a": BYTES}, use, fits)
    (tally,) = fuzz([target], 300)
    assert sum(tally.counts.values()) == 300
    assert tally.counts["clear error"] > 0
    assert tally.counts["traceback"] > 0
    assert next(iter(tally.examples)) == "ZeroDivisionError" or fits
    assert ("edited data taken for whole" in tally.counts) == (fits is not None)


def test_a_process_that_ends_is_counted_and_the_rest_goes_on():
    def dies(folder):
        if (folder / "a").read_bytes() != b"whole":
            sys.stdout.flush()
            __import__("os")._exit(3)

    target = Target("dies", lambda folder: (folder / "a").write_bytes(b"whole"), {"a": BYTES}, dies)
    (tally,) = fuzz([target], 12)
    assert sum(tally.counts.values()) == 12
    assert tally.counts["traceback"] >= 6
    assert "ended the process: exit code 3" in next(iter(tally.examples))
