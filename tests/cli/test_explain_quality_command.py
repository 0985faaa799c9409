"""`hf-mtl explain-quality`: it prints and writes what `quality` measures on rows of the recipe."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calling import call
from tiny import BAD, FILLER, GOOD

from hf_mtl.data.preparation import load_recipe
from hf_mtl.data.recipe import read_recipe
from hf_mtl.data.yaml import read_yaml, write_yaml
from hf_mtl.explain.explainer import Explainer
from hf_mtl.explain.marked_rows import draw_marked_rows
from hf_mtl.explain.quality import quality
from hf_mtl.explain.quality_report import quality_table
from hf_mtl.inference.loading import load_model

CHEAP = ("--method", "occlusion", "--method", "shapley:pairs=1")


@pytest.fixture(scope="session")
def marked(workspace: Path, recipe: Path) -> Path:
    """A recipe whose test rows of sentiment have tokens, each with its sentiment, and one row too long to be read."""
    generator = random.Random(0)
    rows: list[dict[str, Any]] = []
    for index in range(12):
        good = index % 2 == 0
        tokens = [
            *generator.choices(FILLER, k=4),
            generator.choice(GOOD if good else BAD),
            *generator.choices(FILLER, k=2),
        ]
        values = [(token in GOOD) - (token in BAD) for token in tokens]
        rows.append({"label": "pos" if good else "neg", "words": tokens, "feeling": values})
    rows.append({"label": "pos", "words": ["good"] * 60, "feeling": [1] * 60})
    lines = [json.dumps({**row, "text": " ".join(row["words"])}) + "\n" for row in rows]
    (workspace / "marked-test.jsonl").write_text("".join(lines), encoding="utf-8")
    changed = read_yaml(recipe)
    changed["datasets"]["films"]["test"] = "marked-test.jsonl"
    path = workspace / "marked.yaml"
    path.write_text(write_yaml(changed), encoding="utf-8")
    return path


def test_it_shows_and_writes_what_quality_measures(trained: Path, marked: Path, tmp_path: Path) -> None:
    targets = [tmp_path / f"quality.{ending}" for ending in ("json", "md", "png", "svg")]
    outputs = [part for target in targets for part in ("--output", target)]
    columns = ("--rationale-column", "feeling", "--tokens-column", "words")
    done = call("explain-quality", trained, marked, "--task", "sentiment", "--rows", 13, *columns, *CHEAP, *outputs)

    model, tokenizer = load_model(trained)
    data = load_recipe(read_recipe(marked), tokenizer=tokenizer, tasks=model.specs[:1], splits=["test"])
    explainer = Explainer(model, tokenizer)
    options: dict[str, Any] = {"rationale_column": "feeling", "tokens_column": "words"}
    rows = draw_marked_rows(explainer, data.split("test"), limit=13, seed=0, **options)["sentiment"]
    assert (len(rows.rows), rows.left_out) == (12, 1)
    for row, rationale in zip(rows.rows, rows.rationales or [], strict=True):
        words = GOOD if any(token in GOOD for token in row["tokens"]) else BAD
        assert rationale is not None
        assert rationale.tolist() == [token in words for token in row["tokens"]]
    expected = quality(
        explainer,
        rows.rows,
        "sentiment",
        methods=["occlusion", "shapley:pairs=1"],
        rationales=rows.rationales,
        labels=rows.labels,
    )
    found = json.loads(targets[0].read_text(encoding="utf-8"))["sentiment"]
    for name, own in expected.to_dict()["methods"].items():
        for how in ("delete", "mask"):
            for measure in ("comprehensiveness", "sufficiency", "flips", "normalised_comprehensiveness"):
                assert found["methods"][name][how][measure] == pytest.approx(own[how][measure], abs=1e-6)
        for measure, value in own["plausibility"].items():
            assert found["methods"][name]["plausibility"][measure] == pytest.approx(value)
    for title in ("12 texts, words deleted", "12 texts, words masked", "difference from"):
        assert title in done.out
    for cell in np.ravel([row[:-1] for row in quality_table(expected).rows]):  # but for the time it took
        assert cell in done.out
        assert cell in targets[1].read_text(encoding="utf-8")
    assert "1 rows left out, too long for the model" in done.err
    assert targets[2].read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in targets[3].read_text(encoding="utf-8")


def test_every_task_is_measured_where_none_is_named(trained: Path, recipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "quality.json"
    call("explain-quality", trained, recipe, "--rows", 2, *CHEAP, "--perturb", "mask", "--output", target)
    found = json.loads(target.read_text(encoding="utf-8"))
    assert list(found) == ["sentiment", "intent", "slots", "grammar", "similarity", "moods"]
    for task, one in found.items():
        assert one["texts"] == 2
        assert one["measure"] == ("value" if task == "similarity" else "probability")
        assert "delete" not in one["methods"]["occlusion"]
        assert "plausibility" not in one["methods"]["occlusion"]


def test_the_seed_draws_the_rows(trained: Path, recipe: Path, tmp_path: Path) -> None:
    found: list[Any] = []
    for number, seed in enumerate((1, 1, 2)):
        target = tmp_path / f"{number}.json"
        options = ("--task", "intent", "--rows", 3, "--method", "occlusion", "--perturb", "delete", "--seed", seed)
        call("explain-quality", trained, recipe, *options, "--output", target)
        found.append(json.loads(target.read_text(encoding="utf-8"))["intent"]["methods"]["occlusion"]["delete"])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--task", "moood"], "moood"),
        (["--method", "guess"], "'guess' is not an attribution method; use one of "),
        (["--method", "shapley:size=3"], "the method 'shapley' has no such option"),
        (["--method", "shapley:pairs=0"], "pairs is 0; give a whole number of at least 1"),
        (["--split", "tset"], "split is 'tset'; did you mean 'test'?"),
        (["--perturb", "blur"], "perturb is ['blur']; give one or more of 'delete', 'mask'"),
        (["--rationale-column", "feelings"], "no dataset has a column 'feelings'; use one of "),
        (["--rationale-column", "label"], "there is no column 'tokens' with the tokens"),
        (["--output", "quality.txt"], "--output is 'quality.txt'; give it one of the endings '.json', '.md', '.png'"),
        (["--output", "no-such-folder/quality.json"], "no-such-folder: there is no such folder"),
    ],
)
def test_bad_input_gets_one_clear_line(trained: Path, recipe: Path, arguments: list[str], says: str) -> None:
    task = [] if "moood" in arguments else ["--task", "sentiment"]
    method = [] if "--method" in arguments else ["--method", "occlusion"]
    done = call("explain-quality", trained, recipe, *arguments, *task, *method, fails=True)
    assert done.code == 1
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert says in done.err


def test_a_rationale_that_does_not_fit_is_named(trained: Path, recipe: Path, workspace: Path) -> None:
    rows = [{"text": "good film", "tokens": ["good", "film"], "label": "pos", "mark": [1]}] * 2
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (workspace / "short-test.jsonl").write_text(lines, encoding="utf-8")
    changed = read_yaml(recipe)
    changed["datasets"]["films"]["test"] = "short-test.jsonl"
    path = workspace / "short.yaml"
    path.write_text(write_yaml(changed), encoding="utf-8")
    done = call(
        *("explain-quality", trained, path, "--task", "sentiment", "--method", "occlusion"),
        *("--rationale-column", "mark"),
        fails=True,
    )
    assert "row 1: the rationale has 1 values, the text 2 words" in done.err
