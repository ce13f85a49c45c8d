import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retarget.errors import UserError
from retarget.pope.answers import after_thinking, final_answer
from retarget.pope.graders import load
from retarget.pope.grading import Grader, rejected_solutions, reward_function
from retarget.pope.problems import Problem


@pytest.fixture(autouse=True)
def importable(monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.path.parent))


def test_a_fault_costs_its_own_item_only_and_is_counted():
    texts = ["4", "hang", "4", "die", "memory", "5", "raise", "wrong type", "4"]
    with Grader("graders_for_tests:faulty", seconds=1.0, memory_mb=512, workers=2) as grader:
        grades = grader.grade(texts, ["4"] * 9, [{"id": str(i)} for i in range(9)])
        again = grader.grade(["4"], ["4"])
    assert [grade.reward for grade in grades] == [1, 0, 1, 0, 0, 0, 0, 0, 1]
    assert [grade.status for grade in grades] == [
        "ok", "timeout", "ok", "crash", "crash", "ok", "error", "error", "ok",
    ]  # fmt: skip
    assert grades[2].extracted == "4 of 2"
    assert again[0].correct
    assert grader.counts == {"ok": 5, "timeout": 1, "crash": 2, "error": 2}
    assert grader.failures == (
        "5 of 10 verdicts of grader 'graders_for_tests:faulty' failed (crash 2, error 2, timeout 1), and count as "
        f"wrong; the first error: {grader.first_error}"
    )
    assert grader.first_error in ("ValueError: no", "UserError: a grader must return a Grade or a number from 0 to 1, "
                                  "not 'yes'")  # fmt: skip


def test_math_is_symbolic_and_reads_what_follows_the_thinking():
    texts = ["so $\\boxed{0.5}$", "#### 1/2", "<think>\\boxed{1/2}</think> It is 3.", "nothing", "x = \\frac{2}{4}"]
    with Grader("math") as grader:
        grades = grader.grade(texts, ["\\frac{1}{2}"] * 5)
    assert [grade.reward for grade in grades] == [1, 1, 0, 0, 0]
    assert grades[3].extracted is None
    assert grades[0].extracted == "0.5"


NUMBERS = (
    ("\\boxed{\\frac{1}{2}}", "0.5", "2"),
    ("\\boxed{-\\frac{3}{4}}", "-0.75", "4"),
    ("\\boxed{1{,}200}", "1200", "200"),
    ("\\boxed{10,\\!000}", "10000", "0"),
    ("\\boxed{12\\text{ m}^2}", "12", "2"),
    ("The answer is −5.", "-5", "5"),
    ("\\boxed{3\\times 10^5}", "300000", "5"),
    ("#### 1e5", "100000", "5"),
    ("#### -$18", "-18", "18"),
    ("\\boxed{x = 5}", "5", "6"),
    ("\\boxed{45^\\circ}", "45", "4"),
    ("\\boxed{50\\%}", "50", "5"),
    ("\\boxed{60 \\text{ km/h}}", "60", "6"),
    ("\\boxed{\\$20}", "20", "2"),
    ("#### 5 m", "5", "1"),
)


def test_a_marked_number_is_read_whole_or_not_at_all():
    with Grader("numeric") as grader:
        for text, right, wrong in NUMBERS:
            assert [one.reward for one in grader.grade([text, text], [right, wrong])] == [1, 0], text
        for text, gold in (
            ("\\boxed{2\\sqrt{3}}", "3"),
            ("\\boxed{10-4}", "-4"),
            ("\\boxed{5x}", "5"),
            ("\\boxed{1/0}", "1"),
        ):
            assert grader.grade([text], [gold])[0].reward == 0, text
        assert grader.grade(["It gives 7"], ["7"], [{"truncated": True}])[0].extracted is None


def test_numeric_and_exact():
    with Grader("numeric") as grader:
        texts = ["The answer is $1,234.", "we get 7 or 1234", "1234 then 7", "none", "#### 12340/10"]
        assert [grade.reward for grade in grader.grade(texts, ["1234"] * 5)] == [1, 1, 0, 0, 1]
        with pytest.raises(UserError, match="is not a number"):
            grader.grade(["1"], ["one"])
    with Grader("exact") as grader:
        assert [g.reward for g in grader.grade(["#### a  b", "a b", "\\boxed{a b}"], ["a b"] * 3)] == [1, 0, 1]
    assert final_answer("**Answer:** 12") == "12"


@pytest.mark.parametrize(
    "said", ["not 7", "6 or 7", "at least 7", "between 6 and 7", "7 and a half", "7 tenths", "half of 7"]
)
def test_a_number_that_is_not_settled_on_is_no_answer(said):
    with Grader("numeric") as grader:
        assert not grader.grade([f"We count 7. The answer is {said}."], ["7"])[0].correct
        assert grader.grade([f"The answer is {said}. No: the answer is 7."], ["7"])[0].correct


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("#### 12 apples", "12 apples", 1),
        ("#### The quick brown fox jumps over", "The quick brown fox jumps over", 1),
        ("So the answer is: **It is impossible**.", "It is impossible", 1),
        ("Answer: not possible\nDone", "not possible", 1),
        ("#### 12 apples or more", "12 apples", 0),
        ("Suppose the answer is 12 apples", "12 apples", 0),
        ("Answer: The Beatles. \\boxed{Queen}", "Queen", 1),
    ],
)
def test_exact_reads_a_marked_line_whole(text, gold, right):
    with Grader("exact") as grader:
        assert grader.grade([text], [gold])[0].reward == right


def test_unknown_graders_and_limits_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="choose math, boxed, exact, numeric"):
        Grader("maths", workers=0)
    with pytest.raises(UserError, match="no_such_module"):
        Grader("no_such_module:f")
    for number, (text, message) in enumerate(
        {
            "def grade(:": "line 1\n    def grade\\(:\n(?s:.*)SyntaxError",
            "from math import nothing": "line 1, in <module>\n    from math import nothing\nImportError",
            "1 / 0": "line 1, in <module>\n    1 / 0\nZeroDivisionError",
            "one = 1": "has no attribute 'grade'",
        }.items()
    ):
        (tmp_path / f"faulty_grader_{number}.py").write_text(f"{text}\n")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(UserError, match=message):
            Grader(f"faulty_grader_{number}:grade")
    with pytest.raises(UserError, match="seconds must be above 0"):
        Grader("exact", seconds=0.0)
    with Grader("exact") as grader, pytest.raises(UserError, match="the same length, not 2, 1 and 2"):
        grader.grade(["a", "b"], ["a"])


def test_a_grader_is_found_under_the_name_of_its_earlier_place():
    assert load("retarget.pope.tasks.chain:verify") is load("retarget.pope.studies.chain:verify")


def test_the_reward_for_trl_reads_messages_and_columns():
    reward = reward_function(Grader("graders_for_tests:faulty", workers=0))
    completions = [[{"role": "assistant", "content": "4"}], "5"]
    assert reward(prompts=["?", "?"], completions=completions, answer=["4", "4"], meta=["{}", '{"id": "x"}']) == [1, 0]
    assert reward.__name__ == "correct"


def test_solutions_that_the_grader_rejects_are_listed():
    good = Problem(id="a", prompt="?", solution="so \\boxed{4}", answer="4")
    bad = Problem(id="b", prompt="?", solution="4, no: \\boxed{5}", answer="4")
    with Grader("numeric") as grader:
        rejected = rejected_solutions([good, bad], grader)
    assert [(problem.id, grade.extracted) for problem, grade in rejected] == [("b", "5")]


def test_a_call_that_is_broken_off_leaves_nothing_for_the_next():
    with Grader("graders_for_tests:faulty", workers=2) as grader:
        assert grader.grade(["4"], ["4"])[0].correct
        with pytest.raises(TypeError):
            grader.grade(["4", "5"], ["4", "4"], [{}, {"not JSON": object()}])
        assert [one.extracted for one in grader.grade(["7", "8"], ["7", "9"])] == ["7 of None", "8 of None"]


def test_thinking_that_never_ends_holds_no_answer():
    open_block = "<think> perhaps \\boxed{4}, no, wait"
    assert final_answer(open_block) is None
    assert after_thinking("<think>1</think> 2 <think> 3") == ""
    for spec in ("math", "exact", "numeric"):
        with Grader(spec) as grader:
            (grade,) = grader.grade([open_block], ["4"])
        assert (grade.reward, grade.extracted, grade.status) == (0.0, None, "ok")


def test_no_text_makes_the_search_for_an_answer_slow():
    texts = [f"{'the answer is' * repeats}{space * 20_000}" for space in "\n :\t" for repeats in (1, 100)]
    with Grader("exact", seconds=5.0, workers=1) as grader:
        assert {one.status for one in grader.grade(texts, ["4"] * len(texts))} == {"ok"}
    assert final_answer("The final answer is:\n 12.") == "12"
    assert final_answer("#### 3\nthe answer = 4") == "4"


def test_a_worker_that_dies_while_idle_costs_nothing():
    with Grader("graders_for_tests:faulty", workers=1) as grader:
        grader.grade(["4"], ["4"])
        for rest in (b"", b"half an item"):
            worker = grader._pool[0]
            worker.process.kill()
            os.waitid(os.P_PID, worker.process.pid, os.WEXITED | os.WNOWAIT)
            worker.writer.write(rest)
            assert grader.grade(["4"], ["4"])[0].correct


def test_what_a_grader_started_ends_with_it(tmp_path):
    with Grader("graders_for_tests:forking", seconds=2.0, workers=1) as grader:
        assert grader.grade(["x"], [str(tmp_path / "child")])[0].status == "timeout"
    state = Path("/proc", (tmp_path / "child").read_text(), "stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_only_what_the_grader_can_say_makes_a_label_broken():
    problems = [
        Problem(id=text, prompt="?", solution=text, answer="4") for text in ("4", "5", "hang", "die", "raise", "4 4")
    ]
    with Grader("graders_for_tests:faulty", seconds=1.0, workers=1) as grader:
        rejected = rejected_solutions(problems, grader)
    assert [(problem.id, grade.status) for problem, grade in rejected] == [
        ("5", "ok"),
        ("raise", "error"),
        ("4 4", "ok"),
    ]
    words = [Problem(id=answer, prompt="?", answer=answer) for answer in ("one", "2")]
    words.append(Problem(id="three", prompt="?", solution="#### three", answer="three"))
    assert [problem.id for problem, _ in rejected_solutions(words, Grader("numeric"))] == ["one", "three"]
    cut = [Problem(id=answer, prompt="?", answer=answer) for answer in ("\\frac{1", "...", "?", "\\frac{1}{2}")]
    with Grader("math") as grader:
        assert [problem.id for problem, _ in rejected_solutions(cut, grader)] == ["\\frac{1", "...", "?"]


def test_a_file_in_the_working_directory_is_never_taken_for_a_package(tmp_path, monkeypatch):
    for name in ("math_verify.py", "sympy.py", "json.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w'); raise SystemExit")
    (tmp_path / "my_grader.py").write_text("import math_verify\ndef grade(text, answer, meta): return text == answer\n")
    monkeypatch.chdir(tmp_path)
    for front in ("", str(tmp_path)):  # as `python -m` puts it
        monkeypatch.setattr(sys, "path", [front, *sys.path])
        with Grader("math") as grader:
            assert grader.grade(["#### 4"], ["4"])[0].correct
        with Grader("my_grader:grade") as grader:  # what a user names is found there, after everything else
            assert grader.grade(["4"], ["4"])[0].correct
    assert not (tmp_path / "ran").exists()


PARENT = """
import sys
from retarget.pope.grading import Grader
sys.path.append({folder!r})
grader = Grader("graders_for_tests:faulty", workers=1, seconds=60)
grader.start()
print(grader._pool[0].process.pid, flush=True)
grader.grade(["hang"], ["4"])
"""


def test_a_grader_ends_with_its_parent(request):
    code = PARENT.format(folder=str(request.path.parent))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        watched = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        ready, _, _ = select.select([watched], [], [], 30)
        os.close(watched)
    assert ready, "the worker outlived its parent"


@pytest.mark.parametrize("spec", ["math", "boxed"])
def test_a_workers_first_item_does_not_wait_for_imports(spec):
    code = (
        "import os, sys; from retarget.pope.grading_worker import main\n"
        f"sys.argv = ['worker', '{spec}', '2048', str(os.getppid())]; main()\n"
        "print('math_verify' in sys.modules, 'sympy' in sys.modules)"  # main leaves the output to stderr
    )
    done = subprocess.run([sys.executable, "-c", code], input="", capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr.splitlines()[-1]) == ('{"ready": true}\n', "True True")


def test_a_worker_bounds_its_own_processor_time(request):
    command = [sys.executable, "-P", "-m", "retarget.pope.grading_worker", "graders_for_tests:faulty", "512"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(request.path.parent), *sys.path])}
    process = subprocess.Popen([*command, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, env=environment, text=True)  # fmt: skip
    out, _ = process.communicate('["hang", "4", {}, 0.5]\n', timeout=900)
    assert (out, process.returncode) == ('{"ready": true}\n', -signal.SIGXCPU)
