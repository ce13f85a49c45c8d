"""Collect a study's texts, cells and figures, which the page and the Markdown both show."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retarget.report import words
from retarget.report.claims import (
    ClaimGroup,
    claim_groups,
    is_exact,
    judged_by_earlier_rules,
    not_run,
    only_models,
    run_once,
    was_run,
)
from retarget.report.draw import Drawing
from retarget.report.forest import Forest, forest
from retarget.report.gallery import FigureView, Picture, figure_views, slug
from retarget.report.measurements import ConditionMetrics, cost_table, metric_tables
from retarget.report.methods import bibtex, methods
from retarget.report.pairs import PairTable, pair_tables
from retarget.report.source import Study

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class StudyView:
    """One study's part of the page; ``key`` is unique among the studies of the page and valid as an id.

    Attributes:
        once: whether each arm was run once, so that there are no verdicts.
        counts: number of claims that were run, by verdict; ``not_run`` are the sentences of the others,
            below the words of ``stated``.
        forest: the plot of all measured claims; None if there are none.
    """

    key: str
    study: str
    preset: str
    seeds: int
    eyebrow: str
    title: str
    question: str
    finding: str
    setup: str
    counts: dict[str, int]
    once: bool
    claims: tuple[ClaimGroup, ...]
    claims_caption: str
    not_run: tuple[str, ...]
    stated: str
    forest: Forest | None
    metrics: tuple[ConditionMetrics, ...]
    pairs: tuple[PairTable, ...]
    figures: tuple[FigureView, ...]
    cost: tuple[tuple[str, ...], ...]
    failures: Pairs
    runs: int
    notes: tuple[str, ...]
    command: str
    environment: Pairs
    configuration: tuple[tuple[str, Pairs], ...]
    methods: str
    bibtex: str

    @property
    def lead(self) -> tuple[FigureView, ...]:
        """The most important figures, which are shown before all tables."""
        return tuple(figure for figure in self.figures if figure.lead)

    @property
    def card_title(self) -> str:
        """The title of the drawing or pictures on the study's card, on a page of several studies."""
        return self.lead[0].title if self.lead else ""

    @property
    def card_pictures(self) -> tuple[Picture, ...]:
        """Two pictures for the card, if the most important figure has pictures."""
        return self.lead[0].pictures[:2] if self.lead else ()

    @property
    def card(self) -> Drawing | None:
        """The card's drawing, with its own ids: the most important figure, or else the forest plot."""
        if not self.lead or not self.lead[0].drawings:
            return self.forest.narrow if self.forest else None
        drawing = self.lead[0].drawings[0]
        return drawing._replace(svg=re.sub(rf'(id="|#){re.escape(self.key)}-', rf"\1top-{self.key}-", drawing.svg))

    @property
    def others(self) -> tuple[FigureView, ...]:
        """The figures after the tables."""
        return tuple(figure for figure in self.figures if not figure.lead)


def view(study: Study, key: str) -> StudyView:
    """Collect everything that the page shows of a study.

    Raises:
        UserError: an image of the analysis cannot be embedded.
    """
    plan = study.plan
    counts = verdict_counts([study])
    failed = [run for run in study.runs if run.state == "failed"]
    several = len(plan.conditions) > 1
    groups, once, unrun = claim_groups(study), run_once(study), not_run(study)
    return StudyView(
        key=key,
        study=plan.study,
        preset=plan.preset,
        seeds=len(plan.seeds),
        eyebrow=f"Study {plan.study}, preset {plan.preset}" if study.runs else "Verdicts",
        title=plan.title,
        question=plan.question,
        finding=_finding(study, counts, once, len(unrun)),
        setup=_setup(study),
        counts=counts,
        once=once,
        claims=groups,
        claims_caption=_claims_caption(study),
        not_run=unrun,
        stated=words.stated(len(unrun), study.analysis.left_out, more=bool(groups)) if unrun else "",
        forest=forest(groups),
        metrics=metric_tables(study),
        pairs=pair_tables(study),
        figures=figure_views(study, key),
        cost=cost_table(study),
        failures=tuple(
            ("/".join(([run.condition] if several else []) + [run.arm, f"seed-{run.seed}"]), run.reason)
            for run in failed
        ),
        runs=len(study.runs),
        notes=tuple(study.analysis.notes),
        command=study.command,
        environment=_environment(study.environment),
        configuration=_configuration(study),
        methods=methods(study),
        bibtex=bibtex(study),
    )


def _finding(study: Study, counts: dict[str, int], once: bool, stated: int) -> str:
    if once:
        return words.finding_of_one_run(sum(claim.estimate is not None for claim in study.summary.claims))
    return words.finding(counts, stated)


def keys(studies: Sequence[Study]) -> list[str]:
    """A short unique name for each study, from its kind and its number.

    >>> keys([])
    []
    """
    names = [slug(study.plan.study) for study in studies]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    taken = set(names)
    found = []
    for place, name in enumerate(names, start=1):
        key = f"{name}-{place}" if name in repeated else name
        while name in repeated and key in taken:
            key += "-x"
        taken.add(key)
        found.append(key)
    return found


def verdict_counts(studies: Sequence[Study]) -> dict[str, int]:
    """The number of claims that were run, by verdict; every verdict is listed."""
    found = Counter(claim.verdict for study in studies for claim in study.summary.claims if was_run(claim, study))
    return {verdict: found[verdict] for verdict in words.VERDICTS}


def _setup(study: Study) -> str:
    plan = study.plan
    parts = [words.plural(len(plan.arms), "arm"), words.plural(len(plan.seeds), "seed")]
    if not study.runs and only_models(study):
        del parts[1]  # items have seeds only where several were averaged
    if len(plan.conditions) > 1:
        parts.insert(1, words.plural(len(plan.conditions), "condition"))
    if not study.runs:
        return (
            f"{' × '.join(parts)}. The runs were made elsewhere and are paired by seed or by item. Only their author "
            "knows whether the claims were fixed before the results were seen."
        )
    open_runs = sum(run.state in ("running", "missing") for run in study.runs)
    if study.only_findings:
        open_runs = 0
    fixed = " The claims, their metrics and the smallest effects that matter were fixed before the first run."
    fixed = fixed if plan.claims else ""
    unfinished = f" {open_runs} of {len(study.runs)} runs are not finished." if open_runs else ""
    return f"{' × '.join(parts)}. Arms are compared on the same seeds.{fixed}{unfinished}"


def _claims_caption(study: Study) -> str:
    """How verdicts are decided and how often they err; it must not claim joint coverage of the intervals."""
    claims = [claim for claim in study.summary.claims if was_run(claim, study)]
    error = words.percent((1 - study.plan.level) / 2)
    if run_once(study):
        items = (
            f"Intervals are over items ({study.analysis.item_label}): they describe these models on this data. "
            if any(claim.item_interval for claim in claims)
            else ""
        )
        return (
            "Differences are treated minus control. Each arm was run once, which decides nothing about the method. "
            f"{items}Verdicts need more seeds: {_more_seeds(study)}"
        )
    if judged_by_earlier_rules(study):
        return (
            "Differences are treated minus control, the mean over seeds. These verdicts were given by an earlier "
            'version, with Holm\'s procedure over two-sided tests: the probability of any wrong "holds" is at most '
            f'{error}; that of a wrong "does not hold" has no limit.'
        )
    over = "" if only_models(study) else ", the mean over seeds"
    parts = [
        f"Differences are treated minus control{over}. Each claim is tested twice, one-sided: it holds "
        "if the difference is significantly good, and does not hold if the difference is significantly below the "
        f'smallest effect that matters. The probability of any wrong "holds" is at most {error}, and so is that of any '
        'wrong "does not hold", by Holm\'s procedure for each of the two questions. Each end of an interval is the '
        "bound of one of the two tests."
    ]
    if any(claim.margin is not None for claim in claims):
        parts.append(
            "A claim that may be worse by a margin holds if the difference is significantly above minus the margin, "
            "and does not hold if it is significantly below it."
        )
    if any(is_exact(claim, study) for claim in claims):
        parts.append("The difference of a metric that does not depend on the seed decides without a test.")
    if {"primary", "secondary"} <= {claim.family for claim in claims}:
        parts.append("Primary and secondary claims are two families, each with these error rates.")
    if study.plan.looks:
        looks = ", ".join(map(str, study.plan.looks))
        parts.append(
            f"Verdicts are given only at the planned looks, at {looks} seeds, which share the error; they are final."
        )
    if any(claim.about == "models" for claim in claims):
        parts.append(
            "Claims about models are decided over items: they hold for these models on this data, and say nothing "
            "about the method with other seeds."
        )
    return " ".join(parts)


def _more_seeds(study: Study) -> str:
    """How to continue: the same command with more seeds, in the same directory."""
    if not study.runs:
        return "judge runs with several seeds."
    seeds = " ".join(str(max(study.plan.seeds) + place) for place in range(5))
    return f"the command below, with --seeds {seeds}, continues in the same directory and keeps the existing runs."


def _environment(record: dict[str, Any]) -> Pairs:
    """Nested values as one line each: the commit first, then hardware, then versions."""
    pairs: list[tuple[str, str]] = []
    commit = record.get("commit")
    if isinstance(commit, dict) and commit.get("hash"):
        pairs.append(("commit", f"{commit['hash']}{', with uncommitted changes' if commit.get('dirty') else ''}"))
    for name, value in record.items():
        if name == "commit":
            continue
        if isinstance(value, dict):
            if name == "versions":
                pairs.append((name, ", ".join(f"{package} {version}" for package, version in value.items())))
            else:
                pairs.extend((_spaced(key), _plain(one)) for key, one in value.items())
        else:
            pairs.append((_spaced(name), _plain(value)))
    return tuple((name, value) for name, value in pairs if value)


def _configuration(study: Study) -> tuple[tuple[str, Pairs], ...]:
    plan = study.plan
    study_pairs = (
        ("seeds", ", ".join(map(str, plan.seeds))),
        ("threads", str(plan.threads)),
        ("task", plan.task),
        ("analysis", plan.analysis or ""),
        *((name, _plain(value)) for name, value in plan.settings.items()),
    )
    parts: list[tuple[str, Pairs]] = [("Every run", tuple((name, value) for name, value in study_pairs if value))]
    overrides = [("Conditions", plan.conditions), ("Arms", plan.arms)]
    for heading, items in overrides:
        pairs = tuple(
            (one.label or one.name, "; ".join(f"{name} = {_plain(value)}" for name, value in one.settings.items()))
            for one in items
        )
        if any(value for _, value in pairs):
            parts.append((heading, tuple((name, value or "as above") for name, value in pairs)))
    return tuple(parts)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _spaced(name: str) -> str:
    return name.replace("_", " ")
