"""Tokens of a text that are masked, to be found again: an auxiliary task that needs no labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import DataError, SpecError
from hf_mtl.model.cross_entropy import IGNORE_INDEX, cross_entropy_sum, softmax
from hf_mtl.model.heads.base import TaskHead, Words, as_list, padded_labels, refuse
from hf_mtl.model.targets import Target, Wanted
from hf_mtl.registry import HEADS

TOP = 5
"""Tokens that an answer names for each mask."""


@HEADS.register("masked_language_modeling")
class MaskedLanguageModelingHead(TaskHead):
    """Cross-entropy of the tokens that were masked in a text, over the whole vocabulary.

        logits = LayerNorm(act(W h + b)) E^T + c,    loss = -mean log p(token)

    with `h` the states of the masked tokens and `E` the encoder's own input embeddings, which the head borrows and does
    not hold: they are trained, frozen, resized and saved with the encoder. Which tokens are masked is drawn anew in
    each epoch, see `hf_mtl.data.masking`. Labels `(batch_size, masks)` long are the ids of the tokens that stood there,
    -100 where a row has fewer masks than another; logits `(rows, masks, vocab_size)` are computed at masks alone. At
    inference these are the mask tokens that a text holds.

    Source: Devlin et al., BERT, 2019, https://arxiv.org/abs/1810.04805, section 3.1; Liu et al., RoBERTa, 2019,
    https://arxiv.org/abs/1907.11692, for masks that change.

    Args:
        spec: the task.
        hidden_size: size of the features the head reads.
        dropout: not used: there is none before the head unless the spec names one.
        vocab_size: number of tokens.
        embedding_size: size of the input embeddings; `hidden_size` where not given.
        activation: name of the activation, as transformers knows it.
        eps: what LayerNorm adds to the variance.
    """

    pooled = False
    masks_tokens = True
    auxiliary = True
    stored_as: ClassVar[str | list[str]] = ["int32"]
    options = ("mask_probability",)

    def __init__(
        self,
        spec: TaskSpec,
        hidden_size: int,
        *,
        dropout: float,
        vocab_size: int = 0,
        embedding_size: int | None = None,
        activation: str = "gelu",
        eps: float = 1e-12,
    ) -> None:
        super().__init__(spec, hidden_size, dropout=0.0)
        del self.output
        size = embedding_size or hidden_size
        self.dense = nn.Linear(hidden_size, size)
        self.activation = ACT2FN[activation]
        self.norm = nn.LayerNorm(size, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    @classmethod
    def build(cls, spec: TaskSpec, config: PreTrainedConfig, *, dropout: float) -> TaskHead:
        names = ("hidden_act", "hidden_activation", "activation_function", "activation")
        activations = (str(getattr(config, name, None)) for name in names)
        return cls(
            spec,
            int(config.hidden_size),
            dropout=dropout,
            vocab_size=int(config.vocab_size),
            embedding_size=getattr(config, "embedding_size", None),
            activation=next((name for name in activations if name in ACT2FN), "gelu"),
            eps=float(getattr(config, "layer_norm_eps", 1e-12)),
        )

    def resize(self, vocab_size: int) -> None:
        """Follow embeddings that were resized, in place: new tokens begin with a bias of 0."""
        kept = self.bias.detach()[:vocab_size]
        bias = torch.cat([kept, kept.new_zeros(vocab_size - len(kept))])
        self.bias = nn.Parameter(bias, requires_grad=self.bias.requires_grad)

    @classmethod
    def validate_spec(cls, spec: TaskSpec) -> None:
        refuse(spec, "labels", "class_weights", "label_smoothing", "scheme")
        where, share = f"task {spec.name!r}", spec.mask_probability
        if spec.stride is not None:
            raise SpecError(
                f"stride is {spec.stride!r}, but {spec.type} reads no windows", where=where, mend="leave stride out"
            )
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if share is not None and not (number and 0.0 < share < 1.0):
            raise SpecError(
                f"mask_probability is {share!r}", where=where, mend="give a number above 0 and below 1, such as 0.15"
            )

    @classmethod
    def infer_labels(cls, values: Iterable[Any]) -> None:
        return None

    @classmethod
    def encode(cls, spec: TaskSpec, value: Any, words: Words | None, num_tokens: int) -> list[int]:
        ids = as_list(value, "token ids")
        for token in ids:
            if not isinstance(token, int | np.integer) or isinstance(token, bool) or token < 0:
                raise DataError(f"{token!r} is no token id", mend="give the ids of the masked tokens")
        return [int(token) for token in ids]

    @classmethod
    def collate(cls, spec: TaskSpec, values: Sequence[Any], seq_len: int) -> Tensor:
        most = max((len(value) for value in values if value is not None), default=0)
        return padded_labels(values, most)

    @classmethod
    def labelled_rows(cls, labels: Tensor) -> Tensor:
        return (labels != IGNORE_INDEX).any(dim=-1)

    def forward(self, features: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """Compute logits.

        Args:
            features: states of the masked tokens `(rows, masks, hidden_size)`.
            embeddings: the encoder's input embeddings `(vocab_size, embedding_size)`.

        Returns:
            Logits `(rows, masks, vocab_size)`.
        """
        assert embeddings is not None
        states = self.norm(self.activation(self.dense(features)))
        return F.linear(states, embeddings, self.bias)

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy_sum(logits.flatten(0, 1), labels.flatten(), None, 0.0)

    @classmethod
    def num_items(cls, spec: TaskSpec, labels: Tensor) -> Tensor:
        return (labels != IGNORE_INDEX).sum().float()

    # ------------------------------------------------------------------ answers and metrics

    @classmethod
    def decode(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None) -> dict[str, Any]:
        if not len(logits):
            return {"masks": []}
        best = np.argpartition(logits, -min(TOP, logits.shape[-1]), axis=-1)[:, -TOP:]
        order = np.argsort(-np.take_along_axis(logits, best, axis=-1), axis=-1, kind="stable")
        best = np.take_along_axis(best, order, axis=-1)
        scores = np.take_along_axis(softmax(logits), best, axis=-1)
        return {
            "masks": [
                [{"score": score, "token": token} for score, token in zip(*row, strict=True)]
                for row in zip(scores.tolist(), best.tolist(), strict=True)
            ]
        }

    @classmethod
    def spelled(cls, answers: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """Add `token_str`, the text of each token, as the `fill-mask` pipeline of transformers writes it."""
        for one in (token for answer in answers for mask in answer["masks"] for token in mask):
            one["token_str"] = tokenizer.decode([one["token"]])
        return answers

    @classmethod
    def summary(cls, spec: TaskSpec, answer: dict[str, Any]) -> list[tuple[str, float | None]]:
        found = [(str(mask[0].get("token_str", mask[0]["token"])), mask[0]["score"]) for mask in answer["masks"]]
        return found or [("no mask", None)]

    @classmethod
    def prediction(cls, spec: TaskSpec, answer: dict[str, Any]) -> list[int]:
        return [mask[0]["token"] for mask in answer["masks"]]

    @classmethod
    def reference(cls, spec: TaskSpec, value: Any) -> list[int]:
        return cls.encode(spec, value, None, 0)

    @classmethod
    def confidence(cls, spec: TaskSpec, answer: dict[str, Any]) -> float:
        scores = [mask[0]["score"] for mask in answer["masks"]]
        return float(min(1.0, sum(scores) / len(scores))) if scores else 1.0

    @classmethod
    def judgements(cls, spec: TaskSpec, answer: dict[str, Any], value: Any) -> list[tuple[float, bool]]:
        pairs = zip(answer["masks"], cls.reference(spec, value), strict=True)
        return [(mask[0]["score"], mask[0]["token"] == token) for mask, token in pairs]

    @classmethod
    def metric_name(cls, spec: TaskSpec) -> str:
        return "masked_tokens"

    @classmethod
    def target(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None, wanted: Wanted) -> Target:
        """Refuse to explain what stands in place of a mask.

        Raises:
            SpecError: always.
        """
        raise SpecError(f"{spec.type} is not explained", where=f"task {spec.name!r}", mend="name another task")
