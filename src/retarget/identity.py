"""What makes two pieces of work the same: fingerprints of values and of data, and the refusal of other work."""

import hashlib
import json
from typing import Any


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON value, 16 hexadecimal digits, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
