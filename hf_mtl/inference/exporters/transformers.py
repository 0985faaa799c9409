"""One task as a stock model of transformers, which needs nothing of this package."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from hf_mtl.configuration import TaskSpec
from hf_mtl.errors import ModelError, SpecError, one_of
from hf_mtl.evaluation.prediction import evaluation_mode
from hf_mtl.inference.exporters._stock_heads import ITSELF, LinearMap, StockHead
from hf_mtl.inference.exporters.base import Exported, Exporter, Quantization
from hf_mtl.model.encoders.base import max_positions
from hf_mtl.model.lora import merge_and_unload
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import EXPORTERS

TOLERANCE = 1e-6
"""What logits may differ in: as such, and where numbers above 1 are summed as a share of them."""
ROWS, LENGTH = 8, 16
"""Of the random token ids that the logits are compared on."""


@EXPORTERS.register("transformers")
class TransformersExporter(Exporter):
    """A folder for `AutoModelForSequenceClassification` or `AutoModelForTokenClassification`, and their pipelines.

    Logits equal those of the head to 1e-6 in float32. The layers that a stock class has before its last one are filled
    so that they come to nothing, which makes a folder for answering, not for training on. It is written in the model's
    precision where that can hold its weights, else in float32.
    """

    @classmethod
    def export(
        cls,
        model: MultiTaskModel,
        tokenizer: Any,
        specs: Sequence[TaskSpec],
        folder: Path,
        *,
        quantization: Quantization | None = None,
    ) -> Exported:
        if len(specs) != 1:
            names = [spec.name for spec in specs]
            raise SpecError(f"a stock model answers one task, not {len(specs)}", mend=f"name one of {one_of(names)}")
        spec = specs[0]
        own = _in_float32(model)
        try:
            stock, tokenizer = _stock_model(own, spec, tokenizer), _stock_tokenizer(own, tokenizer)
            difference = _write_head(stock, own, spec, _probe(own, tokenizer))
        except ModelError as error:
            raise error.at(f"task {spec.name!r}") from error.__cause__
        if all(torch.equal(weight.to(model.dtype).float(), weight) for weight in stock.state_dict().values()):
            cast(nn.Module, stock).to(model.dtype)
        stock.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return Exported(type(stock).__name__, difference)


def _in_float32(model: MultiTaskModel) -> MultiTaskModel:
    """Return the model, or where it has adapters or is of another precision a copy of it without."""
    if model.dtype == torch.float32 and model.config.peft is None:
        return model
    return merge_and_unload(copy.deepcopy(model).float())


def _stock_model(model: MultiTaskModel, spec: TaskSpec, tokenizer: Any) -> PreTrainedModel:
    """Return the stock model of a task with the encoder's weights; what stands after the encoder is not written yet."""
    head = model.head(spec.name)
    if head.stock_class is None:
        why = f": {head.no_stock_class}" if head.no_stock_class else ""
        raise ModelError(f"transformers has no stock class for {spec.type}{why}", mend=ITSELF)
    config: Any = copy.deepcopy(model.config.get_text_config())
    auto_class: Any = getattr(transformers, head.stock_class)
    stock_class = auto_class._model_mapping.get(type(config), None)
    if stock_class is None:
        raise ModelError(f"{head.stock_class} does not know the architecture {config.model_type!r}", mend=ITSELF)
    config.id2label = dict(enumerate(spec.labels or (spec.name,)))
    config.label2id = {label: index for index, label in config.id2label.items()}
    config.problem_type = head.problem_type
    config.name_or_path = ""
    if isinstance(getattr(config, "classifier_activation", None), str):  # ModernBERT's configuration has it
        config.classifier_activation, config.classifier_bias = "linear", True
        config.classifier_pooling = "mean" if model.poolings.get(spec.name) == "mean" else "cls"
    if model.adapter.default_pooling == "last":
        config.pad_token_id = _padding(tokenizer, stock_class.__name__)
    with torch.random.fork_rng(devices=[]):
        stock: PreTrainedModel = auto_class.from_config(config, dtype=torch.float32)
    _copy_encoder(model.encoder, stock)
    cast(nn.Module, stock).to(model.device)
    return stock.eval()


def _padding(tokenizer: Any, name: str) -> int:
    """Return the padding token, in front of which a stock decoder looks for the last token."""
    pad = tokenizer.pad_token_id
    if pad is None:
        raise ModelError(f"the tokenizer has no padding token, which {name} needs", mend="set tokenizer.pad_token")
    if tokenizer("a")["input_ids"][-1:] == [pad]:
        raise ModelError(
            f"the tokenizer ends texts with its padding token, which {name} would pass over",
            mend="give the tokenizer another pad_token",
        )
    return pad


def _copy_encoder(encoder: PreTrainedModel, stock: PreTrainedModel) -> None:
    inner = getattr(stock, stock.base_model_prefix)
    name = type(stock).__name__
    if type(inner) is not type(encoder):
        raise ModelError(
            f"{name} is built on {type(inner).__name__}, and the encoder is of class {type(encoder).__name__}",
            mend=ITSELF,
        )
    absent, unknown = inner.load_state_dict(encoder.state_dict(), strict=False)
    lost = [*unknown, *(key for key in absent if "pooler" not in key)]
    if lost:
        raise ModelError(f"{name} has other weights, {min(lost)!r} among them", mend=ITSELF)


def _stock_tokenizer(model: MultiTaskModel, tokenizer: Any) -> Any:
    """Return a tokenizer that gives the stock model what the multi-task model's encoder reads, on the same side."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"  # some stock models take the first place of a row for its first token
    known = inspect.signature(model.encoder.forward).parameters
    if not model.adapter.reads_segments or "token_type_ids" not in known:
        names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = names
    return tokenizer


def _probe(model: MultiTaskModel, tokenizer: Any) -> dict[str, Tensor]:
    """Return random token ids of different lengths, `(ROWS, LENGTH)`, with what the tokenizer gives besides."""
    config = model.config.get_text_config()
    size = int(getattr(config, "vocab_size", 256))
    length = min(LENGTH, max_positions(config) or LENGTH)
    pad = next((p for p in (tokenizer.pad_token_id, config.pad_token_id) if isinstance(p, int)), 0)
    ids = torch.randint(0, size, (ROWS, length), generator=torch.Generator().manual_seed(0))
    ids = torch.where(ids == pad, (pad + 1) % size, ids)
    lengths = torch.linspace(1, length, ROWS).long()
    mask = (torch.arange(length) < lengths[:, None]).long()
    inputs = {"input_ids": torch.where(mask == 1, ids, pad), "attention_mask": mask}
    if "token_type_ids" in tokenizer.model_input_names:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return {name: values.to(model.device) for name, values in inputs.items()}


def _write_head(stock: PreTrainedModel, model: MultiTaskModel, spec: TaskSpec, inputs: dict[str, Tensor]) -> float:
    """Write a task's head into a stock model.

    Returns:
        The largest difference of the logits.

    Raises:
        ModelError: the stock model cannot express the head.
    """
    name, head, kind = type(stock).__name__, model.head(spec.name), model.poolings.get(spec.name)
    places = StockHead.of(stock, pooled=head.pooled)
    known = inspect.signature(stock.forward).parameters
    given = {key: values for key, values in inputs.items() if key in known}
    if head.pooled and kind not in places.poolings():
        able = places.poolings()
        raise ModelError(
            f"its pooling is {kind!r}, and {name} knows {one_of(able)}",
            mend=f"train it with pooling {able[0]!r}, or share the model itself",
        )
    if model.interaction is not None:
        raise ModelError(f"the tasks hear each other (interaction {model.config.interaction!r})", mend=ITSELF)
    if spec.name in model.token_graphs:
        problem = "the task passes messages along the dependency graph of a text (token_graph)"
        raise ModelError(problem, mend=ITSELF)
    if spec.name in model.layer_mixes or spec.name in model.task_adapters:
        raise ModelError(f"the task reads the states of more or other layers than {name} does", mend=ITSELF)
    if head.pooled and "global_attention_mask" in known:
        raise ModelError(f"{name} gives its first token global attention, which this model does not", mend=ITSELF)
    expected, features = _logits(model, spec.name, inputs)
    bound = max(1.0, (features.norm(dim=-1).max() * head.output.weight.norm(dim=-1).max()).item())
    wanted = LinearMap(head.output.weight.detach(), head.output.bias.detach(), 2 * bound)
    real = inputs["attention_mask"].bool() if not head.pooled else slice(None)
    differences: list[float] = []
    for _ in places.write(wanted, given):
        with torch.inference_mode():
            found = stock(**given).logits
        differences.append((found - expected)[real].abs().max().item())
        if differences[-1] <= TOLERANCE * bound:
            return differences[-1]
    found = f"its logits differ by {min(differences):.1e}" if differences else f"{spec.num_labels} labels are too many"
    raise ModelError(f"{name} cannot express the head: {found}", mend=ITSELF)


def _logits(model: MultiTaskModel, task: str, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return a task's logits, and the features that its head reads."""
    seen: list[Tensor] = []
    handle = model.head(task).register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        with evaluation_mode(model), torch.inference_mode():
            logits = model(**inputs, tasks=[task]).logits
    finally:
        handle.remove()
    return logits[task], seen[0]
