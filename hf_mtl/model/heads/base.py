"""`TaskHead`: everything that differs between task types lives in one subclass of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import DataError, SpecError
from hf_mtl.model.choices import Choices
from hf_mtl.model.cross_entropy import IGNORE_INDEX, class_weights, softmax
from hf_mtl.model.labels import wanted_labels
from hf_mtl.model.targets import Target, Wanted, contrast, contrast_name

RARE_OPTIONS = ("focal_gamma", "thresholds", "tune_thresholds", "mask_probability")
"""Options of a spec that a type has only if it lists them in `TaskHead.options`."""


@dataclass(frozen=True)
class Words:
    """The words of one text and where the encoder sees them.

    Args:
        text: the text the character offsets point into.
        spans: character offsets `[start, end)` per word, shape `(num_words, 2)`.
        first_tokens: position of each word's first token, -1 where truncation cut the word off, shape `(num_words,)`.
        given: whether the user gave the words as tokens, rather than a text that was split.
        choices: the choices of the row; `None` where it has none.
    """

    text: str
    spans: np.ndarray
    first_tokens: np.ndarray
    given: bool = False
    choices: Choices | None = None


class TaskHead(nn.Module, ABC):
    """A head: label encoding, logits, loss, answers and metrics of one task type.

    The class methods need no weights: the data side uses them before a model exists.

    Args:
        spec: the task; its labels are known.
        hidden_size: size of the features the head reads.
        dropout: dropout of the features, used where the spec names none.

    Raises:
        SpecError: the spec cannot work for this type.
    """

    pooled: ClassVar[bool] = True
    """Whether the head reads the pooled output `(rows, hidden_size)`; if not, the hidden states of every token."""

    stored_as: ClassVar[str | list[str]]
    """Arrow type of an encoded label, or a list of that one type where a label is a list."""

    stock_class: ClassVar[str | None] = None
    """The Auto class of transformers whose models give such logits; `None` where there is none."""

    no_stock_class: ClassVar[str] = ""
    """Why there is none, where people may expect one."""

    problem_type: ClassVar[str | None] = None
    """What the stock class calls the problem, where it knows several."""

    points_into_text: ClassVar[bool] = False
    """Whether labels are parts of the row, whose words must then be known in training where no tokens are given."""

    reads_choices: ClassVar[bool] = False
    """Whether labels are choices that each row brings with it; see `Words.choices`."""

    explained_by: ClassVar[str] = "attn_lrp"
    """The attribution method that `auto` stands for."""

    measure: ClassVar[str] = "probability"
    """What `probabilities` holds: a probability, or the `value` that is predicted."""

    exclusive: ClassVar[bool] = True
    """Whether one label shuts out the others; if not, each label (or number) stands for itself."""

    options: ClassVar[tuple[str, ...]] = ()
    """Options of the spec that this type has, of those that few types have (`RARE_OPTIONS`)."""

    by_characters: ClassVar[bool] = False
    """Whether labels count the characters of the text, so that nobody may change it."""

    masks_tokens: ClassVar[bool] = False
    """Whether its labels are tokens of its own rows, of which some are masked; then `forward` takes embeddings, too."""

    auxiliary: ClassVar[bool] = False
    """Whether the task is there to help others, so that its score is no part of the average over tasks."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A head that answers in its own way answers many rows so, too, whatever the head it is derived from does.
        if "decode" in cls.__dict__ and "decode_rows" not in cls.__dict__:
            cls.decode_rows = classmethod(TaskHead.decode_rows.__func__)  # type: ignore[method-assign]

    def __init__(self, spec: TaskSpec, hidden_size: int, *, dropout: float) -> None:
        super().__init__()
        self.check_options(spec)
        self.validate_spec(spec)
        if spec.class_weights == "balanced":
            raise SpecError("class_weights is 'balanced'", where=f"task {spec.name!r}", mend="train it with a recipe")
        self.spec = spec
        self.dropout = dropout if spec.dropout is None else spec.dropout
        self.output = nn.Linear(hidden_size, spec.num_labels)

    @classmethod
    def build(cls, spec: TaskSpec, config: PreTrainedConfig, *, dropout: float) -> TaskHead:
        """Make the head for an encoder with this configuration; arguments and errors as above."""
        return cls(spec, int(config.hidden_size), dropout=dropout)

    # ------------------------------------------------------------------ specs and labels

    @classmethod
    def validate_spec(cls, spec: TaskSpec) -> None:
        """Check what the type asks of a complete spec.

        Raises:
            SpecError: labels are missing, or an option does not belong to this type.
        """

    @classmethod
    def check_options(cls, spec: TaskSpec) -> None:
        """Check that the spec sets none of the options that this type, like most, does not have.

        Raises:
            SpecError: it does.
        """
        refuse(spec, *(key for key in RARE_OPTIONS if key not in cls.options))

    @classmethod
    @abstractmethod
    def infer_labels(cls, values: Iterable[Any]) -> tuple[str, ...] | None:
        """Read the label set from label values of training data (`None` values are unlabelled rows)."""

    @classmethod
    @abstractmethod
    def encode(cls, spec: TaskSpec, value: Any, words: Words | None, num_tokens: int) -> Any:
        """Turn one row's label into numbers.

        Args:
            spec: the task with its labels.
            value: the label as the data has it, never `None`.
            words: the row's words; `None` where the row was given as text.
            num_tokens: number of tokens of the row, special tokens included.

        Returns:
            An int, a float or a list of them, for `collate`.

        Raises:
            DataError: the value is not in the label set, or not of the kind this type needs.
        """

    @classmethod
    @abstractmethod
    def collate(cls, spec: TaskSpec, values: Sequence[Any], seq_len: int) -> Tensor:
        """Make the label tensor of a batch.

        Args:
            spec: the task with its labels.
            values: one encoded label per row, `None` where the row has none.
            seq_len: length the batch is padded to, in tokens.

        Returns:
            Labels over the whole batch, the ignore value (-100 or NaN) where a row has none.
        """

    @classmethod
    @abstractmethod
    def labelled_rows(cls, labels: Tensor) -> Tensor:
        """Return a bool per row, shape `(batch_size,)`: whether the row has any label."""

    @classmethod
    def describe(cls, spec: TaskSpec, value: Any) -> list[str]:
        """Name the labels one row's label value holds, for label distributions; empty for numbers.

        Raises:
            DataError: the value is not a label of this type.
        """
        return []

    # ------------------------------------------------------------------ logits and loss

    @classmethod
    def num_logits(cls, spec: TaskSpec) -> int:
        """Return how many logits a row, or a token of it, has: here one per label."""
        return spec.num_labels

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits.

        Args:
            features: `(rows, hidden_size)`, or `(rows, seq_len, hidden_size)` for token-level heads, after dropout.

        Returns:
            Logits `(rows, num_logits)`, or `(rows, seq_len, num_logits)`.
        """
        return self.output(features)

    @abstractmethod
    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the losses of all labelled items, a scalar in float32."""

    @classmethod
    @abstractmethod
    def num_items(cls, spec: TaskSpec, labels: Tensor) -> Tensor:
        """Return what `loss_sum` is divided by: labelled items, or the sum of their class weights; a float32 scalar."""

    def loss(self, logits: Tensor, labels: Tensor, items: float | None = None) -> Tensor:
        """Return the mean loss over the labelled items; 0 where there are none, or where all of them weigh nothing.

        Args:
            logits: as `forward` returns them.
            labels: the labels of these rows.
            items: what `num_items` finds in the labels; counted where not given.
        """
        return self._mean(self.loss_sum(logits, labels), labels, items)

    def divergence_sum(self, logits: Tensor, others: Tensor, labels: Tensor) -> Tensor:
        """Return how far two answers to the same rows lie apart, summed over the labelled items; a float32 scalar.

        Here one label of a set: `KL(p || q) + KL(q || p)` of the two distributions over the labels, times the weight of
        the item's class where there are any. It is 0 where both are equal, and grows as they part.

        Args:
            logits: as `forward` returns them.
            others: the same of another pass, in the same shape.
            labels: the labels of these rows, which say what counts as an item.
        """
        p, q = logits.float().log_softmax(dim=-1), others.float().log_softmax(dim=-1)
        apart = ((p.exp() - q.exp()) * (p - q)).sum(dim=-1)
        weight = class_weights(self.spec, logits)
        if weight is not None:
            apart = apart * weight[labels.clamp(min=0)]
        return torch.where(labels != IGNORE_INDEX, apart, 0.0).sum()

    def divergence(self, logits: Tensor, others: Tensor, labels: Tensor, items: float | None = None) -> Tensor:
        """Return the mean of `divergence_sum` over what `loss` is a mean over, so that both can be added."""
        return self._mean(self.divergence_sum(logits, others, labels), labels, items)

    def _mean(self, total: Tensor, labels: Tensor, items: float | None) -> Tensor:
        # Items of weight 0 still have a smoothing loss, which must not be divided by almost nothing.
        if items is not None:
            return total / items if items else total * 0.0
        count = self.num_items(self.spec, labels)
        return total * (count > 0) / count.clamp(min=torch.finfo(torch.float32).tiny)

    # ------------------------------------------------------------------ answers and metrics

    @classmethod
    @abstractmethod
    def decode(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None) -> dict[str, Any]:
        """Turn one row's logits (float32, padding cut off) into the answer a user reads: plain JSON values."""

    @classmethod
    def decode_rows(
        cls, spec: TaskSpec, logits: Sequence[np.ndarray], words: Sequence[Words | None]
    ) -> list[dict[str, Any]]:
        """Turn the logits of many rows into the answers that `decode` gives, in one go where that is faster."""
        return [cls.decode(spec, *row) for row in zip(logits, words, strict=True)]

    @classmethod
    def spelled(cls, answers: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """Add what the tokenizer alone knows to answers of `decode`: here nothing."""
        return answers

    @classmethod
    @abstractmethod
    def summary(cls, spec: TaskSpec, answer: dict[str, Any]) -> list[tuple[str, float | None]]:
        """Return an answer as lines for a table: what was answered, and how sure; at least one line."""

    @classmethod
    @abstractmethod
    def prediction(cls, spec: TaskSpec, answer: dict[str, Any]) -> Any:
        """Return the part of an answer that metrics compare with `reference`."""

    @classmethod
    @abstractmethod
    def reference(cls, spec: TaskSpec, value: Any) -> Any:
        """Return a row's gold label in the form that metrics compare with `prediction`."""

    @classmethod
    def as_label(cls, spec: TaskSpec, answer: dict[str, Any]) -> Any:
        """Return an answer as the label that data would hold, for `encode` to read; of tags those of given words."""
        return cls.prediction(spec, answer)

    @classmethod
    def confidence(cls, spec: TaskSpec, answer: dict[str, Any]) -> float:
        """Return how sure the answer is, in [0, 1]; used to list the most confident mistakes first."""
        return 1.0

    @classmethod
    def judgements(cls, spec: TaskSpec, answer: dict[str, Any], value: Any) -> list[tuple[float, bool]]:
        """Return how sure each part of an answer is, in [0, 1], and whether it is right; nothing for numbers.

        Args:
            spec: the task.
            answer: what `decode` returned.
            value: the row's label as the data has it, never `None`.
        """
        return [(cls.confidence(spec, answer), cls.prediction(spec, answer) == cls.reference(spec, value))]

    @classmethod
    @abstractmethod
    def metric_name(cls, spec: TaskSpec) -> str:
        """Return the name of this task's metric in `hf_mtl.evaluation.metrics`."""

    # ------------------------------------------------------------------ what is explained: here, one label of a set

    @classmethod
    def target(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None, wanted: Wanted) -> Target:
        """Choose the function of the logits that an explanation is about.

        Args:
            spec: the task.
            logits: one row's logits, padding cut off, as `decode` takes them.
            words: the row's words, for token-level heads.
            wanted: what the user asks for.

        Raises:
            SpecError: there is no such label or word.
        """
        label, over = wanted_labels(spec, logits, wanted.without_span(spec.name))
        names = spec.labels or ()
        weights = contrast(spec.num_labels, label, over)[None]
        return Target(contrast_name(names[label], None if over is None else names[over]), (label,), weights)

    @classmethod
    def probabilities(cls, spec: TaskSpec, logits: np.ndarray) -> np.ndarray:
        """Return the probability of every label, or the value that is predicted, `(..., num_labels)`."""
        return softmax(logits)

    @classmethod
    def choice_probabilities(cls, spec: TaskSpec, logits: np.ndarray, words: Words | None) -> np.ndarray:
        """Return `probabilities` of one row as they stand beside its answer, which may look at all words together."""
        return cls.probabilities(spec, logits)

    @classmethod
    def holds(cls, spec: TaskSpec, target: Target, logits: np.ndarray) -> np.ndarray:
        """Tell whether logits still answer the target's labels.

        Args:
            spec: the task.
            target: the target.
            logits: `(rows, positions, num_labels)` at the target's positions.

        Returns:
            A bool per row; always true for tasks whose answers are no labels.
        """
        return (logits.argmax(axis=-1) == np.array(target.labels)).all(axis=-1)


def as_list(value: Any, what: str) -> list[Any]:
    """Return a list given as list, tuple or array.

    Raises:
        DataError: the value is of another kind.
    """
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return list(value)
    raise DataError(f"{value!r} is not a list of {what}", mend=f"give a list of {what}")


def padded_labels(values: Sequence[Sequence[int] | None], length: int) -> Tensor:
    """Return the labels of rows that have several each, `(rows, length)` long, filled up with -100.

    Example:
        >>> padded_labels([[1, 0], None], 3).tolist()
        [[1, 0, -100], [-100, -100, -100]]
    """
    labels = np.full((len(values), length), IGNORE_INDEX, dtype=np.int64)
    for row, value in enumerate(values):
        if value is not None:
            labels[row, : len(value)] = value
    return torch.from_numpy(labels)


def require_labels(spec: TaskSpec, *, at_least: int) -> None:
    """Check that a spec has its labels.

    Raises:
        SpecError: there are fewer labels than the type needs.
    """
    count = len(spec.labels or ())
    if count < at_least:
        found = f"there is {count or 'no'} label" if count < 2 else f"there are {count} labels"
        raise SpecError(
            f"{found}, {spec.type} needs at least {at_least}",
            where=f"task {spec.name!r}",
            mend="give data with more labels, or name them in labels",
        )


def refuse(spec: TaskSpec, *keys: str) -> None:
    """Check that options which mean nothing for this type are at their defaults.

    Raises:
        SpecError: one of them is set.
    """
    for key in keys:
        value = getattr(spec, key)
        if value:
            raise SpecError(
                f"{key} is {value!r}, but {spec.type} has no {key}",
                where=f"task {spec.name!r}",
                mend=f"leave {key} out",
            )
