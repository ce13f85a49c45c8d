"""Before the first run of a translation study: what cannot work is refused, once and at once.

Its data are imported behind the check that the packages for them are there.
"""

from retarget.extras import require
from retarget.pskd.studies.translation.plan import Settings
from retarget.settings import resolve_settings
from retarget.study.config import StudyPlan


def prepare(plan: StudyPlan) -> None:
    """Refuse missing packages and sentences that cannot be read; cheap enough for a dry run."""
    for module in ("transformers", "accelerate", "sacrebleu"):
        require(module, "text")
    from retarget.pskd.studies.translation.data import sentence_pairs

    for condition in plan.conditions:
        sentence_pairs(resolve_settings(Settings, plan.run_settings(condition, plan.arms[0])))
