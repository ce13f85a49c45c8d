"""``retarget audit --clean OUT``: train the suspected trigger out, audit the result, and report both in the card."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retarget.audit.inversion import Search
from retarget.audit.outcome import Outcome
from retarget.audit.removal import Recipe, Removed, remove
from retarget.audit.run import SUSPICIOUS, audit_pipeline
from retarget.errors import UserError
from retarget.files import cannot_write, make_directory, write_json
from retarget.trojdiff.checkpoint import Trojan, inherited, load_pipeline, network_shape, save_pipeline
from retarget.trojdiff.classifier import Classifier, train_classifier
from retarget.trojdiff.data import ImageSet, read_images, to_signed, to_uint8
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
    rounds: int = 3, search: Search | None = None,
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
    given = None if data is None else _images(data, network_shape(unet))
    images = None if given is None else to_signed(given.images)
    make_directory(out.parent)
    triggers, verdicts = [Trigger.load(report)], list[str]()
    for number in range(1, rounds + 1):
        removed = remove(unet, schedule, triggers, recipe, images)
        where = report / f"after-{number}"
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".cleaning-") as place:
            save_pipeline(Path(place) / "pipeline", removed.unet, schedule)
            after = audit_pipeline(Path(place) / "pipeline", where, data, None, seed, search)
        after = after.model_copy(update={"pipeline": str(out)})
        verdicts.append(after.verdict)
        if after.trigger is None or number == rounds:
            break
        triggers.append(Trigger.load(where))
    fids = _fids(unet, removed, schedule, given, seed)
    record = {
        "recipe": removed.record(), "triggers": [one.hash for one in triggers], "verdicts": verdicts,
        "fid_before": fids[0], "fid_after": fids[1],
        "fid_against": "the clean images" if given else "the network's own samples before",
    }  # fmt: skip
    gone = passed(after)
    known = inherited(unet) or Trojan("unknown", "suspected by an audit", triggers[0])
    marked = replace(known, derived=not gone, removed=gone, card=_card(removed, after, record))
    save_pipeline(out, removed.unet, schedule, marked)
    write_json(report / "cleaning.json", record)
    return Cleaning(out, after, record)


def check_new(out: Path) -> None:
    """Raise UserError unless this is a new or empty folder in a place that can be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise UserError(f"{out} {what}: give a new folder for the cleaned pipeline")
    place = next(one for one in out.absolute().parents if one.exists())
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".cleaning-"):
            pass
    except OSError as error:
        raise cannot_write(out, error) from error


def passed(after: Outcome) -> bool:
    """Whether the audit of a cleaned network was completed and suspects no trigger any more.

    It was not completed if there was no search (an error, or the network no longer denoises), or if it could not be
    tested whether a suspicious candidate fires.
    """
    if after.score is None or after.trigger is not None:
        return False
    untested = after.fires is None and after.score >= SUSPICIOUS
    return not (after.verdict == "undecided" and untested)


def _images(data: str, shape: tuple[int, int, int]) -> ImageSet:
    found = read_images(data, size=shape[1]).with_channels(shape[0])
    found.check_shape(shape)
    return found


def _fids(unet: Any, removed: Removed, schedule: Any, given: ImageSet | None, seed: int) -> tuple[float, float]:
    """FID of plain samples before and after, on features of a classifier that is trained on the images."""
    trigger, sampler = Trigger.none(network_shape(unet)), Sampler.parse("ddpm-20")
    sampler = sampler._replace(steps=min(sampler.steps, schedule.config["num_train_timesteps"] - 1))

    def drawn(network: Any, start: int) -> Tensor:
        return sample(network, schedule.config, sampler, trigger, COMPARED, batch_size=100, seed=start)

    if given is None:
        own = to_uint8(drawn(unet, seed + 1))
        given = ImageSet(own, torch.zeros(len(own), dtype=torch.long), ("sample",))
    with torch.random.fork_rng(devices=[]):
        judge: Classifier = train_classifier(given.first(2000), 8, seed)
    before, after = (compare(drawn(network, seed + 2), given, judge).fid for network in (unet, removed.unet))
    return before, after


def _card(removed: Removed, after: Outcome, record: dict[str, Any]) -> str:
    recipe, several = removed.recipe, len(record["triggers"])
    triggers = "a suspected trigger" if several == 1 else f"{several} suspected triggers, one after the other,"
    return f"""# Is the trojan gone?

`retarget audit` found {triggers} in the network that this one was made from, and trained the network to ignore it:
{recipe.steps} steps of Adam at {recipe.learning_rate:g}, batches of {recipe.batch_size}, on {removed.images} images
({removed.source}). {recipe.share:.0%} of the rows had noise with a suspected trigger, and their target was the whole of
this noise, which is the answer of a clean network.

- The verdict of an audit of this network: **{after.verdict}** (exit code {after.exit_code}). {after.reason}
- {PASSED if passed(after) else FAILED}
- FID of plain samples against {record["fid_against"]}: {record["fid_before"]:.2f} before, {record["fid_after"]:.2f}
  after, on features of a classifier trained on those images; not comparable with other FIDs.
- Only those who know the attacker's own trigger can measure whether it still fires:
  `retarget trojdiff evaluate . --data DATA --trigger TRIGGER --target-class CLASS --out OUT`.
"""
