import json
import re

import pyarrow.parquet
import pytest
from pope_serving import serve

from retarget.errors import UsageError, UserError
from retarget.pope.commands import VERBS, pope
from retarget.pope.engines.local import TransformersEngine
from retarget.pope.mixture import mix, write_parquet
from retarget.pope.problems import Problem, read_problems, write_problems
from retarget.pope.studies.chain import make_problems

GRADER = "retarget.pope.studies.chain:verify"
TINY = [
    "--grader", GRADER, "--workers", "0", "--no-chat", "--max-tokens", "8", "--temperature", "1.0", "--chunk", "8",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("chain")
    (path / "templates").mkdir()
    for name, text in (("system", ""), ("unguided", "{problem} ="), ("guided", "{problem} hint {prefix} =")):
        (path / "templates" / f"{name}.txt").write_text(text)
    write_problems(path / "problems.jsonl", make_problems(10, 3, seed=3))
    return path


@pytest.fixture(scope="module")
def asking(tiny, folder):
    return ["--model", str(tiny.directory), "--templates", str(folder / "templates"), *TINY]


def test_the_whole_chain_by_path(tiny, folder, asking, capsys):
    out = folder / "out"
    reading = ["--answer-anywhere"]
    mining = ["mine", str(folder / "problems.jsonl"), "--out", str(out), "--k", "16", *asking, *reading]
    assert pope(mining) == 0
    printed = capsys.readouterr().out
    hard = read_problems(out / "hard.jsonl", answer_in_solution=False)
    assert f"hard {len(hard)}" in printed
    assert re.search(r"^ *not solved in 16 \| #+ \d+$", printed, re.MULTILINE)
    assert len((out / "outcomes.jsonl").read_text().splitlines()) == 10
    journal = (out / "mine.jsonl").read_bytes()
    assert pope(mining) == 0
    assert (out / "mine.jsonl").read_bytes() == journal  # nothing was sampled again
    capsys.readouterr()

    search = ["search", str(out / "hard.jsonl"), "--out", str(out), "--k", "16", "--cap", "0.75", "--unit", "line"]
    assert pope([*search, "--cuts", "2", *asking, *reading]) == 0
    assert f"{len(hard)} problems: found" in capsys.readouterr().out
    rows = folder / "rows.parquet"
    mixing = ["mix", str(out / "hard.jsonl"), str(out / "prefixes.jsonl"), "--out", str(rows), "--no-chat"]
    assert pope([*mixing, "--templates", str(folder / "templates"), "--prompts-per-batch", "2", *reading]) == 0
    assert f"{2 * len(hard)} rows, {len(hard)} of them guided" in capsys.readouterr().out

    settings = ["prompts_per_batch=2", "rollouts=4", "micro_batch=8", "max_completion_length=8", "lr=1e-3",
                "save_every=0", 'extra={use_cpu=true, disable_tqdm=true}']  # fmt: skip
    model, out_there = ["--model", str(tiny.directory)], ["--out", str(folder / "trained")]
    training = ["train", str(rows), *model, *out_there, "--grader", GRADER]
    assert pope([*training, "--cycles", "2", "--set", *settings, "--track", "tensorboard"]) == 0
    assert list((folder / "trained").glob("**/events.out.tfevents.*"))
    assert "guided/reward" in (folder / "trained" / "history.jsonl").read_text()
    assert "2 steps" in capsys.readouterr().out

    trained = ["--model", str(folder / "trained"), *asking[2:]]
    evaluating = ["evaluate", str(out / "hard.jsonl"), "--out", str(folder / "evaluated"), "--samples", "16"]
    assert pope([*evaluating, *trained, *reading]) == 0
    assert "pass@16" in capsys.readouterr().out
    saved = json.loads((folder / "evaluated" / "evaluation.json").read_text())
    assert saved["problems"] == len(hard)
    again = [*mining[:2], "--out", str(out), "--k", "16", "--checkpoint", str(folder / "trained"), *asking]
    assert pope(again) == 0
    printed = capsys.readouterr().out
    assert f"of {len(hard)} hard problems are now solved" in printed
    parts = [read_problems(out / f"{name}.jsonl", answer_in_solution=False) if (out / f"{name}.jsonl").stat().st_size
             else [] for name in ("graduates", "still-hard", "left-over")]  # fmt: skip
    assert sorted(one.id for part in parts for one in part) == sorted(one.id for one in hard)
    assert [line.split(":")[0].strip() for line in printed.splitlines() if ": solved with" in line] == [
        one.id for one in parts[0]
    ]
    (journal,) = out.glob("mine-again-*.jsonl")
    before = journal.read_bytes()
    assert pope(again) == 0
    assert journal.read_bytes() == before
    capsys.readouterr()
    assert pope([*again, "--dry-run", "--mean-tokens", "10"]) == 0
    assert json.loads(capsys.readouterr().out)["rollouts_at_most"] == 16 * len(hard)


def test_mining_again_asks_only_about_the_problems_it_is_given(tiny, folder, asking, capsys):
    out = folder / "again"
    write_problems(out / "hard.jsonl", make_problems(4, 1, seed=5))
    write_problems(folder / "two.jsonl", make_problems(4, 1, seed=5)[:2])
    again = ["mine", str(folder / "two.jsonl"), "--out", str(out), "--checkpoint", str(tiny.directory), "--k", "2"]
    assert pope([*again, "--dry-run", *asking]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["rollouts_at_most"] == 4
    assert "2 of 4 hard problems are not in" in printed.err
    with pytest.raises(UsageError, match="--rates has no effect with --checkpoint"):
        pope([*again, "--rates", *asking])
    with pytest.raises(UserError, match="no such file"):
        pope(["mine", "missing.jsonl", *again[2:], *asking])
    write_problems(folder / "two.jsonl", [Problem(id="another", prompt="2", answer="2")])
    with pytest.raises(UserError, match=r"none of the 4 problems of .*hard\.jsonl is in .*two\.jsonl"):
        pope([*again, *asking])


def test_evaluation_tells_of_labels_that_the_grader_rejects(tiny, folder, asking, capsys):
    good, wrong = make_problems(2, 1, seed=5)
    write_problems(folder / "labels.jsonl", [good, wrong.model_copy(update={"solution": "So \\boxed{none}."})])
    call = ["evaluate", str(folder / "labels.jsonl"), "--out", str(folder / "labels"), "--samples", "2", *asking]
    assert pope([*call, "--grader", "exact"]) == 0
    assert "rejects the label of 1 of 2 problems, alone or in their own solution" in capsys.readouterr().err


def test_training_names_a_folder_that_is_not_there(folder, tmp_path):
    problem = Problem(id="a", prompt="2+2", answer="4")
    write_parquet(tmp_path / "rows.parquet", mix([problem], {}, prompts_per_batch=1))
    call = ["train", str(tmp_path / "rows.parquet"), "--out", str(tmp_path / "trained"), "--grader", "exact"]
    with pytest.raises(UserError, match="nomodel: no such directory"):
        pope([*call, "--model", str(tmp_path / "nomodel")])
    assert not (tmp_path / "trained").exists()


def test_estimates_touch_nothing(folder, asking, capsys):
    out = folder / "none"
    assert pope(["mine", str(folder / "problems.jsonl"), "--out", str(out), "--dry-run", "--answer-anywhere", "--model",
                 "big", "--mean-tokens", "1000", "--throughput", "100"]) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["rollouts_at_most"] == 1280
    assert found["gpu_hours"] == pytest.approx(1280 * 1000 / 100 / 3600, abs=0.01)
    most = []
    for strategy in ("grid", "bisect"):
        assert pope(["search", str(folder / "problems.jsonl"), "--out", str(out), "--dry-run", "--answer-anywhere",
                     "--model", "big", "--search", strategy, "--mean-tokens", "1000"]) == 0  # fmt: skip
        most.append(json.loads(capsys.readouterr().out)["rollouts_at_most"])
    assert most[1] == most[0] / 2  # four of eight cuts
    assert not out.exists()


def test_the_oracle_keeps_what_the_grader_accepts(tiny, folder, capsys):
    problems = make_problems(6, 1, seed=5)
    asked = [one.model_copy(update={"solution": ""}) for one in problems[:5]]
    write_problems(folder / "unsolved.jsonl", [*asked, problems[5]])
    engine, words = TransformersEngine(tiny.model, tiny.tokenizer), tiny.tokenizer.get_vocab()

    class Teacher:
        """The tiny model, which knows none of the words around the problem."""

        def sample(self, prompts, n, params):
            known = [[word for word in prompt.split("\n")[0].split() if word in words] for prompt in prompts]
            return engine.sample([f"{' '.join(some)} =" for some in known], n, params)

    with serve(Teacher()) as (url, _):
        call = ["oracle", str(folder / "unsolved.jsonl"), "--out", str(folder / "solved.jsonl"), "--attempts", "4"]
        call += ["--model", url, "--served", "teacher", "--grader", GRADER, "--workers", "0", "--max-tokens", "8"]
        assert pope(call) == 0
    solved = read_problems(folder / "solved.jsonl", answer_in_solution=False)
    assert problems[5] in solved
    assert len(solved) > 1
    left = (folder / "solved.jsonl.unsolved.jsonl").read_text().splitlines()
    assert f"{len(solved)} problems with a solution; {6 - len(solved)} without" in capsys.readouterr().out
    assert len(left) == 6 - len(solved)


def test_exports(tmp_path):
    from retarget.pope.mixture import mix, write_rows

    problems = [Problem(id=str(i), prompt=f"q{i}", solution="s", answer=str(i)) for i in range(4)]
    write_rows(tmp_path / "rows.parquet", mix(problems, {"1": "so"}, unpaired="keep"))
    for host, name in (("verl", "v.parquet"), ("openrlhf", "o.jsonl"), ("prime-rl", "p.jsonl")):
        assert pope(["export", str(tmp_path / "rows.parquet"), "--to", host, "--out", str(tmp_path / name)]) == 0
    verl = pyarrow.parquet.read_table(tmp_path / "v.parquet").to_pylist()
    assert {row["data_source"] for row in verl} == {"pope/guided", "pope/unguided"}
    assert {row["reward_model"]["ground_truth"] for row in verl} == {"0", "1", "2", "3"}
    assert [row["extra_info"]["index"] for row in verl] == list(range(5))
    assert verl[0]["prompt"][-1]["role"] == "user"
    for name, field in (("o.jsonl", "label"), ("p.jsonl", "answer")):
        records = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert sorted(record[field] for record in records) == ["0", "1", "1", "2", "3"]
    write_rows(tmp_path / "plain.parquet", [{**verl_row, "prompt": "q"} for verl_row in mix(problems, {})])
    assert {row["guided"] for row in map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())} == {True, False}
    for name in ("v.validation.parquet", "v.reward.py", "v.launch.sh", "o.validation.jsonl", "o.reward.py"):
        assert (tmp_path / name).exists()
    with pytest.raises(UsageError, match="apply to --solutions: give it too"):
        pope(["export", str(tmp_path / "rows.parquet"), "--to", "verl", "--out", str(tmp_path / "x"), "--limit", "2"])
    with pytest.raises(UserError, match="needs chat messages"):
        pope(["export", str(tmp_path / "plain.parquet"), "--to", "verl", "--out", str(tmp_path / "x.parquet")])


def test_whole_solutions_of_ones_own_file_become_what_the_teacher_sees(tmp_path):
    from retarget.pope.mixture import mix, write_rows

    problems = [Problem(id=f"p{i}", prompt=f"What is {i} + {i}?", solution="s", answer=str(2 * i)) for i in range(4)]
    write_rows(tmp_path / "rows.parquet", mix(problems, {}, unpaired="keep"))
    lines = [
        {"uid": one.id, "asked": one.prompt, "worked": f"It is #### {one.answer}", "right": one.answer}
        for one in problems[:3]
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["export", str(tmp_path / "rows.parquet"), "--to", "opsd", "--out", str(tmp_path / "opsd.jsonl")]
    words += ["--solutions", str(tmp_path / "own.jsonl"), "--limit", "2", "--fields"]
    assert pope([*words, "id=uid", "prompt=asked", "solution=worked", "answer=right"]) == 0
    records = [json.loads(line) for line in (tmp_path / "opsd.jsonl").read_text().splitlines()]
    assert {one["id"]: one["privileged_context"] for one in records} == {
        "p0/unguided": "It is #### 0", "p1/unguided": "It is #### 2",
    }  # fmt: skip


def test_help_and_wrong_words(capsys):
    assert pope([]) == 2
    assert pope(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in VERBS)
    with pytest.raises(UsageError, match="choose oracle, mine"):
        pope(["mines"])


def test_options_that_would_be_dropped_silently_are_refused(folder, asking, tiny):
    evaluating = ["evaluate", str(folder / "problems.jsonl"), "--out", str(folder / "e"), "--answer-anywhere"]
    with pytest.raises(UsageError, match="--k 64: k must be between 1 and --samples 16"):
        pope([*evaluating, *asking, "--samples", "16", "--k", "1", "64"])
    with pytest.raises(UsageError, match="--served and the options of a server need --model http"):
        pope([*evaluating, *asking, "--concurrency", "3"])
    with pytest.raises(UsageError, match="--engine-options does not apply to a server"):
        pope([*evaluating, "--model", "http://127.0.0.1:9/v1", "--engine-options", "max_model_len=8"])
    with pytest.raises(UserError, match=r"options of the engine: .*max_len"):
        pope([*evaluating, *asking, "--engine-options", "max_len=8"])
    with pytest.raises(UsageError, match=r"--fields must be NAME=FIELD .*, not prompt"):
        pope([*evaluating, *asking, "--fields", "prompt"])
    assert not (folder / "e" / "evaluation.json").exists()


SERVER = ["--model", "http://127.0.0.1:9/v1", "--served", "tiny", "--retries", "0"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", "-1"], "temperature must be at least 0, not -1.0"),
        (["--top-p", "2"], "top_p must be at most 1, not 2.0"),
        (["--workers", "-1"], "a grader has at least 0 workers, not -1"),
        (["--fields", "promt=question"], "--fields: no field promt; choose from id, prompt, answer, solution"),
        (["--chat-switches", "thinking"], "--chat-switches takes KEY=VALUE, not 'thinking'"),
        (["--model", "tiny", "--engine-options", "dtype"], "--engine-options takes KEY=VALUE, not 'dtype'"),
        (["--dry-run", "--throughput", "0"], "must be at least 1 and --throughput above 0, not 4000 and 0"),
        (["--dry-run", "--mean-tokens", "0"], "--mean-tokens must be at least 1 and --throughput above 0, not 0 and"),
    ],
)
def test_options_out_of_range_are_named_before_a_model_is_asked(folder, tmp_path, words, message):
    model = ["--model", "tiny"] if "--model" in words else SERVER
    with pytest.raises(UserError, match=re.escape(message)):
        pope(["mine", str(folder / "problems.jsonl"), "--out", str(tmp_path), "--answer-anywhere", *model, *words])


def test_a_batch_job_says_how_far_it_is_and_that_nothing_was_sampled(folder, asking, capsys):
    words = ["mine", str(folder / "problems.jsonl"), "--out", str(folder / "said"), "--k", "8", "--batch", "2",
             "--answer-anywhere", *asking]  # fmt: skip
    assert pope([*words, "--limit", "4"]) == 0
    err = capsys.readouterr().err
    assert "mining: 0 of 4 problems" in err
    assert "mining: 4 of 4 problems, 32 rollouts" in err
    assert pope(words) == 0
    out, err = capsys.readouterr()
    assert "mining: resuming after 32 rollouts in the journal" in err
    assert "Nothing was sampled" not in out
    assert pope(words) == 0
    assert f"Nothing was sampled: everything is already in {folder / 'said' / 'mine.jsonl'}" in capsys.readouterr().out


def test_a_grader_that_fails_is_told_of_with_its_first_error(folder, asking, tmp_path, monkeypatch, capsys):
    (tmp_path / "buggy.py").write_text("def grade(completion, answer, meta):\n    return completion.split('####')[1]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [str(folder / "problems.jsonl"), "--out", str(tmp_path / "out"), "--limit", "2", *asking]
    words[words.index("--grader") + 1] = "buggy:grade"
    words[words.index("--workers") + 1] = "1"
    assert pope(["evaluate", *words, "--samples", "2", "--answer-anywhere"]) == 0
    told = (
        "of grader 'buggy:grade' failed (error 4), and count as wrong; the first error: IndexError: list index out of"
    )
    assert told in capsys.readouterr().err
    assert pope(["mine", *words, "--k", "2", "--answer-anywhere"]) == 0
    out, err = capsys.readouterr()
    assert "warning: 2 of 2 verdicts of grader 'buggy:grade' failed" in err
    assert "Nothing was sampled" not in out


def test_it_is_explained_why_no_problem_and_no_prefix_was_found(folder, asking, tmp_path, capsys):
    asked = [*asking, "--answer-anywhere", "--limit", "2", "--k", "1", "--out", str(tmp_path)]
    asked[asked.index("--max-tokens") + 1] = "1"
    mining = ["mine", str(folder / "problems.jsonl"), *asked]
    assert pope(mining) == 0
    assert "hard.jsonl: 0 problems\nThere is nothing to search: --accept keeps" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"hard\.jsonl: there is no valid problem in it$"):
        pope(["search", str(tmp_path / "hard.jsonl"), *asked])
    assert pope([*mining, "--accept", "truncated"]) == 0
    assert pope(["search", str(tmp_path / "hard.jsonl"), *asked]) == 0
    assert "fallback (no rollout succeeded with any prefix; the longest one" in capsys.readouterr().out


def test_passwords_are_in_no_results_file(tiny, folder, capsys):
    engine = TransformersEngine(tiny.model, tiny.tokenizer)
    with serve(engine) as (url, _):
        address = url.replace("://", "://me:secret@")
        words = ["evaluate", str(folder / "problems.jsonl"), "--out", str(folder / "kept"), "--model", address,
                 "--served", "tiny", "--samples", "2", "--answer-anywhere", *TINY]  # fmt: skip
        assert pope(words) == 0
    for file in (folder / "kept").iterdir():
        assert "secret" not in file.read_text()
    assert "secret" not in "".join(capsys.readouterr())


def test_paths_that_cannot_be_read_or_written_are_named(folder, asking, tmp_path):
    (tmp_path / "file").write_text("")
    rows, long = str(tmp_path / "file"), str(tmp_path / ("x" * 300))
    for out in (tmp_path / "file" / "out", long):
        with pytest.raises(UserError, match="cannot write"):
            pope(["mine", str(folder / "problems.jsonl"), "--out", str(out), "--answer-anywhere", *asking])
    for words in (["mine", long, "--out", "o", *asking], ["mix", long, long, "--out", "o"],
                  ["export", long, "--to", "verl", "--out", "o"], ["train", long, "--model", "m", "--out", "o"],
                  ["export", rows, "--to", "verl", "--out", "o"],
                  ["evaluate", str(folder / "problems.jsonl"), "--out", rows, "--model", long,
                   "--answer-anywhere"]):  # fmt: skip
        with pytest.raises(UserError, match=r"x{300}|file"):
            pope(words)


def test_an_adapter_at_the_rate_for_all_weights_is_warned_of(tmp_path, capsys, caplog):
    row = dict.fromkeys(("id", "problem", "prompt", "answer", "meta", "stratum"), "x") | {"guided": False}
    write_parquet(tmp_path / "rows.parquet", [row | {"problem": str(at)} for at in range(32)])
    training = ["train", str(tmp_path / "rows.parquet"), "--model", "m", "--out", "o", "--dry-run"]
    for more in ([], ["--lora-rank", "4", "--set", "lr=1e-5"]):
        assert pope([*training, *more]) == 0
        assert not caplog.text
    assert pope([*training, "--lora-rank", "4"]) == 0
    assert "an adapter hardly moves at it: use --set lr=1e-5 or more" in caplog.text
    with pytest.raises(UsageError, match="--lora-rank must be at least 1, not 0: leave it out to train all weights"):
        pope([*training, "--lora-rank", "0"])
    capsys.readouterr()
    assert pope([*training, "--set", "extra.use_cpu=true", "extra.disable_tqdm=true"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["extra"] == {"use_cpu": True, "disable_tqdm": True}
