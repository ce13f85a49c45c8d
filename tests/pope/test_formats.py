import json

import pytest

from retarget.errors import UserError
from retarget.pope.formats import normalised
from retarget.pope.prefixes import leak
from retarget.pope.problems import parse_row, read_problems

WORKED = "Two and two.\n#### 1,204"


@pytest.mark.parametrize("empty", [{}, {"solution": ""}, {"solution": None}])
def test_gsm8k_is_known_beside_an_empty_column_for_solutions(empty):
    kind, found = normalised({"question": "How many?", "answer": WORKED} | empty, "auto")
    assert (kind, found["answer"], found["solution"]) == ("gsm8k", "1204", WORKED)


def test_a_worked_text_in_the_field_for_the_answer_gives_its_last_line():
    kind, found = normalised({"question": "How many?", "answer": WORKED, "solution": "Count."}, "auto")
    assert (kind, found["answer"], found["solution"]) == ("set", "1204", "Count.")


@pytest.mark.parametrize(
    ("line", "answer"),
    [("1,204", "1204"), ("$1,234,567.5", "$1234567.5"), ("(1,2)", "(1,2)"), ("3, 4", "3, 4"), ("1,5", "1,5")],
)
def test_only_the_commas_of_thousands_are_taken_out_of_a_last_line(line, answer):
    assert normalised({"question": "?", "answer": f"So.\n#### {line}"}, "auto")[1]["answer"] == answer


def test_nulls_of_a_table_stand_for_missing_fields():
    found = parse_row({"id": "a", "prompt": "?", "answer": "5", "solution": None, "meta": None})
    assert (found.solution, found.meta) == ("", {})
    assert parse_row({"problem": "?", "answer": "5", "year": float("nan"), "level": None}).meta == {}


@pytest.mark.parametrize("options", [{"A": "1", "B": "2", "C": None}, [1, 2], {"A": 1, "B": 2.0, "C": float("nan")}])
def test_options_that_are_missing_are_left_out_and_numbers_become_text(options):
    found = parse_row({"problem": "Which?", "options": options, "answer": "B"})
    assert (found.prompt, found.answer) == ("Which?\nA) 1\nB) 2", "B")


def test_a_row_that_cannot_be_read_says_what_to_do():
    with pytest.raises(UserError, match="source: Extra inputs are not permitted; --format set reads rows with other"):
        parse_row({"prompt": "?", "answer": "5", "source": "web"})
    row = {"problem": "?", "expected_answer": "5", "generated_solution": "So 5.", "pass_rate": "0.5"}
    with pytest.raises(UserError, match="--fields answer=expected_answer solution=generated_solution"):
        parse_row(row)
    fields = {"answer": "expected_answer", "solution": "generated_solution"}
    assert parse_row(row, fields=fields).answer == "5"
    with pytest.raises(UserError, match=r"--fields answer=FIELD solution=FIELD \(fields: problem, text\)"):
        parse_row({"problem": "?", "text": "So 5."})


def test_copies_of_a_row_are_one_problem(tmp_path, caplog):
    rows = [{"problem": f"{at % 3}?", "answer": str(at % 3), "index": at} for at in range(9)]
    rows[7]["solution"] = "It is 1."
    path = tmp_path / "dapo.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_problems(path, solutions="optional")
    assert [(one.prompt, one.solution) for one in found] == [("0?", ""), ("1?", "It is 1."), ("2?", "")]
    assert "dapo.jsonl: rows left out because they have the question and the answer of an earlier row: 6" in caplog.text
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:2], {"problem": "0?", "answer": "7"}]))
    assert [one.answer for one in read_problems(path, solutions="optional")] == ["0", "1", "7"]


@pytest.mark.parametrize(
    ("truth", "answer"), [('["4"]', "4"), ('["$4$", "5"]', "4, 5"), ("\\boxed{4}", "4"), ("[1, 2]", "[1, 2]")]
)
def test_an_answer_in_a_list_or_a_box_is_that_answer_and_its_statement_a_leak(truth, answer):
    row = {"prompt": [{"role": "user", "content": "?"}], "reward_model": {"ground_truth": truth}}
    problem = parse_row({**row, "solution": f"Add. So the answer is {answer}. Now check that this is so."})
    assert problem.answer == answer
    assert leak(problem, 30) is not None


def test_a_message_in_parts_is_their_text_and_an_image_is_refused():
    parts = [{"type": "text", "text": "1 + 1?"}, {"type": "text", "text": "In words."}]
    assert parse_row({"prompt": [{"role": "user", "content": parts}], "answer": "2"}).prompt == "1 + 1?\nIn words."
    with pytest.raises(UserError, match="parts that are not text"):
        parse_row({"prompt": [{"role": "user", "content": [*parts, {"type": "image"}]}], "answer": "2"})
