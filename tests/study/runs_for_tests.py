"""Runs the toy study and reads what it left."""

import json

from retarget.study.progress import Display
from retarget.study.runner import run_study


class Seen(Display):
    """A display that remembers what it was told."""

    def __init__(self):
        self.told = []

    def start(self, total, finished):
        self.told.append(("start", total, finished))

    def began(self, key):
        self.told.append(("began", key))

    def progressed(self, key, done, total, unit):
        self.told.append(("progressed", key, done, total, unit))

    def ended(self, key, error):
        self.told.append(("ended", key, error))

    def remarked(self, sentence):
        self.told.append(("remarked", sentence))

    def analysing(self):
        self.told.append(("analysing",))

    def all(self, kind):
        return [one[1:] for one in self.told if one[0] == kind]


def run(study, directory, command="retarget study toy", **more):
    return run_study(study, directory, command=command.split(), **more)


def read(path):
    return json.loads(path.read_text())


def status(root, place):
    return read(root / "runs" / place / "status.json")


def contents(root):
    """All files that hold a study's numbers, as bytes."""
    files = [root / "summary.json", *root.glob("runs/**/metrics.jsonl"), *root.glob("runs/**/predictions.safetensors")]
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(files)}
