"""Audits as SARIF 2.1.0, for code scanning: rules with MITRE ATLAS ids, fingerprints and file hashes."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from retarget import __version__
from retarget.audit.outcome import Outcome
from retarget.audit.static import PICKLES, RULES, Finding

_LOADED = (".safetensors", "config.json", "index.json", *PICKLES, ".msgpack", ".h5", ".onnx")
"""What a loader may read: weights of any kind, and configurations."""
ATLAS = "https://atlas.mitre.org/techniques/{}"


def sarif(outcomes: Sequence[Outcome], exit_code: int, command: str) -> dict[str, Any]:
    """A SARIF log with one run that contains the results of all pipelines."""
    rules = list(RULES.values())
    numbers = {rule.name: number for number, rule in enumerate(rules)}
    results = [
        _result(one, outcome, numbers[one.rule])
        for outcome in outcomes
        for one in (*_verdict(outcome), *outcome.findings)
    ]
    driver = {
        "name": "retarget audit",
        "version": __version__,
        "rules": [
            {
                "id": rule.id,
                "name": rule.name,
                "shortDescription": {"text": rule.text},
                "properties": {"tags": ["security", *rule.atlas]},
                **({"helpUri": ATLAS.format(rule.atlas[0])} if rule.atlas else {}),
            }
            for rule in rules
        ],
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [
            {
                "commandLine": command,
                "executionSuccessful": all(one.verdict != "error" for one in outcomes),
                "exitCode": exit_code,
                "toolExecutionNotifications": [
                    {"level": "error", "message": {"text": f"{one.pipeline}: {one.reason}"}}
                    for one in outcomes if one.verdict == "error"
                ],
            }
        ],
        "artifacts": [
            {"location": {"uri": uri}, "hashes": {"sha-256": value}}
            for uri, value in sorted({
                (quote(f"{one.pipeline}/{name}"), value) for one in outcomes for name, value in one.files.items()
            })
        ],
        "results": results,
    }  # fmt: skip
    return {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}


def _verdict(outcome: Outcome) -> list[Finding]:
    """The verdict as a finding; none if nothing was found, and none for an error, which becomes a notification."""
    if outcome.verdict == "trojaned":
        return [Finding(rule="trojaned", level="error", message=outcome.reason)]
    if outcome.verdict in ("undecided", "not covered"):
        return [Finding(rule="undecided", level="warning", message=f"{outcome.verdict}: {outcome.reason}")]
    return []


def _result(finding: Finding, outcome: Outcome, number: int) -> dict[str, Any]:
    rule = RULES[finding.rule]
    content = outcome.files.get(finding.file) or _hash(*_audited(outcome.files))
    uri = quote(outcome.pipeline if finding.file == "." else f"{outcome.pipeline}/{finding.file}")
    return {
        "ruleId": rule.id,
        "ruleIndex": number,
        "level": "none" if finding.level == "note" else finding.level,
        "kind": "informational" if finding.level == "note" else "fail",
        "message": {"text": finding.message},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": uri}}}],
        "partialFingerprints": {"ruleAndContent/v2": _hash(rule.id, finding.file, content)},
        "properties": {"atlas": list(rule.atlas), "verdict": outcome.verdict},
    }


def _audited(files: Mapping[str, str]) -> list[str]:
    """Weights and configurations with their hashes: a finding on the pipeline stays the same while these do."""
    return sorted(f"{name} {value}" for name, value in files.items() if name.lower().endswith(_LOADED))


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
