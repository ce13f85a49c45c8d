"""Other work is refused with every value named; extensions pass; data are identified by their bytes."""

import operator
import os

import pytest

from retarget.errors import UserError
from retarget.identity import content, fingerprint, refuse_other


def test_every_difference_is_named_with_both_values():
    with pytest.raises(UserError) as caught:
        refuse_other("out/study.json", {"lr": 0.1, "epochs": 3, "same": 1}, {"lr": 0.2, "same": 1, "new": [1]})
    assert str(caught.value) == (
        "out/study.json was made with lr = 0.1 (now 0.2), new = nothing (now [1]), epochs = 3 (now nothing). "
        "Give another place, or the settings that it was made with"
    )


def test_an_extension_passes_and_its_opposite_does_not():
    extends = {"k": operator.le, "ids": lambda had, now: set(had) <= set(now)}
    refuse_other("j", {"k": 16, "ids": ["a"]}, {"k": 32, "ids": ["a", "b"]}, extends=extends)
    with pytest.raises(UserError, match=r"k = 32 \(now 16\), ids = "):
        refuse_other("j", {"k": 32, "ids": ["a", "b"]}, {"k": 16, "ids": ["a"]}, extends=extends)


def test_content_changes_with_bytes_and_names_alone(tmp_path):
    data = tmp_path / "data"
    (data / "cat").mkdir(parents=True)
    (data / "cat" / "1.png").write_bytes(b"one")
    first = content(data)
    os.utime(data / "cat" / "1.png", ns=(0, 0))
    assert content(data) == first
    (data / "cat" / "1.png").write_bytes(b"two")
    second = content(data)
    assert second != first
    (data / "cat" / "1.png").rename(data / "cat" / "2.png")
    assert content(data) not in (first, second)


def test_what_is_known_is_believed_by_size_and_time(tmp_path):
    file, known = tmp_path / "a.npz", {}
    file.write_bytes(b"aaa")
    first = content(file, known)
    status = file.stat()
    file.write_bytes(b"bbb")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert content(file, known) == first  # not read again
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert content(file, known) == content(file) != first


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*gone\.npz: No such file"):
        content(tmp_path / "gone.npz")


def test_a_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_what_a_file_manager_leaves_is_no_data_and_any_name_is(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    before = content(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"")
    assert content(tmp_path) == before
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"b")
    assert content(tmp_path) != before
