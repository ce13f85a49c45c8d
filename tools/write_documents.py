"""Write what no person types: the map of the tree and the result tables in README.md and the method cards.

    python tools/write_documents.py            # write
    python tools/write_documents.py --check    # exit 1 where a document is not what this would write

A document marks the places: ``<!-- map -->`` ... ``<!-- end of map -->``, and ``<!-- results: NAME -->`` ...
``<!-- end of results -->``, filled from ``results/NAME/summary.json``, ``study.json`` and the notes and remarks of
``analysis.json``, from the ``results/NAME/commands.json`` that tools/record_commands.py wrote, or from the
``results/NAME/figures.jsonl`` that ``python -m benchmarks`` printed.
``<!-- results: NAME columns: METRIC ... -->`` names the columns of the metrics' tables; among five arms or more each
mean then has its rank beside it.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SIGNS = {"holds": "✔ holds", "does not hold": "✘ does not hold", "not enough evidence": "? not enough evidence"}


def main() -> int:
    """Write or check every document; the exit code."""
    check = "--check" in sys.argv[1:]
    stale = []
    for path in [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "src").rglob("README.md"))]:
        old = path.read_text(encoding="utf-8")
        new = _between(old, "map", "map", lambda _: tree())
        marker = r"results: (?P<name>[\w-]+)(?: columns: (?P<columns>[\w ]+))?"
        new = _between(new, marker, "results", lambda found: results(found["name"], (found["columns"] or "").split()))
        if new != old and check:
            stale.append(str(path.relative_to(ROOT)))
        elif new != old:
            path.write_text(new, encoding="utf-8")
    for name in stale:
        print(f"{name} is not up to date: run `make documents`", file=sys.stderr)
    return bool(stale)


def tree() -> str:
    """The package, one line a file: the first sentence of each module's docstring."""
    lines = ["```", "src/retarget/"]
    package = ROOT / "src" / "retarget"
    for path in _walk(package):
        depth = len(path.relative_to(package).parts)
        name = path.name + "/" * path.is_dir()
        lines.append(f"{'  ' * depth}{name}".ljust(30) + _says(path / "__init__.py" if path.is_dir() else path))
    for path, says in _beside():
        lines.append(path.ljust(30) + says)
    return "\n".join(line.rstrip() for line in [*lines, "```"])


def results(name: str, columns: Sequence[str] = ()) -> str:
    """Claims and metrics of a recorded study, or commands and what they printed, with commit, seeds and hardware."""
    folder = ROOT / "results" / name
    if (folder / "commands.json").exists():
        return _transcript(json.loads((folder / "commands.json").read_text(encoding="utf-8")))
    if (folder / "figures.jsonl").exists():
        return _figures((folder / "figures.jsonl").read_text(encoding="utf-8"))
    if (folder / "tally.json").exists():
        return _tally(json.loads((folder / "tally.json").read_text(encoding="utf-8")))
    if not (folder / "summary.json").exists():
        return "Nothing recorded yet."
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    kept = folder / "analysis.json"
    analysis = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    plan, remarks, notes = study["plan"], analysis.get("remarks", {}), analysis.get("notes", [])
    parts = [
        f"{plan['title']}, preset `{summary['preset']}`: {plan['question']}",
        *([_claims(summary, plan)] if summary["claims"] else []),
        *(_metrics(one, summary, plan, columns, remarks.get(one, {})) for one in summary["conditions"]),
        *(["\n".join(f"- {note}" for note in notes)] if notes else []),
        _provenance(study, summary),
    ]
    return "\n\n".join(parts)


DAMAGED = ("right result", "clear error", "traceback", "hang", "edited data taken for whole")
DISTURBED = ("same bytes", "clear error", "traceback", "hang", "does not go on", "other bytes", "left over")


def _tally(record: dict[str, Any]) -> str:
    """How damaged inputs and disturbed commands ended, target by target."""
    tallies = record["tallies"]
    disturbed = [one for one in tallies if ": " in one["target"]]
    damaged = [one for one in tallies if one not in disturbed]
    tables = [_ends("damaged", "inputs", DAMAGED, damaged)]
    if disturbed:
        tables.append(_ends("disturbed", "ends", DISTURBED, disturbed))
    hardware = record["hardware"]
    made = f"Made by `{record['command']}` at commit {record['commit']['hash'][:10]}, on {hardware['cores']} cores"
    return "\n\n".join([*tables, f"{made} of {hardware['cpu']}."])


def _ends(what: str, counted: str, outcomes: Sequence[str], tallies: Sequence[dict[str, Any]]) -> str:
    rows = [f"| {what} | {counted} | {' | '.join(outcomes)} |", "|---" * (len(outcomes) + 2) + "|"]
    for one in tallies:
        counts = [one["counts"].get(outcome, 0) for outcome in outcomes]
        rows.append(f"| {one['target']} | {sum(counts):,} | {' | '.join(f'{count:,}' for count in counts)} |")
    totals = [sum(one["counts"].get(outcome, 0) for one in tallies) for outcome in outcomes]
    rows.append(f"| all | {sum(totals):,} | {' | '.join(f'{count:,}' for count in totals)} |")
    return "\n".join(rows)


def _claims(summary: dict[str, Any], plan: dict[str, Any]) -> str:
    decimals = {metric["name"]: metric["decimals"] for metric in plan["metrics"]}
    labels = {metric["name"]: metric["label"] for metric in plan["metrics"]}
    arms = {arm["name"]: arm["label"] for arm in plan["arms"]}
    where = {
        one["name"]: f"; {_condition(one['name'], plan)}" * (len(plan["conditions"]) > 1) for one in plan["conditions"]
    }
    rows = ["| claim | compared | difference [interval] | seeds | here |", "|---|---|---|---|---|"]
    measured = [claim for claim in summary["claims"] if claim["verdict"] != "not measured"]
    for claim in measured:
        compared = " − ".join(arms.get(arm, arm) for arm in claim["arms"])
        compared += f", {labels.get(claim['metric'], claim['metric'])}{where.get(claim['condition'], '')}"
        places = decimals.get(claim["metric"], 2)
        shown = claim["shown"]
        beside = ""
        if shown and shown["estimate"] is not None:
            places_beside = decimals.get(shown["metric"], 2)
            beside = f"; {labels[shown['metric']]} {shown['estimate']:+.{places_beside}f}"
        rows.append(
            f"| {claim['sentence']} | {compared} | {_difference(claim, places)}{beside} | {claim['n'] or '–'} | "
            f"{SIGNS[claim['verdict']]} |"
        )
    missing = dict.fromkeys(claim["sentence"] for claim in summary["claims"] if claim not in measured)
    return "\n".join(rows) + (f"\n\nNot measured here: {' '.join(missing)}" if missing else "")


def _difference(claim: dict[str, Any], places: int) -> str:
    if claim["estimate"] is None:
        return "–"
    text = f"{claim['estimate']:+.{places}f}{_unit(claim['unit'])}"
    if claim["interval"]:
        low, high = claim["interval"]
        text += f" [{low:+.{places}f}, {high:+.{places}f}]"
    return text


def _metrics(
    condition: str, summary: dict[str, Any], plan: dict[str, Any], columns: Sequence[str], remarks: dict[str, str]
) -> str:
    arms = summary["conditions"][condition]
    labels = {arm["name"]: arm["label"] for arm in plan["arms"]}
    shown = [m for m in plan["metrics"] if any(_measured(arms[arm].get(m["name"])) for arm in arms)]
    judged = columns or {claim[key] for claim in plan["claims"] for key in ("metric", "shown")}
    shown = [m for m in shown if m["name"] in judged or (not plan["claims"] and m["better"] != "neither")]
    rows = [
        "| arm | seeds | " + " | ".join(f"{m['label']}{_unit(m['unit'])}" for m in shown) + " |",
        "|---" * (len(shown) + 2) + "|",
    ]
    ranked = bool(columns) and len(arms) >= 5
    ranks = {m["name"]: _ranks(m, arms) if ranked else {} for m in shown}
    for arm, values in arms.items():
        seeds = max((sum(v is not None for v in one["values"]) for one in values.values()), default=0)
        if seeds:
            cells = [_cell(values.get(m["name"]), m["decimals"]) + ranks[m["name"]].get(arm, "") for m in shown]
            name = labels.get(arm, arm) + (f" ({remarks[arm]})" if arm in remarks else "")
            rows.append(f"| {name} | {seeds} | " + " | ".join(cells) + " |")
    where = "" if condition == _condition(condition, plan) == "default" else f"{_condition(condition, plan)}, "
    return f"{where}mean ± sd{' (rank)' * ranked} over seeds:\n\n" + "\n".join(rows)


def _ranks(metric: dict[str, Any], arms: dict[str, Any]) -> dict[str, str]:
    """ " (1)" for the arm with the best mean."""
    means = {
        arm: values[metric["name"]]["mean"] for arm, values in arms.items() if _measured(values.get(metric["name"]))
    }
    if metric["better"] == "neither":
        return {}
    order = sorted(means.values(), reverse=metric["better"] == "higher")
    return {arm: f" ({order.index(mean) + 1})" for arm, mean in means.items()}


def _condition(name: str, plan: dict[str, Any]) -> str:
    return next((one["label"] for one in plan["conditions"] if one["name"] == name), "") or name


def _measured(value: dict[str, Any] | None) -> bool:
    return bool(value) and value["mean"] is not None


def _cell(value: dict[str, Any] | None, decimals: int) -> str:
    if value is None or value["mean"] is None:
        return "–"
    spread = "" if value["sd"] is None else f" ± {value['sd']:.{decimals}f}"
    return f"{value['mean']:.{decimals}f}{spread}"


def _provenance(study: dict[str, Any], summary: dict[str, Any]) -> str:
    commands = " and ".join(f"`{one}`" for one in [*study.get("earlier_commands", []), study["command"]])
    commit, machine = _where(study)
    return f"Made by {commands} at {commit}, seeds {', '.join(map(str, summary['seeds']))}, on {machine}."


def _where(environment: dict[str, Any]) -> tuple[str, str]:
    commit, hardware = environment["commit"], environment["hardware"]
    where = f"commit {commit['hash'][:10]}{' with local changes' * commit['dirty']}" if commit else "no commit"
    gpus = ", ".join(hardware["gpus"]) or "no GPU"
    machine = (
        f"{hardware['cores']} cores of {hardware['cpu']}, {gpus}; torch {environment['versions'].get('torch', '?')}"
    )
    return where, machine


def _transcript(record: dict[str, Any]) -> str:
    lines = [f"$ {one['command']}\n{one['output'].rstrip()}" for one in record["commands"]]
    commit, machine = _where(record["environment"])
    minutes = sum(one["cpu_seconds"] for one in record["commands"]) / 60
    body = "\n".join(lines)
    return f"```console\n{body}\n```\n\nMade at {commit}, in {minutes:.0f} CPU-minutes, on {machine}."


def _figures(text: str) -> str:
    figures = [json.loads(line) for line in text.splitlines()]
    rows = ["| figure | value | quartiles | to reach | reached |", "|---|---|---|---|---|"]
    for one in figures:
        quartiles = (one["detail"] or {}).get("quartiles")
        spread = f"{quartiles[0]:.4g} to {quartiles[1]:.4g}" if quartiles else ""
        reached = {True: "yes", False: "no", None: ""}[one["reached"]]
        value = f"{one['value']:.4g}{_unit('' if one['unit'] == 'ratio' else one['unit'])}"
        rows.append(f"| {one['figure']} | {value} | {spread} | {one['reach'] or ''} | {reached} |")
    made = dict.fromkeys(
        f"`{one['command']}` at commit {str(one['commit'])[:10]}, on {re.sub(r', load [0-9.]+', '', one['hardware'])}"
        for one in figures
    )
    return "\n".join(rows) + f"\n\nRatios are of interleaved pairs. Made by {'; '.join(made)}."


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""


def _between(text: str, opening: str, closing: str, write: Any) -> str:
    """Replace what stands between two markers."""
    pattern = re.compile(rf"(?P<open><!-- {opening} -->\n)(?P<old>.*?)(?P<close><!-- end of {closing} -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found['open']}{write(found)}\n{found['close']}", text)


def _walk(folder: Path) -> Iterator[Path]:
    files = [path for path in folder.iterdir() if path.suffix == ".py" and not path.name.startswith("__init__")]
    for path in sorted(files):
        if path.name != "__main__.py":
            yield path
    for path in sorted(folder.iterdir()):
        if (path / "__init__.py").exists():
            yield path
            yield from _walk(path)


def _says(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    return first.partition(". ")[0].rstrip(".")


def _beside() -> Iterator[tuple[str, str]]:
    yield "benchmarks/", "every speed figure as a ratio to its peer; make bench"
    yield "docs/", "architecture on one page; what to touch to add a part"
    yield "examples/", "one runnable file per integration"
    yield "faults/", "damaged input of every kind, tallied; make faults"
    yield "results/", "recorded studies that the tables above are generated from"
    yield "tests/", "mirrors src/; make test"
    yield "tools/", "write_documents.py fills this map and the result blocks (make documents); record_commands.py"


if __name__ == "__main__":
    sys.exit(main())
