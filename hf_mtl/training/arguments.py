"""`MultiTaskTrainingArguments`: transformers' training arguments, with defaults for fine-tuning on several tasks."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from hf_mtl.data.recipe import near
from hf_mtl.errors import RecipeError, SpecError
from hf_mtl.registry import SAMPLERS


@dataclass
class MultiTaskTrainingArguments(TrainingArguments):
    """All of transformers' `TrainingArguments`, and what several tasks need besides.

    Args:
        sampling: how datasets are sampled, the name of a registered sampling strategy.

    Raises:
        SpecError: `sampling` is not registered.
    """

    sampling: str = field(default="proportional", metadata={"help": "Sampling strategy of the datasets."})

    learning_rate: float = field(default=1e-4, metadata={"help": "Initial learning rate of AdamW."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the training data."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows of a training batch per device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows of an evaluation batch per device."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warmup steps, or their share of all steps if below 1."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the best checkpoint, not the last."})
    metric_for_best_model: str | None = field(
        default="average", metadata={"help": "What 'best' means: average, or <task>_<metric>."}
    )
    report_to: str | list[str] | None = field(
        default="none", metadata={"help": "Where to report: tensorboard, wandb..."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Log every so many steps."})

    def __post_init__(self) -> None:
        SAMPLERS.check(self.sampling)
        super().__post_init__()


def training_arguments(output_dir: str | Path, values: Mapping[str, Any]) -> MultiTaskTrainingArguments:
    """Make training arguments from a recipe's `training` and the command line.

    Args:
        output_dir: folder of checkpoints and the trained model.
        values: arguments by name, as YAML gives them.

    Raises:
        RecipeError: a name is unknown, or a value is not of the argument's type.
    """
    hints = typing.get_type_hints(MultiTaskTrainingArguments)
    known = {f.name: hints[f.name] for f in fields(MultiTaskTrainingArguments) if f.init and f.name != "output_dir"}
    accepted: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise RecipeError(f"unknown training argument {name!r}", mend=near(name, list(known)))
        accepted[name] = _accept(name, value, known[name])
    # Without evaluation there is no best checkpoint; asking for one by default would be refused.
    if str(accepted.get("eval_strategy", "epoch")) == "no" or str(accepted.get("save_strategy", "epoch")) == "no":
        accepted.setdefault("load_best_model_at_end", False)
        if not accepted["load_best_model_at_end"]:
            accepted.setdefault("metric_for_best_model", None)
    elif "eval_strategy" in accepted and "save_strategy" not in accepted:
        accepted["save_strategy"] = accepted["eval_strategy"]
        if "eval_steps" in accepted:
            accepted.setdefault("save_steps", accepted["eval_steps"])
    try:
        return MultiTaskTrainingArguments(output_dir=str(output_dir), **accepted)
    except SpecError as error:
        raise error.at("training") from None
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(str(error).strip().split("\n")[0], where="training", mend="correct the argument") from error


def _accept(name: str, value: Any, hint: Any) -> Any:
    """Check a value against an argument's type; whole numbers are taken for floats, and numbers in text refused."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    allowed = set(typing.get_args(hint)) if union else {hint}
    plain = {kind for kind in allowed if kind in (bool, int, float, str, type(None))}
    if isinstance(value, bool):
        fits = bool in plain
    elif isinstance(value, int):
        fits = bool(plain & {int, float})
    elif isinstance(value, float):
        fits = float in plain or (int in plain and value.is_integer())
        value = int(value) if fits and float not in plain else value
    elif value is None:
        fits = type(None) in plain
    else:
        # Text for anything that reads text: enumerations, lists and mappings check it themselves.
        fits = not isinstance(value, str) or str in plain or plain <= {type(None)}
    if not fits:
        wanted = " or ".join(sorted("null" if kind is type(None) else kind.__name__ for kind in plain))
        raise RecipeError(f"{name} is {value!r}", where="training", mend=f"give {wanted}")
    return float(value) if isinstance(value, int) and not isinstance(value, bool) and int not in plain else value
