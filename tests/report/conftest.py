"""A study's directory in the format of the design, written by the study's own functions from made-up runs."""

import json
import math
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from retarget.files import write_json
from retarget.study.config import Arm, Claim, Condition, Metric, StudyPlan
from retarget.study.figures import Analysis, Bars, Images, Lines, Series, Table, Text
from retarget.study.record import Results, run_directory
from retarget.study.summary import collect, merge, summarise

HERE = str(Path(__file__).parent)
if HERE not in sys.path:  # for page_reader here, and for tiny_study in spawned workers
    sys.path.insert(0, HERE)

ARMS = (
    Arm(name="cross_entropy", label="cross-entropy"),
    Arm(name="pskd", label="PS-KD", settings={"targets": "pskd"}),
    Arm(name="smoothing", label="label smoothing 0.1", settings={"targets": "label_smoothing"}),
)
METRICS = (
    Metric(name="top1", label="top-1 accuracy", unit="%", better="higher"),
    Metric(name="nll", label="NLL", better="lower", decimals=3),
    Metric(name="ece", label="ECE", unit="%", better="lower", description="10 equal-width bins (lo, hi]"),
    Metric(name="ece_scaled", label="ECE after temperature", unit="%", better="lower", optional=True),
    Metric(name="step_ms", label="training step", unit="ms", better="lower", decimals=1),
)
CONDITIONS = (
    Condition(name="clean", label="clean labels"),
    Condition(name="noisy", label="20 % of the training labels wrong", settings={"label_noise": 0.2}),
)


def claims(condition: str) -> tuple[Claim, ...]:
    pair = ("pskd", "cross_entropy")
    return (
        Claim(id=f"accuracy_{condition}", sentence="PS-KD improves accuracy on image classification.", metric="top1",
              direction="higher", smallest_effect=0.5, arms=pair, condition=condition),
        Claim(id=f"calibration_{condition}", sentence="PS-KD improves confidence calibration.", metric="ece_scaled",
              direction="lower", smallest_effect=0.5, arms=pair, condition=condition, shown="ece"),
        Claim(id=f"likelihood_{condition}", sentence="PS-KD gives better confidence estimates.", metric="nll",
              direction="lower", smallest_effect=0.02, arms=pair, condition=condition),
    )  # fmt: skip


def plan(**changes) -> StudyPlan:
    whole = dict(
        study="pskd",
        title="PS-KD on image classification",
        question="Do softened targets from the model's own past predictions help on this data?",
        preset="demo",
        task="tiny_study:run",
        settings={"dataset": "digits", "epochs": 20, "lr": 0.05, "drops": [0.5, 0.75], "test_images": None},
        conditions=CONDITIONS,
        arms=ARMS,
        metrics=METRICS,
        claims=(
            *claims("clean"),
            *claims("noisy"),
            Claim(id="detection", sentence="PS-KD improves object detection.", metric="map", direction="higher",
                  smallest_effect=0.5, arms=("detection_pskd", "detection_cross_entropy")),
        ),
    )  # fmt: skip
    return StudyPlan.model_validate(whole | changes)


def final_metrics(condition: str, arm: str, seed: int) -> dict[str, float]:
    """Numbers whose verdicts differ: accuracy falls on clean labels and rises on noisy ones."""
    noise = np.random.default_rng([seed, len(condition)]).normal(size=5)
    own = np.random.default_rng([seed, len(arm), len(condition)]).normal(size=5)
    better = arm != "cross_entropy"
    gain = (2.0 if condition == "noisy" else -0.4) * better
    return {
        "top1": 92.0 - 8 * (condition == "noisy") + gain + noise[0] + 0.15 * own[0],
        "nll": 0.31 + 0.2 * (condition == "noisy") + 0.05 * better + 0.01 * noise[1] + 0.01 * own[1],
        "ece": 3.0 + 4.0 * better + 0.3 * own[2],
        "ece_scaled": 2.4 - 0.4 * better + 0.5 * own[3],
        "step_ms": 4.1 + 0.1 * better + 0.05 * own[4],
    }


def curve(arm: int, seed: int, epochs: int = 20) -> list[float]:
    noise = np.random.default_rng([arm, seed]).normal(size=epochs)
    return [2.2 * math.exp(-epoch / (4 + arm)) + 0.3 + 0.04 * arm + 0.02 * noise[epoch] for epoch in range(epochs)]


def png(width: int, height: int) -> bytes:
    """A grey ramp as a PNG file."""
    rows = b"".join(b"\0" + bytes((7 * x + 11 * y) % 256 for x in range(width)) for y in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def analysis(arms: tuple[Arm, ...] = ARMS, seeds: int = 5) -> Analysis:
    def bins(arm: int) -> Series:
        x = [0.05 + 0.1 * place for place in range(10)]
        y = [[min(1.0, value * (1 + 0.05 * arm) + 0.02 * seed) for value in x] for seed in range(seeds)]
        counts = [[0, 3, *range(20, 180, 20)] for _ in range(seeds)]
        return Series(label=arms[arm].label, x=x, y=[[None, *one[1:]] for one in y], counts=counts)

    curves = [
        Series(label=arm.label, x=list(range(1, 21)), y=[curve(place, seed) for seed in range(seeds)])
        for place, arm in enumerate(arms)
    ]
    shares = [[[2.0 * g + place + 0.2 * s for s in range(seeds)] for g in range(1, 11)] for place in range(2)]
    return Analysis(
        item_intervals={"accuracy_clean": (-0.9, 0.1)},
        lead=["Reliability"],
        figures=[
            Lines(title="Learning curves", caption="Validation loss after each epoch.", x_label="epoch",
                  y_label="validation NLL", series=curves),
            Lines(title="Reliability", caption="Accuracy by confidence, ten bins.", x_label="confidence",
                  y_label="accuracy", series=[bins(0), bins(1)], diagonal=True),
            Bars(title="Gradient share by difficulty", caption="Deciles by an independent model.",
                 x_label="decile of difficulty", y_label="share of the gradient norm, %",
                 groups=[str(one) for one in range(1, 11)], labels=[arm.label for arm in arms[:2]], values=shares),
            Table(title="Accuracy by decile", caption="Mean over seeds.", columns=["Decile", "cross-entropy", "PS-KD"],
                  rows=[["1", "99.8", "99.9"], ["10", "61.0", "63.5"]]),
            Images(title="Samples", caption="One image of each kind.",
                   files=[Path("samples/a.png"), Path("samples/b.png")], labels=["benign noise", "biased noise"]),
            Text(title="Rollouts", caption="Verbatim.", labels=["guided, reward 1"],
                 blocks=["def add(a, b):\n    return a + b  # ```three``` backticks"]),
        ],
        notes=["Cross-entropy reaches 92 % on the digits: there is little over-confidence to cure."],
    )  # fmt: skip


def write_study(
    directory: Path, whole: StudyPlan | None = None, found: Analysis | None = None, failed: tuple = ()
) -> Path:
    """Write a finished study.

    Args:
        failed: ``(condition, arm, seed)`` of runs that failed.
    """
    whole = whole or plan()
    found = analysis() if found is None else found
    for place, condition in enumerate(whole.conditions):
        for arm in whole.arms:
            for seed in whole.seeds:
                run = run_directory(directory, whole, condition.name, arm.name, seed)
                run.mkdir(parents=True)
                if (condition.name, arm.name, seed) in failed:
                    error = "RuntimeError: loss <nan>"
                    trace = f'Traceback (most recent call last):\n  File "task.py", line 3, in run\n{error}\n'
                    status = {"state": "failed", "error": error, "traceback": trace}
                else:
                    metrics = final_metrics(condition.name, arm.name, seed)
                    status = {"state": "complete", "metrics": metrics, "seconds": 6.5 + place + 0.25 * seed}
                write_json(run / "status.json", status)
    (directory / "samples").mkdir()
    (directory / "samples" / "a.png").write_bytes(png(64, 64))
    (directory / "samples" / "b.png").write_bytes(png(320, 80))
    values = merge(collect(Results(directory, whole)), found, len(whole.seeds))
    record = {
        "plan": whole.model_dump(mode="json"),
        "claims_hash": whole.claims_hash(),
        "command": "retarget study pskd --preset demo --out studies/demo/pskd",
        "versions": {"python": "3.11.9", "retarget": "0.1.0", "torch": "2.13.0"},
        "hardware": {"platform": "Linux x86_64", "cpu": "A processor", "cores": 2, "memory_gib": 15.6, "gpus": []},
        "commit": {"hash": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
    }
    write_json(directory / "study.json", record)
    write_json(directory / "analysis.json", found.model_dump(mode="json"))
    write_json(directory / "summary.json", summarise(whole, values, found))
    return directory


def rewrite(path: Path, change) -> None:
    """Change a JSON file: ``change`` edits its value in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.fixture
def plain_plan():
    """``plan(**changes)``: the made-up study's plan."""
    return plan


@pytest.fixture
def edit():
    """``edit(path, change)``: edits a JSON file."""
    return rewrite


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A study's directory with its page; read it only. One of its runs failed."""
    from retarget.report import build

    directory = write_study(tmp_path_factory.mktemp("finished") / "study", failed=(("clean", "pskd", 3),))
    build([directory])
    return directory


@pytest.fixture
def study(tmp_path):
    """Makes a study's directory below a temporary one: ``study(name, plan, analysis, failed=...)``."""

    def make(name: str = "study", *args, **options) -> Path:
        return write_study(tmp_path / name, *args, **options)

    return make
