"""Runs that were made elsewhere: what is read, paired, refused."""

import csv
import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest

from retarget.errors import UserError
from retarget.study.claims import judge
from retarget.study.config import Claim
from retarget.study.elsewhere import Asked, arrange, read_claims, slug
from retarget.study.harness import inspect_rows, read_inspect, read_lm_eval
from retarget.study.items import PairedCounts, Resampled
from retarget.study.rows import read_rows

CLAIM = dict(id="c", sentence="It helps.", metric="acc", direction="higher", arms=("new", "old"), smallest_effect=0.5)


def asked(*changes, **more):
    claims = tuple(Claim.model_validate(CLAIM | change) for change in changes or ({},))
    return Asked(claims=claims, **more)


def write(path, rows, columns=None):
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pandas = pytest.importorskip("pandas", reason="Parquet files are written with pandas here")
        pytest.importorskip("pyarrow", reason="Parquet files are read with pyarrow")
        pandas.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def seeds(arm, values, metric="acc", **more):
    return [dict(arm=arm, seed=seed, metric=metric, value=value, **more) for seed, value in enumerate(values)]


def of_items(arm, values, metric="acc", **more):
    return [dict(arm=arm, item=f"q{i}", metric=metric, value=value, **more) for i, value in enumerate(values)]


OLD, NEW = [50.0, 51.0, 49.5], [52.1, 53.0, 51.4]


@pytest.mark.parametrize("name", ["runs.csv", "runs.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path, name):
    path = write(tmp_path / name, seeds("old", OLD) + seeds("new", NEW))
    rows = read_rows(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_rows(path) == rows


@pytest.mark.parametrize("name", ["runs.csv", "runs.jsonl", "runs.parquet"])
def test_every_format_gives_the_same_verdict(tmp_path, name):
    path = write(tmp_path / name, seeds("old", OLD) + seeds("new", NEW)[::-1])
    found = arrange(read_rows(path), asked())
    assert found.plan.seeds == (0, 1, 2)
    assert found.values == {"default": {"old": {"acc": OLD}, "new": {"acc": NEW}}}
    one = judge(found.plan, found.values)[0]
    assert (one.verdict, one.n) == ("holds", 3)
    assert one.estimate == pytest.approx(np.mean(np.subtract(NEW, OLD)))


def test_conditions_and_foreign_names_keep_their_labels(tmp_path):
    rows = [
        row
        for name in ("Set A", "Set B")
        for row in seeds("meta/Llama 3", OLD, condition=name) + seeds("Ours", NEW, condition=name)
    ]
    claims = tmp_path / "claims.toml"
    claims.write_text(
        'level = 0.9\n[[claims]]\nsentence = "S."\nmetric = "acc"\ndirection = "higher"\nsmallest_effect = 1\n'
        'arms = ["Ours", "meta/Llama 3"]\ncondition = "Set B"\n'
        '[[claims]]\nsentence = "T."\nmetric = "acc"\ndirection = "higher"\nsmallest_effect = 1\n'
        'arms = ["Ours", "meta/Llama 3"]\nacross = "every"\nfamily = "secondary"\n'
        '[[metrics]]\nname = "acc"\nunit = "%"\n'
    )
    found = arrange(read_rows(write(tmp_path / "runs.csv", rows)), read_claims(claims))
    assert [(arm.name, arm.label) for arm in found.plan.arms] == [("meta-llama-3", "meta/Llama 3"), ("ours", "Ours")]
    assert [one.label for one in found.plan.conditions] == ["Set A", "Set B"]
    assert [one.id for one in found.plan.claims] == ["claim-1", "claim-2"]
    assert (found.plan.level, found.plan.metrics[0].unit) == (0.9, "%")
    assert [one.verdict for one in judge(found.plan, found.values)] == ["holds", "holds"]
    assert slug("Ours") == "ours"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (seeds("old", OLD) + seeds("new", NEW[:2]), "arm new lacks seed 2 of metric acc, which arm old has"),
        (seeds("old", OLD[:1]) + seeds("new", NEW), "arm old lacks seed 1, 2 of metric acc, which arm new has"),
        (seeds("old", OLD) + seeds("new", NEW) + seeds("new", NEW[:1]), "line 8: arm new, seed 0, .* is given twice"),
        (of_items("old", [1, 0, 1]) + of_items("new", [1, 1]), "arm new lacks item q2 of metric acc, which"),
        (of_items("old", [1]) + of_items("new", [1]) * 2, "item q0, metric acc is given twice, first in .*line 3"),
        (seeds("old", OLD) + of_items("old", [1]), "metric acc of arm old has rows of whole runs and of items"),
        (of_items("old", [1, None]) + of_items("new", [1, 1]), "line 3: item q1 of arm old has no value for acc"),
        (seeds("old", ["high"]), "line 2: value 'high' is not a number"),
        (seeds("old", ["inf"]), "line 2: value inf is not finite"),
        ([dict(arm="old", seed="first", metric="acc", value=1)], "line 2: seed 'first' is not an integer"),
        ([dict(arm="old", seed="", metric="acc", value=1)], "line 2: it has neither a seed nor an item"),
        ([dict(arm="", seed=0, metric="acc", value=1)], "line 2: arm is empty"),
        ([dict(arm="old", seed=0, score=1)],
         r"metric, value missing; it has arm, score, seed.*melt\(id_vars=\['arm', 'seed'\], var_name='metric'\)"),
        ([dict(arm="old", metric="acc", value=1)], "seed or item missing; it has arm, metric, value"),
        (seeds("a b", OLD) + seeds("A-b", OLD), "'A-b' and 'a b' would both become a-b: rename one"),
    ],
)  # fmt: skip
def test_what_cannot_be_paired_is_refused_by_name(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        arrange(read_rows(write(tmp_path / "runs.csv", rows)), asked())


def test_a_run_that_failed_has_an_empty_value(tmp_path):
    path = write(tmp_path / "runs.csv", seeds("old", [50.0, None, 49.5]) + seeds("new", NEW))
    found = arrange(read_rows(path), asked())
    assert found.values["default"]["old"]["acc"] == [50.0, None, 49.5]
    assert judge(found.plan, found.values)[0].n == 2


def test_files_that_are_no_tables_are_refused(tmp_path):
    (tmp_path / "runs.xlsx").write_text("")
    with pytest.raises(UserError, match=r"runs can be read from \.csv, \.jsonl"):
        read_rows(tmp_path / "runs.xlsx")
    (tmp_path / "runs.jsonl").write_text('{"arm": "a"\n')
    with pytest.raises(UserError, match="line 1 is not JSON"):
        read_rows(tmp_path / "runs.jsonl")
    (tmp_path / "runs.csv").write_text("arm,seed,metric,value\n")
    with pytest.raises(UserError, match="has no rows"):
        read_rows(tmp_path / "runs.csv")
    (tmp_path / "wide.csv").write_text("arm,seed,metric,value\na,0,acc,1,2\n")
    with pytest.raises(UserError, match="line 2: more cells than columns"):
        read_rows(tmp_path / "wide.csv")
    with pytest.raises(UserError, match="cannot read"):
        read_rows(tmp_path / "absent.csv")
    (tmp_path / "cut.csv").write_text("arm,seed,metric,value\na,0,acc,1\na,1,acc\n")
    with pytest.raises(UserError, match="line 3: fewer cells than columns"):
        read_rows(tmp_path / "cut.csv")
    (tmp_path / "large.csv").write_text("arm,seed,metric,value\na,0,acc,1e200\n")
    with pytest.raises(UserError, match="line 2: value 1e200 is too large"):
        read_rows(tmp_path / "large.csv")
    (tmp_path / "latin.csv").write_bytes("arm,seed,metric,value\nü,0,acc,1\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8"):
        read_rows(tmp_path / "latin.csv")


WHOLE = "[[claims]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in CLAIM.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "claims is missing"),
        ('[[claims]]\nsentence = "S."\nmetrik = "acc"\n', "there is no metrik in claims number 1, did you mean metric"),
        ("claims = 3\n", "claims must be a list, not 3"),
        ("[[claims]\n", "--claims .* is not valid TOML"),
        ("level = 95\n[[claims]]\n", r"claims\.toml: level must be below 1, not 95"),
        (
            "looks = [2, 3]\nlook_weights = [nan, 0.5]\n[[claims]]\n",
            "look_weights number 1 must be a finite .*, not nan",
        ),
        (WHOLE + 'conditions = "mnist"\n', "claims number 1, conditions must be a list, not 'mnist'$"),
        (WHOLE + "conditions = 5\n", "claims number 1, conditions must be a list, not 5$"),
    ],
)
def test_a_claims_file_with_faults_is_refused_by_field(tmp_path, text, message):
    path = tmp_path / "claims.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_claims(path)


def test_items_decide_claims_about_models(tmp_path):
    rng = np.random.default_rng(0)
    old = (rng.random(600) < 0.5).astype(int).tolist()
    new = [max(one, int(rng.random() < 0.3)) for one in old]
    rows = of_items("old", old) + of_items("new", new)[::-1]
    found = arrange(
        read_rows(write(tmp_path / "r.csv", rows)), asked(dict(about="models", smallest_effect=0.05), dict(id="m"))
    )
    assert found.items["c"] == PairedCounts(
        both=sum(old), treated=sum(new) - sum(old), control=0, neither=600 - sum(new)
    )
    models, method = judge(found.plan, found.values, items=found.items)
    assert (models.verdict, models.n) == ("holds", 600)
    assert (method.verdict, method.reason) == ("not enough evidence", "one seed has no spread")
    assert found.values["default"]["new"]["acc"] == [pytest.approx(np.mean(new))]


def test_items_of_several_seeds_are_averaged_and_judge_both_kinds_of_claims(tmp_path):
    rng = np.random.default_rng(1)
    rows = [
        dict(arm=arm, seed=seed, item=i, metric="acc", value=float(rng.normal(shift, 0.3) + 0.01 * i))
        for arm, shift in (("old", 0.0), ("new", 1.0))
        for seed in range(3)
        for i in range(120)
    ]
    found = arrange(read_rows(write(tmp_path / "r.jsonl", rows)), asked(dict(about="models"), dict(id="m")))
    assert isinstance(found.items["c"], Resampled)
    assert [one.verdict for one in judge(found.plan, found.values, items=found.items)] == ["holds", "holds"]
    with pytest.raises(UserError, match="seed 2 has other items than seed 0, such as 7"):
        arrange(read_rows(write(tmp_path / "g.jsonl", [
            row for row in rows if not (row["item"] == 7 and row["seed"] == 2)
        ])), asked(dict(about="models")))  # fmt: skip


def test_few_items_that_are_not_binary_are_refused_for_a_claim_about_models(tmp_path):
    rows = of_items("old", np.linspace(0, 1, 30).tolist()) + of_items("new", np.linspace(0.5, 1.6, 30).tolist())
    path = write(tmp_path / "r.csv", rows)
    with pytest.raises(UserError, match="claim c: 30 items are too few"):
        arrange(read_rows(path), asked(dict(about="models")))
    assert arrange(read_rows(path), asked()).items == {}


def test_a_group_of_items_is_one_unit(tmp_path):
    values = (np.random.default_rng(2).random(1200) < 0.5).astype(int)
    groups = dict(zip(range(1200), np.repeat(np.arange(200), 6).tolist(), strict=True))
    rows = [row | {"group": groups[i]} for i, row in enumerate(of_items("old", values.tolist()))]
    rows += [row | {"group": groups[i]} for i, row in enumerate(of_items("new", np.roll(values, 1).tolist()))]
    found = arrange(read_rows(write(tmp_path / "r.jsonl", rows)), asked(dict(about="models")))
    assert isinstance(found.items["c"], Resampled)
    rows[3]["group"] = "another"
    with pytest.raises(
        UserError, match=r"item q3 of metric acc has the group 0 in .*line 1204 and another in .*line 4"
    ):
        arrange(read_rows(write(tmp_path / "g.jsonl", rows)), asked(dict(about="models")))
    del rows[3]["group"], rows[1203]["group"]
    with pytest.raises(UserError, match="give each item one group, or none to all"):
        arrange(read_rows(write(tmp_path / "h.jsonl", rows)), asked(dict(about="models")))


@pytest.mark.parametrize("rows", [4, 20_000])
def test_a_quote_that_is_never_closed_swallows_no_rows(tmp_path, rows):
    """In a column that is not even read; without this, the rows after it would count as runs that were not made."""
    lines = ["arm,seed,metric,value,note", '"new",0,acc,1,"restarted', *(f"new,{n},acc,1," for n in range(1, rows))]
    (tmp_path / "runs.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"runs.csv, line \d+: .*is a quote not closed"):
        read_rows(tmp_path / "runs.csv")


def test_names_in_any_script_stay_apart():
    assert slug("模型") != slug("基线")
    assert slug("模型").startswith("unnamed-")
    assert slug("Llama-3 8B") == "llama-3-8b"


def samples(folder, task, values, filters=("none",), hashes=None, time="2026-01-02T03-04-05.678"):
    """What lm-evaluation-harness 0.4 logs: one line for each document and filter."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        dict(doc_id=i, doc={"question": f"q{i}"}, target="a", arguments={}, resps=[["a"]], filtered_resps=["a"],
             filter=name, metrics=["exact_match"], doc_hash=(hashes or {}).get(i, f"hash{i}"), prompt_hash="p",
             target_hash="t", exact_match=float(value if name != "strict" else 0))
        for i, value in enumerate(values)
        for name in filters
    ]  # fmt: skip
    (folder / f"samples_{task}_{time}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_lm_eval_samples_have_one_line_for_each_document_and_filter(tmp_path):
    old, new = [1, 0, 0, 1], [1, 1, 1, 1]
    samples(tmp_path / "o" / "base", "gsm8k", old, ("strict", "flexible"))
    samples(tmp_path / "o" / "tuned", "gsm8k", new, ("strict", "flexible"))
    samples(tmp_path / "o" / "tuned", "gsm8k", [0] * 4, time="2025-01-02T03-04-05.678")  # an earlier evaluation
    rows = read_lm_eval([tmp_path / "o" / "tuned", tmp_path / "o" / "base"])
    assert {row.metric for row in rows} == {"exact_match,strict", "exact_match,flexible"}
    change = dict(arms=("tuned", "base"), metric="exact_match,flexible", condition="gsm8k", about="models")
    found = arrange(rows, asked(change))
    assert found.items["c"] == PairedCounts(both=2, treated=2, control=0, neither=0)
    assert found.plan.conditions[0].name == "gsm8k"


def test_a_score_that_is_not_finite_is_named(tmp_path):
    samples(tmp_path / "a", "arc", [1, float("nan")])
    samples(tmp_path / "b", "arc", [1, 0])
    with pytest.raises(UserError, match="document 1 of arc has exact_match = nan"):
        read_lm_eval([tmp_path / "a", tmp_path / "b"])


def test_documents_without_a_value_are_refused_unless_none_has_one(tmp_path):
    for name in "ab":
        samples(tmp_path / name, "arc", [1, 0, 1])
    path = next((tmp_path / "b").iterdir())
    path.write_text(path.read_text().replace('"exact_match": 0.0', '"exact_match": null, "other": null'))
    with pytest.raises(UserError, match=r"line 2: document 1 of arc has no value for exact_match, while others have"):
        read_lm_eval([tmp_path / "a", tmp_path / "b"])
    samples(tmp_path / "b", "arc", [1, 0, 1])
    path.write_text(path.read_text().replace('["exact_match"]', '["exact_match", "other"]'))
    assert {row.metric for row in read_lm_eval([tmp_path / "a", tmp_path / "b"])} == {"exact_match"}


def test_lm_eval_documents_that_differ_are_not_paired(tmp_path):
    samples(tmp_path / "a", "arc", [1, 0])
    samples(tmp_path / "b", "arc", [1, 0], hashes={1: "another"})
    with pytest.raises(UserError, match="document 1 of arc differs from the one in a: they cannot be paired"):
        read_lm_eval([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="has no samples_TASK_TIME"):
        read_lm_eval([tmp_path / "c"])
    with pytest.raises(UserError, match="absent does not exist"):
        read_lm_eval([tmp_path / "absent"])
    with pytest.raises(UserError, match=r"jsonl is a file: give the folder of it"):
        read_lm_eval(list((tmp_path / "a").glob("*.jsonl")))
    with pytest.raises(UserError, match="has the samples of several models"):
        read_lm_eval([tmp_path])
    (tmp_path / "a" / "samples_arc_2026-02-02T03-04-05.678.jsonl").write_text('{"doc_id": 1}\n')
    with pytest.raises(UserError, match="line 1 is not a sample of lm_eval"):
        read_lm_eval([tmp_path / "a"])


def summary(name, epoch, **values):
    """As Inspect's reader gives a sample: id, epoch, scores by scorer."""
    return SimpleNamespace(
        id=name, epoch=epoch, scores={key: SimpleNamespace(value=one) for key, one in values.items()}
    )


def test_inspect_s_marks_become_numbers_and_epochs_are_averaged():
    third = summary("q2", 1, match="P", judge={"tone": 3, "fact": True})
    first, second = summary("q1", 1, match="C"), summary("q1", 2, match="I")
    rows = inspect_rows("log", "base", "arc", [first, second, third])
    assert {(row.item, row.metric): row.value for row in rows} == {
        ("q1", "match"): 0.5, ("q2", "match"): 0.5, ("q2", "judge/tone"): 3.0, ("q2", "judge/fact"): 1.0,
    }  # fmt: skip
    with pytest.raises(UserError, match="sample q1, epoch 1 has no score"):
        inspect_rows("log", "base", "arc", [summary("q1", 1)])
    with pytest.raises(UserError, match="sample q1 has match = 'yes', which is neither a number nor a mark"):
        inspect_rows("log", "base", "arc", [summary("q1", 1, match="yes")])


@pytest.mark.skipif(importlib.util.find_spec("inspect_ai") is not None, reason="Inspect is installed")
def test_without_inspect_its_package_is_named(tmp_path):
    with pytest.raises(UserError, match="its own package: pip install inspect_ai"):
        read_inspect([tmp_path])
