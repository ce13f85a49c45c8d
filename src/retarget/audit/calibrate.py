"""Make the null: train clean models, search each of them like any checkpoint, and record the final scores.

``python -m retarget.audit.calibrate --out null.json --models DIR`` trains the models of ``nulls.plan``, and resumes
after an interruption. ``--grey28 N`` and ``--rgb32 N`` add models of these shapes; ``--repeated N`` and ``--placeholder
N`` models of all shapes that saw one picture in half of the rows, or a bold figure in a sixth of them; ``--more DIR``
clean pipelines from elsewhere. ``--extend NULL`` takes over the models of a null that the same search made, and adds
the rest. ``--upgrade NULL`` takes over those of a null that the search without the branch of symmetric maps made: only
this branch is run on these models, which are trained again if need be, and the whole search where it finds what counts.
"""

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from retarget.audit.calibration import Null, NullModel
from retarget.audit.inversion import Search
from retarget.audit.nulls import Case, Clean, common, plan, repeated, train_clean
from retarget.audit.seek import BEFORE, SYMMETRIC, fingerprint, own_samples, seek, seek_symmetric
from retarget.audit.subject import Subject
from retarget.errors import UserError
from retarget.files import locked, make_directory, read_json, write_json
from retarget.helptext import read_arguments
from retarget.trojdiff.checkpoint import save_pipeline


@dataclass
class Arguments:
    """Train clean models, search each, and write the null of the audit."""

    models: Path
    """Folder for the models and their scores."""
    out: Path | None = None
    """File for the null; without it, models are only trained and searched."""
    count: int = 40
    """Number of models to train."""
    grey28: int = 0
    """Number of grey 28×28 models to train in addition."""
    rgb32: int = 0
    """Number of RGB 32×32 models to train in addition."""
    repeated: int = 0
    """Number of models to train in addition, of all shapes in turn, for which half of the images are one picture."""
    placeholder: int = 0
    """Number of models to train in addition, of all shapes in turn, for which a sixth of the images are a figure."""
    grey_images: tuple[str, ...] = ()
    """Image sets for the former, in turn with generated figures; named as for ``retarget trojdiff pretrain``."""
    rgb_images: tuple[str, ...] = ()
    """Image sets for the latter."""
    skip: tuple[int, ...] = ()
    """Numbers of models of the plan to leave out."""
    part: tuple[int, int] = (0, 1)
    """K N: do only every N-th model, from the K-th on. Three processes share the work as 0 3, 1 3 and 2 3."""
    more: tuple[Path, ...] = ()
    """Clean pipelines that were trained elsewhere, to add to the null."""
    cases: tuple[Case | Literal["elsewhere"], ...] = ()
    """The case of each of these, such as plain, logo or few, in their order; without it, elsewhere."""
    extend: Path | None = None
    """A null made by the same search. Its models come first; those of this command that it has are not made again."""
    upgrade: Path | None = None
    """A null that the search without the branch of symmetric maps made; models that it does not have are left out."""
    train_only: bool = False
    """Train the models, but do not search them."""


def main(words: list[str]) -> None:
    """Run the command."""
    given = read_arguments(Arguments, words, "python -m retarget.audit.calibrate")
    torch.set_num_threads(1)
    make_directory(given.models)
    if given.extend and given.upgrade:
        raise UserError("give --extend or --upgrade, not both: upgrade the null first, then extend the result")
    if given.cases and len(given.cases) != len(given.more):
        raise UserError(f"give one case for each pipeline of --more: {len(given.cases)} for {len(given.more)}")
    today = fingerprint(Search())
    had = read_null(given.extend, today) if given.extend else Null(search=today, command="", models=[])
    known = {one.name for one in had.models}
    old = read_null(given.upgrade, BEFORE) if given.upgrade else None
    wanted = {one.name: one for one in old.models} if old else None
    first, step = given.part
    rows = []
    made = [(f"{number:03d}", one) for number, one in enumerate(plan(given.count)) if number not in given.skip]
    grey, rgb = common(given.grey28, 1, given.grey_images), common(given.rgb32, 3, given.rgb_images)
    made += [(f"grey28-{number:03d}", one) for number, one in enumerate(grey)]
    made += [(f"rgb32-{number:03d}", one) for number, one in enumerate(rgb)]
    hard: dict[Case, int] = {"repeated": given.repeated, "placeholder": given.placeholder}
    for case, count in hard.items():
        made += [(f"{case}-{number:03d}", one) for number, one in enumerate(repeated(count, case))]
    made = [one for one in made if one[0] not in known and (wanted is None or one[0] in wanted)]
    for number, (name, one) in enumerate(made):
        folder = given.models / name
        made_or_searched = (folder / "model_index.json").is_file() or score_file(folder.name, given.models).is_file()
        if number % step == first and not made_or_searched:
            save_pipeline(folder, *train_clean(one))
            print(f"trained {folder} {one.data} {one.case} {one.family} {one.schedule}", flush=True)
        rows.append((folder, one))
    rows += [(folder, None) for folder in given.more if name_of(folder) not in known]
    cases = {name_of(folder): case for folder, case in zip(given.more, given.cases, strict=False)}
    if given.train_only:
        return
    found = [
        scored(folder, one, given.models, wanted) for number, (folder, one) in enumerate(rows) if number % step == first
    ]
    found = [one.model_copy(update=dict(case=cases.get(one.name, one.case))) for one in found]
    if given.out is not None:
        if wanted is not None and (missing := sorted(set(wanted) - {one.name for one in found})):
            raise UserError(f"{given.upgrade} has models that this command does not make: {', '.join(missing)}")
        before = old.command if old else had.command
        commands = [before, shlex.join(["python", "-m", "retarget.audit.calibrate", *words])]
        null = Null(search=had.search, command="\n".join(filter(None, commands)), models=[*had.models, *found])
        write_json(given.out, null.model_dump(mode="json"))


def read_null(path: Path, search: str) -> Null:
    """The null to extend or to upgrade; refused if another search than that with the given fingerprint made it."""
    null = Null.model_validate(read_json(path))
    if null.search != search:
        raise UserError(f"{path} was made by another search ({null.search}): its scores do not belong with today's")
    return null


def name_of(folder: Path) -> str:
    """The name of a pipeline that was trained elsewhere: its folder's and the one above."""
    return f"{folder.resolve().parent.name}-{folder.name}"


def score_file(name: str, keep: Path) -> Path:
    """Where a model's entry in the null is kept; with it, the model itself is no longer needed."""
    return keep / f"{name}-{fingerprint(Search())}.json"


def scored(
    folder: Path, one: Clean | None, keep: Path, before: Mapping[str, NullModel] | None = None
) -> NullModel:  # fmt: skip
    """A clean model's entry in the null; read from its file if the same search has been run on it.

    Args:
        folder: the model.
        one: how it was trained; None if that is not known.
        keep: folder of the file.
        before: entries by a search without the branch of symmetric maps, to which that branch is added.
    """
    name = folder.name if one else name_of(folder)
    path = score_file(name, keep)
    if path.is_file():
        return NullModel.model_validate(read_json(path))
    with locked(path.with_suffix(".lock"), wait=True, what=str(path)):
        subject = Subject.load(folder)
        row = with_symmetric(subject, before[name]) if before else searched(subject, name, one)
        write_json(path, row.model_dump(mode="json"))
    print(f"searched {folder} {json.dumps(row.statistics)}", flush=True)
    return row


def searched(subject: Subject, name: str, one: Clean | None) -> NullModel:
    """The entry of a model by the whole search."""
    found = seek(subject, Search(), seed=1)
    return NullModel(
        name=name, score=found.score, side=subject.side, channels=subject.channels,
        case=one.case if one else "elsewhere", schedule=one.schedule if one else "elsewhere",
        residual=found.statistics["residual"],
        spread=found.statistics["spread"], statistics=found.statistics,
    )  # fmt: skip


def with_symmetric(subject: Subject, before: NullModel) -> NullModel:
    """An entry of the search without the branch of symmetric maps, with what this branch finds.

    If it finds something that counts, the whole search is run, since only that ranks all branches.
    """
    shown = own_samples(subject, seed=1).to(subject.device)
    score = seek_symmetric(subject, Search(), 1, shown).notes["score"]
    if score >= SYMMETRIC:
        found = seek(subject, Search(), seed=1)
        return before.model_copy(update=dict(score=found.score, statistics=found.statistics))
    return before.model_copy(update=dict(statistics={**before.statistics, "score_symmetric": score}))


if __name__ == "__main__":
    main(sys.argv[1:])
