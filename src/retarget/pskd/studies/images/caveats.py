"""What an image study's page must say of its data, and of temperatures that were not fitted."""

from typing import Any

from retarget.files import read_json
from retarget.pskd.studies.images.classes import DATA
from retarget.pskd.studies.images.scores import TEMPERATURES, UNKNOWN
from retarget.study.record import Results


def at_an_end(results: Results, condition: str) -> str:
    """A sentence on the runs whose fitted temperature is an end of ``TEMPERATURES``; empty if there is none."""
    found = []
    for arm in results.plan.arms:
        runs = {seed: results.run(condition, arm.name, seed) for seed in results.seeds}
        at = [seed for seed, run in runs.items() if run and run.metrics.get("temperature") in TEMPERATURES]
        if at:
            found.append(f"{arm.label} (seed{'s' * (len(at) > 1)} {', '.join(map(str, at))})")
    if not found:
        return ""
    return (
        f"the fitted temperature is an end of its search range, {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g}, for "
        f"{', '.join(found)}: no temperature within the range fits best there, so figures after temperature are "
        "those of this end."
    )


def faultless(results: Results, condition: str) -> dict[str, list[int]]:
    """By arm, the seeds of which every validation image is right, so that no temperature can be fitted."""
    found: dict[str, list[int]] = {}
    for arm in results.plan.arms:
        for seed in results.seeds:
            run = results.run(condition, arm.name, seed)
            if run and run.metrics.get("temperature") == UNKNOWN:
                found.setdefault(arm.name, []).append(seed)
    return found


def known_after_temperature(results: Results, condition: str) -> dict[str, dict[str, list[float | None]]]:
    """Metrics after temperature of arms with seeds that have no temperature, None for these: they are raw ones."""
    known: dict[str, dict[str, list[float | None]]] = {}
    for arm, without in faultless(results, condition).items():
        runs = dict(zip(results.seeds, results.runs(condition, arm), strict=True))
        names = {name for run in runs.values() if run for name in run.metrics if name.endswith("_scaled")}
        known[arm] = {
            name: [run.metrics.get(name) if run and seed not in without else None for seed, run in runs.items()]
            for name in sorted(names)
        }
    return known


def no_temperature(results: Results, condition: str) -> str:
    """A sentence on the runs without a temperature; empty if there is none."""
    labels = {arm.name: arm.label for arm in results.plan.arms}
    found = [
        f"{labels[arm]} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})"
        for arm, seeds in faultless(results, condition).items()
    ]
    if not found:
        return ""
    return (
        f"every validation image is right for {', '.join(found)}, so no temperature can be fitted: nothing after "
        "temperature is measured there, and claims on it are not decided by these seeds. Set validation_images higher."
    )


def chosen_at(results: Results) -> str:
    """Of which epochs the figures are, and that no choice is made on the test set, unless validation has its images."""
    said = (
        "Figures are those of the last epoch; figures 'at the selected epoch' are those of the epoch with the highest "
        "validation accuracy."
    )
    shared = any((_data(results, one.name) or {}).get("validation_in_test") for one in results.plan.conditions)
    return said if shared else f"{said} No choice is made on the test set."


def on_data(results: Results, condition: str) -> list[str]:
    """Sentences on the images of a condition, as one of its runs has recorded them."""
    data = _data(results, condition)
    if data is None:
        return []
    counts = ", ".join(f"{count:,} {name}" for name, count in data["parts"].items())
    said = [f"{data['classes']} classes; {counts} images."]
    for name, count in data["repeated"].items():
        if count:
            said.append(
                f"{count} of the {data['parts'][name]:,} {name} images are also training images, pixel by pixel: there "
                f"the {name} part measures memory. Leave them out of the training images."
            )
    if count := data.get("validation_in_test"):  # None in a record of an earlier version, as below
        said.append(
            f"{count} of the {data['parts']['validation']:,} validation images are also test images, pixel by pixel: "
            "the selected epoch and the temperature are chosen on the test set there. Leave them out of one of the two "
            "parts."
        )
    for name, count in (("test", data["unseen"]), ("validation", data.get("unseen_in_validation"))):
        if count:
            said.append(f"{count} of the {name} images' classes have no training image, and count as wrong.")
    return said


def _data(results: Results, condition: str) -> dict[str, Any] | None:
    """What one of a condition's runs has recorded of its images; None if none has."""
    files = [one.directory / DATA for arm in results.plan.arms for one in results.runs(condition, arm.name) if one]
    return next((read_json(file) for file in files if file.exists()), None)
