"""Records that today's code would not make again are marked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")


def test_the_list_of_changes_agrees_with_the_history():
    asked = ["git", "rev-parse", "--is-shallow-repository"]
    if subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.strip() != "false":
        pytest.skip("needs the whole history")
    command = [sys.executable, "tools/old_records.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_record_whose_command_asks_for_something_else_today_is_marked():
    done = subprocess.run([sys.executable, "tools/resolve_again.py"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def changed(record, **plan):
    """The record as if another plan had been recorded."""
    record.study = json.loads(json.dumps(record.study))
    record.study["plan"] |= plan
    return record


def test_what_a_command_no_longer_asks_for_is_named(tools):
    from records import Record
    from resolve_again import differences

    assert list(differences(Record("pskd-past"))) == []
    plan = Record("pskd-past").study["plan"]
    claim = plan["claims"][0]
    one = changed(
        Record("pskd-past"),
        settings=plan["settings"] | {"epochs": 31},
        arms=[*plan["arms"], plan["arms"][0] | {"name": "gone"}],
        claims=[claim | {"smallest_effect": 7.0}, claim | {"id": "lost"}],
    )
    one.summary = one.summary | {"seeds": [0, 9]}
    assert list(differences(one)) == [
        "setting epochs is 30 today, and was 31",
        "its command asks for no arms gone",
        "its command asks for no seeds 9",
        f"claim {claim['id']} has another smallest_effect",
        "claim lost is gone",
    ]


def test_the_marked_records_differ_as_their_marks_say(tools):
    from records import record
    from resolve_again import differences

    assert list(differences(record("pskd-noise"))) == ["claim resists_noise_0 is gone"]
    demo = " ".join(differences(record("trojdiff-demo")))
    assert "network.channels" in demo
    assert "finetune.steps is 500 today" in demo
    assert record("trojdiff-demo").older
    assert record("pskd-noise").older
