"""What to damage: one target per kind of file that users provide or that the package writes."""

import contextlib
import functools
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.damage import BYTES, Damage, json_line, json_value, text_line
from faults.fuzz import Target


def _said(words: list[str]) -> str:
    """What the verb ``study`` prints, in this process."""
    from retarget import commands

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        commands.study(words)
    return out.getvalue()


# -- settings

TOML = b"""epochs = 3
lr = 0.05
dataset = "digits"
train_images = 300
drops = [0.5, 0.75]
augmentation = "none"
label_noise = 0.2
store = "topk:5:uniform"
precision = "32-true"
"""


DRY = ("pskd", "--preset", "demo", "--dry-run")


def _config(folder: Path) -> str:
    return _said(
        ["pskd", "--preset", "demo", "--config", str(folder / "mine.toml"), "--out", str(folder / "s"), "--dry-run"]
    )


def _set(folder: Path) -> str:
    lines = (folder / "set.txt").read_bytes().decode("utf-8", "surrogateescape").split("\n")
    words = [line for line in lines if line and not line.startswith("-")]
    return _said([*DRY, "--set", *words, "--out", str(folder / "s")])


# -- problems and journals

PROBLEMS = "".join(
    json.dumps(
        {"id": f"p{n}", "prompt": f"What is {n} + 2?", "solution": f"It is {n}+2.\nSo {n + 2}.", "answer": str(n + 2)}
    )
    + "\n"
    for n in range(12)
).encode()


def _problems(folder: Path, skip: bool) -> Any:
    from retarget.pope import read_problems

    found = read_problems(folder / "problems.jsonl", skip_invalid=skip)
    return [one.model_dump() for one in found]


def _some_of(found: list[Any], whole: list[Any]) -> bool:
    """Records may be missing, since they are sampled again; none may be new, changed or doubled."""
    return all(record in whole for record in found) and len({json.dumps(one) for one in found}) == len(found)


def _same(found: Any, whole: Any) -> bool:
    return found == whole


HEADER = {"kind": "mine", "model": "m", "k": 4, "seed": 0}


def _write_journal(folder: Path) -> None:
    from retarget.pope.journal import Journal

    with Journal(folder / "mine.jsonl", HEADER) as journal:
        for n in range(20):
            journal.append({"id": f"p{n}", "rewards": [0.0, 1.0, n / 7], "text": "a\u2028b" * 3})


def _read_journal(folder: Path) -> Any:
    from retarget.pope.journal import Journal

    with Journal(folder / "mine.jsonl", HEADER) as journal:
        return list(journal.read())


# -- images


def _write_npz(folder: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    np.savez(
        folder / "set.npz", x_train=rng.integers(0, 256, (40, 8, 8, 3), np.uint8), y_train=np.arange(40) % 4,
        x_test=rng.integers(0, 256, (8, 8, 8, 3), np.uint8), y_test=np.arange(8) % 4,
    )  # fmt: skip


def _read_npz(folder: Path) -> Any:
    from retarget.data.images import read

    source = read(f"npz:{folder / 'set.npz'}")
    return repr(source)[:200]


PICTURES = ("cat/1.png", "cat/2.jpg", "dog/1.webp", "dog/2.bmp", "dog/3.gif", "cat/3.tif")


def _write_pictures(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in PICTURES:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).save(folder / name)


def _read_pictures(folder: Path) -> Any:
    from retarget.data.pictures import decode, find

    return [decode(picture, 3, 8).sum().item() for picture in find(folder)]


# -- states and pipelines


def _method() -> Any:
    from retarget.pskd import PSKD

    return PSKD(num_samples=32, num_classes=5, total_epochs=4)


def _write_state(folder: Path) -> None:
    import torch

    method = _method()
    method.set_epoch(0)
    method.loss(torch.randn(32, 5, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 5, torch.arange(32))
    method.set_epoch(1)
    method.save(folder / "pskd.safetensors")


def _read_state(folder: Path) -> Any:
    method = _method()
    method.load(folder / "pskd.safetensors")
    return method.epoch


def write_pipeline(folder: Path) -> None:
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    from retarget.trojdiff.checkpoint import save_pipeline

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    save_pipeline(folder / "pipeline", unet, DDPMScheduler())


def _read_pipeline(folder: Path) -> Any:
    from retarget.trojdiff.checkpoint import load_pipeline

    unet, _ = load_pipeline(folder / "pipeline")
    return sum(parameter.numel() for parameter in unet.parameters())


# -- a study's directory

STUDY = Path(__file__).parent.parent / "tests" / "fixtures" / "v0.1" / "study-pskd"


def write_study(folder: Path) -> None:
    """A recorded study whose runs carry the checksums and hashes of this version."""
    from retarget.files import write_json
    from retarget.study.record import Results, read_status, write_status

    shutil.copytree(STUDY, folder / "study")
    results = Results.load(folder / "study")
    for path in (folder / "study").glob("runs/**/config.json"):
        record = json.loads(path.read_text())
        condition = next(one for one in results.plan.conditions if one.name == record["condition"])
        arm = next(one for one in results.plan.arms if one.name == record["arm"])
        named = results.plan.model_copy(update={"task_name": "pskd.images"})
        run_hash = named.run_hash(condition, arm, record["seed"])
        write_json(path, record | {"task_name": "pskd.images", "unmeasured": [], "content": {}, "run_hash": run_hash})
        write_status(path.parent, read_status(path.parent) or {})


def _read_runs(folder: Path) -> Any:
    from retarget.study.record import Results
    from retarget.study.summary import collect

    return collect(Results.load(folder / "study"))


def _read_study(folder: Path) -> Any:
    from retarget.report.source import read_study

    return [claim.verdict for claim in read_study(folder / "study").summary.claims]


def _study_files(pattern: str) -> dict[str, tuple[Damage, ...]]:
    return {f"study/{path.relative_to(STUDY)}": (json_value, *BYTES) for path in sorted(STUDY.glob(pattern))}


def _put(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


_MINE, _WORDS = {"mine.toml": (text_line, *BYTES)}, {"set.txt": (text_line, *BYTES)}
_ROWS = {"problems.jsonl": (json_line, *BYTES)}
_PIPELINE: dict[str, tuple[Damage, ...]] = {
    "pipeline/model_index.json": (json_value, *BYTES),
    "pipeline/unet/config.json": (json_value, *BYTES),
    "pipeline/scheduler/scheduler_config.json": (json_value, *BYTES),
    "pipeline/unet/diffusion_pytorch_model.safetensors": BYTES,
}

TARGETS = [
    Target("settings, TOML", _put("mine.toml", TOML), _MINE, _config),
    Target("settings, --set", _put("set.txt", TOML), _WORDS, _set),
    Target("problems", _put("problems.jsonl", PROBLEMS), _ROWS, functools.partial(_problems, skip=False)),
    Target(
        "problems, bad rows skipped", _put("problems.jsonl", PROBLEMS), _ROWS, functools.partial(_problems, skip=True)
    ),
    Target("journal", _write_journal, {"mine.jsonl": (json_line, *BYTES)}, _read_journal, fits=_some_of),
    Target("images, npz", _write_npz, {"set.npz": BYTES}, _read_npz),
    Target("images, files", _write_pictures, dict.fromkeys(PICTURES, BYTES), _read_pictures),
    Target("PS-KD's state", _write_state, {"pskd.safetensors": BYTES}, _read_state),
    Target("diffusion pipeline", write_pipeline, _PIPELINE, _read_pipeline),
    Target("study's runs", write_study, _study_files("runs/**/status.json"), _read_runs, fits=_same),
    Target("study's records", write_study, _study_files("*.json"), _read_study),
]
