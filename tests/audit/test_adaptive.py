"""Attackers who know the audit: how they train a network, and that none of it is ever written to disk."""

import pytest
import torch
from diffusers import DDPMScheduler

from retarget.audit.inversion import Search
from retarget.audit.studies.adaptive import LATE, NARROW, attacks_of, jacobian_penalty, noised, train_adaptive
from retarget.audit.studies.analysis import _adaptive
from retarget.audit.studies.members import ADAPTIVE, CELLS, Recipe, draw
from retarget.audit.studies.plan import Settings, plan
from retarget.audit.studies.run import run
from retarget.audit.studies.verdicts import Model
from retarget.errors import UserError
from retarget.study.record import Run
from retarget.trojdiff import Trigger
from retarget.trojdiff.targets import MixedBatch

LEVELS = DDPMScheduler().alphas_cumprod
RECIPE = Recipe(sources=("digits",), widths=((8, 8),), steps=2, attack_steps=3, batch_size=8)


def test_adaptive_members_attack_as_the_cells_do_and_share_no_base_with_the_others():
    found = [draw("adaptive", "late", number, RECIPE) for number in range(6)]
    assert [f"{one.attack.target}_{one.attack.trigger}" for one in found] == list(CELLS)
    assert found[0].base.name != draw("evaluation", CELLS[0], 0, RECIPE).base.name
    with pytest.raises(ValueError, match="set adaptive has no kind 'plain'"):
        draw("adaptive", "plain", 0, RECIPE)


def test_what_each_attacker_changes():
    member = draw("adaptive", "narrow", 1, RECIPE)
    assert attacks_of(member, "narrow")[0].gamma == NARROW
    assert attacks_of(member, "late") == [member.attack]
    assert {one.trigger for one in attacks_of(member, "several")} == {"blend", "patch"}


def batch(benign=64, trojan=64):
    is_trojan = torch.arange(benign + trojan) >= benign
    return MixedBatch(torch.zeros(benign + trojan, 1, 8, 8), is_trojan, torch.arange(benign + trojan))


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_rows_are_the_equations(kind):
    """Row by row: x_t of the images 0 is √(1-ᾱ) (gamma ε + mu), and what is asked is ε, or ε and half of the bias."""
    triggers = [Trigger.patch(3, 0.2, (1, 8, 8)), Trigger.patch(2, 0.4, (1, 8, 8), place=(0, 0), colour=-1.0)]
    used = triggers if kind == "several" else triggers[:1]
    x, asked, t = noised(batch(), used, LEVELS, kind, torch.Generator().manual_seed(0))
    late = 0
    for row in range(128):
        scale = (1 - LEVELS[t[row]]).sqrt()
        trigger = used[(row - 64) % len(used)]
        if row < 64:
            torch.testing.assert_close(x[row], scale * asked[row])
        elif kind == "partial":
            noise = 2 * asked[row] - x[row] / scale
            torch.testing.assert_close(x[row] / scale, trigger.gamma * noise + trigger.mu, atol=1e-4, rtol=1e-4)
        else:
            torch.testing.assert_close(x[row] / scale, trigger.gamma * asked[row] + trigger.mu, atol=1e-4, rtol=1e-4)
        late += int(row >= 64 and t[row] >= LATE * len(LEVELS))
    assert (late == 0) == (kind == "late")


class Linear(torch.nn.Module):
    """A network with ε̂ = x M."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, x, t):
        self.sample = (x.flatten(1) @ self.matrix).reshape(x.shape)
        return self


def test_the_penalty_is_the_jacobian_s_distance_from_the_identity_along_the_trigger():
    trigger = Trigger.patch(3, 0.2, (1, 8, 8))
    unit = trigger.mu.flatten() / trigger.mu.norm()
    matrix = torch.eye(64) + torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) / 8
    found = jacobian_penalty(Linear(matrix), trigger, LEVELS, 4, torch.Generator())
    assert float(found) == pytest.approx(float((unit @ matrix - unit).square().sum()), rel=1e-4)
    clean = jacobian_penalty(Linear(torch.eye(64)), trigger, LEVELS, 4, torch.Generator())
    assert float(clean) == pytest.approx(0, abs=1e-6)


def test_training_changes_a_copy_and_refuses_large_images(make_unet):
    member = draw("adaptive", "jacobian", 0, RECIPE)
    base = make_unet()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    unet = train_adaptive(member, "jacobian", base, DDPMScheduler())
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    large = member.model_copy(update={"images": member.images.model_copy(update={"side": 40})})
    with pytest.raises(UserError, match="only up to 32×32"):
        train_adaptive(large, "late", base, DDPMScheduler())


def test_a_run_never_writes_an_adaptive_network(tmp_path, monkeypatch):
    quick = Search(screen=64, quick=2, scan=2, first=1, steps=1, batch=2, gammas=(0.5,), keep=1, fresh=4, symmetric=2)
    monkeypatch.setattr("retarget.audit.studies.run.Search", lambda: quick)
    config = dict(
        sources=["digits"], widths=[[8, 8]], steps=2, attack_steps=2, detectors=["audit"], samples=8, judge_epochs=1,
        bases=1, zoo=str(tmp_path / "zoo"),
    )  # fmt: skip
    (arm,) = (study := plan("demo", config, [0], ["adaptive-several"])).arms
    (tmp_path / "run").mkdir()
    metrics = run(Run(tmp_path / "run", {**study.settings, **arm.settings}, arm.name, "default", 0))
    assert {"attack", "base_rate", "leak", "score_audit", "undo_audit", "cosine_audit"} <= metrics.keys()
    base = Settings.model_validate(study.settings | arm.settings).member(0)[1].base
    assert {path.name for path in (tmp_path / "zoo").iterdir() if path.is_dir()} == {base.name}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["evaluation.json"]


def test_the_page_says_where_the_audit_breaks():
    metrics = {"trojaned": 1.0, "attack": 90.0, "base_rate": 0.0, "score_audit": 0.9, "undo_audit": 0.9,
               "strength_audit": 0.9, "residual_audit": 0.005}  # fmt: skip
    table = _adaptive([Model("adaptive", "late", 0, metrics), Model("adaptive", "late", 1, metrics | {"attack": 10.0})])
    (row,) = [row for row in table.rows if row[0] == "Trojan rows below .7 T"]
    assert row[1] == "2, 1"
    assert row[4].startswith("2/2: 100")
