"""Train the tiny recipe as a job file says, on as many processes as there are; started by `test_trainer.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tiny import build, load

from hf_mtl.training.recipe_arguments import training_arguments
from hf_mtl.training.trainer import MultiTaskTrainer


def main(job_file: str) -> None:
    torch.set_num_threads(1)
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    output = Path(job["output"])
    values = {
        # Adam divides rounding errors of vanishing gradients by their size; plain descent shows the gradients.
        "optim": "sgd",
        "learning_rate": 0.02,
        "num_train_epochs": 2,
        "logging_steps": 5,
        "disable_tqdm": True,
        "precision": "fp32",
        **job["training"],
    }
    arguments = training_arguments(output, values)
    files = Path(job["files"])
    with arguments.main_process_first():
        data = load(files, json.loads((files / "recipe.json").read_text(encoding="utf-8")))
    trainer = MultiTaskTrainer(
        build(data), arguments, train_dataset=data.train, eval_dataset=data.validation, processing_class=data.tokenizer
    )
    trainer.train()
    trainer.save_model(str(output / "model"))
    if trainer.is_world_process_zero():
        timeless = [
            {key: value for key, value in log.items() if "runtime" not in key and "per_second" not in key}
            for log in trainer.state.log_history
            if "train_loss" not in log
        ]
        report = {"world_size": arguments.world_size, "logs": timeless}
        (output / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
