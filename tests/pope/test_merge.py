"""Journals of several machines become one, or are refused with the values that differ."""

import json
import re
from pathlib import Path

import pytest
from engines_for_tests import Guesser

from retarget.errors import UserError
from retarget.pope.commands import pope
from retarget.pope.evaluation import evaluate
from retarget.pope.grading import Grader
from retarget.pope.journal import Journal
from retarget.pope.merge import merge
from retarget.pope.mining import mine
from retarget.pope.oracle import ask_oracle
from retarget.pope.problems import Problem
from retarget.pope.prompts import Prompts
from retarget.pope.rollouts import Sampling
from retarget.pope.sampler import Sampler
from retarget.pope.search import search_prefixes

PROMPTS = Prompts("{problem}", "{problem} + {prefix}", chat=False)


def problems(*numbers):
    solution = "One. Two. Three. Four. So 4."
    return [Problem(id=f"p{at}", prompt=f"q{at}", solution=solution, answer="4") for at in numbers]


@pytest.fixture
def sampler(tmp_path):
    def make(rate=0.1, name="guesser", weights=None, prompts=PROMPTS, **sampling):
        engine = Guesser(name, tmp_path, rate)
        engine.identity = {"weights": weights}
        return Sampler(engine, Grader("exact"), prompts, Sampling(**{"seed": 3, **sampling}), chunk=4)

    return make


def shard(folder, name):
    return folder / name / "mine.jsonl"


def test_shards_merge_and_the_verb_goes_on_to_the_bytes_of_one_machine(tmp_path, sampler, capsys):
    """Three machines: one was killed, two share problems, one found more in the model's folder of another name."""
    whole = mine(problems(*range(12)), sampler(), 16, journal=tmp_path / "whole.jsonl")
    mine(problems(0, 1, 2, 3, 4), sampler(), 16, journal=shard(tmp_path, "a"))
    mine(problems(7, 3, 4, 5), sampler(), 8, journal=shard(tmp_path, "b"))
    mine(problems(9, 8, 10), sampler(), 16, journal=shard(tmp_path, "c"))
    cut = shard(tmp_path, "c").read_bytes()[:-30]
    shard(tmp_path, "c").write_bytes(cut)  # killed in the middle of a line
    files = [shard(tmp_path, name) for name in "abc"]
    assert pope(["merge", *map(str, files), "--out", str(tmp_path / "all")]) == 0
    assert "duplicates dropped" in capsys.readouterr().out
    merged = shard(tmp_path, "all")
    before = merged.read_bytes()
    assert shard(tmp_path, "c").read_bytes() == cut
    again = merge(files, tmp_path / "all")  # the same once more, and in place
    assert again.units == len(before.splitlines()) - 1 > 20
    assert again.duplicates > 0
    assert merge([merged, *files], tmp_path / "all").path.read_bytes() == before
    found = mine(problems(*range(12)), sampler(), 16, journal=merged)
    assert found == whole
    assert 0 < found.sampled < len(merged.read_bytes().splitlines()) - 1
    assert merged.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_every_verb_with_a_journal_merges(tmp_path, sampler):
    bare = [one.model_copy(update={"solution": ""}) for one in problems(0, 1, 2, 3)]
    verbs = {
        "search": lambda some, path: search_prefixes(some, sampler(), 2, 8, cap=0.8, journal=path),
        "evaluate": lambda some, path: evaluate(some, sampler(), 8, journal=path),
        "oracle": lambda some, path: ask_oracle([bare[int(one.id[1:])] for one in some], sampler(0.9), 2, journal=path),
    }
    for verb, work in verbs.items():
        for name, some in (("a", problems(2, 3)), ("b", problems(0, 1))):
            work(some, tmp_path / f"{name}.{verb}")
        work(problems(0, 1, 2, 3), tmp_path / f"whole.{verb}")
        found = merge([tmp_path / f"{name}.{verb}" for name in "ab"], tmp_path / "all")
        assert (found.path.name, found.problems, found.duplicates) == (f"{verb}.jsonl", 4, 0)
        work(problems(0, 1, 2, 3), found.path)
        assert found.path.read_bytes() == (tmp_path / f"whole.{verb}").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "other"}, "model = other, not guesser"),
        ({"weights": "w2"}, "weights = w2, not nothing"),
        ({"seed": 4}, "sampling.seed = 4, not 3"),
        ({"max_tokens": 9, "top_k": 2}, "sampling.max_tokens = 9, not 16384; sampling.top_k = 2, not 0"),
        ({"prompts": Prompts("Q: {problem}", "{problem} + {prefix}", chat=False)}, r"wording = \w{16}, not \w{16}"),
    ],
)  # fmt: skip
def test_other_work_is_refused_with_the_values_that_differ(tmp_path, sampler, change, said):
    mine(problems(0), sampler(), 4, journal=shard(tmp_path, "a"))
    mine(problems(1), sampler(**change), 4, journal=shard(tmp_path, "b"))
    told = f"{shard(tmp_path, 'b')} is of other work than {shard(tmp_path, 'a')}: "
    with pytest.raises(UserError, match=re.escape(told) + said + r"\. Only journals of the same work"):
        merge([shard(tmp_path, "a"), shard(tmp_path, "b")], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_model_of_the_same_weights_in_another_folder_is_the_same_model(tmp_path, sampler):
    for at, name in enumerate(("/here/m", "/there/m")):
        mine(problems(at), sampler(name=name, weights="w"), 4, journal=shard(tmp_path, str(at)))
    assert merge([shard(tmp_path, "0"), shard(tmp_path, "1")], tmp_path / "all").problems == 2
    for name in ("/here/m", "/there/m"):
        assert mine(problems(0, 1), sampler(name=name, weights="w"), 4, journal=shard(tmp_path, "all")).sampled == 0


@pytest.mark.parametrize("target", ["a", "new"])
def test_no_other_process_writes_a_journal_until_it_is_replaced(tmp_path, sampler, monkeypatch, target):
    """What a driver wrote into the file in between would be lost."""
    mine(problems(0), sampler(), 4, journal=shard(tmp_path, "a"))
    mine(problems(1), sampler(), 4, journal=shard(tmp_path, "b"))
    files = [shard(tmp_path, "a"), shard(tmp_path, "b")]
    replace, refused = Path.replace, []

    def meanwhile(temporary, path):
        for file in {path, *files}:
            with pytest.raises(UserError, match="another process is writing this journal"):
                Journal(file, {})
            refused.append(file)
        return replace(temporary, path)

    monkeypatch.setattr(Path, "replace", meanwhile)
    merge(files, tmp_path / target)
    assert sorted(refused) == sorted({*files, shard(tmp_path, target)})
    monkeypatch.undo()
    assert mine(problems(0, 1, 2), sampler(), 4, journal=shard(tmp_path, target)).sampled == 1


def test_a_journal_that_is_being_written_is_not_merged_into(tmp_path, sampler):
    mine(problems(0), sampler(), 4, journal=shard(tmp_path, "a"))
    with (
        Journal(shard(tmp_path, "all"), {"verb": "mine"}),
        pytest.raises(UserError, match="another process is writing this journal"),
    ):
        merge([shard(tmp_path, "a")], tmp_path / "all")


def test_names_of_answers_and_probes_that_vary_do_not_set_journals_apart(tmp_path, sampler):
    told = ({"probe": "abc", "answered_by": "m-2024-05-13"}, {"probe": "varies", "answered_by": "m-2024-08-06"})
    made = sampler()
    for at, identity in enumerate(told):
        made.engine.identity = identity
        mine(problems(at), made, 4, journal=shard(tmp_path, str(at)))
    assert merge([shard(tmp_path, "0"), shard(tmp_path, "1")], tmp_path / "all").problems == 2
    made.engine.identity = {"probe": "def"}
    mine(problems(2), made, 4, journal=shard(tmp_path, "2"))
    with pytest.raises(UserError, match="probe = def, not abc"):
        merge([shard(tmp_path, "0"), shard(tmp_path, "2")], tmp_path / "all")


def test_what_an_earlier_version_did_not_record_does_not_set_journals_apart(tmp_path, sampler):
    made = sampler()
    for at, identity in enumerate(({}, {"dtype": "bfloat16"}, {"dtype": "float32"})):
        made.engine.identity = {"weights": "w", **identity}
        mine(problems(at), made, 4, journal=shard(tmp_path, str(at)))
    assert merge([shard(tmp_path, "0"), shard(tmp_path, "1")], tmp_path / "all").problems == 2
    with pytest.raises(UserError, match="dtype = float32, not bfloat16"):
        merge([shard(tmp_path, "1"), shard(tmp_path, "2")], tmp_path / "other")


class Moody(Guesser):
    """A server that answers differently although the seed is the same."""

    def one(self, prompt, n, params):
        return super().one(prompt, n, params.model_copy(update={"seed": 99}))


def test_contradictions_are_refused_with_their_names(tmp_path, sampler):
    mine(problems(*range(8)), sampler(0.4), 4, journal=shard(tmp_path, "a"))
    moody = sampler(0.4)
    moody = Sampler(Moody("guesser", tmp_path, 0.4), moody.grader, moody.prompts, moody.params, 4)
    moody.engine.identity = {"weights": None}
    mine(problems(*range(8)), moody, 4, journal=shard(tmp_path, "b"))
    with pytest.raises(
        UserError, match=r"contradict each other: problem 'p\d', unit 0 differs in correct \(\d and \d\)"
    ):
        merge([shard(tmp_path, "a"), shard(tmp_path, "b")], tmp_path / "all")
    other = [one.model_copy(update={"prompt": "another"}) for one in problems(3)]
    mine(other, sampler(0.4), 4, journal=shard(tmp_path, "c"))
    with pytest.raises(
        UserError, match=r"problem 'p3', unit 0 has another prompt, answer or meta in .*a/mine.jsonl: line 5"
    ):
        merge([shard(tmp_path, "a"), shard(tmp_path, "c")], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_journal_that_is_given_twice_counts_once(tmp_path, sampler):
    mine(problems(0, 1), sampler(), 8, journal=shard(tmp_path, "a"))
    before = shard(tmp_path, "a").read_bytes()
    done = merge([shard(tmp_path, "a")] * 2, tmp_path / "all")
    assert (done.units, done.duplicates) == (len(before.splitlines()) - 1,) * 2
    assert shard(tmp_path, "all").read_bytes() == before
    merge([shard(tmp_path, "a")] * 3, tmp_path / "a")
    assert shard(tmp_path, "a").read_bytes() == before


def test_files_that_are_no_journals_are_named(tmp_path, sampler):
    mine(problems(0, 1), sampler(), 8, journal=shard(tmp_path, "a"))
    good = shard(tmp_path, "a")
    cases = {
        "empty": b"", "half": b'{"format":2', "text": b"not json\n", "problems": b'{"id": "p0", "prompt": "q"}\n',
        "old": b'{"verb": "mine", "work": "abc"}\n', "binary": bytes(range(256)) * 9,
        "damaged": good.read_bytes().replace(b'"n":4', b'"n":5', 1), "twice": good.read_bytes() * 2,
    }  # fmt: skip
    said = {
        "empty": "the file is empty", "half": "its first line is cut off", "text": "line 1 is damaged",
        "problems": "not a journal of", "old": "an earlier version wrote this journal", "binary": "line 1 is damaged",
        "damaged": "line 2 is damaged", "twice": "line .* is damaged",
    }  # fmt: skip
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{tmp_path / name}.*{said[name]}"):
            merge([good, tmp_path / name], tmp_path / "all")
    for missing in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match=f"cannot read {missing}"):
            merge([good, missing], tmp_path / "all")
    with pytest.raises(UserError, match="give at least one file"):
        merge([], tmp_path / "all")
    shard(tmp_path, "all").parent.mkdir()
    shard(tmp_path, "all").write_text(json.dumps({"other": 1}))
    with pytest.raises(UserError, match="already exists: give another --out"):
        merge([good], tmp_path / "all")
