"""Damage bytes and texts as disks, editors and attackers do; the random generator alone decides how."""

import json
import random
from collections.abc import Callable

Damage = Callable[[bytes, random.Random], bytes]

HOSTILE = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"{",
    b"[" * 100_000,
    b'{"a":' * 5_000,
    b"9" * 5_000,
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"null",
    b"true",
    b'"\\ud800"',
    b"\\u0000",
    b"../../../etc/passwd",
    b"__import__('os')",
    b"${HOME}",
    "٣".encode(),
    "\u202e".encode(),
)
"""Bytes that have broken a reader somewhere."""


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Cut the end off, as an interrupted write does."""
    return data[: rng.randrange(len(data) + 1)]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Flip one to eight bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """Replace a stretch by zeros, ones or noise."""
    at, length = rng.randrange(len(data) + 1), rng.randint(1, 64)
    filler = rng.choice([b"\x00" * length, b"\xff" * length, rng.randbytes(length)])
    return data[:at] + filler + data[at + length :]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Insert something hostile."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(HOSTILE) + data[at:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """Write a stretch twice."""
    at = rng.randrange(len(data) + 1)
    until = rng.randrange(at, len(data) + 1)
    return data[:until] + data[at:until] + data[until:]


def drop(data: bytes, rng: random.Random) -> bytes:
    """Remove a stretch."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[rng.randrange(at, len(data) + 1) :]


BYTES: tuple[Damage, ...] = (truncate, flip, overwrite, insert, repeat, drop)

VALUES = (None, True, -1, 0, 1.5, 10**30, 1e308, "", "x" * 3000, "\ud800", "a\x00b", [], {}, [[]], {"a": {"b": []}})
"""Values to put where another type or range is expected."""


def json_value(data: bytes, rng: random.Random) -> bytes:
    """Change or remove one value somewhere in a JSON document, or add a key."""
    value = json.loads(data)
    places = list(_places(value))
    if not places:
        return json.dumps(rng.choice(VALUES)).encode()
    holder, key = rng.choice(places)
    kind = rng.randrange(4)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(["new", "", "__class__", "id "])] = rng.choice(VALUES)
    elif kind == 2 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = rng.choice([-holder[key], holder[key] + 1, holder[key] * 1000, 0, float("nan")])
    else:
        holder[key] = rng.choice(VALUES)
    return json.dumps(value).encode()


def json_line(data: bytes, rng: random.Random) -> bytes:
    """Damage one line of a JSON-lines file as a value or as bytes, remove it, or write it twice."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    kind = rng.randrange(4)
    if kind == 0:
        lines[at] = json_value(lines[at], rng) + b"\n"
    elif kind == 1:
        lines[at] = rng.choice(BYTES)(lines[at], rng)
    elif kind == 2:
        del lines[at]
    else:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    return b"".join(lines)


def text_line(data: bytes, rng: random.Random) -> bytes:
    """Give one line of a text another value after its ``=``, or damage it."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    key, equals, _ = lines[at].partition(b"=")
    if equals and rng.random() < 0.7:
        other = rng.choice(
            [*HOSTILE[10:], b"-1", b"0", b"1e400", b"[1, 2", b'"x"', b"{}", b"inf", b"99999999999999999999"]
        )
        lines[at] = key + b"= " + other + b"\n"
    else:
        lines[at] = rng.choice(BYTES)(lines[at], rng)
    return b"".join(lines)


def _places(value: object) -> list[tuple[dict | list, str | int]]:
    """Every container in a JSON value, with each of its keys."""
    found: list[tuple[dict | list, str | int]] = []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found.append((value, key))  # type: ignore[arg-type]
        found.extend(_places(inner))
    return found
