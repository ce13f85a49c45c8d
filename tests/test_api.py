"""Python callers: what they can get wrong without a type checker is refused, and not taken for something else."""

import copy
import subprocess
import sys

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import nn

from retarget.audit.errors import NotCoveredError
from retarget.audit.removal import Recipe, remove
from retarget.audit.subject import Subject
from retarget.errors import UserError
from retarget.metrics.generative import fidelity
from retarget.pope.export import export
from retarget.trojdiff import Trigger, TrojanScheduler
from retarget.trojdiff.functional import diffuse

SHAPE = (1, 8, 8)


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
    )  # fmt: skip


class Layer(nn.Module):
    """The features of one layer of a network, which has the same weights whichever layer that is."""

    def __init__(self, deep):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.deep = nn.Linear(64, 6), nn.Linear(6, 6), deep

    def forward(self, images):
        found = self.first(images.flatten(1).float() / 255)
        return 10 * self.second(found.relu()) if self.deep else found


def test_two_layers_of_one_network_have_their_own_distances():
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randint(low, 256, (40, *SHAPE), dtype=torch.uint8, generator=generator) for low in (0, 60))
    found = [fidelity(one, two, Layer(deep)).fid for deep in (False, True, False)]
    assert found[0] == pytest.approx(found[2], rel=1e-6)
    assert abs(found[0] - found[1]) > 0.1 * found[0]
    with pytest.raises(UserError, match="at least 1 subset of at least 2 images"):
        fidelity(one, two, Layer(False), subsets=0)


def test_networks_and_processes_that_a_folder_refuses_are_refused_in_memory(unet):
    with pytest.raises(NotCoveredError, match="scheduler FlowMatchEulerDiscreteScheduler: not known as one of DDPM's"):
        Subject.from_modules(unet, FlowMatchEulerDiscreteScheduler())
    with pytest.raises(NotCoveredError, match="the network is a Conv2d, not a diffusers UNet2DModel"):
        Subject.from_modules(nn.Conv2d(1, 1, 3), DDPMScheduler())


def test_an_audited_network_can_still_be_trained(unet):
    unet.train()
    before = copy.deepcopy(unet.state_dict())
    Subject.from_modules(unet, DDPMScheduler())
    assert unet.training
    assert all(value.requires_grad for value in unet.parameters())
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(recipe=dict(kind="Counter")), "there is no recipe 'Counter': choose counter, elijah, fine_tune"),
        (dict(recipe=dict(share=2.0)), "share from 0 to 1"),
        (dict(images=torch.full((8, *SHAPE), 200.0)), r"image 0 has the value 200: scale images to \[-1, 1\]"),
        (dict(images=torch.full((8, *SHAPE), float("nan"))), "image 0 has the value nan"),
        (dict(scheduler=DDPMScheduler(prediction_type="v_prediction")), "only epsilon models are trained"),
    ],
)
def test_removal_refuses_what_it_would_train_otherwise(given, message, unet):
    with pytest.raises(UserError, match=message):
        remove(
            unet, given.get("scheduler", DDPMScheduler()), [],
            Recipe(**{"kind": "fine_tune", "steps": 1, **given.get("recipe", {})}), given.get("images"),
        )  # fmt: skip


def test_noise_is_added_at_levels_and_not_at_timesteps():
    trigger, x, levels = Trigger.patch(2, 0.1, SHAPE), torch.zeros(2, *SHAPE), DDPMScheduler().alphas_cumprod
    assert trigger.add_noise(x, torch.randn(2, *SHAPE), levels[[10, 500]]).isfinite().all()
    for wrong in (torch.tensor([1.5, 0.2]), torch.tensor([-0.1])):
        with pytest.raises(UserError, match=r"give scheduler\.alphas_cumprod\[t\]"):
            trigger.add_noise(x, torch.randn(2, *SHAPE), wrong)


def test_half_precision_keeps_the_little_noise_of_the_first_steps():
    noise, levels = torch.ones(1, *SHAPE), DDPMScheduler().alphas_cumprod
    for t in (0, 10):
        expected = float((1 - levels[t]).sqrt())
        found = diffuse(torch.zeros(1, *SHAPE, dtype=torch.bfloat16), noise.bfloat16(), levels[[t]])
        assert found.dtype == torch.bfloat16
        assert float(found.float().mean()) == pytest.approx(expected, rel=0.01)


def test_an_output_with_learnt_variances_is_not_spread_over_the_sample():
    scheduler = TrojanScheduler(DDPMScheduler(), Trigger.patch(2, 0.1, SHAPE))
    scheduler.set_timesteps(5)
    with pytest.raises(UserError, match=r"the model's output is \[2, 2, 8, 8\] and the sample \[2, 1, 8, 8\]"):
        scheduler.step(torch.zeros(2, 2, 8, 8), scheduler.timesteps[0], torch.zeros(2, *SHAPE))


def test_no_rows_are_no_export(tmp_path):
    with pytest.raises(UserError, match="there are no rows to export"):
        export([], "verl", tmp_path / "x.parquet")


WRONG = """
import sys
import torch
from retarget.audit import audit
from retarget.errors import UserError
from retarget.pope import mine, mix, search_prefixes
from retarget.pope.grading import Grader, reward_function
from retarget.pope.mining import Mined
from retarget.pope.problems import Problem
from retarget.pope.rollouts import Rollout
from retarget.trojdiff import Trigger

class Engine:
    name, identity = "three", {}
    def sample(self, prompts, n, params):
        return [[Rollout("no", 1, False)] * n for _ in prompts]

problems = [Problem(id=f"p{i}", prompt=f"{i}?", answer=str(i), solution=f"Add. So. It is {i}.") for i in range(3)]
found = mine((one for one in problems), Engine(), k=4, grader=Grader("exact", workers=0))
assert len(found.outcomes) == 3
trigger = Trigger.patch(2, 0.1, (1, 8, 8))
for call in (
    lambda: reward_function(Grader("exact"))(completions=["#### 4"], answer=[4]),
    lambda: trigger.add_noise(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])),
    lambda: mix(problems, {}, unpaired="leave_out"),
    lambda: mix(problems, {}, kind="pairs"),
    lambda: search_prefixes(problems, Engine(), strategy="bisection"),
    lambda: search_prefixes(problems, Engine(), fallback="Longest"),
    lambda: mine(problems, Engine(), k=4, check="Solution"),
    lambda: mine(problems, Engine(), k=4, accepted=("Hard",)),
    lambda: audit(torch.nn.Linear(1, 1)),
):
    try:
        call()
    except UserError as error:
        print(error)
"""


def test_callers_without_a_type_checker():
    """In a process of its own: here a type checker refuses such arguments first."""
    done = subprocess.run([sys.executable, "-c", WRONG], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    for line, words in zip(
        said,
        (
            "the gold answer 4 is no text but of type int", "and not timesteps", "unpaired = 'leave_out': choose",
            "order = 'pairs'", "strategy = 'bisection'", "fallback = 'Longest'", "check = 'Solution'",
            "accepted = 'Hard'",
            "audit takes the folder of a pipeline, not a Linear",
        ),
        strict=True,
    ):  # fmt: skip
        assert words in line
