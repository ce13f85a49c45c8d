"""Settings from files and from the command line."""

import pytest

from retarget.errors import UsageError
from retarget.settings import parse_setting, read_config


@pytest.mark.parametrize("text", ["lr = 1" + "0" * 5000, "lr = " + "[" * 5000, "lr = ", "\x00", "lr = 1\nlr = 2"])
def test_a_file_that_is_no_toml_is_refused_by_name(tmp_path, text):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=r"--config .*mine\.toml is not valid TOML"):
        read_config(tmp_path / "mine.toml")


def test_a_value_that_is_no_toml_is_a_text():
    assert parse_setting("dataset=a b") == {"dataset": "a b"}
    assert parse_setting("shift.images=null") == {"shift": {"images": None}}
    assert parse_setting('name="null"') == {"name": "null"}
    assert parse_setting("lr=" + "9" * 5000) == {"lr": "9" * 5000}
    with pytest.raises(UsageError, match="takes KEY=VALUE"):
        parse_setting("lr")


@pytest.mark.parametrize("text", ["folder:/data/\U0001f600", "folder:/data/\udcff", "a\x7fb"])
def test_a_text_that_toml_cannot_write_is_a_text_too(text):
    assert parse_setting(f"shift.ood={text}") == {"shift": {"ood": text}}
    with pytest.raises(UsageError, match="'shift ood' is not a key"):
        parse_setting(f"shift ood={text}")
