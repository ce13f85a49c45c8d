"""Questions that the paper leaves open, each a small study with its own claims. Does not import torch.

The preset ``small`` asks most of them with an over-confident classifier, as in the paper: it overfits a few images.
"""

from typing import Any

from retarget.pskd.studies.images.plan import Question
from retarget.study.config import Arm, Claim, Condition

OVERCONFIDENT: dict[str, Any] = dict(
    dataset="torchvision:FashionMNIST", train_images=2500, validation_images=500, test_images=4000,
    augmentation="none", network="preact_resnet10_w12", epochs=30, precision="32-true",
)  # fmt: skip


def _pskd(name: str, label: str, **settings: Any) -> Arm:
    return Arm(name=name, label=label, settings={"targets": "pskd", **settings})


def _cutmix(name: str, label: str, **settings: Any) -> Arm:
    return Arm(name=name, label=label, settings={"mixing": "cutmix", **settings})


def _claim(name: str, sentence: str, metric: str, treated: str, control: str, **more: Any) -> Claim:
    """A claim with its metric's smallest effect: half a point, or 0.01 nats."""
    return Claim(
        id=name, sentence=sentence, metric=metric, direction="higher" if metric == "top1" else "lower",
        smallest_effect=0.01 if metric.startswith("nll") else 0.5, arms=(treated, control),
        shown={"nll_scaled": "nll", "ece_scaled": "ece", "ece": "ece_scaled"}.get(metric), **more,
    )  # fmt: skip


def _question(**of: Any) -> Question:
    return Question(**{"small": OVERCONFIDENT, "minutes": 0.6, **of})


CROSS_ENTROPY = Arm(name="cross_entropy", label="cross-entropy")
PSKD = _pskd("pskd", "PS-KD")
SMOOTHING = Arm(
    name="label_smoothing", label="label smoothing 0.1", settings={"targets": "label_smoothing", "smoothing": 0.1}
)

VIEWS = tuple(
    Condition(name=name, label=label, settings={"augmentation": name})
    for name, label in (("none", "no augmentation"), ("crop_flip", "crop and flip"), ("trivial", "TrivialAugment"))
)
NOISE = tuple(
    Condition(
        name=f"noise_{share}", label=f"{share} % of the training labels wrong", settings={"label_noise": share / 100}
    )
    for share in (0, 20, 40)
)
LENGTHS = tuple(
    Condition(name=f"epochs_{epochs}", label=f"{epochs} epochs", settings={"epochs": epochs}) for epochs in (2, 8, 30)
)

_ASKED = (
    _question(
        name="topk",
        title="how many classes a row must list",
        arms=(
            CROSS_ENTROPY,
            PSKD,
            *(
                _pskd(f"topk{k}_{residual}", f"PS-KD, top-{k}, {residual}", store=f"topk:{k}:{residual}")
                for k in (5, 10, 20, 100)
                for residual in ("uniform", "renormalise")
            ),
        ),
        claims=(
            _claim("residual", "A row of five classes calibrates better when the rest of its mass is spread over the "
                   "other classes than when it is dropped.", "ece", "topk5_uniform", "topk5_renormalise"),
            _claim("listed", "Ten listed classes calibrate as well as the whole row, within a point.", "ece",
                   "topk10_uniform", "pskd", margin=1.0),
            _claim("listed_scaled", "Ten listed classes calibrate as well as the whole row after a temperature, "
                   "within a point.", "ece_scaled", "topk10_uniform", "pskd", margin=1.0),
            _claim("listed_accuracy", "Ten listed classes are as accurate as the whole row, within half a point.",
                   "top1", "topk10_uniform", "pskd", margin=0.5),
        ),
        small=dict(network="preact_resnet10_w12", epochs=20, augmentation="none", precision="32-true"),
        minutes=2.0,
        ten_classes=False,
    ),
    _question(
        name="alpha",
        title="which alpha_T",
        arms=(CROSS_ENTROPY, *(_pskd(f"alpha_{a}", f"alpha_T {a}", alpha_T=a) for a in (0.2, 0.4, 0.6, 0.8, 1.0))),
        claims=(
            _claim("low", "alpha_T 0.4 gives better confidence estimates than cross-entropy.", "nll_scaled",
                   "alpha_0.4", "cross_entropy"),
            _claim("default", "alpha_T 0.8, the paper's, gives better confidence estimates than cross-entropy.",
                   "nll_scaled", "alpha_0.8", "cross_entropy"),
            _claim("default_or_low", "alpha_T 0.8 gives better confidence estimates than 0.4.", "nll_scaled",
                   "alpha_0.8", "alpha_0.4"),
            _claim("most_or_default", "alpha_T 1.0 gives better confidence estimates than 0.8.", "nll_scaled",
                   "alpha_1.0", "alpha_0.8"),
        ),
    ),
    _question(
        name="past",
        title="a stored row or the previous model",
        arms=(CROSS_ENTROPY, PSKD, _pskd("previous", "PS-KD, previous model", past="previous")),
        conditions=VIEWS,
        claims=tuple(
            _claim(f"previous_{view.name}", "The previous epoch's weights on the present view are a better past than "
                   "the row stored from the last view.", "nll_scaled", "previous", "pskd", condition=view.name)
            for view in VIEWS
        ),
    ),
    _question(
        name="cutmix",
        title="what the past is where images are mixed",
        arms=(
            _cutmix("cutmix", "CutMix"),
            _cutmix("rows", "rows of whole images", targets="pskd"),
            _cutmix("rows_of_mixed", "rows of mixed images too", targets="pskd", mixed_rows="kept"),
            _cutmix("previous", "previous model on the mixed image", targets="pskd", past="previous"),
        ),
        claims=(
            _claim("rows", "PS-KD adds to CutMix with rows of whole images, mixed as the images are.", "nll_scaled",
                   "rows", "cutmix"),
            _claim("kept", "Predictions of mixed images should not be kept as rows.", "nll_scaled", "rows",
                   "rows_of_mixed"),
            _claim("previous", "The previous model on the mixed image is a better past.", "nll_scaled", "previous",
                   "rows"),
        ),
    ),
    _question(
        name="noise",
        title="wrong labels",
        arms=(CROSS_ENTROPY, SMOOTHING, PSKD),
        conditions=NOISE,
        claims=(
            *(
                _claim(f"resists_{one.name}", "PS-KD resists wrong labels: it is more accurate than cross-entropy.",
                       "top1", "pskd", "cross_entropy", condition=one.name)
                for one in NOISE[1:]
            ),
            _claim("against_smoothing", "PS-KD resists wrong labels better than label smoothing.", "top1", "pskd",
                   "label_smoothing", condition=NOISE[-1].name),
        ),
    ),
    _question(
        name="confidence",
        title="when not to use it",
        arms=(CROSS_ENTROPY, PSKD),
        conditions=LENGTHS,
        claims=tuple(
            _claim(f"helps_{one.name}", f"PS-KD gives better confidence estimates after {one.label}.", "nll_scaled",
                   "pskd", "cross_entropy", condition=one.name)
            for one in LENGTHS
        ),
        minutes=0.3,
    ),
)  # fmt: skip

QUESTIONS = {one.name: one for one in _ASKED}
