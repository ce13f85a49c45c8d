import pytest

from retarget.errors import UserError
from retarget.pope.journal import Journal

HEADER = {"model": "m", "k": 4}


def test_killed_at_any_byte_it_resumes_to_the_same_bytes(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, HEADER) as journal:
        for number in range(3):
            journal.append({"unit": number, "text": "é\u2028"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with Journal(path, HEADER) as journal:
            for number in range(len(journal.records), 3):
                journal.append({"unit": number, "text": "é\u2028"})
        assert path.read_bytes() == whole


def test_other_work_damage_and_a_second_writer_are_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, HEADER) as journal:
        journal.append({"unit": 0})
        with pytest.raises(UserError, match="another process writes"):
            Journal(path, HEADER)
    with pytest.raises(UserError, match=r"was made with k = 4 \(now 5\)"):
        Journal(path, {**HEADER, "k": 5})
    path.write_bytes(path.read_bytes().replace(b'{"unit":0}', b'{"unit":'))
    with pytest.raises(UserError, match="line 2 is damaged"):
        Journal(path, HEADER)
    assert path.stat().st_size > 0  # refused, not emptied


def test_in_memory():
    journal = Journal(None, HEADER)
    journal.append({"a": 1})
    assert journal.records == [{"a": 1}]


def test_a_header_that_gained_a_field_is_refused_by_name(tmp_path):
    Journal(tmp_path / "j.jsonl", HEADER).close()
    with pytest.raises(UserError, match=r"weights = nothing \(now abc\)"):
        Journal(tmp_path / "j.jsonl", {**HEADER, "weights": "abc"})


def test_half_a_surrogate_pair_is_written_and_read(tmp_path):
    for _ in range(2):
        with Journal(tmp_path / "j.jsonl", HEADER) as journal:
            if not journal.records:
                journal.append({"text": "\ud835"})
    assert journal.records == [{"text": "\ud835"}]
