"""PS-KD: soften a classifier's hard targets with the model's own past predictions (Kim et al., ICCV 2021).

Import from here what ``__all__`` lists; ``functional`` has the equations, ``peers`` other methods with the same calls.
"""

from typing import TYPE_CHECKING

from retarget.lazy import lazy

if TYPE_CHECKING:
    from retarget.pskd.detection import DetectionPSKD
    from retarget.pskd.index import with_index
    from retarget.pskd.lightning import PSKDCallback, WholeCheckpoints
    from retarget.pskd.method import PSKD
    from retarget.pskd.multilabel import MultiLabelPSKD
    from retarget.pskd.past.files import MemoryMapped
    from retarget.pskd.past.previous import PreviousModel
    from retarget.pskd.past.rows import Dense, TopK
    from retarget.pskd.pixels import PixelPSKD
    from retarget.pskd.sequences import SequencePSKD
    from retarget.pskd.soft_labels import soft_targets
    from retarget.pskd.trainer import PSKDMixin, PSKDSeq2SeqTrainer, PSKDTrainer

__all__ = [
    "PSKD",
    "Dense",
    "DetectionPSKD",
    "MemoryMapped",
    "MultiLabelPSKD",
    "PSKDCallback",
    "PSKDMixin",
    "PSKDSeq2SeqTrainer",
    "PSKDTrainer",
    "PixelPSKD",
    "PreviousModel",
    "SequencePSKD",
    "TopK",
    "WholeCheckpoints",
    "soft_targets",
    "with_index",
]
__getattr__, __dir__ = lazy(
    __name__,
    {
        "PSKD": "method",
        "MultiLabelPSKD": "multilabel",
        "PixelPSKD": "pixels",
        "SequencePSKD": "sequences",
        "DetectionPSKD": "detection",
        "with_index": "index",
        "soft_targets": "soft_labels",
        "Dense": "past.rows",
        "TopK": "past.rows",
        "MemoryMapped": "past.files",
        "PreviousModel": "past.previous",
        "PSKDCallback": "lightning",
        "WholeCheckpoints": "lightning",
        "PSKDMixin": "trainer",
        "PSKDTrainer": "trainer",
        "PSKDSeq2SeqTrainer": "trainer",
    },
    {"lightning": ("lightning.pytorch", "vision"), "trainer": ("transformers", "text")},
)
