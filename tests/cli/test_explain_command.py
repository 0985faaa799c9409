"""`hf-mtl explain`: on a terminal, in a pipe and in files; and one clear line for each thing that cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from calling import call, call_process
from families import FAMILIES
from transformers import AutoTokenizer

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.explain.explanation import Explanation
from hf_mtl.inference.loading import load_model
from hf_mtl.model.modeling import MultiTaskModel

TEXT = "the film was dull and awful"
FAST = ("--method", "occlusion")


@pytest.fixture(scope="session")
def without_attention(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model whose encoder mixes tokens without attention."""
    folder = tmp_path_factory.mktemp("fnet")
    tokenizer = AutoTokenizer.from_pretrained(trained)
    config = FAMILIES["fnet"].config("fnet")
    config.vocab_size = len(tokenizer)
    tasks = [TaskSpec(name="topic", type="sequence_classification", labels=("a", "b"))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MultiTaskModel(MultiTaskConfig(encoder_config=config, tasks=tasks)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_pipe_gets_plain_text(trained: Path) -> None:
    done = call("explain", trained, "--text", TEXT, "--task", "sentiment", "--task", "moods", *FAST)
    assert re.match(r"sentiment: (pos|neg)\nexplained: (pos|neg), \d", done.out)
    assert done.out.count(f"\n{TEXT}\n") == 2
    assert done.out.index("sentiment: ") < done.out.index("moods: ")
    assert "\x1b" not in done.out
    assert "method: occlusion" in done.out
    assert done.err == ""


def test_a_terminal_gets_coloured_words(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    done = call("explain", trained, "--text", TEXT, "--task", "sentiment", *FAST, terminal=True)
    assert re.search(r"\x1b\[[0-9;]*48;2;\d+;\d+;\d+m(the|film|was|dull|and|awful)\x1b\[0m", done.out)
    assert TEXT in re.sub(r"\x1b\[[0-9;]*m", "", done.out)


def test_files_are_written_by_their_ending(trained: Path, tmp_path: Path) -> None:
    arguments = ("explain", trained, "--text", TEXT, "--task", "sentiment", "--task", "slots", *FAST)
    for ending in ("html", "md", "txt", "json"):
        done = call(*arguments, "--output", tmp_path / f"report.{ending}")
        assert done.out == ""
        assert done.err == f"written: {tmp_path / f'report.{ending}'}\n"
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert html.count('<p class="words"') == 2
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith("### sentiment: ")
    assert (tmp_path / "report.txt").read_text(encoding="utf-8").startswith("sentiment: ")
    values = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(values) == ["sentiment", "slots"]
    assert Explanation.from_dict(values["sentiment"]["explanation"]).words == tuple(TEXT.split())
    for claim in values["sentiment"]["claims"]:
        assert [effect["how"] for effect in claim["effects"]] == ["delete", "mask"]
    assert values["sentiment"]["report"] in (tmp_path / "report.txt").read_text(encoding="utf-8")


def test_chinese_pairs_and_tokens(trained: Path) -> None:
    text, pair = "film 上海", "a story"
    done = call("explain", trained, "--text", text, "--text-pair", pair, "--task", "similarity", "--language", "zh",
                "--units", "token", *FAST)  # fmt: skip
    assert done.out.startswith("similarity：")
    assert f"\n{text}\n{pair}\n" in done.out
    assert "方法：occlusion" in done.out


def test_labels_and_words_can_be_asked_for(trained: Path) -> None:
    base = ("explain", trained, "--text", "fly to new york", *FAST)
    assert "explained: neg, " in call(*base, "--task", "sentiment", "--target", "neg").out
    assert "explained: neg rather than pos, " in call(
        *base, "--task", "sentiment", "--target", "neg", "--over", "pos"
    ).out  # fmt: skip
    for options in (("--over", "runner-up"), ("--target", "runner-up")):
        assert re.search(
            "explained: (neg rather than pos|pos rather than neg)", call(*base, "--task", "sentiment", *options).out
        )
    assert "for 'new york'" in call(*base, "--task", "slots", "--span", "2:4").out
    assert "city for 'york'" in call(*base, "--task", "slots", "--word", "3", "--target", "city").out


def test_a_seed_goes_to_the_methods_that_draw(trained: Path) -> None:
    arguments = (
        "explain",
        trained,
        "--text",
        "ann and bob play old songs to me",
        "--task",
        "slots",
        "--task",
        "intent",
    )
    first, again = (call(*arguments, "--method", "shapley:pairs=1", "--seed", "5").out for _ in range(2))
    assert first == again
    assert "seed 5" in first
    both = call(*arguments, "--seed", "5").out  # of the methods that auto stands for only one draws
    assert both.count("seed 5") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "topic"], "the model has no task 'topic'; choose from 'sentiment'"),
        (
            ["--task", "sentiment", "--target", "meh"],
            "task 'sentiment': target: label 'meh' is not in the label set; use",
        ),
        (["--task", "sentiment", "--over", "meh"], "task 'sentiment': target: label 'meh' is not in the label set"),
        (
            ["--task", "slots", "--word", "99"],
            "task 'slots': target names word 99, the text has 6 words; count words fr",
        ),
        (["--task", "slots", "--span", "3"], "--span is '3'; give the first word and the end, counted from 0: 2:4"),
        (["--task", "slots", "--span", "4:2"], "target is "),
        (
            ["--task", "sentiment", "--word", "1"],
            "task 'sentiment': target names word 1, but the task answers for the w",
        ),
        (
            ["--task", "similarity", "--target", "pos"],
            "task 'similarity': target is given, but the task answers a number",
        ),
        (["--target", "pos"], "what to explain is given for 6 tasks; name one: --task sentiment"),
        (["--method", "magic"], "'magic' is not an attribution method; use one of"),
        (["--method", "shapley:pears=3"], "the method 'shapley' has no such option"),
        (["--method", "shapley:pairs=0"], "pairs is 0"),
        (["--units", "letter"], "units is 'letter'; use one of 'word', 'token'"),
        (["--language", "fr"], "language is 'fr'; use one of 'en', 'zh'"),
        (
            ["--output", "report.pdf"],
            "--output is 'report.pdf'; give it one of the endings '.html', '.md', '.txt', '.json'",
        ),
        (["--output", "no/such/folder/report.html"], "no/such/folder: there is no such folder; make it first"),
        (["--text", "film " * 60], "the text has more than the 48 tokens that the model reads; explain a part of it"),
        (["--device", "abacus"], "device is 'abacus'"),
    ],
)
def test_what_cannot_be_is_one_clear_line(trained: Path, arguments: list[str], message: str) -> None:
    text = [] if "--text" in arguments else ["--text", TEXT]
    method = [] if "--method" in arguments else FAST
    done = call("explain", trained, *text, *method, *arguments, fails=True)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {message}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("method", ["attn_lrp", "attention"])
def test_a_method_of_attention_refuses_a_model_without_and_auto_says_what_took_its_place(
    without_attention: Path, method: str
) -> None:
    done = call("explain", without_attention, "--text", TEXT, "--method", method, fails=True)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith("error: ")
    assert "; " in done.err  # what to do about it
    assert "attn_lrp does not cover this model" in call("explain", without_attention, "--text", TEXT).out


def test_a_text_and_a_model_must_be_given(trained: Path) -> None:
    done = call("explain", trained, fails=True)
    assert done.code == 2
    assert "--text" in done.err
    done = call("explain", "no/such/model", "--text", TEXT, fails=True)
    assert (done.code, done.err.count("\n")) == (1, 1)


@pytest.mark.slow
def test_a_real_process_explains(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    done = call_process("explain", trained, "--text", "上海 <script>", "--task", "intent", *FAST, "--output", target)
    assert (done.code, done.out) == (0, "")
    assert "<script" not in target.read_text(encoding="utf-8")
    assert load_model(trained, device="cpu")[0].specs
