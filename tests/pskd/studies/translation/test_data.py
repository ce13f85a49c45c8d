"""Sentence files as people have them: pairs of lines are read, anything else is refused with its file and line."""

import gzip
import re

import pytest

from retarget.errors import UserError
from retarget.pskd.studies.translation.data import read_pairs, sentence_pairs
from retarget.pskd.studies.translation.plan import PRESETS, Settings, data_paths, plan
from retarget.pskd.studies.translation.prepare import prepare
from retarget.study.runner import survey


def settings(folder, **more):
    return Settings(**PRESETS["small"] | {"dataset": f"files:{folder}", "test": "test", **more})


def write(folder, english, german, names=("train", "val", "test")):
    for name in names:
        (folder / f"{name}.en").write_bytes(english)
        (folder / f"{name}.de").write_bytes(german)


@pytest.mark.parametrize(
    ("english", "german", "pairs", "dropped"),
    [
        (b"a\nb\n", b"x\ny\n", [("a", "x"), ("b", "y")], 0),
        (b"a\nb", b"x\ny\n\n\n", [("a", "x"), ("b", "y")], 0),
        (b"a\nb\n", b"x\n\n", [("a", "x")], 1),
        (b"a\n\nb\n", b"x\nz\ny\n", [("a", "x"), ("b", "y")], 1),
        (b"a\r\nb\r\n", b"x\ny\n", [("a", "x"), ("b", "y")], 0),
        (b"a\rc\nb\n", b"x\ny\n", [("a c", "x"), ("b", "y")], 0),
        (b"\xef\xbb\xbfa\nb\n", "x\u2028z\ny\n".encode(), [("a", "x\u2028z"), ("b", "y")], 0),
    ],
    ids=["plain", "empty_end", "empty_last_side", "empty_middle", "crlf", "stray_return", "mark_and_separator"],
)
def test_lines_are_pairs(english, german, pairs, dropped, tmp_path):
    write(tmp_path, english, german)
    assert read_pairs(settings(tmp_path), "train") == (pairs, dropped)
    assert sentence_pairs(settings(tmp_path)).dropped == (dropped,) * 3


@pytest.mark.parametrize(
    ("english", "german", "message"),
    [
        (b"a\nb\n", b"x\n", r"train\.en has 2 lines but .*train\.de has 1: each line"),
        (b"", b"", r"train\.en and .*train\.de contain no pair of sentences"),
        (b"a\n\n", b"\nx\n", "no pair of sentences"),
        (b"a\nb\n", "x\n\u00fcber\n".encode("latin-1"), r"train\.de, line 2: byte 0xfc is not UTF-8; .*iconv"),
        (b"a\nb\n", "x\n".encode("utf-16"), r"train\.de, line 1: byte 0xff is not UTF-8; .*iconv -f utf-16"),
        (b"a\rb\rc", b"x\ry\rz", r"train\.en: its lines end with CR alone, .* tr '\\r' '\\n'"),
        (b"a\tx\t1\nb\ty\t2\n", b"x\ny\n", r"train\.en: every line has a tab, so it is a table"),
        (b"a\nb\n", "x\ny\n".encode("utf-16-le"), r"train\.de, line 1: a NUL byte.*iconv -f utf-16le -t utf-8"),
        (b"a\nb\n", "x\ny\n".encode("utf-16-be"), r"train\.de, line 1: a NUL byte.*iconv -f utf-16be -t utf-8"),
        (b"a\nb\n", "x\n\u00fc\n".encode("utf-16-le"), r"train\.de, line 2: byte 0xfc .*iconv -f utf-16le"),
        (b"a\n<url>http://x</url>\n", b"x\ny\n", r"train\.en, line 2: <url…> is markup .*grep -v '\^ \*<' FILE"),
        (b"a\nb\n", b'<srcset setid="n">\nx\n', r"train\.de, line 1: <srcset…> is markup"),
        (b"a\nb\n", b'x\n  <seg id="2"> y </seg>\n', r"train\.de, line 2: <seg…> is markup .*sed -n 's/"),
    ],
)
def test_files_that_are_no_pairs_are_refused_with_file_and_line(english, german, message, tmp_path):
    write(tmp_path, english, german)
    chosen = plan("small", {"dataset": f"files:{tmp_path}", "test": "test"})
    with pytest.raises(UserError, match=message):
        prepare(chosen)
    assert re.search(message, survey(chosen, tmp_path / "study")["problem"])


def test_a_sentence_may_have_a_sign_of_markup(tmp_path):
    write(tmp_path, b"<3 you\nsee <url> there\n", b"<docks>\ny\n")
    assert len(read_pairs(settings(tmp_path), "train")[0]) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"source": "de", "target": "de"}, "source and target are both de"),
        ({"test": "val"}, "test=val names the validation files"),
        ({"test": "train"}, "test=train names the training files"),
    ],
)
def test_a_study_that_can_only_measure_itself_is_refused(more, message, tmp_path):
    with pytest.raises(UserError, match=message):
        plan("small", {"dataset": f"files:{tmp_path}", **more})


def test_a_vocabulary_that_is_too_small_is_warned_of(tmp_path):
    words = [f"{chr(97 + at % 26)}{chr(97 + at // 26)}word" for at in range(120)]
    lines = "".join(f"{' '.join(words[at : at + 20])}\n" for at in range(100)).encode()
    write(tmp_path, lines, lines.upper())
    given = {"dataset": f"files:{tmp_path}", "test": "test"}
    with pytest.warns(UserWarning, match="vocabulary=60") as caught:
        prepare(plan("small", given | {"vocabulary": 60}))
    letters, cut = (str(one.message) for one in caught)
    assert letters.startswith("vocabulary=60 has little room for more than the 53 letters")
    assert cut.startswith("100 of the first 100 training pairs are longer than max_tokens=80 with vocabulary=60")
    prepare(plan("small", given))


def test_a_damaged_archive_and_a_missing_file_are_named_with_what_is_there(tmp_path):
    write(tmp_path, b"a\n", b"x\n")
    packed = gzip.compress(b"some words\n" * 50)
    for damaged in (packed[:20], b"no archive", packed[:12] + b"\xff" * 9 + packed[21:]):
        (tmp_path / "train.de.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"train\.de\.gz cannot be read"):
            read_pairs(settings(tmp_path), "train")
    (tmp_path / "train.de.gz").unlink()
    with pytest.raises(
        UserError, match=r"no flickr\.en or flickr\.en\.gz in .*; it has test\.en, train\.en, val\.en: test=N"
    ):
        sentence_pairs(settings(tmp_path, test="flickr"))
    with pytest.raises(UserError, match="Name the folder: dataset=files:DIR"):
        read_pairs(settings(tmp_path / "nowhere"), "train")
    with pytest.raises(UserError, match=r"train\.de is a file: dataset=files:DIR names a folder, with train\.en"):
        read_pairs(settings(tmp_path / "train.de"), "train")


def test_the_files_of_a_run_are_those_it_reads(tmp_path):
    write(tmp_path, b"a\n", b"x\n")
    (tmp_path / "val.en.gz").write_bytes(gzip.compress(b"a\n"))
    names = ["train.en", "train.de", "val.en.gz", "val.de", "test.en", "test.de"]
    assert data_paths(settings(tmp_path)) == tuple(str(tmp_path / name) for name in names)
    assert data_paths(settings(tmp_path, dataset="grammar")) == ()
