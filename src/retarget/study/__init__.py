"""Run arms × conditions × seeds, resumably, and judge claims about them; knows no method.


A map: ``config`` describes a study as data. ``runner`` runs it: ``directory`` opens its directory, ``executor`` passes
jobs to ``worker`` processes, ``progress`` shows them; ``clusters`` opens another executor, ``ray`` or ``slurm``, whose
``machines`` do the same. ``record`` writes one run and reads a study's results; ``environment`` records where it ran.
``claims`` gives the verdicts: ``measured`` collects the ``evidence`` for each claim, over seeds or over ``items``;
``statistics`` has the tests; ``power`` tells how many seeds can decide. ``summary`` combines all results. For runs made
elsewhere, ``rows`` and ``harness`` read them, ``elsewhere`` pairs them and ``judging`` writes the verdicts. Import from
here what ``__all__`` lists.

A study of your own, and verdicts on any runs:

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
