"""A study that trains nothing, for the real runner: one arm of one seed fails."""

from retarget.study.config import Arm, Claim, Metric, StudyPlan
from retarget.study.figures import Analysis, Lines, Series

SEEDS = (0, 1, 2, 3)
PLAN = StudyPlan(
    study="tiny",
    title="A tiny study",
    question="Does the page fit what the runner writes?",
    preset="demo",
    task="tiny_study:run",
    analysis="tiny_study:analyse",
    settings={"shift": 0.0},
    arms=(Arm(name="control", label="control"), Arm(name="treated", label="shifted", settings={"shift": 1.0})),
    seeds=SEEDS,
    metrics=(Metric(name="score", label="score", unit="%", better="higher"), Metric(name="raw", label="raw score")),
    claims=(
        Claim(id="better", sentence="A shift raises the score.", metric="score", direction="higher",
              smallest_effect=0.5, arms=("treated", "control"), shown="raw"),
        Claim(id="elsewhere", sentence="It does so elsewhere.", metric="score", direction="higher",
              smallest_effect=0.5, arms=("absent", "control")),
    ),
)  # fmt: skip


def run(run):
    if run.arm == "treated" and run.seed == 3:
        raise RuntimeError("the loss is <NaN>")
    for step in range(3):
        run.log(step, score=step + run.settings["shift"])
    return {"score": 50 + run.settings["shift"] * (3 + 0.1 * run.seed), "raw": 0.1 * run.seed}


def analyse(results):
    series = []
    for arm in results.plan.arms:
        runs = [results.run("default", arm.name, seed) for seed in results.seeds]
        y = [[line["score"] for line in one.history()] if one else [None] * 3 for one in runs]
        series.append(Series(label=arm.label, x=[0, 1, 2], y=y))
    curves = Lines(title="Score", caption="After each step.", x_label="step", y_label="score, %", series=series)
    return Analysis(item_intervals={"better": (2.5, 3.5)}, figures=[curves])
