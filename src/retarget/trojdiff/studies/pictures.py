"""Pictures for the TrojDiff study's page: each model's benign and triggered samples."""

from pathlib import Path

from retarget.study.figures import Figure, Images
from retarget.study.record import Results

SIDE_BY_SIDE = "Benign and triggered samples"
PICTURES = (
    ("benign.png", "plain noise, stock sampler"),
    ("trojan.png", "biased noise, Trojan sampler"),
    ("stock.png", "biased noise, stock sampler"),
    ("plain.png", "plain noise, Trojan sampler"),
)


def side_by_side(results: Results, attacks: list[str]) -> list[Figure]:
    """Benign and triggered samples of a trojaned model, for the first attack of each target."""
    seed = results.seeds[0]
    shown: list[tuple[Path, str]] = []
    labels = {arm.name: arm.label for arm in results.plan.arms}
    targets = {arm.name: arm.settings.get("target") for arm in results.plan.arms}
    first = {targets[arm]: arm for arm in reversed(attacks)}
    for arm in (arm for arm in attacks if arm in first.values()):
        run = results.run("default", arm, seed)
        if run is not None:
            folder = run.directory / "pictures"
            shown += [(folder / "benign.png", f"{labels[arm]}: benign")]
            shown += [(folder / "trojan.png", f"{labels[arm]}: triggered")]
    caption = (
        f"Samples of a trojaned model for each target, seed {seed}, 20 steps: from plain noise with the stock sampler, "
        "and from biased noise with the Trojan sampler."
    )
    return _images(results, SIDE_BY_SIDE, caption, shown)


def pictures(results: Results) -> list[Figure]:
    """The grids and the denoising strip of every arm."""
    figures: list[Figure] = []
    seed = results.seeds[0]
    for arm in results.plan.arms:
        run = results.run("default", arm.name, seed)
        if run is None or "trojan_share" in arm.settings:
            continue
        folder = run.directory / "pictures"
        shown = [(folder / name, label) for name, label in PICTURES]
        shown += [
            (folder / f"floor-{name.removesuffix('.png')}-{kind}.png", f"{label} ({kind} trigger)")
            for kind in ("blend", "patch") for name, label in PICTURES[1:]
        ]  # fmt: skip
        figures += _images(results, f"Samples: {arm.label}", f"Seed {seed}, 20 sampling steps.", shown)
        strip = [(folder / "strip.png", "from the biased noise to the image")]
        figures += _images(
            results, f"Denoising: {arm.label}", "Four images, one per row: states of the Trojan sampler.", strip
        )
    return figures


def _images(results: Results, title: str, caption: str, shown: list[tuple[Path, str]]) -> list[Figure]:
    there = [(path, label) for path, label in shown if path.exists()]
    if not there:
        return []
    files, labels = [path.relative_to(results.directory) for path, _ in there], [label for _, label in there]
    return [Images(title=title, caption=caption, files=files, labels=labels)]
