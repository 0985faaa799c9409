"""`MultiTaskModel`: one shared encoder, one head per task, one encoder pass for all of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import ModelOutput

from hf_mtl.configuration import MultiTaskConfig, TaskSpec, select_tasks
from hf_mtl.errors import SpecError
from hf_mtl.model.encoders.base import EncoderAdapter, adapter_for, check_task_lengths, load_encoder
from hf_mtl.model.features import (
    TASK_PARTS,
    TaskFeatures,
    at_positions,
    check_reading,
    initialize,
    reads_attentions,
    reads_layers,
    take,
    task_interaction,
    task_parts,
)
from hf_mtl.model.heads.base import TaskHead
from hf_mtl.model.lora import attach, train_only_adapters
from hf_mtl.model.sharing import TIE_STRENGTH, tie
from hf_mtl.model.task_attention import attend_eagerly
from hf_mtl.model.transfer import on_device
from hf_mtl.model.weights import align_weights, check_weights, pickled_error
from hf_mtl.registry import HEADS


@dataclass
class MultiTaskOutput(ModelOutput):
    """What the model returns; every mapping is ordered as the specs.

    Args:
        loss: total loss, `sum_t loss_weight_t * (labelled rows_t / rows) * losses_t`, a scalar; while training with
            the tie.
        tie: what ties the parameters of tasks to each other where they share softly, while training.
        losses: mean loss over the labelled items, for each task that has labels in the batch.
        logits: logits per task, `(rows, num_labels)` or `(rows, seq_len, num_labels)`. Rows are all rows of the batch,
            but while training with labels only the task's labelled rows, in their order.
        task_attentions: weights of attention pooling per task that has it, `(rows, seq_len)`; the mean of its heads.
        task_attention_heads: those of each head, per task with several, `(rows, num_heads, seq_len)`.
        layer_weights: weights of the encoder's layers, that of the embeddings first, per task with a mix of them,
            `(num_layers + 1,)`.
        token_graphs: how much each token hears of each, per task with a token graph, where attentions are asked for;
            `(rows, graph_layers, seq_len, seq_len)`, those that hear first.
        task_interactions: how much each task hears of each, `(batch_size, num_tasks, num_tasks)` in the order of the
            specs, those that hear first; only with `interaction`, with which weights are those of all tasks and rows.
        hidden_states: states after the embeddings and after each layer, where asked for.
        attentions: attention of each layer `(batch_size, num_heads, seq_len, seq_len)`, where asked for.
    """

    loss: Tensor | None = None
    tie: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: dict[str, Tensor] | None = None
    task_attentions: dict[str, Tensor] | None = None
    task_attention_heads: dict[str, Tensor] | None = None
    layer_weights: dict[str, Tensor] | None = None
    token_graphs: dict[str, Tensor] | None = None
    task_interactions: Tensor | None = None
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
        check_task_lengths(self.specs, encoder_config)
        dropout = _hidden_dropout(encoder_config)
        heads = {spec.name: HEADS.get(spec.type).build(spec, encoder_config, dropout=dropout) for spec in self.specs}
        self.heads = nn.ModuleDict(heads)
        self.poolings = {
            spec.name: spec.pooling or self.adapter.default_pooling for spec in self.specs if heads[spec.name].pooled
        }
        parts = task_parts(config, self.poolings)
        self.attention_poolings, self.layer_mixes = parts["attention_poolings"], parts["layer_mixes"]
        self.task_adapters, self.token_graphs = parts["task_adapters"], parts["token_graphs"]
        self.interaction = task_interaction(config)
        attend_eagerly(self.encoder, self.specs)
        self.post_init()
        if config.peft is not None:  # after `post_init`, which would draw the adapters' weights anew
            attach(self.encoder, config.peft)

    @classmethod
    def from_encoder(
        cls,
        name_or_path: str | Path | PreTrainedConfig,
        tasks: Sequence[TaskSpec | Mapping[str, Any]],
        *,
        seed: int = 0,
        architecture: Mapping[str, Any] | None = None,
        **hub_kwargs: Any,
    ) -> MultiTaskModel:
        """Put new heads on a pretrained encoder.

        Args:
            name_or_path: id on the Hub or folder of any text encoder that `AutoModel` can load; or a configuration, for
                an encoder with random weights.
            tasks: the tasks, with their labels.
            seed: seed of the random weights.
            architecture: how tasks share, as in `MultiTaskConfig`: `{"sharing": "soft"}`.
            hub_kwargs: passed to `from_pretrained`: `revision`, `token`, `cache_dir`, `dtype` and others.

        Raises:
            ModelError: the encoder cannot be found, or its checkpoint lacks weights.
            SpecError: a task cannot work.
        """
        own = name_or_path if isinstance(name_or_path, PreTrainedConfig) else None
        loaded = None if own is not None else load_encoder(cast(str, name_or_path), **hub_kwargs)
        encoder_config = own if loaded is None else loaded.config
        config = MultiTaskConfig(encoder_config=encoder_config, tasks=list(tasks), **(architecture or {}))
        with torch.random.fork_rng(devices=[]):
            # Not `torch.manual_seed`, which would seed the GPUs as well: heads are made on the CPU.
            torch.default_generator.manual_seed(seed)
            encoder = loaded or adapter_for(config.get_text_config()).build(config.get_text_config())
            model = cls(config, encoder=encoder)
        for name, modules in model.named_children():
            if name != "encoder":
                modules.to(device=encoder.device, dtype=encoder.dtype)
        # One configuration, not two: changes of the encoder's (attention, vocabulary) are seen by the model's.
        model.config.encoder_config = encoder.config
        encoder.config.name_or_path = ""
        align_weights(model)
        check_reading(model)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model as `PreTrainedModel.from_pretrained` does; its logits equal the saved model's, to the bit.

        Raises:
            ModelError: the weights are pickled, or do not fit the configuration; found before memory is allocated.
            SpecError: the configuration cannot be that of a model, or pickled weights are asked for.
        """
        if kwargs.get("use_safetensors") is False:
            raise SpecError("use_safetensors is False", mend="leave it out: pickled weights are never read")
        options: Any = {**kwargs, "use_safetensors": True}
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **options)
        except OSError as error:
            refused = pickled_error(str(pretrained_model_name_or_path), **kwargs)
            if refused is None:
                raise
            raise refused from error
        model = cast(MultiTaskModel, loaded[0] if isinstance(loaded, tuple) else loaded)
        align_weights(model)
        if model.config.peft is not None:
            train_only_adapters(model.encoder)
        return loaded

    @staticmethod
    def _load_pretrained_model(
        model: MultiTaskModel, state_dict: Any, checkpoint_files: Any, load_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # Between building the model, which takes no memory, and filling it transformers calls nothing that is public.
        if load_config.hf_quantizer is None and not load_config.ignore_mismatched_sizes:
            check_weights(model, checkpoint_files)
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *args: Any,
        remote_code: bool = True,
        **kwargs: Any,
    ) -> None:
        """Save a model as `PreTrainedModel.save_pretrained` does, with the code that loads it without hf_mtl.

        Args:
            save_directory: the folder.
            is_main_process: whether this process writes, of those that save together.
            args: passed on.
            remote_code: whether the code stands beside the weights, for `trust_remote_code=True` and for endpoints.
            kwargs: passed on: `push_to_hub`, `max_shard_size` and others.

        Raises:
            SpecError: a head that a user registered needs more code than its own file has.
        """
        from hf_mtl.model.remote_code import travelling

        with travelling(self, Path(save_directory), remote_code=remote_code) if is_main_process else nullcontext():
            super().save_pretrained(save_directory, is_main_process, *args, **kwargs)

    def _get_files_timestamps(self, working_dir: str | os.PathLike[str]) -> dict[str, float]:
        from hf_mtl.model.remote_code import FILE_NAMES

        # What `push_to_hub=True` takes for old is not pushed, and the code is written before the rest.
        times: dict[str, float] = super()._get_files_timestamps(working_dir)
        return {name: time for name, time in times.items() if name not in FILE_NAMES}

    def train(self, mode: bool = True) -> MultiTaskModel:
        """Set the mode; an encoder that is frozen as a whole stays in evaluation mode, its states being features."""
        super().train(mode)
        if mode and not any(parameter.requires_grad for parameter in self.encoder.parameters()):
            self.encoder.eval()
        return self

    def head(self, task: str) -> TaskHead:
        """Return the head of a task."""
        return cast(TaskHead, self.heads[task])

    def own_modules(self, task: str) -> list[nn.Module]:
        """Return the modules that a task has for itself: its head, and what it reads the encoder with."""
        parts = (cast(nn.ModuleDict, self.get_submodule(name)) for name in TASK_PARTS)
        return [self.head(task), *(members[task] for members in parts if task in members)]

    # Imported when they are called, so that they stay out of the code that travels with a saved model.
    def add_task(self, spec: TaskSpec | Mapping[str, Any], *, seed: int = 0) -> None:
        """Add a task, in place: `hf_mtl.model.surgery.add_task`."""
        from hf_mtl.model.surgery import add_task

        add_task(self, spec, seed=seed)

    def remove_task(self, task: str) -> None:
        """Remove a task, in place: `hf_mtl.model.surgery.remove_task`."""
        from hf_mtl.model.surgery import remove_task

        remove_task(self, task)

    def rename_task(self, task: str, name: str) -> None:
        """Rename a task, in place: `hf_mtl.model.surgery.rename_task`."""
        from hf_mtl.model.surgery import rename_task

        rename_task(self, task, name)

    def add_labels(self, task: str, labels: Sequence[str], **options: Any) -> None:
        """Add labels to a task, in place: `hf_mtl.model.surgery.add_labels`, which has the options."""
        from hf_mtl.model.surgery import add_labels

        add_labels(self, task, labels, **options)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        for head in self.heads.values():
            if cast(TaskHead, head).masks_tokens:
                cast(Any, head).resize(len(embeddings.weight))
        return embeddings

    def _init_weights(self, module: nn.Module) -> None:
        if not initialize(module):
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
        items: Mapping[str, float] | None = None,
        tasks: Sequence[str] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        hidden_states: Tensor | None = None,
        governors: Tensor | None = None,
        positions: Mapping[str, Tensor] | None = None,
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
            items: per task in `labels`, what the mean over its labelled items divides by, as its head's `num_items`
                counts them; counted where not given.
            tasks: names of the tasks whose heads run; all where not given, and while training those with labels.
            output_attentions: whether to return the encoder's attentions (eager attention only), and `token_graphs`.
            output_hidden_states: whether to return the encoder's hidden states.
            hidden_states: last hidden states to use instead of running the encoder,
                `(batch_size, seq_len, hidden_size)`.
            governors: position of the token that governs each token, its own where none does, `(batch_size, seq_len)`,
                for tasks with a token graph; the token before it where not given. See `hf_mtl.data.token_governors`.
            positions: per task whose labels are masked tokens, their places `(batch_size, masks)`, filled up with -1;
                its logits are those of these tokens, and of all tokens where not given.

        Returns:
            A `MultiTaskOutput`.

        Raises:
            SpecError: `tasks` names a task that the model does not have, or `hidden_states` lack what a task reads.
            ModelError: a task reads the encoder's attention, which it does not give as it is.
        """
        outputs = BaseModelOutput(last_hidden_state=cast(Any, hidden_states))
        if hidden_states is None:
            outputs = self.adapter.run(
                self.encoder,
                {
                    "input_ids": input_ids,
                    "attention_mask": attention_mask,
                    "token_type_ids": token_type_ids,
                    "position_ids": position_ids,
                    "inputs_embeds": inputs_embeds,
                },
                output_attentions=True if reads_attentions(self) else output_attentions,
                output_hidden_states=True if reads_layers(self) else output_hidden_states,
            )
            hidden_states = cast(Tensor, outputs.last_hidden_state)
        if attention_mask is None:
            attention_mask = hidden_states.new_ones(hidden_states.shape[:2], dtype=torch.long)

        labels, items, positions = labels or {}, items or {}, positions or {}
        only_labelled = self.training and bool(labels)
        specs = [s for s in select_tasks(self.specs, tasks) if s.name in labels or not only_labelled]
        rows = {spec.name: self._labelled_rows(spec.name, labels, rows) for spec in specs if spec.name in labels}
        reading = TaskFeatures(self, outputs, attention_mask, governors, graph_weights=bool(output_attentions))

        logits: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        for spec in specs:
            head, chosen = self.head(spec.name), rows.get(spec.name)
            read = chosen if only_labelled else None
            features = reading.features(spec.name, read)
            if spec.name in positions:
                features = at_positions(features, take(positions[spec.name], read))
            tied = (self.get_input_embeddings().weight,) if head.masks_tokens else ()
            logits[spec.name] = head(features, *tied)
            if chosen is not None:
                labelled = logits[spec.name] if only_labelled else take(logits[spec.name], chosen)
                losses[spec.name] = head.loss(labelled, take(labels[spec.name], chosen), items.get(spec.name))

        batch_size = hidden_states.shape[0]
        shares = {name: len(chosen) / batch_size for name, chosen in rows.items()}
        loss = self.total_loss(losses, shares) if losses else None
        tie = self.tie() if self.training else None
        return MultiTaskOutput(
            loss=loss if loss is None or tie is None else loss + tie,
            tie=tie,
            losses=losses or None,
            logits=logits,
            task_attentions=reading.attentions or None,
            task_attention_heads=reading.attention_heads or None,
            layer_weights=reading.layer_weights or None,
            token_graphs=reading.token_graphs or None,
            task_interactions=reading.interactions,
            hidden_states=outputs.hidden_states if output_hidden_states or not reads_layers(self) else None,
            attentions=outputs.attentions if output_attentions or not reads_attentions(self) else None,
        )

    def tie(self) -> Tensor | None:
        """Return the tie between the tasks' adapters, with its weight; `None` where tasks share all or nothing."""
        strength = self.config.sharing_strength
        return tie(self.task_adapters.values(), TIE_STRENGTH if strength is None else strength)

    def total_loss(self, losses: Mapping[str, Tensor], shares: Mapping[str, float]) -> Tensor:
        """Return `sum_t loss_weight_t * share_t * losses_t`.

        Args:
            losses: a scalar per task.
            shares: per task its labelled rows, divided by all rows.
        """
        weights = {spec.name: spec.loss_weight for spec in self.specs}
        stacked = torch.stack([*losses.values()])
        factors = [weights[name] * shares[name] for name in losses]
        return (stacked * on_device(factors, dtype=stacked.dtype, device=stacked.device)).sum()

    def _labelled_rows(self, task: str, labels: Mapping[str, Tensor], rows: Mapping[str, Tensor] | None) -> Tensor:
        if rows is not None and task in rows:
            return rows[task]
        return self.head(task).labelled_rows(labels[task]).nonzero().squeeze(-1)


def _hidden_dropout(config: PreTrainedConfig) -> float:
    names = ("hidden_dropout_prob", "dropout", "resid_pdrop", "dropout_rate", "classifier_dropout")
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, int | float)), 0.1)


# Together: where transformers knows the configuration but not the model, it does not look at the code beside a model.
AutoConfig.register(MultiTaskConfig.model_type, MultiTaskConfig, exist_ok=True)
AutoModel.register(MultiTaskConfig, MultiTaskModel, exist_ok=True)
