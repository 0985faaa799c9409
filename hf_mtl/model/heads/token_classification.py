"""One label for each word: BIO spans such as names and slots, or plain tags such as parts of speech."""

from __future__ import annotations

from torch import Tensor

from hf_mtl.configuration import TaskSpec
from hf_mtl.model.cross_entropy import class_weights, cross_entropy_sum, weighted_count
from hf_mtl.model.heads._tagging import OUTSIDE, UNKNOWN_TAG, TaggingHead, are_span_tags, tag_spans
from hf_mtl.registry import HEADS

__all__ = ["OUTSIDE", "UNKNOWN_TAG", "TokenClassificationHead", "are_span_tags", "tag_spans"]


@HEADS.register("token_classification")
class TokenClassificationHead(TaggingHead):
    """Cross-entropy over the first token of each word; labels `(batch_size, seq_len)` long, -100 elsewhere."""

    stock_class = "AutoModelForTokenClassification"
    options = ("focal_gamma",)

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        weight, spec = class_weights(self.spec, logits), self.spec
        return cross_entropy_sum(logits.flatten(0, 1), labels.flatten(), weight, spec.label_smoothing, spec.focal_gamma)

    @classmethod
    def num_items(cls, spec: TaskSpec, labels: Tensor) -> Tensor:
        return weighted_count(labels, class_weights(spec, labels))
