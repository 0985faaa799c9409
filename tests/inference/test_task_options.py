"""Graphs of models whose tasks read the encoder in ways of their own, share softly and hear each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build

from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import ModelError
from hf_mtl.inference.export import export_model
from hf_mtl.inference.loading import load_model
from hf_mtl.model.modeling import MultiTaskModel

READING: dict[str, Any] = {"pooling": "attention", "attention_heads": 2, "attention_gate": True, "layer_mix": True}


def model_of(data: RecipeData, reading: dict[str, Any], **architecture: Any) -> MultiTaskModel:
    tasks = tuple(replace(spec, **reading) if spec.name == "sentiment" else spec for spec in data.tasks)
    model = build(replace(data, tasks=tasks), architecture=architecture).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if not name.startswith(("encoder.", "heads.")):
            parameter.data.normal_(std=0.5, generator=generator)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_graph_has_the_logits_of_the_model(format: str, tiny_data: RecipeData, tmp_path: Path) -> None:
    model = model_of(tiny_data, READING, sharing="soft", sharing_size=4, interaction="gat")
    said = export_model(model, tiny_data.tokenizer, tmp_path / "graph", format=format)
    assert said.difference < 1e-4
    inputs = tiny_data.tokenizer(["the film was good", "fly to oslo"], padding=True, return_tensors="pt")
    graph: Any = load_model(tmp_path / "graph", dtype="fp32")[0]
    with torch.inference_mode():
        expected, found = model(**inputs).logits, graph(**inputs).logits
    for name, logits in expected.items():
        real = inputs["attention_mask"].bool() if logits.dim() == 3 else slice(None)
        torch.testing.assert_close(found[name][real], logits[real], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("reading", "architecture", "message"),
    [
        ({"layer_mix": True, "pooling": "cls"}, {}, "reads the states of more or other layers"),
        ({}, {"sharing": "soft"}, "reads the states of more or other layers"),
        ({}, {"interaction": "gat"}, "the tasks hear each other"),
        ({"pooling": "attention", "attention_heads": 2}, {}, "its pooling is 'attention'"),
    ],
)
def test_a_stock_model_is_refused(
    reading: dict[str, Any], architecture: dict[str, Any], message: str, tiny_data: RecipeData, tmp_path: Path
) -> None:
    model = model_of(tiny_data, {"pooling": "cls", **reading}, **architecture)
    with pytest.raises(ModelError, match=message):
        export_model(model, tiny_data.tokenizer, tmp_path / "stock", format="transformers", tasks=["sentiment"])
