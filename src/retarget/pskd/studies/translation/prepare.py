"""Check a translation study once, up front, and refuse what cannot work.

Modules that need optional packages are imported only after the check that these are installed.
"""

from retarget.extras import require
from retarget.pskd.studies.translation.plan import Settings
from retarget.settings import resolve_settings
from retarget.study.config import StudyPlan


def prepare(plan: StudyPlan) -> None:
    """Refuse missing packages and unreadable sentences, warn of a vocabulary that is too small for them; cheap enough
    for a dry run."""
    for module in ("transformers", "accelerate", "sacrebleu"):
        require(module, "text")
    from retarget.pskd.studies.translation.data import sentence_pairs, warn_if_cut

    for place, condition in enumerate(plan.conditions):
        settings = resolve_settings(Settings, plan.run_settings(condition, plan.arms[0]))
        parts = sentence_pairs(settings)
        if not place:  # the other direction has the same sentences
            warn_if_cut(parts.train, settings)
