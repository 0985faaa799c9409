"""How long a run has trained, over all its starts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_mtl.writing import write_text

SECONDS_NAME = "training_seconds.json"


class TrainingClock(TrainerCallback):
    """Measures the seconds of a training, its evaluations and checkpoints included.

    The seconds stand in every checkpoint, so that a resumed run goes on counting from there: work that a kill undid is
    counted once, as if there had been no kill. (`train_runtime` of transformers begins anew with every start.)
    `was_resumed` tells whether the training went on with a checkpoint.
    """

    def __init__(self) -> None:
        self._before = 0.0
        self.was_resumed = False
        self._start: float | None = None
        self._end: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds from the begin of training to its end, or until now."""
        if self._start is None:
            return self._before
        return self._before + (time.perf_counter() if self._end is None else self._end) - self._start

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.was_resumed = state.global_step > 0
        self._before = _read(_place(args, state)) if state.global_step else 0.0
        self._start, self._end = time.perf_counter(), None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        place = _place(args, state)
        if state.is_world_process_zero and place.parent.is_dir():
            write_text(json.dumps({"seconds": self.seconds}) + "\n", place)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end = time.perf_counter()


def _place(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / SECONDS_NAME


def _read(path: Path) -> float:
    """Return the seconds of a checkpoint; none where the run was killed before they were written."""
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
