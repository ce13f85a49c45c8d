"""Arms × conditions × seeds, resumable; knows no method.

A map: ``config`` is a study as data. ``runner`` does a study: ``directory`` opens its directory, ``executor`` hands
jobs to ``worker`` processes, ``progress`` shows them; ``clusters`` opens another executor, ``ray`` or ``slurm``, whose
``machines`` do the same. ``record`` is one run while it is written and a study when it is read; ``environment`` says
where it ran. ``claims`` judges what was ``measured``: it is ``evidence`` over seeds or over ``items``, tested with
``statistics``; ``power`` says what seeds can decide. ``summary`` puts a study together. ``elsewhere`` pairs what
``rows`` and ``harness`` read of others' runs, and ``judging`` writes their verdicts.

A study of one's own, and verdicts on any runs:

>>> from retarget.study import Arm, Claim, Metric, StudyPlan, judge
>>> plan = StudyPlan(
...     study="mine", title="Mine", question="Does it help?", preset="demo", task="mine:run", seeds=(0, 1, 2),
...     arms=(Arm(name="control", label="control"), Arm(name="treated", label="treated")),
...     metrics=(Metric(name="accuracy", label="accuracy"),),
...     claims=(Claim(id="helps", sentence="It helps.", metric="accuracy", direction="higher",
...                   arms=("treated", "control"), smallest_effect=0.5),),
... )
>>> values = {"control": {"accuracy": [90.0, 91.0, 90.5]}, "treated": {"accuracy": [92.1, 93.0, 92.5]}}
>>> judge(plan, {"default": values})[0].verdict
'holds'
"""

from typing import TYPE_CHECKING

from retarget.lazy import lazy

if TYPE_CHECKING:
    from retarget.study.claims import judge
    from retarget.study.config import Arm, Claim, Condition, Metric, StudyPlan
    from retarget.study.record import Results, Run
    from retarget.study.runner import run_study

__all__ = ["Arm", "Claim", "Condition", "Metric", "Results", "Run", "StudyPlan", "judge", "run_study"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "judge": "claims",
        **dict.fromkeys(("Arm", "Claim", "Condition", "Metric", "StudyPlan"), "config"),
        **dict.fromkeys(("Results", "Run"), "record"),
        "run_study": "runner",
    },
)
