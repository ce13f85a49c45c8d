"""The notation of image datasets. Does not import torch."""

import os
from pathlib import Path

from retarget.errors import UserError
from retarget.files import is_there
from retarget.own import is_path

KINDS = ("torchvision", "npz", "folder", "hf")
GRAMMAR = "digits, torchvision:NAME, npz:FILE, folder:DIR, hf:DIR, module:function"


def parse(spec: str) -> tuple[str, str]:
    """Kind and name of a dataset; a plain ``FILE.npz`` or folder is accepted.

    >>> parse("npz:a.npz"), parse("a.npz"), parse("digits"), parse("mydata:load")
    (('npz', 'a.npz'), ('npz', 'a.npz'), ('digits', ''), ('own', 'mydata:load'))

    Raises:
        UserError: the text does not name a dataset.
    """
    kind, _, name = spec.partition(":")
    if spec == "digits":
        return spec, ""
    if kind in KINDS and name:
        return kind, name
    if is_path(spec):
        return "own", spec
    if spec.endswith(".npz"):
        return "npz", spec
    if is_there(spec) and Path(spec).is_dir():
        return "folder", spec
    if spec.endswith((".npy", ".pt", ".pkl", ".mat", ".h5", ".hdf5")):
        raise UserError(f"dataset {spec!r}: save its images and labels as one .npz file, numpy.savez(FILE, images=..., "
                        "labels=...)")  # fmt: skip
    raise UserError(f"dataset {spec!r} is none of {GRAMMAR}, and no folder")


def data_paths(spec: str) -> tuple[str, ...]:
    """The file or folder of a dataset; none if it comes with a library or is generated.

    >>> data_paths("npz:a.npz"), data_paths("torchvision:CIFAR100"), data_paths("")
    (('a.npz',), (), ())
    """
    if not spec:  # no dataset; as a path it would be the working directory
        return ()
    kind, _, name = spec.partition(":")
    if kind in KINDS:
        return () if kind == "torchvision" else (name,)
    return (spec,) if spec.endswith(".npz") or is_there(spec) else ()


def shown_name(spec: str) -> str:
    """A dataset's name for a document that others read: of a file or folder only its own name, not where it lies.

    >>> shown_name("npz:/home/me/cats.npz"), shown_name("folder:../cats/"), shown_name("torchvision:CIFAR10")
    ('cats.npz', 'cats', 'torchvision:CIFAR10')
    """
    paths = data_paths(spec)
    return Path(os.path.normpath(Path(paths[0]).absolute())).name if paths else spec  # a link keeps its own name
