"""The tiny world of `tiny.py`, and a model that has learnt some of it."""

from __future__ import annotations

import pytest
import torch
from tiny import build, tiny_data, tiny_folder, tiny_recipe  # noqa: F401 (fixtures)

from hf_mtl.data.preparation import RecipeData
from hf_mtl.evaluation.prediction import collator_for
from hf_mtl.model.modeling import MultiTaskModel


@pytest.fixture(scope="session")
def learnt(tiny_data: RecipeData) -> MultiTaskModel:  # noqa: F811
    """A model whose answers differ from row to row, and are right more often than not."""
    model = build(tiny_data).train()
    collator = collator_for(model, tiny_data.tokenizer)
    batches = [collator([split.features[row] for row in range(len(split))]) for split in tiny_data.train.values()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(25):
            for batch in batches:
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    return model.eval()
