"""A world small enough to train on in a second: an encoder, a recipe of every task type, rows that can be learnt."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from hf_mtl.data.preparation import RecipeData, load_recipe
from hf_mtl.data.recipe import parse_recipe
from hf_mtl.evaluation.prediction import collator_for
from hf_mtl.model.modeling import MultiTaskModel

GOOD = ("good", "great", "lovely")
BAD = ("bad", "awful", "dull")
CITIES = ("rome", "oslo", "new york")
NAMES = ("ann", "bob")
FILLER = ("the", "film", "was", "a", "story", "with", "music", "and", "old", "songs")
WORDS = (*GOOD, *BAD, *FILLER, *NAMES, "rome", "oslo", "new", "york", "play", "fly", "to", "for", "me", "not")
TASKS = ("sentiment", "intent", "slots", "grammar", "similarity", "moods")


def write_encoder(folder: Path, *, dropout: float = 0.1, mask: bool = False) -> Path:
    """Write a two-layer BERT with random weights, and a WordPiece tokenizer that cuts unknown words into letters.

    Args:
        folder: where.
        dropout: its dropout.
        mask: whether there is a mask token, after all others.
    """
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    tokens += ["[MASK]"] if mask else []
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    special |= {"mask_token": "[MASK]"} if mask else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=48, **special).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=48,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


def write_recipe(folder: Path, encoder: Path, *, rows: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Write the datasets' files and return the recipe that names them."""
    counts = {"train": 40, "validation": 24, **(rows or {})}
    for split, count in counts.items():
        maker = _Maker(random.Random(split))
        for name, make in (
            ("films", maker.film),
            ("orders", maker.order),
            ("pairs", maker.pair),
            ("posts", maker.post),
        ):
            _write(folder / f"{name}-{split}.jsonl", [make(index) for index in range(count)])

    def files(name: str) -> dict[str, str]:
        return {split: f"{name}-{split}.jsonl" for split in counts}

    labels = {"sentiment": ("films", "label"), "intent": ("orders", "intent"), "slots": ("orders", "slots")}
    labels |= {"grammar": ("orders", "grammar"), "similarity": ("pairs", "score"), "moods": ("posts", "moods")}
    types = {"sentiment": "sequence_classification", "intent": "sequence_classification"}
    types |= {"slots": "token_classification", "grammar": "token_classification"}
    types |= {"similarity": "regression", "moods": "multi_label_classification"}
    return {
        "encoder": str(encoder),
        "datasets": {
            "films": {**files("films"), "text": "text"},
            "orders": {**files("orders"), "tokens": "tokens"},
            "pairs": {**files("pairs"), "text": "text", "text_pair": "text_pair"},
            "posts": {**files("posts"), "text": "text"},
        },
        "tasks": [
            {"name": name, "type": types[name], "dataset": labels[name][0], "label": labels[name][1]} for name in TASKS
        ],
    }


def write_questions(folder: Path) -> dict[str, Any]:
    """Write rows that ask for the city or the name in a text, which one in four lacks; return the dataset."""
    counts, nothing = {"train": 40, "validation": 24}, {"text": [], "answer_start": []}
    for split, count in counts.items():
        draw, lines = random.Random(split), []
        for index in range(count):
            wanted = index % 2
            parts = [*draw.choices(FILLER, k=draw.randint(2, 7)), draw.choice((CITIES, NAMES)[wanted])]
            answer = parts[-1] if index % 4 else None
            parts = [*(parts if answer else parts[:-1]), *draw.choices(FILLER, k=draw.randint(1, 4))]
            text = " ".join(parts)
            found = {"text": [answer], "answer_start": [text.index(f" {answer} ") + 1]} if answer else nothing
            row: dict[str, Any] = {"context": text, "question": ("fly to", "play for")[wanted], "answers": found}
            lines.append(json.dumps(row if index % 10 else {**row, "answers": None}))
        (folder / f"questions-{split}.jsonl").write_text("\n".join(lines) + "\n")
    files = {split: f"questions-{split}.jsonl" for split in counts}
    return {**files, "text": "context", "text_pair": "question"}


def write_quiz(folder: Path, *, rows: int = 40) -> dict[str, Any]:
    """Write rows whose right choice is the one of a good word, beside one or two of bad words; return the dataset."""
    counts = {"train": rows, "validation": 24}
    for split, count in counts.items():
        draw, lines = random.Random(split), []
        for index in range(count):
            choices = [draw.choice(GOOD), *draw.sample(BAD, draw.randint(1, 2))]
            choices = [" ".join([*draw.choices(FILLER, k=draw.randint(0, 2)), word]) for word in choices]
            right, text = choices[0], " ".join(draw.choices(FILLER, k=draw.randint(1, 9)))
            draw.shuffle(choices)
            label = choices.index(right) if index % 10 else None
            lines.append(json.dumps({"text": text, "options": choices, "right": label}))
        (folder / f"quiz-{split}.jsonl").write_text("\n".join(lines) + "\n")
    return {**{split: f"quiz-{split}.jsonl" for split in counts}, "text": "text", "choices": "options"}


def load(folder: Path, recipe: dict[str, Any], **options: Any) -> RecipeData:
    return load_recipe(parse_recipe(recipe, base=folder), **options)


def build(data: RecipeData, *, seed: int = 0, **options: Any) -> MultiTaskModel:
    return MultiTaskModel.from_encoder(data.encoder, data.tasks, seed=seed, **options)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the encoder (`encoder`; `plain`, without dropout; `masked`, with a mask token) and the data files."""
    folder = tmp_path_factory.mktemp("tiny")
    write_encoder(folder / "encoder")
    write_encoder(folder / "plain", dropout=0.0)
    write_encoder(folder / "masked", dropout=0.0, mask=True)
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tiny_folder: Path) -> dict[str, Any]:
    return write_recipe(tiny_folder, tiny_folder / "encoder")


@pytest.fixture(scope="session")
def tiny_data(tiny_folder: Path, tiny_recipe: dict[str, Any]) -> RecipeData:
    """Four datasets, six tasks: sentiment, intent and slots and grammar (with missing labels), similarity, moods."""
    return load(tiny_folder, tiny_recipe)


@pytest.fixture(scope="session")
def learnt(tiny_data: RecipeData) -> MultiTaskModel:
    """A model whose answers differ from row to row, and are right more often than not; not to be changed."""
    model = build(tiny_data).train()
    collator = collator_for(model, tiny_data.tokenizer)
    batches = [collator([split.features[row] for row in range(len(split))]) for split in tiny_data.train.values()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(25):
            for batch in batches:
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    return model.eval()


class _Maker:
    def __init__(self, random: random.Random) -> None:
        self.random = random

    def filler(self, most: int) -> list[str]:
        return self.random.choices(FILLER, k=self.random.randint(1, most))

    def film(self, index: int) -> dict[str, Any]:
        """Two films in three are good, and one in six is labelled wrongly: nothing can be right about all of them."""
        good = index % 3 > 0
        text = " ".join([*self.filler(12), self.random.choice(GOOD if good else BAD), *self.filler(5)])
        return {"text": text, "label": "pos" if good != (index % 12 in (3, 5)) else "neg"}

    def order(self, index: int) -> dict[str, Any]:
        """One order in four lacks its intent, another its slots; some words have no part of speech."""
        fly = self.random.random() < 0.5
        words = self.random.choice(CITIES).split() if fly else [self.random.choice(NAMES)]
        kind = "city" if fly else "name"
        before, after = ["fly", "to"] if fly else ["play"], self.filler(6)
        slots = ["O"] * len(before) + [f"B-{kind}", f"I-{kind}"][: len(words)] + ["O"] * len(after)
        grammar = ["VERB", "ADP"][: len(before)] + ["PROPN"] * len(words) + [None, *["X"] * (len(after) - 1)]
        return {
            "tokens": [*before, *words, *after],
            "intent": None if index % 4 == 1 else "fly" if fly else "play",
            "slots": None if index % 4 == 2 else slots,
            "grammar": grammar if index % 2 else None,
        }

    def pair(self, index: int) -> dict[str, Any]:
        first, shared = self.filler(8), self.random.randint(0, 4)
        second = [*first[:shared], *self.filler(4)]
        return {"text": " ".join(first), "text_pair": " ".join(second), "score": shared * 1.25}

    def post(self, index: int) -> dict[str, Any]:
        words = {"glad": self.random.choice(GOOD), "sad": self.random.choice(BAD), "musical": "music"}
        moods = [mood for mood in words if self.random.random() < 0.5]
        return {"text": " ".join([*self.filler(6), *(words[mood] for mood in moods)]), "moods": moods}


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
