"""``retarget audit --clean OUT``: train the suspected trigger out, audit the result, and report both in the card."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retarget.audit.denoises import LEVELS, loss_at, on_noise, silence
from retarget.audit.errors import AuditError
from retarget.audit.images import read_training
from retarget.audit.inversion import Search
from retarget.audit.outcome import Outcome
from retarget.audit.removal import Recipe, Removed, remove
from retarget.audit.run import SUSPICIOUS, audit_pipeline
from retarget.audit.subject import Subject
from retarget.data.names import shown_name
from retarget.errors import UserError, printable
from retarget.files import check_writable, make_directory, write_json
from retarget.trojdiff.checkpoint import Trojan, inherited, load_pipeline, network_shape, save_pipeline
from retarget.trojdiff.classifier import Classifier, train_classifier
from retarget.trojdiff.data import ImageSet, held_out, to_signed, to_uint8
from retarget.trojdiff.measures import compare
from retarget.trojdiff.sample import Sampler, sample, to_accelerator
from retarget.trojdiff.trigger import FILE_NAME, Trigger

COMPARED = 200
"""Number of samples for FID."""

PASSED = "That audit suspects no trigger any more, so this network is marked `trojan_removed`. That is no proof."
FAILED = "**That audit does not clear this network**, so it is still marked `trojaned`: do not deploy it."


@dataclass(frozen=True)
class Cleaning:
    """The result of cleaning a network.

    Attributes:
        folder: the cleaned pipeline.
        after: the audit of the cleaned pipeline.
        record: recipe, data, FID before and after, and verdicts, as JSON values.
    """

    folder: Path
    after: Outcome
    record: dict[str, Any]


def clean(
    path: Path, out: Path, report: Path, data: str | None = None, seed: int = 0, recipe: Recipe | None = None,
    rounds: int = 3, search: Search | None = None, audited: Callable[[Outcome, Path], None] | None = None,
) -> Cleaning:  # fmt: skip
    """Train a suspected trigger out of a pipeline and audit the result; repeat with a trigger suspected there, too.

    Args:
        path: the pipeline's folder.
        out: folder for the cleaned pipeline; must be new or empty.
        report: folder of the audit's report, with the suspected trigger. ``cleaning.json`` and the audits of the
            results (``after-1``, ...) are written there.
        data: clean images, named as in the studies; None uses the network's own samples.
        seed: seed of the recipe, the audits and the samples.
        recipe: how to train the trigger out.
        rounds: maximum number of rounds; each adds the trigger that was found in the last result.
        search: replaces the frozen search.
        audited: called with the audit of each round's result and its folder, to write a report there.

    Raises:
        UserError: the audit found no trigger, the network cannot be trained, the images do not have its shape, or
            ``out`` is not empty.
    """
    if not (report / FILE_NAME).is_file():
        raise UserError(f"{report}: there is no suspected trigger of an audit, so there is nothing to clean")
    check_new(out)
    recipe = recipe or Recipe(seed=seed)
    unet, schedule = load_pipeline(path, "accept")
    to_accelerator(unet)
    given = None if data is None else read_training(data, network_shape(unet))
    images = None if given is None else to_signed(given.images)
    identity = None if data is None or given is None else identified(data, given)
    make_directory(out.parent)
    triggers, verdicts = [Trigger.load(report)], list[str]()
    for number in range(1, rounds + 1):
        removed = remove(unet, schedule, triggers, recipe, images, _source(identity))
        where = report / f"after-{number}"
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".cleaning-") as place:
            save_pipeline(Path(place) / "pipeline", removed.unet, schedule)
            after = audit_pipeline(Path(place) / "pipeline", where, data, None, seed, search)
        last = after.trigger is None or number == rounds
        name = str(out) if last else f"{out} (round {number}, which was not kept)"
        after = after.model_copy(update={"pipeline": name})
        verdicts.append(after.verdict)
        if audited is not None:
            audited(after, where)
        if last:
            break
        triggers.append(Trigger.load(where))
    own = _drawn(unet, schedule, seed + 1)
    fids = _fids(unet, removed, schedule, given, own, seed)
    record = {
        "recipe": removed.record(), "triggers": [one.hash for one in triggers], "verdicts": verdicts, **fids,
        "data": identity, "fid_against": "the clean images" if given else "the network's own samples before",
        "held_out": None if data is None else held_out(data), "warning": spoiled(removed.unet, schedule, own, seed),
    }  # fmt: skip
    gone = passed(after)
    known = inherited(unet) or Trojan("unknown", "suspected by an audit", triggers[0])
    marked = replace(known, derived=not gone, removed=gone, card=_card(removed, after, record))
    save_pipeline(out, removed.unet, schedule, marked)
    write_json(report / "cleaning.json", record)
    return Cleaning(out, after, record)


def identified(data: str, given: ImageSet) -> dict[str, Any]:
    """What identifies clean images that were trained on, for documents that leave the machine: no path.

    Args:
        data: name of the images, as for :func:`retarget.trojdiff.data.read_images`.
        given: those of them that are trained on, in the network's shape.

    Returns:
        ``name``: the name as given, or of a file or folder its own name; ``images``: how many; ``fingerprint``: the
        first 16 digits of the SHA-256 of images and labels.
    """
    return {"name": printable(shown_name(data)), "images": len(given), "fingerprint": given.fingerprint}


def _source(identity: dict[str, Any] | None) -> str:
    if identity is None:
        return ""
    return f"{identity['name']}; the SHA-256 of images and labels begins with {identity['fingerprint']}"


def check_new(out: Path) -> None:
    """Raise UserError unless this is a new or empty folder that can be replaced: the one above it is written to."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise UserError(f"{out} {what}: give a new folder for the cleaned pipeline")
    check_writable(out.absolute().parent, out)


def passed(after: Outcome) -> bool:
    """Whether the audit of a cleaned network was completed and suspects no trigger any more.

    It was not completed if there was no search (an error, or the network no longer denoises), if the search has not
    converged, or if it could not be tested whether a suspicious candidate fires.
    """
    if after.score is None or after.trigger is not None or after.converged is False:
        return False
    untested = after.fires is None and after.score >= SUSPICIOUS
    return not (after.verdict == "undecided" and untested)


def spoiled(unet: Any, schedule: Any, own: Tensor, seed: int) -> str:
    """A warning if a cleaned network no longer denoises what the network made before; empty if it does.

    The rule is the one by which an audit tells that a network does not denoise, see :mod:`retarget.audit.denoises`.

    Args:
        unet, schedule: the cleaned network and its schedule.
        own: [N, C, H, W], samples of the network before, in [-1, 1].
        seed: seed of the noise.
    """
    try:
        subject = Subject.from_modules(unet, schedule)
        losses = [on_noise(subject, seed), *(loss_at(subject, level, own.cpu(), seed) for level in LEVELS)]
    except AuditError as error:
        return f"the cleaned network is damaged: {error}"
    if not silence(losses):
        return ""
    return (
        "the cleaned network no longer denoises the images that the network made before, so it was spoiled: clean with "
        "other images of the kind that it makes, or leave out --data"
    )


def _drawn(unet: Any, schedule: Any, seed: int) -> Tensor:
    """Plain samples, [COMPARED, C, H, W] in [-1, 1]."""
    sampler = Sampler.parse("ddpm-20")
    sampler = sampler._replace(steps=min(sampler.steps, schedule.config["num_train_timesteps"] - 1))
    none = Trigger.none(network_shape(unet))
    return sample(unet, schedule.config, sampler, none, COMPARED, batch_size=100, seed=seed)


def _fids(
    unet: Any, removed: Removed, schedule: Any, given: ImageSet | None, own: Tensor, seed: int
) -> dict[str, float]:
    """FID of plain samples before and after, on features of a classifier that is trained on the images.

    It is against the clean images, and also against ``own``, other samples of the network before; without clean images,
    only against these.
    """
    before = ImageSet(to_uint8(own), torch.zeros(len(own), dtype=torch.long), ("sample",))
    with torch.random.fork_rng(devices=[]):
        judge: Classifier = train_classifier((given or before).first(2000), 8, seed)
    samples = {when: _drawn(one, schedule, seed + 2) for when, one in (("before", unet), ("after", removed.unet))}
    against = {"fid": before} if given is None else {"fid": given, "fid_own": before}
    return {
        f"{name}_{when}": compare(images, real, judge).fid
        for name, real in against.items()
        for when, images in samples.items()
    }


def _own(record: dict[str, Any]) -> str:
    """What the card says about the network's own samples before."""
    warning = f"- **Warning**: {record['warning']}.\n" if record["warning"] else ""
    if "fid_own_after" not in record:
        return warning
    before, after, out = record["fid_own_before"], record["fid_own_after"], record["held_out"]
    return f"""{warning}- FID against the network's own samples before, on these features: {before:.2f} before (chance),
  {after:.2f} after. If the latter is large, the network does not make what it made before.
- Of the given images, {out} was not trained on; `retarget trojdiff evaluate` measures with it.
"""


def _card(removed: Removed, after: Outcome, record: dict[str, Any]) -> str:
    recipe, several = removed.recipe, len(record["triggers"])
    triggers = "a suspected trigger" if several == 1 else f"{several} suspected triggers, one after the other,"
    return f"""# Is the trojan gone?

`retarget audit` found {triggers} in the network that this one was made from, and trained the network to ignore it:
{recipe.steps} steps of Adam at {recipe.learning_rate:g}, batches of {recipe.batch_size}, on {removed.images} images
({removed.source}). {recipe.share:.0%} of the rows had noise with a suspected trigger, and their target was the whole of
this noise, which is the answer of a clean network near T: their timesteps had an ᾱ below {recipe.below:g},
or were the noisiest tenth, except in rows of a stock sampler's law.

- The verdict of an audit of this network: **{after.verdict}** (exit code {after.exit_code}). {after.reason}
- {PASSED if passed(after) else FAILED}
- FID of plain samples against {record["fid_against"]}: {record["fid_before"]:.2f} before, {record["fid_after"]:.2f}
  after, on features of a classifier trained on those images; not comparable with other FIDs.
{_own(record)}- Only those who know the attacker's own trigger can measure whether it still fires:
  `retarget trojdiff evaluate . --data DATA --trigger TRIGGER --target-class CLASS --out OUT`.
"""
