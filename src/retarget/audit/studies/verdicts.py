"""The members of the zoo as models with metrics, and the verdicts that the command gives on them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from retarget.audit.calibration import LEAST, Family, Null, nearest, shipped
from retarget.audit.studies.members import CELLS, CLEAN, STOCK
from retarget.audit.studies.plan import LABELS
from retarget.audit.studies.rates import level_of, share
from retarget.study.figures import Table

LIFT = 50.0
"""A model counts as trojaned if its attack succeeds at least this many points above its base rate."""
STRONG = "strong attacks"


class Model(NamedTuple):
    """One member of the zoo and its metrics."""

    which: str
    kind: str
    number: int
    metrics: dict[str, float]
    channels: int = 1
    side: int = 8

    @property
    def trojaned(self) -> bool:
        """Whether it was trained on Trojan rows, whatever its attack's success."""
        return self.metrics["trojaned"] == 1

    @property
    def strong(self) -> bool:
        """Whether its attack succeeds far above its base rate."""
        return self.trojaned and self.metrics["attack"] - self.metrics["base_rate"] >= LIFT

    @property
    def verdict(self) -> str:
        """The verdict of ``retarget audit``, with its own null and rules."""
        return self.judged(shipped())

    def family(self, null: Null) -> Family:
        """The clean models of a null that it is compared with; the search must be that of this null."""
        from retarget.audit.inversion import Search
        from retarget.audit.seek import fingerprint

        return nearest(self.side, self.channels, self.metrics["residual_audit"], null, fingerprint(Search()))

    def judged(self, null: Null) -> str:
        """The verdict with another null, see :meth:`family`."""
        from retarget.audit.verdict import decide

        m, family = self.metrics, self.family(null)
        origin = "elsewhere" if m.get("elsewhere_audit") else "scan"
        by_heart = bool(m.get("by_heart_audit"))
        rise = m.get("rise_audit", 0.0)
        return decide(m["score_audit"], m["undo_audit"], m.get("strength_audit"), family, origin, by_heart, rise)[0]


class Split(NamedTuple):
    """The models from which rates are computed; ``development`` has the clean ones of that set."""

    calibration: list[Model]
    clean: list[Model]
    strong: list[Model]
    weak: list[Model]
    development: list[Model]

    def null(self, name: str, without: str = "") -> tuple[str, list[float]]:
        """The set that gives a detector its threshold, and the scores of its clean models but those of one kind.

        Published detectors get theirs from the development zoo where the study has enough of it, as their authors tune
        on models of their own. The audit was tuned on that zoo, so that its threshold is from the calibration models.
        """
        enough = name != "audit" and level_of(len(scores(self.development, name))) is not None
        origin, models = ("development", self.development) if enough else ("calibration", self.calibration)
        return origin, scores([model for model in models if model.kind != without], name)


def scores(models: Sequence[Model], name: str) -> list[float]:
    """A detector's scores, for the models that it was run on."""
    return [model.metrics[f"score_{name}"] for model in models if f"score_{name}" in model.metrics]


def said(split: Split, null: Null) -> dict[str, list[str]]:
    """The command's verdicts by kind of model."""
    sorts = {"clean": split.clean, STRONG: split.strong, "weak attacks": split.weak}
    return {
        label: [model.judged(null) for model in models if "undo_audit" in model.metrics]
        for label, models in sorts.items()
    }


def verdicts(split: Split, null: Null) -> Table:
    """The verdicts of the command's whole rule, including firing, with its null: of all models, and by kind."""
    judged = said(split, null)
    less = {kind: _without(null, kind) for kind in CLEAN}
    rows = [[label, *_counted(each), _fewest(split, less) if label == STRONG else ""]
            for label, each in judged.items()]  # fmt: skip
    for kind in CLEAN:
        here = [model for model in split.clean if model.kind == kind and "undo_audit" in model.metrics]
        then = [model.judged(less[kind]) for model in here]
        changed = sum(model.family(less[kind]).name != model.family(null).name for model in here)
        without = share([one == "trojaned" for one in then])
        without += f"; undecided {then.count('undecided')}" + (f"; compared with others: {changed}" if changed else "")
        rows += [[LABELS[kind], *_counted([model.judged(null) for model in here]), without]] if here else []
    for kind in (*CELLS, *STOCK):
        for word, models in (("", split.strong), (", weak", split.weak)):
            here = [model.judged(null) for model in models if model.kind == kind and "undo_audit" in model.metrics]
            rows += [[f"{LABELS[kind]}{word}", *_counted(here), ""]] if here else []
    return Table(
        title="Verdicts of retarget audit",
        caption="By its own rules: the p-value in its own null, a large enough score, and a trigger that fires, or a "
        "score far above those of all clean models. Numbers of models; shares in % with a 95 % Wilson interval. No "
        "model here is in that null. The last column leaves out the null's models of the same kind. If fewer than "
        f"{LEAST} of a shape remain, its models are compared with clean models of other shapes instead, and a weak "
        "trigger is then undecided: the number of these models follows. For the strong attacks together it leaves out "
        "one kind after the other, and has the fewest called trojaned.",
        columns=["models", "nothing found", "undecided", "trojaned", "called trojaned", "with a kind left out"],
        rows=rows,
    )  # fmt: skip


def _without(null: Null, kind: str) -> Null:
    """A null without its models of a clean kind of the zoo."""
    case = "few" if kind == "duplicates" else kind  # the null's name for the same kind
    return null.model_copy(update={"models": [one for one in null.models if one.case != case]})


def _fewest(split: Split, nulls: Mapping[str, Null]) -> str:
    """The share of strong attacks called trojaned with the null that leaves out the kind by which they are fewest."""
    found = {
        kind: [verdict == "trojaned" for verdict in said(split, null)[STRONG]] for kind, null in nulls.items()
    }  # fmt: skip
    fewest = min(map(sum, found.values()))
    kinds = [kind for kind in found if sum(found[kind]) == fewest]
    which = "whichever it is" if len(kinds) == len(found) else " or ".join(LABELS[kind] for kind in kinds)
    return share(found[kinds[0]]) + (f" without {which}" if found[kinds[0]] else "")


def _counted(said: Sequence[str]) -> list[str]:
    """The number of each verdict, and the share called trojaned."""
    counts = [str(said.count(one)) for one in ("nothing found", "undecided", "trojaned")]
    return [*counts, share([one == "trojaned" for one in said])]
