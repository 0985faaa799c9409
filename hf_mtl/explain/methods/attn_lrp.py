"""AttnLRP: gradient times input, after the parts of a transformer whose gradients mislead were given better ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_mtl.data.masking import NOT_EXPLAINED, select_unmasked
from hf_mtl.errors import ModelError
from hf_mtl.evaluation.prediction import evaluation_mode
from hf_mtl.explain.methods._gradients import Blank, embedding_gradient, unit_scores
from hf_mtl.explain.methods._relevance import relevance_rules
from hf_mtl.explain.methods.base import Attribution, AttributionMethod
from hf_mtl.explain.subject import Forward, Subject, embeddings_of
from hf_mtl.explain.text import ExplainedText
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.targets import Target
from hf_mtl.registry import EXPLAINERS


@EXPLAINERS.register("attn_lrp")
@dataclass(frozen=True)
class AttnLRP(AttributionMethod):
    """`a_i = sum_d (e_id - e_PAD,d) * dS/de_id`, with the gradient of a model in which relevance is shared out evenly.

    For that gradient layer normalization divides by a constant, an activation `f` multiplies with the constant
    `f(x) / x`, and the two factors of a product take half of the gradient each: in `softmax(Q K') V` the weights and
    `V`, in a gated feed-forward layer the activation and the gate. The model's outputs stay as they are. `e_i` is the
    embedding of token `i`, `e_PAD` that of the padding token: a word is compared with none.

    Achtibat et al. 2024, "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers",
    https://arxiv.org/abs/2402.05602. They pass the half of the attention weights on to `Q` and `K`. Here it goes no
    further unless `through_softmax` is set, and weights of attention pooling are constants: on validation texts of two
    tasks deleting the top words then changed more. One forward pass for all tasks, one backward pass per target.

    Args:
        through_softmax: whether `Q` and `K` take a quarter of the gradient each, as in the paper, and attention pooling
            shares alike.
    """

    through_softmax: bool = False

    def check(self, subject: Subject) -> None:
        problem = _problem(subject.model)
        if problem:
            raise ModelError(
                problem, where="attn_lrp", mend="choose another method, such as integrated_gradients or shapley"
            )

    def forward(self, subject: Subject, text: ExplainedText, tasks: Sequence[str]) -> Forward:
        with relevance_rules(subject.model, through_softmax=self.through_softmax) as rules:
            forward = subject.forward(text, tasks, gradients=True)
        problem = _wrong_count(subject.model, rules.attention_calls)
        if problem:
            raise ModelError(problem, where="attn_lrp", mend="choose another method, such as integrated_gradients")
        return forward

    def attribute(
        self, subject: Subject, text: ExplainedText, forward: Forward, targets: Mapping[str, Target]
    ) -> dict[str, Attribution]:
        blank = Blank.of(subject)
        found: dict[str, Attribution] = {}
        for task, target in targets.items():
            gradient, embeddings = embedding_gradient(subject, text, task, target, forward)
            products = (gradient * (embeddings - blank.embedding)).sum(dim=-1)
            found[task] = Attribution(scores=unit_scores(text, products), baseline=f"the embedding of {blank.name}")
        return found


_PROBLEMS: WeakKeyDictionary[MultiTaskModel, tuple[tuple[str, ...], str]] = WeakKeyDictionary()


def _problem(model: MultiTaskModel) -> str:
    """Say what of a model the rules do not cover; found once per model and set of tasks, empty where they cover it."""
    tasks = tuple(spec.name for spec in model.specs)
    known = _PROBLEMS.get(model)
    if known is None or known[0] != tasks:
        known = _PROBLEMS[model] = (tasks, _find_problem(model))
    return known[1]


def _find_problem(model: MultiTaskModel) -> str:
    """Look for an operation that no rule covers.

    With a constant in one factor of every product that a rule knows, what is left is linear in the embeddings: its
    gradient does not depend on them. Where it does, something else is not linear.
    """
    encoder: Any = model.encoder
    if not encoder._supports_sdpa or not encoder._can_set_attn_implementation():
        return f"the architecture {encoder.config.model_type!r} computes attention in a way of its own"
    if model.interaction is not None:
        return f"the tasks hear each other (interaction {model.config.interaction!r}), which none of its rules covers"
    gated = next((spec.name for spec in model.specs if spec.attention_gate), None)
    if gated is not None:
        return f"task {gated!r} reads the encoder's attention (attention_gate), which none of its rules covers"
    graph = next((spec.name for spec in model.specs if spec.token_graph), None)
    if graph is not None:
        return f"task {graph!r} passes messages between tokens (token_graph), which none of its rules covers"
    ids = torch.arange(4, device=model.device)[None]
    with (
        evaluation_mode(model),
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),  # other kernels cannot be differentiated twice
        relevance_rules(model, linear=True) as rules,
        embeddings_of(model) as seen,
    ):
        tasks = [spec.name for spec in select_unmasked(model.specs, None, NOT_EXPLAINED)]
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), tasks=tasks)
        total = torch.stack([logits.float().sum() for logits in (output.logits or {}).values()]).sum()
        (gradient,) = torch.autograd.grad(total, seen[0], create_graph=True)
        problem = _wrong_count(model, rules.attention_calls)
        if not problem and gradient.requires_grad and _depends(gradient, seen[0]):
            problem = f"the architecture {encoder.config.model_type!r} has parts that none of its rules covers"
    return problem


def _depends(gradient: Tensor, embeddings: Tensor) -> bool:
    found: Any = torch.autograd.grad(gradient.sum(), embeddings, allow_unused=True)
    return found[0] is not None


def _wrong_count(model: MultiTaskModel, calls: int) -> str:
    layers = model.encoder.config.get_text_config().num_hidden_layers
    if calls == layers:
        return ""
    return f"of {layers} layers {calls} compute attention in a way that can be exchanged"
