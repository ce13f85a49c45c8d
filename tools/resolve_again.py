"""List the records whose command asks for something else today, and which nothing marks as older; writes nothing.

    python tools/resolve_again.py        # exits with 1 if a record differs and results/changes.toml does not say so

The recorded commands of a built-in study are resolved with today's presets, without data and without a run. Settings,
arms, seeds and claims must be those of the record; a setting or a claim may have been added since. Studies of a user's
own file are left out: their plans read checkpoints or data.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from records import Record, names, record

from retarget.cli import METHODS
from retarget.commands import StudyArguments, resolve
from retarget.errors import UserError
from retarget.helptext import read_arguments
from retarget.pope.studies.worlds import BASE_STEPS

DECIDES = ("condition", "metric", "direction", "arms", "against", "smallest_effect", "family")
"""What decides a claim beside its values."""


def main() -> int:
    """Print the differences that are not marked; returns the exit code."""
    found = [f"{one.name}: {line}" for one in map(record, names()) if not one.changes for line in differences(one)]
    print("\n".join(found), file=sys.stderr, end="\n" * bool(found))
    return bool(found)


def differences(one: Record) -> Iterator[str]:
    """In what the record differs from what its commands ask for today; nothing for studies that cannot be resolved."""
    if not (one.folder / "study.json").exists():
        return
    commands = [shlex.split(line)[2:] for line in [*one.study.get("earlier_commands", []), one.study["command"]]]
    if commands[0][0] not in METHODS:
        return
    try:
        plans = [_plan(words) for words in commands]
    except UserError as error:
        yield f"its command is refused: {error}"
        return
    then, now = one.study["plan"], plans[-1]
    yield from _settings(_filled(then["settings"]), _filled(now["settings"]))
    for what, had, asked in (
        ("arms", {arm["name"] for arm in then["arms"]}, {arm["name"] for plan in plans for arm in plan["arms"]}),
        ("seeds", set(one.summary["seeds"]), {seed for plan in plans for seed in plan["seeds"]}),
    ):
        if had - asked:
            yield f"its command asks for no {what} {', '.join(map(str, sorted(had - asked)))}"
    claims = {claim["id"]: claim for claim in now["claims"]}
    for claim in then["claims"]:
        today = claims.get(claim["id"])
        if today is None:
            yield f"claim {claim['id']} is gone"
        elif changed := [key for key in DECIDES if key in claim and claim[key] != today[key]]:
            yield f"claim {claim['id']} has another {', '.join(changed)}"


def _plan(words: list[str]) -> dict[str, Any]:
    given = read_arguments(StudyArguments, words, "retarget study")
    return json.loads(resolve(given, METHODS[given.method]).model_dump_json())


def _filled(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with a number of steps that is not given and follows from the family."""
    if "base_steps" in settings and settings["base_steps"] is None:
        return settings | {"base_steps": BASE_STEPS[settings["family"]]}
    return settings


def _settings(then: dict[str, Any], now: dict[str, Any], inside: str = "") -> Iterator[str]:
    for key, value in then.items():
        today = now.get(key)
        if isinstance(value, dict) and isinstance(today, dict):
            yield from _settings(value, today, f"{inside}{key}.")
        elif value != today:
            yield f"setting {inside}{key} is {today} today, and was {value}"


if __name__ == "__main__":
    sys.exit(main())
