"""One label out of a set for each text or text pair."""

from __future__ import annotations

from hf_mtl.model.heads._one_label import OneLabelHead
from hf_mtl.registry import HEADS


@HEADS.register("sequence_classification")
class SequenceClassificationHead(OneLabelHead):
    """Cross-entropy over the labels; labels `(batch_size,)` long, -100 where missing."""

    stock_class = "AutoModelForSequenceClassification"
    problem_type = "single_label_classification"
    options = ("focal_gamma",)
