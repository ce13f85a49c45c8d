"""The files beside exported rows run as the other trainers call them."""

import importlib.util
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet
import pytest
import torch

from retarget.errors import UserError
from retarget.pope.export import export
from retarget.pope.mixture import mix
from retarget.pope.problems import Problem
from retarget.pope.prompts import Prompts

PROBLEMS = [Problem(id=f"p{i}", prompt=f"What is {i} + 1?", solution="s", answer=str(i + 1)) for i in range(6)]


@pytest.fixture
def rows():
    return mix(PROBLEMS, {one.id: f"We begin with {one.id}." for one in PROBLEMS}, prompts_per_batch=4)


def load(path):
    spec = importlib.util.spec_from_file_location("reward", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_verls_reward_scores_rows_of_the_file(tmp_path, rows):
    files = export(rows, "verl", tmp_path / "rows.parquet", grader="exact")
    names = ["rows.parquet", "rows.validation.parquet", "rows.reward.py", "rows.launch.sh"]
    assert [file.name for file in files] == names
    reward = load(tmp_path / "rows.reward.py")
    for row in pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist():
        gold = row["reward_model"]["ground_truth"]
        for said, score in ((f"\\boxed{{{gold}}}", 1.0), ("none", 0.0)):
            found = reward.compute_score(row["data_source"], said, gold, row["extra_info"])
            assert (found["score"], found["answered"]) == (score, score)
        thought = (row["data_source"], f"Try \\boxed{{{gold}}}? No wait,", gold, row["extra_info"])
        assert reward.compute_score(*thought)["score"] == 1.0
        reward.OPENS_THINKING = True
        assert reward.compute_score(*thought)["score"] == 0.0
        reward.OPENS_THINKING = False
    validation = pyarrow.parquet.read_table(tmp_path / "rows.validation.parquet").to_pylist()
    assert {row["data_source"] for row in validation} == {"pope/unguided"}
    script = (tmp_path / "rows.launch.sh").read_text()
    assert ' reward.custom_reward_function.path="$here/rows.reward.py"' in script
    assert "data.shuffle=False" in script
    assert "data.max_prompt_length=2048" in script
    assert "data.max_response_length=16384" in script
    # verl's ActorConfig wants a micro-batch, or this; a micro-batch must hold the longest row
    assert "actor.use_dynamic_bsz=True" in script
    assert f"actor.ppo_max_token_len_per_gpu={2048 + 16384} " in script
    assert "actor.loss_agg_mode=seq-mean-token-sum" in script
    assert "{" not in script.replace("BASH_SOURCE", "")


def test_rows_that_verl_would_never_train_on_are_reported(tmp_path, rows, caplog):
    export(rows, "verl", tmp_path / "rows.parquet")
    assert "verl would never train on the last 12 of 12 rows" in caplog.text
    script = (tmp_path / "rows.launch.sh").read_text()
    assert "data.train_batch_size=32 " in script
    assert "ppo_mini_batch_size=32 " in script
    caplog.clear()
    many = [Problem(id=f"p{at}", prompt=f"{at}?", solution="s", answer="4") for at in range(32)]
    export(mix(many, {one.id: "We begin." for one in many}), "verl", tmp_path / "many.parquet")
    export(rows, "openrlhf", tmp_path / "others.jsonl")
    assert not caplog.text


def test_an_export_does_not_replace_the_scripts_of_another(tmp_path, rows):
    export(rows, "verl", tmp_path / "rows.parquet")
    before = (tmp_path / "rows.launch.sh").read_text()
    with pytest.raises(UserError, match=r"rows\.launch\.sh belongs to another export than rows\.jsonl"):
        export(rows, "openrlhf", tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()
    export(rows, "verl", tmp_path / "rows.parquet", grader="exact")  # the same again, otherwise
    assert (tmp_path / "rows.launch.sh").read_text() == before


@pytest.mark.parametrize("per_batch", [32, 48])
@pytest.mark.parametrize("hold_out", [0.0, 0.2])
def test_verl_trains_both_rows_of_a_problem_in_one_batch(tmp_path, per_batch, hold_out):
    many = [Problem(id=f"p{at}", prompt=f"{at}?", solution="s", answer="4") for at in range(96)]
    mixed = mix(many, {one.id: "We begin." for one in many}, prompts_per_batch=per_batch)
    export(mixed, "verl", tmp_path / "rows.parquet", hold_out=hold_out)
    found = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert len({row["extra_info"]["id"] for row in found}) == len(found) == 2 * round(96 * (1 - hold_out))
    batches = {}
    for at, row in enumerate(found[: len(found) // 32 * 32]):
        batches.setdefault(row["extra_info"]["problem"], []).append(at // 32)
    assert all(of[0] == of[-1] for of in batches.values())


def test_openrlhfs_reward_knows_the_stratum_of_a_prompt(tmp_path, rows):
    export(rows, "openrlhf", tmp_path / "rows.jsonl", grader="exact")
    reward = load(tmp_path / "rows.reward.py")
    records = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    for record in records:
        prompt = f"<|user|>{record['prompt'][-1]['content']}<|assistant|>"
        found = reward.reward_func([f"{prompt}#### {record['label']}<|im_end|>"], [prompt], [record["label"]])
        assert found["rewards"].tolist() == [1.0]
        assert found["extra_logs"]["guided"].tolist() == [float(record["guided"])]
        assert reward.reward_func([prompt], [prompt], [record["label"]])["scores"].tolist() == [0.0]
    reward.OPENS_THINKING = True
    query = f"{prompt}\\boxed{{{record['label']}}}<|im_end|>"
    assert reward.reward_func([query], [prompt], [record["label"]])["scores"] == 0.0
    said = subprocess.run(
        ["bash", tmp_path / "rows.launch.sh", "echo"], capture_output=True, text=True, check=True
    ).stdout
    assert said.split() == [
        "--data.prompt_dataset", f"{tmp_path}/rows.jsonl", "--data.input_key", "prompt", "--data.label_key", "label",
        "--data.apply_chat_template", "--reward.remote_url", f"{tmp_path}/rows.reward.py",
    ]  # fmt: skip


def test_openrlhf_applies_no_chat_template_to_prompts_that_are_texts(tmp_path, rows):
    texts = [{**row, "prompt": row["prompt"][-1]["content"]} for row in rows]
    export(texts, "openrlhf", tmp_path / "rows.jsonl")
    script = tmp_path / "rows.launch.sh"
    said = subprocess.run(["bash", script, "echo"], capture_output=True, text=True, check=True).stdout
    assert said.split()[-4:] == ["--data.label_key", "label", "--reward.remote_url", f"{tmp_path}/rows.reward.py"]
    with pytest.raises(UserError, match="some prompts are texts and some are messages"):
        export([texts[0], *rows[1:]], "openrlhf", tmp_path / "mixed.jsonl")
    assert not (tmp_path / "mixed.jsonl").exists()


def test_openrlhfs_queries_are_read_as_it_sends_them(tmp_path):
    """With the end token, without the prompt's beginning where that was too long, and trimmed by the chat template."""
    long = Problem(id="long", prompt=f"\n{'Count. ' * 100}What is 3 + 1? ", solution="s", answer="4", meta={"a": 1})
    export(mix([long, *PROBLEMS], {}), "openrlhf", tmp_path / "rows.jsonl", hold_out=0.5)
    reward = load(tmp_path / "rows.reward.py")
    rows = [json.loads(line) for name in ("rows", "rows.validation")
            for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]  # fmt: skip
    (row,) = (row for row in rows if "long" in row["id"])
    prompt = f"<|user|>{row['prompt'][-1]['content'].strip()}<|assistant|>"
    said = {
        "#### 4<|im_end|>": 1, "The answer is 4.</s>": 1, "The answer is $4$.<|eot_id|><|endoftext|>\n": 1,
        "The answer is 4. But let me check by": 0, "The answer is 5.</s>": 0,
    }  # fmt: skip
    for query in (prompt, f"<s>{prompt}", prompt[300:]):
        found = reward.reward_func([query + one for one in said], [prompt] * len(said), ["4"] * len(said))
        assert found["rewards"].tolist() == list(said.values())
        assert found["extra_logs"]["cut_off"].tolist() == [0, 0, 0, 1, 0]
    for query, of, message in ((prompt, "Who?", "no row of"), ("4</s>", prompt, "does not contain its prompt's end")):
        with pytest.raises(ValueError, match=message):
            reward.reward_func([query], [of], ["4"])


@pytest.mark.parametrize("host", ["verl", "openrlhf"])
def test_a_reward_is_called_from_many_threads_at_once(tmp_path, rows, host):
    suffix = {"verl": "parquet", "openrlhf": "jsonl"}[host]
    export(rows, host, tmp_path / f"rows.{suffix}")
    reward = load(tmp_path / "rows.reward.py")
    row = next(row for row in rows if not row["guided"])
    prompt = row["prompt"][-1]["content"]

    def ask(at):
        said = f"#### {row['answer'] if at % 3 else 'x'}"
        if host == "verl":
            return reward.compute_score("pope/unguided", said, row["answer"], {"meta": row["meta"]})["score"]
        return reward.reward_func([f"{prompt}{said}</s>"], [prompt], [row["answer"]])["rewards"].item()

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(64))) == [float(at % 3 > 0) for at in range(64)]


def test_what_a_host_could_not_read_is_not_written(tmp_path, rows):
    for host, name in (("verl", "v.jsonl"), ("openrlhf", "o.parquet"), ("prime-rl", "p.json"), ("opsd", "d.csv")):
        with pytest.raises(UserError, match=f"{host} reads the format from the file's name"):
            export(rows, host, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("host", ["verl", "openrlhf", "prime-rl"])
def test_held_out_problems_are_in_no_training_row(tmp_path, rows, host):
    def read(path):
        if host == "verl":
            return [row["extra_info"]["problem"] for row in pyarrow.parquet.read_table(path).to_pylist()]
        records = [json.loads(line) for line in path.read_text().splitlines()]
        return [(row.get("info") or {"problem": row.get("id", "").partition("/")[0]})["problem"] for row in records]

    train, check = export(rows, host, tmp_path / ("r.parquet" if host == "verl" else "r.jsonl"), hold_out=0.34)[:2]
    assert len(read(train)) == 8
    assert len(read(check)) == len(set(read(check))) == 2
    assert not set(read(train)) & set(read(check))
    with pytest.raises(UserError, match="at least 0 and below 1"):
        export(rows, host, tmp_path / "x", hold_out=1.0)
    with pytest.raises(UserError, match="must not contain quotes"):
        export(rows, host, tmp_path / "x", grader='math"); evil("')


def test_prime_rls_taskset_is_python_and_its_launch_script_names_it(tmp_path, rows):
    files = export(rows, "prime-rl", tmp_path / "My rows-1.jsonl", grader="exact")
    names = ["My rows-1.jsonl", "My rows-1.validation.jsonl", "pope_my_rows_1_taskset.py", "My rows-1.launch.sh"]
    assert [file.name for file in files] == names
    compile(files[2].read_text(), str(files[2]), "exec")
    said = subprocess.run(["bash", files[3], "echo"], capture_output=True, text=True, check=True).stdout
    assert said == f"--env.taskset.id pope_my_rows_1_taskset --env.taskset.path {tmp_path}/My rows-1.jsonl\n"


def test_verifiers_reads_and_rewards_exported_rows(tmp_path, rows, monkeypatch):
    """With verifiers' own loader and scoring, if it is installed."""
    vf = pytest.importorskip("verifiers.v1", reason="verifiers is not installed: pip install 'verifiers==0.4.*'")
    import asyncio

    from verifiers.v1.graph import MessageNode
    from verifiers.v1.trace import AgentInfo, TraceTask
    from verifiers.v1.types import AssistantMessage

    export(rows, "prime-rl", tmp_path / "rows.jsonl", grader="exact")
    monkeypatch.syspath_prepend(tmp_path)
    name = "pope_rows_taskset"
    for file, kept in (("rows.jsonl", rows), ("rows.validation.jsonl", [row for row in rows if not row["guided"]])):
        config = vf.SingleAgentEnvConfig(taskset={"id": name, "path": file})
        tasks = list(vf.load_environment(config).taskset)
        assert [task.data.id for task in tasks] == [row["id"] for row in kept]
        for task, row in zip(tasks, kept, strict=True):
            data = task.data
            said = {"system": data.system_prompt, "user": data.prompt}
            assert [{"role": role, "content": said[role]} for role in ("system", "user")] == row["prompt"]
            assert (data.answer, data.stratum, data.guided) == (row["answer"], row["stratum"], row["guided"])
    for text, reward in ((f"#### {row['answer']}", 1.0), ("#### nothing", 0.0)):
        said = MessageNode(message=AssistantMessage(content=text), sampled=True)
        of = dict(task=TraceTask(type="PopeTask", data=task.data), agent=AgentInfo(config=vf.AgentConfig()))
        trace = vf.Trace(nodes=[said], **of)
        asyncio.run(task.score(trace))
        assert trace.rewards["correct"].score == reward
        assert trace.metrics == {"guided": 0.0}


def test_opsd_rows_are_the_unguided_ones_with_what_the_teacher_sees(tmp_path, rows, caplog):
    files = export(rows, "opsd", tmp_path / "rows.jsonl", hold_out=0.34, grader="exact")
    assert [file.name for file in files] == ["rows.jsonl", "rows.validation.jsonl", "rows.train.py"]
    train, check = ([json.loads(line) for line in file.read_text().splitlines()] for file in files[:2])
    assert (len(train), len(check)) == (4, 2)
    prompts = {row["problem"]: row["prompt"] for row in rows if not row["guided"]}
    for row in (*train, *check):
        assert row["prompt"] == prompts[row["problem"]]
        assert row["privileged_context"] == row["info"]["privileged_context"] == f"We begin with {row['problem']}."
    some = {"p1": "A whole solution.", "p2": " ", "unknown": "s"}
    export(rows, "opsd", tmp_path / "whole.parquet", solutions=some)
    (one,) = pyarrow.parquet.read_table(tmp_path / "whole.parquet").to_pylist()
    assert (one["id"], one["privileged_context"], one["answer"]) == ("p1/unguided", "A whole solution.", "2")
    assert "5 of 6 problems have no privileged context and are left out" in caplog.text
    with pytest.raises(UserError, match="no problem has both an unguided row and a privileged context"):
        export(mix(PROBLEMS, {}, prompts_per_batch=4), "opsd", tmp_path / "x.jsonl")
    with pytest.raises(UserError, match="only for the host opsd, as its privileged context, not for verl"):
        export(rows, "verl", tmp_path / "x.parquet", solutions=some)


@pytest.mark.parametrize("chat", [True, False])
def test_solutions_of_other_problems_with_the_same_ids_are_refused(tmp_path, chat):
    prompts = Prompts.load(chat=chat)
    rows = mix(PROBLEMS, {one.id: f"We begin with {one.id}." for one in PROBLEMS}, prompts, prompts_per_batch=4)
    solved = [one.model_copy(update={"solution": f"All of {one.id}."}) for one in PROBLEMS]
    file = export(rows, "opsd", tmp_path / "r.jsonl", solutions=solved)[0]
    said = [json.loads(line)["privileged_context"] for line in file.read_text().splitlines()]
    assert sorted(said) == [one.solution for one in solved]
    for change, name in (({"answer": "99"}, "answer"), ({"prompt": "Another?"}, "prompt")):
        others = [solved[0], solved[1].model_copy(update=change), *solved[2:]]
        with pytest.raises(
            UserError, match=f"problem '{solved[1].id}' of the solutions has another {name} than in the"
        ):
            export(rows, "opsd", tmp_path / "x.jsonl", solutions=others)


@pytest.mark.parametrize(("method", "suffix"), [("sdft", "jsonl"), ("sdpo", "parquet")])
def test_trls_own_trainers_learn_from_opsd_rows(tmp_path, tiny, method, suffix):
    """One update on the CPU; the teacher's prompt, as the trainer's own builder makes it, holds the context."""
    from retarget.pope.studies.chain import make_problems
    from retarget.pope.studies.testbed import PROMPTS as WORDS

    problems = make_problems(4, 3, seed=3)
    mixture = mix(problems, {one.id: one.solution.split("\n")[0] for one in problems}, WORDS, prompts_per_batch=4)
    file = export(mixture, "opsd", tmp_path / f"rows.{suffix}", grader="retarget.pope.studies.chain:verify")[-1]
    words = f"""--model_name_or_path {tiny.directory} --output_dir {tmp_path}/out --max_steps 1 --num_generations 2
        --per_device_train_batch_size 4 --gradient_accumulation_steps 1 --max_completion_length 4 --use_cpu true
        --bf16 false --report_to none --gradient_checkpointing false --disable_tqdm true --save_strategy no
        --learning_rate 1e-3 --temperature 1.0 --distillation_topk 8"""
    plain = ["--reprompt_template", "{prompt} {feedback}", "--feedback_template", "{feedback_raw}"]  # it knows no words
    trainer = load(file).main(method, *words.split(), *(plain if method == "sdpo" else []))
    assert trainer.state.global_step == 1
    assert (tmp_path / "out" / "model.safetensors").exists()
    loaded = next(iter(trainer.get_train_dataloader()))
    contexts = [row["privileged_context"] for row in loaded]
    assert set(contexts) <= {one.solution.split("\n")[0] for one in problems}
    prompts, ids = [row["prompt"] for row in loaded], torch.ones(len(loaded), 2, dtype=torch.long)
    batch = {"completion_ids": ids, "completion_mask": ids}
    if method == "sdft":
        made = trainer.teacher_context_builder.build(prompts, contexts, ids, ids)["teacher_input_ids"]
    else:
        made = trainer.teacher_context_builder.build(batch, prompts, torch.zeros(len(loaded)), feedbacks=contexts)
        assert made["self_distillation_mask"].tolist() == [1.0] * len(loaded)
        made = made["teacher_input_ids"]
    for row, context in zip(made, contexts, strict=True):
        assert context in trainer.processing_class.decode(row, skip_special_tokens=True)


def test_verl_without_a_row_to_validate_on_is_refused(tmp_path, rows):
    with pytest.raises(UserError, match="mix in unguided rows"):
        export([one for one in rows if one["guided"]], "verl", tmp_path / "rows.parquet", grader="exact")
