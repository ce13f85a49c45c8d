import io
import os
import re

import pytest

from retarget.study.progress import LINE_EVERY, Bars, Lines, Pace, display, duration

KEY = "clean/pskd/seed-0"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def play(shown):
    with shown:
        shown.start(4, 1)
        for key in (KEY, "clean/pskd/seed-1"):
            shown.began(key)
            shown.progressed(key, 1, 2, "epoch")
            shown.progressed(key, 2, 2, "epoch")
        shown.ended(KEY, None)
        shown.ended("clean/pskd/seed-1", "RuntimeError: [bold]out of luck")
        shown.remarked("the control is [bold]tall")
        shown.analysing()


def test_bars_are_for_terminals_and_lines_for_the_rest():
    assert isinstance(display(stream=Terminal()), Bars)
    assert isinstance(display(progress=False, stream=Terminal()), Lines)
    assert isinstance(display(stream=io.StringIO()), Lines)


def test_lines_say_what_ended_and_no_more():
    stream = io.StringIO()
    play(Lines(stream))
    first, one, two, said, last = stream.getvalue().splitlines()
    assert said == "the control is [bold]tall"
    assert last == "analysing, judging the claims"
    assert first == "4 runs, 1 of them finished before"
    assert one.startswith(f"[2/4] {KEY} complete (about ")
    assert two.startswith("[3/4] clean/pskd/seed-1 FAILED: RuntimeError: [bold]out of luck")


def test_lines_that_nobody_reads_stop_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as stream:  # noqa: PTH123 - a file descriptor
        shown = Lines(stream)
        play(shown)
        assert shown._pace.finished == 3
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # what is left in the buffer goes there


def test_bars_show_run_unit_and_what_failed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    shown = Bars(stream)
    play(shown)
    text = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", stream.getvalue())
    assert "clean/pskd/seed-1 FAILED: RuntimeError: [bold]out of luck" in text
    assert "the control is [bold]tall" in text
    assert "study" in text
    assert "3/4 runs" in text


def test_bars_of_unfinished_runs_go_away_when_the_study_is_stopped():
    stream = Terminal()
    with Bars(stream) as shown:
        shown.start(2, 0)
        shown.began(KEY)
        shown.progressed(KEY, 1, 3, "epoch")
    last = stream.getvalue().rpartition("\x1b[2K")[2]
    assert KEY not in last
    assert last.endswith("\x1b[?25h"), "the cursor is shown again"


def test_the_pace_counts_shares_until_a_run_is_whole_and_not_what_was_done_before():
    pace = Pace()
    pace.start(total=10, finished=4)
    assert pace.left() is None
    pace.move("a", 0.5)
    assert pace.done() == 4.5
    assert pace.left(now=pace._started + 30) == pytest.approx(30 * 5.5 / 0.5)
    pace.move("a", 0.1)
    assert pace.done() == 4.5, "the next phase does not move a run back"
    pace.end("a", now=pace._started + 60)
    assert pace.left(now=pace._started + 60) == pytest.approx(60 * 5 / 1)
    pace.move("b", 0.9)
    assert pace.left(now=pace._started + 80) == pytest.approx(60 * 5 / 1 - 20), "a share of a phase says little"
    assert pace.left(now=pace._started + 500) is None


def test_nothing_is_said_to_be_left_of_a_run_whose_first_phase_is_over():
    stream, pace = io.StringIO(), Pace()
    pace.start(total=1, finished=0)
    pace.move("a", 1.0)
    assert pace.left(now=pace._started + 30) is None
    lines = Lines(stream)
    lines.start(1, 0)
    lines._said -= 2 * LINE_EVERY
    lines.progressed("a", 4, 4, "problem mined")
    assert stream.getvalue().splitlines()[-1] == "a: problem mined 4 of 4"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, ""),
        (0, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (3599, "1 h 0 min"),
        (7384, "2 h 3 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_durations(seconds, said):
    assert duration(seconds) == said
