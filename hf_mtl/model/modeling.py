"""`MultiTaskModel`: one shared encoder, one head per task, one encoder pass for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import ModelOutput

from hf_mtl.configuration import MultiTaskConfig, TaskSpec, select_tasks
from hf_mtl.errors import SpecError
from hf_mtl.model.encoders.base import EncoderAdapter, adapter_for, load_encoder
from hf_mtl.model.heads.base import TaskHead
from hf_mtl.model.pooling import POOLINGS, AttentionPooling
from hf_mtl.registry import HEADS


@dataclass
class MultiTaskOutput(ModelOutput):
    """What the model returns; every mapping is ordered as the specs.

    Args:
        loss: total loss, `sum_t loss_weight_t * (labelled rows_t / rows) * losses_t`, a scalar.
        losses: mean loss over the labelled items, for each task that has labels in the batch.
        logits: logits per task, `(rows, num_labels)` or `(rows, seq_len, num_labels)`. Rows are all rows of the batch,
            but while training with labels only the task's labelled rows, in their order.
        task_attentions: weights of attention pooling per task that has it, `(rows, seq_len)`.
        hidden_states: states after the embeddings and after each layer, where asked for.
        attentions: attention of each layer `(batch_size, num_heads, seq_len, seq_len)`, where asked for.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: dict[str, Tensor] | None = None
    task_attentions: dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class MultiTaskModel(PreTrainedModel):
    """A shared encoder with one head per task.

    Args:
        config: the encoder's configuration and the tasks, whose labels are known.
        encoder: an encoder to use as it is; built with random weights where none is given.

    Raises:
        SpecError: there is no task, or a task cannot work as it is.

    Example:
        >>> encoder = {"model_type": "bert", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1,
        ...            "num_attention_heads": 2, "intermediate_size": 8}
        >>> tasks = [TaskSpec(name="topic", type="sequence_classification", labels=("sport", "world", "science")),
        ...          TaskSpec(name="stars", type="regression")]
        >>> model = MultiTaskModel(MultiTaskConfig(encoder_config=encoder, tasks=tasks)).eval()
        >>> output = model(input_ids=torch.tensor([[1, 2, 3], [4, 5, 6]]))
        >>> {task: tuple(logits.shape) for task, logits in output.logits.items()}
        {'topic': (2, 3), 'stars': (2, 1)}
    """

    config_class = MultiTaskConfig
    config: MultiTaskConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The loss is a mean: Trainer must not believe that it is already divided by the items of an accumulated batch.
    accepts_loss_kwargs = False

    def __init__(self, config: MultiTaskConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if not config.tasks:
            raise SpecError("tasks is empty", mend="give the model at least one task")
        encoder_config = config.get_text_config()
        self.adapter: type[EncoderAdapter] = adapter_for(encoder_config)
        self.encoder = encoder if encoder is not None else self.adapter.build(encoder_config)
        self.specs = config.task_specs
        hidden_size, dropout = int(encoder_config.hidden_size), _hidden_dropout(encoder_config)
        heads = {spec.name: HEADS.get(spec.type)(spec, hidden_size, dropout=dropout) for spec in self.specs}
        self.heads = nn.ModuleDict(heads)
        self.poolings = {
            spec.name: spec.pooling or self.adapter.default_pooling for spec in self.specs if heads[spec.name].pooled
        }
        self.attention_poolings = nn.ModuleDict(
            {name: AttentionPooling(hidden_size) for name, kind in self.poolings.items() if kind == "attention"}
        )
        self.post_init()

    @classmethod
    def from_encoder(
        cls,
        name_or_path: str | Path,
        tasks: Sequence[TaskSpec | Mapping[str, Any]],
        *,
        seed: int = 0,
        **hub_kwargs: Any,
    ) -> MultiTaskModel:
        """Put new heads on a pretrained encoder.

        Args:
            name_or_path: id on the Hub or folder of any text encoder that `AutoModel` can load.
            tasks: the tasks, with their labels.
            seed: seed of the heads' random weights.
            hub_kwargs: passed to `from_pretrained`: `revision`, `token`, `cache_dir`, `dtype` and others.

        Raises:
            ModelError: the encoder cannot be found, or its checkpoint lacks weights.
            SpecError: a task cannot work.
        """
        encoder = load_encoder(name_or_path, **hub_kwargs)
        config = MultiTaskConfig(encoder_config=encoder.config, tasks=list(tasks))
        with torch.random.fork_rng(devices=[]):
            # Not `torch.manual_seed`, which would seed the GPUs as well: heads are made on the CPU.
            torch.default_generator.manual_seed(seed)
            model = cls(config, encoder=encoder)
        for modules in (model.heads, model.attention_poolings):
            modules.to(device=encoder.device, dtype=encoder.dtype)
        # One configuration, not two: changes of the encoder's (attention, vocabulary) are seen by the model's.
        model.config.encoder_config = encoder.config
        encoder.config.name_or_path = ""
        align_weights(model)
        return model

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a model as `PreTrainedModel.from_pretrained` does; its logits equal the saved model's, to the bit."""
        loaded = super().from_pretrained(*args, **kwargs)
        align_weights(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def head(self, task: str) -> TaskHead:
        """Return the head of a task."""
        return cast(TaskHead, self.heads[task])

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, AttentionPooling):
            init.zeros_(module.query)  # begins as the mean over the tokens
        else:
            super()._init_weights(module)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Mapping[str, Tensor] | None = None,
        rows: Mapping[str, Tensor] | None = None,
        tasks: Sequence[str] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> MultiTaskOutput:
        """Run the encoder once and every head on its states.

        Args:
            input_ids: token ids `(batch_size, seq_len)`.
            attention_mask: 1 for real tokens, 0 for padding, `(batch_size, seq_len)`; all real where not given.
            token_type_ids: segment ids of text pairs, `(batch_size, seq_len)`.
            position_ids: `(batch_size, seq_len)`.
            inputs_embeds: embeddings instead of `input_ids`, `(batch_size, seq_len, hidden_size)`.
            labels: per task present in the batch, labels over all its rows: classification `(batch_size,)` long, -100
                missing; tagging `(batch_size, seq_len)` long, -100; regression `(batch_size,)` float, NaN;
                multi-label `(batch_size, num_labels)` float, NaN.
            rows: per task in `labels`, the indices of its labelled rows, ascending; found in the labels where not
                given, which costs a device synchronisation.
            tasks: names of the tasks whose heads run; all where not given, and while training those with labels.
            output_attentions: whether to return the encoder's attentions (eager attention only).
            output_hidden_states: whether to return the encoder's hidden states.

        Returns:
            A `MultiTaskOutput`.

        Raises:
            SpecError: `tasks` names a task that the model does not have.
        """
        outputs = self.adapter.run(
            self.encoder,
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "position_ids": position_ids,
                "inputs_embeds": inputs_embeds,
            },
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        hidden_states = cast(Tensor, outputs.last_hidden_state)
        if attention_mask is None:
            attention_mask = hidden_states.new_ones(hidden_states.shape[:2], dtype=torch.long)

        labels = labels or {}
        only_labelled = self.training and bool(labels)
        specs = [s for s in select_tasks(self.specs, tasks) if s.name in labels or not only_labelled]
        rows = {spec.name: self._labelled_rows(spec.name, labels, rows) for spec in specs if spec.name in labels}
        pooler = _Pooler(self, hidden_states, attention_mask)

        logits: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        for spec in specs:
            head, chosen = self.head(spec.name), rows.get(spec.name)
            logits[spec.name] = head(pooler.features(spec.name, chosen if only_labelled else None))
            if chosen is not None:
                labelled = logits[spec.name] if only_labelled else _take(logits[spec.name], chosen)
                losses[spec.name] = head.loss(labelled, _take(labels[spec.name], chosen))

        batch_size = hidden_states.shape[0]
        shares = {name: len(chosen) / batch_size for name, chosen in rows.items()}
        return MultiTaskOutput(
            loss=self.total_loss(losses, shares) if losses else None,
            losses=losses or None,
            logits=logits,
            task_attentions=pooler.attentions or None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def total_loss(self, losses: Mapping[str, Tensor], shares: Mapping[str, float | Tensor]) -> Tensor:
        """Return `sum_t loss_weight_t * share_t * losses_t`.

        Args:
            losses: a scalar per task.
            shares: per task its labelled rows, divided by all rows.
        """
        weights = {spec.name: spec.loss_weight for spec in self.specs}
        return torch.stack([weights[name] * shares[name] * loss for name, loss in losses.items()]).sum()

    def _labelled_rows(self, task: str, labels: Mapping[str, Tensor], rows: Mapping[str, Tensor] | None) -> Tensor:
        if rows is not None and task in rows:
            return rows[task]
        return self.head(task).labelled_rows(labels[task]).nonzero().squeeze(-1)


class _Pooler:
    """Features of each task from one encoder pass: each kind of pooling is computed once, then indexed."""

    def __init__(self, model: MultiTaskModel, hidden_states: Tensor, attention_mask: Tensor) -> None:
        self.model = model
        self.hidden_states = hidden_states
        self.attention_mask = attention_mask
        self.pooled: dict[str, Tensor] = {}
        self.attentions: dict[str, Tensor] = {}

    def features(self, task: str, rows: Tensor | None) -> Tensor:
        kind = self.model.poolings.get(task)
        if kind is None:  # a token-level task
            return _take(self.hidden_states, rows)
        if kind == "attention":
            pooling = self.model.attention_poolings[task]
            pooled, self.attentions[task] = pooling(_take(self.hidden_states, rows), _take(self.attention_mask, rows))
            return pooled
        if kind not in self.pooled:
            self.pooled[kind] = POOLINGS[kind](self.hidden_states, self.attention_mask)
        return _take(self.pooled[kind], rows)


def _take(values: Tensor, rows: Tensor | None) -> Tensor:
    """Index the first dimension; nothing is copied where all rows are wanted."""
    return values if rows is None or len(rows) == len(values) else values[rows]


def align_weights(model: nn.Module) -> None:
    """Move weights on the CPU that do not begin at a multiple of 64 bytes to where torch would have allocated them.

    Weights mapped from a safetensors file begin anywhere, and matrix products of a few columns then take another kernel
    that rounds differently.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


def _hidden_dropout(config: PreTrainedConfig) -> float:
    names = ("hidden_dropout_prob", "dropout", "resid_pdrop", "dropout_rate", "classifier_dropout")
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, int | float)), 0.1)
