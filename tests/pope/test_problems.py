import gzip
import json
import re

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from retarget.errors import UserError
from retarget.pope.boxes import last_boxed
from retarget.pope.export import export
from retarget.pope.mixture import mix, write_rows
from retarget.pope.problems import Problem, find_answer, parse_row, read_problems, write_problems

GOOD = {"id": "a", "prompt": "2 + 2?", "solution": "2 + 2 = 4", "answer": "4"}


def lines(path, *rows):
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n")
    return path


def test_every_fault_is_reported_with_its_line(tmp_path, caplog):
    path = lines(
        tmp_path / "p.jsonl",
        GOOD,
        b"",
        {**GOOD, "id": "a"},
        {**GOOD, "id": "c", "solution": " "},
        {**GOOD, "id": "d", "solution": "2 + 2 = 14"},
        b'{"id": "e", "prompt": "\xff"}',
        b"{not json",
        {**GOOD, "id": "f", "prompt": "one two three four five six"},
        {**GOOD, "id": "g", "extra": 1},
        {"id": "h", "prompt": "?", "solution": "4"},
        [1],
    )
    with pytest.raises(UserError) as caught:
        read_problems(path, max_prompt_length=5)
    message = str(caught.value)
    for expected in (
        "9 of 10 rows",
        "line 3: id 'a' is already used in line 1",
        "line 4: the solution is empty",
        "line 5: the solution does not contain the answer '4'",
        "line 6: not UTF-8 at byte 23",
        "line 7: not JSON",
        "line 8: the prompt has 6 tokens, the limit is 5",
        "line 9: there is no extra; --format set",
        "line 10: no field holds the answer",
        "line 11: a problem must be a JSON object",
    ):
        assert expected in message
    assert not (tmp_path / "p.jsonl.rejects.jsonl").exists()

    assert [p.id for p in read_problems(path, max_prompt_length=5, skip_invalid=True)] == ["a"]
    assert "9 of 10 rows left out" in caplog.text
    rejects = [json.loads(line) for line in (tmp_path / "p.jsonl.rejects.jsonl").read_text().splitlines()]
    assert [one["line"] for one in rejects] == [3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert rejects[3]["text"] == '{"id": "e", "prompt": "\\xff"}'


def test_all_sources_give_the_same_problems(tmp_path):
    rows = [GOOD, {**GOOD, "id": "b", "prompt": "line separator \u2028 inside"}]
    plain = lines(tmp_path / "p.jsonl", *rows)
    expected = read_problems(plain)
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "dict"))
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (tmp_path / "lines.json").write_bytes(plain.read_bytes())
    (tmp_path / "z.json.gz").write_bytes(gzip.compress((tmp_path / "array.json").read_bytes()))
    for name in ("z.jsonl.gz", "p.parquet", "saved", "dict", "array.json", "lines.json", "z.json.gz"):
        assert read_problems(tmp_path / name) == expected
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        read_problems(tmp_path / "dict", split="test")
    write_problems(tmp_path / "again.jsonl", expected)
    assert read_problems(tmp_path / "again.jsonl") == expected


def test_gsm8k_and_math_formats(tmp_path):
    gsm8k = {"question": "How many?", "answer": "500 * 2 = <<500*2=1000>>1,000 in all.\n#### 1,000"}
    math = {"problem": "Half?", "solution": "It is $\\boxed{\\frac{1}{2}}$.", "level": "Level 5", "id": 3}
    found = read_problems(lines(tmp_path / "p.jsonl", gsm8k, math))
    assert found[0] == Problem(
        id="gsm8k-ba352e24c64c", prompt="How many?", solution="500 * 2 = 1,000 in all.\n#### 1,000", answer="1000"
    )
    assert found[0].former == "gsm8k-1"
    assert (found[1].id, found[1].answer, found[1].meta) == ("3", "\\frac{1}{2}", {"level": "Level 5"})
    with pytest.raises(UserError, match=r"line 1: .* no final answer in \\boxed"):
        read_problems(lines(tmp_path / "q.jsonl", {"problem": "?", "solution": "\\boxed{1"}))
    with pytest.raises(UserError, match="no final answer after ####"):
        read_problems(lines(tmp_path / "q.jsonl", {"question": "?", "answer": "1"}), "gsm8k")


def test_optional_solutions_and_missing_files(tmp_path):
    path = lines(tmp_path / "p.jsonl", {**GOOD, "solution": ""})
    assert read_problems(path, solutions="optional")[0].solution == ""
    with pytest.raises(UserError, match="no such file"):
        read_problems(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"must end in \.jsonl"):
        read_problems(lines(tmp_path / "p.txt", GOOD))
    with pytest.raises(UserError, match="no valid problem"):
        read_problems(lines(tmp_path / "empty.jsonl"))


@pytest.mark.parametrize(
    ("text", "answer", "places"),
    [
        ("15, 5, 5.2, x5, 5", "5", [4, 16]),
        ("-3 and 3", "3", [7]),
        ("1,200", "1200", [0]),
        ("1,005 or 5", "5", [9]),
        ("ab", "", []),
    ],
)
def test_an_answer_is_found_as_a_whole_token(text, answer, places):
    assert list(find_answer(text, answer)) == places


def test_boxed_takes_the_last_and_balances_braces():
    assert last_boxed("\\boxed{1} \\boxed{a_{2}^{3}} end}") == "a_{2}^{3}"
    assert last_boxed("\\boxed{1") is None
    assert last_boxed("none") is None
    assert last_boxed("\\boxed{\\left\\{x\\right.} and }") == "\\left\\{x\\right."
    assert last_boxed("\\boxed{a\\\\{b}} and }") == "a\\\\{b}"  # a line break, then a group
    assert last_boxed("it is $\\boxed 2$.") == "2"


SETS = {
    "AIME": (
        {"id": 60, "problem": "Find x.", "question": "Find x.", "solution": "Add.", "answer": "204"},
        ("60", "Find x.", "Add.", "204"),
    ),
    "OlympiadBench": (
        {"id": 1606, "question": "Find all x.", "context": "Let x be real.", "solution": ["Try.", "Or so."],
         "final_answer": ["$3$", "$-3$"], "is_multiple_answer": True, "unit": None},
        ("1606", "Let x be real.\n\nFind all x.", "Try.", "3, -3"),
    ),
    "Omni-MATH": (
        {"problem": "How many?", "solution": "We count \\boxed{3} and \\boxed{4}.", "answer": "7",
         "domain": ["Algebra"], "difficulty": 6.5},
        ("set-b0a09ba4df21", "How many?", "We count \\boxed{3} and \\boxed{4}.", "7"),
    ),
    "MATH-500": (
        {"problem": "Half?", "solution": "So \\boxed{0.5}.", "answer": "\\frac12", "subject": "Algebra", "level": 2,
         "unique_id": "test/algebra/1.json"},
        ("test/algebra/1.json", "Half?", "So \\boxed{0.5}.", "\\frac12"),
    ),
    "the authors' hard set": (
        {"problem": "Hard?", "answer": 12, "gemini_solution": "So."}, ("set-2", "Hard?", "So.", "12"),
    ),
    "verl": (
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "Hard?"}], "data_source": "x",
         "reward_model": {"ground_truth": "12"}, "extra_info": {"level": "hard-without-guidance"}},
        ("set-1", "Hard?", "", "12"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_public_sets_are_read_as_they_come(tmp_path, name):
    row, (identity, prompt, solution, answer) = SETS[name]
    (found,) = read_problems(lines(tmp_path / "p.jsonl", row), solutions="optional")
    assert (found.prompt, found.solution, found.answer) == (prompt, solution, answer)
    assert found.id == identity or re.fullmatch(r"set-[0-9a-f]{12}", found.id)
    assert {key: row[key] for key in ("level", "domain", "difficulty") if key in row}.items() <= found.meta.items()


def test_fields_are_named_by_the_user_and_a_missing_one_says_how(tmp_path):
    rows = [{"q": f"How many {at}?", "a": {"final": "7"}, "worked": "So 7."} for at in range(30)]
    path = lines(tmp_path / "p.jsonl", *rows)
    fields = {"prompt": "q", "answer": "a.final", "solution": "worked"}
    found = read_problems(path, fields=fields)
    assert (found[3].prompt, found[3].answer, found[3].solution) == ("How many 3?", "7", "So 7.")
    with pytest.raises(UserError) as caught:
        read_problems(path, fields={**fields, "answer": "final"})
    assert "lines 1, 2, 3, 4, 5 and 25 more: no field holds the answer: name one with --fields answer=FIELD" in str(
        caught.value
    )
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(
        UserError, match=r"no row has a value in the field of solution=workd, id=uid; its first row has q, "
    ):
        read_problems(path, fields={**fields, "solution": "workd", "id": "uid"}, solutions="optional")
    with pytest.raises(UserError, match="--fields: no field promt; choose from id, prompt, answer, solution"):
        read_problems(path, fields={"promt": "q"})
    guided = {"problem": "?", "answer": "1", "level": "hard_with_guidance"}
    with pytest.raises(UserError, match="this row is a guided variant of a problem"):
        read_problems(lines(tmp_path / "g.jsonl", guided))


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"answer": 2}, "2"),
        ({"answer": 51.0, "solution": "It is 51."}, "51"),
        ({"answer": 0.125, "solution": "So 0.125."}, "0.125"),
        ({"answer": ["2", "-2"], "solution": "So \\boxed{2,-2}."}, "2, -2"),
        ({"answer": "\\frac{1}{3}", "solution": "So \\boxed{\\dfrac{1}{3}}."}, "\\frac{1}{3}"),
        ({"answer": "7", "solution": "先数：3。再加4。所以一共有7个。"}, "7"),
        ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "2 + 2?"}], "answer": "2"}, "2"),
    ],
)
def test_answers_and_prompts_in_the_forms_that_own_files_have(row, answer, tmp_path):
    whole = {"id": "a", "prompt": "2 + 2?", "solution": "It is 2."} | row
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(tmp_path / "p.jsonl", whole).read_bytes())  # as Windows' editors save it
    (found,) = read_problems(path)
    assert (found.answer, found.prompt) == (answer, "2 + 2?")


def test_what_is_offered_for_choice_belongs_to_the_question(tmp_path):
    row = {"question": "Which?", "options": ["red", "B) blue"], "answer": "B"}
    (found,) = read_problems(lines(tmp_path / "p.jsonl", row), solutions="optional")
    assert found.prompt == "Which?\nA) red\nB) blue"


@pytest.mark.parametrize(
    "row",
    [
        {"choices": ["Rome", "Paris"], "answer": 1},  # MMLU
        {"choices": {"text": ["Rome", "Paris"], "label": ["A", "B"]}, "answerKey": "B"},  # ARC
        {"options": {"A": "Rome", "B": "Paris"}, "answer": "Paris", "answer_idx": "B"},  # MedQA
        {"options": ["Rome", "Paris"], "answer": "Paris"},
    ],
)
def test_every_form_of_options_gives_letters(tmp_path, row):
    (found,) = read_problems(lines(tmp_path / "p.jsonl", {"question": "Capital?"} | row), solutions="optional")
    assert (found.prompt, found.answer) == ("Capital?\nA) Rome\nB) Paris", "B")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["1", "0"], "answer": 0}, "may be the option of that number or of that text"),
        ({"options": [1, 2], "answer": 1}, "may be the option of that number or of that text"),
        ({"options": [[1], [2]], "answer": 1}, "the options cannot be read"),
        ({"answer": "proof"}, "no final answer, only 'proof'"),
        ({"answer": "notfound"}, "no final answer"),
    ],
)
def test_rows_without_one_sure_answer_are_left_out_by_name(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        read_problems(lines(tmp_path / "p.jsonl", {"problem": "Which?"} | row), solutions="optional")


def test_rows_of_other_fields_say_how_to_name_them(tmp_path):
    row = {"ID": "chal-1", "Body": "A pack costs 76.", "Answer": 51.0}
    path = lines(tmp_path / "p.jsonl", row)
    with pytest.raises(UserError, match=r"no field holds the prompt: name one with --fields prompt=FIELD \(fields: ID"):
        read_problems(path)
    fields = {"id": "ID", "prompt": "Body", "answer": "Answer"}
    (found,) = read_problems(path, fields=fields, solutions="optional")
    assert (found.id, found.answer) == ("chal-1", "51")


def test_ids_are_of_the_prompt_and_a_question_asked_twice_has_two(tmp_path, caplog):
    rows = [{"question": "?", "answer": f"So.\n#### {at}"} for at in range(3)]
    found = read_problems(lines(tmp_path / "p.jsonl", *rows))
    assert "p.jsonl: 2 rows repeat the question of an earlier row" in caplog.text
    assert [one.id for one in found] == [found[0].id, f"{found[0].id}_2", f"{found[0].id}_3"]
    shard = read_problems(lines(tmp_path / "q.jsonl", {"question": "??", "answer": "#### 1"}, rows[0]))
    assert shard[1].id == found[0].id != shard[0].id


def test_hostile_lines_cost_their_own_row_only(tmp_path, caplog):
    hostile = [b"[" * 100_000, b'{"id": "n", "prompt": "?", "answer": "4", "meta": {"n": ' + b"9" * 5000 + b"}}",
               {**GOOD, "id": "b", "meta": {"x": float("nan")}}, b'{"id": "s", "prompt": "\\ud835", "answer": "4"}',
               b"\xff\xfe"]  # fmt: skip
    path = lines(tmp_path / "p.jsonl", GOOD, *hostile)
    assert [one.id for one in read_problems(path, skip_invalid=True, write_rejects=False)] == ["a"]
    assert not (tmp_path / "p.jsonl.rejects.jsonl").exists()
    read_problems(path, skip_invalid=True)
    rejects = [json.loads(line) for line in (tmp_path / "p.jsonl.rejects.jsonl").read_text().splitlines()]
    assert [one["line"] for one in rejects] == [2, 3, 4, 5, 6]
    broken = {
        "z.jsonl.gz": gzip.compress(b"{}")[:-4], "y.jsonl.gz": b"{}", "p.parquet": b"PAR1", "cut.json": b'[{"id": "a"',
        "deep.json": b"[" * 100_000, "latin.json": b'["\xff"]',
    }  # fmt: skip
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"cannot be (read|parsed)"):
            read_problems(tmp_path / name)


def test_rows_to_train_on_are_no_problems(tmp_path):
    made = mix([Problem(id="p", prompt="2 + 2?", solution="Add. So 4.", answer="4")], {"p": "Add."})
    export(made, "verl", tmp_path / "v.parquet")
    export(made, "openrlhf", tmp_path / "o.jsonl")
    write_rows(tmp_path / "rows.parquet", made)
    for name in ("v.parquet", "o.jsonl", "rows.parquet"):
        with pytest.raises(UserError, match="this is a row to train on"):
            read_problems(tmp_path / name)


@pytest.mark.parametrize("solution", ["204", "$204$", "\\boxed{204}", " \n"])
def test_a_solution_that_is_only_the_answer_is_none(solution):
    for row in ({"problem": "?", "answer": "204"}, {"problem": "?", "answer": 204},
                {"id": "p", "prompt": "?", "answer": "204"}):  # fmt: skip
        assert parse_row(row | {"solution": solution}).solution.strip() == ""
    assert parse_row({"problem": "?", "answer": "204", "solution": "So 204"}).solution == "So 204"


def test_an_answer_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="the answer is nan, which is no answer"):
        parse_row({"problem": "?", "answer": float("nan")})


def test_half_a_surrogate_is_written_as_a_mark(tmp_path):
    (problem,) = read_problems(lines(tmp_path / "p.jsonl", {**GOOD, "meta": {"source": "\ud835"}}))
    write_problems(tmp_path / "q.jsonl", [problem])
    assert read_problems(tmp_path / "q.jsonl")[0].meta["source"] != ""


@pytest.mark.parametrize("solution", ["<think>So \\boxed{5}?</think> We add. So 4.", "Hm.</think>\nWe add. So 4.\n"])
def test_a_solution_is_what_follows_its_thinking(solution):
    assert parse_row({**GOOD, "solution": solution}).solution == "We add. So 4."
    assert parse_row({"problem": "2 + 2?", "answer": "4", "solution": solution}).solution == "We add. So 4."


@pytest.mark.parametrize("solution", ["<think>So 4.", "<think>So 4.</think>\n"])
def test_a_solution_that_is_only_thinking_is_refused(tmp_path, solution):
    with pytest.raises(UserError, match="line 1: the solution is only a thinking block, with nothing after </think>"):
        read_problems(lines(tmp_path / "p.jsonl", {**GOOD, "solution": solution}))


def test_of_two_final_boxes_none_is_taken_for_the_answer():
    row = {"problem": "Solve.", "solution": "Take roots. So $x$ is $\\boxed{3}$ or $\\boxed{-3}$."}
    with pytest.raises(UserError, match="the solution ends with several boxes, 3,-3: give the answer in a field"):
        parse_row(row)
    assert parse_row({**row, "answer": "3,-3"}).answer == "3,-3"
    apart = "First \\boxed{3}, which we need below for the number of all the pairs. So there are \\boxed{6}."
    assert parse_row({**row, "solution": apart}).answer == "6"
