"""Attention views: what their pages hold, and that it is what the model did."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, every_family, new_model
from tiny import build, tiny_data, tiny_folder, tiny_recipe
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, PreTrainedTokenizerFast

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.data.preparation import RecipeData
from hf_mtl.errors import ModelError, OutputError, SpecError
from hf_mtl.explain import attention_html
from hf_mtl.explain.attention import shown_tokens, token_names
from hf_mtl.explain.attention_html import AttentionView, bertviz_script, heat_map
from hf_mtl.explain.attention_weights import attention_weights
from hf_mtl.explain.explainer import Explainer
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.targets import Wanted

__all__ = ["tiny_data", "tiny_folder", "tiny_recipe"]

TEXT = "the film was good and old songs zq"
PAIR = {"text": "the film was good", "text_pair": "old songs"}
WORDS = ["the", "film", "was", "good", "bad", "old", "songs", "and", "a"]


def read_data(view: AttentionView) -> dict[str, Any]:
    """Return what a page embeds."""
    found = re.findall(r'<script type="application/json" id="attention-data">(.*?)</script>', view.html, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def weights_in(view: AttentionView, index: int = 0) -> np.ndarray:
    data = read_data(view)
    return np.array(data["weights"][index]) / data["scale"]


@pytest.fixture(scope="session")
def explainer(tiny_data: RecipeData) -> Explainer:
    return Explainer(build(tiny_data).eval(), tiny_data.tokenizer)


def tokenizer_of(words: list[str], length: int) -> PreTrainedTokenizerFast:
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **names)


@pytest.fixture(scope="session")
def large() -> Explainer:
    """Six layers of twelve heads, as MiniLM has, with random weights."""
    torch.manual_seed(0)
    encoder = BertConfig(
        vocab_size=40, hidden_size=96, num_hidden_layers=6, num_attention_heads=12, intermediate_size=16
    )
    tasks = [
        TaskSpec(name="topic", type="sequence_classification", labels=("a", "b")),
        TaskSpec(name="stars", type="regression"),
    ]
    model = MultiTaskModel(MultiTaskConfig(encoder_config=encoder, tasks=tasks)).eval()
    return Explainer(model, tokenizer_of(WORDS, 200))


def eager_pass(explainer: Explainer, text: Any) -> np.ndarray:
    """Return attention as transformers gives it."""
    model = explainer.subject.model
    model.set_attn_implementation("eager")
    try:
        row = (text["text"], text["text_pair"]) if isinstance(text, dict) else (text,)
        with torch.no_grad():
            output = model(**explainer.subject.tokenizer(*row, return_tensors="pt"), output_attentions=True)
    finally:
        model.set_attn_implementation("sdpa")
    return torch.cat(output.attentions).numpy()


@pytest.mark.parametrize("kind", ["head", "model", "neuron"])
def test_page_holds_the_attention_of_the_model_rounded_to_four_decimals(explainer: Explainer, kind: str) -> None:
    view = explainer.attention_view(PAIR, kind)
    expected = eager_pass(explainer, PAIR)
    found = weights_in(view)
    assert found.shape == expected.shape == (2, 2, 9, 9)
    assert np.abs(found - expected).max() <= 0.5e-4 + 1e-7
    np.testing.assert_array_equal(np.round(found, 4), found)


@pytest.mark.parametrize("kind", ["head", "model", "neuron"])
def test_page_asks_for_nothing_and_holds_its_data_once(explainer: Explainer, kind: str) -> None:
    view = explainer.attention_view(PAIR, kind)
    # jQuery makes links to `#` and to nothing, to see what the browser can do.
    assert re.findall(r"""<(?:script|link|img|iframe|style)\s+[^>]*(?:src|href)=""", view.html) == []
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?![#"'])|cdnjs|import\(|@import|url\((?!#)""", view.html) == []
    assert "default-src &#x27;none&#x27;" in view.html
    data = read_data(view)
    assert len(data["weights"]) == 1
    # Nothing else on the page has the size of data: the libraries, the page, and no more.
    libraries = sum(len(attention_html._asset(name)) for name in attention_html.LIBRARIES)
    rest = len(view.html) - libraries - len(json.dumps(data, separators=(",", ":"))) - len(bertviz_script(kind))
    assert rest < 20_000


def test_tags_in_a_text_stay_text(explainer: Explainer) -> None:
    text = "</script><script>a</script> <b>film</b> & 上海 مرحبا 😀"
    view = explainer.attention_view(text)
    data = read_data(view)
    assert data["tokens"].count("<") == 5
    assert {"上", "海", "😀"} <= set(data["tokens"])
    raw = view.html.split('id="attention-data">')[1].split("</script>")[0]
    assert "<" not in raw
    assert "\\u003c" in raw
    assert "<b>film" not in view.html
    assert "&lt;b&gt;film&lt;/b&gt; &amp; 上海 مرحبا 😀" in view.html


@pytest.mark.parametrize("kind", ["head", "model", "neuron"])
def test_hundred_tokens_of_six_layers_and_twelve_heads_stay_under_seven_megabytes(large: Explainer, kind: str) -> None:
    text = " ".join(WORDS * 20)
    view = large.attention_view(text, kind, max_tokens=100)
    assert weights_in(view).shape == (6, 12, 100, 100)
    assert len(view.html.encode()) < 7_000_000
    assert len(view._repr_html_().encode()) < 7_000_000


def test_a_task_beside_it_fits_too(large: Explainer) -> None:
    assert len(large.attention_view(" ".join(WORDS * 20), tasks="topic").html.encode()) < 7_000_000


@contextmanager
def scaled_head(encoder: nn.Module, layer: int, head: int, factor: float) -> Generator[None]:
    """Scale what a head passes on, which is the same as scaling its attention."""
    dense = encoder.encoder.layer[layer].attention.output.dense  # type: ignore[union-attr]
    size = encoder.config.hidden_size // encoder.config.num_attention_heads  # type: ignore[union-attr]

    def scale(module: nn.Module, args: Any) -> Any:
        states = args[0].clone()
        states[..., head * size : (head + 1) * size] *= factor
        return (states, *args[1:])

    handle = dense.register_forward_pre_hook(scale)  # type: ignore[union-attr]
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("task", ["topic", "stars", "moods", "tags"])
def test_weights_of_a_task_add_up_to_what_scaling_a_head_does(task: str) -> None:
    torch.manual_seed(0)
    encoder = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    tasks = [
        TaskSpec(name="topic", type="sequence_classification", labels=("a", "b", "c"), pooling="cls"),
        TaskSpec(name="stars", type="regression", pooling="cls"),
        TaskSpec(name="moods", type="multi_label_classification", labels=("a", "b"), pooling="cls"),
        TaskSpec(name="tags", type="token_classification", labels=("x", "y")),
    ]  # means over tokens are taken in float32, which is too coarse for differences
    model = MultiTaskModel(MultiTaskConfig(encoder_config=encoder, tasks=tasks)).double().eval()
    subject = Explainer(model, tokenizer_of(WORDS, 32)).subject
    text = subject.read(TEXT)
    found = attention_weights(subject, text, {task: Wanted()})
    measured = np.zeros((2, 2))
    step = 1e-4
    for layer, head in np.ndindex(2, 2):
        scores = []
        for factor in (1 + step, 1 - step):
            with scaled_head(model.encoder, layer, head, factor):
                forward = subject.forward(text, [task])
            scores.append(float(subject.score(text, found.targets[task], task, forward)))
        measured[layer, head] = (scores[0] - scores[1]) / (2 * step)
    sums = found.by_task[task].sum(axis=(2, 3))
    assert np.abs(found.by_task[task]).max() == pytest.approx(1.0)
    np.testing.assert_allclose(sums / np.abs(sums).max(), measured / np.abs(measured).max(), atol=1e-5)


def test_model_in_half_precision_is_drawn(tiny_data: RecipeData) -> None:
    half = Explainer(build(tiny_data).to(torch.bfloat16).eval(), tiny_data.tokenizer)
    whole = Explainer(build(tiny_data).eval(), tiny_data.tokenizer)
    found, expected = (weights_in(explainer.attention_view(TEXT, "neuron")) for explainer in (half, whole))
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert np.isfinite(weights_in(half.attention_view(TEXT, tasks="slots"), 1)).all()


def test_tasks_have_weights_of_their_own_and_share_the_attention(explainer: Explainer) -> None:
    view = explainer.attention_view(TEXT, tasks=["sentiment", "intent"], target={"sentiment": "neg"})
    names = [measure["name"] for measure in read_data(view)["measures"]]
    assert names[:3] == ["attention (shared by all tasks)", "sentiment: for neg", "sentiment: against neg"]
    assert len(names) == 5
    shared, sentiment, intent = (weights_in(view, index) for index in range(3))
    np.testing.assert_array_equal(shared, weights_in(explainer.attention_view(TEXT)))
    assert np.abs(sentiment - intent).max() > 0.1
    assert sentiment.min() < 0 < sentiment.max()
    opposite = explainer.attention_view(TEXT, tasks="sentiment", target="pos")
    np.testing.assert_allclose(weights_in(opposite, 1), -sentiment, atol=1e-4)  # two labels: the one against the other


def test_attention_is_set_back_also_after_an_error(explainer: Explainer) -> None:
    model = explainer.subject.model
    before = model.config._attn_implementation, model.encoder.config._attn_implementation, model.training
    explainer.attention_view(TEXT, tasks="sentiment")
    with pytest.raises(SpecError):
        explainer.attention_view(TEXT, tasks="sentiment", target="no such label")
    assert (model.config._attn_implementation, model.encoder.config._attn_implementation, model.training) == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_and_heads_can_be_chosen(explainer: Explainer) -> None:
    whole = weights_in(explainer.attention_view(TEXT))
    view = explainer.attention_view(TEXT, "model", layers=1, heads=[1])
    assert (read_data(view)["layers"], read_data(view)["heads"]) == ([1], [1])
    np.testing.assert_array_equal(weights_in(view), whole[1:, 1:])


def test_pair_knows_where_its_second_text_begins(explainer: Explainer) -> None:
    data = read_data(explainer.attention_view(PAIR))
    assert data["tokens"] == ["[CLS]", "the", "film", "was", "good", "[SEP]", "old", "songs", "[SEP]"]
    assert data["second"] == 6
    assert read_data(explainer.attention_view(TEXT))["second"] is None


def test_long_text_is_cut_with_a_notice(explainer: Explainer) -> None:
    text = " ".join(["the film was good"] * 10)
    view = explainer.attention_view(text, max_tokens=12)
    data = read_data(view)
    assert data["tokens"] == [
        "[CLS]",
        *["the", "film", "was", "good", "the", "film", "was", "good", "the", "film"],
        "[SEP]",
    ]
    assert view.notices == ("12 of 42 tokens are drawn; the model has read all of these.",)
    assert view.notices[0] in view.html
    whole = weights_in(explainer.attention_view(text))
    kept = [*range(11), 41]
    np.testing.assert_array_equal(weights_in(view), whole[..., kept, :][..., kept])


@pytest.mark.parametrize("tasks", [None, "sentiment", "slots"])
def test_text_longer_than_the_model_is_cut_to_it_with_a_notice(explainer: Explainer, tasks: str | None) -> None:
    view = explainer.attention_view(" ".join(["the film was zqx"] * 30), tasks=tasks)
    assert read_data(view)["tokens"][-1] == "[SEP]"
    assert 40 <= len(read_data(view)["tokens"]) <= 48
    assert "182 tokens, more than the 48 that the model reads" in view.notices[0]
    for row in (
        {"text": "old songs", "text_pair": "film " * 99},
        {"text": "film " * 99, "text_pair": "old songs"},
        {"text": "film " * 99, "text_pair": "old " * 99},
        {"tokens": ["film"] * 99},
        "q" * 90,
    ):
        view = explainer.attention_view(row, tasks=tasks)
        assert "more than the 48 that the model reads" in view.notices[0]
    assert read_data(explainer.attention_view({"text": "old songs", "text_pair": "film " * 99}))["second"] == 4


def test_of_a_pair_the_longer_text_gives_way() -> None:
    parts = np.array([-1, 0, 0, -1, 1, 1, 1, 1, 1, -1])
    assert shown_tokens(parts, 7) == [0, 1, 2, 3, 4, 5, 9]
    assert shown_tokens(parts, 99) == list(range(10))
    assert shown_tokens(parts[::-1], 5) == shown_tokens(parts[::-1], 5)
    for limit in range(1, 12):
        assert len(shown_tokens(parts, limit)) == min(limit, 10)


def test_tokens_are_named_as_the_text_writes_them(explainer: Explainer) -> None:
    subject = explainer.subject
    assert token_names(subject, subject.read("The FILM zq 上")) == ["[CLS]", "The", "FILM", "z", "##q", "上", "[SEP]"]


def test_queries_and_keys_are_those_of_bertviz_own_model(tiny_data: RecipeData) -> None:
    from bertviz.transformers_neuron_view import BertConfig as OldConfig
    from bertviz.transformers_neuron_view import BertModel as OldModel

    subject = Explainer(build(tiny_data).eval(), tiny_data.tokenizer).subject
    encoder = subject.model.encoder
    config = encoder.config.to_dict()
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
    old = OldModel(OldConfig(config["vocab_size"], **{name: config[name] for name in names})).eval()
    known = old.state_dict()
    old.load_state_dict({name: value for name, value in encoder.state_dict().items() if name in known}, strict=False)
    text = subject.read(PAIR)
    with torch.no_grad():
        layers = old(torch.from_numpy(text.input_ids)[None])[-1]
    found = attention_weights(subject, text, {}, neurons=True)
    for name, values in (("attn", found.attention), ("queries", found.queries), ("keys", found.keys)):
        expected = torch.cat([layer[name] for layer in layers]).numpy()
        np.testing.assert_allclose(values, expected, atol=2e-6)


FULL_ATTENTION = {name for name in FAMILIES if name not in ("fnet", "longformer")}
PLAIN_ATTENTION = {"bert", "roberta", "xlm-roberta", "camembert", "electra", "albert", "distilbert", "big_bird"}


@every_family
def test_every_architecture_is_drawn_or_refused_with_one_sentence(model_type: str) -> None:
    explainer = Explainer(new_model(model_type), tokenizer_of(WORDS, 32))
    text = "the film was good and old"

    def outcome(draw: Callable[[], AttentionView]) -> np.ndarray | str:
        try:
            return weights_in(draw())
        except ModelError as error:
            return str(error)

    plain = outcome(lambda: explainer.attention_view(text))
    by_task = outcome(lambda: explainer.attention_view(text, tasks=["topic", "tags"]))
    neuron = outcome(lambda: explainer.attention_view(text, "neuron"))
    if model_type in FULL_ATTENTION:
        assert isinstance(plain, np.ndarray)
        assert isinstance(by_task, np.ndarray)
        np.testing.assert_allclose(plain.sum(axis=-1), 1.0, atol=1e-3)
        np.testing.assert_array_equal(plain, by_task)
    else:
        assert "return no attention of every token to every token" in str(plain)
        assert plain == by_task
    if model_type in PLAIN_ATTENTION:
        np.testing.assert_array_equal(neuron, plain)
    else:
        assert "return no attention" in str(neuron) or "not the softmax of queries times keys alone" in str(neuron)


def test_pooling_of_a_task_is_shown_as_a_heat_map() -> None:
    model = new_model("bert")
    explainer = Explainer(model, tokenizer_of(WORDS, 32))
    view = explainer.attention_view("the film was good")
    with torch.no_grad():
        output = model(**explainer.subject.tokenizer("the film was good", return_tensors="pt"))
    expected = output.task_attentions["query"][0].tolist()
    table = view.html.split('<table class="heat">')[1].split("</table>")[0]
    assert re.findall(r"<th>(.*?)</th>", table) == ["", "query"]
    assert re.findall(r'<td dir="auto">(.*?)</td>', table) == ["[CLS]", "the", "film", "was", "good", "[SEP]"]
    assert re.findall(r">(\d\.\d{3})</td>", table) == [f"{value:.3f}" for value in expected]


def test_heat_map_escapes_names_and_takes_zeros() -> None:
    html = heat_map(["<i>"], ["<b>"], np.zeros((1, 1)))
    assert "<b>" not in html
    assert "<i>" not in html
    assert "0.000" in html


def test_notebook_shows_the_page_in_a_frame(explainer: Explainer, tmp_path: Path) -> None:
    view = explainer.attention_view(TEXT)
    frame = view._repr_html_()
    assert unescape(frame.split('srcdoc="')[1].split('"')[0]) == view.html
    assert view.save(tmp_path / "view.html").read_text(encoding="utf-8") == view.html
    assert len(repr(view)) < 100
    with pytest.raises(OutputError, match="nowhere"):
        view.save(tmp_path / "nowhere" / "view.html")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "matrix"}, "kind is 'matrix'; use one of 'head', 'model', 'neuron'"),
        ({"layers": [2]}, r"layers is \[2\]; use numbers from 0 to 1"),
        ({"layers": -1}, "layers is -1; use numbers from 0 to 1"),
        ({"heads": []}, r"heads is \[\]; use numbers from 0 to 1, at least one"),
        ({"heads": True}, "heads is True"),
        ({"max_tokens": 0}, "max_tokens is 0; give a number above 0"),
        ({"tasks": "topics"}, "topics"),
        ({"tasks": "sentiment", "target": "meh"}, "meh"),
        ({"kind": "neuron", "tasks": ["slots"]}, "tasks names 'slots', but queries and keys are those of all tasks"),
    ],
)
def test_bad_arguments_are_named(explainer: Explainer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        explainer.attention_view(TEXT, **options)


def test_bertviz_of_another_make_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "bertviz"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "head_view.js").write_text("draw()")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bertviz", raising=False)
    bertviz_script.cache_clear()
    try:
        with pytest.raises(ModelError, match="bertviz has no head view as of version"):
            bertviz_script("head")
    finally:
        bertviz_script.cache_clear()


def test_libraries_are_unchanged_and_have_their_licences() -> None:
    folder = Path(attention_html.__file__).parent / "assets"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for library in attention_html.LIBRARIES:
        name = library.split("-")[0]
        assert library in readme
        assert (folder / f"{name}.LICENSE.txt").stat().st_size > 500
        assert attention_html._asset(library) == (folder / library).read_text(encoding="utf-8")
