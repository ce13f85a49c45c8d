"""How small a trigger was found: the sentence in the scope, and the record from which it comes."""

import json

import pytest
import torch
from diffusers import DDPMScheduler

from retarget.audit.inversion import Search
from retarget.audit.reach import Known, Reach, gammas_found, known, known_checkpoints, main, reach_lines, shipped
from retarget.audit.run import scope
from retarget.audit.seek import fingerprint
from retarget.audit.studies.members import Recipe, draw
from retarget.audit.subject import Subject
from retarget.errors import UserError
from retarget.trojdiff.build import make_network
from retarget.trojdiff.config import NetworkConfig
from retarget.trojdiff.trigger import Trigger


def one(found=True, side=8, channels=1, law="trojdiff", trigger="patch", pixels=4, gamma=0.1, works=True):
    return Known(
        side=side, channels=channels, law=law, trigger=trigger, pixels=pixels, gamma=gamma, works=works, found=found
    )


MODELS = [
    one(pixels=6, gamma=0.3), one(pixels=4, gamma=0.25), one(pixels=3, found=False, gamma=0.7),
    one(trigger="blend", pixels=64, gamma=0.61), one(law="villan_ode", trigger="blend", gamma=1.0, found=False),
    one(pixels=2, works=False), one(side=16, channels=3, pixels=9),
]  # fmt: skip
REACH = Reach(search="s", command="c", models=MODELS)


def test_the_scope_says_the_smallest_patch_and_gamma_of_the_nearest_family():
    (line,) = reach_lines(8, 1, REACH, "s")
    assert "8×8, 1 channel: 3 of 5 found" in line
    assert "smallest patch found has 4 pixels" in line
    assert "γ found: 0.25, 0.30, 0.61" in line
    assert "missed: TrojDiff's patch of 3 pixels, γ = 0.70 (1 of 1), VillanDiffusion, ODE's blend (1 of 1)" in line


def test_the_nearest_family_is_that_of_the_nearest_side_and_channels():
    assert "16×16, 3 channels: 1 of 1 found" in reach_lines(32, 3, REACH, "s")[0]
    working = [one for one in REACH.models if one.works]
    all_found = f"of all shapes: {sum(one.found for one in working)} of {len(working)} found"
    assert reach_lines(32, 3, REACH, "s")[0].endswith(all_found)
    assert "8×8, 1 channel" in reach_lines(10, 3, REACH, "s")[0]
    other = "no model with a known trigger and an attack that works had this checkpoint's shape; "
    assert reach_lines(16, 1, REACH, "s")[0].startswith(other)
    assert not reach_lines(16, 3, REACH, "s")[0].startswith(other)
    assert "unknown" in reach_lines(8, 1, REACH, "another search")[0]


def test_a_family_in_which_no_patch_was_found_says_so():
    blends = [one(side=12, trigger="blend", gamma=0.7), one(side=12, law="villan_ode", works=False)]
    (line,) = reach_lines(12, 1, Reach(search="s", command="", models=[*MODELS, *blends]), "s")
    assert "1 of 1 found; none of them has a patch, so no size of one was measured; γ found: 0.70" in line
    missed = [one(side=12, found=False), *blends]
    (line,) = reach_lines(12, 1, Reach(search="s", command="", models=[*MODELS, *missed]), "s")
    assert "1 of 2 found; no patch was found; γ found: 0.70" in line


def test_the_range_of_gamma_is_the_measured_one():
    """Neither attacks that do not work, nor those that were missed, nor stock-sampler triggers count."""
    assert (
        gammas_found(REACH, "s") == "found in models with γ from 0.10 to 0.61; others were not measured, or not found"
    )
    odd = [one(gamma=0.05, works=False), one(gamma=0.8, found=False), one(law="bad_diffusion", gamma=1.0)]
    assert gammas_found(Reach(search="s", command="", models=[*MODELS, *odd]), "s") == gammas_found(REACH, "s")
    assert gammas_found(REACH, "another search") == "with which γ is unknown"
    subject = Subject.from_modules(make_network(NetworkConfig(channels=(8,), groups=4), (1, 8, 8), 0), DDPMScheduler())
    said = "\n".join(scope(subject, Search()))
    assert f"the Trojan law ({gammas_found(shipped(), fingerprint(Search()))}), and stock-sampler" in said


def test_what_ships_is_of_the_frozen_search():
    assert shipped().search == fingerprint(Search())


def test_the_record_of_a_study_is_read(tmp_path):
    member = draw("evaluation", "in_d2d_patch", 0, Recipe())
    metrics = {
        "trojaned": 1.0, "attack": 90.0, "base_rate": 10.0, "score_audit": 0.9, "undo_audit": 0.9,
        "strength_audit": 0.9, "residual_audit": 0.005,
    }  # fmt: skip
    folder = tmp_path / "runs" / "evaluation-in_d2d_patch" / "seed-0"
    folder.mkdir(parents=True)
    details = {"kind": "in_d2d_patch", "member": member.model_dump(mode="json")}
    (folder / "evaluation.json").write_text(json.dumps(details))
    (folder / "status.json").write_text(json.dumps({"metrics": metrics}))
    (found,) = known(tmp_path)
    assert (found.law, found.trigger, found.gamma, found.works, found.found) == (
        "trojdiff", "patch", member.attack.gamma, True, True
    )  # fmt: skip
    assert 1 <= found.pixels <= member.attack.extent**2
    main([str(tmp_path), "--out", str(tmp_path / "reach.json")])
    assert Reach.model_validate_json((tmp_path / "reach.json").read_text()).models == [found]
    with pytest.raises(UserError, match="no audited trojaned models"):
        known(tmp_path / "nothing")


def test_a_study_of_known_checkpoints_is_added(tmp_path):
    triggers = {"patch": Trigger.patch(3, 0.1, (1, 16, 16)), "blend": Trigger.blend(torch.ones(1, 16, 16), 0.6)}
    for number, (arm, trigger) in enumerate([*triggers.items(), ("clean", None)]):
        run = tmp_path / "study" / "runs" / arm / "seed-4"
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps({"settings": {"trojaned": trigger is not None}}))
        (run / "status.json").write_text(json.dumps({"metrics": {"called": 100.0 * (number == 0)}}))
        if trigger is not None:
            (tmp_path / "zoo" / f"{arm}-4" / "pipeline").mkdir(parents=True)
            trigger.save(tmp_path / "zoo" / f"{arm}-4" / "pipeline" / "trigger.safetensors")
            law = {"trojan_law": "villan_ode"} if arm == "blend" else {}
            (tmp_path / "zoo" / f"{arm}-4" / "pipeline" / "unet").mkdir()
            (tmp_path / "zoo" / f"{arm}-4" / "pipeline" / "unet" / "config.json").write_text(json.dumps(law))
    blend, patch = known_checkpoints(tmp_path / "study", tmp_path / "zoo")
    assert (patch.side, patch.channels, patch.trigger, patch.pixels, patch.gamma, patch.found) == (
        16, 1, "patch", 9, 0.1, True
    )  # fmt: skip
    assert (blend.trigger, blend.pixels, blend.gamma, blend.found) == ("blend", 256, 0.6, False)
    assert (patch.law, blend.law) == ("trojdiff", "villan_ode")
    assert (patch.works, blend.works) == (True, True)
    for rates, works in (({"trigger": 0.9, "plain": 0.3}, True), ({"trigger": 0.9, "plain": 0.5}, False)):
        (tmp_path / "zoo" / "patch-4" / "success.json").write_text(json.dumps(rates))
        assert known_checkpoints(tmp_path / "study", tmp_path / "zoo")[1].works == works
    (tmp_path / "zoo" / "patch-4" / "success.json").unlink()
    pairs = [str(tmp_path / one) for one in ("study", "zoo")]
    main(["--out", str(tmp_path / "reach.json"), "--checkpoints", *pairs, *pairs])
    four = Reach.model_validate_json((tmp_path / "reach.json").read_text())
    assert len(four.models) == 4
    more = ["--out", str(tmp_path / "more.json"), "--checkpoints", *pairs, "--extend", str(tmp_path / "reach.json")]
    main(more)
    six = Reach.model_validate_json((tmp_path / "more.json").read_text())
    assert six.models[:4] == four.models
    assert len(six.models) == len(six.command.splitlines()) + 4 == 6
    (tmp_path / "reach.json").write_text(four.model_copy(update={"search": "other"}).model_dump_json())
    with pytest.raises(UserError, match="was made by another search"):
        main(more)
    with pytest.raises(UserError, match="give the folder of a study"):
        main(["--out", str(tmp_path / "reach.json")])
    assert (
        "16×16, 1 channel: 1 of 2 found; the smallest patch found has 9 pixels; γ found: 0.10"
        in (reach_lines(28, 1, Reach(search="s", command="", models=[blend, patch]), "s")[0])
    )
    with pytest.raises(UserError, match="no audited trojaned checkpoints"):
        known_checkpoints(tmp_path / "nothing", tmp_path / "zoo")
