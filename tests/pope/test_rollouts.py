import json
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from engines_for_tests import Cut
from pope_serving import serve
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from retarget.errors import UserError
from retarget.pope.engines import open_engine
from retarget.pope.engines.local import TransformersEngine
from retarget.pope.engines.server import ServerEngine
from retarget.pope.evaluation import evaluate
from retarget.pope.grading import Grader
from retarget.pope.mining import mine
from retarget.pope.rollouts import Refused, Rollout, Sampling, thinking_tokens
from retarget.pope.studies.testbed import PROMPTS, train_base

PARAMS = Sampling(max_tokens=8, temperature=1.0, seed=5)


def test_a_prompts_rollouts_do_not_depend_on_the_batch_and_differ_between_chunks(engine, prompts):
    together = engine.sample(prompts, 6, PARAMS)
    assert [len(one) for one in together] == [6, 6, 6]
    alone = [engine.sample([prompt], 6, PARAMS)[0] for prompt in reversed(prompts)][::-1]
    assert together == alone
    assert engine.sample(prompts, 6, PARAMS.model_copy(update={"chunk": 1})) != together
    assert engine.sample(prompts, 6, PARAMS.model_copy(update={"seed": 6})) != together
    assert max(len({one.text for one in some}) for some in together) > 1


def test_the_callers_generator_and_mode_are_left_alone(engine, prompts):
    torch.manual_seed(1)
    expected = torch.rand(1)
    engine.model.train()
    torch.manual_seed(1)
    engine.sample(prompts[:1], 2, PARAMS)
    assert torch.equal(torch.rand(1), expected)
    assert engine.model.training
    engine.model.eval()


def test_tokens_and_truncation_are_counted(engine, prompts):
    (short,) = engine.sample(prompts[:1], 8, PARAMS.model_copy(update={"max_tokens": 1}))
    assert all(one.tokens == 1 and one.truncated for one in short)
    (whole,) = engine.sample(prompts[:1], 8, Sampling(max_tokens=40, temperature=0.0))
    assert len({one.text for one in whole}) == 1
    assert not whole[0].truncated
    assert whole[0].tokens == len(whole[0].text.split()) + 1  # the end-of-sequence token counts


def test_greedy_rollouts_are_the_models_own_argmax(engine, tiny, prompts):
    ids = engine.encode(prompts[0])
    for _ in range(20):
        with torch.no_grad():
            ids = [*ids, int(tiny.model(torch.tensor([ids])).logits[0, -1].argmax())]
        if ids[-1] == tiny.tokenizer.eos_token_id:
            break
    expected = tiny.tokenizer.decode(ids[len(engine.encode(prompts[0])) :], skip_special_tokens=True)
    assert engine.sample(prompts[:1], 1, Sampling(max_tokens=20, temperature=0.0))[0][0].text == expected


def test_chat_prompts_need_a_template(engine, tiny, tmp_path):
    messages = [{"role": "user", "content": tiny.problems[0].prompt}]
    with pytest.raises(UserError, match="no chat template"):
        engine.sample([messages], 1, PARAMS)
    tiny.tokenizer.save_pretrained(tmp_path)
    chatty = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    chatty.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %} ={% endif %}"
    )
    ids = TransformersEngine(tiny.model, chatty).encode(messages)
    assert chatty.decode(ids, skip_special_tokens=True) == f"{tiny.problems[0].prompt} ="


def test_the_server_engine_gets_what_the_server_samples(engine, prompts, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serve(engine) as (url, seen):
        client = open_engine(url, model="tiny", concurrency=3, per_request=2)
        rollouts = client.sample(prompts, 5, PARAMS)
        again = client.sample(prompts, 5, PARAMS)
        chat = client.sample([[{"role": "user", "content": prompts[0]}]], 1, PARAMS)
    assert [len(one) for one in rollouts] == [5, 5, 5]
    assert rollouts == again
    assert chat[0][0].text
    assert seen["peak"] <= 3
    assert set(seen["keys"]) == {"Bearer secret"}
    assert sorted(body["n"] for body in seen["bodies"][:9]) == [1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert len({body["seed"] for body in seen["bodies"][:9]}) == 9
    direct = engine.sample(prompts[:1], 2, Sampling(max_tokens=8, temperature=1.0, seed=PARAMS.unit_seed(prompts[0])))
    assert [one.text for one in rollouts[0][:2]] == [one.text for one in direct[0]]


def test_the_server_engine_retries_what_may_pass_and_gives_up_on_the_rest(engine, prompts):
    with serve(engine, faults=[503, 429, "drop"]) as (url, seen):
        client = ServerEngine(url, "tiny", wait=0.01, retries=3)
        assert len(client.sample(prompts[:1], 1, PARAMS)[0]) == 1
        assert len(seen["bodies"]) == 4
    with serve(engine, faults=[400]) as (url, seen):
        with pytest.raises(UserError, match="HTTP 400"):
            ServerEngine(url, "tiny", wait=0.01).sample(prompts[:1], 1, PARAMS)
        assert [body["prompt"] == prompts[0] for body in seen["bodies"]] == [True, False]  # then a short one
    with (
        serve(engine, choices=1) as (url, _),
        pytest.raises(UserError, match="1 completions for n=2: set --per-request 1"),
    ):
        ServerEngine(url, "tiny", per_request=2).sample(prompts[:1], 2, PARAMS)
    with (
        serve(engine, choices=2) as (url, _),
        pytest.raises(UserError, match="2 completions for n=1: it ignores n: use another server"),
    ):
        ServerEngine(url, "tiny", per_request=1).sample(prompts[:1], 2, PARAMS)
    with pytest.raises(UserError, match=r"failed: \w+Error"):
        ServerEngine("http://127.0.0.1:9/v1", "tiny", wait=0.0, retries=1).sample(prompts[:1], 1, PARAMS)


def test_engines_that_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match="--served NAME"):
        open_engine("http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="contains no model"):
        open_engine(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(batch_size=0), "batch_size must be a whole number of at least 1, not 0"),
        (dict(device="cpuu"), "device = 'cpuu' cannot be used: Expected one of cpu"),
    ],
)
def test_options_of_an_engine_with_wrong_values(tiny, options, message):
    with pytest.raises(UserError, match=message):
        open_engine(str(tiny.directory), **options)


def test_a_base_is_trained_once_and_loads_by_path(tiny):
    stamp = (tiny.directory / "model.safetensors").stat().st_mtime_ns
    assert train_base(tiny.base, tiny.cache) == tiny.directory
    assert (tiny.directory / "model.safetensors").stat().st_mtime_ns == stamp
    opened = open_engine(str(tiny.directory), batch_size=2)
    mine = TransformersEngine(tiny.model, tiny.tokenizer, batch_size=2)
    prompt = PROMPTS.without_prefix(tiny.problems[0].prompt)
    assert opened.sample([prompt], 3, PARAMS) == mine.sample([prompt], 3, PARAMS)


def test_a_models_own_generation_settings_do_not_join_in(tiny, prompts, engine):
    expected = engine.sample(prompts, 4, PARAMS)
    copy = TransformersEngine.load(str(tiny.directory), batch_size=4)
    copy.model.generation_config.repetition_penalty = 9.0
    copy.model.generation_config.min_p = 0.9
    assert copy.sample(prompts, 4, PARAMS) == expected
    assert copy.model.generation_config.repetition_penalty == 9.0


@pytest.mark.parametrize(("owner", "off"), [("vllm", True), ("somebody", False)])
def test_nor_do_they_through_a_server_that_fills_them_in(tiny, engine, owner, off):
    """vLLM would sample Qwen3 with its generation_config.json's top_k of 20, which the training does not use."""
    with serve(engine, models="w", owner=owner) as (url, seen):
        asked = ServerEngine(url, "tiny")
        evaluate(tiny.problems[:1], asked, 2, grader=Grader("exact"), prompts=PROMPTS, params=PARAMS)
        cut = PARAMS.model_copy(update={"top_k": 5})
        evaluate(tiny.problems[:1], asked, 2, grader=Grader("exact"), prompts=PROMPTS, params=cut)
    sent = [[body.get(name) for name in ("top_k", "min_p", "repetition_penalty")] for body in seen["bodies"]]
    assert sent[-3] == ([-1, 0.0, 1.0] if off else [None] * 3)
    assert sent[-1] == ([5, 0.0, 1.0] if off else [5, None, None])
    assert asked.identity.get("generation_config") == ("off" if off else None)


def test_an_adapter_opens_by_path_and_a_model_that_is_nowhere_does_not(tiny, prompts, tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(tiny.directory)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(model, lora).save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
    opened = open_engine(str(tmp_path), batch_size=4)
    direct = TransformersEngine(tiny.model, tiny.tokenizer, batch_size=4)
    assert opened.sample(prompts, 2, PARAMS) == direct.sample(prompts, 2, PARAMS)  # a new adapter adds nothing
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="empty: this directory contains no model"):
        open_engine("empty")


class Thinking:
    """An engine that thinks, then answers."""

    def sample(self, prompts, n, params):
        return [[Rollout(" 4", 8, False)] * n for _ in prompts]


def test_tokens_before_the_answer(tiny):
    count = TransformersEngine(tiny.model, tiny.tokenizer)._count
    thought, answer = "<think> 1 2 3 </think>", " 4 5"
    assert thinking_tokens(thought + answer, 7, lambda text: len(text.split())) == 5
    assert thinking_tokens(answer, 2, count) == 0
    assert thinking_tokens("<think> 1 2", 3, count) == 3  # it never came to an answer
    assert count("1 2 +3") == 3
    for told in (6, None):
        with serve(Thinking(), reasoning="2 + 2", reasoning_tokens=told) as (url, _):
            ((rollout,),) = ServerEngine(url, "m").sample([[{"role": "user", "content": "?"}]], 1, PARAMS)
        assert (rollout.tokens, rollout.thinking) == (8, told)
    with serve(Thinking()) as (url, _):
        ((rollout,),) = ServerEngine(url, "m").sample([[{"role": "user", "content": "?"}]], 1, PARAMS)
    assert rollout.thinking == 0


def test_a_server_process_that_dies_and_one_that_goes_on(tiny, tmp_path):
    def server(answers):
        command = [sys.executable, str(Path(__file__).parent / "pope_serving.py"), str(tiny.directory), str(answers)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return process, process.stdout.readline().strip()

    def work(url):
        engine = ServerEngine(url, "tiny", wait=0.01, retries=1, concurrency=1, per_request=4)
        return mine(tiny.problems[:3], engine, 4, grader=Grader("retarget.pope.studies.chain:verify", workers=0),
                    prompts=PROMPTS, params=PARAMS, chunk=4, batch=1, journal=tmp_path / "journal.jsonl")  # fmt: skip

    for answers in (4, 9):  # the first two are the probe's
        process, url = server(answers)
        with process:
            if answers == 4:
                with pytest.raises(UserError, match="in the journal: run the same command again"):
                    work(url)
                assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 1 + 2
                assert process.wait() == 1
            else:
                assert work(url).rollouts == 12
                process.stdin.close()
    with pytest.raises(UserError, match="not an address"):
        ServerEngine("http://[::1/v1", "tiny").sample(["?"], 1, PARAMS)


def test_a_folder_whose_files_are_no_model(tiny, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny.directory, folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be loaded"):
        open_engine(str(folder))
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        open_engine(str(folder))


def test_what_is_served_under_a_name_is_found_out(tiny, engine, tmp_path):
    def work(url, **options):
        with Grader("exact") as grader:
            return evaluate(tiny.problems[:2], ServerEngine(url, "tiny", wait=0.01, **options), 2, grader=grader,
                            prompts=PROMPTS, params=PARAMS, journal=tmp_path / "e.jsonl")  # fmt: skip

    with serve(engine, models="run-7") as (url, seen):
        assert work(url).sampled == 2
        asked = len(seen["bodies"])
        assert work(url).sampled == 0
        assert len(seen["bodies"]) == asked + 2  # the probe, twice
        header = json.loads((tmp_path / "e.jsonl").read_text().splitlines()[0])
        assert header["served"] == {"id": "tiny", "root": "run-7"}
    with serve(Cut(), models="run-7") as (url, _), pytest.raises(UserError, match=r"was made with probe = \w+ \(now"):
        work(url)
    with serve(engine, models="run-8") as (url, _), pytest.raises(UserError, match=r"served = .*run-7.*now .*run-8"):
        work(url)
    (tmp_path / "e.jsonl").unlink()
    with serve(engine) as (url, seen):
        work(url, fingerprint="step 10")
        assert all(body["temperature"] for body in seen["bodies"])  # no probe
        with pytest.raises(UserError, match=r"fingerprint = step 10 \(now step 20\)"):
            work(url, fingerprint="step 20")


def test_keys_are_shown_nowhere_and_sent_to_no_one_else(engine, prompts, monkeypatch):
    secret = "sk-very-secret"
    monkeypatch.setenv("MY_KEY", secret)
    with serve(engine, faults=[401]) as (url, seen):
        client = ServerEngine(url, "tiny", key_variable="MY_KEY", wait=0.01)
        told = r"HTTP 401.* give a key that the server accepts \(that in MY_KEY was sent\), and run the same command"
        with pytest.raises(UserError, match=told) as caught:
            client.sample(prompts[:1], 1, PARAMS)
        assert secret not in str(caught.value)
        assert set(seen["keys"]) == {f"Bearer {secret}"}
        ServerEngine(url, "tiny", key_variable="none").sample(prompts[:1], 1, PARAMS)
        assert seen["keys"][-1] is None
    for url in ("http://example.org/v1", "http://10.0.0.1:8000/v1"):
        with pytest.raises(UserError, match="the key in MY_KEY would be sent over plain HTTP"):
            ServerEngine(url, "tiny", key_variable="MY_KEY")
    with pytest.raises(UserError, match="a password in the address would be sent over plain HTTP") as caught:
        ServerEngine("http://me:pass@example.org/v1", "tiny", key_variable="none")
    assert "pass@" not in str(caught.value)
    with pytest.raises(UserError, match="a key in the address would be sent over plain HTTP") as caught:
        ServerEngine("http://example.org/v1?api-version=2&subscription-key=abc", "tiny", key_variable="none")
    assert "api-version=2&subscription-key=***:" in str(caught.value)
    ServerEngine("https://example.org/v1", "tiny", key_variable="MY_KEY")
    for stray in ("sk-very-secret\r", "sk very"):
        monkeypatch.setenv("MY_KEY", stray)
        with pytest.raises(UserError, match="the key in MY_KEY contains a space") as caught:
            ServerEngine("http://127.0.0.1:9/v1", "tiny", key_variable="MY_KEY")
        assert "very" not in str(caught.value)
    address = "http://me:pass@127.0.0.1:9/v1"
    with pytest.raises(UserError, match="failed") as caught:
        ServerEngine(address, "tiny", key_variable="none", retries=0).sample(prompts[:1], 1, PARAMS)
    assert "pass@" not in str(caught.value)
    with pytest.raises(UserError, match="--served NAME") as caught:
        open_engine(address)
    assert "pass@" not in str(caught.value)


def test_switches_of_the_chat_template_reach_it(tiny, tmp_path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny.directory)
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if thinking %} hint{% endif %} ="
    plain = TransformersEngine(tiny.model, tokenizer)
    switched = TransformersEngine(tiny.model, tokenizer, template={"thinking": True})
    messages = [{"role": "user", "content": "1 +2"}]
    assert tokenizer.decode(plain.encode(messages), skip_special_tokens=True) == "1 +2 ="
    assert tokenizer.decode(switched.encode(messages), skip_special_tokens=True) == "1 +2 hint ="
    assert "template" not in plain.identity
    assert switched.identity["template"] == {"thinking": True}


def test_the_models_context_ends_a_completion_and_refuses_a_prompt(tmp_path):
    torch.manual_seed(0)
    small = GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=39)
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({str(n): n for n in range(40)}, unk_token="0"))
    )
    words.backend_tokenizer.pre_tokenizer = Whitespace()
    engine = TransformersEngine(GPT2LMHeadModel(small), words, name="small")
    (rollouts,) = engine.sample(["1 2 3"], 4, Sampling(max_tokens=400, temperature=1.0))
    assert all(one.tokens == 13 and one.truncated for one in rollouts if one.tokens == 13)
    assert max(one.tokens for one in rollouts) == 13
    with pytest.raises(Refused, match="16 tokens leaves no room in the model's context of 16"):
        engine.sample([" ".join(["1"] * 16)], 1, PARAMS)
