"""What of the benchmark scripts needs no network and no quiet machine: conversions of public sets, the report."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from tiny import tiny_data, tiny_folder, tiny_recipe  # noqa: F401 (fixtures)

from hf_mtl.data.preparation import RecipeData, load_recipe
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.evaluation.metrics import (
    ClassificationMetric,
    MultiLabelMetric,
    RegressionMetric,
    SpansMetric,
    TagsMetric,
)

BENCH = Path(__file__).parents[1] / "scripts" / "bench"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a script as it is when it is run: its siblings can be imported, too."""
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def hub_rows() -> dict[str, dict[str, Dataset]]:
    """Return a few rows of each set, with the columns that it has on the Hub."""
    tags = ["O", "B-location", "I-location"]
    ner = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=tags))})
    pos = Features({"tokens": List(Value("string")), "upos": List(ClassLabel(names=["NOUN", "VERB"]))})
    moods = Features(
        {"text": Value("string"), "labels": List(ClassLabel(names=["joy", "fear"])), "id": Value("string")}
    )
    news = Features({"text": Value("string"), "label": ClassLabel(names=["World", "Sports"])})
    rows: dict[str, Dataset] = {
        "sst2": Dataset.from_list(
            [{"text": "a lovely film", "label": 1, "label_text": "positive"},
             {"text": "dull, dull", "label": 0, "label_text": "negative"}]
        ),
        "snips": Dataset.from_list(
            [{"input": "play it in oslo", "intent": "PlayMusic", "slots": "O O O B-city"},
             {"input": "add it", "intent": "AddToPlaylist", "slots": "O O"}]
        ),
        "wnut17": Dataset.from_list(
            [{"tokens": ["to", "New", "York"], "ner_tags": [0, 1, 2]}, {"tokens": ["go"], "ner_tags": [0]}],
            features=ner,
        ),
        "ewt": Dataset.from_list(
            [{"tokens": ["dogs", "bark"], "upos": [0, 1]}, {"tokens": ["go"], "upos": [1]}], features=pos
        ),
        "goemotions": Dataset.from_list(
            [{"text": "no!", "labels": [1], "id": "a"}, {"text": "oh, \u201cyes\u201d", "labels": [0, 1], "id": "b"}],
            features=moods,
        ),
        "stsb": Dataset.from_list(
            [{"sentence1": "a man", "sentence2": "a dog", "score": 0.25},
             {"sentence1": "one", "sentence2": "two", "score": 1.0}]
        ),
    }  # fmt: skip
    splits = {name: dict.fromkeys(("train", "validation", "test"), own) for name, own in rows.items()}
    many = [{"text": f'text "{number}", with\ttab', "label": number % 2} for number in range(7600)]
    return splits | {
        "ag_news": {"train": Dataset.from_list(many, features=news), "test": Dataset.from_list(many, features=news)}
    }


def test_sets_from_the_hub_are_written_as_the_benchmarks_read_them(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_folder: Path,  # noqa: F811
) -> None:
    data, scores = script("data", monkeypatch), script("scores", monkeypatch)
    splits = hub_rows()
    assert set(splits) == set(data.SOURCES) == set(scores.DATASETS)
    for name, source in data.SOURCES.items():
        data.write(source, splits[name], tmp_path / name)
    recipe = parse_recipe(
        scores.make_recipe(tmp_path, str(tiny_folder / "encoder"), tuple(scores.TASKS), {}), base=tmp_path
    )
    loaded = load_recipe(recipe)
    gold = {task.spec.name: split.gold(task) for split in loaded.train.values() for task in split.tasks}
    assert gold["sentiment"] == ["positive", "negative"]
    assert gold["intent"] == ["PlayMusic", "AddToPlaylist"]
    assert gold["slots"] == [["O", "O", "O", "B-city"], ["O", "O"]]
    assert gold["entities"] == [["O", "B-location", "I-location"], ["O"]]
    assert gold["upos"] == [["NOUN", "VERB"], ["VERB"]]
    assert gold["emotions"] == [["fear"], ["joy", "fear"]]
    assert gold["similarity"] == [1.25, 5.0]
    assert [len(own["ag_news"]) for own in (loaded.train, loaded.validation, loaded.test)] == [6000, 600, 1000]
    texts = [
        row for own in (loaded.train, loaded.validation, loaded.test) for row in own["ag_news"].raw.dataset["text"]
    ]
    assert len(set(texts)) == 7600
    assert {row.partition('"')[2].partition('"')[0] for row in texts} == {str(number) for number in range(7600)}


def test_the_report_says_what_is_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = script("report", monkeypatch)
    written: dict[str, dict[str, Any]] = {
        "training": {
            "machine": "a machine", "rounds": 5, "runs": {"ours": [1.0]},
            "tokens_per_second": {"ours": 4000.0, "stock": 800.0}, "padding": {"ours": 0.05, "stock": 0.4},
            "ratios": {"ours/stock": 5.0, "ours/bare": 0.85},
        },
        "export": {"machine": "a machine", "ratios": {"fastest graph without loss": 1.2}},
        "inference-memory": {"machine": "a machine", "ratios": {"peak memory, many rows over few": 1.05}},
        "collation": {"machine": "a machine", "rows": [{"rows": "short", "both": 80000.0}]},
    }  # fmt: skip
    for name, own in written.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(own), encoding="utf-8")
    reports = report.read(tmp_path)
    assert reports == written
    assert [row[2:] for row in report.reached(reports)] == [
        [5.0, "yes"], [0.85, "no"], ["not measured", "no"], ["not measured", "no"], [1.2, "no"], [1.05, "yes"]
    ]  # fmt: skip
    assert report.tables(written["training"]).splitlines()[:4] == [
        "|  | tokens/s | padding |",
        "| --- | --- | --- |",
        "| ours | 4,000 | 0.05 |",
        "| stock | 800 | 0.4 |",
    ]
    monkeypatch.setattr(sys, "argv", ["report.py", "--output-dir", str(tmp_path)])
    report.main()
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.count("a machine") == 1
    assert "| short | 80,000 |" in text
    assert (tmp_path / "report.png").stat().st_size > 1000


def test_a_peer_that_cannot_be_installed_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    peers = script("peers", monkeypatch)
    jobs = script("peer_jobs", monkeypatch)
    assert set(peers.PEERS) - set(jobs.JOBS) == set(peers.ABSENT)
    assert peers.install("machamp", tmp_path / "machamp", 1.0) == peers.ABSENT["machamp"]
    assert peers.run([sys.executable, "-c", "raise SystemExit('no network')"], 60) == ("", "no network")
    assert peers.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.2) == ("", "not done in 0 s")


@pytest.mark.slow
def test_few_shots_are_compared_from_three_starts_and_go_on(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tiny_folder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, few_shot = script("data", monkeypatch), script("few_shot", monkeypatch)
    for name in ("sst2", "snips", "wnut17"):
        many = {split: Dataset.from_list([*rows] * 18, rows.features) for split, rows in hub_rows()[name].items()}
        data.write(data.SOURCES[name], many, tmp_path / name)
    arguments = ["few_shot.py", tmp_path, "--encoder", tiny_folder / "encoder", "--output-dir", tmp_path / "runs"]
    arguments += ["--left-out", "intent", "--others", "sentiment", "entities", "slots", "--shots", 2, "--steps", 2]
    arguments += ["--seeds", 0, 1, "--meta-steps", 2, "--inner-steps", 1]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    few_shot.main()
    shown = capsys.readouterr().out
    assert [line.split(" | ")[:2] for line in shown.splitlines() if "±" in line] == [
        ["| intent", start] for start in ("plain", "multi-task", "meta")
    ]
    report = json.loads((tmp_path / "runs" / "few_shot.json").read_text(encoding="utf-8"))
    assert len(report["scores"]) == 3 * 2
    # Slots stand on the texts of the task that is left out.
    config = json.loads((tmp_path / "runs" / "intent-meta" / "config.json").read_text(encoding="utf-8"))
    assert [task["name"] for task in config["tasks"]] == ["sentiment", "entities"]

    monkeypatch.setattr(few_shot, "adapted", lambda *_, **options: options["shots"] / 4)
    report["scores"].pop("intent/meta/2/1")
    (tmp_path / "runs" / "few_shot.json").write_text(json.dumps(report), encoding="utf-8")
    few_shot.main()
    assert json.loads((tmp_path / "runs" / "few_shot.json").read_text())["scores"]["intent/meta/2/1"] == 0.5
    monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--test-rows", "3"])
    with pytest.raises(SystemExit, match="is of another test_rows; give another --output-dir"):
        few_shot.main()


def test_standard_errors_are_those_of_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    few_shot = script("few_shot", monkeypatch)
    assert few_shot.spread([60.0, 62.0, 64.0, 66.0]) == "63.0 ± 1.3"  # 2.58 / 2
    assert few_shot.spread([61.0]) == "61.0"


# ---------------------------------------------------------------------- rows that are looked at


def test_spaced_rows_are_those_of_the_split(
    tiny_data: RecipeData,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampling = script("sampling", monkeypatch)
    for name, split in tiny_data.validation.items():
        few = sampling.spaced(split, 7)
        places = [len(split) * number // 7 for number in range(7)]
        assert [few.raw.dataset[number] for number in range(7)] == [split.raw.dataset[place] for place in places], name
        assert few.lengths.tolist() == split.lengths[places].tolist()
        for task in split.tasks:
            labelled = set(split.labelled(task.spec.name).tolist())
            assert few.labelled(task.spec.name).tolist() == [n for n, place in enumerate(places) if place in labelled]


def test_a_score_is_the_primary_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = script("sampling", monkeypatch)
    for metric in (ClassificationMetric, MultiLabelMetric, RegressionMetric, SpansMetric, TagsMetric):
        values = {key: place / 10 for place, key in enumerate(metric.keys)}
        found = sampling.primary({"task": values, "average": 0.25})
        assert found == {"average": 25.0, "task": 100 * values[metric.primary]}
