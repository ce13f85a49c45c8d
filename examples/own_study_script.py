"""A study of an unchanged training script: it runs once per run in a process of its own and writes metrics as JSON.

    retarget study own_study_script.py --jobs 2

Here the script is the text below, written to each run's directory, so that one file is enough. Put your own script into
``command``, and list it in the plan's ``data``: then a changed script makes another study.
"""

import json
import subprocess
import sys

from retarget.study import Arm, Claim, Metric, Run, StudyPlan

SCRIPT = """
import argparse, json, numpy
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import accuracy_score, log_loss

parser = argparse.ArgumentParser()
parser.add_argument("--penalty"), parser.add_argument("--seed", type=int), parser.add_argument("--out")
options = parser.parse_args()
x, y = load_digits(return_X_y=True)
order = numpy.random.default_rng(options.seed).permutation(len(x))
train, test = order[:200], order[200:]
model = SGDClassifier(loss="log_loss", penalty=options.penalty, alpha=0.01, random_state=options.seed, max_iter=200)
model.fit(x[train] / 16, y[train])
probs = model.predict_proba(x[test] / 16)
metrics = {"accuracy": 100 * accuracy_score(y[test], probs.argmax(1)), "nll": log_loss(y[test], probs)}
json.dump(metrics, open(options.out, "w"))
"""

plan = StudyPlan(
    study="penalty",
    title="A penalty in a script",
    question="Is an L2 penalty better than L1 on 200 digits?",
    settings={"penalty": "l1"},
    arms=(Arm(name="l1", label="L1"), Arm(name="l2", label="L2", settings={"penalty": "l2"})),
    metrics=(
        Metric(name="accuracy", label="accuracy", unit="%", better="higher"),
        Metric(name="nll", label="NLL", better="lower", decimals=3),
    ),
    claims=(
        Claim(id="accuracy", sentence="L2 is more accurate than L1.", metric="accuracy", direction="higher",
              arms=("l2", "l1"), smallest_effect=0.5),
    ),
)  # fmt: skip


def run(run: Run) -> dict[str, float]:
    script, out = run.directory / "train.py", run.directory / "metrics.json"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), "--penalty", run.settings["penalty"], "--seed", str(run.seed)]
    subprocess.run([*command, "--out", str(out)], check=True)  # its output goes to the run's output.log
    return json.loads(out.read_text())
