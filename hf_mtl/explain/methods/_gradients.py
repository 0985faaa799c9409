"""What the methods that differentiate a target with respect to the token embeddings share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_mtl.errors import ModelError
from hf_mtl.explain.subject import Forward, Subject
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.targets import Target


def embedding_gradient(
    subject: Subject, text: ExplainedText, task: str, target: Target, forward: Forward
) -> tuple[Tensor, Tensor]:
    """Differentiate the score of a target with respect to the token embeddings.

    Args:
        subject: the model.
        text: the text.
        task: the target's task.
        target: the target.
        forward: a forward pass over the text that kept its graph, which may be asked again.

    Returns:
        Gradient and embeddings, each `(num_tokens, embedding_size)`.
    """
    assert forward.embeddings is not None
    with torch.enable_grad():  # whatever the caller has set
        score = subject.score(text, target, task, forward).sum()
    (gradient,) = torch.autograd.grad(score, forward.embeddings, retain_graph=True)
    tokens = len(text.input_ids)
    return gradient[0, :tokens], forward.embeddings.detach()[0, :tokens]


def unit_scores(text: ExplainedText, token_scores: Tensor) -> np.ndarray:
    """Add up the scores of each unit's tokens.

    Args:
        text: the text.
        token_scores: `(num_tokens,)`, with or without a graph.

    Returns:
        `(num_units,)`, in float64.
    """
    return text.sum_over_units(token_scores.detach().double().cpu().numpy())


@dataclass(frozen=True, eq=False)
class Blank:
    """The token that stands for a word that says nothing.

    Args:
        name: what to call it.
        embedding: its embedding, `(embedding_size,)`.
    """

    name: str
    embedding: Tensor

    @classmethod
    def of(cls, subject: Subject) -> Blank:
        """Return the padding token of a model; where it has none the mask token, or the unknown token.

        Raises:
            ModelError: the tokenizer has none of them.
        """
        for kind in ("pad", "mask", "unk"):
            token = getattr(subject.tokenizer, f"{kind}_token_id", None)
            if isinstance(token, int):
                with torch.no_grad():
                    embedding = subject.model.get_input_embeddings()(torch.tensor([token], device=subject.model.device))
                return cls(str(getattr(subject.tokenizer, f"{kind}_token")), embedding[0])
        raise ModelError(
            "the tokenizer has no padding, mask or unknown token to compare words with",
            mend="add a padding token to the tokenizer, or choose a method without a baseline, such as occlusion",
        )
