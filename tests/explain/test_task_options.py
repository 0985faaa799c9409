"""Explanations of models whose tasks read the encoder in ways of their own: each method answers, or says why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.encoding import encode, read_inputs
from hf_mtl.data.preparation import RecipeData
from hf_mtl.data.windows import reading_of
from hf_mtl.errors import ModelError
from hf_mtl.evaluation.prediction import collator_for, predict_batches
from hf_mtl.explain.explainer import Explainer
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.targets import Wanted
from hf_mtl.registry import EXPLAINERS

TEXT = "the old zebra was good and a story"
OPTIONS: dict[str, dict[str, Any]] = {
    "heads": {"pooling": "attention", "attention_heads": 4},
    "gate": {"pooling": "attention", "attention_gate": True},
    "mix": {"pooling": "attention", "layer_mix": True},
    "graph": {"pooling": "mean", "token_graph": True, "token_graph_layers": 2},
}
SHARING: dict[str, dict[str, Any]] = {
    "soft": {"sharing": "soft", "sharing_size": 4},
    "gat": {"interaction": "gat"},
}
REFUSED = (("gate", "attn_lrp"), ("gat", "attn_lrp"), ("graph", "attn_lrp"))


def explainer_of(data: RecipeData, option: str) -> Explainer:
    options = OPTIONS.get(option, {})
    tasks = [TaskSpec(name="sentiment", type="sequence_classification", labels=("neg", "pos"), **options)]
    tasks.append(TaskSpec(name="stars", type="regression", pooling="cls"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MultiTaskModel.from_encoder(data.recipe.encoder_path, tasks, architecture=SHARING.get(option)).eval()
        for name, parameter in model.named_parameters():
            if not name.startswith(("encoder.", "heads.")):
                parameter.data.normal_()
    return Explainer(model, data.tokenizer)


@pytest.mark.parametrize("option", [*OPTIONS, *SHARING])
@pytest.mark.parametrize("method", EXPLAINERS.files)
def test_every_method_answers_or_says_why_not(method: str, option: str, tiny_data: RecipeData) -> None:
    explainer = explainer_of(tiny_data, option)
    if (option, method) in REFUSED:
        with pytest.raises(ModelError, match="choose another method"):
            explainer.explain(TEXT, ["sentiment"], method=method)
        return
    found = np.array(explainer.explain(TEXT, ["sentiment"], method=method)["sentiment"].scores)
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0


@pytest.mark.parametrize("option", [option for option, method in REFUSED if method == "attn_lrp"])
def test_where_no_method_is_named_another_takes_the_place_of_what_is_refused(
    option: str, tiny_data: RecipeData
) -> None:
    explainer = explainer_of(tiny_data, option)
    found = explainer.explain(TEXT, ["sentiment"])["sentiment"]
    wanted = explainer.explain(TEXT, ["sentiment"], method="integrated_gradients")["sentiment"]
    assert found.scores == wanted.scores
    assert any("attn_lrp does not cover this model" in note for note in found.notes)


def logits_at(model: MultiTaskModel, tokenizer: Any, row: Any) -> np.ndarray:
    inputs = [read_inputs(row, heads="heads", split_words=True)]
    features = list(encode(tokenizer, inputs, reading_of(model.specs, tokenizer)).features())
    (predicted,) = predict_batches(model, collator_for(model, tokenizer), features, [np.array([0])])
    return predicted.logits["sentiment"]


@pytest.mark.parametrize("heads", [None, [0, 5, 1, 5, 1]])
def test_explanations_read_the_graph_of_a_text(heads: list[int] | None, tiny_data: RecipeData) -> None:
    explainer = explainer_of(tiny_data, "graph")
    model, subject = explainer.subject.model, explainer.subject
    words = ["the", "zebra", "was", "old", "music"]
    read = subject.read({"tokens": words, "heads": heads})
    forward = subject.forward(read, ["sentiment"])
    whole = logits_at(model, tiny_data.tokenizer, {"tokens": words, "heads": heads})
    np.testing.assert_allclose(forward.logits("sentiment").numpy(), whole, rtol=0, atol=1e-5)
    target = subject.target(read, forward, "sentiment", Wanted.read(None))
    removed = np.array([[False, True, False, False, True]])
    found = subject.measure(read, removed, {"sentiment": target})["sentiment"].logits[0]
    # Without "zebra" and "music" what "music" governed is governed by "the", which governs it.
    left = {"tokens": ["the", "was", "old"], "heads": None if heads is None else [0, 1, 1]}
    np.testing.assert_allclose(found, logits_at(model, tiny_data.tokenizer, left), rtol=0, atol=1e-5)
