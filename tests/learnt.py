"""The tiny world of `tiny.py`, learnt: a model whose answers stand on words that are known."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from tiny import build, load, write_encoder, write_recipe

from hf_mtl.explain.explainer import Explainer
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.trainer import MultiTaskTrainer


@cache
def learnt() -> Explainer:
    """Train once in a process, for seconds; the model is not to be changed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_encoder(folder / "encoder", dropout=0.0)
        data = load(folder, write_recipe(folder, folder / "encoder", rows={"train": 160}))
        arguments = MultiTaskTrainingArguments(
            output_dir=str(folder / "run"),
            num_train_epochs=12,
            per_device_train_batch_size=16,
            learning_rate=4e-3,
            precision="fp32",
            disable_tqdm=True,
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            report_to="none",
        )
        trainer = MultiTaskTrainer(build(data), arguments, train_dataset=data.train, processing_class=data.tokenizer)
        trainer.train()
        return Explainer(trainer.model.eval(), data.tokenizer)
