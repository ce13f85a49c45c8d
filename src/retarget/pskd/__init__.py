"""PS-KD: soften a classifier's hard targets with the model's own past predictions (Kim et al., ICCV 2021)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from retarget.extras import require

if TYPE_CHECKING:
    from retarget.pskd.detection import DetectionPSKD
    from retarget.pskd.index import with_index
    from retarget.pskd.lightning import PSKDCallback
    from retarget.pskd.method import PSKD
    from retarget.pskd.multilabel import MultiLabelPSKD
    from retarget.pskd.past.files import MemoryMapped
    from retarget.pskd.past.previous import PreviousModel
    from retarget.pskd.past.rows import Dense, TopK
    from retarget.pskd.pixels import PixelPSKD
    from retarget.pskd.sequences import SequencePSKD
    from retarget.pskd.trainer import PSKDSeq2SeqTrainer, PSKDTrainer

_HOME = {
    "PSKD": "method",
    "MultiLabelPSKD": "multilabel",
    "PixelPSKD": "pixels",
    "SequencePSKD": "sequences",
    "DetectionPSKD": "detection",
    "with_index": "index",
    "Dense": "past.rows",
    "TopK": "past.rows",
    "MemoryMapped": "past.files",
    "PreviousModel": "past.previous",
    "PSKDCallback": "lightning",
    "PSKDTrainer": "trainer",
    "PSKDSeq2SeqTrainer": "trainer",
}
_EXTRA = {"lightning": ("lightning.pytorch", "vision"), "trainer": ("transformers", "text")}
__all__ = [
    "PSKD",
    "Dense",
    "DetectionPSKD",
    "MemoryMapped",
    "MultiLabelPSKD",
    "PSKDCallback",
    "PSKDSeq2SeqTrainer",
    "PSKDTrainer",
    "PixelPSKD",
    "PreviousModel",
    "SequencePSKD",
    "TopK",
    "with_index",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        if _HOME[name] in _EXTRA:
            require(*_EXTRA[_HOME[name]])
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
