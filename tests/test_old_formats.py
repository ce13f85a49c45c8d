"""Files of version 0.1 can be opened, are recognised as done, and can be continued; see fixtures/v0.1/README.md."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from retarget.cli import main
from retarget.pope.graders import RULES
from retarget.pskd import PSKD, PreviousModel, PSKDCallback, TopK
from retarget.study.record import Results

sys.path.append(str(Path(__file__).parent / "fixtures" / "v0.1"))

import trained

V01 = Path(trained.__file__).parent

PSKD_STUDY = (
    "pskd --preset demo --set epochs=2 train_images=120 validation_images=40 test_images=60 label_noise=0.2 "
    "--arms cross_entropy pskd --jobs 1"
)
POPE_STUDY = (
    "pope --preset demo --set base_steps=150 hard_problems=6 held_problems=6 mine_k=4 search_k=4 cuts=1 cycles=1 "
    "prompts_per_batch=2 rollouts=2 micro_batch=2 samples=16 match_rollouts=false --seeds 0 --jobs 1"
)
TROJDIFF_STUDY = (
    "trojdiff --preset demo --set pretrain.steps=3 finetune.steps=3 classifier_epochs=1 gate_sure=0 gate_precision=0 "
    "curve_points=0 probe_images=4 train_images=60 samplers.fast.sampler=ddpm-2 samplers.fast.benign=6 "
    "samplers.fast.trojan=4 samplers.ddim.sampler=ddim-2 samplers.ddim.trojan=4 samplers.full.sampler=ddpm-2 "
    "samplers.full.trojan=4 --arms pretrained clean in_d2d_blend --seeds 0 --jobs 1"
)
STUDIES = {
    "study-pskd": (PSKD_STUDY + " --seeds 0 1", 4),
    "study-pope": (POPE_STUDY, 3),
    "study-trojdiff": (TROJDIFF_STUDY, 3),
}


@pytest.fixture
def old(tmp_path):
    """Copy one of the folders of version 0.1; returns the copy."""
    return lambda name: Path(shutil.copytree(V01 / name, tmp_path / name))


def study(command: str, folder: Path) -> int:
    return main(["study", *shlex.split(command), "--out", str(folder)])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def runs_of(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder / "runs").items() if not name.endswith(".lock")}


# -- studies


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_of_an_old_study_is_read(name):
    results = Results.load(V01 / name)
    recorded = {path.parent: json.loads(path.read_text()) for path in (V01 / name).glob("runs/*/*/status.json")}
    found = {
        run.directory: run.metrics
        for condition in results.plan.conditions
        for arm in results.plan.arms
        for seed in results.seeds
        if (run := results.run(condition.name, arm.name, seed))
    }
    assert found == {folder: status["metrics"] for folder, status in recorded.items()}
    assert len(found) == STUDIES[name][1]


@pytest.mark.parametrize("name", ["study-pskd", "study-pope"])
def test_the_same_call_finds_every_run_of_an_old_study_finished(name, old, capsys):
    command, runs = STUDIES[name]
    folder = old(name)
    before = contents(folder)
    assert study(command + " --dry-run", folder) == 0
    survey = json.loads(capsys.readouterr().out)
    assert (survey["runs"], survey["finished"]) == (runs, runs)
    assert contents(folder) == before


def test_an_old_study_of_trojdiff_is_read_and_not_mixed_with_numbers_of_another_classifier(old, capsys):
    folder = old("study-trojdiff")
    before = contents(folder)
    assert study(STUDIES["study-trojdiff"][0] + " --dry-run", folder) == 1
    assert "task = retarget.trojdiff.tasks.images:run (now trojdiff-2)" in capsys.readouterr().err
    assert contents(folder) == before


def test_another_setting_than_the_old_one_is_refused(old, capsys):
    folder = old("study-pskd")
    assert study(STUDIES["study-pskd"][0].replace("epochs=2", "epochs=3") + " --dry-run", folder) == 1
    assert "epochs = 2 (now 3)" in capsys.readouterr().err


def test_the_same_call_on_an_old_study_trains_nothing_and_judges_it_again(old):
    folder = old("study-pskd")
    runs, before = runs_of(folder), json.loads((folder / "summary.json").read_text())
    assert study(STUDIES["study-pskd"][0], folder) == 0
    assert runs_of(folder) == runs
    after = json.loads((folder / "summary.json").read_text())
    for one, other in zip(before["claims"], after["claims"], strict=True):
        assert one["id"] == other["id"]
        if "a test needs" in (other.get("reason") or ""):  # the floors of today: two epochs are no test of anything
            assert (other["verdict"], other["estimate"]) == ("not measured", None)
        else:
            assert (one["verdict"], one["estimate"]) == (other["verdict"], other["estimate"])
    assert after["looks"] == before["looks"] == [[0, 1]]


def test_an_old_study_is_widened_by_a_seed_and_its_runs_stay_as_they_were(old):
    folder = old("study-pskd")
    before = runs_of(folder)
    assert study(PSKD_STUDY + " --seeds 2", folder) == 0
    after = runs_of(folder)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {"seed-2"}
    results = Results.load(folder)
    assert results.seeds == (0, 1, 2)
    assert all(results.run("default", arm, seed) for arm in ("cross_entropy", "pskd") for seed in range(3))
    (looked, now) = json.loads((folder / "summary.json").read_text())["looks"]
    assert (looked, now) == ([0, 1], [0, 1, 2])


@pytest.mark.parametrize("name", STUDIES)
def test_an_old_study_still_gets_a_page(name, old):
    folder = old(name)
    assert main(["report", str(folder), "--out", str(folder / "page.html")]) == 0
    assert Results.load(folder).plan.question in (folder / "page.md").read_text()


# -- POPE's journals

ASKING = (
    "--model model --templates templates --no-chat --max-tokens 8 --temperature 1.0 --chunk 4 --grader numeric "
    "--workers 0 --answer-anywhere"
)


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("mine problems.jsonl --out out --k 8", ["outcomes.jsonl", "hard.jsonl"]),
        ("search out/hard.jsonl --out out --k 4 --cuts 2 --cap 0.75 --unit line", ["prefixes.jsonl"]),
        ("evaluate problems.jsonl --out out --samples 4 --k 1 4", ["evaluation.json"]),
    ],
)
def test_an_old_journal_spares_all_sampling(command, written, old, monkeypatch):
    monkeypatch.delitem(RULES, "numeric")  # as long as its grader's rules are the same
    folder = old("pope")
    before = contents(folder / "out")
    for name in written:
        (folder / "out" / name).unlink()
    monkeypatch.chdir(folder)
    assert main(["pope", *shlex.split(f"{command} {ASKING}")]) == 0
    after = contents(folder / "out")
    assert after.keys() == before.keys()  # nor was another journal begun
    for name in before.keys() - {"evaluation.json", *written}:
        assert after[name] == before[name]
    for name in set(written) - {"evaluation.json"}:  # rows may say more than they did
        rows = [[json.loads(line) for line in one[name].splitlines()] for one in (before, after)]
        assert [{**new, **old} for old, new in zip(*rows, strict=True)] == rows[1]
    evaluations = [json.loads(one["evaluation.json"]) for one in (before, after)]
    assert evaluations[1] | {"settings": None} == evaluations[0] | {"settings": None}


def test_an_old_journal_is_not_continued_by_other_rules(old, monkeypatch, capsys):
    monkeypatch.chdir(old("pope"))
    assert main(["pope", *shlex.split(f"mine problems.jsonl --out out --k 8 {ASKING}")]) == 1
    assert "was made with grader_rules = nothing (now 7)" in capsys.readouterr().err


def test_an_old_journal_is_not_taken_for_another_model(old, monkeypatch, capsys):
    folder = old("pope")
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    monkeypatch.chdir(folder)
    assert main(["pope", *shlex.split(f"mine problems.jsonl --out out --k 8 {ASKING}")]) == 1
    assert "weights" in capsys.readouterr().err


def test_a_journal_is_not_continued_with_another_chat_template(old, monkeypatch, capsys):
    """Published models keep it in tokenizer_config.json, whose hash the first versions did not record."""
    folder = old("pope")
    monkeypatch.chdir(folder)
    assert main(["pope", *shlex.split(f"mine problems.jsonl --out new --k 2 {ASKING}")]) == 0
    path = folder / "model" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 77}))
    assert main(["pope", *shlex.split(f"mine problems.jsonl --out new --k 4 {ASKING}")]) == 1
    assert "tokenizer = " in capsys.readouterr().err


# -- PS-KD's states


@pytest.mark.parametrize("name", ["dense", "topk", "previous_model"])
def test_an_old_state_of_ps_kd_gives_the_same_targets(name):
    expected = json.loads((V01 / "pskd" / "expected.json").read_text())[name]
    x, labels = trained.samples()
    index = torch.arange(len(labels))
    store = {"dense": "dense", "topk": TopK(2), "previous_model": PreviousModel(torch.nn.Linear(6, 4))}[name]
    for epoch in range(1, 2 if name == "previous_model" else 3):  # which would take its present weights in epoch 2
        method = PSKD(len(labels), 4, trained.EPOCHS, store=store)
        method.load(V01 / "pskd" / f"{name}.safetensors")
        state = method.state_dict()
        assert {key: state[key] for key in expected["state"]} == expected["state"]
        method.set_epoch(epoch)
        found = method.soften(labels, index, inputs=x if name == "previous_model" else None)
        torch.testing.assert_close(found, torch.tensor(expected[f"epoch {epoch}"]))
        assert method.fallbacks == expected.get(f"fallbacks in epoch {epoch}", 0)


def test_an_old_checkpoint_of_the_lightning_callback_trains_on_to_the_same_weights(old):
    folder = old("pskd")
    method = PSKD(len(trained.samples()[1]), 4, trained.EPOCHS)
    callback, module = PSKDCallback(method, directory=folder / "lightning"), trained.Module()
    trained.fit(module, callback, folder, epochs=trained.EPOCHS, checkpoint=folder / "lightning" / "last.ckpt")
    assert_close(module.state_dict(), load_file(folder / "lightning-trained.safetensors"))


def test_an_old_checkpoint_of_the_hf_trainer_trains_on_to_the_same_weights(old):
    folder = old("pskd")
    trainer = trained.hf_trainer(folder / "hf")
    trainer.train(resume_from_checkpoint=str(folder / "hf" / "checkpoint-2"))
    assert trainer.state.global_step == trained.EPOCHS
    assert_close(trainer.model.state_dict(), load_file(folder / "hf-trained.safetensors"))


# -- TrojDiff's states


def test_an_old_state_of_trojdiff_trains_on_to_the_same_weights(old, monkeypatch, capsys):
    folder = old("trojdiff")
    monkeypatch.chdir(folder)
    command = (
        "train --data digits --base base --out run --target d2i --trigger patch --patch-size 2 --rows 3 --steps 6 "
        "--batch-size 8 --learning-rate 1e-3 --ema-decay 0.5 --save-every 4 --log-every 1"
    )
    assert main(["trojdiff", *shlex.split(command)]) == 0
    *steps, pipeline = capsys.readouterr().out.splitlines()
    assert [json.loads(step)["step"] for step in steps] == [5, 6]
    found = load_file(Path(pipeline) / "unet" / "diffusion_pytorch_model.safetensors")
    assert_close(found, load_file("trained.safetensors"))


def assert_close(found, expected):
    """The weights of a training are those of another machine to their last digits."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
