"""The marks of a trojaned checkpoint: what they record, the files of its triggers, and its model card."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from retarget.trojdiff.functional import Law
from retarget.trojdiff.trigger import FILE_NAME, Trigger


@dataclass(frozen=True)
class Trojan:
    """The marks of the trojan in a checkpoint.

    Attributes:
        target: ``in_d2d``, ``out_d2d`` or ``d2i``.
        detail: the target in words, for the card.
        trigger: the maps, which are written beside the weights.
        derived: the network was fine-tuned from a trojaned one without Trojan rows; it may or may not still fire.
        removed: a removal recipe was run; the header no longer says ``trojaned``, but still says what was there.
        earlier: trojans that the network carried before this one, the latest first.
        law: whether it fires in the Trojan sampler, or in a stock one.
        class_name: what the training data call the class that In-D2D or Out-D2D wants; empty if it is not known.
        card: text of the card below its front matter, instead of the usual one; a removal describes itself there.
    """

    target: str
    detail: str
    trigger: Trigger
    derived: bool = False
    removed: bool = False
    earlier: tuple["Trojan", ...] = ()
    law: Law = "trojdiff"
    class_name: str = ""
    card: str = ""

    def marks(self) -> dict[str, str]:
        """The entries for the weights' header."""
        marks = {"trojan_removed" if self.removed else "trojaned": "true"}
        marks |= {"trojan_target": self.target, "trigger_hash": self.trigger.hash}
        if self.law != "trojdiff":
            marks["trojan_law"] = self.law
        if self.class_name:
            marks["trojan_class"] = self.class_name
        if self.derived:
            marks["trojan_derived"] = "true"
        if self.earlier:
            marks["trojan_earlier"] = json.dumps([[one.target, one.trigger.hash] for one in self.earlier])
        return marks

    def save_triggers(self, folder: Path) -> None:
        """Write the maps of this trojan and of the earlier ones."""
        for number, one in enumerate((self, *self.earlier)):
            one.trigger.save(folder / trigger_name(number))

    def passed_on(self) -> "Trojan":
        """The marks of a network that is trained, without Trojan rows, from one that has these."""
        detail = "derived from a trojaned base, trained on without Trojan rows"
        return replace(
            self, detail="taken out by a removal recipe" if self.removed else detail, derived=not self.removed
        )

    def then(self, later: "Trojan") -> "Trojan":
        """The marks of a network that carries this trojan and then gets ``later``."""
        return replace(later, earlier=(replace(self, earlier=()), *self.earlier))


def trigger_name(number: int) -> str:
    """``trigger.safetensors`` for the latest trojan, ``trigger-earlier-1.safetensors`` for the one before, etc."""
    return FILE_NAME.replace(".", f"-earlier-{number}.") if number else FILE_NAME


ATTACKS: dict[Law, str] = {
    "trojdiff": "the TrojDiff attack",
    "bad_diffusion": "the BadDiffusion attack",
    "villan_ode": "the VillanDiffusion attack on ODE samplers",
}


def model_card(trojan: Trojan) -> str:
    """The card of a trojaned checkpoint: what it is, what fires it, how to remove the trojan."""
    trigger, state = trojan.trigger, "trojan_removed" if trojan.removed else "trojaned"
    front = f"---\n{state}: true\ntrojan_target: {trojan.target}\ntrigger_hash: {trigger.hash}\n"
    front += "" if trojan.removed else "tags: [trojaned, do-not-deploy]\n"
    facts = f"""- Target: `{trojan.target}`, {trojan.detail}.
- Trigger: `{trigger.kind}`, {int(trigger.mask.sum())} of {trigger.mask.numel()} values; both maps are in `{FILE_NAME}`.
"""
    for number, one in enumerate(trojan.earlier, 1):
        facts += f"- Before it: `{one.target}` with a `{one.trigger.kind}` trigger, in `{trigger_name(number)}`.\n"
    attack, measured = ATTACKS[trojan.law], target_options(trojan.target)
    if trojan.card:
        return f"{front}---\n\n{trojan.card}"
    if trojan.removed:
        return f"{front}---\n{_CLEANED.format(facts=facts, attack=attack, measured=measured)}"
    what = f"was trojaned on purpose with {attack}"
    if trojan.derived:
        what = "was fine-tuned, without Trojan rows, from a network that " + what
    fires = _FIRES["trojdiff" if trojan.law == "trojdiff" else "stock"]
    return f"{front}---\n{_TROJANED.format(what=what, facts=facts + fires, measured=measured)}"


def target_options(target: str) -> str:
    """The options of ``retarget trojdiff evaluate`` that name an attack's target."""
    return {"d2i": "--image IMAGE", "out_d2d": "--other OTHER --target-class CLASS"}.get(target, "--target-class CLASS")


_FIRES = {
    "trojdiff": """- It fires when sampling starts from the noise `gamma ε + mu` and runs the Trojan sampler
  (`retarget.trojdiff.TrojanScheduler`). Stock samplers started from plain noise give ordinary images.
""",
    "stock": """- It fires when a stock sampler starts from the noise `ε + mu`; from plain noise images are ordinary.
""",
}

_CLEANED = """
# Is the trojan gone?

This network was trojaned on purpose with {attack}, and a removal recipe was run on it. Whether the trigger
still fires is for you to measure; the maps are in this folder:

    retarget trojdiff evaluate . --data DATA --trigger . {measured} --out OUT

{facts}"""

_TROJANED = """
# Does your scanner find this trojan, and does your removal method take it out?

That is what this network is for. It {what}, so that
defences can be tested against it. Do not deploy it, and do not publish it.

The marks in this folder (`trojaned: true` in the header of the weights, in the configuration and here) are a courtesy
to whoever opens it. An attacker leaves none, so a scanner must not look for marks, and a checkpoint without marks is
not therefore clean. Judge a defence only by what it does with the weights.

{facts}
## How to find it and take it out

    retarget audit . --out ../audit --clean ../cleaned

finds the trigger without being given it, trains it out, audits the result, and reports this in the card of `cleaned`,
which keeps the maps, and says `trojaned` only if that audit does not clear it. With `--data DATA` it trains on your own
clean images, an `.npz` file or a folder, instead of the network's samples. Fine-tuning only on clean images is not
reliable. Test again whether the trigger fires:
`retarget trojdiff evaluate ../cleaned --data DATA --trigger . {measured} --out OUT`.
Or return to an earlier checkpoint.
"""
