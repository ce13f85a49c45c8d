"""Pages of small made-up studies: one claim or few, one condition."""

from page_reader import Page

from retarget.report import build
from retarget.study.config import Claim, Condition
from retarget.study.figures import Analysis


def row_of(page, *starts):
    return next(row for row in page.rows if tuple(row[: len(starts)]) == starts)


def small(study, plain_plan, claims=(), found=None, name="study", **changes):
    """A page of a study with one condition, made of one claim or few."""
    single = dict(conditions=(Condition(),), claims=tuple(claims)) | changes
    directory = study(name, plain_plan(**single), found or Analysis())
    build([directory])
    return Page(directory / "report.html")


def claim(**changes):
    whole = dict(id="a", sentence="It helps.", metric="top1", direction="higher", smallest_effect=0.5,
                 arms=("pskd", "cross_entropy"))  # fmt: skip
    return Claim.model_validate(whole | changes)
