"""Graphs for ONNX Runtime and OpenVINO: the logits of the model, its answers, and what they refuse."""

from __future__ import annotations

import copy
import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from families import FAMILIES, batch, new_model
from tiny import TASKS, build
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import MissingExtraError, ModelError, SpecError
from hf_mtl.evaluation.scoring import score
from hf_mtl.inference.bulk import predict_file
from hf_mtl.inference.export import choose_rows, export_model
from hf_mtl.inference.exported import ExportedModel
from hf_mtl.inference.exporters import openvino
from hf_mtl.inference.exporters._graph import check_difference
from hf_mtl.inference.exporters.base import Exported
from hf_mtl.inference.loading import load_model
from hf_mtl.inference.pipeline import MultiTaskPipeline
from hf_mtl.model.lora import add_lora
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.precision import best_precision

FORMATS = ("onnx", "openvino")
both_formats = pytest.mark.parametrize(
    "format", [pytest.param(name, marks=pytest.mark.slow) if name == "openvino" else name for name in FORMATS]
)
TEXTS: list[Any] = ["the film was great", "fly to new york", "a", "good " * 40, {"tokens": ["play", "bob"]},
                    {"text": "songs", "text_pair": "old music for me"}]  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A graph on disk, and what its export said."""

    folder: Path
    said: Exported

    def load(self, dtype: str | None = "fp32") -> Any:
        return load_model(self.folder, dtype=dtype)[0]


@pytest.fixture(scope="session")
def make(
    learnt: MultiTaskModel, tiny_data: RecipeData, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Made]:
    """Export the model of every task type, which has learnt a little; each kind of graph is made once."""
    made: dict[tuple[Any, ...], Made] = {}

    def export(format: str, quantize: str | None = None, *, fitted: bool = True) -> Made:
        key = (format, quantize, fitted)
        if key not in made:
            folder = tmp_path_factory.mktemp("graphs") / "graph"
            rows = choose_rows(tiny_data.train, count=64, seed=0) if quantize and fitted else ()
            options = {"format": format, "quantize": quantize, "calibration": rows}
            made[key] = Made(folder, export_model(learnt, tiny_data.tokenizer, folder, **options))
        return made[key]

    return export


def logits_of(model: Any, inputs: Mapping[str, Tensor], **options: Any) -> dict[str, Tensor]:
    with torch.inference_mode():
        return model(**inputs, **options).logits


def padded(rows: int, length: int, *, left: bool = False) -> dict[str, Tensor]:
    """Make rows of random lengths for the model of `tiny`, the second half of each a second text."""
    generator = torch.Generator().manual_seed(rows + length)
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    places = torch.arange(length) if not left else torch.arange(length - 1, -1, -1)
    mask = (places < lengths).long()
    ids = torch.randint(4, 60, (rows, length), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * (torch.arange(length) >= length // 2)}


def largest_difference(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], mask: Tensor, tasks: Any = None
) -> float:
    """Compare logits, of token-level tasks those of real tokens."""
    assert list(found) == list(tasks or wanted)
    differences: list[float] = []
    for task, values in found.items():
        assert values.shape == wanted[task].shape
        assert values.dtype == torch.float32
        real = mask.bool() if values.ndim == 3 else slice(None)
        differences.append((values - wanted[task])[real].abs().max().item())
    return max(differences)


def close(found: Any, wanted: Any, *, tolerance: float = 1e-5) -> bool:
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(close(found[k], wanted[k], tolerance=tolerance) for k in wanted)
    if isinstance(wanted, list):
        pairs = zip(found, wanted, strict=False)
        return len(found) == len(wanted) and all(close(a, b, tolerance=tolerance) for a, b in pairs)
    return found == pytest.approx(wanted, abs=tolerance)


# ---------------------------------------------------------------------- the same numbers


@pytest.mark.mostly_slow(fast=4)
@both_formats
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 48), (7, 1), (2, 3), (16, 31)])
@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
def test_logits_are_those_of_the_model_whatever_the_shape(
    format: str, rows: int, length: int, left: bool, make: Callable[..., Made], learnt: MultiTaskModel
) -> None:
    inputs = padded(rows, length, left=left)
    found, wanted = logits_of(make(format).load(), inputs), logits_of(learnt, inputs)
    assert largest_difference(found, wanted, inputs["attention_mask"], TASKS) < 1e-5


@both_formats
def test_mask_and_segments_may_be_left_out_and_tasks_chosen(
    format: str, make: Callable[..., Made], learnt: MultiTaskModel
) -> None:
    graph, inputs = make(format).load(), {"input_ids": padded(3, 9)["input_ids"]}
    mask, tasks = torch.ones_like(inputs["input_ids"]), ["intent", "grammar"]
    assert largest_difference(logits_of(graph, inputs), logits_of(learnt, inputs), mask) < 1e-5
    chosen = logits_of(graph, inputs, tasks=tasks[::-1])
    assert largest_difference(chosen, logits_of(learnt, inputs, tasks=tasks), mask, tasks) < 1e-5
    with pytest.raises(SpecError, match="the model has no task 'topic'"):
        graph(**inputs, tasks=["topic"])


def test_a_graph_has_one_encoder_a_named_output_per_task_and_dynamic_axes(
    make: Callable[..., Made], learnt: MultiTaskModel
) -> None:
    graph = onnx.load(make("onnx").folder / "model.onnx").graph
    assert [output.name for output in graph.output] == list(TASKS)
    assert [given.name for given in graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    for value in (*graph.input, *graph.output):
        batch_size, *rest = (axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)
        assert batch_size == "batch_size"
        assert rest == ["seq_len"] or rest[-1] == learnt.head(value.name).spec.num_labels
    for path in make("onnx").folder.iterdir():
        assert str(Path(onnx.__file__).parents[1]).encode() not in path.read_bytes()
    norms = sum(node.op_type == "LayerNormalization" for node in graph.node)
    assert norms == 1 + 2 * learnt.config.get_text_config().num_hidden_layers


@both_formats
def test_what_is_said_to_differ_differs_by_that_at_most(
    format: str, make: Callable[..., Made], learnt: MultiTaskModel
) -> None:
    said = make(format).said
    assert 0 < said.difference < 1e-5
    assert said.quantized_difference is None
    assert said.kind == {"onnx": "ONNX graph", "openvino": "OpenVINO graph"}[format]


@pytest.mark.skipif(best_precision("cpu") != "bf16", reason="this CPU has no instructions for bfloat16")
@pytest.mark.slow
def test_openvino_computes_in_bfloat16_unless_told_otherwise(make: Callable[..., Made], learnt: MultiTaskModel) -> None:
    inputs = padded(8, 30)
    wanted = logits_of(learnt, inputs)
    made = make("openvino")
    for dtype, least, most in (("fp32", 0.0, 1e-5), ("bf16", 1e-4, 0.2), (None, 1e-4, 0.2)):
        found = largest_difference(logits_of(made.load(dtype), inputs), wanted, inputs["attention_mask"])
        assert least < found < most


# ---------------------------------------------------------------------- the same answers


@both_formats
def test_the_pipeline_answers_as_with_the_model(
    format: str, make: Callable[..., Made], learnt: MultiTaskModel, tiny_data: RecipeData
) -> None:
    graph, tokenizer = load_model(make(format).folder, dtype="fp32")
    pipe = MultiTaskPipeline(model=graph, tokenizer=tokenizer)
    ours = MultiTaskPipeline(model=learnt, tokenizer=tiny_data.tokenizer)
    assert close(pipe(TEXTS), ours(TEXTS))
    assert close(pipe(TEXTS[0], tasks="slots"), ours(TEXTS[0], tasks="slots"))


@both_formats
def test_a_file_is_answered_as_with_the_model(
    format: str, make: Callable[..., Made], learnt: MultiTaskModel, tiny_data: RecipeData, tmp_path: Path
) -> None:
    rows = [row if isinstance(row, dict) else {"text": row} for row in TEXTS] * 20
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_data.tokenizer
    predict_file(make(format).load(), tokenizer, tmp_path / "rows.jsonl", tmp_path / "graph.jsonl")
    predict_file(learnt, tokenizer, tmp_path / "rows.jsonl", tmp_path / "model.jsonl", precision="fp32")
    found, wanted = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("graph.jsonl", "model.jsonl")
    )
    assert len(found) == len(rows)
    assert close(found, wanted)


@both_formats
def test_scores_and_losses_are_those_of_the_model(
    format: str, make: Callable[..., Made], learnt: MultiTaskModel, tiny_data: RecipeData
) -> None:
    found = score(make(format).load(), tiny_data.tokenizer, tiny_data.validation)
    wanted = score(learnt, tiny_data.tokenizer, tiny_data.validation)
    assert close(found.metrics, wanted.metrics)
    losses = [{name: task.loss for name, task in scores.tasks.items()} for scores in (found, wanted)]
    assert close(*losses)
    assert found.average() > 0.5


# ---------------------------------------------------------------------- int8

int8_graphs = pytest.mark.parametrize(
    ("format", "fitted"),
    [
        pytest.param("onnx", False, id="onnx", marks=pytest.mark.slow),
        pytest.param("openvino", True, id="openvino fitted", marks=pytest.mark.slow),
        pytest.param("openvino", False, id="openvino", marks=pytest.mark.slow),
    ],
)


@int8_graphs
def test_int8_is_smaller_says_how_much_it_differs_and_scores_nearly_as_well(
    format: str, fitted: bool, make: Callable[..., Made], learnt: MultiTaskModel, tiny_data: RecipeData
) -> None:
    made, exact = make(format, "int8", fitted=fitted), make(format)
    assert made.said.kind.endswith(" graph in int8")
    assert made.said.difference < 1e-5
    assert made.said.quantized_difference is not None
    assert 1e-4 < made.said.quantized_difference < 1.0
    weights = {"onnx": "model.onnx", "openvino": "openvino_model.bin"}[format]
    assert (made.folder / weights).stat().st_size < 0.7 * (exact.folder / weights).stat().st_size
    assert sorted(path.name for path in made.folder.iterdir()) == sorted(path.name for path in exact.folder.iterdir())
    found = score(made.load(None), tiny_data.tokenizer, tiny_data.validation)
    assert found.average() == pytest.approx(
        score(learnt, tiny_data.tokenizer, tiny_data.validation).average(), abs=0.05
    )


def test_rows_to_measure_on_are_drawn_by_the_seed_as_many_from_each_dataset(tiny_data: RecipeData) -> None:
    chosen = choose_rows(tiny_data.train, count=20, seed=3)
    texts = [row.text for row in chosen]
    assert len(chosen) == 5 * len(tiny_data.train) == 20
    assert [row.text for row in choose_rows(tiny_data.train, count=20, seed=3)] == texts
    assert [row.text for row in choose_rows(tiny_data.train, count=20, seed=4)] != texts
    for split, first in zip(tiny_data.train.values(), range(0, 20, 5), strict=True):
        assert set(texts[first : first + 5]) <= {row.text for row in split.inputs()}
    assert len(choose_rows(tiny_data.train, count=10**6)) == sum(map(len, tiny_data.train.values()))


# ---------------------------------------------------------------------- models of all kinds


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    names = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *(f"w{index}" for index in range(4, 40))]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=36, pad_token="[PAD]", unk_token="[UNK]"
    )


REFUSED = {
    ("longformer", "onnx"): "the architecture 'longformer' cannot be written as a graph",
    ("longformer", "openvino"): "the architecture 'longformer' cannot be written as a graph",
    ("fnet", "openvino"): "the graph's logits differ by",  # its Fourier transforms
}
"""Architectures that cannot be exported, and why not."""


@pytest.mark.parametrize(
    ("model_type", "format"),
    [pytest.param(name, format, marks=pytest.mark.slow) for name in FAMILIES for format in FORMATS],
)
def test_every_architecture_with_every_pooling_is_exported_or_an_error_says_why_not(
    model_type: str, format: str, word_tokenizer: Any, tmp_path: Path
) -> None:
    model = new_model(model_type)
    if (model_type, format) in REFUSED:
        with pytest.raises(ModelError, match=re.escape(REFUSED[model_type, format])) as error:
            export_model(model, word_tokenizer, tmp_path / "graph", format=format)
        assert "\n" not in str(error.value)
        assert list(tmp_path.iterdir()) == []
        return
    said = export_model(model, word_tokenizer, tmp_path / "graph", format=format)
    assert said.difference < 1e-5
    graph: Any = load_model(tmp_path / "graph", dtype="fp32")[0]
    for inputs in (batch(), batch(left=True)) if FAMILIES[model_type].pads_left else (batch(),):
        found, wanted = logits_of(graph, inputs), logits_of(model, inputs)
        assert largest_difference(found, wanted, inputs["attention_mask"]) < 1e-5


@pytest.mark.slow
def test_adapters_half_precision_and_chosen_tasks_leave_the_model_as_it_is(word_tokenizer: Any, tmp_path: Path) -> None:
    model = new_model("bert").to(torch.bfloat16)
    without = logits_of(model, batch())["tags"]
    add_lora(model, {"r": 2, "init_lora_weights": False})
    assert (logits_of(model, batch())["tags"] - without).abs().max() > 0.01
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    state = torch.random.get_rng_state()
    export_model(model.train(), word_tokenizer, tmp_path / "graph", format="onnx", tasks=["tags", "query"])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert (model.config.to_dict(), model.training, model.dtype) == (config, True, torch.bfloat16)
    graph: Any = load_model(tmp_path / "graph")[0]
    exact = copy.deepcopy(model).float().eval()
    found, wanted = logits_of(graph, batch()), logits_of(exact, batch(), tasks=["query", "tags"])
    assert largest_difference(found, wanted, batch()["attention_mask"], ["query", "tags"]) < 1e-5
    assert [spec.name for spec in graph.specs] == ["query", "tags"]


@pytest.mark.slow
def test_a_task_may_have_the_name_of_anything_inside_the_graph(word_tokenizer: Any, tmp_path: Path) -> None:
    names = ("mean", "linear", "add", "mul", "embedding", "val_1", "softmax", "select", "item")
    tasks = [TaskSpec(name=name, type="regression") for name in names]
    torch.manual_seed(0)
    config = FAMILIES["distilbert"].config("distilbert")
    model = MultiTaskModel(MultiTaskConfig(encoder_config=config, tasks=tasks)).eval()
    export_model(model, word_tokenizer, tmp_path / "graph", format="onnx")
    graph: Any = load_model(tmp_path / "graph")[0]
    found, wanted = logits_of(graph, batch()), logits_of(model, batch())
    assert largest_difference(found, wanted, batch()["attention_mask"], names) < 1e-5


def test_a_task_with_the_name_of_an_input_is_refused(word_tokenizer: Any, tmp_path: Path) -> None:
    tasks = [TaskSpec(name="input_ids", type="regression")]
    config = FAMILIES["distilbert"].config("distilbert")
    model = MultiTaskModel(MultiTaskConfig(encoder_config=config, tasks=tasks))
    with pytest.raises(SpecError, match=r"the task 'input_ids' has the name of an input of the graph; give it another"):
        export_model(model, word_tokenizer, tmp_path / "other", format="onnx")


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onnx", "quantize": "int4"}, "quantize is 'int4', which the format 'onnx' does not know; use one"),
        ({"quantize": "int8"}, "quantize is 'int8', which the format 'transformers' does not know; leave quantize out"),
        ({"format": "onnx", "tasks": ["topic"]}, "the model has no task 'topic'"),
    ],
)
def test_wrong_arguments_write_nothing(
    options: dict[str, Any], message: str, tiny_data: RecipeData, tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as error:
        export_model(build(tiny_data), tiny_data.tokenizer, tmp_path / "graph", **options)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [
        ("onnx", "onnx", "onnx"),
        ("onnx", "onnxscript", "onnx"),
        ("onnx", "onnxruntime", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("openvino", "onnxscript", "openvino"),
        ("openvino", "nncf", "openvino"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    format: str, package: str, extra: str, tiny_data: RecipeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails, as if it were not installed
    with pytest.raises(MissingExtraError) as error:
        export_model(build(tiny_data), tiny_data.tokenizer, tmp_path / "graph", format=format, quantize="int8")
    assert str(error.value) == f'the package {package!r} is not installed; pip install "hf-mtl[{extra}]"'
    assert list(tmp_path.iterdir()) == []


def test_loading_nncf_changes_no_logger_but_its_own() -> None:
    handler = logging.NullHandler()
    logging.getLogger("nncf").addHandler(handler)
    try:
        openvino._nncf()
        assert handler.level == logging.NOTSET
    finally:
        logging.getLogger("nncf").removeHandler(handler)
    assert logging.getLoggerClass() is logging.Logger
    assert not logging.getLogger("nncf").isEnabledFor(logging.WARNING)


def test_a_graph_that_nothing_can_run_names_the_extra(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"^model '.*': the package 'onnxruntime' is not installed; pip inst"):
        load_model(made.folder)


@pytest.mark.parametrize("found", [1.01e-4, 3.0, float("nan")])
def test_a_graph_whose_logits_differ_is_refused(found: float) -> None:
    check_difference(1e-4)
    with pytest.raises(ModelError, match=r"the graph's logits differ by .* from the model's; answer with the model"):
        check_difference(found)


@both_formats
def test_a_damaged_or_missing_graph_is_one_readable_line(
    format: str, make: Callable[..., Made], tmp_path: Path
) -> None:
    folder = make(format).folder
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    graph = tmp_path / {"onnx": "model.onnx", "openvino": "openvino_model.xml"}[format]
    graph.write_bytes(graph.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"^model '.*', (open|)?.*: (ONNX Runtime|OpenVINO) cannot load it") as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)
    graph.unlink()
    with pytest.raises(ModelError, match=r"^model '.*': its graph is missing .*; export it again"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("onnx", {"dtype": "bf16"}, "dtype is 'bf16', and ONNX Runtime computes in fp32; leave dtype out"),
        ("openvino", {"dtype": "fp16"}, "dtype is 'fp16', which OpenVINO does not compute in here; use 'fp32' or"),
        ("onnx", {"dtype": "int8"}, "dtype is 'int8'; use one of"),
        ("onnx", {"device": "cuda"}, "device is 'cuda'; use 'cpu': exported graphs run there"),
    ],
)
def test_what_a_graph_cannot_compute_in_is_refused(
    format: str, options: dict[str, str], message: str, make: Callable[..., Made]
) -> None:
    with pytest.raises(SpecError) as error:
        load_model(make(format).folder, **options)
    assert message in str(error.value)


def test_a_graph_is_no_model_to_train_or_to_look_into(make: Callable[..., Made], tmp_path: Path) -> None:
    graph = make("onnx").load()
    assert isinstance(graph, ExportedModel)
    assert graph.train() is graph.eval() is graph.to("cuda") is graph
    assert not graph.training
    for name in ("encoder", "state_dict", "save_pretrained"):
        assert not hasattr(graph, name)
        with pytest.raises(ModelError, match=f"an exported graph has no '{name}'; load the model that it was exported"):
            getattr(graph, name)
    with pytest.raises(ModelError, match="it is an exported graph; export the model that it was made from"):
        export_model(graph, None, tmp_path / "again", format="onnx")
    config = json.loads((make("onnx").folder / "config.json").read_text())
    assert config["exported"] == {"format": "onnx", "quantize": None}
    assert "auto_map" not in config
