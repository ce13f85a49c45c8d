"""A study that trains nothing: a random walk that logs, checkpoints, resumes and can be told to go wrong.

Workers import this file by name; the tests put its directory on ``sys.path``, which a spawned process takes over.
"""

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
from pathlib import Path

import numpy as np

from retarget.errors import UserError
from retarget.files import write_json
from retarget.study.config import Arm, Claim, Condition, Metric, StudyPlan
from retarget.study.figures import Analysis, Table

STEPS = 3


def plan(preset="demo", config=None, seeds=None, arms=None, **changes):
    """A control and a treated arm, the second better by about one."""
    known = (Arm(name="control", label="control"), Arm(name="treated", label="treated", settings={"lift": 1.0}))
    study = dict(
        study="toy",
        title="A random walk",
        question="Is a lifted walk higher?",
        preset=preset,
        task="tasks_for_tests:walk",
        analysis="tasks_for_tests:analyse",
        settings={"lift": 0.0, **(config or {})},
        arms=tuple(arm for arm in known if arms is None or arm.name in arms),
        seeds=tuple(seeds or (0, 1)),
        metrics=(Metric(name="height", label="height", unit="m", better="higher"), Metric(name="rank", label="rank")),
        claims=(
            Claim(id="higher", sentence="A lifted walk is higher.", metric="height", direction="higher",
                  arms=("treated", "control"), smallest_effect=0.5),
        ),
        minutes_per_run=0.5,
    )  # fmt: skip
    return StudyPlan(**(study | changes))


def sees_gpus(run):
    (run.directory / "gpus.txt").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    return {"height": 0.0}


def told(run):
    """What the run's environment says, and a hash of a text."""
    return {"height": float(os.environ["MY_SCALE"]), "rank": float(hash("a text") % 1000)}


CONDITIONS = (Condition(name="calm"), Condition(name="windy", settings={"wind": 0.5}))


def walk(run):
    """STEPS steps from a state in the checkpoint; the metrics depend on nothing but settings and seed."""
    _go_wrong(run)
    state_file = run.checkpoint / "state.json"
    state = json.loads(state_file.read_text()) if state_file.exists() else {"step": 0, "height": 0.0}
    for step in range(state["step"], STEPS):
        rng = np.random.default_rng([run.seed, step])
        height = state["height"] + run.settings["lift"] / STEPS + run.settings.get("wind", 0.0) * rng.normal()
        state = {"step": step + 1, "height": height + 0.01 * rng.normal() * (1 + run.settings["lift"])}
        run.log(step, height=state["height"])
        write_json(state_file, state)
        _go_wrong(run, step)
        run.progress(step + 1, STEPS, "step")
    run.save_predictions(path=np.arange(3) * state["height"])
    return {"height": state["height"]}


def remark(arm, metrics):
    """A sentence about the control alone."""
    return f"the control is {metrics['height']:.3f} m high" if arm == "control" else None


def analyse(results):
    """The rank of each seed among the seeds of its arm."""
    metrics = {}
    for condition in results.plan.conditions:
        for arm in results.plan.arms:
            runs = [results.run(condition.name, arm.name, seed) for seed in results.seeds]
            there = sorted(run.metrics["height"] for run in runs if run)
            ranks = [float(there.index(run.metrics["height"])) if run else None for run in runs]
            metrics.setdefault(condition.name, {})[arm.name] = {"rank": ranks}
    table = Table(title="Seeds", caption="", columns=["seed"], rows=[[str(seed)] for seed in results.seeds])
    return Analysis(metrics=metrics, figures=[table], item_intervals={"higher": (0.5, 1.5)})


def analyse_by_file(results):
    """What a file in the study's directory says, in place of a user's own ``analyse`` that is edited."""
    return Analysis.model_validate_json((results.directory / ".analysis-for-tests.json").read_text())


def surroundings(run):
    """What a task finds in its worker: global generators, threads, environment."""
    return {
        "python": random.random(),
        "numpy": float(np.random.random()),  # noqa: NPY002
        "omp": float(os.environ["OMP_NUM_THREADS"]),
        "process": float(os.getpid()),
    }


def torch_gradient(run):
    """A convolution's gradient: its bits depend on the number of threads, and on the global generator."""
    import torch

    torch.manual_seed(run.seed)
    layer = torch.nn.Conv2d(4, 8, 3)
    layer(torch.randn(16, 4, 8, 8)).square().mean().backward()
    assert layer.weight.grad is not None
    return {"sum": float(layer.weight.grad.double().sum()), "threads": float(torch.get_num_threads())}


def imports_torch_late(run):
    """A number from torch's own generator, which nobody has seeded but the worker."""
    import torch

    return {"drawn": float(torch.rand(1))}


def leaves_traces(run):
    """What a task finds in its worker, and then changes."""
    import torch

    found = {
        "bits": 8 * torch.rand(1).element_size(),
        "gradients": float(torch.is_grad_enabled()),
        "deterministic": float(torch.are_deterministic_algorithms_enabled()),
        "benchmark": float(torch.backends.cudnn.benchmark),
        "device": float(torch.get_default_device().type == "cpu"),
        "folder": float(len(str(Path.cwd()))),
        "variable": float("LEFT_BY_A_RUN" in os.environ),
        "path": float(len(os.environ.get("PATH", ""))),
        "divide": float(np.geterr()["divide"] == "raise"),
    }
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    torch.set_default_device("meta")
    os.chdir(run.directory)
    os.environ["LEFT_BY_A_RUN"] = "1"
    os.environ["PATH"] = "/nowhere"
    np.seterr(divide="raise")
    return found


def follow(run):
    """An arm that needs another reads its predictions."""
    if run.arm != "first":
        from retarget.study.record import RunResult

        first = RunResult(run.other("first"), {}).predictions()["value"]
        return {"height": float(first[0]) + 1}
    run.save_predictions(value=np.array([10.0 + run.seed]))
    return {"height": 10.0 + run.seed}


def _go_wrong(run, step=None):
    """Do what the settings ask for, if this is the arm and the seed that they name; and the step, else the start."""
    wrong = run.settings.get("wrong")
    if not wrong or [run.arm, run.seed] != run.settings["where"] or step != run.settings.get("at"):
        return
    once = Path(run.settings["once"]) if "once" in run.settings else None
    if once and once.exists():
        return
    if once:
        once.touch()
    if wrong == "raise":
        raise RuntimeError("the walk fell")
    if wrong == "exit":
        sys.exit("the walk left")
    if wrong == "die":
        print("last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if wrong == "_exit":
        os._exit(0)
    if wrong == "full disk":  # no file of this process may grow beyond 16 bytes from now on
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    if wrong == "wait":
        run.progress(1, STEPS, "step")
        threading.Event().wait()  # until somebody stops us
    if wrong == "announced":  # as Slurm sends it to every process of a job
        os.kill(os.getppid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    if wrong.startswith("parent"):
        os.kill(os.getppid(), getattr(signal, wrong.removeprefix("parent:")))
        threading.Event().wait()  # until the parent stops us


def hold_a_lock(run):
    """What tqdm does: a lock between processes, held until this one ends."""
    HELD.append(multiprocessing.RLock())
    return {"height": 1.0}


HELD = []


def nan(run):
    return {"height": float("nan"), "rank": 1.0}


def text(run):
    return "height"


def _kill_at(count):
    """Kill the parent and this worker at the count-th file that is opened for writing or renamed in a worker."""
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        writes = event == "os.rename" or (event == "open" and isinstance(arguments[1], str) and arguments[1] in "wa")
        if writes:
            seen += 1
            if seen == count:
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if "RETARGET_TEST_KILL_WORKER_AT" in os.environ and multiprocessing.parent_process() is not None:
    _kill_at(int(os.environ["RETARGET_TEST_KILL_WORKER_AT"]))


def refuse(study):
    """A study's ``prepare`` that finds its data wanting."""
    raise UserError("this data cannot be used")
