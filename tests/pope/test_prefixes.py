import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retarget.errors import UserError
from retarget.pope.prefixes import UNITS, bare_occurrences, boundaries, cut_points, leak
from retarget.pope.problems import Problem

TEXT = (
    "Let $x = 3. 5$ be given, e.g. by Dr. Smith. Then \\[ a. \n b \\] follows.\n"
    "Step 2: use \\frac{1 2}{3 4} and 10 000 units. It is 2.5 kg.\n\n1. So we add.\n#### 7"
)


def test_sentences_lines_and_steps():
    assert [TEXT[:end].split()[-1] for end in boundaries(TEXT, "sentence")] == [
        "Smith.", "follows.", "units.", "kg.", "add.",
    ]  # fmt: skip
    assert [TEXT[:end].split()[-1] for end in boundaries(TEXT, "line")] == ["follows.", "kg.", "add."]
    assert [TEXT[:end].split()[-1] for end in boundaries(TEXT, "step")] == ["follows.", "kg."]


def test_no_token_boundary_divides_mathematics_or_a_number():
    ends = boundaries(TEXT, "token")
    for protected in ("$x = 3. 5$", "\\[ a. \n b \\]", "\\frac{1 2}", "10 000"):
        start = TEXT.index(protected)
        assert not [end for end in ends if start < end < start + len(protected)]
    assert len(ends) > 20


@pytest.mark.parametrize("text", [
    "It costs $5 and $7. Then more.", "From ($5 or $7). Then more.", "$5-$7. Then more.", "US$3. Then more.",
    "It costs \\$5 and $x$ is \\$7. Then more.", "Of $5 let $x$ be half. Then more.",
])  # fmt: skip
def test_a_price_opens_no_formula(text):
    assert [text[:end] for end in boundaries(text, "sentence")] == [text.removesuffix(" Then more.")]


def test_sentences_of_chinese_end_without_spaces_and_state_their_answer():
    text = "先数：3。再加4！所以一共有7个？对。答案是7。"
    assert [text[:end] for end in boundaries(text, "sentence")] == [
        "先数：3。", "先数：3。再加4！", "先数：3。再加4！所以一共有7个？", "先数：3。再加4！所以一共有7个？对。"
    ]  # fmt: skip
    problem = Problem(id="p", prompt="?", solution=text, answer="7")
    assert leak(problem, text.index("所")) is None
    assert leak(problem, len(text) - 2).statement == "答案是7。"


CHINESE = (
    "解：设这个数为x，由题意可得方程2x加3等于17，先把3移到右边；两边同时除以2，于是x等于7，代入检验成立，所以答案是7。"
)


@pytest.mark.parametrize("unit", UNITS)
def test_chinese_without_a_full_stop_is_cut_behind_commas_up_to_the_clause_with_the_answer(unit):
    problem = Problem(id="p", prompt="求x", solution=CHINESE, answer="7")
    found = [CHINESE[: cut.end] for cut in cut_points(CHINESE, 8, 0.9, unit)]
    assert [one[-1] for one in found] == ["：", "，", "，", "；", "，", "，", "，"]
    clean = [one for one in found if leak(problem, len(one)) is None]
    assert clean[-1] == CHINESE[: CHINESE.index("于是")]
    assert leak(problem, len(clean[-1]) + 1).statement == CHINESE[CHINESE.index("于是") :]


def test_letters_of_chinese_are_divided_only_where_nothing_else_ends_and_in_no_formula():
    text = "由题意可得方程$a + 1$的解等于一百四十七再检验成立"
    assert boundaries(text, "token") == []
    found = [text[: cut.end] for cut in cut_points(text, 3, 0.75)]
    assert found == ["由题意可得方", "由题意可得方程$a + 1$的解等于一百四"]
    assert boundaries("한국어 문장", "token") == [3]


@pytest.mark.parametrize("text", [
    "$5 + x$", "$x = 3. 5$", "$a. \\$ 5$", "$$a. b$$", "$(a. b)$", "\\frac 1 2", "\\frac12", "\\dfrac{a b} {c d}",
    "\\frac \\pi 2", "\\sqrt 2", "\\sqrt[3] {a b}", "\\binom n {k l}",
])  # fmt: skip
def test_no_cut_stands_inside_a_formula(text):
    whole = f"So {text} holds. End"
    ends = boundaries(whole, "token")
    assert [whole[:end] for end in ends] == ["So", f"So {text}", f"So {text} holds."]


def test_an_escaped_brace_opens_no_group():
    whole = "So \\text{ $x$ \\} y} holds, or \\left\\{ a. It ends. End"
    ends = [whole[:end] for end in boundaries(whole, "sentence")]
    assert ends == [whole.partition(" It")[0], whole.partition(" End")[0]]


pieces = st.sampled_from(
    [
        "word",
        "3.5",
        "$a. b$",
        "$5",
        "\\frac 1 2",
        "\\frac{a b}{c}",
        "10 000",
        "end.",
        "\n",
        "\n\n",
        " ",
        "e.g.",
        "\\boxed{5}",
        "#### 5",
        "5.",
    ]
)


@given(st.lists(pieces, min_size=1, max_size=30).map(" ".join), st.integers(1, 9), st.floats(0.05, 0.95))
def test_cuts_are_within_the_cap_ordered_and_clean(text, cuts, cap):
    if not text.strip():
        return
    for unit in UNITS:
        found = cut_points(text, cuts, cap, unit)
        ends = [cut.end for cut in found]
        assert ends == sorted(set(ends))
        assert len(ends) <= cuts
        for cut in found:
            prefix, rest = text[: cut.end], text[cut.end :]
            assert 0 < cut.end <= len(text.rstrip()) * cap + 1e-6
            assert prefix == prefix.rstrip()
            assert rest[0].isspace()
            assert not (re.search(r"\d$", prefix) and re.match(r"\d", rest))
            if cut.unit == "line":
                assert rest.lstrip(" ").startswith("\n")


def test_an_early_cap_falls_to_tokens_and_says_so():
    found = cut_points("one two three four five six. Seven.", cuts=2, cap=0.5, unit="sentence")
    assert {cut.unit for cut in found} == {"token"}
    with pytest.raises(UserError, match="cap above 0 and below 1"):
        cut_points("a b", cap=1.0)


@pytest.mark.parametrize(
    ("solution", "answer", "last_clean"),
    [
        ("Add 2 and 2. Hence it is 4.\n#### 4", "4", "Add 2 and 2."),
        ("We see 4 apples. Two more. The answer is 6. So 6.", "6", "We see 4 apples. Two more."),
        ("First. Then $\\boxed{12}$ results. And more of it.", "12", "First."),
        ("First. The answer is\n1,200 in all. Check it.", "1200", "First."),
        ("First. Then $\\boxed{\\frac{1}{2}}$ results. More.", "0.5", "First."),
        ("First. Then \\boxed{\\frac12} results.\n#### 0.5", "0.5", "First."),
        ("First. Half of it.\n#### 1/2", "0.5", "First. Half of it."),
        ("Part one: \\boxed{3}. Now the rest. So \\boxed{7}.", "7", "Part one: \\boxed{3}. Now the rest."),
        ("#### Plan\nAdd them. So \\boxed{7}.", "7", "#### Plan\nAdd them."),
        ("First. The answer is 5", "5", "First."),
        ("First. The answer is $x = 5$", "x=5", "First."),
        ("4 apples, and 4 pears. Together 8.", "8", "4 apples, and 4 pears."),
        ("See. **Answer**: 17. Add 8 and 9.", "17", "See."),
        ("See.\n## Answer\n\n17\n\n## Solution\nAdd.", "17", "See."),
        ("See. Answer. $17$. Solution. Add.", "17", "See."),
        ("See.\n[Answer] 17. We add.", "17", "See."),
        ("See. The final answer will be 17. We add.", "17", "See."),
        ("See. The maximum comes out as 4217. Add. So \\boxed{4217}.", "4217", "See."),
        ("See. It comes out as 4 217. Add. So \\boxed{4217}.", "4217", "See."),
        ("See. We prove $f(9)=4217$. Add. So \\boxed{4217}.", "4217", "See."),
        ("See. It is \\frac12 of all. Add. So \\boxed{\\frac12}.", "0.5", "See."),
        ("See. It is 3/4 of it. Add. So \\boxed{\\frac{3}{4}}.", "\\frac34", "See."),
        ("See. That is $0.75$ of it. Add. So \\boxed{\\frac{3}{4}}.", "\\frac{3}{4}", "See."),
        ("See. Now -\\tfrac 3 4 is it. Add. So x = \\boxed{-0.75}.", "-0.75", "See."),
        ("See 11/2 and 1/21 and 10.5. Add. So \\boxed{\\frac12}.", "1/2", "See 11/2 and 1/21 and 10.5. Add."),
        ("See. It is \\sqrt{2}. Add. So $x=\\sqrt 2$.\n#### \\sqrt{2}", "\\sqrt{2}", "See."),
        ("Let n be 4. Then 4 more. So \\boxed{4}.", "4", "Let n be 4."),
    ],
)
def test_a_cut_that_reaches_a_statement_of_the_answer_leaks(solution, answer, last_clean):
    problem = Problem(id="p", prompt="?", solution=solution, answer=answer)
    assert leak(problem, len(last_clean)) is None
    for end in range(len(last_clean) + 2, len(solution) + 1):
        assert leak(problem, end) is not None
    for end in range(1, len(last_clean) + 1):
        assert leak(problem, end) is None


def test_a_fraction_of_the_question_is_no_statement_in_other_signs_either():
    solution = "Take 3/4 of it, so 0.75. Add. So \\boxed{\\frac{3}{4}}."
    problem = Problem(id="p", prompt="Is $\\frac{3}{4}$ right?", solution=solution, answer="\\frac{3}{4}")
    assert leak(problem, len("Take 3/4 of it, so 0.75.")) is None
    assert leak(problem, len("Take 3/4 of it, so 0.75. Add. S")) is not None


@pytest.mark.parametrize(
    "statement",
    [
        "【答案】17", "Answer 17.", "Answer\n$17$", "Answer — 17.", "The answer turns out to be 17.", "Ответ: 17.",
        "The answer we seek is 17.", "Solution: 17.", "Final result: 17", "<answer>17</answer>", "Right choice: 17.",
        "We claim that the maximum is 17.", "**Result.** $17$", "**Solution.** $n = 17$", "TL;DR: 17", "Result: 17.",
        "**17**", "La respuesta es 17.", "Die Antwort lautet 17.", "La réponse est 17.", "结果是17。",
        "We claim it is 17.",
    ],
)  # fmt: skip
def test_an_answer_that_is_announced_in_other_words_leaks(statement):
    whole = f"{statement}\nConsider the sum. So it is \\boxed{{17}}."
    assert leak(Problem(id="p", prompt="?", solution=whole, answer="17"), len(statement)) is not None


@pytest.mark.parametrize(
    "statement", ["The correct option is (B).", "Choose B.", "Option (B) is correct.", "**B**", "故选B."]
)
def test_an_option_that_is_chosen_leaks(statement):
    whole = f"{statement} Consider the sum. So the answer is \\boxed{{B}}."
    assert leak(Problem(id="p", prompt="?", solution=whole, answer="B"), len(statement)) is not None
    choosing = "Choose a point on B at first. Consider the sum. So the answer is \\boxed{B}."
    assert leak(Problem(id="p", prompt="?", solution=choosing, answer="B"), 29) is None


def test_an_answer_in_the_question_is_stated_only_where_it_is_announced():
    solution = "There are 4217 seats. Add one row.\nSo it is \\boxed{4217}."
    for prompt, clean in (("How many of 4217 seats?", True), ("How many seats?", False)):
        problem = Problem(id="p", prompt=prompt, solution=solution, answer="4217")
        assert (leak(problem, len("There are 4217 seats.")) is None) == clean


@pytest.mark.parametrize(
    "block",
    ["```python\nx = 1. \ny = 2\n\nprint(x)\n```", "~~~\na. b. c\n~~~", "| a | b |\n|---|---|\n| 1. | 2 |"],
)
def test_no_cut_is_inside_a_block_of_code_or_a_table(block):
    text = f"First. Then this.\n{block}\nSo it is. The end."
    start, stop = text.index(block), text.index(block) + len(block)
    for unit in UNITS:
        found = boundaries(text, unit)
        assert not [end for end in found if start < end < stop]
        assert [end for end in found if end <= start] or unit == "step"


def test_a_marker_without_the_answer_is_no_leak():
    problem = Problem(id="p", prompt="?", solution="The answer is near. 3 more. It is 5.", answer="5")
    assert leak(problem, len("The answer is near. 3 more.")) is None


def test_bare_occurrences_are_counted():
    problem = Problem(id="p", prompt="Of 5 cats", solution="5 cats, 15 dogs, 5 cows. In all 5.", answer="5")
    assert bare_occurrences(problem, len("5 cats, 15 dogs, 5 cows.")) == (2, True)
    assert bare_occurrences(problem.model_copy(update={"prompt": "Of cats"}), 1) == (1, False)


@pytest.mark.parametrize(
    "piece", ["word 5. ", "\\[ a ", "\\frac{a ", "\\begin{align} ", "$5 and ", " \n ", "#### ", "\\a{"]
)
def test_the_work_grows_with_the_text_and_not_with_its_square(piece):
    """Counted in calls, since times say little: ten times the text takes about ten times the steps."""
    steps = []
    for length in (2_000, 20_000):
        text = piece * (length // len(piece)) + "x"
        problem = Problem(id="p", prompt="?", solution=text, answer="5")
        count = 0

        def tick(frame, event, _):
            nonlocal count
            count += 1

        sys.setprofile(tick)
        try:
            cut_points(text, 8, 0.5, "token")
            leak(problem, len(text) // 2)
        finally:
            sys.setprofile(None)
        steps.append(count)
    assert steps[1] < 14 * steps[0]
