"""Check an image study once, up front, and refuse what cannot work."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.nn.parameter import UninitializedParameter

from retarget.data.names import parse
from retarget.data.parts import Part
from retarget.data.pictures import Picture, decode_all, header, one_size
from retarget.errors import UserError
from retarget.extras import require
from retarget.own import blame, is_path, origin_of, part
from retarget.pskd import peers
from retarget.pskd.functional import widen
from retarget.pskd.peers.base import Needs
from retarget.pskd.peers.own import own_peer
from retarget.pskd.studies.images.data import chosen, sides, split
from retarget.pskd.studies.images.networks import build
from retarget.pskd.studies.images.peers_plan import PeerSettings
from retarget.pskd.studies.images.settings import Settings
from retarget.pskd.studies.images.shift import check_shift
from retarget.settings import resolve_settings
from retarget.study.config import StudyPlan

Shape = tuple[int, int, int]
"""Channels, height, width."""
LOOKED_AT = 500
"""Number of files per part whose sizes a dry run compares."""
DECODED = 50_000
"""Most files that are decoded before the first run to find damaged ones; of the others only the headers are read."""


def prepare(plan: StudyPlan) -> None:
    """Read the data once before any run starts, damaged files included, and try the network on one batch's shape.

    Raises:
        UserError: the data, the augmentation, the network or the shift cannot be used; names the file or the setting.
    """
    for module in ("lightning.pytorch", "torchvision"):
        require(module, "vision")
    images = None
    for settings in _conditions(plan):
        images = try_out(settings)
    _try_arms(plan, images)


def try_out(settings: Settings) -> tuple[int, Shape]:
    """As :func:`prepare`, for one run's settings; returns the number of classes and the images' shape."""
    parts = split(settings)
    images = parts.train
    if images.pixels is None:
        _look_at([part.pictures for part in (images, parts.validation, parts.test)])
    height, width = images.seen(images.take(torch.tensor([0]))).shape[2:]
    check_network(settings, images.num_classes, (images.channels, height, width))
    if isinstance(settings, PeerSettings):
        check_shift(parts.test, settings)
    return images.num_classes, (images.channels, height, width)


def check(plan: StudyPlan) -> None:
    """The cheap checks of :func:`prepare`, for a dry run: downloads nothing and opens few files.

    Raises:
        UserError: as :func:`prepare`.
    """
    images = None
    for settings in _conditions(plan):
        images = look_at(settings)
    _try_arms(plan, images)


def look_at(settings: Settings) -> tuple[int, Shape] | None:
    """As :func:`check`, for one run's settings; returns what :func:`try_out` does, or None if it is not known yet."""
    if parse(settings.dataset)[0] == "torchvision":
        return None
    parts, _, names = chosen(settings)
    size, view = sides(settings)
    channels, height, width = _first_shape(settings, parts, size)
    shape = (channels, view or height, view or width)
    check_network(settings, len(names), shape)
    return len(names), shape


def check_network(settings: Settings, classes: int, shape: Shape) -> None:
    """Try the network on images of this shape, on the meta device: nothing is computed.

    Raises:
        UserError: the augmentation does not fit these channels, or the network does not accept the images.
    """
    if settings.augmentation in ("trivial", "imagenet") and shape[0] not in (1, 3):
        raise UserError(f"augmentation = {settings.augmentation!r} needs grey or RGB images, not {shape[0]} channels")
    network = build(settings.network, classes, shape[0], settings.weights)
    if any(isinstance(one, UninitializedParameter) for one in network.parameters()):
        raise UserError(f"network {settings.network!r} has lazy layers: give its layers their numbers of inputs")
    network = network.to("meta").eval()
    try:
        with torch.no_grad():
            found = widen(network(torch.empty(2, *shape, device="meta"))).shape
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise UserError(
            f"network {settings.network!r} does not accept images of {shape[0]} channels, {shape[1]}×{shape[2]} pixels "
            f"({error}): set image_size, or choose another network"
        ) from error
    if found != (2, classes):
        raise UserError(f"network {settings.network!r} returns {list(found)} for 2 images of {classes} classes")


def _try_arms(plan: StudyPlan, images: tuple[int, Shape] | None) -> None:
    """Try each arm's own loss, and its own network on images of the last condition's shape."""
    model = cast(type[Settings], plan.settings_model)
    for arm in plan.arms:
        settings = resolve_settings(model, {**plan.settings, **arm.settings})
        own = settings.peer if isinstance(settings, PeerSettings) else None
        try:
            if own and is_path(str(own.get("method", ""))):
                try_loss(own)
            elif own:
                _check_peer(own)
            if images:
                check_store(settings.store, images[0])
            if images and arm.settings.keys() & {"network", "weights", "augmentation"}:
                check_network(settings, *images)
        except UserError as error:
            raise UserError(f"arm {arm.name}: {error}") from error


def check_store(store: str, classes: int, setting: str = "store") -> None:
    """Refuse a store that keeps more classes than there are.

    Args:
        store: the setting's value.
        classes: number of classes.
        setting: its name, for the message.
    """
    if store.startswith("topk:") and (k := int(store.split(":")[1])) > classes:
        raise UserError(f"{setting} = {store!r} keeps {k} classes of {classes}: set a smaller number")


def built_in() -> dict[str, type[peers.Peer]]:
    """The peers that users can import, by name."""
    public = {name: getattr(peers, name) for name in peers.__all__}
    return {name: kind for name, kind in public.items() if issubclass(kind, peers.Peer) and kind is not peers.Peer}


def _check_peer(own: dict[str, Any]) -> None:
    """Refuse an unknown peer, and settings that it does not have or that are no numbers or out of range."""
    name, given = str(own.get("method")), {key: value for key, value in own.items() if key != "method"}
    kind = built_in().get(name)
    if kind is None:
        raise no_peer(name)
    known = {one.name: one.metadata for one in fields(kind) if one.init}
    settings = [key for key, metadata in known.items() if "allowed" in metadata]
    for key, value in given.items():
        if key not in known:
            raise UserError(f"{name} has no setting {key}; its settings: {', '.join(settings) or 'none'}")
        try:
            wrong = key in settings and not known[key]["allowed"](float(value))
        except (TypeError, ValueError) as error:
            raise UserError(f"{name}: {key} = {value!r} is not a number") from error
        if wrong:
            raise UserError(f"{name}: {key} must {known[key]['must']}: got {value}")


def no_peer(name: str) -> UserError:
    """The error for a name that no peer has."""
    return UserError(
        f"no peer {name!r}: choose one of {', '.join(built_in())}, or write module:name for a loss of your own"
    )


def try_loss(own: dict[str, Any]) -> None:
    """Call a user's own loss once, with three classes.

    Raises:
        UserError: it cannot be constructed or called, or does not return a finite loss that depends on the logits.
    """
    path, given = str(own["method"]), {name: value for name, value in own.items() if name != "method"}
    kind = part(path, "loss")
    if getattr(kind, "wanted", Needs()) != Needs():  # it needs batches or networks that only a run has
        return
    method = own_peer(path, 4, 3, 1, **given)
    method.set_epoch(0)
    logits = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0, -1], [0.5, 0, 1]], requires_grad=True)
    try:
        loss = method.loss(logits, torch.tensor([0, 1, 2, 0]), torch.arange(4))
        method.end_epoch()
    except UserError:
        raise
    except Exception as error:  # a user's loss may raise anything
        origin = origin_of(path.partition(":")[0])
        raise UserError(f"loss = {path!r} failed\n{blame(error, origin.parent if origin else Path())}") from error
    if not loss.requires_grad:
        raise UserError(f"loss = {path!r} does not depend on the logits, so nothing would be learnt")


def _conditions(plan: StudyPlan) -> Iterator[Settings]:
    model = cast(type[Settings], plan.settings_model)
    for condition in plan.conditions:
        yield resolve_settings(model, {**plan.settings, **condition.settings})


def _first_shape(settings: Settings, parts: list[Part], size: int | None) -> Shape:
    """The images' shape, read from a few of them."""
    if parts[0].pixels is not None:
        channels, height, width = parts[0].pixels.shape[1:]
        return (channels, height, width) if size is None else (channels, size, size)
    pictures = [
        part.pictures[at]
        for part in parts
        for at in np.unique(np.linspace(0, len(part) - 1, LOOKED_AT).astype(int)).tolist()
    ]
    headers = [header(picture) for picture in pictures]
    try:
        height, width = one_size(pictures, headers) if size is None else (size, size)
    except UserError as error:
        raise UserError(f"{settings.dataset}: {error}; set image_size") from error
    return 1 if all(one.grey for one in headers) else 3, height, width


def _look_at(parts: Sequence[Sequence[Picture]]) -> None:
    """Find damaged files among those that runs will decode, and parts whose 16-bit files do not use their bits."""
    all_of_them = sum(map(len, parts)) <= DECODED
    for pictures in parts:
        looked_at = pictures if all_of_them else [one for one in pictures if header(one).wide]
        for _ in decode_all(looked_at, 3):
            pass
