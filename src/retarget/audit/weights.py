"""A pipeline's files of weights: those that are read, and others that somebody could load. No pickle is opened."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from retarget.audit.configuration import read_config
from retarget.audit.errors import AuditError, NotCoveredError
from retarget.errors import first_words
from retarget.trojdiff.checks import home

_STEM = "diffusion_pytorch_model"


def check_weights(folder: Path) -> str | None:
    """The variant of the weights (None for the plain one), after checking the header of every file."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
        if pickles:
            raise AuditError(
                f"unet/{pickles[0]}: the only weights are pickles, and loading one can run code: convert them to "
                "safetensors on an isolated machine"
            )
        raise AuditError(
            "the folder has no unet/diffusion_pytorch_model.safetensors, nor another safetensors file of weights"
        )
    for path in files:
        if path.is_file() and path.stat().st_size < 1000 and path.read_bytes().startswith(b"version https://git-lfs"):
            raise AuditError(
                f"unet/{path.name} is a pointer of Git LFS, not the weights: run git lfs pull in its clone"
            )
        if path.is_symlink() and not path.exists():
            raise AuditError(
                f"unet/{path.name} is a link to {path.readlink()}, which does not exist: copy the weights themselves, "
                "with cp -L say"
            )
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise AuditError(f"unet/{path.name} is not a complete safetensors file: {first_words(error)}") from error
        if not names:
            raise AuditError(f"unet/{path.name} contains no weights")
    _sets(folder)  # raises for an index that names other files
    plain = (folder / f"{_STEM}.safetensors").is_file() or (folder / f"{_STEM}.safetensors.index.json").is_file()
    if plain:
        return None
    variants = sorted({_variant(path) for path in files if path.name.startswith(f"{_STEM}.")})
    if len(variants) != 1:
        raise AuditError(
            f"unet: cannot tell which of these files are the weights: {', '.join(p.name for p in files)}; keep one "
            f"variant in unet/, or add {_STEM}.safetensors"
        )
    return variants[0]


def check_floats(folder: Path, variant: str | None) -> None:
    """Refuse weights of integers: diffusers would read the codes of a quantisation as numbers."""
    sets = _sets(folder)
    for path in sets[_read_set(sets, variant)]:
        if not path.is_file():
            continue  # diffusers says so
        with safe_open(path, framework="pt") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
        codes = [name for name, kind in kinds.items() if not kind.startswith(("F", "BF"))]
        if codes:
            raise NotCoveredError(
                f"unet/{path.name}: {codes[0]} has values of type {kinds[codes[0]]}, not floating-point numbers: "
                "quantised networks are not covered"
            )


def other_weights(folder: Path, files: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Weights in a pipeline's folder that are not the audited ones, as paths inside the folder.

    Those of the first kind can be loaded into the pipeline, or instead of its network, so nobody who has the folder
    knows the network by the audited weights alone.

    Args:
        folder: the folder.
        files: all of its files.

    Returns:
        What the files hold that leave no clean verdict, by path: other sets of the network's weights (variants, a
        single file beside an index, a file that no index names, a pickle that diffusers reads where only a variant is
        safetensors) that are not the audited weights in the same or fewer bits; LoRA weights anywhere; and weights in
        the pipeline's own folder or the network's. And all other weights, which are in undeclared folders.

    Raises:
        AuditError: as :func:`retarget.audit.loading.read_pipeline`.
    """
    part = home(folder, "unet")
    sets = _sets(part)
    known = {_inside(folder, path) for paths in sets.values() for path in paths}
    variant = check_weights(part)
    read = sets.pop(_read_set(sets, variant))
    audited = _tensors(read) if sets else {}
    different = [path for paths in sets.values() if not _same_weights(audited, _tensors(paths)) for path in paths]
    pickles = [part / f"{_STEM}.bin", part / f"{_STEM}.bin.index.json"] if variant else []
    different += [path for path in pickles if path.is_file()]
    found = {_inside(folder, path): "other weights of the network" for path in different}
    weights = [one for one in files if one.endswith((".safetensors", ".msgpack", ".h5", ".onnx")) or _named_lora(one)]
    rest = []
    for name in sorted(set(weights) - known - found.keys()):
        if _is_trigger(folder / name):
            continue
        if is_lora(folder / name):
            found[name] = "LoRA weights"
        elif (folder / name).parent in (folder, part):
            found[name] = "weights of another network or format"
        else:
            rest.append(name)
    return found, rest


def _read_set(sets: dict[str, list[Path]], variant: str | None) -> str:
    """The name of the set that is read: diffusers prefers the index of a variant's weights to their single file."""
    dot = f".{variant}" if variant else ""
    names = (f"{_STEM}.safetensors.index{dot}.json", f"{_STEM}{dot}.safetensors")
    for name in names:
        if name in sets:
            return name
    raise AuditError(f"unet: the weights are neither in {names[1]} nor in files that {names[0]} names")


def _sets(part: Path) -> dict[str, list[Path]]:
    """The sets of weights in a network's folder, by the name of their index or of their only file."""
    sets = {}
    for index in sorted(part.glob(f"{_STEM}*.index*.json")):
        if ".bin." in index.name:
            continue  # of pickles, which are not read
        if not index.name.startswith(f"{_STEM}.safetensors.index."):
            raise AuditError(
                f"unet/{index.name} has an earlier form of an index's name, which diffusers reads only for some paths: "
                "save the network again with save_pretrained"
            )
        places = read_config(index, "it names the files of the weights").get("weight_map")
        if not isinstance(places, dict):
            raise AuditError(f"unet/{index.name} has no weight_map")
        odd = [one for one in places.values() if not _is_shard(one)]
        if odd:  # diffusers would open it, whatever it is
            raise AuditError(
                f"unet/{index.name} names {odd[0]!r} as a file of weights: only safetensors files beside the index are "
                "read, never pickles"
            )
        sets[index.name] = [part / name for name in sorted(set(places.values()))]
    named = {path for paths in sets.values() for path in paths}
    return sets | {path.name: [path] for path in sorted(part.glob(f"{_STEM}*.safetensors")) if path not in named}


def _is_shard(name: Any) -> bool:
    """Whether an index may name this as a file of weights: safetensors, in the index's own folder."""
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def _variant(path: Path) -> str:
    """The variant in the name of a file of weights: empty for the plain one.

    >>> ends = (".non-ema-00001-of-00002.safetensors", "-00001-of-00002.safetensors")
    >>> [_variant(Path(_STEM + end)) for end in ends]
    ['non-ema', '']
    """
    end = path.name.removeprefix(_STEM).removesuffix(".safetensors")
    return re.sub(r"-\d+-of-\d+$", "", end).lstrip(".")


def _tensors(paths: Sequence[Path]) -> dict[str, Tensor]:
    try:
        return {name: tensor for path in paths for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise AuditError(f"a file of weights cannot be read: {first_words(error)}") from error


def _same_weights(audited: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Whether these are the audited weights in the same or fewer bits."""
    return audited.keys() == others.keys() and all(
        audited[name].shape == other.shape and torch.equal(audited[name].to(other.dtype), other)
        for name, other in others.items()
    )


def _inside(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _is_trigger(path: Path) -> bool:
    """Whether this is a trigger as ``Trigger.save`` writes it: two maps of one shape, and no weights."""
    if path.name != "trigger.safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError):
        return False
    return shapes.keys() == {"mu", "gamma"} and shapes["mu"] == shapes["gamma"] and len(shapes["mu"]) == 3


def _named_lora(name: str) -> bool:
    """Whether a file has a name of LoRA weights, as diffusers or PEFT write them, also as a pickle.

    >>> [_named_lora(one) for one in ("pytorch_lora_weights.bin", "a/adapter_model.bin", "lora/notes.txt")]
    [True, True, False]
    """
    path = Path(name.lower())
    weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
    return weights and ("lora" in path.name or path.stem == "adapter_model")


def is_lora(path: Path) -> bool:
    """Whether these are LoRA weights, by the file's name or by its tensors'."""
    if _named_lora(path.name):
        return True
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return any("lora" in name.lower() for name in file.keys())  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError):
        return False  # it is named all the same
