"""The model that is explained, as attribution methods see it: one forward pass, or many with words taken away."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.encoding import Inputs, read_inputs
from hf_mtl.data.token_governors import GOVERNORS, keep_tokens
from hf_mtl.errors import SpecError, one_of
from hf_mtl.evaluation.prediction import (
    collator_for,
    evaluation_mode,
    length_batches,
    predict_batches,
    reads_choices,
    reads_heads,
)
from hf_mtl.explain.text import ExplainedText, read_text
from hf_mtl.model.heads.base import TaskHead
from hf_mtl.model.modeling import MultiTaskModel, MultiTaskOutput
from hf_mtl.model.targets import Target, Wanted
from hf_mtl.registry import HEADS

REMOVALS = ("delete", "mask")
"""How units are taken away: their tokens are left out, or each is replaced by the mask token."""


@dataclass(frozen=True, eq=False)
class Forward:
    """One forward pass over one text.

    Args:
        output: the model's output; with its graph where gradients were asked for.
        embeddings: the token embeddings, `(1, num_tokens or more, embedding_size)`, a leaf of that graph.
    """

    output: MultiTaskOutput
    embeddings: Tensor | None = None

    def logits(self, task: str) -> Tensor:
        """Return the logits of a task, `(1, num_labels)` or `(1, num_tokens, num_labels)`."""
        return (self.output.logits or {})[task]


@dataclass(frozen=True, eq=False)
class Measured:
    """What a target came to in several variants of a text.

    Args:
        scores: the target's score, `(variants,)` float64.
        probabilities: the mean probability of its labels, or the value predicted, `(variants,)`.
        holds: whether the answer still was the target's, bool `(variants,)`.
        logits: at the target's positions, `(variants, positions, num_labels)`.
    """

    scores: np.ndarray
    probabilities: np.ndarray
    holds: np.ndarray
    logits: np.ndarray


class Subject:
    """A model with its tokenizer.

    Args:
        model: the model, on its device.
        tokenizer: its tokenizer.
        batch_size: variants of a text that are read together.
        max_tokens: tokens that are read together, padding included.
    """

    def __init__(self, model: MultiTaskModel, tokenizer: Any, *, batch_size: int = 64, max_tokens: int = 8192) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.max_tokens = max_tokens

    def spec(self, task: str) -> TaskSpec:
        """Return the spec of a task."""
        return next(spec for spec in self.model.specs if spec.name == task)

    def head(self, task: str) -> type[TaskHead]:
        """Return the class of a task's head."""
        return HEADS.get(self.spec(task).type)

    def read(self, row: Any, *, units: str = "word") -> ExplainedText:
        """Tokenize a text, a mapping with a text (and perhaps its pair) or tokens, or a row that was read already."""
        return read_text(self.tokenizer, self.inputs(row), units=units)

    def inputs(self, row: Any) -> Inputs:
        """Take in a row as `read` does, with its words, and its choices or its graph where the model reads them."""
        if isinstance(row, Inputs) and row.word_spans is not None:
            return row
        heads = "heads" if reads_heads(self.model) else None
        choices = "choices" if reads_choices(self.model) else None
        return read_inputs(row, heads=heads, choices=choices, split_words=True)

    def forward(
        self,
        text: ExplainedText,
        tasks: Sequence[str],
        *,
        gradients: bool = False,
        embeddings: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> Forward:
        """Run the model on a text, without dropout.

        Args:
            text: the text.
            tasks: the tasks whose heads run.
            gradients: whether the output keeps its graph, which begins at the token embeddings.
            embeddings: token embeddings to use in place of the text's, `(rows, num_tokens or more, embedding_size)`.
            output_attentions: whether to return attentions.
            output_hidden_states: whether to return hidden states.
        """
        rows = 1 if embeddings is None else len(embeddings)
        device = self.model.device
        inputs = {"input_ids": torch.from_numpy(text.input_ids).to(device).expand(rows, -1)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if text.token_type_ids is not None:
            inputs["token_type_ids"] = torch.from_numpy(text.token_type_ids).to(device).expand(rows, -1)
        if reads_heads(self.model):
            inputs[GOVERNORS] = torch.from_numpy(text.governors).to(device).expand(rows, -1)
        options = {
            name: True
            for name, wanted in (
                ("output_attentions", output_attentions),
                ("output_hidden_states", output_hidden_states),
            )
            if wanted
        }
        with (
            evaluation_mode(self.model),
            torch.set_grad_enabled(gradients),
            embeddings_of(self.model, embeddings) as seen,
        ):
            output = self.model(**inputs, tasks=list(tasks), **options)
        return Forward(output, seen[0] if seen else None)

    def target(self, text: ExplainedText, forward: Forward, task: str, wanted: Wanted) -> Target:
        """Choose what is explained of a task's answer; errors as in `TaskHead.target`."""
        return self.head(task).target(self.spec(task), forward.logits(task)[0].detach().float().cpu().numpy(),
                                      text.words, wanted)  # fmt: skip

    def at_target(self, text: ExplainedText, target: Target, logits: Tensor) -> Tensor:
        """Take the logits at a target's positions.

        Args:
            text: the text.
            target: the target.
            logits: of the target's task for the whole text, `(rows, num_labels)` or `(rows, num_tokens, num_labels)`.

        Returns:
            `(rows, positions, num_labels)`.
        """
        if target.spans is not None:
            return torch.stack([logits[:, start:end].mean(dim=1) for start, end in target.spans], dim=-1)
        if target.words is None:
            return logits.unsqueeze(1)
        return logits[:, text.words.first_tokens[list(target.words)].tolist()]

    def score(self, text: ExplainedText, target: Target, task: str, forward: Forward) -> Tensor:
        """Return the score of a target in each row of a forward pass, `(rows,)`, with its graph."""
        return target.score(self.at_target(text, target, forward.logits(task)))

    def measure(
        self, text: ExplainedText, removed: np.ndarray, targets: Mapping[str, Target], *, how: str = "delete"
    ) -> dict[str, Measured]:
        """Take units away and see what the targets come to; all tasks share the passes.

        The words of a tagging target, and choices, cannot be left out: where they are to be deleted, they are masked.

        Args:
            text: the text.
            removed: per variant which units are taken away, bool `(variants, num_units)`.
            targets: task name -> target.
            how: `"delete"` or `"mask"`.

        Raises:
            SpecError: `how` is neither.
        """
        if how not in REMOVALS:
            raise SpecError(f"perturb is {how!r}", mend=f"use one of {one_of(REMOVALS)}")
        groups: dict[bytes, tuple[np.ndarray, dict[str, Target]]] = {}
        for task, target in targets.items():
            protected = text.tokens_of_target(target)
            groups.setdefault(protected.tobytes(), (protected, {}))[1][task] = target
        found: dict[str, Measured] = {}
        for protected, group in groups.values():
            found |= self._measure(text, removed, group, how, protected=protected)
        return {task: found[task] for task in targets}

    @property
    def mask_token_id(self) -> int:
        """The token that stands for one that is hidden: the mask token, where there is none the unknown or padding."""
        for name in ("mask_token_id", "unk_token_id", "pad_token_id"):
            token = getattr(self.tokenizer, name, None)
            if isinstance(token, int):
                return token
        return 0

    def _measure(
        self, text: ExplainedText, removed: np.ndarray, targets: Mapping[str, Target], how: str, protected: np.ndarray
    ) -> dict[str, Measured]:
        gone = text.tokens_of(np.asarray(removed, dtype=bool))
        masked = gone & protected if how == "delete" else gone
        kept = ~gone | masked
        kept[~kept.any(axis=1), 0] = True  # an encoder needs one token to read
        ids = np.where(masked, self.mask_token_id, text.input_ids)
        features = [
            {
                "input_ids": ids[row][keep],
                "token_type_ids": None if text.token_type_ids is None else text.token_type_ids[keep],
            }
            for row, keep in enumerate(kept)
        ]
        if reads_heads(self.model):
            for feature, governors in zip(features, keep_tokens(text.governors, kept), strict=True):
                feature[GOVERNORS] = governors
        batches = length_batches(kept.sum(axis=1), batch_size=self.batch_size, max_tokens=self.max_tokens)
        at_target = {
            task: np.zeros((len(kept), len(target.labels), target.weights.shape[1]), dtype=np.float32)
            for task, target in targets.items()
        }
        collator = collator_for(self.model, self.tokenizer, list(targets))
        for predicted in predict_batches(self.model, collator, features, batches, tasks=list(targets)):
            for task, target in targets.items():
                logits = predicted.logits[task]
                if target.spans is not None:
                    places = np.cumsum(kept[predicted.rows], axis=1) - 1
                    means = [
                        np.take_along_axis(logits, places[:, start:end, None], axis=1).mean(axis=1)
                        for start, end in target.spans
                    ]
                    at_target[task][predicted.rows] = np.stack(means, axis=-1)
                elif target.words is None:
                    at_target[task][predicted.rows] = logits[:, None]
                else:
                    places = np.cumsum(kept[predicted.rows], axis=1)[:, text.words.first_tokens[list(target.words)]] - 1
                    at_target[task][predicted.rows] = np.take_along_axis(logits, places[..., None], axis=1)
        return {task: self._measured(task, target, at_target[task]) for task, target in targets.items()}

    def _measured(self, task: str, target: Target, logits: np.ndarray) -> Measured:
        spec, head = self.spec(task), self.head(task)
        scores = target.score(torch.from_numpy(logits).double()).numpy()
        probabilities = target.probability(head.probabilities(spec, logits))
        return Measured(scores, probabilities, head.holds(spec, target, logits), logits)


@contextmanager
def embeddings_of(model: MultiTaskModel, replacement: Tensor | None = None) -> Generator[list[Tensor]]:
    """Catch the token embeddings inside the block, as a leaf of the graph, or put others in their place.

    A hook reaches every architecture; not all of them take `inputs_embeds`, and some number positions otherwise then.

    Args:
        model: the model.
        replacement: embeddings to use instead.

    Yields:
        A list that holds the embeddings after the forward pass.
    """
    seen: list[Tensor] = []

    def catch(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if replacement is not None:
            embeddings = replacement
        else:
            embeddings = output.detach().requires_grad_(torch.is_grad_enabled())
        seen.append(embeddings)
        return embeddings

    table: Any = model.get_input_embeddings()
    # T5 names one module and calls another, which has the same weights.
    alike = [module for module in model.modules() if type(module) is type(table) and module.weight is table.weight]
    handles = [module.register_forward_hook(catch) for module in alike]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
