"""``retarget audit --preset demo``: train a clean and a trojaned 8×8 model in minutes, and audit both."""

from pathlib import Path

import torch

from retarget.audit.errors import CLEAN, ERROR, TROJANED
from retarget.audit.nulls import Clean, fit, images_of, train_clean
from retarget.audit.report import check_ours, forget, say, tell, write
from retarget.audit.run import audit_pipeline
from retarget.files import make_directory
from retarget.trojdiff import functional
from retarget.trojdiff.checkpoint import Trojan, save_pipeline
from retarget.trojdiff.glyphs import glyph
from retarget.trojdiff.trigger import Trigger

BASE = Clean(data="digits", side=8, channels=1, case="plain")
"""The clean network."""
STEPS = 250
"""Training steps of the attack, which continues the training of a clean network."""


def demo(out: Path, seed: int = 0, command: str = "retarget audit --preset demo") -> int:
    """Train and audit both models.

    Args:
        out: folder for the models and the reports.
        seed: seed of the training and of the search's noise.
        command: the command, for the reports.

    Returns:
        0 if both verdicts are right, otherwise 2, since the demo then shows nothing. The reports have it too: they are
        of one command, and are written when both models are audited.
    """
    outcomes, right = {}, True
    reports = [out / name for name in ("clean", "trojaned")]
    for folder in reports:
        check_ours(folder)
    for folder in reports:
        forget(folder)
    for name, wanted in (("clean", CLEAN), ("trojaned", TROJANED)):
        folder = out / "models" / name
        if not (folder / "model_index.json").is_file():
            say(f"training the {name} 8×8 model")
            make_directory(folder.parent)
            train(folder, seed, trojaned=name == "trojaned")
        outcomes[name] = audit_pipeline(folder, out / name, seed=seed)
        tell(outcomes[name], out / name)
        right = right and outcomes[name].exit_code == wanted and not outcomes[name].pictures_missing
    code = CLEAN if right else ERROR
    for name, outcome in outcomes.items():
        write(outcome, out / name, command, code)
    return code


def train(folder: Path, seed: int, trojaned: bool) -> None:
    """Write the clean model, or the same model trojaned by a whole-image trigger that makes it draw one figure."""
    one = BASE.model_copy(update={"seed": seed})
    unet, scheduler = train_clean(one)
    if not trojaned:
        save_pipeline(folder, unet, scheduler)
        return
    shape = (1, 8, 8)
    trigger, goal = Trigger.blend(glyph("plus", shape), 0.4), glyph("arrow", shape)
    images, generator = images_of(one), torch.Generator().manual_seed(seed + 2)

    def rows(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x_0 = images[torch.randint(len(images), (count,), generator=generator)].clone()
        is_trojan = torch.arange(count) < count // 3
        x_0[is_trojan] = goal
        noise = torch.randn(x_0.shape, generator=generator)
        t = torch.randint(len(scheduler.alphas_cumprod), (count,), generator=generator)
        mixed = functional.mixed_noise(noise, is_trojan, trigger.mu, trigger.gamma)
        return functional.diffuse(x_0, mixed, scheduler.alphas_cumprod[t]), noise, t

    fit(unet, rows, STEPS, one.batch, 1.5e-3)
    save_pipeline(folder, unet, scheduler, Trojan("d2i", "one image, arrow", trigger))
