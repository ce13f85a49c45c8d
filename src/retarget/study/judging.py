"""A directory of verdicts on runs that were made elsewhere: study.json, analysis.json and summary.json as a study's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import retarget
from retarget.errors import UserError
from retarget.files import locked, make_directory, read_json, write_json
from retarget.identity import content
from retarget.study.claims import outlooks
from retarget.study.elsewhere import Elsewhere
from retarget.study.figures import Analysis
from retarget.study.power import Outlook
from retarget.study.summary import summarise, unplanned_looks

PROSPECTS = (3, 5, 10, 20, 50)
"""Numbers of seeds that a plan is shown for."""


def write(found: Elsewhere, out: Path, *, command: str, sources: Sequence[Path]) -> dict[str, Any]:
    """Judge, and write what the page is made from.

    Args:
        out: made if missing; an earlier judgement there is replaced, and its looks are remembered.
        command: recorded.
        sources: files and folders that were read, recorded with the fingerprints of their content.

    Returns:
        The content of summary.json.

    Raises:
        UserError: the directory holds something else, or cannot be written.
    """
    make_directory(out)
    with locked(out / ".lock", wait=False, what=str(out)):
        before, looks = _earlier(out)
        plan = found.plan
        now = list(plan.seeds)
        looks = looks if looks and looks[-1] == now else [*looks, now]
        hashes = [one for one in before if one != plan.claims_hash()]
        notes = [unplanned_looks(plan, looks)]
        if hashes:
            notes.append(
                "Other claims, levels or looks were judged in this directory before: the error rates of the verdicts "
                "hold for claims that were fixed before the results were seen."
            )
        analysis = Analysis(items=found.items, item_label="interval over items", notes=[one for one in notes if one])
        summary = summarise(plan, found.values, analysis) | {"looks": looks}
        record = {
            "plan": plan.model_dump(mode="json"),
            "claims_hash": plan.claims_hash(),
            "earlier_claims": hashes,
            "command": command,
            "runs": "elsewhere",
            "files": {str(path): content(path) for path in sources},
            "versions": {"retarget": retarget.__version__},
        }
        write_json(out / "study.json", record)
        write_json(out / "analysis.json", analysis.model_copy(update={"items": {}}).model_dump(mode="json"))
        write_json(out / "summary.json", summary)
    return summary


def _earlier(out: Path) -> tuple[list[str], list[list[int]]]:
    """Hashes of the claims that were judged here before, and the sets of seeds."""
    there = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    if not there:
        return [], []
    record = read_json(out / "study.json") if "study.json" in there else {}
    if not isinstance(record, dict) or record.get("runs") != "elsewhere":
        what = "a study of this package's runs" if record else f"something else (it has {sorted(there)[0]})"
        raise UserError(f"{out} holds {what}. Give another --out")
    path = out / "summary.json"
    looks = read_json(path).get("looks", []) if path.exists() else []
    return [*record.get("earlier_claims", []), record.get("claims_hash", "")], looks


def prospects(found: Elsewhere) -> str:
    """How likely numbers of seeds are to decide each claim, from these runs as a pilot; lines of text."""
    plan, seeds = found.plan, len(found.plan.seeds)
    by_count = {n: {one.claim: one for one in outlooks(plan, found.values, seeds, n)} for n in PROSPECTS}
    lines = []
    for claim in plan.claims:
        known = by_count[PROSPECTS[0]].get(claim.id)
        if known is None:
            lines.append(f"{claim.id}: no spread over seeds to reckon with")
            continue
        lines.append(in_words(known))
        for n, outlook in by_count.items():
            one = outlook[claim.id]
            lines.append(f"  {n:>3} seeds: {one.alone:4.0%} by itself, {one.in_family:4.0%} among its family")
    return "\n".join(lines)


def in_words(one: Outlook) -> str:
    """A claim's pilot, and the seeds that decide it."""
    seeds = [f"{count:,}" if count else "more than 10,000" for count in (one.seeds_alone, one.seeds_in_family)]
    return (
        f"{one.claim}: sd {one.sd:.3g} over {one.pilot} seeds of the pilot, {one.inflated:.3g} reckoned with; for a "
        f"verdict with 80 % power {seeds[0]} seeds by itself, {seeds[1]} if no other claim of its family is decided"
    )
