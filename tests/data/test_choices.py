"""Rows with choices: one sequence in which every choice is found whole, whatever is cut; labels that follow them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tiny import load, tiny_folder, tiny_recipe, write_encoder, write_quiz
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_mtl.configuration import TaskSpec
from hf_mtl.data.choices import check_fit, join_choices, read_choices, separator
from hf_mtl.data.encoding import Inputs, encode
from hf_mtl.data.preparation import load_recipe
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.data.windows import Reading
from hf_mtl.errors import DataError, ModelError, RecipeError
from hf_mtl.model.choices import choice_index
from hf_mtl.model.heads.multiple_choice import MultipleChoiceHead as Head

__all__ = ["tiny_folder", "tiny_recipe"]

TEXTS = ["the old film", "a story with music", "", "songs " * 30, "good, bad: awful!"]
CHOICES = [("good", "bad"), ("a lovely story", "dull music", "old songs"), ("好", "the film 电影", "x", "y-z")]


def trained(kind: str, *, sep: str | None, eos: str | None) -> PreTrainedTokenizerBase:
    """A tokenizer as RoBERTa, GPT-2 or T5 have it, trained on a few words."""
    level = kind != "t5"
    tokenizer = Tokenizer(models.BPE() if level else models.Unigram())
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer: Any = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, *(text for own in CHOICES for text in own)], trainer)
    if kind == "roberta":
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    elif kind == "t5":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B:1 </s>:1", special_tokens=[("</s>", 1)]
        )
    names: Any = {"bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    names |= {name: token for name, token in (("sep_token", sep), ("eos_token", eos)) if token is not None}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "roberta": lambda: trained("roberta", sep="</s>", eos="</s>"),
    "t5": lambda: trained("t5", sep=None, eos="</s>"),
    "gpt2": lambda: trained("gpt2", sep=None, eos="</s>"),
    "without special tokens": lambda: trained("gpt2", sep=None, eos=None),
}


@pytest.fixture(scope="module", params=["bert", *KINDS])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    if request.param in KINDS:
        return KINDS[request.param]()
    return AutoTokenizer.from_pretrained(str(write_encoder(tmp_path_factory.mktemp("encoder"))))


def rows(seed: int = 0, count: int = 12) -> list[Inputs]:
    draw = random.Random(seed)
    return [
        Inputs.of(draw.choice(TEXTS), draw.choice((None, "which one?")), choices=draw.choice(CHOICES), split_words=True)
        for _ in range(count)
    ]


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_each_choice_is_found_again_between_separators(tokenizer: PreTrainedTokenizerBase) -> None:
    given = rows()
    encoded = encode(tokenizer, given, Reading(400))
    between = ids_of(tokenizer, separator(tokenizer))
    for place, row in enumerate(given):
        assert row.choices is not None
        ids, tokens = encoded.input_ids[place], encoded.choice_tokens[place]
        assert not encoded.truncated[place]
        for text, (start, end) in zip(row.choices, tokens, strict=True):
            own = ids_of(tokenizer, f" {text}")  # of which the space may be a token of its own, outside
            assert ids[start:end] == own[-(end - start) :]
            assert len(own) - (end - start) in (0, 1)
        for (_, end), (start, _) in pairwise(tokens):
            assert ids[end : end + len(between)] == between
            assert start - end - len(between) in (0, 1)
        special = {*tokenizer.all_special_ids, *between}
        before = [token for token in ids[: tokens[0][0]] if token not in special]
        wanted = [*ids_of(tokenizer, row.text), *(ids_of(tokenizer, row.text_pair) if row.text_pair else [])]
        wanted = [token for token in wanted if token not in special]
        assert before[: len(wanted)] == wanted
        assert len(before) - len(wanted) in (0, 1)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("limit", [24, 40])
def test_a_long_text_is_cut_and_no_choice(tokenizer: PreTrainedTokenizerBase, limit: int, side: str) -> None:
    """As `only_first` of transformers does it, which stops where that is not enough."""
    tokenizer.truncation_side = side
    try:
        row = Inputs.of("songs of the old film " * 20, choices=("good", "bad", "dull"), split_words=True)
        whole, cut = encode(tokenizer, [row], Reading(10_000)), encode(tokenizer, [row], Reading(limit))
        assert len(cut.input_ids[0]) == limit
        assert cut.truncated == [True]
        assert row.choices is not None
        second, _ = join_choices(tokenizer, row.choices)
        stock = tokenizer(row.text, second, truncation="only_first", max_length=limit)
        assert cut.input_ids[0] == stock["input_ids"]
        if cut.token_type_ids[0] is not None:
            assert cut.token_type_ids[0] == stock["token_type_ids"]
        for (start, end), (first, last) in zip(cut.choice_tokens[0], whole.choice_tokens[0], strict=True):
            assert cut.input_ids[0][start:end] == whole.input_ids[0][first:last]
        first, all_first = cut.first_tokens[0], whole.first_tokens[0]
        assert first is not None
        assert all_first is not None
        seen = first >= 0
        assert seen.any()
        assert not seen.all()
        assert seen[-1] if side == "left" else seen[0]
        known = [cut.input_ids[0][place] for place in first[seen]]
        assert known == [whole.input_ids[0][place] for place in all_first[seen]]
    finally:
        tokenizer.truncation_side = "right"


def test_choices_that_do_not_fit_are_never_half_read(tokenizer: PreTrainedTokenizerBase) -> None:
    row = Inputs.of("the film", choices=["good " * 40, "bad"])
    encoded = encode(tokenizer, [row], Reading(24))
    assert len(encoded.input_ids[0]) == 24
    assert (encoded.choice_tokens[0] == -1).all()
    words = encoded.layout([row]).words[0]
    spec = TaskSpec(name="quiz", type="multiple_choice")
    with pytest.raises(DataError, match="its 2 choices alone are longer than the 24 tokens that are read"):
        Head.encode(spec, 0, words, 24)
    assert Head.decode(spec, np.zeros((24, 1), np.float32), words)["choice"] is None
    with pytest.raises(DataError, match="its 2 choices alone are longer than the 24 tokens"):
        check_fit(tokenizer, ["good " * 40, "bad"], None, 24)
    check_fit(tokenizer, ["good " * 40, "bad"], None, 10_000)


@pytest.mark.parametrize("seed", range(5))
def test_a_permutation_of_the_choices_is_one_of_labels_and_answers(tmp_path: Path, seed: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(write_encoder(tmp_path)))
    draw, spec = random.Random(seed), TaskSpec(name="quiz", type="multiple_choice")
    texts = ["good", "a bad film", "the music", "awful songs"][: draw.randint(2, 4)]
    scores = {text: float(number) for number, text in enumerate(draw.sample(texts, len(texts)))}
    right = draw.choice(texts)
    for _ in range(4):
        order = draw.sample(texts, len(texts))
        row = Inputs.of("which film?", choices=order)
        encoded = encode(tokenizer, [row])
        (words,) = encoded.layout([row]).words
        assert words is not None
        assert words.choices is not None
        for label in (order.index(right), right):
            labels = np.array(Head.encode(spec, label, words, len(encoded.input_ids[0])))
            (start, end) = words.choices.tokens[order.index(right)]
            assert np.flatnonzero((labels >= 0) & (labels % 2 == 1)).tolist() == list(range(start, end))
        logits = np.zeros((len(encoded.input_ids[0]), 1), np.float32)
        for text, (start, end) in zip(order, words.choices.tokens, strict=True):
            logits[start:end] = scores[text]
        answer = Head.decode(spec, logits, words)
        assert answer["choice"] == max(texts, key=scores.__getitem__) == order[answer["index"]]
        wanted = np.exp([scores[text] for text in order])
        assert answer["scores"] == pytest.approx(wanted / wanted.sum())


def test_a_choice_is_named_by_number_or_by_text() -> None:
    texts = ("red", "blue", "red, blue")
    assert [choice_index(value, texts) for value in (2, 2.0, np.int64(2), "2", "red, blue")] == [2] * 5
    assert choice_index("3", ("4", "3")) == 1  # where choices are numbers, a text is a text
    for value in ("green", "3", -1, 3, True, 1.5, None, ["red"], ""):
        with pytest.raises(DataError):
            choice_index(value, texts)
    with pytest.raises(DataError, match="'red' is the text of 2 choices; give the number of the choice"):
        choice_index("red", ("red", "red"))
    with pytest.raises(DataError, match="'0' is none of the choices"):
        choice_index("0", ("4", "3"))


@pytest.mark.parametrize("value", ["a, b", ["a"], [], {"a": 1}, 3, ["a", 2], ["a", None], ["a", " "]])
def test_what_are_no_choices_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match="choice"):
        Inputs.of("text", choices=value)
    assert read_choices(np.array(["a", "b"])) == ("a", "b")
    assert read_choices("") is read_choices(None) is None


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast, sep_token = False, "[SEP]"

        def num_special_tokens_to_add(self, pair: bool = False) -> int:
            return 2 + pair

    with pytest.raises(ModelError, match="Slow gives no character offsets, which choices need"):
        encode(Slow(), [Inputs.of("text", choices=["a", "b"])], Reading(8))  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------------- recipes


def recipe_of(folder: Path, rows: list[dict[str, Any]], **dataset: Any) -> dict[str, Any]:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own = {"train": "data.jsonl", "validation": "data.jsonl", "text": "question", "choices": "options", **dataset}
    task = {"name": "quiz", "type": "multiple_choice", "dataset": "quiz", "label": "answer"}
    return {"encoder": str(folder / "encoder"), "datasets": {"quiz": own}, "tasks": [task]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_encoder(tmp_path / "encoder")
    return tmp_path


ROWS = [
    {"question": "which film?", "options": ["a <b>good</b> one", "bad"], "answer": "a <b>good</b> one"},
    {"question": "what music?", "options": ["old", "dull", "lovely"], "answer": None},
    {"question": "what music?", "options": ["old", "awful", "great"], "answer": "great"},
    {"question": "no choices", "options": None, "answer": None},
]


def right_tokens(split: Any, row: int) -> list[str]:
    words = split.words()[row]
    labels = np.array(split.features["labels/quiz"][row])
    places = sorted({int(label) // 2 for label in labels if label >= 0 and label % 2})
    return [words.choices.texts[place] for place in places]


@pytest.mark.parametrize("cleaning", [None, ["html"]])
def test_labels_by_text_are_numbers_before_the_choices_are_cleaned(folder: Path, cleaning: Any) -> None:
    data = load(folder, {**recipe_of(folder, ROWS), **({"cleaning": cleaning} if cleaning else {})})
    (split,) = data.validation.values()
    assert split.gold(split.tasks[0]) == [0, None, 2, None]
    assert split.labelled("quiz").tolist() == [0, 2]
    assert right_tokens(split, 0) == ["a good one" if cleaning else "a <b>good</b> one"]
    assert right_tokens(split, 2) == ["great"]
    layout = split.layout()
    again = encode(data.tokenizer, list(split.inputs())).layout(list(split.inputs()))
    for kept, made in zip(layout.words, again.words, strict=True):
        assert (kept is None) == (made is None)
        if kept is not None and made is not None and made.choices is not None:
            assert kept.choices is not None
            assert kept.choices.texts == made.choices.texts
            assert kept.choices.tokens.tolist() == made.choices.tokens.tolist()


def test_rows_that_differ_in_their_choices_alone_are_no_duplicates(folder: Path) -> None:
    data = load(folder, {**recipe_of(folder, [*ROWS, ROWS[1]]), "deduplicate": "exact"})
    assert len(data.train["quiz"]) == 4


def test_augmentation_leaves_choices_and_labels_alone(folder: Path) -> None:
    added = [{"operation": "word_swap", "probability": 1.0}]
    data = load(folder, recipe_of(folder, ROWS, augmentation=added))
    split: Any = data.train["quiz"]
    assert len(split) > len(ROWS)
    for row, label in zip(split.raw.dataset, split.gold(split.tasks[0]), strict=True):
        assert row["options"] in [own["options"] for own in ROWS]
        if label is not None:
            assert row["options"][label] in ("a <b>good</b> one", "great")


def test_class_labels_name_places(folder: Path) -> None:
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "options": datasets.List(datasets.Value("string")),
            "answer": datasets.ClassLabel(names=["A", "B", "C"]),
        }
    )
    given = {"question": ["which?", "what?"], "options": [["B", "A"], ["x", "y", "z"]], "answer": [0, 2]}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_dict(given, features=features) for name in ("train", "validation")}
    ).save_to_disk(str(folder / "saved"))
    recipe = recipe_of(folder, ROWS, path="saved", train="train", validation="validation")
    (split,) = load(folder, recipe).validation.values()
    assert split.gold(split.tasks[0]) == [0, 2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "green"}, "data.jsonl, line 5, task 'quiz': 'green' is none of the choices"),
        ({"options": None, "answer": "old"}, "line 5, task 'quiz': the row has a label but no choices"),
        ({"options": ["old"], "answer": "old"}, "line 5, task 'quiz': choices is .'old'.; give choices as a list"),
        ({"options": ["good " * 60, "bad"], "answer": "bad"}, "line 5, task 'quiz': its 2 choices alone are longer"),
    ],
)
def test_a_wrong_row_is_named(folder: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(folder, recipe_of(folder, [*ROWS, {"question": "q", "options": ["old", "new"], **row}]))


def test_a_recipe_that_cannot_be_is_refused(folder: Path) -> None:
    values = recipe_of(folder, ROWS)
    del values["datasets"]["quiz"]["choices"]
    with pytest.raises(RecipeError, match="task 'quiz': dataset 'quiz' names no choices, among which multiple_choice"):
        parse_recipe(values, base=folder)
    values = recipe_of(folder, ROWS)
    values["tasks"][0]["type"] = "sequence_classification"
    with pytest.raises(RecipeError, match="choices is 'options', and no task of the dataset chooses among them"):
        parse_recipe(values, base=folder)
    values = recipe_of(folder, ROWS)
    values["tasks"].append({"name": "x", "type": "sequence_classification", "dataset": "quiz", "label": "answer"})
    with pytest.raises(RecipeError, match="column 'answer' names choices by their text for task 'quiz', and is read"):
        load(folder, values)


def test_windows_of_choices_are_refused(folder: Path) -> None:
    values = recipe_of(folder, ROWS)
    values["tasks"].append(
        {"name": "x", "type": "regression", "dataset": "quiz", "label": "answer", "max_length": 16, "stride": 4}
    )
    with pytest.raises(RecipeError, match="the rows of dataset 'quiz' have choices, which are not read in windows"):
        parse_recipe(values, base=folder)


def test_streamed_rows_are_the_rows_of_the_file(folder: Path) -> None:
    known = write_quiz(folder)
    values = {**recipe_of(folder, ROWS), "datasets": {"quiz": known}}
    values["tasks"][0]["label"] = "right"
    plain: Any = load(folder, values).train["quiz"]
    streamed: Any = load_recipe(
        parse_recipe({**values, "datasets": {"quiz": {**known, "streaming": True}}}, base=folder)
    ).train["quiz"]
    rows = streamed.stream.sample(40)
    found = {json.dumps(row["input_ids"]): row for row in streamed.encode(rows)}
    for row in plain.features:
        own = found[json.dumps(row["input_ids"])]
        assert own["labels/quiz"] == row["labels/quiz"]
    # Rows are drawn by the lengths that are counted word by word.
    assert streamed.lengths(rows).tolist() == [row["length"] for row in streamed.encode(rows)]
