"""What the methods share that read attention weights: a pass that returns them, and where a task's answer is read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_mtl.errors import ModelError
from hf_mtl.evaluation.prediction import evaluation_mode
from hf_mtl.explain.eager import eager_attention
from hf_mtl.explain.subject import Forward, Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.pooling import POOLINGS
from hf_mtl.model.targets import Target

ROUTING = "attention is routing, not attribution: it tells where the model reads, not what it makes of it"


def check_attentions(subject: Subject) -> None:
    """Check that a model gives attention weights.

    Raises:
        ModelError: it has none, or they are no square of tokens.
    """
    ids = torch.arange(4, device=subject.model.device)[None]
    with eager_attention(subject.model), evaluation_mode(subject.model), torch.no_grad():
        output = subject.model(input_ids=ids, attention_mask=torch.ones_like(ids), tasks=[], output_attentions=True)
    _squares(subject, output.attentions, ids.shape[1])


def forward_with_attentions(
    subject: Subject, text: ExplainedText, tasks: Sequence[str], *, gradients: bool = False
) -> Forward:
    """Run the model on a text and keep its attention weights, in which eager attention takes part.

    Args:
        subject: the model.
        text: the text.
        tasks: the tasks whose heads run.
        gradients: whether the output keeps its graph.

    Raises:
        ModelError: the model gives no attention weights.
    """
    with eager_attention(subject.model):
        return subject.forward(text, tasks, gradients=gradients, output_attentions=True)


def attentions_of(subject: Subject, text: ExplainedText, forward: Forward) -> tuple[Tensor, ...]:
    """Return the attention weights of each layer, `(1, num_heads, num_tokens, num_tokens)`, queries before keys.

    Raises:
        ModelError: there are none, or they are no square of tokens.
    """
    return _squares(subject, forward.output.attentions, len(text.input_ids))


def read_at(subject: Subject, text: ExplainedText, forward: Forward, task: str, target: Target) -> Tensor:
    """Tell at which tokens of the last layer a task's answer is read: those it pools, or the target's words.

    Args:
        subject: the model.
        text: the text.
        forward: a forward pass over the text.
        task: the target's task.
        target: the target.

    Returns:
        Weights that sum to 1, `(num_tokens,)`.
    """
    tokens = len(text.input_ids)
    device = subject.model.device
    if target.spans is not None:
        first = torch.zeros(tokens, device=device)
        for start, end in target.spans:
            first[start:end] = 1.0 / (len(target.spans) * (end - start))
        return first
    if target.words is not None:
        first = torch.zeros(tokens, device=device)
        first[text.words.first_tokens[list(target.words)].tolist()] = 1.0 / len(target.words)
        return first
    learned = (forward.output.task_attentions or {}).get(task)
    if learned is not None:
        return learned[0, :tokens].detach()
    # The pooled output of unit vectors is the weight of each token.
    every = torch.ones(1, tokens, dtype=torch.long, device=device)
    return POOLINGS[subject.model.poolings[task]](torch.eye(tokens, device=device)[None], every)[0]


def _squares(subject: Subject, attentions: tuple[Tensor, ...] | None, tokens: int) -> tuple[Tensor, ...]:
    kind = subject.model.encoder.config.model_type
    mend = "choose a method that needs no attention, such as integrated_gradients or occlusion"
    if not attentions or any(layer is None for layer in attentions):  # pyright: ignore[reportUnnecessaryComparison]
        raise ModelError(f"the architecture {kind!r} gives no attention weights", mend=mend)
    if any(layer.shape[-2:] != (tokens, tokens) for layer in attentions):
        raise ModelError(f"in the architecture {kind!r} tokens do not attend to all others", mend=mend)
    return attentions
