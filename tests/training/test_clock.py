"""The seconds of a training: counted on after an interruption, and never twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_mtl.training.clock import SECONDS_NAME, TrainingClock
from hf_mtl.training.trainer import MultiTaskTrainer

Make = Callable[..., MultiTaskTrainer]
OPTIONS: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
OPTIONS |= {"load_best_model_at_end": False}


def test_the_seconds_before_a_checkpoint_count(trainer_for: Make, tmp_path: Path) -> None:
    first = TrainingClock()
    trainer_for(callbacks=[first], **OPTIONS).train()
    files = [tmp_path / "run" / f"checkpoint-{step}" / SECONDS_NAME for step in (2, 4)]
    early, late = (json.loads(path.read_text())["seconds"] for path in files)
    assert 0 < early < late <= first.seconds
    assert first.seconds == first.seconds  # it stands still after the end
    files[0].write_text('{"seconds": 1000.0}')
    resumed = TrainingClock()
    trainer_for(callbacks=[resumed], **OPTIONS).train(resume_from_checkpoint=str(files[0].parent))
    assert resumed.seconds > 1000.0


@pytest.mark.mostly_slow(fast=1)
@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_a_checkpoint_that_does_not_say_counts_as_none(trainer_for: Make, tmp_path: Path, content: str | None) -> None:
    trainer_for(**OPTIONS).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    if content is not None:
        (checkpoint / SECONDS_NAME).write_text(content)
    clock = TrainingClock()
    assert clock.seconds == 0.0
    trainer_for(callbacks=[clock], **OPTIONS).train(resume_from_checkpoint=str(checkpoint))
    assert 0 < clock.seconds < 1000.0
