"""Load a user's own study: a file or module with ``plan`` and ``run``, and optionally ``analyse``."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retarget.errors import UsageError, UserError
from retarget.files import is_there
from retarget.own import called, importable, imported, origin_of
from retarget.settings import merged, resolve_settings
from retarget.study.config import StudyPlan, choose_arms, json_table, refuse_decided, refuse_unknown

FORM = "plan, a StudyPlan or a function plan(preset, config, seeds, arms), and run(run), which returns a run's metrics"


def is_file(name: str) -> bool:
    """Whether a word names a file, rather than a method or a module."""
    return name.endswith(".py") or "/" in name


def is_own(name: str) -> bool:
    """Whether a word names a file, or a module that can be imported, without importing it."""
    return is_file(name) or origin_of(name) is not None


@contextmanager
def found(name: str) -> Iterator[str]:
    """Make a file or module importable inside the ``with`` block, also for worker processes; yields its module name.

    The file's folder, or the working directory, is searched last.

    Raises:
        UsageError: there is no such file or module, or the file's name is that of another module.
    """
    if not is_file(name):
        with importable(Path.cwd()):
            if origin_of(name) is None:
                raise UsageError(f"there is no module {name}")
            yield name
        return
    path = Path(name)
    if not is_there(path):
        raise UsageError(f"there is no file {path}" + f" in {Path.cwd()}" * (not path.is_absolute()))
    if not path.is_file() or path.suffix != ".py":
        raise UsageError(f"{path} is not a Python file: a study of your own is FILE.py, with {FORM}")
    path = path.resolve()
    if not path.stem.isidentifier():
        raise UsageError(f"{path.name} is not a name that can be imported: rename it, for example to my_study.py")
    with importable(path.parent):
        other = origin_of(path.stem)
        if other is None or other.resolve() != path:
            raise UsageError(
                f"{path.name} has the name of another module, {other or 'one of Python itself'}, which workers would "
                "import instead: rename your file"
            )
        yield path.stem


def read(
    module: str,
    preset: str = "demo",
    config: dict[str, Any] | None = None,
    seeds: list[int] | None = None,
    arms: list[str] | None = None,
    reserved: Sequence[str] = (),
) -> StudyPlan:
    """The plan of a user's module, with ``run`` as its task and ``analyse`` as its analysis.

    Args:
        module: its name, which must be importable.
        preset, config, seeds, arms: as for every study. A ``plan`` that is not a function has one preset, and
            ``config`` can only change settings that it has.
        reserved: names of studies that are taken.

    Raises:
        UserError: it cannot be imported (the message shows the user's own line), ``plan`` or ``run`` is missing or has
            another form, or a setting, arm or preset is unknown.
    """
    source = imported(module, f"the study {module}")
    where = str(source.__file__)
    if not hasattr(source, "plan"):
        raise UserError(f"{where} has no plan: a study of your own has {FORM}")
    plan = _resolved(module, source.plan, where, preset, dict(config or {}), seeds, arms)
    if not hasattr(source, "run") and not plan.task:
        raise UserError(f"{where} has no run: a study of your own has {FORM}")
    refuse_unknown(plan, where, None if arms else [arm.name for arm in plan.arms])
    given: dict[str, Any] = {}
    for name, field in (("run", "task"), ("analyse", "analysis")):
        if not hasattr(source, name):
            continue
        _takes_one(getattr(source, name), f"{where}: {name}")
        if getattr(plan, field):
            raise UserError(f"{where} has {name}, but its plan sets {field} = {getattr(plan, field)!r}: remove one")
        given[field] = f"{module}:{name}"
    for field, name in (("study", plan.study), ("preset", plan.preset)):
        if not name or set(name) & set("/\\\0") or name.startswith("."):
            raise UserError(f"{where}: {field} = {name!r} cannot be part of a folder's name: choose one like my-study")
    if plan.study in reserved:
        raise UserError(f"{where}: study = {plan.study!r} is a study that comes with retarget: choose another name")
    return plan.model_copy(update=given)


def _takes_one(function: Any, what: str) -> None:
    """Refuse anything that cannot be called with one argument."""
    if not callable(function):
        raise UserError(f"{what} is a {type(function).__name__}, not a function")
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise UserError(f"{what}{inspect.signature(function)} must take one argument") from error


def _resolved(
    module: str,
    plan: Any,
    where: str,
    preset: str,
    config: dict[str, Any],
    seeds: list[int] | None,
    arms: list[str] | None,
) -> StudyPlan:
    if isinstance(plan, StudyPlan):
        return _changed(plan, where, preset, config, seeds, arms)
    if not callable(plan):
        raise UserError(f"{where}: plan is a {type(plan).__name__}, but must be a StudyPlan or a function")
    try:
        inspect.signature(plan).bind(preset, config, seeds, arms)
    except TypeError as error:
        signature = inspect.signature(plan)
        raise UserError(f"{where}: plan{signature} must take (preset, config, seeds, arms)") from error
    made = called(f"{module}:plan", "the study", preset, config, seeds, arms)
    if not isinstance(made, StudyPlan):
        raise UserError(f"{where}: plan(...) returned {type(made).__name__}, not a StudyPlan")
    _refuse_ignored(made, where, preset, seeds, arms)
    return made


def _refuse_ignored(made: StudyPlan, where: str, preset: str, seeds: list[int] | None, arms: list[str] | None) -> None:
    """Refuse a plan that a function made of other seeds, arms or another preset than it was given."""
    names = [arm.name for arm in made.arms]
    for argument, asked, returned, ignored, remedy in (
        ("preset", preset, made.preset, preset not in ("demo", made.preset), "preset=preset"),
        ("seeds", seeds, list(made.seeds), seeds and set(seeds) != set(made.seeds), "seeds=tuple(seeds or (0, 1, 2))"),
        ("arms", arms, names, arms and set(arms) != set(names), "arms=choose_arms(ARMS, arms)"),
    ):
        if ignored:
            raise UserError(
                f"{where}: plan(...) ignores its argument {argument}: it was given {_shown(asked)}, and its plan has "
                f"{_shown(returned)}. Hand it on to StudyPlan, as {remedy}, or leave --{argument} out"
            )


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _refuse_unlike(had: dict[str, Any], given: dict[str, Any], where: str, table: str = "") -> None:
    """Refuse settings that a plan without a model does not have, or that are no number or no truth value as its own."""
    if unknown := sorted(given.keys() - had.keys()):
        known = ", ".join(f"{table}{name}" for name in had) or "none"
        raise UserError(f"{where} has no setting {table}{unknown[0]}; its settings: {known}")
    for name, value in given.items():
        before = had[name]
        if isinstance(before, dict) and isinstance(value, dict):
            _refuse_unlike(before, value, where, f"{table}{name}.")
        elif isinstance(before, dict) and before:
            raise UserError(
                f"{table}{name} = {value!r}, but the plan has a table with {', '.join(before)}: set one of these, as "
                f"{table}{name}.{next(iter(before))}=VALUE"
            )
        elif isinstance(before, bool | int | float):
            like = isinstance(value, bool) if isinstance(before, bool) else type(value) in (int, float)
            if not like:
                what = "true or false" if isinstance(before, bool) else "a number, such as 0.1"
                raise UserError(f"{table}{name} = {value!r}, but the plan has {before!r}: write {what}")


def _changed(
    plan: StudyPlan, where: str, preset: str, config: dict[str, Any], seeds: list[int] | None, arms: list[str] | None
) -> StudyPlan:
    """A plan that is not a function, changed by the arguments of the command line."""
    if preset not in ("demo", plan.preset):
        raise UserError(f"{where} has only the preset {plan.preset}: leave --preset out, or make plan a function")
    refuse_decided(config, plan.arms, plan.conditions)
    settings = merged(plan.settings, config)
    if plan.settings_model:
        settings = resolve_settings(plan.settings_model, settings).model_dump(mode="json")
    else:
        _refuse_unlike(plan.settings, config, where)
    try:
        settings = json_table(settings)
    except ValueError as error:  # TOML has nan and inf
        raise UserError(str(error)) from error
    given: dict[str, Any] = {"settings": settings, "arms": choose_arms(plan.arms, arms)}
    if seeds:
        given["seeds"] = tuple(seeds)
    return plan.model_copy(update=given)
