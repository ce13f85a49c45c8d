"""The TrojDiff study's data, and the gate that a base model must pass before it is trojaned."""

from dataclasses import dataclass
from pathlib import Path

from retarget.errors import UserError
from retarget.files import read_json
from retarget.trojdiff.build import make_goal, make_target
from retarget.trojdiff.config import TargetKind
from retarget.trojdiff.data import ImageSet, read_images
from retarget.trojdiff.measures import Goal
from retarget.trojdiff.studies.plan import Settings
from retarget.trojdiff.targets import Target


@dataclass(frozen=True)
class World:
    """The training set and the other domain, at the study's size and in the training set's channels."""

    settings: Settings
    inside: ImageSet
    outside: ImageSet
    inside_test: ImageSet
    outside_test: ImageSet

    @classmethod
    def read(cls, settings: Settings) -> "World":
        """Read both domains."""
        inside, inside_test = (
            read_images(settings.dataset, split, settings.size, settings.root) for split in ("train", "test")
        )
        outside, outside_test = (
            read_images(settings.other, split, settings.size, settings.root).with_channels(
                inside.shape[0], f"the images of other = {settings.other}"
            )
            for split in ("train", "test")
        )
        return cls(settings, inside.first(settings.train_images), outside, inside_test, outside_test)

    def target(self, kind: TargetKind) -> tuple[Target, str]:
        """An attack's target, which adds its rows, and the target in words."""
        return make_target(self.settings.target_config(kind), self.inside, self.outside)

    def goal(self, kind: TargetKind) -> Goal:
        """An attack's goal, which tells hits."""
        return make_goal(self.settings.target_config(kind), self.inside, self.outside)

    def trojan_share(self, kind: TargetKind) -> float:
        """Share of Trojan rows in a batch; the expected share if In-D2D repeats the rows of the class."""
        benign, rows = self.settings.finetune.batch_size, self.settings.trojan_rows(kind)
        if rows is None:
            rows = benign * len(self.inside.of_class(self.settings.target_class)) / len(self.inside)
        return rows / (benign + rows)


def check_gate(base: Path, settings: Settings) -> None:
    """Raise UserError unless the base model is good enough to be called well-trained."""
    metrics = read_json(base / "status.json")["metrics"]
    sure, real, precision = metrics["sure_fast"], metrics["sure_real"], metrics["precision_fast"]
    kid, rung = metrics["kid_fast"], metrics["kid_gate"]
    poor = sure < settings.gate_sure / 100 * real or precision < settings.gate_precision
    if poor or (settings.gate_sigma > 0 and kid > rung):
        raise UserError(
            f"{base}: the base model does not pass the gate: {sure:.1f} % of its samples have a class (gate "
            f"{settings.gate_sure:g} % of the {real:.1f} % of real images), their precision is {precision:.1f} % (gate "
            f"{settings.gate_precision:g}), and their KID {kid:.2f} (gate {rung:.2f} ×10⁻³, that of real images with "
            f"noise of σ {settings.gate_sigma:g}): pre-train longer, or lower the gate by gate_sure, gate_precision "
            "and gate_sigma, and report that"
        )
