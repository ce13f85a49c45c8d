"""Write a paragraph "Methods" to paste into a paper, with its BibTeX, from the plan and the records."""

import re

from retarget.report import words
from retarget.report.claims import (
    across,
    against,
    arm_labels,
    is_exact,
    judged_by_earlier_rules,
    only_models,
    run_once,
    was_run,
)
from retarget.report.source import Study
from retarget.study.results import ClaimResult

HOLM = """@article{holm1979,
  author = {Holm, Sture},
  title = {A Simple Sequentially Rejective Multiple Test Procedure},
  journal = {Scandinavian Journal of Statistics},
  volume = {6}, number = {2}, pages = {65--70}, year = {1979}
}"""
MCNEMAR = """@article{fagerland2013,
  author = {Fagerland, Morten W. and Lydersen, Stian and Laake, Petter},
  title = {The {McNemar} Test for Binary Matched-Pairs Data: Mid-p and Asymptotic Are Better than Exact Conditional},
  journal = {BMC Medical Research Methodology},
  volume = {13}, number = {91}, year = {2013}
}"""
NEWCOMBE = """@article{newcombe1998,
  author = {Newcombe, Robert G.},
  title = {Improved Confidence Intervals for the Difference between Binomial Proportions Based on Paired Data},
  journal = {Statistics in Medicine},
  volume = {17}, number = {22}, pages = {2635--2650}, year = {1998}
}"""


def methods(study: Study) -> str:
    """What was run, compared and decided, and how; paragraphs are separated by an empty line.

    Works are cited by their key in :func:`bibtex`, as ``[@holm1979]``.
    """
    parts = [_runs(study), _settings(study), _claims(study), _rules(study), _software(study)]
    return "\n\n".join(filter(None, parts))


def bibtex(study: Study) -> str:
    """BibTeX entries of the software, the plan's references, and the statistical procedures used."""
    entries = [_own(study), *study.plan.references]
    claims = [claim for claim in study.summary.claims if was_run(claim, study)]
    if claims and not run_once(study):
        entries.append(HOLM)
    if any(claim.about == "models" for claim in claims):
        entries += [MCNEMAR, NEWCOMBE]
    return "\n\n".join(entry.strip() for entry in entries)


def _runs(study: Study) -> str:
    plan = study.plan
    arms = words.listed(arm.label for arm in plan.arms)
    seeds = f"{'seed' if len(plan.seeds) == 1 else 'seeds'} {words.listed(map(str, plan.seeds))}"
    where = ""
    if len(plan.conditions) > 1:
        labels = words.listed(one.label or one.name for one in plan.conditions)
        where = f", under {words.plural(len(plan.conditions), 'condition')} ({labels})"
    if not study.runs:
        lost = [
            f" {claim.sentence.rstrip('.')}: {claim.n} of {len(plan.seeds)} pairs were complete."
            for claim in study.summary.claims
            if claim.about == "method" and not claim.across and 0 < claim.n < (claim.look or len(plan.seeds))
        ]
        by = "item" if only_models(study) else seeds
        return f"We compared {words.plural(len(plan.arms), 'arm')} ({arms}){where}, paired by {by}.{''.join(lost)}"
    finished = sum(run.state == "complete" for run in study.runs)
    lost = finished < len(study.runs) and not study.only_findings
    missing = f" Of {len(study.runs)} runs, {finished} finished." if lost else ""
    return f"We ran {words.plural(len(plan.arms), 'arm')} ({arms}){where}, each with the same {seeds}.{missing}"


def _settings(study: Study) -> str:
    """The settings of every run, and those that arms and conditions change."""
    plan = study.plan

    def stated(settings: dict[str, object]) -> str:
        return ", ".join(f"{name} {_value(value)}" for name, value in settings.items() if value is not None)

    parts = [f"Settings of every run: {stated(plan.settings)}."] if plan.settings else []
    parts += [f"{one.label or one.name}: {stated(one.settings)}." for one in plan.conditions if one.settings]
    parts += [f"{one.label}: {stated(one.settings)}." for one in plan.arms if one.settings]
    return " ".join(parts)


def _claims(study: Study) -> str:
    claims = [claim for claim in study.summary.claims if was_run(claim, study)]
    if not claims:
        return ""
    labels = {one.name: one.label or one.name for one in study.plan.conditions}
    several = len(labels) > 1
    stated = "; ".join(f"({place}) {_claim(claim, study, labels, several)}" for place, claim in enumerate(claims, 1))
    fixed = "fixed before the first run" if study.runs else "stated with the results"
    found = str(study.environment.get("claims_hash") or study.plan.claims_hash())
    return f"Claims, metrics and smallest effects of interest were {fixed} (hash {found[:12]}): {stated}."


def _claim(claim: ClaimResult, study: Study, labels: dict[str, str], several: bool) -> str:
    arms, metric = (
        arm_labels(study),
        {one.name: one.label for one in study.plan.metrics}.get(claim.metric, claim.metric),
    )
    least = claim.smallest_effect if claim.margin is None else claim.margin
    bound = f"{'smallest effect' if claim.margin is None else 'margin'} {words.fixed(least, claim.unit)}"
    where = f", {labels.get(claim.condition, claim.condition)}" if several and claim.condition else ""
    sets = f", {across(claim, study)}" if claim.across else ""
    family = ", secondary" if claim.family == "secondary" else ""
    return (
        f"{claim.sentence.rstrip('.')}: {metric} of {arms[claim.arms[0]]} against {against(claim, arms)}, "
        f"{claim.direction} is better, {bound}{where}{sets}{family}"
    )


def _rules(study: Study) -> str:
    claims = [claim for claim in study.summary.claims if was_run(claim, study)]
    if not claims:
        return ""
    if run_once(study):
        items = any(claim.item_interval for claim in claims)
        over = f"; intervals are over items, at {words.percent(study.plan.level)}" if items else ""
        return f"Each arm was run once, so no claim about the method is decided{over}."
    error = words.percent((1 - study.plan.level) / 2)
    if judged_by_earlier_rules(study):
        return (
            "The verdicts were given by an earlier version, with Holm's procedure [@holm1979] over two-sided tests of "
            f"the paired differences and a family-wise error of {error} for “holds”."
        )
    parts = [
        "For each claim the paired differences were tested twice, one-sided: against no difference (“holds”) and "
        "against the smallest effect of interest (“does not hold”), each chain of tests by Holm's procedure "
        f"[@holm1979] with a family-wise error of {error}."
    ]
    if any(claim.margin is not None for claim in claims):
        parts.append("Claims with a margin were tested against minus the margin, both times.")
    if any(is_exact(claim, study) for claim in claims):
        parts.append("Differences of metrics that do not depend on the seed were compared without a test.")
    if {"primary", "secondary"} <= {claim.family for claim in claims}:
        parts.append("Primary and secondary claims are two families.")
    if study.plan.looks:
        looks = words.listed(f"{count} ({weight:g} of the error)" for count, weight in study.plan.planned_looks)
        parts.append(f"Verdicts were planned at {looks} seeds; a verdict at a look is final.")
    if any(claim.about == "models" for claim in claims):
        parts.append(
            f"Claims about these models were tested over items: right and wrong answers by {_mcnemar(study)} "
            "[@fagerland2013] with Newcombe's interval [@newcombe1998], other values by a studentised bootstrap, or, "
            "in fewer than 100 groups, by a t test over groups."
        )
    return " ".join(parts)


def _mcnemar(study: Study) -> str:
    exact = {claim.exact for claim in study.plan.claims if claim.about == "models"}
    if exact == {True}:
        return "McNemar's exact test"
    return "the mid-p McNemar test" if exact == {False} else "McNemar's test, exact or mid-p,"


def _software(study: Study) -> str:
    found = study.environment
    versions = found.get("versions") if isinstance(found.get("versions"), dict) else {}
    commit = found.get("commit") if isinstance(found.get("commit"), dict) else {}
    hardware = found.get("hardware") if isinstance(found.get("hardware"), dict) else {}
    packages = words.listed(f"{name} {version}" for name, version in (versions or {}).items() if name != "retarget")
    at = f" at commit {str(commit['hash'])[:10]}" if commit and commit.get("hash") else ""
    own = (versions or {}).get("retarget")
    parts = [f"We used Retarget{f' {own}' if own else ''}{at} [@retarget]{f', with {packages}' if packages else ''}."]
    if hardware and hardware.get("cpu"):
        gpus = hardware.get("gpus") or []
        with_gpus = f", with {words.listed(map(str, gpus))}" if gpus else ", without a GPU"
        parts.append(f"Runs were made on {hardware.get('cores')} cores of {hardware['cpu']}{with_gpus}.")
    return " ".join(parts)


def _own(study: Study) -> str:
    found = study.environment
    versions, commit = found.get("versions"), found.get("commit")
    version = versions.get("retarget") if isinstance(versions, dict) else None
    fields = ["author = {{The Retarget developers}}", "title = {Retarget}"]
    fields += [f"version = {{{_braced(str(version))}}}"] if version else []
    if isinstance(commit, dict) and commit.get("hash"):
        fields.append(f"note = {{commit {_braced(str(commit['hash']))}}}")
    return "@software{retarget,\n  " + ",\n  ".join(fields) + "\n}"


def _braced(text: str) -> str:
    """Text without characters that would end a BibTeX field."""
    return re.sub(r"[{}\\%]", "", text)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_value(one)}" for name, one in value.items() if one is not None) + ")"
    return "/".join(map(_value, value)) if isinstance(value, list | tuple) else str(value)
