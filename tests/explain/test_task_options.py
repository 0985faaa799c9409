"""Explanations of models whose tasks read the encoder in ways of their own: each method answers, or says why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import ModelError
from hf_mtl.explain.explainer import Explainer
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import EXPLAINERS

TEXT = "the old zebra was good and a story"
OPTIONS: dict[str, dict[str, Any]] = {
    "heads": {"pooling": "attention", "attention_heads": 4},
    "gate": {"pooling": "attention", "attention_gate": True},
    "mix": {"pooling": "attention", "layer_mix": True},
}
SHARING: dict[str, dict[str, Any]] = {
    "soft": {"sharing": "soft", "sharing_size": 4},
    "gat": {"interaction": "gat"},
}
REFUSED = {("gate", "attn_lrp"), ("gat", "attn_lrp")}


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
