"""The images of a run, and the refusal of others than those of the runs before it."""

from pathlib import Path

from retarget.data.names import parse
from retarget.files import read_json, write_json
from retarget.identity import fingerprint, refuse_other
from retarget.pskd.studies.images.classes import DATA
from retarget.pskd.studies.images.data import Images, Split, described, pixel_hashes, sides, split
from retarget.pskd.studies.images.settings import Settings
from retarget.study.identity import DATA_REMEDY
from retarget.study.record import read_status


def recorded(directory: Path, settings: Settings) -> Split:
    """As :func:`~retarget.pskd.studies.images.data.split`; describes the images in ``data.json``.

    Of a user's own function the identity of a run has only the source, and not what the function reads. So its images
    and labels are recorded, and compared with those of the finished runs of the same condition.

    Args:
        directory: the run's directory, beside those of its condition's other runs.

    Raises:
        UserError: as ``split``, or a finished run had other images or labels.
    """
    parts = split(settings)
    found = described(parts)
    if parse(settings.dataset)[0] == "own":
        found["content"] = _content(parts)
        found["sides"] = list(sides(settings))  # arms may resize images each in its own way
        for file in sorted(directory.parent.parent.glob(f"*/seed-*/{DATA}")):
            status, before = read_status(file.parent), read_json(file)
            done = status is not None and status["state"] == "complete"
            if done and "content" in before and before["sides"] == found["sides"]:
                said = ({f"the {name} images": one for name, one in of["content"].items()} for of in (before, found))
                refuse_other(file.parent, *said, remedy=DATA_REMEDY)
    write_json(directory / DATA, found)
    return parts


def _content(parts: Split) -> dict[str, str]:
    """Fingerprints of each part's images, of those in memory, and labels."""

    def of(part: Images) -> str:
        return fingerprint([[one.hex() for one in pixel_hashes(part)], part.labels.tolist()])

    return {"training": of(parts.train), "validation": of(parts.validation), "test": of(parts.test)}
