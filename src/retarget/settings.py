"""Settings: strict models, TOML files, ``KEY=VALUE``. Does not import torch; knows no method."""

import difflib
import reprlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from retarget.errors import UsageError, UserError


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Share = Annotated[float, Field(gt=0, lt=1)]
"""A share above 0 and below 1."""

Model = TypeVar("Model", bound=BaseModel)

_PLAIN = (
    ("Input should be ", "must be "),
    ("greater than or equal to", "at least"),
    ("less than or equal to", "at most"),
    ("greater than", "above"),
    ("less than", "below"),
    ("a valid tuple", "a list"),
    ("a valid list", "a list"),
    ("a valid dictionary", "a table"),
    ("a valid string", "a text"),
    ("a valid boolean", "true or false"),
    ("a valid integer", "an integer"),
    ("a valid number", "a number"),
)
"""pydantic's words, and those of a settings file."""


def faults(error: ValidationError, whole: str = "the file", most: int = 5) -> str:
    """The first ``most`` faults that pydantic found, each with its field; ``whole`` names what has several fields.

    >>> class Epochs(Strict):
    ...     epochs: int = Field(ge=1)
    ...     looks: tuple[int, ...] = ()
    >>> for given in ({"epochs": 0}, {"epochs": 1, "looks": [2, "x"]}, {"epoch": 1}):
    ...     try:
    ...         Epochs.model_validate(given)
    ...     except ValidationError as error:
    ...         print(faults(error))
    epochs must be at least 1, not 0
    looks number 2 must be an integer, not 'x'
    there is no epoch, did you mean epochs?; epochs is missing
    """
    found = error.errors()
    within = {one["loc"][:depth] for one in found for depth in range(len(one["loc"]))}
    found = [one for one in found if one["type"] != "too_short" or one["loc"] not in within]  # only its items are wrong
    missing = {one["loc"][:-1]: [] for one in found}
    for one in found:
        if one["type"] == "missing":
            missing[one["loc"][:-1]].append(str(one["loc"][-1]))
    found.sort(key=lambda one: one["type"] != "extra_forbidden")  # a misspelt field is why another is missing
    said = [_fault(one, whole, missing[one["loc"][:-1]]) for one in found[:most]]
    return "; ".join(said) + (f"; and {len(found) - most} more" if len(found) > most else "")


def _fault(one: ErrorDetails, whole: str, missing: Sequence[str] = ()) -> str:
    *inside, name = one["loc"] or (whole,)
    if one["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(name), missing, n=1)
        said = f"there is no {name}" + (f" in {_place(inside)}" if inside else "")
        return said + (f", did you mean {near[0]}?" if near else "")
    where, context = _place([*inside, name]), one.get("ctx", {})
    match one["type"]:
        case "missing":
            return f"{where} is missing"
        case "value_error":
            said = one["msg"].removeprefix("Value error, ")
            return f"{where}: {said}" if one["loc"] else said
        case "too_short":
            return f"{where} must have at least {context['min_length']}"
        case "string_pattern_mismatch":
            said = f"must match {context['pattern']}"
        case _:
            said = one["msg"].partition(", unable to ")[0].partition(" or instance of ")[0]
    for words, plain in _PLAIN:
        said = said.replace(words, plain)
    shown = reprlib.repr(one["input"])
    return f"{where} {said}, not {shown}" if said.startswith("must ") else f"{where} = {shown}: {said}"


def _place(names: Sequence[str | int]) -> str:
    """A field's place in words: ``claims number 1, metric``."""
    place = ""
    for before, name in zip([None, *names], names, strict=False):
        joint = ", " if isinstance(before, int) else "." if place else ""
        place += f" number {name + 1}" if isinstance(name, int) else f"{joint}{name}"
    return place


def choose(name: str, value: Any, allowed: Any) -> None:
    """Refuse a value of an argument that is none of a ``Literal``'s: it would select the branch of all others.

    Raises:
        UserError: it is none of them; the message names them.

    >>> from typing import Literal
    >>> choose("order", "pairs", Literal["paired", "pool"])
    Traceback (most recent call last):
    ...
    retarget.errors.UserError: order = 'pairs': choose 'paired' or 'pool'
    """
    known = get_args(allowed)
    if value not in known:
        raise UserError(f"{name} = {value!r}: choose {' or '.join(map(repr, known))}")


def resolve_settings(model: type[Model], settings: dict[str, Any], what: str = "the study's settings") -> Model:
    """Validate settings by a model; messages call them ``what``.

    Raises:
        UserError: settings are unknown or have values that are not allowed; names each, and the nearest known name.
    """
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        lines = []
        for one in error.errors():
            name = ".".join(map(str, one["loc"]))
            field = model.model_fields.get(name)
            if one["type"] == "extra_forbidden":
                near = difflib.get_close_matches(name, model.model_fields, n=1)
                lines.append(f"there is no setting {name}" + (f", did you mean {near[0]}?" if near else ""))
            elif field and field.description and one["type"] == "string_pattern_mismatch":
                lines.append(f"{name} = {one['input']!r}: it is {field.description}")
            else:
                lines.append(_fault(one, what))
        raise UserError(f"{what} are not valid: {'; '.join(lines)}") from error


def read_config(path: Path, option: str = "--config") -> dict[str, Any]:
    """Settings from a TOML file; ``option`` names it in messages.

    Raises:
        UsageError: it cannot be read or is not TOML; the message names the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read {option} {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # bad TOML or UTF-8, integers with thousands of digits, deep nesting
        raise UsageError(f"{option} {path} is not valid TOML: {error}") from error


def parse_setting(text: str, option: str = "--set") -> dict[str, Any]:
    """One ``KEY=VALUE`` of an option; ``null`` is no value, and what is not TOML is taken as text.

    >>> parse_setting("lr=0.1"), parse_setting("dataset=digits"), parse_setting("image_size=null")
    ({'lr': 0.1}, {'dataset': 'digits'}, {'image_size': None})
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"{option} takes KEY=VALUE, not {text!r}")
    for candidate in (value, "0"):
        try:
            found = tomllib.loads(f"{key} = {candidate}")
        except (ValueError, RecursionError):
            continue
        return found if candidate is value else _with_value(found, None if value.strip() == "null" else value)
    raise UsageError(f"{option} takes KEY=VALUE, and {key!r} is not a key")


def parse_settings(given: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """Several ``KEY=VALUE`` of an option, in one table.

    Raises:
        UsageError: one is not ``KEY=VALUE``, or a key is given twice.

    >>> parse_settings(["lr=0.1", "peer.method=poly", "peer.epsilon=2"])
    {'lr': 0.1, 'peer': {'method': 'poly', 'epsilon': 2}}
    """
    found: dict[str, Any] = {}
    for text in given:
        one = parse_setting(text, option)
        if twice := _in_both(found, one):
            raise UsageError(f"{option} gives {twice} twice, and the second would replace the first: give it once")
        found = merged(found, one)
    return found


def _in_both(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The first key that two tables give a value, also inside tables; empty if there is none."""
    for key in one.keys() & other.keys():
        tables = isinstance(one[key], dict) and isinstance(other[key], dict)
        inner = _in_both(one[key], other[key]) if tables else ""
        if inner or not tables:
            return f"{key}.{inner}" if inner else key
    return ""


def _with_value(found: dict[str, Any], value: str | None) -> dict[str, Any]:
    """The tables of one key with a value that TOML has no notation for: none, and some texts, as of a file's name."""
    return {name: _with_value(one, value) if isinstance(one, dict) else value for name, one in found.items()}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``base`` overridden by ``over``, also inside tables."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if both else value
    return result
