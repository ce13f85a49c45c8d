import fcntl
import json

import pytest

from retarget.errors import UserError
from retarget.identity import fingerprint
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
            for number in range(len(journal), 3):
                journal.append({"unit": number, "text": "é\u2028"})
        assert path.read_bytes() == whole


def test_other_work_damage_and_a_second_writer_are_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, HEADER) as journal:
        journal.append({"unit": 0})
        with pytest.raises(UserError, match="another process is writing"):
            Journal(path, HEADER)
    with pytest.raises(UserError, match=r"was made with k = 4 \(now 5\)"):
        Journal(path, {**HEADER, "k": 5})
    path.write_bytes(path.read_bytes().replace(b'{"unit":0', b'{"unit":'))
    with pytest.raises(UserError, match="line 2 is damaged"):
        Journal(path, HEADER)
    assert path.stat().st_size > 0  # refused, not emptied


def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    for content in (b"one line without an end", b'{"format":1', b"\x00\xff"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not a journal"):
            Journal(path, HEADER)
        assert path.read_bytes() == content


def test_in_memory():
    journal = Journal(None, HEADER)
    journal.append({"a": 1})
    journal.append({"a": 0})
    journal.settle(lambda record: record["a"])
    assert list(journal.read()) == [{"a": 0}, {"a": 1}]


def begun(path, header):
    """A journal with one record."""
    with Journal(path, header) as journal:
        journal.append({"unit": 0})


def test_a_journal_without_a_record_begins_again_with_other_settings(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path, HEADER).close()
    begun(path, {**HEADER, "weights": "abc"})
    with Journal(path, {**HEADER, "weights": "abc"}) as journal:
        assert list(journal.read()) == [{"unit": 0}]
    assert '"weights":"abc"' in path.read_text().splitlines()[0]


def test_a_header_that_gained_a_field_is_refused_by_name(tmp_path):
    begun(tmp_path / "j.jsonl", HEADER)
    with pytest.raises(UserError, match=r"weights = nothing \(now abc\)"):
        Journal(tmp_path / "j.jsonl", {**HEADER, "weights": "abc"})


def test_half_a_surrogate_pair_is_written_and_read(tmp_path):
    for _ in range(2):
        with Journal(tmp_path / "j.jsonl", HEADER) as journal:
            if not len(journal):
                journal.append({"text": "\ud835"})
    assert list(journal.read()) == [{"text": "\ud835"}]


def test_no_changed_byte_goes_unseen(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path, HEADER) as journal:
        for number in range(3):
            journal.append({"unit": number, "n": 16, "text": "a"})
    whole = path.read_bytes()
    ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    for at in range(len(whole) - 1):  # without its last line end, a line counts as begun by a killed process
        for other in (b"7", b'"', b"x"):
            if whole[at : at + 1] == other:
                continue
            path.write_bytes(whole[:at] + other + whole[at + 1 :])
            line = 1 + sum(end < at for end in ends)
            with pytest.raises(UserError, match=f"line {line} is damaged"):
                Journal(path, HEADER)
    for line in (b"[1]", b"[" * 100_000, b"\xff", b"", b"null"):
        path.write_bytes(whole + line + b"\n")
        with pytest.raises(UserError, match="line 5 is damaged"):
            Journal(path, HEADER)


def former_journal(path, header, records):
    """A journal as earlier versions wrote it."""
    lines = [{**header, "work": fingerprint(header)}, *records]
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def test_a_journal_without_checksums_is_read_and_goes_on_with_them(tmp_path):
    path = tmp_path / "j.jsonl"
    former_journal(path, {**HEADER, "chunk": 16, "problems": "abc"}, [{"unit": 0}])
    for _ in range(2):
        with Journal(path, HEADER, former=lambda: {"problems": "abc"}) as journal:
            if len(journal) == 1:
                journal.append({"unit": 1})
        assert list(journal.read()) == [{"unit": 0}, {"unit": 1}]
    with pytest.raises(UserError, match=r"problems = abc \(now def\)"):
        Journal(path, HEADER, former=lambda: {"problems": "def"})
    with pytest.raises(UserError, match=r"k = 4 \(now 5\)"):
        Journal(path, {**HEADER, "k": 5}, former=lambda: {"problems": "abc"})
    path.write_text(path.read_text().replace('"model":"m"', '"model":"n"'))
    with pytest.raises(UserError, match="line 1 is damaged"):
        Journal(path, HEADER, former=lambda: {"problems": "abc"})


def test_records_are_put_into_an_order_of_their_own(tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, order in zip(paths, ([0, 1, 2], [2, 0, 1]), strict=True):
        with Journal(path, HEADER) as journal:
            for number in order:
                journal.append({"unit": number})
            journal.settle(lambda record: record["unit"])
        assert [one["unit"] for one in journal.read()] == [0, 1, 2]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_path_that_cannot_be_written_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "j.jsonl", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot write"):
            Journal(path, HEADER)


@pytest.mark.parametrize("line", [0, 1])
def test_a_line_that_stands_twice_is_refused(tmp_path, line):
    path = tmp_path / "j.jsonl"
    with Journal(path, HEADER) as journal:
        journal.append({"unit": 0})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[line]]))
    with pytest.raises(UserError, match=rf"line 3 is damaged.*repeats line {line + 1}"):
        Journal(path, HEADER)


def test_a_file_that_is_replaced_before_it_is_locked_is_not_written_to(tmp_path, monkeypatch):
    """A merge, or a run that ends, replaces the file between the opening and the lock."""
    path = tmp_path / "j.jsonl"
    with Journal(path, HEADER) as journal:
        journal.append({"unit": 0})
    (tmp_path / "merged").write_bytes(path.read_bytes())
    lock = fcntl.flock

    def late(file, how):
        if (tmp_path / "merged").exists():
            (tmp_path / "merged").replace(path)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with Journal(path, HEADER) as journal:
        journal.append({"unit": 1})
    assert path.read_text().count('"unit"') == 2


def test_the_same_weights_in_another_folder_continue_a_journal(tmp_path):
    path = tmp_path / "j.jsonl"
    begun(path, {"model": "A/model", "weights": "w"})
    Journal(path, {"model": "./B/model", "weights": "w"}).close()
    with pytest.raises(UserError, match=r"was made with model = A/model \(now B/model\), weights = w \(now v\)"):
        Journal(path, {"model": "B/model", "weights": "v"})
    unknown = tmp_path / "unknown.jsonl"
    begun(unknown, {"model": "a", "weights": None})
    with pytest.raises(UserError, match=r"was made with model = a \(now b\)"):
        Journal(unknown, {"model": "b", "weights": None})
