"""Training on batches that a test chooses itself: a model of three tasks, rows that lack some labels, a trainer.

Run as a program it trains what a job file says, on as many processes as there are.
"""

from __future__ import annotations

import copy
import gc
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, TrainerCallback

from hf_mtl.configuration import MultiTaskConfig, TaskSpec
from hf_mtl.data.collator import LABEL_PREFIX
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.balancing_methods import AGGREGATIONS, BALANCINGS, Method
from hf_mtl.training.trainer import MultiTaskTrainer

SPECS = (
    TaskSpec(name="topic", type="sequence_classification", labels=("a", "b", "c"), loss_weight=1.5, pooling="mean"),
    TaskSpec(name="tags", type="token_classification", labels=("O", "B-x", "I-x"), loss_weight=0.5),
    TaskSpec(name="stars", type="regression", pooling="attention", loss_weight=0.25),
)
TASKS = tuple(spec.name for spec in SPECS)

METHODS: list[tuple[str, str]] = [("balancing", name) for name in BALANCINGS]
METHODS += [("aggregation", name) for name in AGGREGATIONS]
OPTIONS: dict[str, dict[str, Any]] = {
    "constant": {"weights": {"topic": 0.7, "tags": 2.0, "stars": 0.4}},
    "famo": {"min_losses": {"topic": 0.05, "tags": 0.1, "stars": 0.0}, "lr": 0.1},
    "stch": {"mu": 0.5, "weights": {"topic": 0.5, "tags": 0.3, "stars": 0.2}},
    "uw": {"lr": 0.2},
    "imtl_l": {"lr": 0.1},
    "upgrad": {"pref_vector": {"topic": 0.2, "tags": 0.3, "stars": 0.5}},
    "graddrop": {"leak": {"topic": 0.0, "tags": 0.5, "stars": 0.1}},
    "nash_mtl": {"update_weights_every": 2},
}


def method_of(family: str, name: str) -> Method:
    return {"balancing": BALANCINGS, "aggregation": AGGREGATIONS}[family][name]


def choose(family: str, name: str, **more: Any) -> dict[str, Any]:
    """Return the training arguments that choose a method, with options, and what it needs."""
    every_task = method_of(family, name).every_task
    return {family: name, f"{family}_kwargs": OPTIONS.get(name), "every_task_in_batch": every_task, **more}


def model_of(*, dropout: float = 0.0) -> MultiTaskModel:
    encoder = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = MultiTaskModel(MultiTaskConfig(encoder_config=encoder, tasks=list(SPECS)))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # large enough that tasks disagree
    return model


def rows_of(count: int, *, missing: float = 0.3, seed: int = 0, without: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Make rows of 2 to 10 tokens that lack each label with some probability, those of `without` always."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        tokens = draw.randint(2, 10)
        labels = {
            "topic": draw.randrange(3),
            "tags": [draw.choice((-100, 0, 1, 2)) for _ in range(tokens)],
            "stars": draw.gauss(0.0, 1.0),
        }
        kept = {task: label for task, label in labels.items() if draw.random() >= missing and task not in without}
        row = {"input_ids": [draw.randrange(1, 40) for _ in range(tokens)]}
        rows.append(row | {LABEL_PREFIX + task: kept.get(task) for task in TASKS})
    return rows


class FixedTrainer(MultiTaskTrainer):
    """Trains on given rows in their order, the same in each epoch; several processes share each batch.

    Args:
        rows: all rows of an epoch.
        batch_size: rows of a micro-batch, of all processes together.
        values: training arguments.
    """

    def __init__(
        self,
        rows: list[dict[str, Any]],
        *,
        folder: Path,
        batch_size: int,
        model: MultiTaskModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **values: Any,
    ) -> None:
        self.fixed_rows, self.fixed_batch_size = rows, batch_size
        self.gradients: list[dict[str, Tensor]] = []
        defaults: dict[str, Any] = {
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
            "precision": "fp32",
            "disable_tqdm": True,
            "optim": "sgd",
            "learning_rate": 0.1,
            "head_learning_rate": 0.1,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "max_grad_norm": 0.0,
            "logging_steps": 10**6,
        }
        arguments = MultiTaskTrainingArguments(output_dir=str(folder), **{**defaults, **values})
        model = model_of() if model is None else model
        super().__init__(model, arguments, callbacks=[*(callbacks or []), KeepGradients(self)])

    def get_train_dataloader(self) -> DataLoader[Any]:
        rank, processes, size = self.args.process_index, self.args.world_size, self.fixed_batch_size
        whole = [list(range(start, start + size)) for start in range(0, len(self.fixed_rows), size)]
        share = size // processes
        batches = [batch[rank * share : (rank + 1) * share] for batch in whole]
        loader = DataLoader(self.fixed_rows, batch_sampler=batches, collate_fn=self.data_collator)
        return prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True, rng_types=[]
        )

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        return len(self.fixed_rows)


class KeepGradients(TrainerCallback):
    """Keeps the gradients that each optimizer step is made with, those of the balancing method's own weights, too."""

    def __init__(self, trainer: FixedTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = dict(self.trainer.multi_task_model.named_parameters())
        balancing = self.trainer._objective.balancing
        named |= {f"balancing.{i}": p for i, p in enumerate(balancing.learned if balancing else [])}
        kept = {name: copy.deepcopy(p.grad) for name, p in named.items() if p.grad is not None}
        self.trainer.gradients.append(kept)


# accelerate collects garbage at each training; what was imported by now need not be walked through every time.
gc.freeze()


def weights(trainer: MultiTaskTrainer) -> dict[str, Tensor]:
    found = {name: weight.clone() for name, weight in trainer.multi_task_model.state_dict().items()}
    balancing = trainer._objective.balancing
    if balancing is not None:
        found |= {f"balancing.{name}": value.clone() for name, value in balancing.scalarizer.state_dict().items()}
    return found


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], *, atol: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=atol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def run(job_file: Path) -> None:
    """Train with many methods one after the other; write weights and a report of each process."""
    heavy = sorted({"torchjd", "cvxpy", "quadprog", "ecos"} & {*sys.modules})
    job = json.loads(job_file.read_text(encoding="utf-8"))
    for name, values in job.items():
        # The second half of each batch, the second process's, has no stars; the first half of the second no tags.
        rows = [*rows_of(4, seed=1), *rows_of(4, seed=2, without=["stars"])]
        rows += [*rows_of(4, seed=3, without=["tags"]), *rows_of(4, seed=4, without=["stars"])]
        trainer = FixedTrainer(rows, folder=job_file.parent / name, logging_steps=1, **values)
        trainer.train()
        place = job_file.with_name(f"{name}-{trainer.args.process_index}")
        logs = [log for log in trainer.state.log_history if "train_loss" not in log]
        report = {"world_size": trainer.args.world_size, "imported": heavy, "logs": logs}
        place.with_suffix(".json").write_text(json.dumps(report), encoding="utf-8")
        torch.save(weights(trainer), place.with_suffix(".pt"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
