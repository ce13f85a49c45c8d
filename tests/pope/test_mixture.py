import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retarget.errors import UserError
from retarget.pope.mixture import mix, order, read_rows, write_rows
from retarget.pope.problems import Problem
from retarget.pope.prompts import Prompts

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


def test_rows_ratios_and_easy_problems():
    hard, prefixes = problems(8), {f"p{i}": f"so {i}" for i in range(6)}
    rows = mix(hard, prefixes, PROMPTS, easy=problems(2, "e"), seed=0, prompts_per_batch=4)
    assert Counter(row["stratum"] for row in rows) == {"unguided": 8, "guided": 6, "easy": 2}
    guided = next(row for row in rows if row["id"] == "p3/guided")
    assert guided["prompt"] == "q3 + so 3"
    assert (guided["problem"], guided["answer"], guided["guided"]) == ("p3", "3", True)
    assert json.loads(guided["meta"]) == {"id": "p3", "prefix": "so 3"}

    def counts(ratio):
        return Counter(row["stratum"] for row in mix(hard, prefixes, PROMPTS, ratio=ratio))

    assert counts(0.0) == {"unguided": 8}
    assert counts(0.5) == {"unguided": 8, "guided": 3}
    assert counts(2.0) == {"unguided": 4, "guided": 6}
    assert counts(float("inf")) == {"guided": 6}


def test_bad_mixtures_are_refused():
    with pytest.raises(UserError, match="belong to no hard problem"):
        mix(problems(2), {"x": "a"}, PROMPTS)
    with pytest.raises(UserError, match="occurs twice: 'p0'"):
        mix(problems(2), {}, PROMPTS, easy=problems(1))
    with pytest.raises(UserError, match="mixture is empty"):
        mix([], {}, PROMPTS)
    with pytest.raises(UserError, match="do not fill one generation batch of 8"):
        order(["guided"] * 4, 8, 1, 0)


def test_parquet_and_its_card(tmp_path):
    rows = mix(problems(4), {"p1": "so"}, Prompts.load(), seed=3)
    write_rows(tmp_path / "rows.parquet", rows, {"problems": "p.jsonl"})
    assert read_rows(tmp_path / "rows.parquet") == rows
    card = (tmp_path / "rows.parquet.md").read_text()
    assert "| guided | 1 |" in card
    assert "| problems | p.jsonl |" in card
    with pytest.raises(UserError, match="pope mix"):
        read_rows(tmp_path / "none.parquet")
