"""The metrics of a recorded study as Markdown: tables of arms."""

from collections.abc import Sequence
from typing import Any

WIDE = 6
"""Metrics of one table, so that it has at most eight columns; further metrics are folded."""


def metric_tables(
    condition: str, summary: dict[str, Any], plan: dict[str, Any], columns: Sequence[str], remarks: dict[str, str]
) -> str:
    """The metrics of all arms under one condition, in as many tables as needed; all but the first are folded."""
    arms = summary["conditions"][condition]
    labels = {arm["name"]: arm["label"] for arm in plan["arms"]}
    names = {arm: labels.get(arm, arm) + (f" ({remarks[arm]})" if arm in remarks else "") for arm in arms}
    ranked = bool(columns) and len(arms) >= 5
    shown = _shown(arms, plan, columns)
    first, *more = [shown[at : at + WIDE] for at in range(0, len(shown), WIDE)] or [[]]
    where = "" if condition == label_of(condition, plan) == "default" else f"{label_of(condition, plan)}, "
    text = f"{where}mean ± sd{' (rank)' * ranked} over seeds:\n\n{_table(first, arms, names, ranked)}"
    if not more:
        return text
    count = len(shown) - len(first)
    tables = "\n\n".join(_table(part, arms, names, ranked) for part in more)
    summary = f"<summary>{count} more metric{'s' * (count > 1)}</summary>"
    return f"{text}\n\n<details>\n{summary}\n\n{tables}\n\n</details>"


WHOLE = {
    "… last tenth": "entropy of unguided rollouts, last tenth",
    "… of these solved afterwards": "hard problems solved in training, share solved afterwards",
    "… by chance": "right states of guided rollouts that unguided ones reach by chance",
    "… teacher": "log-probability of the right solution, teacher",
    "… share above 0": "problems with a guided success before training, prefix found",
    "… unguided, same problems": "unguided success before training, prefix found",
    "… share above 0 of all": "problems with a guided success before training, all hard problems",
}
"""Labels of older records that only the metric before them completed, as they are today."""


def _shown(arms: dict[str, Any], plan: dict[str, Any], columns: Sequence[str]) -> list[dict[str, Any]]:
    """The measured metrics of a record's tables: ``columns``, else those that decide claims, then those beside them."""
    known = {m["name"]: m for m in plan["metrics"] if any(_measured(arms[arm].get(m["name"])) for arm in arms)}
    decide = {claim["metric"] for claim in plan["claims"]}
    beside = {claim["shown"] for claim in plan["claims"]} - decide
    wanted = columns or [name for name in known if name in decide] + [name for name in known if name in beside]
    if not columns and not plan["claims"]:
        wanted = [name for name, metric in known.items() if metric["better"] != "neither"]
    return [known[name] for name in wanted if name in known]


def _table(metrics: Sequence[dict[str, Any]], arms: dict[str, Any], names: dict[str, str], ranked: bool) -> str:
    """Arms as rows, these metrics as columns."""
    rows = [
        "| arm | seeds | "
        + " | ".join(f"{WHOLE.get(m['label'], m['label'])}{unit_after(m['unit'])}" for m in metrics)
        + " |",
        "|---" * (len(metrics) + 2) + "|",
    ]
    ranks = {m["name"]: _ranks(m, arms) if ranked else {} for m in metrics}
    for arm, values in arms.items():
        seeds = max((sum(v is not None for v in one["values"]) for one in values.values()), default=0)
        if seeds:
            cells = [_cell(values.get(m["name"]), m["decimals"]) + ranks[m["name"]].get(arm, "") for m in metrics]
            rows.append(f"| {names[arm]} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _ranks(metric: dict[str, Any], arms: dict[str, Any]) -> dict[str, str]:
    """ " (1)" for the arm with the best mean."""
    means = {
        arm: values[metric["name"]]["mean"] for arm, values in arms.items() if _measured(values.get(metric["name"]))
    }
    if metric["better"] == "neither":
        return {}
    order = sorted(means.values(), reverse=metric["better"] == "higher")
    return {arm: f" ({order.index(mean) + 1})" for arm, mean in means.items()}


def label_of(name: str, plan: dict[str, Any]) -> str:
    """A condition's label, or its name if it has none."""
    return next((one["label"] for one in plan["conditions"] if one["name"] == name), "") or name


def _measured(value: dict[str, Any] | None) -> bool:
    return bool(value) and value["mean"] is not None


def _cell(value: dict[str, Any] | None, decimals: int) -> str:
    if value is None or value["mean"] is None:
        return "–"
    spread = "" if value["sd"] is None else f" ± {value['sd']:.{decimals}f}"
    return f"{value['mean']:.{decimals}f}{spread}"


def unit_after(unit: str) -> str:
    """A unit as it follows a number or a name."""
    return f" {unit}" if unit else ""
