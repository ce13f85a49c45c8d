"""Records of one study from several machines are joined by a command into one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from retarget.study.figures import Analysis
from retarget.study.results import ClaimResult

ROOT = Path(__file__).parent.parent.parent
RECORD = ROOT / "results" / "pskd-overfit"


def join(*directories, out):
    command = [sys.executable, str(ROOT / "tools" / "join_records.py"), *map(str, directories), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read(path):
    return json.loads(path.read_text())


def part(folder, seeds):
    """The record with some of its seeds, as a study of these alone would have left it."""
    whole = read(RECORD / "summary.json")
    at = [whole["seeds"].index(seed) for seed in seeds]

    def cut(values):
        return [values[place] for place in at]

    shutil.copytree(
        RECORD, folder, ignore=lambda _, names: [n for n in names if n[:5] == "seed-" and int(n[5:]) not in seeds]
    )
    for arms in whole["conditions"].values():
        for metrics in arms.values():
            for one in metrics.values():
                one["values"] = cut(one["values"])
    analysis = read(RECORD / "analysis.json")
    for figure in analysis["figures"]:
        for series in figure.get("series", []):
            series["y"] = cut(series["y"])
        if figure["kind"] == "bars":
            figure["values"] = [[cut(group) for group in label] for label in figure["values"]]
    study = read(RECORD / "study.json")
    study["plan"]["seeds"] = seeds
    for name, content in (
        ("summary", whole | {"seeds": seeds, "looks": [seeds]}), ("analysis", analysis), ("study", study)
    ):  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_two_parts_of_a_record_give_it_back(tmp_path):
    seeds = read(RECORD / "summary.json")["seeds"]
    done = join(part(tmp_path / "a", seeds[:2]), part(tmp_path / "b", seeds[2:]), out=tmp_path / "joined")
    assert (done.returncode, done.stderr) == (0, "")
    before, after = read(RECORD / "summary.json"), read(tmp_path / "joined" / "summary.json")
    assert after["conditions"] == before["conditions"]
    assert after["looks"] == [seeds[:2], seeds[2:], seeds], "each record had verdicts of its own"
    for old, new in zip(before["claims"], after["claims"], strict=True):
        assert new["item_interval"] is None, "an interval over items of one part would be shown for all"
        for one in (old, new):
            one["shown"] = one["shown"] and {**one["shown"], "n": None}  # which the record's version did not count
        old, new = (ClaimResult.model_validate(one | {"item_interval": None}) for one in (old, new))
        assert new == old
    drawn = read(tmp_path / "joined" / "analysis.json")
    assert Analysis(**drawn).figures == Analysis(**read(RECORD / "analysis.json")).figures
    assert "were not planned" in drawn["notes"][-2]
    assert "ran on different machines" in drawn["notes"][-1]
    found = sorted(path.relative_to(RECORD) for path in RECORD.glob("runs/**/*.json*"))
    assert sorted(path.relative_to(tmp_path / "joined") for path in tmp_path.glob("joined/runs/**/*.json*")) == found


def test_every_look_and_every_note_is_kept_whichever_record_comes_first(tmp_path):
    seeds = read(RECORD / "summary.json")["seeds"]
    parts = part(tmp_path / "a", seeds[:2]), part(tmp_path / "b", seeds[2:])
    for folder, note in zip(parts, ("fitted temperature 0.57", "fitted temperature 0.61"), strict=True):
        analysis = read(folder / "analysis.json")
        analysis["notes"] = ["in both", note]
        (folder / "analysis.json").write_text(json.dumps(analysis))
    summary = read(parts[1] / "summary.json")
    summary["looks"] = [seeds[2:3], seeds[2:]]
    (parts[1] / "summary.json").write_text(json.dumps(summary))
    for number, order in enumerate((parts, parts[::-1])):
        out = tmp_path / f"joined-{number}"
        assert join(*order, out=out).returncode == 0
        looks = read(out / "summary.json")["looks"]
        assert sorted(map(sorted, looks)) == sorted([seeds[:2], seeds[2:3], seeds[2:], seeds])
        notes = read(out / "analysis.json")["notes"]
        expected = {"in both", f"Seeds {seeds[0]}, {seeds[1]}: fitted temperature 0.57",
                    f"Seeds {', '.join(map(str, seeds[2:]))}: fitted temperature 0.61"}  # fmt: skip
        assert set(notes[:-2]) == expected
        assert "Verdicts have been given 4 times" in notes[-2]


def test_a_seed_in_both_records_is_refused(tmp_path):
    done = join(RECORD, RECORD, out=tmp_path / "joined")
    assert done.returncode == 2
    assert "is in two of the records" in done.stderr
    assert not (tmp_path / "joined").exists()


def test_records_of_two_settings_are_refused_by_what_differs(tmp_path):
    seeds = read(RECORD / "summary.json")["seeds"]
    first, second = part(tmp_path / "a", seeds[:2]), part(tmp_path / "b", seeds[2:])
    study = read(second / "study.json")
    study["plan"]["settings"]["epochs"] = 3
    (second / "study.json").write_text(json.dumps(study))
    done = join(first, second, out=tmp_path / "joined")
    assert done.returncode == 2
    assert "differ in settings: they are two studies" in done.stderr
    assert not (tmp_path / "joined").exists()


def test_records_of_other_data_are_refused(tmp_path):
    seeds = read(RECORD / "summary.json")["seeds"]
    parts = part(tmp_path / "a", seeds[:2]), part(tmp_path / "b", seeds[2:])
    for path in parts[1].glob("runs/**/config.json"):
        path.write_text(json.dumps(read(path) | {"content": {"d.npz": "2"}}))
    for path in parts[0].glob("runs/**/config.json"):
        path.write_text(json.dumps(read(path) | {"content": {"d.npz": "1"}}))
    done = join(*parts, out=tmp_path / "joined")
    assert done.returncode == 2
    assert "were made with other content of d.npz: they are two studies" in done.stderr
