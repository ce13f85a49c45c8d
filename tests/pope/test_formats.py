import json
from decimal import Decimal

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
    with pytest.raises(UserError, match=r"there is no source; --format set \(in a study, --set format=set\) reads"):
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


def test_a_row_with_too_long_a_prompt_gives_its_copies_no_solution_of_others(tmp_path):
    long = {"problem": " ".join("a" * 30), "answer": "5"}
    rows = [long, {"problem": "B?", "answer": "9"}, {**long, "solution": "Solution of A. It is 5."}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_problems(tmp_path / "p.jsonl", solutions="optional", max_prompt_length=20, skip_invalid=True)
    assert [(one.prompt, one.solution) for one in found] == [("B?", "")]
    assert len((tmp_path / "p.jsonl.rejects.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("shown", [
    {"image": "b64"}, {"images": ["x"]}, {"image_1": {"bytes": "x"}}, {"Image": "x.png"}, {"modality": "Multimodal"},
])  # fmt: skip
def test_a_row_with_an_image_is_refused(shown):
    with pytest.raises(UserError, match=r"the question has an image, .*: leave it out"):
        parse_row({"question": "How long?", "answer": "5"} | shown)
    nothing = {"image": None, "images": [], "image_1": float("nan"), "image_2": "", "modality": "Text-only"}
    assert parse_row({"question": "How long?", "answer": "5"} | nothing).answer == "5"


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


@pytest.mark.parametrize("answer", ["N/A", "null", "nan", "See solution", "unknown", " Not found "])
@pytest.mark.parametrize("name", ["prompt", "problem"])
def test_what_tables_write_for_no_answer_is_none(answer, name):
    with pytest.raises(UserError, match="no final answer"):
        parse_row({name: "?", "answer": answer})


def test_a_null_answer_is_told_from_a_missing_one():
    with pytest.raises(UserError, match=r"no final answer in .*, and the field 'answer' is empty"):
        parse_row({"problem": "?", "solution": "So.", "answer": None})
    with pytest.raises(UserError, match=r"no final answer in .*, and there is no field 'answer'"):
        parse_row({"problem": "?", "solution": "So."})
    messages = [{"role": "user", "content": "?"}]
    with pytest.raises(UserError, match="a list of objects, such as messages"):
        parse_row({"messages": messages}, fields={"prompt": "messages", "answer": "messages"})


def test_a_prompt_of_several_turns_is_refused_and_a_system_message_told(caplog):
    system, user = {"role": "system", "content": "Answer in base 8."}, {"role": "user", "content": "What is 3+5?"}
    turns = [{"role": "user", "content": "Let x=3."}, {"role": "assistant", "content": "Noted."}, user]
    for prompt in (turns, json.dumps(turns), [*turns[:1], user]):
        with pytest.raises(UserError, match="messages, of which only one of the user is read"):
            parse_row({"prompt": prompt, "answer": "10"})
    assert parse_row({"prompt": json.dumps([user]), "answer": "10"}).prompt == "What is 3+5?"
    assert not caplog.text
    for _ in range(2):
        assert parse_row({"prompt": [system, user], "answer": "10"}).prompt == "What is 3+5?"
    assert caplog.text.count("system message is left out") == caplog.text.count("Answer in base 8.") == 1


def test_names_in_other_letters_and_numbers_of_tables_are_read():
    row = {"ID": "2024-I-1", "Problem": "How long?", "Solution": "It is 204.", "Answer": Decimal("204.0")}
    found = parse_row(row)
    assert (found.id, found.prompt, found.solution, found.answer) == ("2024-I-1", "How long?", "It is 204.", "204")
    assert parse_row({"prompt": "?", "answer": Decimal("0.50")}).answer == "0.5"


def test_a_json_file_of_one_object_on_several_lines(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps({"prompt": "?", "answer": "5"}, indent=1))
    assert [one.answer for one in read_problems(tmp_path / "one.json", solutions="optional")] == ["5"]
    (tmp_path / "two.json").write_text('{"prompt": "a?", "answer": "5"}\n{"prompt": "b?", "answer": "6"}\n')
    assert [one.answer for one in read_problems(tmp_path / "two.json", solutions="optional")] == ["5", "6"]


@pytest.mark.parametrize("said", ["No", "no", "Incomplete", "Problem not solved", False])
@pytest.mark.parametrize("name", ["problem_is_valid", "solution_is_valid"])
def test_a_row_that_its_set_calls_invalid_is_left_out(name, said, tmp_path, caplog):
    row = {
        "problem": "1 + 1?",
        "solution": "It is 2.",
        "answer": "2",
        "problem_is_valid": "Yes",
        "solution_is_valid": "Yes",
    }
    path = tmp_path / "numina.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (row, {**row, "problem": "1 + 2?", name: said})))
    with pytest.raises(UserError, match=f"line 2: field '{name}' says {said!r}: .* leave it out"):
        read_problems(path)
    assert [one.prompt for one in read_problems(path, skip_invalid=True)] == ["1 + 1?"]
    assert "1 of 2 rows left out" in caplog.text
    assert parse_row({**row, name: None}).answer == parse_row({**row, name: True}).answer == "2"
