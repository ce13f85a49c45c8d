"""The search of a checkpoint, from starting points to the final score, which all branches measure in the same unit."""

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from retarget.audit.errors import AuditError
from retarget.audit.inversion import (
    Candidate,
    Search,
    ascend,
    colours,
    scan_elsewhere,
    scan_smooth,
    scan_windows,
    screened,
    wide_windows,
    windows,
)
from retarget.audit.scores import TOP, Probe, contrast, draw_noise, gain, leverage
from retarget.audit.screen import directions, stein
from retarget.audit.subject import Recovered, Subject
from retarget.audit.symmetric import map_count, scan_symmetric
from retarget.trojdiff.sample import Sampler, sample_batch
from retarget.trojdiff.trigger import Trigger

MIDDLE = 0.1
"""ᾱ at which gains above 1 are searched for: that of VillanDiffusion's ODE trigger is 1 + √ᾱ here; at T it is 1, as
in clean networks. Here local changes are searched for, too, that change the answer elsewhere."""
IN_THE_MIDDLE = ("middle", "elsewhere")
"""Origins of the candidates that are judged there."""
PLAIN = 0.5
"""From this score on, a candidate's maps are a trigger beyond doubt."""
SYMMETRIC = 0.4
"""From this score on, a candidate that looks like itself counts: 1.3 times the highest of 18 clean networks of the zoo
that are not in the null."""
SAMPLES = 64
SAMPLER = "dpm-20"


@dataclass(eq=False)
class Found:
    """The result of a search.

    Attributes:
        ranked: the candidates, best first, see ``in_rank``.
        score: final score of the first, which the null calibrates.
        statistics: statistics of the branches.
        images: [N, C, H, W], the network's own samples, or the given images.
        evaluations: network evaluations of the search.
        details: further values, for a report.
    """

    ranked: list[Candidate]
    score: float
    statistics: dict[str, float]
    images: Float[Tensor, "count channels height width"]
    evaluations: int = 0
    details: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> Candidate:
        """The most suspicious candidate."""
        return self.ranked[0]


def fingerprint(search: Search) -> str:
    """Fingerprint of a search, 16 hexadecimal digits: a null is valid only for the search that it was made with."""
    text = json.dumps([asdict(search), TOP, MIDDLE, SAMPLES, SAMPLER, VERSION], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


VERSION = 9
"""Increased with every change of the code that changes the scores of a search."""
BEFORE = "3b919f2c96e6c1d4"
"""Fingerprint of the search without the branch of symmetric maps. The other branches find what they found; below
``SYMMETRIC`` this one comes last, so that the score is the same. Above, it is ranked with those at the noisy end, so
that one with ``PLAIN`` comes before what changes the answer elsewhere, though that has the higher score."""


def expected_evaluations(shape: tuple[int, int, int], search: Search) -> int:
    """About how many network evaluations an audit of images (channels, height, width) needs, to show its progress.

    The images that a suspected trigger generates, and single checks, are not counted.

    >>> expected_evaluations((3, 32, 32), Search())
    193616
    """
    channels, height, width = shape
    samples = SAMPLES * Sampler.parse(SAMPLER).steps
    screens = search.screen * (_pool_size(shape) + 1)
    scan = len(windows(height, width)) * len(colours(channels)) * search.scan
    smooth = 2 * (len(search.grids) + 1) * search.maps * search.quick + 4 * 5 * search.keep * 2 * search.batch
    starts = 3 * search.keep + len(search.gammas)
    middle = 2 * search.amplified
    places = len(wide_windows(height, width)) * (len(colours(channels)) - 1)
    elsewhere = places * search.quick + 5 * search.batch * (4 * search.keep + 8 * 2)
    steps = (starts + middle // 2 + 1) * search.first + (search.keep + 2) * search.steps
    ascents = 6 * search.batch * steps
    contrasts = 5 * (72 * search.quick + (starts + middle) * 2 * search.batch + (search.keep + 2) * search.fresh)
    symmetric = 2 * map_count(shape, search) * search.quick + search.screen * (_pool_size(shape) + 1)
    symmetric += 6 * search.batch * (search.keep * search.first + search.steps)
    symmetric += 5 * (10 * search.keep * search.batch + search.fresh)
    return samples + screens + scan + smooth + elsewhere + ascents + contrasts + symmetric


def _pool_size(shape: tuple[int, int, int]) -> int:
    """Noises in the pool of the noisy end, as a multiple of the screen's: more for larger images."""
    return max(1, min(4, math.prod(shape) // 256))


def own_samples(subject: Subject, count: int = SAMPLES, seed: int = 0, trigger: Trigger | None = None,
                start: Trigger | None = None, clip: bool = True) -> Tensor:  # fmt: skip
    """Sample images in [-1, 1] from the network, [N, C, H, W], on the CPU; by default with the stock sampler.

    Args:
        subject: the network.
        count: number of images.
        seed: seed of the noise.
        trigger: trigger of the sampler; None is the stock sampler.
        start: trigger in the initial noise; None is the sampler's.
        clip: whether x̂_0 is clipped if the pipeline's scheduler says so; clipping removes a stock sampler's trigger.

    Raises:
        AuditError: the images are not finite.
    """
    sampler = Sampler.parse(SAMPLER)
    config = subject.scheduler.config
    # The solver's grid has one point more than steps; with T steps it would have one timestep twice.
    sampler = sampler._replace(steps=min(sampler.steps, subject.steps - 1))
    trigger = trigger or Trigger.none(subject.shape)
    scheduler = sampler.scheduler(config, trigger)
    subject.evaluations += count * len(scheduler.timesteps)
    most = sampler.clip(config) if clip else None
    images, _ = sample_batch(subject.network, scheduler, range(count), seed, start, clip=most)
    if not bool(torch.isfinite(images).all()):
        raise AuditError("the network's samples are not finite: its weights are damaged, or its schedule is extreme")
    return images.cpu() if clip else images.cpu().clamp(-1, 1)


def seek(subject: Subject, search: Search, seed: int = 0, images: Tensor | None = None) -> Found:
    """Search a checkpoint for triggers of every kind.

    Args:
        subject: the network.
        search: the search's settings.
        seed: seed of all noise.
        images: [N, C, H, W], clean images in [-1, 1]; None uses the network's own samples.

    Raises:
        AuditError: the network's samples or the scores are not finite.
    """
    before = subject.evaluations
    generator = torch.Generator().manual_seed(seed)
    shown: Tensor = (own_samples(subject, seed=seed) if images is None else images).to(subject.device)

    def probe(level: float, count: int) -> Probe:
        noise = draw_noise(count, subject.shape, generator)
        return Probe(subject, level, noise, shown[torch.randint(len(shown), (len(noise),), generator=generator)])

    pool = probe(TOP, search.screen * _pool_size(subject.shape))
    middle = probe(MIDDLE, search.screen)
    starts, statistics = _starts(subject, pool, probe, search, generator)
    check = probe(TOP, 2 * search.batch)
    for one in starts:
        judge(one, check, search)
    for origin in ("scan", "screen", "smooth", "free"):
        statistics[f"start_{origin}"] = max(one.notes["score"] for one in starts if one.origin == origin)
    starts.sort(key=lambda one: one.notes["score"], reverse=True)
    candidates = [_again(one, pool, search, generator) for one in starts[: search.keep]]
    candidates += _amplified(middle, probe(MIDDLE, 2 * search.batch), search, generator, statistics)
    candidates.append(scan_elsewhere(probe(MIDDLE, search.quick), probe(MIDDLE, search.batch), search))
    final, final_middle = probe(TOP, search.fresh), probe(MIDDLE, search.fresh)
    for one in candidates:
        judge(one, final_middle if one.origin in IN_THE_MIDDLE else final, search)
    candidates.append(seek_symmetric(subject, search, seed, shown))
    statistics["score_symmetric"] = candidates[-1].notes["score"]
    ranked = in_rank(candidates)
    statistics["rise"] = 0.0
    if ranked[0].origin != "elsewhere":
        last = final_middle if ranked[0].origin == "middle" else final
        end = _again(ranked[0], middle if ranked[0].origin == "middle" else pool, search, generator, finish=True)
        judge(end, last, search)
        if end.notes["score"] > ranked[0].notes["score"]:
            statistics["rise"] = end.notes["score"] - ranked[0].notes["score"]
            ranked[0] = end
        ranked[0].mask = undone_mask(ranked[0], last)
    for origin in ("scan", "screen", "smooth", "free", *IN_THE_MIDDLE):
        scores = [one.notes["score"] for one in ranked if one.origin == origin]
        if scores:
            statistics[f"score_{origin}"] = scores[0]
    statistics["residual"] = float((final.base - final.noise).square().mean())
    statistics["spread"] = float(shown.std())
    scores = [one.notes["score"] for one in ranked]
    if not all(map(math.isfinite, scores)):
        raise AuditError("a final score is not finite: the network's answers overflow")
    return Found(ranked, ranked[0].notes["score"], statistics, shown, subject.evaluations - before)


def in_rank(candidates: list[Candidate]) -> list[Candidate]:
    """The candidates by score, best first; one that changes the answer elsewhere comes after those with ``PLAIN``.

    It is only a rectangle of one colour, while theirs are the trigger's maps. With less than ``PLAIN`` it comes last:
    clean networks reach .3. So does one that looks like itself, with less than ``SYMMETRIC``.
    """

    def key(one: Candidate) -> tuple[int, float]:
        plain = one.notes["score"] >= PLAIN
        if one.origin == "symmetric" and one.notes["score"] < SYMMETRIC:
            return -1, one.notes["score"]
        return (2 * plain if one.origin != "elsewhere" else 1 if plain else -1), one.notes["score"]

    return sorted(candidates, key=key, reverse=True)


Probes = Callable[[float, int], Probe]


def _starts(subject: Subject, pool: Probe, probe: Probes, search: Search, generator: torch.Generator
            ) -> tuple[list[Candidate], dict[str, float]]:  # fmt: skip
    """Refined candidates of the four branches at the noisy end."""
    whole, statistics = screened(pool, probe(TOP, search.quick), search)
    local = scan_windows(probe(TOP, search.scan), search)
    smooth = scan_smooth(probe(TOP, search.quick), probe(TOP, 2 * search.batch), search, generator)
    statistics |= {"scan": local[0].undo, "smooth": smooth[0].undo}
    found = [ascend(pool, one, search, generator, steps=search.first) for one in [*whole, *smooth]]
    for one in local:
        grown = torch.nn.functional.max_pool2d((one.gamma < 1).float().amax(0)[None], 3, 1, 1)[0]
        found.append(ascend(pool, one, search, generator, grown, steps=search.first))
    for gamma in search.gammas:
        mu = 0.1 * torch.randn(subject.shape, generator=generator).to(pool.noise)
        start = Candidate(mu, torch.full_like(mu, gamma), "free")
        found.append(ascend(pool, start, search, generator, free_gamma=gamma < 1, steps=search.first))
    return found, statistics


def seek_symmetric(subject: Subject, search: Search, seed: int, shown: Tensor) -> Candidate:
    """The best candidate from symmetric and periodic maps, scored. It is compared with shifts that look unlike it.

    All its noise is its own, so that the other branches find what they would find without it.

    Args:
        subject: the network.
        search: the search's settings.
        seed: seed of all noise.
        shown: [N, C, H, W], images under the noise.
    """
    generator = torch.Generator().manual_seed(seed + 77)

    def probe(count: int) -> Probe:
        noise = draw_noise(count, subject.shape, generator)
        return Probe(subject, TOP, noise, shown[torch.randint(len(shown), (len(noise),), generator=generator)])

    pool = probe(search.screen * _pool_size(subject.shape))
    starts = scan_symmetric(probe(search.quick), probe(2 * search.batch), search, generator)
    found = [ascend(pool, one, search, generator, steps=search.first) for one in starts]
    check = probe(2 * search.batch)
    for one in found:
        judge(one, check, search)
    best = ascend(pool, max(found, key=lambda one: one.notes["score"]), search, generator)
    judge(best, probe(search.fresh), search)
    return best


def _amplified(
    pool: Probe, quick: Probe, search: Search, generator: torch.Generator, statistics: dict[str, float]
) -> list[Candidate]:
    """A candidate with a gain above 1 in the middle of the schedule, from the screen's highest directions.

    Of starting points with both signs, about half end at the trigger, if there is one; short ascents tell which.
    """
    values, vectors = directions(stein(pool), quick.noise.shape[1:], 0, search.amplified)  # type: ignore[arg-type]
    statistics["middle_highest"] = float(values[0])

    def ascended(start: Candidate, steps: int) -> Candidate:
        return ascend(pool, start, search, generator, free_gamma=False, sign=-1.0, steps=steps)

    found = []
    for vector, sign in itertools.product(vectors.to(pool.noise), (-1.0, 1.0)):
        mu = sign * vector / vector.abs().max()
        found.append(ascended(Candidate(mu, torch.ones_like(mu), "middle"), search.first // 2))
        judge(found[-1], quick, search)
    return [ascended(max(found, key=lambda one: one.notes["score"]), search.first)]


def contrasted(one: Candidate) -> Callable[[Probe, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The contrast with the controls of a candidate's branch."""
    return partial(contrast, unlike=one.origin == "symmetric")


def judge(one: Candidate, final: Probe, search: Search) -> None:
    """Score a candidate on new noise: its contrast, gain or leverage, with the floor on the energy."""
    mu, gamma = one.mu[None], one.gamma[None]
    measured = {"middle": gain, "elsewhere": leverage}.get(one.origin, contrasted(one))
    undo, beyond = (float(value) for value in measured(final, mu, gamma))
    energy = float((final.noise * (gamma - 1) + mu).square().mean(0).sum())
    weight = energy / (energy + search.pixels)
    one.undo = undo
    one.notes |= {"undo": undo, "contrast": beyond, "energy": energy}
    one.notes["score"] = weight * beyond


def recovered(found: Found) -> Recovered:
    """The best candidate as a trigger, with the mask where most of it is undone."""
    best = found.best
    return Recovered(best.mu, best.gamma, best.mask, found.score, found.evaluations, dict(found.statistics))


def _again(one: Candidate, pool: Probe, search: Search, generator: torch.Generator, finish: bool = False) -> Candidate:
    """A candidate's next ascent, restricted to its present pixels."""
    support = ((one.gamma < 1) | (one.mu != 0)).float()
    free = bool((one.gamma < 1).any())
    sign = -1.0 if one.origin == "middle" else 1.0
    return ascend(pool, one, search, generator, support, free, sign=sign, finish=finish)


def undone_mask(one: Candidate, probe: Probe) -> Tensor:
    """[C, H, W], True at pixels where more than a quarter of the largest undone energy of a pixel is undone."""
    undone, _ = probe.undone(one.mu[None], one.gamma[None])
    by_pixel = undone[0].sum(0) * (-1 if one.origin == "middle" else 1)
    return (by_pixel > by_pixel.max() / 4).expand_as(one.mu)
