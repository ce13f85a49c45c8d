"""Extract code and commands from documents, and make the things that they mention: data files, models, loaders."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
CHAT = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def blocks(path: Path, language: str) -> list[str]:
    """Fenced blocks of a language; ``""`` for those without one."""
    text = path.read_text(encoding="utf-8")
    return [
        body for name, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if name == language
    ]


def python_blocks(path: Path) -> list[str]:
    """The Python blocks of a text."""
    return blocks(path, "python")


def smallest(block: str) -> str:
    """The same Python with few and short rollouts; a random model solves nothing and never stops."""
    block = re.sub(r"k=\d+", "k=4, params=short", block)
    return block.replace("engine, k=4", 'engine, accepted=("hard", "truncated"), k=4')


def shell_commands(path: Path) -> list[list[str]]:
    """The words of each command in the shell blocks and the blocks without a language, without comments."""
    text = "".join(blocks(path, "sh") + blocks(path, "")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def example(name: str) -> Any:
    """Load a file of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_files(folder: Path) -> None:
    """The files that commands of the documents name."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 50)
    images = draw.integers(0, 255, (200, 8, 8), dtype=np.uint8)
    np.savez(folder / "my_images.npz", images=images, labels=labels)
    _write_folder(folder / "my_folder", images, labels)
    (folder / "my_corpus").mkdir()
    for part, count in (("train", 60), ("val", 8), ("test", 8)):
        for language in ("de", "en"):
            lines = [" ".join(f"{language}{number}" for number in draw.integers(0, 9, 5)) for _ in range(count)]
            (folder / "my_corpus" / f"{part}.{language}").write_text("\n".join(lines) + "\n")
    _write_voc(folder / "my_voc", draw)
    rows = ["arm,seed,metric,value"]
    rows += [
        f"{arm},{seed},accuracy,{90 + 3 * (arm == 'ours') + seed / 10}"
        for arm in ("ours", "baseline")
        for seed in range(4)
    ]
    (folder / "runs.csv").write_text("\n".join(rows) + "\n")
    verdicts = ROOT / "docs" / "verdicts.md"
    (folder / "claims.toml").write_text(blocks(verdicts, "toml")[0])
    write_problems(folder)


def write_problems(folder: Path) -> None:
    """problems.jsonl, and a tiny random model in my-model."""
    from transformers import AutoTokenizer

    own = example("pope_own_problems")
    (folder / "problems.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in own.PROBLEMS))
    tokenizer = AutoTokenizer.from_pretrained(own.tiny_model(folder / "my-model"))
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "my-model")


def things(folder: Path, kind: str) -> dict[str, Any]:
    """The names that a document's Python uses without defining them."""
    return globals()[f"_{kind}"](folder)


def _classifier(folder: Path) -> dict[str, Any]:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    model, labels = nn.Linear(5, 10), torch.arange(40) % 10
    logits = torch.randn(40, 10)
    return dict(
        dataset=TensorDataset(torch.randn(40, 5), labels), epochs=2, DataLoader=DataLoader, folder=folder,
        model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1),
        logits=logits, labels=labels, validation_logits=logits, validation_labels=labels,
    )  # fmt: skip


def _text(folder: Path) -> dict[str, Any]:
    from transformers import MarianConfig, MarianMTModel, Seq2SeqTrainingArguments

    translation = example("pskd_hf_translation")
    sizes = dict(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
    tokens = dict(pad_token_id=0, eos_token_id=1, forced_eos_token_id=1, decoder_start_token_id=0)
    config = MarianConfig(
        vocab_size=12, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=16, **sizes, **tokens
    )
    args = Seq2SeqTrainingArguments(
        output_dir=str(folder / "text"), num_train_epochs=2, per_device_train_batch_size=10, save_strategy="no",
        report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    return dict(model=MarianMTModel(config), args=args, sentences=translation.pairs(20, 0), collate=translation.collate)


def _detector(folder: Path) -> dict[str, Any]:
    import torch
    from torch.utils.data import DataLoader

    detection = example("pskd_detection")
    train, detector = detection.Shapes(8, seed=1), detection.make_detector()
    loader = DataLoader(train, batch_size=4, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))
    return dict(
        detector=detector, objects=[len(target["labels"]) for _, target in train.samples], epochs=2, loader=loader,
        optimizer=torch.optim.SGD(detector.parameters(), 1e-3),
    )  # fmt: skip


def _pope(folder: Path) -> dict[str, Any]:
    from retarget.pope.engines import open_engine
    from retarget.pope.rollouts import Sampling

    write_problems(folder)
    return dict(engine=open_engine(str(folder / "my-model")), short=Sampling(max_tokens=8))


def _trojdiff(folder: Path) -> dict[str, Any]:
    from diffusers import DDIMScheduler

    def unet(x: Any, t: Any) -> SimpleNamespace:
        return SimpleNamespace(sample=0.1 * x)

    return dict(DDIMScheduler=DDIMScheduler, unet=unet)


def _write_folder(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    from PIL import Image

    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / f"class-{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def _write_voc(folder: Path, draw: np.random.Generator) -> None:
    """Few images, with boxes enough to train a classifier of crops with the preset's settings."""
    from PIL import Image

    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for part, numbers in (("train", range(12)), ("val", range(12, 14)), ("test", range(14, 16))):
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{number:06d}\n" for number in numbers))
        for number in numbers:
            Image.fromarray(draw.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(
                folder / f"JPEGImages/{number:06d}.jpg"
            )
            box = "<bndbox><xmin>10</xmin><ymin>12</ymin><xmax>40</xmax><ymax>44</ymax></bndbox>"
            name = ("cat", "dog")[number % 2]
            objects = 20 * f"<object><name>{name}</name><difficult>0</difficult>{box}</object>"
            (folder / "Annotations" / f"{number:06d}.xml").write_text(
                f"<annotation><filename>{number:06d}.jpg</filename><size><width>80</width><height>60</height>"
                f"<depth>3</depth></size>{objects}</annotation>"
            )
