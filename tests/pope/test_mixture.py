import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retarget.errors import UserError
from retarget.identity import fingerprint
from retarget.pope.mixture import mix, order, read_rows, write_rows
from retarget.pope.prefixes import Cut
from retarget.pope.problems import Problem
from retarget.pope.prompts import Prompts
from retarget.pope.search import Found, Prefixes

PROMPTS = Prompts("{problem}", "{problem} + {prefix}", chat=False)


def problems(n, name="p"):
    return [Problem(id=f"{name}{i}", prompt=f"q{i}", solution="s", answer=str(i)) for i in range(n)]


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 30)),
    st.integers(2, 12), st.integers(1, 4), st.integers(0, 99),
)  # fmt: skip
def test_every_batch_holds_each_stratum_at_its_share(counts, batch, epochs, seed):
    strata = ["unguided"] * counts[0] + ["guided"] * counts[1] + ["easy"] * counts[2]
    if len(strata) < batch:
        return
    indices = order(strata, batch, epochs, seed)
    assert len(indices) == epochs * len(strata) // batch * batch
    taken = Counter()
    for at in range(0, len(indices), batch):
        rows = [strata[i] for i in indices[at : at + batch]]
        taken.update(rows)
        for name in set(strata):
            share = strata.count(name) / len(strata)
            assert abs(taken[name] - share * (at + batch)) < 2
            assert rows.count(name) >= int(share * batch) - 1
    uses = Counter(indices)
    for name in set(strata):
        of_stratum = [uses[i] for i, one in enumerate(strata) if one == name]
        assert max(of_stratum) - min(of_stratum) <= 1  # no row comes again before all have come


def test_equal_strata_are_exactly_half_of_every_batch_and_orders_are_deterministic():
    strata = ["guided", "unguided"] * 10
    first = order(strata, 4, 3, seed=1)
    assert all(Counter(strata[i] for i in first[at : at + 4])["guided"] == 2 for at in range(0, 60, 4))
    assert first == order(strata, 4, 3, seed=1)
    assert first != order(strata, 4, 3, seed=2)
    assert first[:20] != first[20:40]
    pool = order(strata, 3, 2, seed=1, kind="pool")
    assert len(pool) == 36
    assert len(set(pool[:18])) == 18


def test_rows_ratios_and_easy_problems(caplog):
    hard, prefixes = problems(8), {f"p{i}": f"so {i}" for i in range(6)}
    rows = mix(hard, prefixes, PROMPTS, easy=problems(2, "e"), seed=0, prompts_per_batch=4)
    assert Counter(row["stratum"] for row in rows) == {"unguided": 6, "guided": 6, "easy": 2}
    assert "2 of 8 hard problems have no prefix and are left out; the first: p6" in caplog.text
    kept = mix(hard, prefixes, PROMPTS, unpaired="keep")
    assert Counter(row["stratum"] for row in kept) == {"unguided": 8, "guided": 6}
    assert Counter(row["stratum"] for row in mix(hard, {}, PROMPTS)) == {"unguided": 8}
    guided = next(row for row in rows if row["id"] == "p3/guided")
    assert guided["prompt"] == "q3 + so 3"
    assert (guided["problem"], guided["answer"], guided["guided"]) == ("p3", "3", True)
    assert json.loads(guided["meta"]) == {"id": "p3", "prefix": "so 3"}

    def counts(ratio):
        return Counter(row["stratum"] for row in mix(hard, prefixes, PROMPTS, ratio=ratio))

    assert counts(0.0) == {"unguided": 6}, "plain GRPO on the problems that guided rows would be of"
    assert counts(0.5) == {"unguided": 6, "guided": 3}
    assert counts(0.05) == {"unguided": 6}
    assert "of 6 guided rows, a ratio of 0.05 keeps none" in caplog.text
    assert counts(2.0) == {"unguided": 3, "guided": 6}
    assert counts(float("inf")) == {"guided": 6}
    kept = [mix(hard, prefixes, PROMPTS, ratio=ratio, unpaired="keep") for ratio in (2.0, float("inf"), 0.0)]
    assert [Counter(row["stratum"] for row in rows)["unguided"] for rows in kept] == [3 + 2, 2, 8]
    late = mix(
        hard, {f"p{i}": "so" for i in range(2, 8)}, PROMPTS, unpaired="keep", prompts_per_batch=4, kind="stratified"
    )
    strata = ["unguided"] * 8 + ["guided"] * 6
    at = order(strata, 4, 1, 0, problems=[*(f"p{i}" for i in range(8)), *(f"p{i}" for i in range(2, 8))])
    ids = [*(f"p{i}/unguided" for i in range(8)), *(f"p{i}/guided" for i in range(2, 8))]
    assert [row["id"] for row in late][: len(at)] == [ids[place] for place in at], "the rows keep the problems' order"
    assert all({"p6", "p7"} <= {row["problem"] for row in rows} for rows in kept)


def test_bad_mixtures_are_refused():
    with pytest.raises(UserError, match="not among the hard ones"):
        mix(problems(2), {"x": "a"}, PROMPTS)
    with pytest.raises(UserError, match="problem 'p0' is given twice"):
        mix(problems(2), {}, PROMPTS, easy=problems(1))
    with pytest.raises(UserError, match="mixture is empty"):
        mix([], {}, PROMPTS)
    with pytest.raises(UserError, match="do not fill one generation batch of 8"):
        order(["guided"] * 4, 8, 1, 0)


def test_parquet_and_its_card(tmp_path):
    rows = mix(problems(4), {"p1": "so"}, Prompts.load(), seed=3, unpaired="keep")
    write_rows(tmp_path / "rows.parquet", rows, {"problems": "p.jsonl"})
    assert read_rows(tmp_path / "rows.parquet") == rows
    card = (tmp_path / "rows.parquet.md").read_text()
    assert "| guided | 1 |" in card
    assert "| problems | p.jsonl |" in card
    with pytest.raises(UserError, match="pope mix"):
        read_rows(tmp_path / "none.parquet")


@given(
    st.tuples(st.integers(1, 20), st.integers(0, 9), st.integers(0, 9)), st.integers(1, 12), st.integers(1, 4),
    st.integers(0, 99),
)  # fmt: skip
def test_both_rows_of_a_problem_stand_in_one_batch(counts, batch, epochs, seed):
    pairs, alone, easy = counts
    rows = [(f"p{i}", name) for i in range(pairs) for name in ("unguided", "guided")]
    rows += [(f"a{i}", "unguided") for i in range(alone)] + [(f"e{i}", "easy") for i in range(easy)]
    if len(rows) < batch:
        return
    indices = order([name for _, name in rows], batch, epochs, seed, "paired", [problem for problem, _ in rows])
    assert len(indices) == epochs * len(rows) // batch * batch
    divided = 0
    taken = Counter()
    for at in range(0, len(indices), batch):
        of = Counter(rows[i][0] for i in indices[at : at + batch] if rows[i][0].startswith("p"))
        divided += sum(count % 2 for count in of.values())
        taken.update(rows[i][1] for i in indices[at : at + batch])
        for name, count in taken.items():
            share = sum(one == name for _, one in rows) / len(rows)
            assert abs(count - share * (at + batch)) <= 3
    assert divided <= (2 * (len(indices) // batch) if batch % 2 or alone or easy else 0)
    uses = Counter(indices)
    assert max(uses.values()) - min(uses[i] for i in range(len(rows))) <= 2


def test_even_batches_of_pairs_divide_none():
    rows = mix(problems(12), {f"p{i}": f"so {i}" for i in range(12)}, PROMPTS, prompts_per_batch=8)
    for at in range(0, 24, 8):
        assert set(Counter(row["problem"] for row in rows[at : at + 8]).values()) == {2}


def test_prefixes_of_another_solution_or_wording_are_refused(tmp_path):
    hard = [Problem(id=f"p{i}", prompt="?", solution=f"One {i}. Two. Three.", answer="4") for i in range(2)]

    def found(path, **changes):
        cut = {"end": 6, "fraction": 0.3, "unit": "sentence"}
        lines = [
            {
                "id": one.id,
                "status": "found",
                "prefix": one.solution[:6],
                "cut": cut,
                "solution": fingerprint(one.solution),
                "template": PROMPTS.fingerprint,
                **changes,
            }
            for one in hard
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))  # fmt: skip
        return Prefixes.read(path)

    assert len(mix(hard, found(tmp_path / "p.jsonl"), PROMPTS)) == 4
    former = found(tmp_path / "p.jsonl", solution=None, template=None)
    assert len(mix(hard, former, PROMPTS)) == 4
    other = [hard[0], hard[1].model_copy(update={"solution": "One 1. Zwei. Three."})]
    with pytest.raises(UserError, match="prefix of problem 'p1' was cut from another solution"):
        mix(other, found(tmp_path / "p.jsonl"), PROMPTS)
    other[1] = hard[1].model_copy(update={"solution": "Uno 1. Two. Three."})
    with pytest.raises(UserError, match="prefix of problem 'p1' was cut from another solution"):
        mix(other, former, PROMPTS)
    wording = Prompts("{problem}", "{problem} - {prefix}", chat=False)
    with pytest.raises(
        UserError, match=r"prefix of problem 'p0' was searched with other prompt templates.*--other-template"
    ):
        mix(hard, found(tmp_path / "p.jsonl"), wording)
    assert len(mix(hard, found(tmp_path / "p.jsonl"), wording, other_template=True)) == 4
    assert not Prefixes.read(tmp_path / "p.jsonl", found_only=False).found[0].reason
    found(tmp_path / "p.jsonl", status="fallback")
    assert len(Prefixes.read(tmp_path / "p.jsonl", found_only=True)) == 0
    (tmp_path / "p.jsonl").write_text('{"id": "p0"}\n')
    with pytest.raises(UserError, match=r"line 1 is not a line that `retarget pope search` writes: .*missing") as told:
        Prefixes.read(tmp_path / "p.jsonl")
    assert "pydantic" not in str(told.value)
    with pytest.raises(UserError, match="no such file"):
        Prefixes.read(tmp_path / "none.jsonl")


def test_a_prefix_of_a_search_that_states_the_answer_of_a_corrected_label_is_refused():
    told = Problem(id="a", prompt="How many?", solution="There are 1024 of them. Add. More.", answer="1042")
    cut = Cut(14, 0.4, "token")
    of = dict(solution=fingerprint(told.solution), template=PROMPTS.fingerprint)
    found = Prefixes([Found("a", told.solution[:14], "found", cut, 0, 0, False, 2, 9, [(14, 2, 1)], **of)], 2)
    assert len(mix([told], found, PROMPTS)) == 2
    with pytest.raises(UserError, match=r"'a' states its answer '1024', .*, or, if the label was corrected, run the"):
        mix([told.model_copy(update={"answer": "1024"})], found, PROMPTS)


def test_a_prefix_of_ones_own_that_states_the_answer_is_refused():
    told = Problem(id="a", prompt="2 + 2?", solution="Add them. The answer is 4. Indeed 2 + 2 = 4.", answer="4")
    assert {row["stratum"] for row in mix([told], {"a": "Add them."})} == {"guided", "unguided"}
    with pytest.raises(
        UserError, match=r"problem 'a' states its answer '4', in 'The answer is 4.': end it before char"
    ):
        mix([told], {"a": "Add them. The answer is 4."})
    assert mix([told], {"a": "Another problem's words: 4."})  # a control of another origin may hold any number
