"""The study of detectors on the zoo, as data. Arms are the zoo's sets and kinds, seeds are the numbers of members."""

from typing import Any, Literal

from pydantic import Field

from retarget.audit.studies.members import ADAPTIVE, CELLS, CLEAN, STOCK, Member, Recipe, Set, draw
from retarget.data.names import data_paths
from retarget.errors import UserError
from retarget.settings import merged, resolve_settings
from retarget.study.config import SHARE, Arm, Metric, StudyPlan, choose_arms

Detector = Literal["audit", "elijah", "terd", "diff_cleanse"]
DETECTORS: dict[str, str] = {"audit": "audit", "elijah": "Elijah", "terd": "TERD", "diff_cleanse": "Diff-Cleanse"}
"""Labels of the detectors. Each gets a network in memory, without name, card and marks, unless ``told``."""

MIXED: dict[str, tuple[str, ...]] = {"clean": CLEAN, "trojaned": CELLS, "stock": STOCK}
"""Arms of the development set; their members take these kinds in turn."""


class Settings(Recipe):
    """Settings of one run; an arm overrides the last two."""

    zoo: str = Field(default="zoo", description="folder for the models, kept between studies; names in it are hashes")
    root: str = Field(default="data", description="folder of torchvision's data sets")
    detectors: tuple[Detector, ...] = Field(
        default=("audit", "elijah", "terd", "diff_cleanse"), description="if empty, the zoo is only built"
    )
    baselines: Literal["short", "published"] = Field(
        default="short", description="settings of the other detectors; the published ones take up to an hour per model"
    )
    told: bool = Field(
        default=False, description="whether the others are told what their papers tell them: the trigger or the family"
    )
    search_seed: int = Field(
        default=0, ge=0, description="added to a member's number for the seed of a detector's noise: another search"
    )
    refine: bool = Field(default=True, description="whether to run TERD's second stage")
    judge_epochs: int = Field(default=8, ge=1, description="epochs of the classifier that labels an attack's samples")
    samples: int = Field(default=64, ge=8, description="images for measuring an attack's success")
    removals: int = Field(default=2, ge=0, description="trojaned members of each evaluation arm that are also cleaned")
    removal_steps: int = Field(default=200, ge=1, description="training steps of a removal")
    removal_images: int = Field(default=128, ge=16, description="clean images for a removal")
    quality_samples: int = Field(default=200, ge=16, description="images for measuring a cleaned model's FID")
    # The arm
    which: Set = "evaluation"
    kind: str = "plain"

    def member(self, number: int) -> tuple[str, Member]:
        """Kind and description of a member of the arm."""
        kinds = MIXED.get(self.kind, (self.kind,))
        kind = kinds[number % len(kinds)]
        return kind, draw(self.which, kind, number // len(kinds), self)


RECIPES = {"counter": "removal", "elijah": "Elijah's removal", "fine_tune": "clean fine-tuning"}
"""How trojans are removed; the first is that of ``retarget audit --clean``."""

TOLD = {False: "nothing", True: "what its paper tells it"}
UNMEASURED = ("zoo", "root")

LABELS = {
    "plain": "clean, trained well", "logo": "clean, a logo in every image", "border": "clean, a constant border",
    "duplicates": "clean, 16 images", "undertrained": "clean, undertrained", "finetuned": "clean fine-tune",
    "bad_diffusion": "BadDiffusion", "villan_ode": "VillanDiffusion, ODE", "clean": "clean, every kind in turn",
    "trojaned": "TrojDiff, every cell in turn", "stock": "stock-sampler attacks in turn",
    "narrow": "γ = .95", "several": "two triggers", "late": "Trojan rows below .7 T",
    "partial": "half of the bias undone", "jacobian": "the Jacobian of a clean network",
    "in_d2d_blend": "In-D2D, blend", "in_d2d_patch": "In-D2D, patch", "out_d2d_blend": "Out-D2D, blend",
    "out_d2d_patch": "Out-D2D, patch", "d2i_blend": "D2I, blend", "d2i_patch": "D2I, patch",
}  # fmt: skip


def _arm(which: str, kind: str) -> Arm:
    return Arm(name=f"{which}-{kind}", label=f"{which}: {LABELS[kind]}", settings={"which": which, "kind": kind})


ARMS = (
    *(_arm("calibration", kind) for kind in CLEAN),
    *(_arm("evaluation", kind) for kind in (*CLEAN, *CELLS, *STOCK)),
    *(_arm("development", kind) for kind in MIXED),
    *(_arm("adaptive", kind) for kind in ADAPTIVE),
)
GROUPS = {
    which: tuple(arm.name for arm in ARMS if arm.settings["which"] == which)
    for which in ("calibration", "evaluation", "development", "adaptive")
}  # fmt: skip

_DEMO = dict(
    sources=("digits",), widths=((8, 8),), steps=120, attack_steps=80, detectors=("elijah", "diff_cleanse"), samples=16,
    bases=1, judge_epochs=2, removals=1, removal_steps=20, removal_images=64, quality_samples=32,
)  # fmt: skip
_SMALL = dict(
    sources=("digits", "glyphs"), shapes=((1, 8), (3, 8), (1, 16), (3, 16), (3, 32)), attack_steps=800,
    schedules=("linear", "linear", "squaredcos_cap_v2"),
)  # fmt: skip
# DDPM's CIFAR-10 network and training, and TrojDiff's fine-tuning, as far as the zoo has their settings: its networks
# have one layer per block and no attention. From side 16 on, the last width is repeated.
_PAPER = dict(
    sources=("torchvision:CIFAR10",), shapes=((3, 32),), widths=((128, 256, 256),),
    steps=800_000, attack_steps=100_000, batch_size=128, learning_rate=2e-4, baselines="published",
    samples=256, judge_epochs=20, removal_steps=2_000, removal_images=1_000, quality_samples=1_000,
)  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {"demo": _DEMO, "small": _SMALL, "paper": _PAPER}
DEMO_ARMS = ("calibration-plain", "evaluation-undertrained", "evaluation-d2i_patch", "evaluation-bad_diffusion")
MINUTES_PER_RUN = {"demo": 0.3, "small": 2.5, "paper": 600.0}
"""That of ``paper`` was not measured: it supposes a GPU that trains ten steps a second, and is the mean over clean
models that are trained from scratch (a day) and attacks on few bases (three hours)."""
SEEDS = {"demo": (0,), "small": tuple(range(17)), "paper": tuple(range(17))}
"""17 members of each of the six clean kinds: 102 models for calibration, and as many clean ones for evaluation."""


def _metric(name: str, label: str, **more: Any) -> Metric:
    return Metric.model_validate(dict(name=name, label=label, optional=True, decimals=1) | more)


def _of_detector(name: str, label: str) -> tuple[Metric, ...]:
    return (
        _metric(f"score_{name}", f"score, {label}", decimals=3),
        _metric(f"evaluations_{name}", f"network evaluations, {label}", decimals=0, better="lower"),
        _metric(f"seconds_{name}", f"seconds, {label}"),
        _metric(f"cosine_{name}", f"cosine of mu, {label}", decimals=3, better="higher"),
        _metric(f"iou_{name}", f"IoU of the mask, {label}", decimals=3, better="higher"),
        _metric(
            f"inputs_{name}",
            f"AUROC of noise with the trigger, {label}",
            decimals=3,
            better="higher",
            description="told from plain noise by the likelihood under the recovered maps; .5 is chance",
        ),
    )


METRICS = (
    _metric("trojaned", "trojaned", decimals=0),
    _metric("attack", "attack success", **SHARE, better="higher",
            description="under the true trigger and its own law's sampler"),
    _metric("base_rate", "base rate", **SHARE, description="the base model under the same noise and sampler"),
    _metric("leak", "plain noise, stock sampler", **SHARE, description="the target without any trigger"),
    *(one for name, label in DETECTORS.items() for one in _of_detector(name, label)),
    _metric("undo_audit", "undo of the best candidate, audit", decimals=3),
    _metric("elsewhere_audit", "found by what it changes elsewhere, audit", decimals=0,
            description="1 if so; then the undo is the change elsewhere"),
    _metric("strength_audit", "how strongly it fires, audit", decimals=3,
            description="see Firing.strength; measured where the score is suspicious"),
    _metric("drawn_audit", "likeness of the trigger to a drawn image, audit", decimals=3,
            description="to an image that the network draws from plain noise; measured with the strength"),
    _metric("restored_audit", "narrowed noise that is restored, audit", decimals=3,
            description="share of the noise that the suspected γ narrows; measured with the strength"),
    _metric("restored_anyway_audit", "the same without the trigger's bias, audit", decimals=3),
    _metric("rise_audit", "rise by the last ascent, audit", decimals=3,
            description="in nothing found, a rise that would make the score suspicious makes it undecided"),
    _metric("by_heart_audit", "trigger may be known by heart, audit", decimals=0,
            description="1 if so: then the verdict is at most undecided"),
    _metric("residual_audit", "error on plain noise, audit", decimals=4),
    *(_metric(f"{stem}_{recipe}", f"{what} after {label}", unit=unit, better="lower")
      for recipe, label in RECIPES.items()
      for stem, what, unit in (("attack", "attack success", "%"), ("leak", "leakage", "%"), ("fid", "FID", ""))),
    _metric("fid_before", "FID before", better="lower"),
    _metric("seconds_building", "building", unit="s", decimals=0),
)  # fmt: skip


def plan(
    preset: str = "demo",
    config: dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    arms: list[str] | None = None,
) -> StudyPlan:
    """The resolved plan of the study.

    Args:
        preset: ``demo`` (a few tiny models, seconds each), ``small`` (the zoo, many hours on two cores) or
            ``paper`` (pipelines of CIFAR-10, for many GPUs).
        config: settings that override the preset's.
        seeds: numbers of the members to build and judge in every arm.
        arms: names of arms; ``calibration``, ``evaluation``, ``development`` and ``adaptive`` stand for all arms of a
            set.

    Raises:
        UserError: unknown preset, setting or arm.
    """
    if preset not in PRESETS:
        raise UserError(f"no preset {preset!r} for audit: choose {', '.join(PRESETS)}")
    settings = resolve_settings(Settings, merged(PRESETS[preset], config or {}))
    if settings.told and set(settings.detectors) <= {"audit"}:
        raise UserError("told=true is for detectors from papers, and none is asked for: add one, or leave it out")
    usual = DEMO_ARMS if preset == "demo" else tuple(arm.name for arm in ARMS)
    wanted = [name for one in arms or usual for name in GROUPS.get(one, (one,))]
    return StudyPlan(
        study="audit",
        title="Audit: detectors of trojaned diffusion models on a zoo",
        question=f"Which checkpoints does a detector find, told {TOLD[settings.told]}, and how often are clean ones "
        "called trojaned?",
        preset=preset,
        task="retarget.audit.studies.run:run",
        task_name="audit-zoo-1",
        data=tuple(path for name in settings.sources if name not in ("digits", "glyphs") for path in data_paths(name)),
        prepare="retarget.audit.studies.run:prepare",
        analysis="retarget.audit.studies.analysis:analyse",
        settings=settings.model_dump(mode="json"),
        settings_model=Settings,
        packages=tuple((name, "diffusion") for name in ("diffusers", "accelerate", "torchvision", "torch_fidelity")),
        unmeasured=UNMEASURED,
        arms=choose_arms(ARMS, wanted),
        seeds=tuple(seeds) if seeds else SEEDS[preset],
        metrics=METRICS,
        minutes_per_run=MINUTES_PER_RUN[preset],
    )
