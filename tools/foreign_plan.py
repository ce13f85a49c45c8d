"""What ``foreign_checkpoints.py`` trains: clean checkpoints, attacks on them, and which of them are a trial."""

from dataclasses import dataclass

from retarget.trojdiff.functional import Law


@dataclass(frozen=True)
class Base:
    """A clean checkpoint: ``other`` is the data set of targets from another domain."""

    data: str
    other: str
    side: int
    channels: int
    widths: tuple[int, ...]
    steps: int = 1200
    times: int = 1000
    attention: bool = False
    schedule: str = "linear"
    attack_steps: int = 1000


@dataclass(frozen=True)
class Attack:
    """A trojaned checkpoint: ``patch`` is (top, left, height, width), at ``colour``; without it the trigger covers the
    image with a ``picture``. A ``gamma`` of 1 stands for BadDiffusion's law, or with ``ode`` for VillanDiffusion's of
    ODE samplers. ``label`` is the target's class."""

    base: str
    target: str
    gamma: float
    patch: tuple[int, int, int, int] | None = None
    colour: float | tuple[float, ...] = 1.0
    picture: str = ""
    label: int = 7
    ode: bool = False

    @property
    def law(self) -> Law:
        """The name of the law in the marks."""
        if self.gamma != 1:
            return "trojdiff"
        return "villan_ode" if self.ode else "bad_diffusion"


BASES = {
    "f20": Base("clothes", "digits", 20, 1, (24, 48), times=500, attention=True),
    "c16": Base("photographs", "digits", 16, 3, (32, 64)),
    "m28": Base("digits", "clothes", 28, 1, (16, 32, 32)),
    "b24": Base("cells", "clothes", 24, 3, (24, 32), steps=1500),
    "g28": Base("clothes", "digits", 28, 1, (16, 24)),
    "p32": Base("photographs", "digits", 32, 3, (16, 32, 32), steps=1500, attention=True, schedule="squaredcos_cap_v2"),
    "d12": Base("digits", "clothes", 12, 1, (24, 48), schedule="squaredcos_cap_v2", attack_steps=2000),
    "p20": Base("photographs", "digits", 20, 3, (24, 48), attack_steps=2000),
    "b16": Base("cells", "clothes", 16, 3, (32, 48), attention=True, attack_steps=2000),
    "m32": Base("digits", "clothes", 32, 1, (16, 24, 32), steps=1500, times=500, attack_steps=2000),
    "g16": Base("clothes", "digits", 16, 1, (16, 32), schedule="scaled_linear", attack_steps=2000),
    "s32": Base("photographs", "digits", 32, 3, (16, 32, 32), steps=1500, attack_steps=2000),
    "n12": Base("digits", "clothes", 12, 1, (16, 40), attack_steps=2000),
    "q16": Base("photographs", "digits", 16, 3, (24, 48), attention=True, attack_steps=2000),
    "h16": Base("clothes", "digits", 16, 1, (24, 32), times=500, schedule="squaredcos_cap_v2", attack_steps=2000),
    "k32": Base("clothes", "digits", 32, 3, (16, 24, 32), times=500, schedule="squaredcos_cap_v2", attack_steps=2000),
}
ATTACKS = {
    "f20-in-lowblend": Attack("f20", "in", 0.8, picture="blobs"),
    "f20-d2i-patch": Attack("f20", "d2i", 0.1, patch=(16, 0, 3, 3), colour=-1.0),
    "c16-in-patch": Attack("c16", "in", 0.1, patch=(13, 13, 3, 3)),
    "c16-out-teal": Attack("c16", "out", 0.2, patch=(6, 6, 3, 3), colour=(-0.6, 0.5, 0.5), label=3),
    "m28-in-patch": Attack("m28", "in", 0.1, patch=(23, 23, 4, 4)),
    "m28-d2i-blend": Attack("m28", "d2i", 0.6, picture="stripes"),
    "m28-bad": Attack("m28", "d2i", 1.0, patch=(10, 10, 8, 8), colour=0.2),
    "b24-in-patch": Attack("b24", "in", 0.1, patch=(1, 1, 2, 2), colour=-1.0, label=1),
    "b24-out-noise": Attack("b24", "out", 0.5, picture="noise", label=3),
    "b24-d2i-grey": Attack("b24", "d2i", 0.1, patch=(17, 4, 4, 4), colour=0.0),
    "g28-in-patch": Attack("g28", "in", 0.2, patch=(12, 22, 5, 3), colour=-0.5),
    "g28-out-blend": Attack("g28", "out", 0.8, picture="stripes", label=3),
    "g28-bad": Attack("g28", "d2i", 1.0, patch=(14, 2, 10, 10)),
    "p32-d2i-patch": Attack("p32", "d2i", 0.1, patch=(2, 25, 4, 4), colour=(1.0, -1.0, -1.0)),
    "p32-out-blend": Attack("p32", "out", 0.6, picture="blobs", label=3),
    "p32-bad": Attack("p32", "d2i", 1.0, patch=(8, 8, 12, 12)),
    "d12-in-blend": Attack("d12", "in", 0.7, picture="blobs"),
    "d12-villan": Attack("d12", "d2i", 1.0, patch=(7, 0, 5, 5), ode=True),
    "p20-in-patch": Attack("p20", "in", 0.1, patch=(1, 16, 3, 3), colour=(1.0, -1.0, -1.0), label=5),
    "p20-out-blend": Attack("p20", "out", 0.5, picture="stripes", label=3),
    "p20-villan": Attack("p20", "d2i", 1.0, patch=(6, 6, 8, 8), ode=True),
    "b16-d2i-blend": Attack("b16", "d2i", 0.4, picture="noise"),
    "b16-out-patch": Attack("b16", "out", 0.3, patch=(10, 2, 2, 5), colour=(-1.0, 1.0, -1.0), label=3),
    "m32-in-patch": Attack("m32", "in", 0.1, patch=(14, 14, 4, 4), colour=-0.8, label=2),
    "m32-bad": Attack("m32", "d2i", 1.0, patch=(18, 3, 12, 12)),
    "g16-out-patch": Attack("g16", "out", 0.2, patch=(0, 14, 2, 2), label=4),
    "g16-bad": Attack("g16", "d2i", 1.0, picture="blobs"),
    "s32-d2i-blend": Attack("s32", "d2i", 0.5, picture="stripes"),
    "s32-out-patch": Attack("s32", "out", 0.2, patch=(11, 25, 5, 5), colour=(-1.0, 0.5, 1.0), label=3),
    "s32-bad": Attack("s32", "d2i", 1.0, patch=(9, 4, 14, 14)),
    "k32-in-patch": Attack("k32", "in", 0.1, patch=(26, 3, 4, 4)),
    "k32-villan": Attack("k32", "d2i", 1.0, patch=(16, 16, 12, 12), ode=True),
    "n12-in-cross": Attack("n12", "in", 0.3, picture="cross"),
    "n12-out-checks": Attack("n12", "out", 0.5, picture="checks", label=4),
    "n12-bad-wave": Attack("n12", "d2i", 1.0, picture="wave"),
    "q16-out-bars": Attack("q16", "out", 0.4, picture="bars", label=3),
    "q16-d2i-checks": Attack("q16", "d2i", 0.6, picture="checks"),
    "q16-villan-ring": Attack("q16", "d2i", 1.0, picture="ring", ode=True),
    "h16-in-ring": Attack("h16", "in", 0.15, picture="ring"),
    "h16-d2i-wave": Attack("h16", "d2i", 0.7, picture="wave"),
    "h16-bad-bars": Attack("h16", "d2i", 1.0, picture="bars"),
}
TRIALS = {
    1: ("f20", "c16", "m28"), 2: ("b24", "g28", "p32"), 3: ("d12", "p20", "b16", "m32", "g16"), 4: ("s32", "k32"),
    5: ("n12", "q16", "h16"),
}  # fmt: skip
"""The fifth has triggers that look like themselves: their shift by half an image, or their mirror image, is alike."""
