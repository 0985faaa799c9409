"""Probes of layers: scikit-learn on the same states, and controls that know nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import DataError, SpecError
from hf_mtl.explain.labelled import draw_rows
from hf_mtl.explain.linear_heads import fit_head, layer_states, standardise
from hf_mtl.explain.probing import LayerProbe, layer_probe
from hf_mtl.model.modeling import MultiTaskModel

PENALTY = 0.05


@pytest.fixture(scope="module")
def probe(learnt: MultiTaskModel, tiny_data: RecipeData) -> LayerProbe:
    return layer_probe(learnt, tiny_data.tokenizer, tiny_data.train, tiny_data.validation, penalty=PENALTY)


def states_of(model: MultiTaskModel, data: RecipeData, task: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return mean-pooled states of each layer, standardised on the training rows, of training and validation rows."""
    found: list[list[np.ndarray]] = []
    for splits in (data.train, data.validation):
        rows = draw_rows(model, splits, [task], limit=500, seed=0)[task]
        pooled: list[np.ndarray] = []
        for batch in rows.batches(model, data.tokenizer, 7):
            with torch.no_grad():
                hidden = model(**batch.inputs, output_hidden_states=True).hidden_states
            mask = batch.inputs["attention_mask"][:, :, None]
            pooled.append(np.stack([((layer * mask).sum(1) / mask.sum(1)).numpy() for layer in hidden]))
        found.append(list(np.concatenate(pooled, axis=1)))
    train, validation = found
    scales = [(layer.mean(axis=0), layer.std(axis=0)) for layer in train]
    return tuple([(x - m) / s for x, (m, s) in zip(side, scales, strict=True)] for side in (train, validation))  # type: ignore[return-value]


def test_classification_equals_logistic_regression_of_scikit_learn(
    probe: LayerProbe, learnt: MultiTaskModel, tiny_data: RecipeData
) -> None:
    own = next(own for own in probe.tasks if own.task == "sentiment")
    train, validation = states_of(learnt, tiny_data, "sentiment")
    labels: list[list[str]] = []
    for splits in (tiny_data.train, tiny_data.validation):
        rows = draw_rows(learnt, splits, ["sentiment"], limit=500, seed=0)["sentiment"]
        gold = rows.split.gold(rows.task)
        labels.append([gold[row] for row in rows.rows])
    for layer, (x, y) in enumerate(zip(train, validation, strict=True)):
        reference = LogisticRegression(C=1 / (len(x) * PENALTY), max_iter=5000, tol=1e-8).fit(x, labels[0])
        assert own.scores[layer] == pytest.approx(accuracy_score(labels[1], reference.predict(y)), abs=1e-9)
    most = max(set(labels[0]), key=labels[0].count)
    assert own.majority == pytest.approx(labels[1].count(most) / len(labels[1]), abs=1e-9)


def test_a_fitted_head_is_the_regression_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 5))
    number = x @ generator.normal(size=5) + 3.0
    classes = (x[:, 0] + 0.5 * generator.normal(size=60) > 0).astype(int) + (x[:, 1] > 1)
    flags = np.stack([x[:, 0] > 0, x[:, 1] + generator.normal(size=60) > 0], axis=1).astype(float)
    features = torch.from_numpy(x)

    head = fit_head(TaskSpec(name="n", type="regression"), features, torch.from_numpy(number).float(), penalty=0.1)
    ridge = Ridge(alpha=0.1 * len(x) / 2).fit(x, number)
    assert head.output.weight.numpy()[0] == pytest.approx(ridge.coef_, abs=1e-3)
    assert float(head.output.bias) == pytest.approx(ridge.intercept_, abs=1e-3)

    spec = TaskSpec(name="c", type="sequence_classification", labels=("a", "b", "c"))
    head = fit_head(spec, features, torch.from_numpy(classes), penalty=0.1)
    reference = LogisticRegression(C=1 / (0.1 * len(x)), max_iter=5000, tol=1e-9).fit(x, classes)
    assert head.output.weight.numpy() == pytest.approx(reference.coef_, abs=2e-3)

    spec = TaskSpec(name="m", type="multi_label_classification", labels=("a", "b"))
    head = fit_head(spec, features, torch.from_numpy(flags).float(), penalty=0.1)
    for label in range(2):  # its loss is a mean over both labels
        reference = LogisticRegression(C=1 / (0.1 * 2 * len(x)), max_iter=5000, tol=1e-9).fit(x, flags[:, label])
        assert head.output.weight.numpy()[label] == pytest.approx(reference.coef_[0], abs=2e-3)


def test_tags_are_probed_token_by_token(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    rows = draw_rows(learnt, tiny_data.train, ["slots"], limit=9, seed=0)["slots"]
    everything = layer_states(learnt, tiny_data.tokenizer, rows, batch_size=4)
    labelled = layer_states(learnt, tiny_data.tokenizer, rows, only_labelled=True, batch_size=4)
    kept = (everything.labels != -100).squeeze(1)
    assert torch.equal(everything.layers[:, kept], labelled.layers)
    assert torch.equal(everything.labels[kept], labelled.labels)
    lengths = rows.split.lengths[rows.encoded]
    assert everything.starts.tolist() == np.cumsum([0, *lengths]).tolist()
    assert everything.layers.shape == (3, lengths.sum(), 1, 32)


def test_states_do_not_depend_on_the_batch(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    for task in ("sentiment", "slots"):
        rows = draw_rows(learnt, tiny_data.train, [task], limit=9, seed=0)[task]
        one, other = (layer_states(learnt, tiny_data.tokenizer, rows, batch_size=size) for size in (1, 9))
        assert torch.allclose(one.layers, other.layers, atol=1e-5)
    scaled = standardise(one.layers[1], one.layers[1])
    assert scaled.mean(dim=0).abs().max() < 1e-6
    assert (scaled.std(dim=0, correction=0) - 1).abs().max() < 1e-4


def test_probes_beat_their_controls_where_there_is_something_to_know(probe: LayerProbe) -> None:
    assert [own.task for own in probe.tasks] == ["sentiment", "intent", "slots", "grammar", "similarity", "moods"]
    for own in probe.tasks:
        assert len(own.scores) == len(own.shuffled) == 3
    for name in ("intent", "slots", "grammar"):
        own = next(one for one in probe.tasks if one.task == name)
        assert max(own.scores) > max(own.majority, *own.shuffled) + 0.2


def test_the_result_is_plain_json_and_a_picture(probe: LayerProbe) -> None:
    assert len(json.loads(json.dumps(probe.to_dict()))["tasks"]) == 6
    assert probe.table().header[3:6] == ("embeddings", "layer 1", "layer 2")
    assert [axes.get_title() for axes in probe.figure().axes][:2] == ["sentiment", "intent"]


def test_what_cannot_be_probed_is_refused(learnt: MultiTaskModel, tiny_data: RecipeData) -> None:
    given = (learnt, tiny_data.tokenizer)
    with pytest.raises(SpecError, match="penalty"):
        layer_probe(*given, tiny_data.train, tiny_data.validation, penalty=0.0)
    with pytest.raises(DataError, match="both"):
        layer_probe(*given, {"films": tiny_data.train["films"]}, {"posts": tiny_data.validation["posts"]})
    with pytest.raises(DataError, match="'slots'"):
        layer_probe(*given, {"films": tiny_data.train["films"]}, tiny_data.validation, ["slots"])
