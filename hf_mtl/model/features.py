"""What each head reads of one encoder pass, and the parts that a task has for itself to read it with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.errors import SpecError
from hf_mtl.model.interaction import INTERACTION_HEADS, GraphAttention
from hf_mtl.model.layer_mix import LayerMix
from hf_mtl.model.pooling import POOLINGS, AttentionPooling
from hf_mtl.model.sharing import ADAPTER_SIZE, TaskAdapter
from hf_mtl.model.task_attention import TaskAttention, attention_paid
from hf_mtl.model.token_graph import TokenGraphAttention, neighbours

if TYPE_CHECKING:
    from hf_mtl.model.modeling import MultiTaskModel

TASK_PARTS = ("attention_poolings", "layer_mixes", "task_adapters", "token_graphs")
"""The model's module dictionaries, beside its heads, whose members belong to one task each."""


def task_parts(config: MultiTaskConfig, poolings: Mapping[str, str]) -> dict[str, Any]:
    """Make the parts that tasks have beside their heads, with random weights; nobody's generator is drawn from.

    Args:
        config: the model's configuration.
        poolings: how each pooled task pools.

    Returns:
        A module dictionary for each name in `TASK_PARTS`.

    Raises:
        SpecError: an option of a task cannot work with its type or with the encoder.
        MissingExtraError: a task passes messages between tokens, and torch_geometric is not installed.
    """
    specs, encoder = config.task_specs, config.get_text_config()
    size, adapter_size = int(encoder.hidden_size), config.sharing_size or ADAPTER_SIZE
    for spec in specs:
        if (spec.attention_heads > 1 or spec.attention_gate) and spec.name not in poolings:
            key = "attention_gate" if spec.attention_gate else "attention_heads"
            raise SpecError(
                f"{key} is {getattr(spec, key)!r}, and {spec.type} reads every token",
                where=f"task {spec.name!r}",
                mend=f"leave {key} out",
            )
    with torch.random.fork_rng(devices=[]):  # heads begin as they do in a model without these parts
        return {
            "attention_poolings": nn.ModuleDict(
                {spec.name: _attention(spec, size) for spec in specs if poolings.get(spec.name) == "attention"}
            ),
            "layer_mixes": nn.ModuleDict(
                {spec.name: LayerMix(_num_states(spec, encoder)) for spec in specs if spec.layer_mix}
            ),
            "task_adapters": nn.ModuleDict(
                {spec.name: TaskAdapter(size, adapter_size) for spec in specs if config.sharing == "soft"}
            ),
            "token_graphs": nn.ModuleDict({spec.name: _token_graph(spec, size) for spec in specs if spec.token_graph}),
        }


def task_interaction(config: MultiTaskConfig) -> GraphAttention | None:
    """Make what passes messages between tasks, with random weights; `None` where tasks are apart.

    Raises:
        MissingExtraError: torch_geometric is not installed.
        SpecError: its heads do not fit the encoder.
    """
    if config.interaction is None:
        return None
    with torch.random.fork_rng(devices=[]):
        return GraphAttention(
            int(config.get_text_config().hidden_size),
            [spec.name for spec in config.task_specs],
            graph=config.interaction_graph,
            num_heads=config.interaction_heads or INTERACTION_HEADS,
        )


def _attention(spec: TaskSpec, hidden_size: int) -> AttentionPooling:
    if spec.attention_heads == 1 and not spec.attention_gate:
        return AttentionPooling(hidden_size)
    try:
        return TaskAttention(hidden_size, num_heads=spec.attention_heads, gated=spec.attention_gate)
    except SpecError as error:
        raise error.at(f"task {spec.name!r}") from None


def _token_graph(spec: TaskSpec, hidden_size: int) -> TokenGraphAttention:
    try:
        return TokenGraphAttention(hidden_size, num_heads=spec.token_graph_heads, num_layers=spec.token_graph_layers)
    except SpecError as error:
        raise error.at(f"task {spec.name!r}") from None


def initialize(module: nn.Module) -> bool:
    """Give a module that stands between encoder and heads the weights it begins with.

    Returns:
        Whether it is one.
    """
    if isinstance(module, AttentionPooling):
        init.zeros_(module.query)  # begins as the mean over the tokens
        if isinstance(module, TaskAttention) and module.gate is not None:
            init.zeros_(module.gate)
    elif isinstance(module, LayerMix):
        init.zeros_(module.scores)
        init.ones_(module.scale)
    elif isinstance(module, GraphAttention | TokenGraphAttention):
        for name, parameter in module.named_parameters():
            if name in ("scale", "scales"):
                init.zeros_(parameter)
            elif name == "embeddings":
                init.normal_(parameter, std=0.02)
            else:
                (init.xavier_uniform_ if parameter.ndim > 1 else init.zeros_)(parameter)
    elif isinstance(module, TaskAdapter):
        init.copy_(module.down, module.first_weights())
        for zeros in (module.down_bias, module.up, module.up_bias):
            init.zeros_(zeros)
    else:
        return False
    return True


def _num_states(spec: TaskSpec, config: PreTrainedConfig) -> int:
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise SpecError(
            f"layer_mix is true, and the configuration of {config.model_type!r} does not tell its layers",
            where=f"task {spec.name!r}",
            mend="leave layer_mix out",
        )
    return layers + 1  # and the states after the embeddings


class TaskFeatures:
    """Features of each task from one encoder pass: what tasks share is computed once, with its dropout.

    Tasks of one kind of pooling and one dropout probability share the values that are dropped, as they share the
    encoder's.

    Args:
        model: the model.
        outputs: what its encoder returned, with hidden states and attentions where tasks need them.
        attention_mask: `(batch_size, seq_len)`.
        governors: `(batch_size, seq_len)`, as in `hf_mtl.model.token_graph.token_edges`; neighbours where not given.
        graph_weights: whether the weights of token graphs are wanted.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        outputs: BaseModelOutput,
        attention_mask: Tensor,
        governors: Tensor | None = None,
        *,
        graph_weights: bool = False,
    ) -> None:
        self.model = model
        self.outputs = outputs
        self.hidden_states = cast(Tensor, outputs.last_hidden_state)
        self.attention_mask = attention_mask
        self.governors = governors
        self.graph_weights = graph_weights
        self.shared: dict[tuple[str | None, float], Tensor] = {}
        self.paid: Tensor | None = None
        self.attentions: dict[str, Tensor] = {}
        self.attention_heads: dict[str, Tensor] = {}
        self.layer_weights: dict[str, Tensor] = {}
        self.token_graphs: dict[str, Tensor] = {}
        self.interactions: Tensor | None = None
        self.heard: dict[str, Tensor] = {}

    def features(self, task: str, rows: Tensor | None) -> Tensor:
        """Return what a task's head reads, after dropout.

        Args:
            task: the task.
            rows: indices of the rows; all where not given.

        Returns:
            `(rows, hidden_size)`, or `(rows, seq_len, hidden_size)` for a task that reads every token.
        """
        kind, head = self.model.poolings.get(task), self.model.head(task)
        dropout = head.dropout if head.training else 0.0
        if self.model.interaction is not None:
            return F.dropout(take(self._heard(task), rows), dropout)
        if kind == "attention" or any(
            task in parts for parts in (self.model.layer_mixes, self.model.task_adapters, self.model.token_graphs)
        ):
            return F.dropout(self._own(task, kind, rows), dropout)
        if (kind, dropout) not in self.shared:
            states = self.hidden_states if kind is None else POOLINGS[kind](self.hidden_states, self.attention_mask)
            self.shared[kind, dropout] = F.dropout(states, dropout)
        return take(self.shared[kind, dropout], rows)

    def _heard(self, task: str) -> Tensor:
        """Return what a task has and hears from others, for all rows; a task that reads every token adds it to each.

        All tasks take part, whichever heads run, so that an answer does not depend on what else is asked.
        """
        if not self.heard:
            own = {
                spec.name: self._own(spec.name, self.model.poolings.get(spec.name), None) for spec in self.model.specs
            }
            pooled = [
                states
                if name in self.model.poolings
                else POOLINGS[self.model.adapter.default_pooling](states, self.attention_mask)
                for name, states in own.items()
            ]
            messages, self.interactions = cast(GraphAttention, self.model.interaction)(torch.stack(pooled, dim=1))
            for (name, states), message in zip(own.items(), messages.unbind(dim=1), strict=True):
                self.heard[name] = states + (message if name in self.model.poolings else message.unsqueeze(1))
        return self.heard[task]

    def _own(self, task: str, kind: str | None, rows: Tensor | None) -> Tensor:
        """Return a task's features where it shares them with no other."""
        states, mask = self._states(task, rows), take(self.attention_mask, rows)
        if kind is None:
            return states
        if kind != "attention":
            return POOLINGS[kind](states, mask)
        pooling = self.model.attention_poolings[task]
        paid = (take(self._attention_paid(), rows),) if getattr(pooling, "gate", None) is not None else ()
        pooled, weights = pooling(states, mask, *paid)
        if weights.dim() == 3:
            self.attention_heads[task] = weights
            weights = weights.mean(dim=1)
        self.attentions[task] = weights
        return pooled

    def _states(self, task: str, rows: Tensor | None) -> Tensor:
        """Return the token states that a task reads, `(rows, seq_len, hidden_size)`."""
        states = self._mixed(task, rows)
        if task in self.model.task_adapters:
            states = self.model.task_adapters[task](states)
        if task not in self.model.token_graphs:
            return states
        if self.governors is None:
            self.governors = neighbours(self.attention_mask)
        passed = self.model.token_graphs[task]
        states, weights = passed(states, take(self.governors, rows), with_weights=self.graph_weights)
        if weights is not None:
            self.token_graphs[task] = weights
        return states

    def _mixed(self, task: str, rows: Tensor | None) -> Tensor:
        if task not in self.model.layer_mixes:
            return take(self.hidden_states, rows)
        if self.outputs.hidden_states is None:
            raise SpecError(
                "the task mixes the layers of the encoder (layer_mix), and only the last hidden states are given",
                where=f"task {task!r}",
                mend="give input_ids",
            )
        mix = cast(LayerMix, self.model.layer_mixes[task])
        self.layer_weights[task] = mix.weights()
        return mix([take(layer, rows) for layer in self.outputs.hidden_states])

    def _attention_paid(self) -> Tensor:
        if self.paid is None:
            self.paid = attention_paid(self.outputs.attentions, self.attention_mask)
        return self.paid


def take(values: Tensor, rows: Tensor | None) -> Tensor:
    """Index the first dimension; nothing is copied where all rows are wanted."""
    return values if rows is None or len(rows) == len(values) else values[rows]


def at_positions(states: Tensor, positions: Tensor) -> Tensor:
    """Return the states of some tokens of each row.

    Args:
        states: `(rows, seq_len, hidden_size)`.
        positions: `(rows, places)`, -1 where a row has fewer places, which then gives its first state.

    Returns:
        `(rows, places, hidden_size)`.
    """
    return states.gather(1, positions.clamp(min=0).unsqueeze(-1).expand(-1, -1, states.shape[-1]))


def reads_layers(model: MultiTaskModel) -> bool:
    """Tell whether a task reads more layers than the last."""
    return len(model.layer_mixes) > 0


def reads_attentions(model: MultiTaskModel) -> bool:
    """Tell whether a task reads the encoder's attention."""
    return any(spec.attention_gate for spec in model.specs)


def check_reading(model: MultiTaskModel) -> None:
    """Run a model whose tasks read more than the last states on four tokens, to find out what they lack at once.

    Raises:
        ModelError: the encoder does not give what a task reads.
    """
    if not reads_layers(model) and not reads_attentions(model):
        return
    ids = torch.arange(4, device=model.device).unsqueeze(0)
    was_training = model.training
    with torch.no_grad():
        model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
    model.train(was_training)
