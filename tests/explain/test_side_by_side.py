"""Tasks side by side: their numbers, their agreement, the attention they share, and what they contradict."""

from __future__ import annotations

import copy
import json
from html import escape
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from learnt import learnt
from rich.console import Console
from scipy.stats import spearmanr
from tiny import tiny_data, tiny_folder, tiny_recipe

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.errors import DataError
from hf_mtl.explain.effects import Intervention
from hf_mtl.explain.explainer import Explainer
from hf_mtl.explain.side_by_side import SideBySide
from hf_mtl.model.modeling import MultiTaskModel

__all__ = ["tiny_data", "tiny_folder", "tiny_recipe"]

TEXT = "the film was dull and awful with great music <b>"
TASKS = ["sentiment", "similarity", "moods"]


@pytest.fixture(scope="session")
def explainer() -> Explainer:
    return learnt()


@pytest.fixture(scope="session")
def beside(explainer: Explainer) -> SideBySide:
    return explainer.compare(TEXT, TASKS, method="occlusion")


def opposed(explainer: Explainer) -> Explainer:
    """A model with a task that answers the opposite of `sentiment`, with the same labels."""
    model = copy.deepcopy(explainer.subject.model)
    spec = explainer.subject.spec("sentiment")
    model.add_task(TaskSpec(name="mirror", type=spec.type, labels=spec.labels, pooling=spec.pooling))
    for name, parameter in model.head("mirror").named_parameters():
        parameter.data = -dict(model.head("sentiment").named_parameters())[name].data
    return Explainer(model.eval(), explainer.subject.tokenizer)


def test_scores_are_those_of_explain(explainer: Explainer, beside: SideBySide) -> None:
    alone = explainer.explain(TEXT, TASKS, method="occlusion")
    assert beside.explanations == alone
    assert beside.tasks == tuple(TASKS)
    assert beside.words == alone["moods"].words


def test_agreement_is_spearmans_rank_correlation(beside: SideBySide) -> None:
    for row, one in enumerate(TASKS):
        for column, other in enumerate(TASKS):
            expected = spearmanr(beside.explanations[one].scores, beside.explanations[other].scores)
            assert beside.agreement[row, column] == pytest.approx(expected.statistic)
            if row != column:
                assert beside.p_values[row, column] == pytest.approx(expected.pvalue)


def test_sizes_are_compared_where_scores_have_no_sign(explainer: Explainer) -> None:
    beside = explainer.compare(TEXT, TASKS, method="gradient_norm")
    sizes = [np.abs(explanation.scores) for explanation in beside.explanations.values()]
    assert beside.agreement[0, 1] == pytest.approx(spearmanr(sizes[0], sizes[1]).statistic)


def test_correlations_that_are_not_defined_are_none(explainer: Explainer) -> None:
    beside = explainer.compare("good", TASKS, method="occlusion")
    assert np.isnan(beside.agreement[0, 1])
    assert beside.to_dict()["agreement"][0][1] is None
    assert "nan" not in beside._repr_html_()
    assert explainer.compare("", TASKS, method="occlusion").words == ()


def test_attention_is_what_words_receive_in_the_last_layer_of_the_encoder(
    explainer: Explainer, beside: SideBySide
) -> None:
    model, text = explainer.subject.model, explainer.subject.read(TEXT)
    encoder = copy.deepcopy(model.encoder)
    encoder.set_attn_implementation("eager")
    types = torch.from_numpy(text.token_type_ids)[None] if text.token_type_ids is not None else None
    with torch.no_grad():
        last = encoder(torch.from_numpy(text.input_ids)[None], token_type_ids=types, output_attentions=True).attentions[
            -1
        ]
    received = last[0].mean(dim=0).mean(dim=0).numpy()  # over heads, then over tokens that attend
    expected = [received[text.unit_of_token == unit].sum() for unit in range(len(text.units))]
    assert beside.attention == pytest.approx(expected, abs=1e-6)
    assert sum(beside.attention or ()) < 1.0
    assert model.encoder.config._attn_implementation == "sdpa"  # as it was
    assert "cannot differ between them" in beside._repr_html_()


def small(explainer: Explainer, model_type: str, **options: Any) -> Explainer:
    tokenizer = explainer.subject.tokenizer
    config = FAMILIES[model_type].config(model_type)
    config.vocab_size = len(tokenizer)
    tasks = [TaskSpec(name=name, type="sequence_classification", labels=("a", "b"), **options) for name in ("x", "y")]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Explainer(MultiTaskModel(MultiTaskConfig(encoder_config=config, tasks=tasks)).eval(), tokenizer)


def test_an_encoder_without_attention_says_so(explainer: Explainer) -> None:
    beside = small(explainer, "fnet", pooling="attention").compare(TEXT, method="occlusion")
    assert beside.attention is None
    assert beside.attention_note.startswith("No attention is shown: ")
    assert escape(beside.attention_note) in beside._repr_html_()
    assert set(beside.task_attention) == {"x", "y"}


def test_attention_pooling_is_shown_task_by_task(explainer: Explainer) -> None:
    other = small(explainer, "bert", pooling="attention")
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for name in ("x", "y"):
            query = other.subject.model.attention_poolings[name].query
            query.copy_(3.0 * torch.randn(query.shape, generator=generator))
    beside = other.compare("the film was good", method="occlusion")
    text = other.subject.read("the film was good")
    weights = other.subject.forward(text, ["x", "y"]).output.task_attentions or {}
    for task in ("x", "y"):
        assert beside.task_attention[task] == pytest.approx(text.sum_over_units(weights[task][0].numpy()), abs=1e-6)
        assert f"{task}: pooling" in beside._repr_html_()
    assert beside.task_attention["x"] != pytest.approx(beside.task_attention["y"], abs=1e-3)
    assert len(beside.columns()) == 2 + 2 + 1


def test_tasks_that_contradict_each_other_are_said_to(explainer: Explainer) -> None:
    mirror = opposed(explainer)
    same = mirror.compare(
        "a film was dull", ["sentiment", "mirror"], method="occlusion", target={"sentiment": "neg", "mirror": "neg"}
    )
    assert same.agreement[0, 1] == pytest.approx(-1.0)
    assert same.contradictions
    for found in same.contradictions:
        assert {found.supports, found.opposes} == {"sentiment", "mirror"}
        assert found.word == same.words[found.unit]
        for effect, task in zip(found.effects, [found.supports] * 2 + [found.opposes] * 2, strict=True):
            again = Intervention(same.explanations[task]).effects([[found.unit]], effect.how)[0]
            assert effect.after == pytest.approx(again.after, abs=1e-6)
            assert (effect.change < 0) == (task == found.supports)
    said = " ".join(same.sentences)
    assert "have the same labels and contradict each other" in said
    assert "is taken in opposite ways" in said
    assert "rank the words in opposite ways" in said
    assert all(escape(sentence) in same._repr_html_() for sentence in same.sentences)


def test_tasks_that_agree_are_not_said_to_contradict(explainer: Explainer) -> None:
    model = copy.deepcopy(explainer.subject.model)
    spec = explainer.subject.spec("sentiment")
    model.add_task(TaskSpec(name="twin", type=spec.type, labels=spec.labels, pooling=spec.pooling))
    model.head("twin").load_state_dict(model.head("sentiment").state_dict())
    twins = Explainer(model.eval(), explainer.subject.tokenizer).compare(
        TEXT, ["sentiment", "twin"], method="occlusion"
    )
    assert twins.agreement[0, 1] == pytest.approx(1.0)
    assert (twins.sentences, twins.contradictions) == ((), ())


def test_the_numbers_stand_in_every_picture(beside: SideBySide) -> None:
    html = beside._repr_html_()
    assert "&lt;" in html
    assert "<b>" not in html
    console = Console(width=200)
    with console.capture() as captured:
        console.print(beside.table())
    figure = beside.figure()
    drawn = {text.get_text() for text in figure.axes[0].texts}
    for explanation in beside.explanations.values():
        for score in explanation.scores:
            assert f"{score:+.2f}" in html
            assert f"{score:+.2f}" in captured.get()
            assert f"{score:+.2f}" in drawn
    figure.canvas.draw()


def test_all_is_plain_json(beside: SideBySide) -> None:
    assert json.loads(json.dumps(beside.to_dict())) == beside.to_dict()


def test_several_texts_are_refused(explainer: Explainer) -> None:
    with pytest.raises(DataError, match="there are several texts"):
        explainer.compare(["a", "b"], TASKS)
