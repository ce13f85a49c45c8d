"""The recipes for eight GPUs: accelerate reads the launch files, TRL takes the options, a dry run the settings.

One launch is done in its smallest form, by two processes on this machine's CPU.
"""

import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from trl.scripts.vllm_serve import make_parser

from retarget.cli import main
from retarget.pope.mixture import mix, write_rows
from retarget.pope.problems import read_problems
from retarget.pope.prompts import Prompts

sys.path.insert(0, str(Path(__file__).parents[1]))
from documents import ROOT, blocks, example

FOLDER = ROOT / "examples" / "pope_8_gpus"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Rows to train on, as many as a batch of the recipes holds, under the name used in the commands."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "work").mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "problems.jsonl").write_text(
        "".join(json.dumps(one) + "\n" for one in example("pope_own_problems").PROBLEMS)
    )
    problems = [
        problem.model_copy(update={"id": f"{problem.id}-{copy}", "prompt": f"{copy}. {problem.prompt}"})
        for problem in read_problems(folder / "problems.jsonl") for copy in range(4)
    ]  # fmt: skip
    prefixes = {problem.id: problem.solution.split("\n")[0] for problem in problems}
    write_rows(folder / "work" / "rows.parquet", mix(problems, prefixes, Prompts.load(chat=False), prompts_per_batch=2))
    return folder


def commands():
    """The commands of the page, without the environment variables before them."""
    text = "".join(blocks(ROOT / "docs" / "clusters.md", "console")).replace("\\\n", " ")
    found = [shlex.split(line.removeprefix("$ ")) for line in text.splitlines()]
    return [words[words[0].startswith("CUDA") :] for words in found if "study" not in words]


def launches():
    """The arguments of accelerate, and those of the training that it launches."""
    for words in commands():
        if words[0] == "accelerate":
            at = words.index("retarget")
            yield words[2 : at + 1], words[at + 1 :]


def test_every_launch_is_understood_and_its_training_accepted(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    kinds = {}
    for launch, training in launches():
        given = launch_command_parser().parse_args(launch)
        config = load_config_from_file(given.config_file)
        understood, _, _ = _validate_launch_command(given)
        assert (understood.num_processes, understood.module) == (config.num_processes, True)
        kinds[training[training.index("--out") + 1]] = config.distributed_type
        assert main([*training, "--dry-run", "--processes", str(config.num_processes)]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["rows"] == 32
        assert printed["settings"]["vllm"] in ("colocate", "server")
    expected = {"work/lora": DistributedType.MULTI_GPU, "work/fsdp": DistributedType.FSDP, "work/zero3": "DEEPSPEED"}
    assert kinds == expected
    named = {
        Path(word).name for launch, training in launches() for word in (*launch, *training) if "pope_8_gpus" in word
    }
    assert named == {path.name for path in FOLDER.iterdir()}


def test_the_servers_words_are_trls_and_the_dry_run_of_the_page_passes(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    (serve,) = [words[2:] for words in commands() if words[:2] == ["trl", "vllm-serve"]]
    given, rest = make_parser().parse_args_and_config(args=serve, return_remaining_strings=True)
    assert (rest, given.tensor_parallel_size, given.data_parallel_size) == ([], 4, 1)
    (looked,) = [words for words in commands() if words[0] == "retarget"]
    assert main(looked[1:]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert given.max_model_len == settings["max_prompt_length"] + settings["max_completion_length"]
    assert f"vllm_max_model_length = {given.max_model_len}" in (FOLDER / "colocate.toml").read_text()


def test_a_dry_run_refuses_what_a_launch_would(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    words = ["pope", "train", "work/rows.parquet", "--model", "m", "--out", "work/none"]
    assert main([*words, "--processes", "7", "--dry-run"]) == 1
    assert "does not divide into 7 processes" in capsys.readouterr().err
    assert main([*words, "--dry-run", "--set", "extra.vllm_tensor_paralel_size=2"]) == 1
    assert (
        "trl.GRPOConfig has no field vllm_tensor_paralel_size; did you mean vllm_tensor_parallel_size?"
        in capsys.readouterr().err
    )
    assert main([*words, "--processes", "2"]) == 2
    assert "accelerate launch --num_processes" in capsys.readouterr().err
    assert not Path("work/none").exists()


def test_two_processes_of_accelerate_train_one_model(work, monkeypatch):
    """One group per process: a line has both strata only if the processes exchanged them."""
    monkeypatch.chdir(work)
    model = example("pope_own_problems").tiny_model(work / "model")
    launch, training = next(launches())
    at = training.index("--config")
    tiny = ["prompts_per_batch=2", "rollouts=4", "micro_batch=4", "max_completion_length=8", "save_every=1", "lr=1e-2",
            "extra.disable_tqdm=true"]  # fmt: skip
    words = [*training[:at], "--model", str(model), "--cycles", "2", "--set", *tiny]
    smaller = [*launch[:-2], "--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *smaller, *launch[-2:], *words]
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **quiet})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("2 steps by 2 processes") == 1, "the first process alone speaks"
    lines = [json.loads(line) for line in (work / "work" / "lora" / "history.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert all(math.isfinite(line[f"{stratum}/length"]) for line in lines for stratum in ("guided", "unguided"))
    adapter = load_file(work / "work" / "lora" / "adapter_model.safetensors")
    assert any(value.abs().sum() > 0 for name, value in adapter.items() if "lora_B" in name)
