"""Recipes that clean, deduplicate, drop leaks, augment and balance, from files to encoded rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight
from tiny import write_encoder

from hf_mtl.cli.check import describe
from hf_mtl.data.preparation import RecipeData, load_recipe
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.errors import HfMtlError, RecipeError

TEXTS = {
    "train": ["a <b>good</b> film", "A good  film", "bad film", "it stands in the other test rows", "fine", "fine too"],
    "validation": ["new &amp; old"],
    "test": ["bad  FILM"],
}
TAGGED: list[tuple[list[str], list[str], str]] = [
    (["see", "New", "York", "now"], ["O", "B-x", "I-x", "O"], "go"),
    (["see", "Rome", "now"], ["O", "B-x", "O"], "stay"),
    (["leave", "Rome", "now"], ["O", "B-x", "O"], "go"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refinement")
    write_encoder(folder / "encoder")
    for split, texts in TEXTS.items():
        rows = [{"text": text, "label": "good" if number < 2 else "bad"} for number, text in enumerate(texts)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, rows in (
        ("train", TAGGED),
        ("test", [(["It", "stands", "in", "the", "other", "test", "rows"], ["O"] * 7, "go")]),
    ):
        lines = [{"tokens": tokens, "tags": tags, "intent": intent} for tokens, tags, intent in rows]
        (folder / f"tagged-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


def recipe(first: dict[str, Any] | None = None, second: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    return {
        "encoder": "encoder",
        "datasets": {
            "first": {**{split: f"{split}.jsonl" for split in TEXTS}, "text": "text", **(first or {})},
            "second": {"train": "tagged-train.jsonl", "validation": "tagged-train.jsonl", "test": "tagged-test.jsonl",
                       "tokens": "tokens", **(second or {})},
        },
        "tasks": [
            {"name": "mood", "type": "sequence_classification", "dataset": "first", "label": "label"},
            {"name": "slots", "type": "token_classification", "dataset": "second", "label": "tags"},
            {"name": "intent", "type": "sequence_classification", "dataset": "second", "label": "intent"},
        ],
        **keys,
    }  # fmt: skip


def loaded(place: Path, values: dict[str, Any]) -> RecipeData:
    return load_recipe(parse_recipe(values, base=place))


def texts(data: RecipeData, split: str = "train", name: str = "first") -> list[str]:
    return [inputs.text for inputs in data.split(split)[name].inputs()]


def test_all_splits_are_cleaned_and_each_step_is_counted_in_the_report(place: Path) -> None:
    data = loaded(place, recipe(cleaning=["html", "whitespace"]))
    assert texts(data)[:2] == ["a good film", "A good film"]
    assert texts(data, "validation") == ["new & old"]
    assert texts(data, "test") == ["bad FILM"]
    report = [f"{entry['dataset']} {entry['split']}: {entry['change']}" for entry in describe(data)["changes"]]
    assert "first train: cleaning html changed 1 of 6 rows" in report
    assert "first train: cleaning whitespace changed 1 of 6 rows" in report
    again = loaded(place, recipe(cleaning=["html", "whitespace"]))  # from the cache
    assert describe(again)["changes"] == describe(data)["changes"]
    own = loaded(place, recipe(first={"cleaning": []}, cleaning=["html"]))
    assert texts(own)[0] == TEXTS["train"][0]


def test_duplicates_are_dropped_from_training_rows_after_cleaning(place: Path) -> None:
    data = loaded(place, recipe(cleaning=["html"], deduplicate="exact"))
    assert texts(data) == ["a good film", *TEXTS["train"][2:]]
    rows = data.split("train")["first"].raw
    assert rows.where(1).endswith("train.jsonl, line 3")


@pytest.mark.parametrize("how", ["drop", "drop_near"])
def test_leaks_into_any_test_split_are_dropped_from_training(place: Path, how: str) -> None:
    reported = loaded(place, recipe())
    assert len(texts(reported)) == 6
    data = loaded(place, recipe(second={"validation": None}, leakage=how))
    assert texts(data) == [text for number, text in enumerate(TEXTS["train"]) if number not in (2, 3)]
    problems = describe(data)["problems"]
    assert not [problem for problem in problems if "train rows of first" in problem]
    specs = data.tasks
    alone = load_recipe(data.recipe, tasks=specs, splits=["train"], tokenizer=data.tokenizer)
    assert texts(alone) == texts(data)


def test_copies_are_added_to_training_rows_and_only_there(place: Path) -> None:
    values = recipe(second={"augmentation": [{"operation": "mention_replacement", "probability": 1.0, "copies": 2}]})
    data = loaded(place, values)
    rows = data.split("train")["second"]
    assert len(rows) == 9
    assert len(data.split("validation")["second"]) == 3
    raw = rows.raw
    for number in range(3, 9):
        row: Any = raw.dataset[number]
        source = TAGGED[int(raw.where(number).rpartition(" ")[2]) - 1]
        assert row["intent"] == source[2]
        assert len(row["tags"]) == len(row["tokens"])
        named = [word for word, tag in zip(row["tokens"], row["tags"], strict=True) if tag != "O"]
        assert named == (["Rome"] if source[0][1] == "New" else ["New", "York"])
    again = loaded(place, values).split("train")["second"]
    assert again.raw.fingerprint == raw.fingerprint
    assert again.raw.dataset[:] == raw.dataset[:]
    other = load_recipe(data.recipe, seed=1).split("train")["second"]
    assert other.raw.fingerprint != raw.fingerprint


def test_balanced_weights_are_those_of_scikit_learn(place: Path) -> None:
    values = recipe()
    for task in values["tasks"]:
        task["class_weights"] = "balanced"
    data = loaded(place, values)
    labels = ["good"] * 2 + ["bad"] * 4
    wanted = compute_class_weight("balanced", classes=np.array(["bad", "good"]), y=np.array(labels))
    assert data.tasks[0].class_weights == pytest.approx(tuple(wanted))
    tags = [tag for _, own, _ in TAGGED for tag in own]
    wanted = compute_class_weight("balanced", classes=np.array(["O", "B-x", "I-x"]), y=np.array(tags))
    assert data.tasks[1].labels == ("O", "B-x", "I-x")
    assert data.tasks[1].class_weights == pytest.approx(tuple(wanted))


def test_a_recipe_with_these_keys_reads_back_equal(place: Path) -> None:
    values = recipe(
        first={"cleaning": ["html", {"language": "en"}], "augmentation": [{"operation": "word_swap"}]},
        cleaning=["unicode"], deduplicate="near", leakage="drop",
    )  # fmt: skip
    read = parse_recipe(values, base=place)
    assert parse_recipe(read.to_dict(), base=place) == read


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (recipe(leakage="remove"), "leakage is 'remove'"),
        (recipe(deduplicate="fuzzy"), "deduplicate is 'fuzzy'"),
        (recipe(cleaning=["htm"]), "there is no step 'htm'"),
        (recipe(first={"cleaning": ["htm"]}), "dataset 'first'"),
        (recipe(first={"augmentation": "word_swap"}), "augmentation is 'word_swap'"),
        (recipe(first={"augmentation": [{"operation": "no"}]}), "'no' is not an augmentation"),
        (recipe(first={"augmentation": [{"operation": "word_swap", "copies": 0}]}), "copies is 0"),
        (recipe(first={"augmentation": [{"operation": "word_swap", "lexicon": "x"}]}), "unknown key 'lexicon'"),
        (recipe(first={"streaming": True, "deduplicate": "exact"}), "streamed"),
        (recipe(first={"streaming": True}, leakage="drop"), "streamed"),
    ],
)  # fmt: skip
def test_impossible_keys_are_refused(place: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(HfMtlError, match=message):
        parse_recipe(values, base=place)


def test_operations_that_do_not_suit_the_rows_are_refused(place: Path) -> None:
    for first, second, message in (
        ([{"operation": "mention_replacement"}], None, "needs a task with span tags"),
        (None, [{"operation": "back_translation", "function": "json:dumps"}], "the rows are tokens"),
    ):
        with pytest.raises(RecipeError, match=message):
            loaded(place, recipe(first={"augmentation": first}, second={"augmentation": second}))
