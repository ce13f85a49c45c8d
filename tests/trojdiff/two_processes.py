"""Run by Accelerate's launcher in test_train.py: the training of the test, split over two processes."""

import os
import signal
import sys
from pathlib import Path

from accelerate import PartialState

from retarget.trojdiff import D2I, Trigger
from retarget.trojdiff.checkpoint import load_pipeline
from retarget.trojdiff.config import TrainConfig
from retarget.trojdiff.data import read_images
from retarget.trojdiff.glyphs import glyph
from retarget.trojdiff.train import Progress, train


def main() -> None:
    base, out, interrupted = sys.argv[1:]
    unet, scheduler = load_pipeline(base)
    config = TrainConfig(steps=6, batch_size=8, learning_rate=1e-3, save_every=1000, log_every=1)
    trigger = Trigger.patch(2, shape=(1, 8, 8))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it

    def listen(progress: Progress) -> None:
        """Send Ctrl-C to one of the processes, and again as a launcher would pass it on."""
        if str(progress.step) in interrupted.split(","):
            os.kill(os.getpid(), signal.SIGINT)

    train(unet, scheduler, read_images("digits"), config, Path(out), D2I(glyph(), rows=3), trigger, listen=listen)
    state = PartialState()
    if state.is_main_process:
        (Path(out) / "processes.txt").write_text(str(state.num_processes))


main()
