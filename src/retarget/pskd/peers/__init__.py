"""Other methods that soften or steady a classifier's targets, used as PS-KD is.

Everything that users need is imported from here; ``losses`` has the equations.
"""

from typing import TYPE_CHECKING

from retarget.lazy import lazy

if TYPE_CHECKING:
    from retarget.pskd.peers.base import Needs, Peer
    from retarget.pskd.peers.batches import CSKD, DLB, LastBatch, SameClassPairs
    from retarget.pskd.peers.history import BSD, SelfAdaptiveTraining, TemporalEnsembling
    from retarget.pskd.peers.labels import (
        DualFocalLoss,
        FocalLoss,
        LabelSmoothing,
        MarginLabelSmoothing,
        MaxSup,
        OnlineLabelSmoothing,
        TFKDReg,
    )
    from retarget.pskd.peers.lightning import PeerCallback
    from retarget.pskd.peers.mixing import CutMix, Mixup
    from retarget.pskd.peers.networks import BornAgain, MeanTeacher, TFKDSelf, WeightEMA

__all__ = [
    "BSD",
    "CSKD",
    "DLB",
    "BornAgain",
    "CutMix",
    "DualFocalLoss",
    "FocalLoss",
    "LabelSmoothing",
    "LastBatch",
    "MarginLabelSmoothing",
    "MaxSup",
    "MeanTeacher",
    "Mixup",
    "Needs",
    "OnlineLabelSmoothing",
    "Peer",
    "PeerCallback",
    "SameClassPairs",
    "SelfAdaptiveTraining",
    "TFKDReg",
    "TFKDSelf",
    "TemporalEnsembling",
    "WeightEMA",
]
__getattr__, __dir__ = lazy(
    __name__,
    {
        "Needs": "base",
        "Peer": "base",
        "CSKD": "batches",
        "DLB": "batches",
        "LastBatch": "batches",
        "SameClassPairs": "batches",
        "BSD": "history",
        "SelfAdaptiveTraining": "history",
        "TemporalEnsembling": "history",
        "DualFocalLoss": "labels",
        "FocalLoss": "labels",
        "LabelSmoothing": "labels",
        "MarginLabelSmoothing": "labels",
        "MaxSup": "labels",
        "OnlineLabelSmoothing": "labels",
        "TFKDReg": "labels",
        "CutMix": "mixing",
        "Mixup": "mixing",
        "PeerCallback": "lightning",
        "BornAgain": "networks",
        "MeanTeacher": "networks",
        "TFKDSelf": "networks",
        "WeightEMA": "networks",
    },
)
