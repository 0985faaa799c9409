"""Stock models of transformers made of single tasks: the same logits, the same answers, nothing of this package."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import BERT_SIZES, DECODER_SIZES, FAMILIES, PAD, batch, every_family
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast, pipeline
from transformers.configuration_utils import PreTrainedConfig

from hf_mtl.configuration import POOLING_KINDS, MultiTaskConfig, TaskSpec
from hf_mtl.data.preparation import load_tokenizer
from hf_mtl.errors import HfMtlError, ModelError, OutputError, SpecError
from hf_mtl.inference.export import export_model
from hf_mtl.inference.pipeline import MultiTaskPipeline
from hf_mtl.model.heads.sequence_classification import SequenceClassificationHead
from hf_mtl.model.lora import add_lora
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import EXPORTERS, HEADS

SEQUENCE, TOKENS = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
LABELS = ("world", "sport", "art")

KNOWN_POOLINGS = {
    **dict.fromkeys(FAMILIES, ("cls",)),
    "modernbert": ("cls", "mean"),
    "gpt2": ("last",),
    "longformer": (),
    "t5": (),
    "mt5": (),
    # Heads with a bias; without one these know "last".
    "qwen2": (),
    "llama": (),
}
"""What the stock class for sequences of each architecture can express."""


def spec_of(task_type: str, **options: Any) -> TaskSpec:
    labels = {"labels": LABELS} if task_type != "regression" else {}
    return TaskSpec(name="task", type=task_type, **labels, **options)


def family_model(model_type: str | PreTrainedConfig, spec: TaskSpec, *, seed: int = 0) -> MultiTaskModel:
    """Make a model of one task whose head has weights and biases as training leaves them."""
    torch.manual_seed(seed)
    encoder = FAMILIES[model_type].config(model_type) if isinstance(model_type, str) else model_type
    model = MultiTaskModel(MultiTaskConfig(encoder_config=encoder, tasks=[spec])).eval()
    for parameter in model.heads.parameters():
        parameter.data.normal_(std=0.5)
    return model


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 40 words, `w4` to `w39`, for the families' vocabulary; it adds no special tokens."""
    names = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", *(f"w{index}" for index in range(4, 40))]
    vocabulary = {name: index for index, name in enumerate(names)}
    assert vocabulary["[PAD]"] == PAD
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=36, **special)


def stock_logits(folder: Path, auto_class: str, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    stock, info = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        return stock(**inputs).logits


def head_logits(model: MultiTaskModel, task: str, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits is not None
    return logits[task]


def assert_equal_logits(found: Tensor, expected: Tensor) -> None:
    """Check to 1e-6, of numbers above 1 to 1e-6 of them."""
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


# ---------------------------------------------------------------------- every architecture


@pytest.mark.parametrize("kind", POOLING_KINDS)
@every_family
def test_a_stock_model_gives_the_logits_of_the_head_or_an_error_says_why_not(
    model_type: str, kind: Any, word_tokenizer: Any, tmp_path: Path
) -> None:
    model = family_model(model_type, spec_of("sequence_classification", pooling=kind))
    folder = tmp_path / "stock"
    if kind not in KNOWN_POOLINGS[model_type]:
        with pytest.raises(ModelError, match=r"^task 'task': .*ForSequenceClassification .*; (train|share)"):
            export_model(model, word_tokenizer, folder)
        assert list(tmp_path.iterdir()) == []
        return
    done = export_model(model, word_tokenizer, folder)
    assert done.kind == json.loads((folder / "config.json").read_text())["architectures"][0]
    assert done.difference < 1e-5
    assert_equal_logits(stock_logits(folder, SEQUENCE, batch()), head_logits(model, "task", batch()))


@every_family
def test_a_stock_model_tags_every_token_as_the_head_does(model_type: str, word_tokenizer: Any, tmp_path: Path) -> None:
    model = family_model(model_type, spec_of("token_classification"))
    done = export_model(model, word_tokenizer, tmp_path / "stock")
    assert done.kind.endswith("ForTokenClassification")
    real = batch()["attention_mask"].bool()
    found = stock_logits(tmp_path / "stock", TOKENS, batch())[real]
    assert_equal_logits(found, head_logits(model, "task", batch())[real])


@every_family
def test_stock_pipelines_answer_as_the_multi_task_pipeline(
    model_type: str, word_tokenizer: Any, tmp_path: Path
) -> None:
    texts = ["w5 w9 w12 w4", "w31", "w7 w7 w8 w30 w21 w22 w6 w39"]
    for kind in KNOWN_POOLINGS[model_type]:
        model = family_model(model_type, spec_of("sequence_classification", pooling=kind))
        export_model(model, word_tokenizer, tmp_path / kind)
        ours = MultiTaskPipeline(model=model, tokenizer=copy.deepcopy(word_tokenizer))
        stock = pipeline("text-classification", model=str(tmp_path / kind), top_k=None)
        for text, found in zip(texts, stock(texts), strict=True):
            scores = {item["label"]: item["score"] for item in found}
            assert scores == pytest.approx(ours(text)["task"]["scores"], abs=1e-6, rel=1e-6)


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "deberta": ("cls", BERT_SIZES),
    "convbert": ("cls", {**BERT_SIZES, "embedding_size": 16, "head_ratio": 1}),
    "mobilebert": ("cls", {**BERT_SIZES, "embedding_size": 16, "use_bottleneck": False, "true_hidden_size": 16}),
    "gpt_neox": ("last", DECODER_SIZES),
    "opt": ("last", {"vocab_size": 40, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "dropout": 0.0,
                     "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40}),
}  # fmt: skip


@pytest.mark.parametrize("model_type", OTHERS)
def test_architectures_that_nobody_listed_are_tried_out(model_type: str, word_tokenizer: Any, tmp_path: Path) -> None:
    kind, settings = OTHERS[model_type]
    spec = spec_of("sequence_classification", pooling=kind)
    model = family_model(AutoConfig.for_model(model_type, **settings), spec)
    export_model(model, word_tokenizer, tmp_path / "stock")
    assert_equal_logits(stock_logits(tmp_path / "stock", SEQUENCE, batch()), head_logits(model, "task", batch()))


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("xlnet", "the layers of XLNetForSequenceClassification are not known"),
        ("canine", "CanineForSequenceClassification cannot express the head: its logits differ by"),
    ],
)
def test_a_class_that_cannot_be_understood_is_refused(
    model_type: str, message: str, word_tokenizer: Any, tmp_path: Path
) -> None:
    settings = {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32} if model_type == "xlnet" else BERT_SIZES
    config = AutoConfig.for_model(model_type, **{**settings, "vocab_size": 40})
    model = family_model(config, spec_of("sequence_classification", pooling="cls"))
    with pytest.raises(ModelError, match=message):
        export_model(model, word_tokenizer, tmp_path / "stock")


def test_a_decoder_without_biases_holds_a_head_without_one(word_tokenizer: Any, tmp_path: Path) -> None:
    for model_type in ("qwen2", "llama"):
        model = family_model(model_type, spec_of("sequence_classification"))
        with pytest.raises(ModelError, match="has no bias for its logits, and its encoder none for its states"):
            export_model(model, word_tokenizer, tmp_path / model_type)
        model.head("task").output.bias.data.zero_()
        export_model(model, word_tokenizer, tmp_path / model_type)
        found = stock_logits(tmp_path / model_type, SEQUENCE, batch())
        assert_equal_logits(found, head_logits(model, "task", batch()))


def test_long_texts_and_padding_make_no_difference(word_tokenizer: Any, tmp_path: Path) -> None:
    lengths = torch.tensor([36, 1, 20, 7, 36, 3, 11, 29])
    mask = (torch.arange(36) < lengths[:, None]).long()
    ids = torch.randint(4, 40, mask.shape, generator=torch.Generator().manual_seed(3))
    inputs = {"input_ids": torch.where(mask == 1, ids, PAD), "attention_mask": mask}
    for model_type, kind in (("bert", "cls"), ("modernbert", "mean"), ("gpt2", "last")):
        model = family_model(model_type, spec_of("regression", pooling=kind))
        export_model(model, word_tokenizer, tmp_path / model_type)
        found = stock_logits(tmp_path / model_type, SEQUENCE, inputs)
        assert_equal_logits(found, head_logits(model, "task", inputs))


@pytest.mark.parametrize("size", [0.01, 30.0])
@pytest.mark.parametrize("model_type", ["bert", "distilbert", "modernbert", "gpt2"])
def test_small_and_large_logits_are_as_exact(model_type: str, size: float, word_tokenizer: Any, tmp_path: Path) -> None:
    model = family_model(model_type, spec_of("regression", pooling="last" if model_type == "gpt2" else "cls"))
    for parameter in model.heads.parameters():
        parameter.data *= size
    export_model(model, word_tokenizer, tmp_path / "stock")
    found, expected = stock_logits(tmp_path / "stock", SEQUENCE, batch()), head_logits(model, "task", batch())
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=1e-6 * scale, rtol=0)


# ---------------------------------------------------------------------- precision


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "modernbert", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_exported_as_exactly(
    dtype: torch.dtype, model_type: str, word_tokenizer: Any, tmp_path: Path
) -> None:
    spec = spec_of("sequence_classification", pooling="last" if model_type == "gpt2" else "cls")
    model = family_model(model_type, spec).to(dtype)
    export_model(model, word_tokenizer, tmp_path / "stock")
    assert model.dtype == dtype
    expected = head_logits(copy.deepcopy(model).float(), "task", batch())
    assert_equal_logits(stock_logits(tmp_path / "stock", SEQUENCE, batch(), dtype=torch.float32), expected)


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "modernbert", "gpt2"])
def test_a_stock_model_that_is_loaded_in_half_precision_still_answers(
    model_type: str, word_tokenizer: Any, tmp_path: Path
) -> None:
    spec = spec_of("sequence_classification", pooling="last" if model_type == "gpt2" else "cls")
    model = family_model(model_type, spec)
    export_model(model, word_tokenizer, tmp_path / "stock")
    expected = head_logits(model, "task", batch())
    for dtype, tolerance in ((torch.float16, 0.02), (torch.bfloat16, 0.1)):
        found = stock_logits(tmp_path / "stock", SEQUENCE, batch(), dtype=dtype).float()
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_a_precision_that_holds_all_weights_is_kept(word_tokenizer: Any, tmp_path: Path) -> None:
    for model_type, kept in (("distilbert", True), ("bert", False)):
        model = family_model(model_type, spec_of("sequence_classification", pooling="cls")).to(torch.bfloat16)
        export_model(model, word_tokenizer, tmp_path / model_type)
        dtype = json.loads((tmp_path / model_type / "config.json").read_text())["dtype"]
        assert dtype == ("bfloat16" if kept else "float32")


# ---------------------------------------------------------------------- every task type


@pytest.fixture
def first_token(model: MultiTaskModel) -> MultiTaskModel:
    """The model of every task type, all of its tasks pooled by the first token."""
    model = copy.deepcopy(model)
    model.poolings = dict.fromkeys(model.poolings, "cls")
    model.config.task_specs = [replace(spec, pooling="cls") for spec in model.specs]
    model.specs = model.config.task_specs
    return model


TEXTS = [
    "the film was a lovely story with old songs",
    "fly to new york and oslo for me",
    "play rome, bob! not dull music",
    "unknownword film",
    "bad",
]


def by_label(found: list[dict[str, Any]]) -> dict[str, float]:
    return {item["label"]: item["score"] for item in found}


def test_the_pipeline_for_texts_answers_as_ours(first_token: MultiTaskModel, tokenizer: Any, tmp_path: Path) -> None:
    ours = MultiTaskPipeline(model=first_token, tokenizer=tokenizer)
    answers = ours(TEXTS)
    for task, scores in (("sentiment", True), ("intent", True), ("moods", True), ("similarity", False)):
        export_model(first_token, tokenizer, tmp_path / task, tasks=[task])
        stock = pipeline("text-classification", model=str(tmp_path / task))
        for row, found in enumerate(stock(TEXTS, top_k=None)):
            answer = answers[row][task]
            expected = answer["scores"] if scores else {task: answer["value"]}
            assert by_label(found) == pytest.approx(expected, abs=1e-6, rel=1e-6)
    best = pipeline("text-classification", model=str(tmp_path / "sentiment"))(TEXTS)
    assert [item["label"] for item in best] == [answer["sentiment"]["label"] for answer in answers]


def test_the_pipeline_for_pairs_answers_as_ours(first_token: MultiTaskModel, tokenizer: Any, tmp_path: Path) -> None:
    pairs: list[Any] = [{"text": "the film was dull", "text_pair": "a story"}, {"text": "play", "text_pair": "fly to"}]
    export_model(first_token, tokenizer, tmp_path / "stock", tasks=["similarity"])
    found = pipeline("text-classification", model=str(tmp_path / "stock"))(pairs)
    answers = MultiTaskPipeline(model=first_token, tokenizer=tokenizer)(pairs)
    expected = [answer["similarity"]["value"] for answer in answers]
    assert [item["score"] for item in found] == pytest.approx(expected, abs=1e-6, rel=1e-6)


def test_the_pipeline_for_tokens_finds_the_spans_that_ours_finds(
    model: MultiTaskModel, tokenizer: Any, tmp_path: Path
) -> None:
    ours = MultiTaskPipeline(model=model, tokenizer=tokenizer)
    export_model(model, tokenizer, tmp_path / "stock", tasks=["slots"])
    stock = pipeline("token-classification", model=str(tmp_path / "stock"), aggregation_strategy="first")
    spans = 0
    for text, found in zip(TEXTS, stock(TEXTS), strict=True):
        expected = ours(text)["slots"]["spans"]
        places = [(span["label"], span["start"], span["end"]) for span in expected]
        assert [(item["entity_group"], item["start"], item["end"]) for item in found] == places
        scores = [span["score"] for span in expected]
        assert [float(item["score"]) for item in found] == pytest.approx(scores, abs=1e-6, rel=1e-6)
        spans += len(places)
    assert spans > 5


def test_labels_problem_and_tokenizer_stand_in_the_folder(
    first_token: MultiTaskModel, tokenizer: Any, tmp_path: Path
) -> None:
    problems = {
        "sentiment": "single_label_classification",
        "moods": "multi_label_classification",
        "similarity": "regression",
        "slots": None,
    }
    for task, problem in problems.items():
        export_model(first_token, tokenizer, tmp_path / task, tasks=[task])
        config = AutoConfig.from_pretrained(tmp_path / task)
        labels = first_token.head(task).spec.labels or (task,)
        assert config.id2label == dict(enumerate(labels))
        assert config.label2id == {label: index for index, label in enumerate(labels)}
        assert (config.num_labels, config.problem_type) == (len(labels), problem)
        assert config.model_type == "bert"
        written = AutoTokenizer.from_pretrained(tmp_path / task)
        assert written(TEXTS).input_ids == tokenizer(TEXTS).input_ids
        assert (written.model_max_length, written.padding_side) == (tokenizer.model_max_length, "right")
        assert sorted(path.name for path in (tmp_path / task).iterdir()) == [
            "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
        ]  # fmt: skip
        for path in (tmp_path / task).glob("*.json"):
            assert str(tmp_path.parent) not in path.read_text()
            assert "hf_mtl" not in path.read_text()


def test_exporting_leaves_model_and_tokenizer_as_they_are(
    first_token: MultiTaskModel, tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "left"
    first_token.train()
    before = {name: weight.clone() for name, weight in first_token.state_dict().items()}
    config, names = first_token.config.to_dict(), list(tokenizer.model_input_names)
    state = torch.random.get_rng_state()
    export_model(first_token, tokenizer, tmp_path / "stock", tasks=["sentiment"])
    assert torch.equal(torch.random.get_rng_state(), state)
    after = first_token.state_dict()
    assert before.keys() == after.keys()
    assert [name for name, weight in before.items() if not torch.equal(after[name], weight)] == []
    assert first_token.training
    assert first_token.config.to_dict() == config
    assert (tokenizer.padding_side, tokenizer.model_input_names) == ("left", names)


def test_adapters_are_merged_into_what_is_written(word_tokenizer: Any, tmp_path: Path) -> None:
    model = family_model("bert", spec_of("sequence_classification", pooling="cls"))
    without = head_logits(model, "task", batch())
    add_lora(model, {"r": 2, "init_lora_weights": False})
    expected = head_logits(model, "task", batch())
    assert (expected - without).abs().max() > 0.01
    export_model(model, word_tokenizer, tmp_path / "stock")
    assert_equal_logits(stock_logits(tmp_path / "stock", SEQUENCE, batch()), expected)
    assert torch.equal(head_logits(model, "task", batch()), expected)


# ---------------------------------------------------------------------- the real thing

WITHOUT_PACKAGE = """
import sys
sys.modules["hf_mtl"] = None  # importing it fails, as if it were not installed
import json
from transformers import pipeline
answers = {}
for task, kind in (("topic", "text-classification"), ("names", "token-classification")):
    answers[task] = pipeline(kind, model=sys.argv[1] + "/" + task)(sys.argv[2])
print(json.dumps(answers, default=float))
"""


@pytest.mark.slow
def test_minilm_is_exported_and_served_where_this_package_is_not(minilm: Path, tmp_path: Path) -> None:
    tasks = [
        TaskSpec(name="topic", type="sequence_classification", labels=("world", "sport", "art"), pooling="cls"),
        TaskSpec(name="names", type="token_classification", labels=("O", "B-place", "I-place")),
    ]
    model, tokenizer = MultiTaskModel.from_encoder(minilm, tasks).eval(), load_tokenizer(minilm)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.heads.parameters():
        parameter.data.normal_(std=0.1, generator=generator)
    texts = ["Oslo wins again.", "A painting from the collection was sold in New York for twelve million dollars."]
    inputs = dict(tokenizer(texts, return_tensors="pt", padding=True))
    for task, auto_class in (("topic", SEQUENCE), ("names", TOKENS)):
        done = export_model(model, tokenizer, tmp_path / task, tasks=[task])
        assert done.difference < 2e-6
        real = inputs["attention_mask"].bool() if task == "names" else slice(None)
        found = stock_logits(tmp_path / task, auto_class, inputs)[real]
        assert_equal_logits(found, head_logits(model, task, inputs)[real])

    command = [sys.executable, "-c", WITHOUT_PACKAGE, str(tmp_path), texts[1]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    ours = MultiTaskPipeline(model=model, tokenizer=tokenizer)(texts[1])
    assert answers["topic"][0]["label"] == ours["topic"]["label"]
    assert answers["topic"][0]["score"] == pytest.approx(ours["topic"]["score"], abs=1e-6, rel=1e-6)
    assert {item["entity"] for item in answers["names"]} <= {"B-place", "I-place"}
    assert answers["names"]


# ---------------------------------------------------------------------- errors


class DoublingHead(SequenceClassificationHead):
    """A head whose logits are no linear map that its last layer holds."""

    def forward(self, features: Tensor) -> Tensor:
        return 2.0 * super().forward(features)


class UnknownHead(SequenceClassificationHead):
    """A head of a kind that transformers has no class for."""

    stock_class = None


@pytest.fixture
def own_types(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, head in (("doubling", DoublingHead), ("unknown", UnknownHead)):
        monkeypatch.setitem(HEADS._members, name, head)


@pytest.mark.parametrize(
    ("task_type", "message"),
    [
        ("doubling", "BertForSequenceClassification cannot express the head: its logits differ by"),
        ("unknown", "transformers has no stock class for unknown; share the model itself"),
    ],
)
@pytest.mark.usefixtures("own_types")
def test_a_head_of_ones_own_is_refused_where_no_stock_class_gives_its_logits(
    task_type: str, message: str, word_tokenizer: Any, tmp_path: Path
) -> None:
    model = family_model("bert", spec_of(task_type, pooling="cls"))
    with pytest.raises(ModelError) as error:
        export_model(model, word_tokenizer, tmp_path / "stock")
    assert f"task 'task': {message}" in str(error.value)


def test_more_labels_than_the_layers_hold_are_refused(word_tokenizer: Any, tmp_path: Path) -> None:
    for count, fits in ((8, True), (9, False)):  # two numbers a label, of 16
        labels = tuple(f"label {index}" for index in range(count))
        for model_type in ("bert", "distilbert"):
            model = family_model(
                model_type, TaskSpec(name="task", type="sequence_classification", labels=labels, pooling="cls")
            )
            folder = tmp_path / f"{model_type}-{count}"
            if fits:
                export_model(model, word_tokenizer, folder)
                assert_equal_logits(stock_logits(folder, SEQUENCE, batch()), head_logits(model, "task", batch()))
            else:
                with pytest.raises(ModelError, match="cannot express the head: 9 labels are too many"):
                    export_model(model, word_tokenizer, folder)


def test_a_decoder_needs_a_padding_token_that_ends_no_text(word_tokenizer: Any, tmp_path: Path) -> None:
    model = family_model("gpt2", spec_of("sequence_classification"))
    without = copy.deepcopy(word_tokenizer)
    without.pad_token = None
    with pytest.raises(ModelError, match=r"no padding token, which GPT2ForSequenceClassification needs; set tokenizer"):
        export_model(model, without, tmp_path / "stock")
    ending = copy.deepcopy(word_tokenizer)
    ending.pad_token = "[UNK]"  # what "a" is for this tokenizer
    with pytest.raises(ModelError, match="ends texts with its padding token"):
        export_model(model, ending, tmp_path / "stock")
    assert list(tmp_path.iterdir()) == []


WRONG: dict[str, tuple[Callable[[MultiTaskModel, Any, Path], Any], type[HfMtlError], str]] = {
    "unknown format": (
        lambda model, tokenizer, folder: export_model(model, tokenizer, folder / "new", format="onyx"),
        SpecError,
        "'onyx' is not a format of export; use one of",
    ),
    "unknown task": (
        lambda model, tokenizer, folder: export_model(model, tokenizer, folder / "new", tasks=["topic"]),
        SpecError,
        "the model has no task 'topic'",
    ),
    "several tasks": (
        lambda model, tokenizer, folder: export_model(model, tokenizer, folder / "new"),
        SpecError,
        "a stock model answers one task, not 6; name one of 'sentiment', 'intent'",
    ),
    "a folder that holds something": (
        lambda model, tokenizer, folder: export_model(model, tokenizer, folder, tasks=["slots"]),
        OutputError,
        "the folder holds mine.txt; name another folder",
    ),
    "a file": (
        lambda model, tokenizer, folder: export_model(model, tokenizer, folder / "mine.txt", tasks=["slots"]),
        OutputError,
        "it is a file; name a folder",
    ),
    "a place below a file": (
        lambda model, tokenizer, folder: export_model(model, tokenizer, folder / "mine.txt" / "new", tasks=["slots"]),
        OutputError,
        "Not a directory; choose another place",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_says_what_is_wrong_and_writes_nothing(
    case: str, model: MultiTaskModel, tokenizer: Any, tmp_path: Path
) -> None:
    act, kind, message = WRONG[case]
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(kind) as error:
        act(model, tokenizer, tmp_path)
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_an_empty_folder_and_folders_above_that_are_missing_are_no_error(
    model: MultiTaskModel, tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "some" / "where"):
        export_model(model, tokenizer, folder, tasks=["slots"])
        assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("name", EXPORTERS.files)
def test_every_format_says_what_it_writes(name: str) -> None:
    exporter = EXPORTERS.get(name)
    assert exporter.__doc__
    assert exporter.__module__ == f"hf_mtl.inference.exporters.{name}"
