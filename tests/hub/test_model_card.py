"""Model cards: equal numbers after a round trip, nothing invented, and what users wrote stays."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_mtl.configuration import TaskSpec
from hf_mtl.hub.model_card import CardFacts, DatasetFacts, sections, write_card

SENTIMENT = TaskSpec(name="sentiment", type="sequence_classification", labels=("neg", "pos"))
SLOTS = TaskSpec(name="slots", type="token_classification", labels=("O", "B-city", "I-city"))
FACTS = CardFacts(
    name="acme/voices",
    encoder="acme/tiny-bert",
    tasks=(SENTIMENT, SLOTS),
    task_datasets={"sentiment": "films", "slots": "voice"},
    datasets=(
        DatasetFacts(name="films", rows={"train": 6000, "test": 100}, share=0.75, hub_id="acme/films"),
        DatasetFacts(name="voice", rows={"train": 200}, share=0.25),
    ),
    results={"test": {"sentiment": {"accuracy": 0.123456789012, "mcc": -0.5}, "slots": {"f1": 2 / 3}}},
    primary={"sentiment": "accuracy", "slots": "f1"},
    hyperparameters={"learning_rate": 1e-4},
    versions={"torch": "2.13.0"},
    seconds=90.0,
    hardware="two cores",
    license="apache-2.0",
    language=("en",),
)


def test_results_come_back_equal(tmp_path: Path) -> None:
    card = ModelCard.load(write_card(tmp_path, FACTS))
    found = {(r.task_name, r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
    wanted = {
        (task, split, metric): value
        for split, by_task in FACTS.results.items()
        for task, metrics in by_task.items()
        for metric, value in metrics.items()
    }
    assert found == wanted
    assert card.data.model_name == "acme/voices"
    assert (card.data.base_model, card.data.license, card.data.datasets) == (
        "acme/tiny-bert",
        "apache-2.0",
        ["acme/films"],
    )


def test_every_fact_is_in_the_text(tmp_path: Path) -> None:
    text = write_card(tmp_path, FACTS).read_text(encoding="utf-8")
    for wanted in (
        "`B-city`",
        "6,000",
        "75.0%",
        "0.1235 (primary)",
        "1e-04",
        "0.03 hours",
        "two cores",
        "torch 2.13.0",
    ):
        assert wanted.replace("1e-04", "0.0001") in text
    assert "Fewer than 1,000 training rows: voice." in text


def test_tasks_that_read_more_than_the_text_say_so(tmp_path: Path) -> None:
    assert "dependency graph" not in write_card(tmp_path, FACTS).read_text(encoding="utf-8")
    graph = replace(SLOTS, token_graph=True)
    text = write_card(tmp_path, replace(FACTS, tasks=(SENTIMENT, graph))).read_text(encoding="utf-8")
    assert "dependency graph of the words: slots. Give `heads`" in text


def test_nothing_is_said_that_is_not_known(tmp_path: Path) -> None:
    bare = CardFacts(name="m", encoder="folder/with/parts", tasks=(SENTIMENT,))
    card = ModelCard.load(write_card(tmp_path, bare))
    assert card.data.eval_results is None
    assert card.data.base_model is None
    assert "has not been evaluated" in card.text
    assert "Not evaluated: sentiment." in card.text
    assert "CO2" not in card.text


def test_a_card_saved_twice_is_the_same(tmp_path: Path) -> None:
    first = write_card(tmp_path, FACTS).read_bytes()
    assert write_card(tmp_path, FACTS).read_bytes() == first


def test_what_users_wrote_stays_and_the_rest_is_renewed(tmp_path: Path) -> None:
    path = write_card(tmp_path, FACTS)
    text = path.read_text(encoding="utf-8")
    text = text.replace(
        "- Probabilities are not calibrated", "- Never use it for medicine.\n- Probabilities are not calibrated"
    )
    text = text.replace("license: apache-2.0", "license: mit").replace("tags:\n", "tags:\n- our-tag\n")
    path.write_text(text + "\n## Thanks\n\nTo everyone.\n", encoding="utf-8")
    write_card(tmp_path, replace(FACTS, results={"test": {"sentiment": {"accuracy": 0.75}}}))
    card = ModelCard.load(path)
    assert "Never use it for medicine." in card.text
    assert "To everyone." in card.text
    assert "0.7500 (primary)" in card.text
    assert "0.1235" not in card.text
    assert card.data.license == "mit"
    assert "our-tag" in card.data.tags
    assert [r.metric_value for r in card.data.eval_results] == [0.75]


@pytest.mark.parametrize("name", list(sections(FACTS)))
def test_the_template_holds_every_section_once(tmp_path: Path, name: str) -> None:
    text = write_card(tmp_path, FACTS).read_text(encoding="utf-8")
    assert text.count(f"<!-- hf_mtl:begin {name} ") == text.count(f"<!-- hf_mtl:end {name} -->") == 1
    assert f"{{{name}}}" not in text


def test_a_label_with_a_bar_does_not_break_the_table(tmp_path: Path) -> None:
    odd = replace(SENTIMENT, labels=("a|b", "c"))
    assert "`a\\|b`" in write_card(tmp_path, replace(FACTS, tasks=(odd,))).read_text(encoding="utf-8")


def test_the_example_card_has_all_that_the_template_asks_for() -> None:
    folder = Path(__file__).parents[2] / "model_cards"
    card = ModelCard.load(folder / "demo.md")
    begun = re.findall(r"\{begin:(\w+)\}", (folder / "template.md").read_text(encoding="utf-8"))
    assert begun
    assert all(f"<!-- hf_mtl:begin {name} " in card.text for name in begun)
    assert {result.task_name for result in card.data.eval_results} == {"sentiment", "intent", "slots"}
    assert "](training_curve.png)" in card.text
    assert (folder / "training_curve.png").is_file()
