"""Model cards: what training knows of a model, written for people and, as metadata, for the Hub.

A card is made of sections between marks. When a model is saved again, a section is written anew if nobody edited it;
what users wrote, inside a section or outside of all, stays.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_mtl.configuration import TaskSpec
from hf_mtl.registry import HEADS
from hf_mtl.writing import write_text

CARD_NAME = "README.md"
CURVE_NAME = "training_curve.png"
TASK_TYPES = {
    "token_classification": "token-classification",
    "regression": "text-classification",
    "masked_language_modeling": "fill-mask",
    "multiple_choice": "multiple-choice",
}
"""The Hub's names of our task types; all others are text classification."""
METRIC_TYPES = {"f1_macro": "f1", "f1_micro": "f1", "f1_weighted": "f1", "mcc": "matthews_correlation"}
"""The Hub's names of metrics that it knows under another one."""
SHOWN_LABELS = 12

_SECTION = re.compile(r"<!-- hf_mtl:begin (\w+) ([0-9a-f]{12}) -->\n(.*?)\n?<!-- hf_mtl:end \1 -->", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """One dataset of the training.

    Args:
        name: its name in the recipe.
        rows: rows by split.
        share: share of the training rows that came from it, in [0, 1]; `None` where it is not known.
        hub_id: its id on the Hub, for datasets that come from there.
    """

    name: str
    rows: Mapping[str, int]
    share: float | None = None
    hub_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All that a card says; what is not known is left out of it.

    Args:
        name: name of the model, its repository's on the Hub.
        encoder: Hub id or name of the encoder that training began with.
        tasks: the tasks.
        task_datasets: name of the dataset of each task.
        datasets: the datasets.
        results: split -> task -> metric -> value, only what was computed.
        primary: name of the primary metric of each task.
        hyperparameters: training arguments that tell how the model was trained.
        versions: versions of the libraries.
        seconds: seconds of training.
        hardware: what it was trained on.
        emissions: kilograms of CO2 equivalents, where they were measured.
        has_curve: whether a picture of the training curve stands beside the card.
        language: language codes of the texts.
        license: licence of the model, as the Hub names it.
        example: a text to try the model with.
    """

    name: str
    encoder: str
    tasks: Sequence[TaskSpec]
    task_datasets: Mapping[str, str] = field(default_factory=dict)
    datasets: Sequence[DatasetFacts] = ()
    results: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    primary: Mapping[str, str] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    hardware: str | None = None
    emissions: float | None = None
    has_curve: bool = False
    language: Sequence[str] = ()
    license: str | None = None
    example: str = "A text to try it with."


def write_card(folder: str | Path, facts: CardFacts) -> Path:
    """Write a model's card, or bring the one that stands there up to date.

    Args:
        folder: the model's folder.
        facts: what the card says.

    Returns:
        The file, `README.md`.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(folder) / CARD_NAME
    standing = ModelCard.load(path, ignore_metadata_errors=True) if path.is_file() else None
    text = _merged(standing.text, facts) if standing is not None else f"\n{_new_text(facts)}"
    metadata = card_metadata(facts)
    if standing is not None:
        metadata = _merged_metadata(standing.data.to_dict(), metadata)
    card = ModelCard(f"---\n{ModelCardData(**_with_results(metadata, facts)).to_yaml()}\n---\n{text}")
    write_text(str(card), path)
    return path


def card_metadata(facts: CardFacts) -> dict[str, Any]:
    """Return the card's metadata without its results: only what is known."""
    hub_ids = [dataset.hub_id for dataset in facts.datasets if dataset.hub_id]
    known: dict[str, Any] = {
        "library_name": "transformers",
        "base_model": facts.encoder if re.fullmatch(r"[\w.-]+/[\w.-]+", facts.encoder) else None,
        "datasets": hub_ids or None,
        "language": list(facts.language) or None,
        "license": facts.license,
        "metrics": sorted({METRIC_TYPES.get(facts.primary[task.name], facts.primary[task.name]) for task in facts.tasks
                           if task.name in facts.primary}) or None,
        "tags": ["multi-task", "hf_mtl", *sorted({_hub_task(task) for task in facts.tasks})],
        "co2_eq_emissions": None if facts.emissions is None else {"emissions": 1000 * facts.emissions},
    }  # fmt: skip
    return {key: value for key, value in known.items() if value is not None}


def _merged_metadata(standing: Mapping[str, Any], generated: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what stands in a card, add what is new to its lists, and bring up to date what nobody writes by hand."""
    merged = dict(standing)
    for key, value in generated.items():
        old = standing.get(key)
        if isinstance(old, list) and isinstance(value, list):
            merged[key] = list(dict.fromkeys([*cast(list[Any], old), *cast(list[Any], value)]))
        elif old is None or key in ("base_model", "co2_eq_emissions"):
            merged[key] = value
    return merged


def _with_results(metadata: dict[str, Any], facts: CardFacts) -> dict[str, Any]:
    results = [
        EvalResult(
            task_type=_hub_task(task),
            task_name=task.name,
            dataset_type=_dataset_of(task, facts).hub_id or _dataset_of(task, facts).name,
            dataset_name=_dataset_of(task, facts).name,
            dataset_split=split,
            dataset_config=task.name,  # without it, the Hub takes tasks of one type on one dataset for the same
            metric_type=METRIC_TYPES.get(metric, metric),
            metric_name=metric,
            metric_value=float(value),
        )
        for split, by_task in facts.results.items()
        for task in facts.tasks
        for metric, value in by_task.get(task.name, {}).items()
    ]
    if not results:
        return {key: value for key, value in metadata.items() if key != "model-index"}
    return {
        **{key: value for key, value in metadata.items() if key != "model-index"},
        "model_name": facts.name,
        "eval_results": results,
    }


def _hub_task(task: TaskSpec) -> str:
    return TASK_TYPES.get(task.type, "text-classification")


def _dataset_of(task: TaskSpec, facts: CardFacts) -> DatasetFacts:
    name = facts.task_datasets.get(task.name, task.name)
    return next((dataset for dataset in facts.datasets if dataset.name == name), DatasetFacts(name=name, rows={}))


# ---------------------------------------------------------------------- text


def sections(facts: CardFacts) -> dict[str, str]:
    """Return the text of each section, in Markdown."""
    return {
        "summary": _summary(facts),
        "tasks": _table(("task", "type", "labels"), [_task_line(task) for task in facts.tasks]),
        "usage": _usage(facts),
        "results": _results(facts),
        "data": _data(facts),
        "training": _training(facts),
        "limitations": _limitations(facts),
    }


def _summary(facts: CardFacts) -> str:
    names = ", ".join(task.name for task in facts.tasks)
    return (
        f"One encoder (from `{facts.encoder}`) with {len(facts.tasks)} heads: {names}. A single pass over a text "
        "answers all of them. Trained with [hf_mtl](https://huggingface.co/models?library=hf_mtl)."
    )


def _task_line(task: TaskSpec) -> tuple[str, str, str]:
    labels = [f"`{label}`" for label in (task.labels or ())[:SHOWN_LABELS]]
    more = len(task.labels or ()) - len(labels)
    head = HEADS.get(task.type)
    answer = "one of each row's choices" if head.reads_choices else "a number"
    answer = "tokens of the text" if head.masks_tokens else answer
    return task.name, task.type, ", ".join(labels) + (f" and {more} more" if more > 0 else "") or answer


def _usage(facts: CardFacts) -> str:
    return f"""\
```python
from transformers import pipeline

answer = pipeline("multi-task", model="{facts.name}", trust_remote_code=True)
print(answer({facts.example!r}))
```

`trust_remote_code` runs the code that is saved beside the weights. With `pip install hf-mtl` and `import hf_mtl.auto`
in front it is not needed."""


def _results(facts: CardFacts) -> str:
    if not facts.results:
        return "The model has not been evaluated."
    parts: list[str] = []
    for split, by_task in facts.results.items():
        rows = [
            (task, metric, f"{value:.4f}" + (" (primary)" if facts.primary.get(task) == metric else ""))
            for task, metrics in by_task.items()
            for metric, value in metrics.items()
        ]
        parts.append(f"On the {split} split:\n\n" + _table(("task", "metric", "value"), rows))
    return "\n\n".join(parts)


def _data(facts: CardFacts) -> str:
    if not facts.datasets:
        return "The training data is not known."
    splits = list(dict.fromkeys(split for dataset in facts.datasets for split in dataset.rows))
    rows = [
        (
            f"[{dataset.name}](https://huggingface.co/datasets/{dataset.hub_id})" if dataset.hub_id else dataset.name,
            *(f"{dataset.rows[split]:,}" if split in dataset.rows else "" for split in splits),
            "" if dataset.share is None else f"{dataset.share:.1%}",
        )
        for dataset in facts.datasets
    ]
    return _table(("dataset", *(f"{split} rows" for split in splits), "share of training"), rows)


def _training(facts: CardFacts) -> str:
    parts: list[str] = []
    if facts.hyperparameters:
        rows = [(f"`{name}`", f"`{value}`") for name, value in facts.hyperparameters.items()]
        parts.append(_table(("argument", "value"), rows))
    cost = [f"{facts.seconds / 3600:.2f} hours"] if facts.seconds is not None else []
    cost += [f"on {facts.hardware}"] if facts.hardware else []
    cost += [f"{facts.emissions:.3f} kg of CO2 equivalents"] if facts.emissions is not None else []
    if cost:
        parts.append("Trained for " + ", ".join(cost) + "." if facts.seconds is not None else ", ".join(cost) + ".")
    if facts.versions:
        parts.append("With " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + ".")
    if facts.has_curve:
        parts.append(f"![training and validation over the steps]({CURVE_NAME})")
    return "\n\n".join(parts) or "How it was trained is not known."


def _limitations(facts: CardFacts) -> str:
    lines = [
        "The heads answer for texts like those they were trained on; scores on other kinds of text may be lower.",
        "Probabilities are not calibrated unless it is said here that they were.",
    ]
    small = [dataset.name for dataset in facts.datasets if 0 < dataset.rows.get("train", 0) < 1000]
    if small:
        lines.append(f"Fewer than 1,000 training rows: {', '.join(small)}.")
    graphs = [task.name for task in facts.tasks if task.token_graph]
    if graphs:
        lines.append(
            f"Read the dependency graph of the words: {', '.join(graphs)}. Give `heads`, the governor of each word, "
            "beside `tokens`; without, each word joins its neighbours."
        )
    unscored = [
        task.name for task in facts.tasks if not any(task.name in by_task for by_task in facts.results.values())
    ]
    if unscored:
        lines.append(f"Not evaluated: {', '.join(unscored)}.")
    return "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


# ---------------------------------------------------------------------- template, and the card that stands


@cache
def _template() -> str:
    """Return the template: in the package where that was installed from a wheel, else beside it."""
    packaged = files("hf_mtl.hub").joinpath("template.md")
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[2] / "model_cards" / "template.md").read_text(encoding="utf-8")


def _new_text(facts: CardFacts) -> str:
    text = _template().replace("{title}", facts.name.rpartition("/")[2])
    for name, content in sections(facts).items():
        text = text.replace(f"{{begin:{name}}}\n{{{name}}}\n{{end:{name}}}", _marked(name, content))
    return text


def _merged(text: str, facts: CardFacts) -> str:
    generated = sections(facts)

    def renewed(match: re.Match[str]) -> str:
        name, mark, content = cast(tuple[str, str, str], match.groups())
        is_ours = name in generated and _mark(content) == mark
        return _marked(name, generated[name]) if is_ours else match.group(0)

    return _SECTION.sub(renewed, text)


def _marked(name: str, content: str) -> str:
    return f"<!-- hf_mtl:begin {name} {_mark(content)} -->\n{content}\n<!-- hf_mtl:end {name} -->"


def _mark(content: str) -> str:
    return hashlib.sha256(content.strip().encode("utf-8")).hexdigest()[:12]
