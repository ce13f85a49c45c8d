import pytest

from retarget.errors import UserError
from retarget.pope.grading import Grader, rejected_solutions
from retarget.pope.options import right_options
from retarget.pope.prefixes import leak
from retarget.pope.problems import Problem, parse_row, read_problems, write_problems
from retarget.pope.search import clean_cuts, cut_points

FILL = " Then we look at each of the parts." * 8


@pytest.mark.parametrize(
    ("options", "answer", "letter"),
    [
        (["a", None, "c", "d"], 2, "C"),
        (["a", float("nan"), "c", "d"], 3, "D"),
        (["w", "x", "z"], 1.0, "B"),
        (["w", "x", "z"], [0, 2], "A, C"),
        (["w", "x", "z"], ["w", "z"], "A, C"),
        (["w", "x", "z"], ["A", "C"], "A, C"),
        (["w", "x", "z"], "A, C", "A, C"),
        (["w", "x", "z"], "AC", "AC"),
        ([10, 20, 30], 20, "B"),
        ([10, 20, 30], "20", "B"),
        (["A. Red", "B. Blue"], "Blue", "B"),
        (["A. Red", "B. Blue"], "B. Blue", "B"),
        (["Red ", "Blue"], "Red", "A"),
        (["Red", "Blue"], "blue", "B"),
        (["Red", "Blue"], "(B)", "B"),
        (["Red", "Blue"], "b", "B"),
        (["Red", "Blue"], "B) Blue", "B"),
        (["b", "a"], "a", "B"),
        (["AB", "BC", "AC"], "AC", "C"),
        ({"1": "Rome", "2": "Paris"}, "2", "2"),
        (["4", "5"], "So it is 5.\n#### 5", "B"),
    ],
)
def test_the_answer_becomes_the_letter_of_its_option(options, answer, letter):
    row = {"question": "Which?", "options": options, "answer": answer, "solution": "Look at each."}
    assert parse_row(row).answer == letter


@pytest.mark.parametrize(
    ("options", "answer", "message"),
    [
        (["w", "x", "z"], "1", r"'1' is none of the options A\) w, B\) x, C\) z: give the letter"),
        (["w", "x"], 2, "'2' is none of the options"),
        (["w", "x"], -1, "'-1' is none of the options"),
        (["w", None, "x"], 1, "'1' is none of the options"),
        (["w", "x"], "y", "'y' is none of the options"),
        (["w", "x"], ["w", "y"], "'y' is none of the options"),
        (["x", "x", "y"], "x", "'x' is the text of several of the options"),
        ({"1": "Rome", "2": "Paris"}, 1, "may be the option of that number or of that text"),
        (["w", "x"], "N/A", "no final answer"),
    ],
)
def test_an_answer_that_is_no_option_is_refused(options, answer, message):
    with pytest.raises(UserError, match=message):
        parse_row({"question": "Which?", "options": options, "answer": answer})


@pytest.mark.parametrize("options", [[None, None], {"text": [], "label": []}, []])
def test_a_question_whose_options_are_all_missing_has_none(options):
    found = parse_row({"question": "How many?", "options": options, "answer": "5"})
    assert (found.prompt, found.answer) == ("How many?", "5")


@pytest.mark.parametrize("piece", ["$", "\\a{", "**", ".", " ", "\n", "(A", "A)", "\\quad", "yes "])
def test_questions_and_solutions_of_any_form_are_read_in_time(piece):
    text = f"Which?\n(A) {piece * 20_000}\n(B) 12"
    assert right_options(text, "B")[1] in (["12"], [])
    leak(Problem(id="p", prompt=text, solution=f"See. {text}", answer=f"{'yes ' * 2000}="), 5)


@pytest.mark.parametrize(
    ("question", "answer", "texts"),
    [
        ("Which?\nA) red\nB) blue", "B", ["blue"]),
        ("Which?\nA. Red x.\n(B) Blue", "A, B", ["Red x", "Blue"]),
        ("Which?\nA) a\nC) c\nD) dd", "D", ["dd"]),
        ("Which?\n**A.** 15 km\n**B.** 18 km", "(B)", ["18 km"]),
        ("Which?\n1) Rome\n2) Paris", "2", ["Paris"]),
        ("Compute x. (A) 12 (B) $1345$ (C) 18", "B", ["1345"]),
        ("Compute x. (A) 12 (B) 1345 (C) 18", "1345", ["1345"]),
        ("Find. $\\mathrm{(A) \\ } 2 \\qquad \\mathrm{(B) \\ } 41$", "B", ["41"]),
        ("Find. $\\text{A) }112\\qquad\\text{B) }13 \\text{ km}$", "\\text{(B)}", ["13  km"]),
        ("Of (A) and (B), find x.", "5", []),
        ("Of a point A. Then (B) moves.", "B", []),
        ("Which?\nA) red\nB)", "B", []),
    ],
)
def test_the_right_option_is_read_from_the_question(question, answer, texts):
    assert right_options(question, answer)[1] == texts


@pytest.mark.parametrize("row", [
    {"question": "How far?", "choices": ["12 km", "15 km", "18 km"], "answer": "C"},
    {"question": "How far?", "choices": ["12 km", "15 km", "18 km"], "answer": "18 km"},
    {"question": "How far? (A) 12 km (B) 15 km (C) 18 km", "answer": "C"},
    {"question": "How far? (A) 12 km (B) 15 km (C) 18 km", "answer": "18 km"},
])  # fmt: skip
@pytest.mark.parametrize("first", ["The answer is 18 km.", "It is $18$ km to the sea."])
def test_a_prefix_that_states_the_text_of_the_right_option_leaks(row, first, tmp_path):
    problem = parse_row({**row, "solution": f"{first}{FILL} So the answer is C."})
    write_problems(tmp_path / "p.jsonl", [problem])
    for one in (problem, *read_problems(tmp_path / "p.jsonl", answer_in_solution=False)):
        assert leak(one, len(first)).statement == first


def test_a_short_option_or_one_that_the_question_tells_of_leaks_only_where_it_is_announced():
    for first, told in (("There are 12 of us.", False), ("The answer is 12.", True)):
        row = {"question": "How many?", "choices": ["12", "15"], "answer": 0, "solution": f"{first}{FILL} Choose A."}
        assert (leak(parse_row(row), len(first)) is not None) == told
    for first, told in (("Some are red.", False), ("The answer is red.", True)):
        row = {"question": "Red or blue balls?", "choices": ["Red", "Blue"], "answer": 0}
        assert (leak(parse_row({**row, "solution": f"{first}{FILL} Choose A."}), len(first)) is not None) == told


def test_an_option_in_another_form_is_found_by_the_grader():
    solution = f"The answer is 0.5.{FILL} So the answer is B."
    problem = parse_row({"question": "Which?", "choices": ["1/3", "1/2"], "answer": 1, "solution": solution})
    places = {problem.id: cut_points(solution, 4, 0.5)}
    assert leak(problem, len("The answer is 0.5.")) is None
    with Grader("math") as grader:
        assert clean_cuts([problem], places, grader) == {problem.id: []}


def test_a_solution_that_ends_with_the_right_options_text_has_a_right_label():
    gases = {"question": "Which?", "choices": ["Oxygen", "Carbon dioxide", "Nitrogen"], "answer": 1}
    rows = [
        {**gases, "solution": "Plants need it. The correct answer is Carbon dioxide."},
        {"question": "Which?", "choices": ["10", "20"], "answer": 1, "solution": "So \\boxed{20}."},
        {**gases, "solution": "Plants need it. The correct answer is Nitrogen."},
        {"question": "Which?", "choices": ["10", "20"], "answer": 1, "solution": "So \\boxed{10}."},
    ]
    problems = [parse_row({**row, "id": str(at)}) for at, row in enumerate(rows)]
    with Grader("math") as grader:
        assert [one.id for one, _ in rejected_solutions(problems, grader)] == ["2", "3"]


@pytest.mark.parametrize(
    ("label", "first"),
    [
        ("yes", "Yes."), ("Yes", "yes, it exists."), ("NO", "No such number exists."),
        ("True", "The statement is true."), ("\\text{Alice}", "Alice wins."),
        ("Carbon dioxide", "It is carbon dioxide."),
        ("12\\text{ km}", "It takes 12 km."), ("\\textbf{Yes}", "**Yes**, as we show."),
    ],
)  # fmt: skip
def test_words_state_the_answer_in_capital_and_small_letters_and_without_text(label, first):
    problem = Problem(id="p", prompt="Is it so?", solution=f"{first}{FILL} So \\boxed{{{label}}}.", answer=label)
    assert leak(problem, len(first)).statement == first


def test_a_word_within_another_and_a_no_within_a_sentence_state_nothing():
    for label, first in (("no", "There is no other root, so we can reduce it."), ("red", "We reduce it as required.")):
        problem = Problem(id="p", prompt="?", solution=f"{first}{FILL} So the answer is {label}.", answer=label)
        assert leak(problem, len(first)) is None


def test_both_verdicts_that_a_question_offers_state_the_answer_as_a_sentence():
    problem = Problem(id="p", prompt="True or False?", solution=f"Add. False, as we see.{FILL} Done.", answer="False")
    assert leak(problem, 4) is None
    assert leak(problem, 10).statement == "False, as we see."
