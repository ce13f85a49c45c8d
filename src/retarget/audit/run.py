"""The audit of one pipeline, from its folder to an outcome with evidence."""

import math
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from retarget import __version__
from retarget.audit.calibration import Null, nearest, shipped
from retarget.audit.denoises import LEVELS, Loss, loss_at, on_noise, silence
from retarget.audit.errors import UNDECIDED, AuditError
from retarget.audit.firing import Firing, fire, leaked
from retarget.audit.images import USED, check_differ, read_given
from retarget.audit.inversion import Candidate, Search, wide_windows, windows
from retarget.audit.loading import read_index
from retarget.audit.outcome import ErrorRate, Outcome, TriggerFound
from retarget.audit.reach import gammas_found, reach_lines
from retarget.audit.reach import shipped as known_triggers
from retarget.audit.scores import TOP, reached_level
from retarget.audit.seek import MIDDLE, Found, expected_evaluations, fingerprint, own_samples, seek
from retarget.audit.static import Finding, hashes, look
from retarget.audit.subject import Subject
from retarget.audit.verdict import converged, decide
from retarget.audit.weights import other_weights
from retarget.errors import UserError, first_words
from retarget.files import make_directory
from retarget.trojdiff.checkpoint import NOT_MADE
from retarget.trojdiff.data import to_signed
from retarget.trojdiff.pictures import save_grid, save_image
from retarget.trojdiff.trigger import Trigger

SUSPICIOUS = 0.1
"""From this score on, the network generates images under the best candidate."""


def audit(path: str | Path, out: str | Path | None = None, data: str | None = None, seed: int = 0) -> Outcome:
    """Audit a pipeline, as ``retarget audit`` does without options.

    Args:
        path: the pipeline's folder.
        out: folder for pictures and maps; None writes none.
        data: clean images, named as in the studies; None uses the network's own samples.
        seed: seed of the search's noise.

    Returns:
        The outcome. A checkpoint that cannot be read gives an outcome too, with verdict ``error``.

    Raises:
        UserError: ``data`` cannot be read, does not have the network's shape, is one image only, or is nothing that the
            network denoises although it denoises its own samples.
    """
    if not isinstance(path, str | Path):
        raise UserError(
            f"audit takes the folder of a pipeline, not a {type(path).__name__}: save it with save_pretrained"
        )
    return audit_pipeline(Path(path), None if out is None else Path(out), data, None, seed)


def audit_pipeline(
    path: Path, out: Path | None, data: str | None = None, key: Path | None = None, seed: int = 0,
    search: Search | None = None, null: Null | None = None, watch: Callable[[int, int], None] | None = None,
) -> Outcome:  # fmt: skip
    """As :func:`audit`; ``search`` and ``null`` replace the frozen search and the null in this package.

    Args:
        path, out, data, seed: as in :func:`audit`.
        key: public key (PEM) to verify the pipeline's signature with.
        search: settings of the search.
        null: clean models to compare with.
        watch: called during the search with the number of network evaluations, and about how many there will be.
    """
    started = time.perf_counter()
    basis: dict[str, Any] = {"pipeline": str(path), "versions": _versions()}
    try:
        if not path.is_dir():
            raise AuditError("there is no such folder: give the folder of a diffusers pipeline on this machine")
        basis["files"] = hashes(path)
        index = read_index(path)
        basis["findings"] = look(path, index, basis["files"], key)
        subject = Subject.load(path)
        alternatives, others = other_weights(path, basis["files"])
        basis["findings"] += [_unaudited(name) for name in [*alternatives, *others]]
        if torch.cuda.is_available():
            subject.network.to("cuda")
        if watch is not None:
            total = expected_evaluations(subject.shape, search or Search())
            subject.watch = lambda done: watch(min(done, total), total)
        given = None
        if data is not None:
            found_images = read_given(data, subject.shape)
            check_differ(found_images, data)
            given = to_signed(found_images.first(USED).images)
            basis |= {"images_found": len(found_images), "images_used": len(given)}
        images, losses = _heard(subject, given, seed)
        if silence(losses):
            _refuse_other_images(subject, data, losses, seed)
            return _silent(subject, losses, basis, time.perf_counter() - started)
        found = seek(subject, search or Search(), seed, images)
        outcome = concluded(subject, found, basis, out, seed, search or Search(), null or shipped(), data is not None)
    except AuditError as error:
        verdict = "not covered" if error.code == UNDECIDED else "error"
        seconds = time.perf_counter() - started
        return Outcome(**basis, verdict=verdict, exit_code=error.code, reason=str(error), seconds=seconds)
    if alternatives and outcome.verdict == "nothing found":
        name, content = next(iter(alternatives.items()))
        reason = f"{outcome.reason}; but {name} holds {content}, which were not audited"
        outcome = outcome.model_copy(update={"verdict": "undecided", "exit_code": UNDECIDED, "reason": reason})
    return outcome.model_copy(update={"seconds": time.perf_counter() - started})


def _unaudited(name: str) -> Finding:
    message = f"{name} holds weights that were not audited: audit a copy of the pipeline that has only these"
    return Finding(rule="unaudited-weights", level="warning", file=name, message=message)


def _heard(subject: Subject, images: Tensor | None, seed: int) -> tuple[Tensor | None, list[Loss]]:
    """The images for the search, and the losses: on plain noise, and, unless that is too large, on these images."""
    _asked_once(subject)
    losses = [on_noise(subject, seed)]
    if silence(losses):
        return images, losses
    images = own_samples(subject, seed=seed) if images is None else images
    return images, losses + [loss_at(subject, level, images, seed) for level in LEVELS]


def _refuse_other_images(subject: Subject, data: str | None, losses: list[Loss], seed: int) -> None:
    """Raise if a network denoises its own samples, but not the images that it was given."""
    if data is None or len(losses) == 1:
        return
    own = own_samples(subject, seed=seed)
    if not silence(losses[:1] + [loss_at(subject, level, own, seed) for level in LEVELS]):
        raise UserError(
            f"--data {data}: the network denoises its own samples, but not these images: give images of the kind that "
            "it makes, or leave out --data"
        )


def _asked_once(subject: Subject) -> None:
    """Refuse a network that cannot process images of its own size, or timesteps of its own schedule."""
    x = torch.zeros(2, *subject.shape, device=subject.device)
    size = f"{subject.height}×{subject.width}"
    try:
        answer = subject.eps(x, torch.tensor([0, subject.steps - 1], device=x.device))
    except (RuntimeError, IndexError) as error:
        raise AuditError(
            f"the network fails on images of {size}, its sample_size, at timesteps 0 and {subject.steps - 1}, the ends "
            f"of its schedule: {first_words(error)}"
        ) from error
    except (*NOT_MADE, AttributeError) as error:
        raise AuditError(f"unet/config.json makes a network that does not run ({first_words(error)})") from error
    if answer.shape != x.shape:
        raise AuditError(
            f"the network's output for images of {size} is {answer.shape[-2]}×{answer.shape[-1]}, not the same size"
        )
    if not bool(torch.isfinite(answer).all()):
        raise AuditError("the network's answer is not finite: its weights are damaged")


def _silent(subject: Subject, losses: list[Loss], basis: dict[str, Any], seconds: float) -> Outcome:
    """The outcome for a network that does not denoise, without a search."""
    statistics = {f"loss_at_{one.level:.2g}": one.found for one in losses}
    statistics |= {f"linear_loss_at_{one.level:.2g}": one.linear for one in losses}
    rate = ErrorRate(known=False, sentence="The error rate is unknown: the network does not denoise.")
    return Outcome(
        **basis, verdict="undecided", exit_code=UNDECIDED, reason=silence(losses), error_rate=rate,
        statistics=statistics, evaluations=subject.evaluations, seconds=seconds,
    )  # fmt: skip


def concluded(
    subject: Subject, found: Found, basis: dict[str, Any], out: Path | None, seed: int, search: Search, null: Null,
    given: bool = False,
) -> Outcome:  # fmt: skip
    """The outcome from the result of a search. If it is suspicious, the network generates images under the trigger.

    Args:
        subject, out, seed, search, null: as in :func:`audit_pipeline`.
        found: the result.
        basis: what is known of the pipeline without a search.
        given: whether the search had images of the user.

    Raises:
        AuditError: a statistic is not finite.
    """
    if odd := [name for name, value in found.statistics.items() if not math.isfinite(value)]:
        raise AuditError(f"the search's {odd[0]} is not finite: the network fails on some noise, or is damaged")
    residual = found.statistics["residual"]
    top, middle = (reached_level(subject, level)[1] for level in (TOP, MIDDLE))
    family = nearest(subject.side, subject.channels, residual, null, fingerprint(search), top, middle)
    if subject.height != subject.width:
        unlike = f"the null has no clean model of {subject.height}×{subject.width}, only square ones"
        family = family.model_copy(update={"unlike": unlike})
    firing, fault = None, ""
    if found.score >= SUSPICIOUS:
        try:
            firing = fire(subject, found.best, seed + 1)
        except AuditError as error:
            fault = f"whether the suspected trigger fires could not be tested: {error}"
    fires = None if firing is None else firing.fires
    strength = None if firing is None else firing.strength
    by_heart = firing is not None and firing.known_by_heart
    best, rise = found.best, found.statistics["rise"]
    verdict, code, reason, rate = decide(found.score, best.undo, strength, family, best.origin, by_heart, rise)
    if fault and verdict != "nothing found":
        reason = f"{reason}; {fault}"
    if given and rate.known:
        same = "The null's models were searched with their own samples, and this network with the given images."
        rate = rate.model_copy(update={"sentence": f"{rate.sentence} {same}"})
    statistics: dict[str, Any] = dict(found.statistics) | _named(found.best)
    if firing is not None:
        statistics |= {"firing_trojan": firing.trojan_undo, "firing_stock": firing.stock_share, "drawn": firing.drawn}
        statistics |= {"restored": firing.restored[0], "restored_anyway": firing.restored[1]}
        statistics |= {} if firing.elsewhere is None else {"firing_elsewhere": firing.elsewhere}
    settled = converged(found.score, rise, family) if rate.known else None
    doubtful = verdict == "undecided" and settled is not False
    suspected = verdict == "trojaned" or (doubtful and (rate.known or bool(fires)))
    trigger = _trigger(found, firing) if suspected and firing is not None else None
    findings = list(basis.pop("findings"))
    if verdict == "trojaned" and firing is not None and firing.fires_stock:
        message = (
            "the network undoes the trigger also on images of a stock sampler that starts from noise with it, so it "
            "may fire without a Trojan sampler: see the images"
        )
        findings.append(Finding(rule="fires-in-stock-sampler", level="warning", message=message))
    if verdict == "trojaned" and firing is not None:
        findings.append(_from_plain_noise(firing, seed))
    pictures, missing = dict[str, str](), ""
    if out is not None:
        try:
            pictures = _draw(out, found, firing if suspected else None)
        except UserError as error:  # the verdict is not lost by it
            missing = f"the pictures are missing: {error}"
    return Outcome(
        **basis, verdict=verdict, exit_code=code, reason=reason, score=found.score, error_rate=rate, trigger=trigger,
        fires=fires, converged=settled, scope=scope(subject, search), statistics=statistics, findings=findings,
        pictures=pictures, pictures_missing=missing, evaluations=subject.evaluations,
    )  # fmt: skip


def _from_plain_noise(firing: Firing, seed: int) -> Finding:
    try:
        count, total = leaked(firing, seed)
        message = (
            f"a small classifier takes {count} of {total} images from plain noise for images with the suspected "
            "trigger. If these are more than a few, the trojan acts without its trigger, or the target is a kind of "
            "image that the network makes anyway, or the images hardly differ: see the images"
        )
    except RuntimeError as error:  # no memory, for example: that costs no verdict
        message = f"whether the trigger fires from plain noise could not be tested: {error}"
    return Finding(rule="fires-from-plain-noise", level="note", message=message)


def scope(subject: Subject, search: Search) -> list[str]:
    """What was searched for, in words."""
    sides = sorted({one[0] for one in windows(subject.height, subject.width)})
    wide = min(one[0] for one in wide_windows(subject.height, subject.width))
    top, middle = (f"{reached_level(subject, level)[1]:.2g}" for level in (TOP, MIDDLE))
    models, made = known_triggers(), fingerprint(search)
    gammas, known = gammas_found(models, made), reach_lines(subject.side, subject.channels, models, made)
    return [
        "whole-image triggers, and local ones, searched for in windows of side "
        f"{', '.join(map(str, sides))} in black, white, grey and the corners of the colour cube",
        f"the Trojan law ({gammas}), and stock-sampler triggers visible at ᾱ = {top} or {middle}",
        f"local triggers of side {wide} and more that change the answer elsewhere at ᾱ = {middle}, under every law",
        "triggers that act at the noisy end of the schedule, local ones also in its middle; those that act only near "
        "clean images are not found",
        "triggers that differ from their mirror (-mu) and from some shift; those of one colour may be missed, "
        "and so may stripes and checkerboards under the laws of stock samplers",
        *known,
    ]


def _named(best: Candidate) -> dict[str, float]:
    """The best candidate's measurements, by what they are: one that changes the answer elsewhere has no undo."""
    names = {"undo": "change_elsewhere", "contrast": "excess_elsewhere"} if best.origin == "elsewhere" else {}
    return {names.get(name, name): value for name, value in best.notes.items()}


def _trigger(found: Found, firing: Firing) -> TriggerFound:
    best = found.best
    assert best.mask is not None
    mask = best.mask
    inside = mask.any(0)
    local = float(inside.float().mean()) <= 0.4
    rows, columns = torch.nonzero(inside.any(1)).flatten(), torch.nonzero(inside.any(0)).flatten()
    box = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    law: Literal["trojdiff", "stock sampler", "unknown"] = "unknown"
    if best.origin != "elsewhere" and firing.fires:
        law = "trojdiff" if firing.fires_trojan and best.origin != "middle" else "stock sampler"
    return TriggerFound(
        law=law, kind="local" if local else "blend", values=int(mask.sum()), box=box if local else None, undo=best.undo,
        gamma=None if best.origin == "elsewhere" else float(best.gamma[mask].median()),
        strength=firing.strength, stock_sampler=firing.fires_stock, origin=best.origin,
    )  # fmt: skip


def _draw(out: Path, found: Found, firing: Firing | None) -> dict[str, str]:
    """Write pictures and maps to the audit's folder; returns captions by file."""
    make_directory(out)
    captions = {"plain.png": "Images from plain noise, with a stock sampler."}
    save_grid(_shown(found.images[:32].cpu() if firing is None else firing.plain), out / "plain.png", columns=8)
    if firing is not None:
        captions = _draw_trigger(out, found.best, firing) | captions
    channels = len(found.best.mu)
    beside = "" if channels in (1, 3) else f" The {channels} channels are side by side."
    return {name: caption + beside for name, caption in captions.items()}


def _draw_trigger(out: Path, best: Candidate, firing: Firing) -> dict[str, str]:
    mu, gamma = best.mu.cpu().clamp(-1, 1), best.gamma.cpu().clamp(0.02, 1.0)
    Trigger(mu, gamma, "suspected").save(out / "trigger.safetensors")
    size = mu.abs().max().clamp_min(1e-6)
    shown = _shown((mu / size)[None])[0]
    scale = max(1, 192 // mu.shape[-1])
    save_image(shown.repeat_interleave(scale, 1).repeat_interleave(scale, 2), out / "trigger.png")
    save_grid(_shown(firing.trojan), out / "trojan.png", columns=8)
    save_grid(_shown(firing.stock), out / "stock.png", columns=8)
    return {
        "trigger.png": f"The bias mu of the suspected trigger, scaled by {float(1 / size):.2f}; grey is 0.",
        "trojan.png": "Images from noise with the suspected trigger, with the Trojan sampler.",
        "stock.png": "Images from noise with the suspected trigger, with a stock sampler.",
    }


def _shown(images: Tensor) -> Tensor:
    """Images that can be shown: grey and colour ones unchanged, of others the channels side by side in grey."""
    return images if images.shape[1] in (1, 3) else torch.cat(images.split(1, dim=1), dim=-1)


def _versions() -> dict[str, str]:
    return {"retarget": __version__, "torch": torch.__version__, "diffusers": version("diffusers"),
            "python": sys.version.split()[0]}  # fmt: skip
