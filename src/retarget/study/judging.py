"""Write the verdicts on runs made elsewhere as a study does: study.json, analysis.json and summary.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import retarget
from retarget.errors import UserError
from retarget.files import locked, make_directory, read_json, write_json
from retarget.identity import content, fingerprint
from retarget.study.claims import outlooks
from retarget.study.config import StudyPlan
from retarget.study.elsewhere import Elsewhere
from retarget.study.figures import Analysis
from retarget.study.power import Outlook
from retarget.study.record import read_plan
from retarget.study.summary import earlier_summary, filled_later, judged_otherwise, summarise, unpaired, unplanned_looks

PROSPECTS = (3, 5, 10, 20, 50)
"""Numbers of seeds for which the prospects are shown."""


def write(found: Elsewhere, out: Path, *, command: str, sources: Sequence[Path]) -> dict[str, Any]:
    """Judge the claims, and write the files that the page is made from.

    Args:
        out: created if missing; an earlier judgement there is replaced, but its looks are remembered.
        command: the command to record.
        sources: the files and folders that were read, recorded with fingerprints of their content.

    Returns:
        The content of summary.json.

    Raises:
        UserError: the directory holds something else, or cannot be written.
    """
    make_directory(out)
    with locked(out / ".lock", wait=False, what=str(out)):
        before, earlier = _earlier(out)
        plan = found.plan
        now, looks = list(plan.seeds), earlier.get("looks", [])
        again = bool(looks) and looks[-1] == now
        looks = looks if looks and looks[-1] == now else [*looks, now]
        judged_by = rules_hash(plan)
        hashes = [one for one in before if one != judged_by]
        filled = filled_later(earlier, plan.seeds, found.values)
        notes = [unplanned_looks(plan, looks), filled, *found.doubts, *unpaired(plan, found.values, found.failed)]
        if hashes:
            notes.append(
                "Other claims, metrics, levels or looks have been judged in this directory before, but the error rates "
                "of the verdicts hold only for claims that were fixed before the results were seen."
            )
        analysis = Analysis(items=found.items, item_label="interval over items")
        summary = summarise(plan, found.values, analysis) | {"looks": looks}
        other = judged_otherwise(earlier, summary, found.values, again)
        analysis = analysis.model_copy(update={"notes": [one for one in (*notes, other) if one]})
        summary |= {"judged_otherwise": True} if other else {}
        summary |= {"filled_later": True} if filled else {}
        record = {
            "plan": plan.model_dump(mode="json"),
            "claims_hash": judged_by,
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


def _earlier(out: Path) -> tuple[list[str], dict[str, Any]]:
    """The hashes of claims that were judged here before, and the content of their summary.json."""
    there = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    if not there:
        return [], {}
    record = read_json(out / "study.json") if "study.json" in there else {}
    if not isinstance(record, dict) or record.get("runs") != "elsewhere":
        what = "a study of this package's runs" if record else f"something else (it has {sorted(there)[0]})"
        raise UserError(f"{out} holds {what}: choose another --out")
    last = record.get("claims_hash", "")
    had = read_plan(out / "study.json")
    if last == had.claims_hash():  # of a version whose hash left the metrics out
        last = rules_hash(had)
    return [*record.get("earlier_claims", []), last], earlier_summary(out)


def rules_hash(plan: StudyPlan) -> str:
    """Hash of the claims and of what the metrics say about how they are judged.

    It is that of the claims alone if the metrics say nothing about it.
    """
    rules = plan.rules()
    return fingerprint([plan.claims_hash(), rules]) if rules else plan.claims_hash()


def prospects(found: Elsewhere) -> str:
    """Lines of text: how likely numbers of seeds are to decide each claim, with these runs as a pilot."""
    plan, seeds = found.plan, len(found.plan.seeds)
    by_count = {n: {one.claim: one for one in outlooks(plan, found.values, seeds, n)} for n in PROSPECTS}
    lines = []
    for claim in plan.claims:
        known = by_count[PROSPECTS[0]].get(claim.id)
        if known is None:
            remedy = ""
            if claim.about == "models":
                reason = "it is about these models, and decided by their items at any number of seeds"
            elif claim.across in ("every", "new"):
                reason = "it is decided over several conditions together"
            else:
                reason, remedy = "no spread over seeds", ": a pilot needs at least two seeds that differ"
            lines.append(f"{claim.id}: {reason}, so nothing can be predicted{remedy}")
            continue
        lines.append(in_words(known))
        for n, outlook in by_count.items():
            one = outlook[claim.id]
            lines.append(f"  {n:>3} seeds: {one.alone:4.0%} alone, {one.in_family:4.0%} within its family")
    return "\n".join(lines)


def in_words(one: Outlook) -> str:
    """A claim's pilot, and the seeds that decide it."""
    seeds = [f"{count:,}" if count else "more than 10,000" for count in (one.seeds_alone, one.seeds_in_family)]
    return (
        f"{one.claim}: sd {one.sd:.3g} over the pilot's {one.pilot} seeds, taken as {one.inflated:.3g}; a verdict with "
        f"80 % power needs {seeds[0]} seeds alone, {seeds[1]} if no other claim of its family is decided"
    )
