import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from retarget.errors import UserError
from retarget.pope.problems import Problem, find_answer, last_boxed, read_problems, write_problems

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
        "line 3: id 'a' stands in line 1 already",
        "line 4: the solution is empty",
        "line 5: the answer '4' does not occur",
        "line 6: not UTF-8 at byte 23",
        "line 7: not JSON",
        "line 8: the prompt has 6 tokens, the limit is 5",
        "line 9: extra:",
        "line 10: answer:",
        "line 11: a problem is an object",
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
    for name in ("z.jsonl.gz", "p.parquet", "saved", "dict"):
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
    with pytest.raises(UserError, match="no final answer behind ####"):
        read_problems(lines(tmp_path / "q.jsonl", {"question": "?", "answer": "1"}))


def test_optional_solutions_and_missing_files(tmp_path):
    path = lines(tmp_path / "p.jsonl", {**GOOD, "solution": ""})
    assert read_problems(path, solutions="optional")[0].solution == ""
    with pytest.raises(UserError, match="no such file"):
        read_problems(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"ends in \.jsonl"):
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
