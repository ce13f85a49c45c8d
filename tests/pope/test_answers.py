import copy
from types import SimpleNamespace

import pytest
from tokenizers import AddedToken

from retarget.pope.answers import final_answer, stated_answer
from retarget.pope.boxes import joined_boxes
from retarget.pope.engines.local import TransformersEngine
from retarget.pope.engines.vllm import VLLMEngine
from retarget.pope.grading import Grader, Reward
from retarget.pope.problems import Problem
from retarget.pope.rollouts import Rollout, Sampling
from retarget.pope.sampler import Sampler
from retarget.pope.trl import informed

STATED = {
    "so the answer is therefore $42$": "42",
    "The answer is $1,234.": "1,234",
    "**Answer:** 12": "12",
    "The final answer is:\n 12.": "12",
    "The final answer is $45$. I hope it is correct.": "45",
    "the answer to the second question must be \\(\\frac{1}{2}\\)": "\\frac{1}{2}",
    "The answer is 2\\sqrt{3} cm.": "2\\sqrt{3}",
    "The answer is (B).": "(B)",
    "The answer is x = 5.": "x = 5",
    "The answer is $3$ and $5$.": "3, 5",
    "The answer is 12 dollars per week": "12",
    "The answer is 42, because 6 * 7 = 42.": "42",
    "#### New York": "New York",
    "The answer is **No**.": "No",
    "#### 3\nthe answer = 4": "4",
    "The answer is 3. I hope that the answer is helpful.": "3",
    "答案是 18": "18",
    "所以答案是18个苹果。": "18",
    "答案：$\\frac{1}{2}$。": "\\frac{1}{2}",
    "答案为18，因为6乘3。": "18",
    "答えは18です。": "18",
    "最终答案是：**18**": "18",
    "**答案**：18": "18",
    "答案为：\\(x+1\\)": "x+1",
    "正确答案是：B": "B",
    "答えは、18です。": "18",
    "答案等于5": "5",
    "故选：B。": "B",
    "故選 B": "B",
    "The answer is **B**, since it fits.": "B",
}
UNSETTLED = (
    "The answer is", "the answer is at least {}", "The answer is at most {}.", "The answer is not {}.", "Step {}",
    "If the answer is {}, then we are done.", "the answer is {} or 4", "the answer is between {} and 50",
    "The answer is {} times as large.", "The answer is {} more than x.", "Is the answer {}?", "The answer is {}?",
    "The answer is {} if x is even.", "#### Step {}", "#### {}. Add them", "The answer is one of {}",
    "The answer is 3. No, the answer is at least {}.", "Let me think. There are {} cases to consider: first",
    "What is {} + 0?", "We know that $x = {}$, so", "Suppose the answer is {}.",
    "Therefore, our answer is $\\frac{84}{2} = ", "So our answer is $b^a = {} = The answer", "the answer is {} +",
    "I doubt that the answer is {}.", "It is unlikely that the answer is {}.", "One might think the answer is {}.",
    "答案是至少{}。", "答案是{}或50。", "答案是{}吗？", "如果答案是{}，那么", "答えは{}ではない。",
)  # fmt: skip


TAGGED = {
    "<think>6 * 7</think>\n<answer> 42 </answer>": "42",
    "<answer>41</answer> No: <answer>$x < 4$</answer>": "x < 4",
    "<answer>The answer is 42 apples.</answer>": "42",
    "<answer>\\boxed{42}</answer>": "42",
    "I write within <answer></answer>: <answer>...</answer>": None,
    "<answer>First line\n42</answer>": None,
    "<answer>42": None,
    "<think><answer>42</answer>": None,
}


@pytest.mark.parametrize("text", TAGGED)
def test_an_answer_in_a_tag_is_read(text):
    assert final_answer(text) == TAGGED[text]


@pytest.mark.parametrize("text", STATED)
def test_an_answer_in_words_is_read(text):
    assert stated_answer(text) == final_answer(text) == STATED[text]


def test_texts_that_give_no_answer_are_never_rewarded():
    texts = [one.replace("{}", form) for one in UNSETTLED for form in ("42", "$42$")]
    whole = "Six sevens.\n#### 42"
    with Grader("math") as grader:
        grades = grader.grade(texts, ["42"] * len(texts))
        (right, cut, thinking, unread) = grader.grade(
            [whole, whole, f"<think>{whole}", "so \\boxed{42"], ["42"] * 4, [{}, {"truncated": True}, {}, {}]
        )
    assert [text for text, grade in zip(texts, grades, strict=True) if grade.reward] == []
    assert (right.reward, cut.reward, thinking.reward, unread.reward) == (1, 0, 0, 0)


def test_an_empty_box_is_no_answer_and_hides_none():
    assert final_answer("We get \\boxed{42}. I put the answer within \\boxed{}.") == "42"
    assert final_answer("Put the answer within \\boxed{...}. The answer is 7.") == "7"
    assert final_answer("\\boxed{ }") is None
    assert final_answer("The final answer is $\\boxed{}$") is None
    assert joined_boxes("$\\boxed{3}$ or $\\boxed{-3}$, within \\boxed{}") == "3,-3"


CHOICES = (
    ("\\boxed{\\textbf{(A)}\\ 12}", "A", 1),
    ("\\boxed{\\textbf{(B)}\\ 12}", "A", 0),
    ("The answer is (B) 42.", "B", 1),
    ("The answer is option B.", "B", 1),
    ("\\boxed{A}", "\\textbf{(A)}\\ 12", 1),
    ("\\boxed{12}", "\\textbf{(A)}\\ 12", 1),
    ("\\boxed{B}", "\\textbf{(A)}\\ 12", 0),
    ("\\boxed{13}", "\\textbf{(A)}\\ 12", 0),
    ("\\boxed{C}", "\\text{(C)}", 1),
    ("\\boxed{A = 5}", "A", 0),
    ("\\boxed{AB}", "A", 0),
    ("\\boxed{A\\cap B}", "A\\cap C", 0),
    ("\\boxed{A(x)}", "A", 0),
    ("\\boxed{\\mathbf{B}^{-1}}", "\\mathbf{B}^T", 0),
)


def test_the_letter_of_an_option_is_the_answer_however_it_is_written():
    with Grader("math") as grader:
        grades = grader.grade([text for text, _, _ in CHOICES], [gold for _, gold, _ in CHOICES])
    assert [one.reward for one in grades] == [right for _, _, right in CHOICES]


NUMERALS = (
    ("1011_2", "1011_2", 1),
    ("1011_{2}", "1011_2", 1),
    ("1011_{\\text{two}}", "1011_2", 1),
    ("1{,}011_2", "1011_{2}", 1),
    ("1011", "1011_2", 1),  # the base is asked for in the problem
    ("2A_{16}", "2A_{16}", 1),
    ("1011_3", "1011_2", 0),
    ("1011_{\\text{three}}", "1011_2", 0),
    ("1010_2", "1011_2", 0),
    ("11", "1011_2", 0),
    ("x_1", "x_2", 0),
)


def test_the_base_of_a_numeral_is_part_of_it():
    with Grader("math") as grader:
        grades = grader.grade([f"\\boxed{{{said}}}" for said, _, _ in NUMERALS], [gold for _, gold, _ in NUMERALS])
    assert [one.reward for one in grades] == [right for _, _, right in NUMERALS]


def test_boxes_are_read_one_by_one_and_as_a_list():
    assert joined_boxes("so $x=\\boxed{3}$ or $x=\\boxed{-3}$.") == "3,-3"
    assert joined_boxes("Part one: \\boxed{3}. Now we turn to the second part of the problem: \\boxed{7}.") is None
    with Grader("math") as grader:
        grades = grader.grade(["$\\boxed{3}$ and $\\boxed{5}$"] * 3, ["\\{3, 5\\}", "5", "3"])
        assert [one.reward for one in grades] == [1, 0, 0]
        hedged = ("So $x=\\boxed{-3}$ or $x = \\boxed{5}$.", "\\boxed{A}, \\boxed{5}", "$\\boxed{4},$ and $\\boxed{5}$")
        assert not any(one.correct for one in grader.grade(hedged, ["5"] * 3))
        settled = ("$\\boxed{5}$ and $\\boxed{5}$", "$x=\\boxed{3}$, so it is $\\boxed{5}$.", "\\boxed{3} \\boxed{5}")
        assert all(one.correct for one in grader.grade(settled, ["5"] * 3))
        assert grader.grade(["\\boxed{(-\\infty,  2]}"], ["(-\\infty,2]"])[0].correct
        assert grader.grade(["The answer is $3$."], ["$3$"])[0].correct


def test_the_authors_rule_takes_the_last_box_near_the_end_alone():
    far = "\\boxed{4}" + " so" * 400
    texts = ["\\boxed{4}", "#### 4", "The answer is 4.", far, "\\boxed{4} no, \\boxed{5}", "<think>\\boxed{4}"]
    with Grader("boxed") as grader:
        grades = grader.grade(texts, ["4"] * 6, [{"truncated": True}] * 6)
    assert [one.reward for one in grades] == [1, 0, 0, 0, 0, 0]


class Fixed:
    """An engine that says the same, whole and cut off."""

    name = "fixed"

    def sample(self, prompts, n, params):
        return [[Rollout("#### 4", 3, False), Rollout("#### 4", 3, True)] for _ in prompts]


def test_a_sampler_tells_its_grader_which_rollouts_the_budget_ended():
    problem = Problem(id="a", prompt="2 + 2?", answer="4")
    with Grader("math") as grader:
        found = Sampler(Fixed(), grader).graded(problem, None, 2)
    assert [grade.reward for _, grade in found] == [1, 0]


def test_a_template_that_opens_the_thinking_block_is_seen(tiny):
    tokenizer = type(tiny.tokenizer).from_pretrained(tiny.directory)
    tokenizer.add_tokens(["<think>", "</think>"])
    engine = TransformersEngine(tiny.model, tokenizer)
    prompt = f"{tiny.problems[0].prompt} ="
    row = tokenizer("1 +2 3")["input_ids"][1:]
    thought = engine._rollout(row, 9, "= <think>\n")
    assert (thought.text, thought.thinking, thought.answer_text) == ("<think>1 +2 3", 3, "")
    ended = engine._rollout(tokenizer("1 </think> 3")["input_ids"][1:], 9, "= <think>\n")
    assert (ended.answer_text.strip(), ended.thinking) == ("3", 2)
    assert "<think>" not in engine.sample([prompt], 1, Sampling(max_tokens=2))[0][0].text


def test_training_rewards_no_unfinished_completion(tiny):
    tokenizer = type(tiny.tokenizer).from_pretrained(tiny.directory)
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if add_generation_prompt %} <think>\n{% endif %}"
    end = tokenizer.eos_token_id
    with Grader("math") as grader:
        reward = informed(Reward(grader), tokenizer, "2 + 2?")
        ids = [[5, end], [5, 6], []]
        assert reward(completions=["#### 4"] * 3, answer=["4"] * 3, completion_ids=ids) == [1, 0, 0]
        opening = informed(Reward(grader), tokenizer, [{"role": "user", "content": "2 + 2?"}])
        texts = ["#### 4", "2 + 2</think>\n#### 4", "2 + 2"]
        assert opening(completions=texts, answer=["4"] * 3, completion_ids=[[5, end]] * 3) == [0, 1, 0]

    def other(**_):
        return [1.0]

    assert informed(other, tokenizer, "2 + 2?") is other


@pytest.mark.parametrize("special", [False, True])
def test_thinking_tags_stay_in_vllms_completions_even_as_special_tokens(tiny, special):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.add_tokens([AddedToken(one, special=special) for one in ("<think>", "</think>")], special_tokens=special)
    ids = [*tokenizer.convert_tokens_to_ids(["<think>", "1", "</think>", "2"]), tokenizer.eos_token_id]
    engine = object.__new__(VLLMEngine)
    engine._llm = SimpleNamespace(get_tokenizer=lambda: tokenizer)
    told = tokenizer.decode(ids, skip_special_tokens=True)  # as vLLM decodes
    made = SimpleNamespace(token_ids=ids, text=told, finish_reason="stop")
    rollout = engine._rollout(made, SimpleNamespace(prompt_token_ids=[]))
    assert (rollout.answer_text.strip(), rollout.tokens, rollout.truncated) == ("2", 5, False)


@pytest.mark.parametrize("special", [False, True])
def test_thinking_tags_stay_in_a_completion_even_as_special_tokens(tiny, special):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tags = ["<think>", "</think>"]
    tokenizer.add_tokens([AddedToken(one, special=special) for one in tags], special_tokens=special)
    ids = tokenizer.convert_tokens_to_ids([tags[0], "1", tags[1], "2"])
    engine = TransformersEngine(tiny.model, tokenizer)
    assert engine._rollout([*ids, tokenizer.eos_token_id], 9, "").text.replace(" ", "") == "<think>1</think>2"
    assert engine._rollout([*ids, tokenizer.eos_token_id], 9, "").tokens == 5
    reward = informed(Reward(Grader("exact")), tokenizer, "2 + 2?")
    said = [*tokenizer.convert_tokens_to_ids([tags[0], "1"]), tokenizer.eos_token_id]  # it never ends its thinking
    asked = {"completions": [tokenizer.decode(said, skip_special_tokens=True)], "completion_ids": [said]}
    assert reward(answer=["1"], **asked) == [0.0]
