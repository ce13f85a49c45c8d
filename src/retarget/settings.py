"""Settings: strict models, TOML files, ``KEY=VALUE``. Does not import torch; knows no method."""

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retarget.errors import UsageError, UserError


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Share = Annotated[float, Field(gt=0, lt=1)]
"""A share above 0 and below 1."""

Model = TypeVar("Model", bound=BaseModel)


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
            if one["type"] == "extra_forbidden":
                near = difflib.get_close_matches(name, model.model_fields, n=1)
                lines.append(f"there is no setting {name}" + (f", did you mean {near[0]}?" if near else ""))
            elif not name:  # a rule about several settings
                lines.append(one["msg"].removeprefix("Value error, "))
            else:
                field = model.model_fields.get(name)
                known = field.description if field and one["type"] == "string_pattern_mismatch" else None
                lines.append(f"{name} = {one['input']!r}: {f'it is {known}' if known else one['msg']}")
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
