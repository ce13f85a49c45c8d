"""Files and folders are whole or absent; errors name the path."""

import errno
import os
import signal
import subprocess
import sys
import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from retarget.errors import UserError
from retarget.files import in_order, locked, read_json, replace_file, replace_folder, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_writer_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fails(temporary):
        temporary.write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        replace_file(path, fails)
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*gone/a\.json: No such file"):
        write_json(tmp_path / "gone" / "a.json", 1)


def test_safetensors_own_error_is_one_that_a_user_sees(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    with pytest.raises(UserError, match=r"cannot write .*gone/a\.safetensors"):
        replace_file(tmp_path / "gone" / "a.safetensors", lambda path: save_file({"a": np.zeros(2)}, path))


KILLED = """
import os, signal
from pathlib import Path
from retarget.files import replace_file

def write(target):
    (target.parent / ".tmpX1y2z3").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

replace_file(Path("state.safetensors"), write, apart=True)
"""


def test_what_a_library_writes_beside_its_path_is_gone_with_the_next_writing(tmp_path):
    """safetensors first writes under a random name beside its path, and a kill leaves that file there."""
    assert subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, check=False).returncode == -signal.SIGKILL
    assert names(tmp_path) == [".state.safetensors.tmp"]
    path = tmp_path / "state.safetensors"
    replace_file(path, lambda target: target.write_text("whole"), apart=True)
    assert names(tmp_path) == ["state.safetensors"]
    assert path.read_text() == "whole"
    (tmp_path / ".state.safetensors.tmp").mkdir()  # and where a file is written next under the same name
    replace_file(path, lambda target: target.write_text("again"))
    assert names(tmp_path) == ["state.safetensors"]


def test_a_folder_is_whole_or_absent(tmp_path):
    def fails(temporary):
        (temporary / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*out: No space left on device"):
        replace_folder(tmp_path / "out", fails)
    assert names(tmp_path) == []
    replace_folder(tmp_path / "out", lambda folder: (folder / "whole").write_text("whole"))
    assert (tmp_path / "out" / "whole").read_text() == "whole"
    with pytest.raises(UserError, match="Directory not empty"):
        replace_folder(tmp_path / "out", lambda folder: (folder / "other").write_text("other"))
    assert names(tmp_path) == ["out"]


def test_a_lock_names_its_holder(tmp_path):
    with (
        locked(tmp_path / ".lock", wait=False, what="out"),
        pytest.raises(UserError, match=f"out is in use by process {os.getpid()}"),
        locked(tmp_path / ".lock", wait=False, what="out"),
    ):
        pass


def test_where_the_system_has_no_locks_files_are_written_and_a_lock_is_refused_in_words(tmp_path):
    code = """
import sys
sys.modules["fcntl"] = None  # as on Windows
from pathlib import Path
from retarget.errors import UserError
from retarget.files import locked, write_json
write_json(Path("a.json"), 1)
try:
    with locked(Path("lock"), wait=False, what="here"):
        pass
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "no file locks" in done.stdout
    assert "Run this on Linux, macOS, or under WSL" in done.stdout
    assert (tmp_path / "a.json").is_file()


def test_safetensors_of_equal_content_have_equal_bytes(tmp_path):
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.bfloat16)}
    metadata = {name: f"é{name}" for name in "hgfedcba"}
    written = {in_order(save(tensors, metadata=metadata)) for _ in range(20)}
    assert len(written) == 1
    (tmp_path / "x.safetensors").write_bytes(written.pop())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(name), value) for name, value in tensors.items())
    assert in_order(save(tensors)).endswith(save(tensors)[-20:])


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, code):
    """As Lustre without -o flock, or NFS without its lock service, answers."""

    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("retarget.files.fcntl.flock", flock)
    with (
        pytest.raises(UserError, match="this file system has no file locks"),
        locked(tmp_path / "l", wait=False, what="x"),
    ):
        pass


def test_a_name_that_is_not_utf8_is_written_and_read(tmp_path):
    for value in ({"caf\udce9.png": ["é"]}, {"café": 1}):
        write_json(tmp_path / "a.json", value)
        assert read_json(tmp_path / "a.json") == value
    assert "café" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_large_file_is_put_in_order_by_one_copy():
    """A table of ten gigabytes is saved this way."""
    content = save({"a": torch.zeros(1 << 20)}, metadata={"b": "2", "a": "1"})
    tracemalloc.start()
    try:
        ordered = in_order(content)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * len(content)
    finally:
        tracemalloc.stop()
    assert load(ordered)["a"].shape == (1 << 20,)
