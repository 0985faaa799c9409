"""How a training run shows its progress on the command line; imports transformers, so commands import it late."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_mtl.cli._terminal import err
from hf_mtl.training.batching import EpochBatchSampler
from hf_mtl.training.plan import TrainingPlan

if TYPE_CHECKING:
    from rich.table import Table


class TrainingProgress(TrainerCallback):
    """Shows a progress bar on a terminal; the training plan and a line per evaluation everywhere."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.task: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            batches = getattr(kwargs.get("train_dataloader"), "batch_sampler", None)
            if isinstance(batches, EpochBatchSampler):
                err().print(plan_table(TrainingPlan.of(batches)))
            precision = next((name for name in ("bf16", "fp16") if getattr(args, name)), "fp32")
            sampling = getattr(args, "sampling", None)  # said, as it may have been chosen from what the rest allows
            sampled = f", sampling {sampling}" if isinstance(batches, EpochBatchSampler) else ""
            err().print(f"training {state.max_steps - state.global_step} steps in {precision}{sampled}")
        if not state.is_world_process_zero or not sys.stderr.isatty():
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=err())
        self.task = self.bar.add_task("Training", total=state.max_steps, completed=state.global_step)
        self.bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.update(self.task, description=f"Training, loss {logs['loss']:.3f}")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and metrics:
            console = self.bar.console if self.bar is not None else err()
            console.print(f"epoch {state.epoch or 0:.2f}: validation average {metrics['eval_average']:.4f}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar off the terminal, also after an error, or the cursor would stay hidden."""
        if self.bar is not None:
            self.bar.stop()


def plan_table(plan: TrainingPlan) -> Table:
    """Lay out what a training draws from each dataset."""
    from rich.table import Table

    table = Table(title=f"{plan.batches} batches an epoch, {plan.epochs:g} epochs", title_justify="left")
    table.add_column("dataset", overflow="fold")
    table.add_column("tasks", overflow="fold")
    for name in ("rows", "share", "rows an epoch", "batches an epoch", "rows a batch", "times seen"):
        table.add_column(name, justify="right")
    for own in plan.datasets:
        share = f"{own.share:.1%}" if own.share == own.last_share else f"{own.share:.1%} to {own.last_share:.1%}"
        numbers = (str(own.rows), share, str(own.epoch_rows), str(own.batches))
        table.add_row(own.name, ", ".join(own.tasks), *numbers, f"{own.rows_per_batch:.1f}", f"{own.rounds:.2f}")
    return table
