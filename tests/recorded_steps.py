"""Training that writes down the plan and the gradients of each step.

Run as a program it trains what a job file says, on as many processes as there are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import torch
from tiny import build, load
from torch import Tensor
from transformers import TrainerCallback

from hf_mtl.data.collator import LABEL_PREFIX
from hf_mtl.data.preparation import RecipeData
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.trainer import MultiTaskTrainer

RECORDED: dict[str, Any] = {
    "num_train_epochs": 1,
    "optim": "sgd",
    "learning_rate": 0.0,  # the weights stay as they are: each step's gradients stand for themselves
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "precision": "fp32",
    "disable_tqdm": True,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
}
"""Training arguments under which the gradients of each step are those of the loss, and nothing else."""


class Gradients(TrainerCallback):
    """Keeps the gradients that each optimizer step is made with; `None` where there is none."""

    def __init__(self, trainer: MultiTaskTrainer) -> None:
        self.trainer = trainer
        self.steps: list[dict[str, Tensor | None]] = []
        trainer.add_callback(self)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = self.trainer.multi_task_model.named_parameters()
        self.steps.append({name: None if p.grad is None else p.grad.clone() for name, p in named})


def plan(trainer: MultiTaskTrainer) -> dict[str, Any]:
    """Return the first epoch's batches of this process: their rows, their tasks, and what all processes draw."""
    batches: Any = trainer.get_train_dataloader().batch_sampler
    rows: list[list[int]] = [list(own) for own in batches]
    prefix = len(LABEL_PREFIX)
    tasks = [
        {key[prefix:] for row in trainer.train_dataset.__getitems__(own) for key, value in row.items()
         if key.startswith(LABEL_PREFIX) and value is not None}
        for own in rows
    ]  # fmt: skip
    return {"rows": rows, "tasks": tasks, "drawn": batches.drawn.tolist()}


def run(job_file: Path) -> None:
    """Train each of the job's runs; `batch_size` counts the rows of all processes together."""
    torch.set_num_threads(1)
    job = json.loads(job_file.read_text(encoding="utf-8"))
    for name, values in job["runs"].items():
        values = {**RECORDED, **values}
        batch_size, architecture = values.pop("batch_size"), values.pop("architecture", None)
        graphs = values.pop("token_graphs", ())
        tasks = [
            {**task, **({"token_graph": True} if task["name"] in graphs else {})} for task in job["recipe"]["tasks"]
        ]
        data = load(job_file.parent, {**job["recipe"], "tasks": tasks})
        arguments = MultiTaskTrainingArguments(output_dir=str(job_file.with_name(name)), **values)
        arguments.per_device_train_batch_size = batch_size // arguments.world_size
        model = _model(data, architecture)
        trainer = MultiTaskTrainer(model, arguments, train_dataset=data.train, processing_class=data.tokenizer)
        gradients = Gradients(trainer)
        trainer.train()
        logs = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        record = {"world_size": arguments.world_size, "gradients": gradients.steps, "losses": logs, **plan(trainer)}
        torch.save(record, job_file.with_name(f"{name}-{arguments.process_index}-of-{arguments.world_size}.pt"))


def _model(data: RecipeData, architecture: dict[str, Any] | None) -> MultiTaskModel:
    model = build(data, architecture=architecture)
    for place, parameter in enumerate(model.task_adapters.parameters()):  # apart from each other, so that a tie pulls
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(place))
    for passed in model.token_graphs.values():
        torch.nn.init.constant_(cast(Any, passed).scales, 0.5)  # so that messages are heard
    return model


if __name__ == "__main__":
    run(Path(sys.argv[1]))
