"""What finished runs are worth beside each other: scores of the same rows, rows seen, seconds, parameters."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_mtl.data.collator import MODEL_COLUMNS
from hf_mtl.data.preparation import EncodedSplit
from hf_mtl.data.recipe import TaskSource
from hf_mtl.evaluation.intervals import paired_differences, percentiles
from hf_mtl.evaluation.metrics import TaskMetric, average, load_metric
from hf_mtl.evaluation.prediction import collator_for, length_batches, predict_batches
from hf_mtl.evaluation.scoring import counted_tasks, score
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.registry import HEADS
from hf_mtl.training.arguments import LOWER_IS_BETTER
from hf_mtl.training.series import free_memory
from hf_mtl.writing import TextTable, read_json, replacing, to_json, write_text

STATISTICS_NAME = "comparison_statistics.npz"
INFERENCE_ROWS = 1000
INFERENCE_ROUNDS = 3
MAX_TOKENS = 16384


@dataclass(frozen=True)
class Outcome:
    """What a finished run is worth.

    Args:
        statistics: per task the statistics of the rows it was scored on, `(num_rows, k)`, see `TaskMetric.statistics`.
        parameters: number of parameters of its model.
        train_rows: rows that were trained on, each as often as it came.
        train_seconds: seconds of the training.
    """

    statistics: dict[str, np.ndarray]
    parameters: int
    train_rows: int
    train_seconds: float


@dataclass(frozen=True)
class Scoring:
    """What all runs are scored on.

    Args:
        tasks: the tasks, with their labels.
        splits: the rows of each dataset.
        tokenizer: the tokenizer of all models.
        batch_size: rows a batch may have.
        device: where models are scored.
    """

    tasks: tuple[TaskSource, ...]
    splits: Mapping[str, EncodedSplit]
    tokenizer: Any
    batch_size: int
    device: Any

    def load(self, folder: Path) -> MultiTaskModel:
        """Load a run's model."""
        return MultiTaskModel.from_pretrained(folder).to(self.device)

    def of(self, names: Sequence[str]) -> dict[str, EncodedSplit]:
        """Return the splits of some tasks, without the labels of others."""
        own = {
            name: replace(split, tasks=tuple(task for task in split.tasks if task.spec.name in names))
            for name, split in self.splits.items()
        }
        return {name: split for name, split in own.items() if split.tasks}


def metric_of(task: TaskSource) -> TaskMetric:
    """Return a task's metric."""
    return load_metric(HEADS.get(task.spec.type).metric_name(task.spec), scheme=task.spec.scheme)


def read_outcome(folder: Path, train: Mapping[str, Any], names: Sequence[str], scoring: Scoring) -> Outcome:
    """Score a finished run, or read what was found when it was scored before.

    Args:
        folder: folder of the run.
        train: `train` of its results.
        names: its tasks.
        scoring: what it is scored on.
    """
    place = folder / STATISTICS_NAME
    if not place.is_file():
        model = scoring.load(folder)
        scores = score(model, scoring.tokenizer, scoring.of(names), batch_size=scoring.batch_size)
        arrays: dict[str, Any] = {f"task.{name}": own.statistics for name, own in scores.tasks.items()}
        parameters = sum(parameter.numel() for parameter in model.parameters())
        with replacing(place) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, parameters=np.array(parameters), **arrays)
        del model
        free_memory()
    with np.load(place) as stored:
        found = {name: stored[f"task.{name}"] for name in names}
        return Outcome(found, int(stored["parameters"]), train["train_rows"], train["train_seconds"])


# ---------------------------------------------------------------------- scores


def compared_scores(
    scoring: Scoring, alone: Mapping[str, Sequence[Outcome]], together: Sequence[Outcome], *, resamples: int
) -> dict[str, Any]:
    """Return each task's scores both ways, and the means over tasks, as plain JSON values.

    Args:
        scoring: the tasks and the rows they were scored on.
        alone: per task its single runs, one for each seed.
        together: the joint runs, one for each seed.
        resamples: draws of the paired bootstrap.
    """
    tasks: dict[str, Any] = {}
    draws: list[np.ndarray] = []
    for task in scoring.tasks:
        name, metric = task.spec.name, metric_of(task)
        sides = [[run.statistics[name] for run in runs] for runs in (alone[name], together)]
        by_seed = [[_value(metric, rows) for rows in side] for side in sides]
        single, joint = (sum(values) / len(values) for values in by_seed)
        # Tasks with the same labelled rows of one dataset are resampled together.
        place = list(scoring.splits).index(task.dataset)
        draws.append(paired_differences(metric, metric.primary, *sides, resamples=resamples, seed=(0, place)))
        tasks[name] = {
            "metric": metric.primary,
            "dataset": task.dataset,
            "split": scoring.splits[task.dataset].split,
            "rows": len(sides[0][0]),
            "alone": single,
            "together": joint,
            "difference": joint - single,
            "interval": list(percentiles(draws[-1])),
            "relative_gain": task_gain(single, joint, lower_is_better=metric.primary.endswith(LOWER_IS_BETTER)),
            "alone_by_seed": by_seed[0],
            "together_by_seed": by_seed[1],
        }
    counted = counted_tasks([task.spec for task in scoring.tasks])
    means = {
        side: average({name: {"score": tasks[name][side]} for name in counted}, dict.fromkeys(counted, "score"))
        for side in ("alone", "together")
    }
    mean = {
        **means,
        "difference": means["together"] - means["alone"],
        "interval": list(percentiles(np.mean([draws[list(tasks).index(name)] for name in counted], axis=0))),
        "relative_gain": math.fsum(tasks[name]["relative_gain"] for name in counted) / len(counted),
    }
    return {"tasks": tasks, "average": mean}


def task_gain(single: float, joint: float, *, lower_is_better: bool = False) -> float:
    """Return what a task gained together, in per cent of its score alone; the mean over tasks is delta-m.

    Args:
        single: the score alone.
        joint: the score together; counts as 0 where it is not defined.
        lower_is_better: whether a lower score is a gain.

    Returns:
        The gain; NaN where the score alone is not above 0.

    Source: Maninis et al. 2019, Attentive Single-Tasking of Multiple Tasks, https://arxiv.org/abs/1904.08918.

    Example:
        >>> task_gain(0.5, 0.75), task_gain(2.0, 1.5, lower_is_better=True)
        (50.0, 25.0)
    """
    if not single > 0:
        return math.nan
    change = 100.0 * ((0.0 if math.isnan(joint) else joint) - single) / single
    return -change if lower_is_better else change


def _value(metric: TaskMetric, rows: np.ndarray) -> float:
    return float(metric.scores(rows, np.ones((1, len(rows))))[metric.primary][0])


# ---------------------------------------------------------------------- cost


def compared_cost(
    alone: Mapping[str, Sequence[Outcome]], together: Sequence[Outcome], inference: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what both ways cost: the sum of the single runs beside the joint one, means over seeds.

    Args:
        alone: per task its single runs, one for each seed.
        together: the joint runs, one for each seed.
        inference: what `inference_seconds` returned.
    """
    singles = [run for runs in alone.values() for run in runs]

    def both(value: Callable[[Outcome], float]) -> dict[str, float]:
        sums = {"alone": singles, "together": together}
        return {side: math.fsum(value(run) for run in runs) / len(together) for side, runs in sums.items()}

    return {
        "train_rows": both(lambda run: run.train_rows),
        "train_seconds": both(lambda run: run.train_seconds),
        "parameters": both(lambda run: run.parameters),
        "inference_rows": inference["rows"],
        "inference_seconds": {side: statistics.median(inference[side]) for side in ("alone", "together")},
    }


def inference_seconds(scoring: Scoring, alone: Sequence[Path], together: Path, place: Path) -> dict[str, Any]:
    """Measure how long it takes to answer every task for every row, or read what was measured before.

    The models take turns, so that a machine that slows down slows all of them. What is measured: batches made, encoder
    and heads, logits brought to the CPU; rows are tokenized before.

    Args:
        scoring: where the rows are drawn from.
        alone: folders of the models of one task each.
        together: folder of the joint model.
        place: file of what was measured.

    Returns:
        `rows`, the number of rows, and the seconds of each round: in `alone` of one model after the other, in
        `together` of the joint one.
    """
    known = read_json(place)
    if known is not None:
        return known
    features = _sample(list(scoring.splits.values()), INFERENCE_ROWS)
    lengths = np.array([len(row["input_ids"]) for row in features], dtype=np.int64)
    batches = length_batches(lengths, batch_size=scoring.batch_size, max_tokens=MAX_TOKENS)

    def seconds(folder: Path) -> float:
        model = scoring.load(folder)
        collator = collator_for(model, scoring.tokenizer)
        list(predict_batches(model, collator, features, batches[:1]))  # what is done once is not counted
        start = time.perf_counter()
        for _ in predict_batches(model, collator, features, batches):
            pass
        return time.perf_counter() - start

    found: dict[str, Any] = {"rows": len(features), "alone": [], "together": []}
    for _ in range(INFERENCE_ROUNDS):
        found["alone"].append(math.fsum(seconds(folder) for folder in alone))
        found["together"].append(seconds(together))
    free_memory()
    write_text(to_json(found) + "\n", place)
    return found


def _sample(splits: Sequence[EncodedSplit], count: int) -> list[dict[str, Any]]:
    """Draw rows of several splits, without their labels."""
    starts = np.cumsum([0, *(len(split.features) for split in splits)])
    drawn = np.sort(np.random.default_rng(0).permutation(int(starts[-1]))[:count])
    rows: list[dict[str, Any]] = []
    for place, split in enumerate(splits):
        own = drawn[(drawn >= starts[place]) & (drawn < starts[place + 1])] - starts[place]
        columns: Any = split.features.select_columns([c for c in split.features.column_names if c in MODEL_COLUMNS])
        rows += columns.__getitems__(own.tolist()) if len(own) else []
    return rows


# ---------------------------------------------------------------------- tables


def comparison_tables(results: Mapping[str, Any]) -> tuple[TextTable, TextTable]:
    """Lay out a comparison: the scores of each task both ways, and what both ways cost.

    Args:
        results: what `hf_mtl.training.comparison.compare` returned.
    """
    header = ("task", "rows", "metric", "alone", "together", "difference", "95% interval", "relative")
    rows = [
        (name, f"{own['rows']:,} {own['split']}", own["metric"], *_compared(own))
        for name, own in results["tasks"].items()
    ]
    rows.append(("average", "", "", *_compared(results["average"])))
    seeds, cost = results["seeds"], results["cost"]
    title = "Alone and together" + (f", mean of {len(seeds)} seeds" if len(seeds) > 1 else "")
    costs = [
        _cost_row("training rows seen", cost["train_rows"], ",.0f"),
        _cost_row("training seconds", cost["train_seconds"], ",.1f"),
        _cost_row("parameters", cost["parameters"], ",.0f"),
        _cost_row(f"inference seconds, {cost['inference_rows']:,} rows", cost["inference_seconds"], ",.3f"),
    ]
    return (
        TextTable(title, header, rows),
        TextTable("Cost", ("", "all tasks alone", "together", "together / alone"), costs),
    )


def _compared(own: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = (_shown(bound, "+.4f") for bound in own["interval"])
    gain = _shown(own["relative_gain"], "+.2f")
    return (
        _shown(own["alone"], ".4f"),
        _shown(own["together"], ".4f"),
        _shown(own["difference"], "+.4f"),
        "-" if low == "-" else f"{low} to {high}",
        gain if gain == "-" else f"{gain}%",
    )


def _cost_row(name: str, both: Mapping[str, float], form: str) -> tuple[str, ...]:
    ratio = f"{both['together'] / both['alone']:.2f}" if both["alone"] else "-"
    return name, format(both["alone"], form), format(both["together"], form), ratio


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)
