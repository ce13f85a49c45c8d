"""Run by Accelerate's launcher in test_train.py: the training of the test, split over two processes."""

import sys
from pathlib import Path

from accelerate import PartialState

from retarget.trojdiff import D2I, Trigger
from retarget.trojdiff.checkpoint import load_pipeline
from retarget.trojdiff.config import TrainConfig
from retarget.trojdiff.data import read_images
from retarget.trojdiff.glyphs import glyph
from retarget.trojdiff.train import train


def main() -> None:
    base, out = sys.argv[1:]
    unet, scheduler = load_pipeline(base)
    config = TrainConfig(steps=6, batch_size=8, learning_rate=1e-3, save_every=2, log_every=1)
    trigger = Trigger.patch(2, shape=(1, 8, 8))
    train(unet, scheduler, read_images("digits"), config, Path(out), D2I(glyph(), rows=3), trigger)
    state = PartialState()
    if state.is_main_process:
        (Path(out) / "processes.txt").write_text(str(state.num_processes))


main()
