"""Static findings in a pipeline's folder: code, pickles, non-stock classes, signatures. None of them is a verdict."""

import hashlib
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from retarget.audit.configuration import is_pipeline, is_scheduler, read_config
from retarget.audit.errors import AuditError
from retarget.errors import first_words
from retarget.settings import Strict
from retarget.trojdiff.checks import home

Level = Literal["error", "warning", "note"]
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill"}
SIGNATURES = ("model.sig", "model.sigstore", "model.sigstore.json")


class Rule(Strict):
    """A kind of finding, as in SARIF."""

    id: str
    name: str
    text: str
    atlas: tuple[str, ...] = ()


RULES = {
    one.name: one
    for one in (
        Rule(id="RT001", name="trojaned", text="The network undoes a trigger: it is trojaned.",
             atlas=("AML.T0018.000", "AML.T0020", "AML.T0010.003", "AML.T0058")),
        Rule(id="RT002", name="undecided", text="The audit gives no verdict."),
        Rule(id="RT003", name="fires-in-stock-sampler", text="The trigger is undone on a stock sampler's images too.",
             atlas=("AML.T0043.004",)),
        Rule(id="RT004", name="fires-from-plain-noise",
             text="How many images from plain noise look like those with the trigger."),
        Rule(id="RT101", name="custom-code", text="The pipeline's folder contains Python code.",
             atlas=("AML.T0010.003",)),
        Rule(id="RT102", name="pickle", text="The pipeline's folder contains a pickle; loading one can run code.",
             atlas=("AML.T0010.003",)),
        Rule(id="RT103", name="non-stock-pipeline", text="The pipeline's class is not one of diffusers' own."),
        Rule(id="RT104", name="non-stock-scheduler", text="The scheduler's class is not one of diffusers' own.",
             atlas=("AML.T0018.000",)),
        Rule(id="RT106", name="unaudited-weights", text="The pipeline's folder contains weights that were not audited.",
             atlas=("AML.T0018.000",)),
        Rule(id="RT105", name="signature", text="Whether an OpenSSF model signature is present, verified and valid."),
    )
}  # fmt: skip
"""Rules by name, with MITRE ATLAS ids: 0018.000 and 0020 are backdoors by poisoning, 0010.003 and 0058 their spread."""


class Finding(Strict):
    """A finding.

    Attributes:
        rule: name of a rule in ``RULES``.
        level: severity.
        message: description.
        file: path inside the pipeline's folder; "." is the folder itself.
    """

    rule: str
    level: Level
    message: str
    file: str = "."


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a pipeline, by path inside the folder."""
    found = {}
    for path in _files(folder):
        with path.open("rb") as file:
            found[_name(folder, path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return dict(sorted(found.items()))


def _name(folder: Path, path: Path) -> str:
    return os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "backslashreplace")


def _files(folder: Path) -> Iterator[Path]:
    """Every file, also behind links to folders, which loading follows; no folder is entered twice.

    Raises:
        AuditError: there is a pipe or a device, and opening one may wait for ever.
    """
    seen = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [one for one in folders if os.path.realpath(Path(where, one)) not in seen]
        seen.update(os.path.realpath(Path(where, one)) for one in folders)
        for path in (Path(where, name) for name in names):
            if path.is_file():
                yield path
            elif path.exists():
                raise AuditError(f"{path.relative_to(folder)} is a pipe or a device, not a file: remove it")


def _is_pickle(path: Path) -> bool:
    """Whether a file has the suffix of a pickle, begins as one of protocol 2 to 5, or is PyTorch's archive with one."""
    if path.suffix.lower() in PICKLES:
        return True
    if path.suffix.lower() == ".safetensors":
        return False  # it begins with a number that may look like a pickle's first bytes
    with path.open("rb") as file:
        head = file.read(2)
    if len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return True
    if head != b"PK":
        return False
    try:
        if not zipfile.is_zipfile(path):  # raises, too: for an archive on several disks
            return False
        with zipfile.ZipFile(path) as archive:
            return any(Path(name).name == "data.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OSError, struct.error):
        return True  # other readers of archives are less strict


def look(folder: Path, index: dict[str, Any], files: dict[str, str], key: Path | None = None) -> list[Finding]:
    """The static findings in a pipeline's folder.

    Args:
        folder: the folder.
        index: content of ``model_index.json``.
        files: the files, from :func:`hashes`.
        key: public key (PEM, elliptic curve) to verify the signature with.

    Raises:
        AuditError: the key cannot be read, or is not the public key of an elliptic curve.
    """
    if key is not None:
        _check_key(key)
    found = []
    pickles = {_name(folder, path) for path in _files(folder) if _is_pickle(path)}
    for name in files:
        suffix = Path(name).suffix.lower()
        if suffix == ".py":
            found.append(Finding(rule="custom-code", level="warning", file=name, message=f"{name} is Python code"))
        if name in pickles:
            message = f"{name} is a pickle, or an archive that may contain one; it was not loaded"
            found.append(Finding(rule="pickle", level="warning", file=name, message=message))
    name = index.get("_class_name")
    if not is_pipeline(name):
        message = f"the pipeline's class is {name!r}, not one of diffusers"
        found.append(Finding(rule="non-stock-pipeline", level="warning", file="model_index.json", message=message))
    found.extend(_odd_schedulers(folder, index))
    return [*found, _signature(folder, key)]


def _odd_schedulers(folder: Path, index: dict[str, Any]) -> list[Finding]:
    """A finding for each file that names a scheduler from outside diffusers: model_index.json, and its settings."""
    odd: list[tuple[str, Any]] = []
    scheduler = index.get("scheduler")
    if not (
        isinstance(scheduler, list) and len(scheduler) == 2 and scheduler[0] == "diffusers"
        and is_scheduler(scheduler[1])
    ):  # fmt: skip
        odd.append(("model_index.json", scheduler))
    path = home(folder, "scheduler") / "scheduler_config.json"
    try:
        name = read_config(path, "it defines the noise schedule").get("_class_name")
    except AuditError:
        name = None  # whoever loads the pipeline says so
    if name is not None and not is_scheduler(name):
        odd.append((_name(folder, path), name))
    return [
        Finding(
            rule="non-stock-scheduler", level="warning", file=file,
            message=f"{file} names {named!r} as the scheduler, not one of diffusers: it was not run, only its settings "
            "were read",
        )
        for file, named in odd
    ]  # fmt: skip


def _check_key(key: Path) -> None:
    from retarget.extras import require

    keys = require("cryptography.hazmat.primitives.serialization", "audit")
    curves = require("cryptography.hazmat.primitives.asymmetric.ec", "audit")
    try:
        found = keys.load_pem_public_key(key.read_bytes())
    except OSError as error:
        raise AuditError(f"--public-key {key} cannot be read: {error}") from error
    except ValueError as error:
        raise AuditError(f"--public-key {key} has no public key in PEM (-----BEGIN PUBLIC KEY-----)") from error
    if not isinstance(found, curves.EllipticCurvePublicKey):
        raise AuditError(f"--public-key {key} is not the key of an elliptic curve, as model signatures have it")


def _signature(folder: Path, key: Path | None) -> Finding:
    """Whether there is an OpenSSF model signature, and, if a key is given, whether it is valid."""
    present = [name for name in SIGNATURES if (folder / name).is_file()]

    def say(level: Level, message: str) -> Finding:
        return Finding(rule="signature", level=level, message=message, file=present[0] if present else ".")

    if not present:
        return say("warning" if key else "note", "there is no OpenSSF model signature (model.sig)")
    if key is None:
        return say(
            "note",
            f"the signature {present[0]} was not verified: --public-key KEY.pem verifies one "
            "that was made with a key; one with an identity or a certificate needs the command model_signing",
        )
    from retarget.extras import require

    verifying, hashing = (require(f"model_signing.{name}", "audit") for name in ("verifying", "hashing"))
    # The signature does not sign itself; the files of a hub's cache are links.
    hashed = hashing.Config().set_ignored_paths(paths=[present[0]], ignore_git_paths=True).set_allow_symlinks(True)
    forged = require("cryptography.exceptions", "audit").InvalidSignature
    try:
        config = verifying.Config().set_hashing_config(hashed).use_elliptic_key_verifier(public_key=key)
        config.verify(folder, folder / present[0])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError, forged) as error:
        # Not only of a forged signature: of a damaged one, too.
        reason = first_words(error)
        return say("warning", f"the signature {present[0]} is invalid for {key}: {reason}")
    return say("note", f"the signature {present[0]} is valid for {key}")
