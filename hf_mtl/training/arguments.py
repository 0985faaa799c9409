"""`MultiTaskTrainingArguments`: transformers' training arguments, with defaults for fine-tuning on several tasks."""

from __future__ import annotations

import logging
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, cast

import torch
from transformers import IntervalStrategy, SchedulerType, TrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.training_args import OptimizerNames

from hf_mtl.data.recipe import near
from hf_mtl.errors import RecipeError, SpecError, one_of
from hf_mtl.model.precision import PRECISIONS, best_precision
from hf_mtl.registry import SAMPLERS

logger = logging.getLogger(__name__)

LOWER_IS_BETTER = ("loss", "rmse")
"""How the names of metrics end of which the best is the least."""

CHOICES: dict[str, tuple[str, ...]] = {
    name: tuple(str(member.value) for member in choices)
    for name, choices in {
        "eval_strategy": IntervalStrategy,
        "logging_strategy": IntervalStrategy,
        "save_strategy": SaveStrategy,
        "hub_strategy": HubStrategy,
        "lr_scheduler_type": SchedulerType,
        "optim": OptimizerNames,
    }.items()
} | {"precision": PRECISIONS, "log_level": ("debug", "info", "warning", "error", "critical", "passive")}

LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "save_total_limit": 1,
    "learning_rate": 0,
    "head_learning_rate": 0,
    "weight_decay": 0,
    "warmup_steps": 0,
    "max_grad_norm": 0,
    "eval_delay": 0,
    "seed": 0,
    "data_seed": 0,
    "dataloader_num_workers": 0,
}
"""The least value of a number; those of `ABOVE_ZERO` must be more than 0."""
ABOVE_ZERO = ("num_train_epochs", "logging_steps", "eval_steps", "save_steps")

WITHOUT_EFFECT = {
    "label_smoothing_factor": "set label_smoothing in a task",
    "train_sampling_strategy": "set sampling; rows of like length always come together",
    "dataloader_drop_last": "leave it out, every row is trained on",
    "bf16_full_eval": "leave it out, evaluation runs in the precision of training",
    "fp16_full_eval": "leave it out, evaluation runs in the precision of training",
}
"""Arguments of transformers that this trainer would ignore, and what to do instead."""

GONE = {
    "warmup_ratio": "use warmup_steps, which below 1 is a share of all steps",
    "evaluation_strategy": "use eval_strategy",
    "no_cuda": "use use_cpu",
    "group_by_length": "leave it out, rows of like length always come together",
    "logging_dir": "leave it out, or set the environment variable TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "leave it out",
    "save_safetensors": "leave it out, weights are always saved so",
    "per_gpu_train_batch_size": "use per_device_train_batch_size",
    "output_dir": "give the folder where the run is started",
}
"""Arguments that many still know, and what took their place."""

NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


@dataclass
class MultiTaskTrainingArguments(TrainingArguments):
    """All of transformers' `TrainingArguments`, and what several tasks need besides.

    Args:
        sampling: how datasets are sampled, the name of a registered sampling strategy.
        precision: `"fp32"`, `"bf16"` or `"fp16"` (mixed precision), or `"auto"`: bf16 where the device multiplies it
            faster than float32, else fp32. `bf16` and `fp16` of transformers, when true, go before it.
        head_learning_rate: initial learning rate of the heads, which begin with random weights where the encoder is
            pretrained; ten times `learning_rate` where not given.

    Raises:
        SpecError: an argument has a value that is not allowed, or that would have no effect.
    """

    sampling: str = field(default="proportional", metadata={"help": "Sampling strategy of the datasets."})
    precision: str = field(default="auto", metadata={"help": "auto, fp32, bf16 or fp16."})
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Initial learning rate of the heads; ten times learning_rate where not given."}
    )

    learning_rate: float = field(default=1e-4, metadata={"help": "Initial learning rate of AdamW."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the training data."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows of a training batch per device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows of an evaluation batch per device."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warmup steps, or their share of all steps if below 1."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    eval_strategy: IntervalStrategy | str = field(
        default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."}
    )
    save_strategy: SaveStrategy | str = field(
        default="epoch", metadata={"help": "When to save: no, steps, epoch or best."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the best checkpoint, not the last."})
    metric_for_best_model: str | None = field(
        default="average", metadata={"help": "What 'best' means: average, or <task>_<metric>."}
    )
    report_to: str | list[str] | None = field(
        default="none", metadata={"help": "Where to report: tensorboard, wandb..."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Log every so many steps."})
    # Pushing while training would put pickles (training_args.bin) on the Hub.
    hub_strategy: HubStrategy | str = field(default="end", metadata={"help": "When to push, if push_to_hub."})

    def __post_init__(self) -> None:
        SAMPLERS.check(self.sampling)
        self._check_values()
        self._check_best_model()
        if self.metric_for_best_model is None:
            self.metric_for_best_model = "average"  # transformers' choice, the loss of all, is none of ours
        if self.greater_is_better is None:
            self.greater_is_better = not self.metric_for_best_model.endswith(LOWER_IS_BETTER)
        if not torch.accelerator.is_available():
            # Else transformers 5.23 refuses bf16, and accelerate 1.15 lets every process of torchrun train by itself.
            self.use_cpu = True
        self._settle_precision()
        if self.ddp_find_unused_parameters is None:
            # A process has no labels for some task now and then; transformers forgets it with activation checkpointing.
            self.ddp_find_unused_parameters = True
        super().__post_init__()
        processes = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
        if processes > self.world_size:
            raise SpecError(
                f"{processes} processes were started, but {self.world_size} would take part",
                mend="set use_cpu to true, or start one process",
            )
        if self.n_gpu > 1:
            # DataParallel would cut the row numbers of a batch to pieces along with its rows.
            logger.warning("One of %d GPUs is used; start with torchrun or accelerate launch to use all", self.n_gpu)
            self._n_gpu = 1
        if _plain(self.lr_scheduler_type) in ("reduce_lr_on_plateau", "greedy"):
            # These follow metric_for_best_model, and would take less for better.
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs = {"mode": mode, **cast(dict[str, Any], self.lr_scheduler_kwargs or {})}
        self._check_reports()

    def _settle_precision(self) -> None:
        given = {"bf16": self.bf16, "fp16": self.fp16}
        if not any(given.values()) and self.precision == "auto":
            accelerator = torch.accelerator.current_accelerator()
            self.precision = best_precision("cpu" if self.use_cpu or accelerator is None else accelerator.type)
        elif self.precision == "auto":
            self.precision = next(name for name, chosen in given.items() if chosen)
        elif any(chosen and name != self.precision for name, chosen in given.items()):
            raise SpecError(f"precision is {self.precision!r}, beside {given}", mend="give precision alone")
        # transformers itself refuses both together.
        self.bf16, self.fp16 = self.bf16 or self.precision == "bf16", self.fp16 or self.precision == "fp16"

    def _check_values(self) -> None:
        for name, choices in CHOICES.items():
            value = _plain(getattr(self, name))
            if value not in choices:
                raise SpecError(f"{name} is {value!r}", mend=f"use one of {one_of(choices)}")
        for name in (*LEAST, *ABOVE_ZERO):
            value, least = getattr(self, name), LEAST.get(name)
            if isinstance(value, int | float) and (
                not math.isfinite(value) or (value < least if least is not None else value <= 0)
            ):
                wanted = f"at least {least}" if least is not None else "above 0"
                raise SpecError(f"{name} is {value!r}", mend=f"give a number {wanted}")
        if self.max_steps < 1 and self.max_steps != -1:
            raise SpecError(f"max_steps is {self.max_steps!r}", mend="give at least 1, or -1 for no limit")
        defaults = {f.name: f.default for f in fields(self)}
        for name, mend in WITHOUT_EFFECT.items():
            value = getattr(self, name)
            if value != defaults[name]:
                raise SpecError(f"{name} is {value!r}, which would have no effect", mend=mend)

    def _check_best_model(self) -> None:
        evaluates, saves = _plain(self.eval_strategy), _plain(self.save_strategy)
        if saves == "best" and evaluates == "no":
            raise SpecError("save_strategy is 'best', but eval_strategy is 'no'", mend="set eval_strategy")
        if self.load_best_model_at_end and saves not in ("best", evaluates):
            raise SpecError(
                f"eval_strategy is {evaluates!r} and save_strategy is {saves!r}, so the best model would not be saved",
                mend="give both the same value, or set load_best_model_at_end to false",
            )

    def _check_reports(self) -> None:
        if self.report_to:
            from transformers.integrations.integration_utils import get_available_reporting_integrations

            known = get_available_reporting_integrations()
            for name in self.report_to:
                if name not in known:
                    raise SpecError(
                        f"report_to is {name!r}, which is not known or not installed",
                        mend=f"install it, or use one of {one_of(['none', *known])}",
                    )


def training_arguments(output_dir: str | Path, values: Mapping[str, Any]) -> MultiTaskTrainingArguments:
    """Make training arguments from a recipe's `training` and the command line.

    What is not given follows from what is: without evaluation no best model is looked for, and checkpoints are saved
    when it is evaluated.

    Args:
        output_dir: folder of checkpoints and the trained model.
        values: arguments by name, as YAML gives them.

    Raises:
        RecipeError: a name is unknown, or a value is not allowed; names argument, value and the values allowed.

    Example:
        >>> training_arguments("unused", {"eval_strategy": "no", "learning_rate": 1}).load_best_model_at_end
        False
        >>> training_arguments("unused", {"learning_rate": "fast"})
        Traceback (most recent call last):
            ...
        hf_mtl.errors.RecipeError: training: learning_rate is 'fast'; give a number
    """
    hints = typing.get_type_hints(MultiTaskTrainingArguments)
    known = {f.name: hints[f.name] for f in fields(MultiTaskTrainingArguments) if f.init and f.name != "output_dir"}
    for name in values:
        if name not in known:
            mend = GONE.get(name) or near(name, list(known))
            raise RecipeError(f"unknown argument {name!r}", where="training", mend=mend)
    accepted = {name: _accept(name, value, known[name]) for name, value in values.items()}
    try:
        return MultiTaskTrainingArguments(output_dir=str(output_dir), **_completed(accepted))
    except SpecError as error:
        raise RecipeError(error.problem, where="training", mend=error.mend) from None
    except (ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(reason, where="training", mend="correct the argument") from error


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """Add what follows from the arguments given."""
    values = dict(values)
    if any(values.get(name) is False for name in ("bf16", "fp16")):
        values.setdefault("precision", "auto" if values.get("bf16") or values.get("fp16") else "fp32")
    evaluates, saves = _plain(values.get("eval_strategy")), _plain(values.get("save_strategy"))
    if "no" in (evaluates, saves):
        values.setdefault("load_best_model_at_end", False)
    elif evaluates is not None and saves is None:
        values["save_strategy"] = evaluates
        if evaluates == "steps":
            values.setdefault("save_steps", values.get("eval_steps") or values.get("logging_steps", 50))
    elif saves in ("steps", "epoch") and evaluates is None:
        values["eval_strategy"] = saves
        if saves == "steps":
            values.setdefault("eval_steps", values.get("save_steps", 500))
    return values


def _accept(name: str, value: Any, hint: Any) -> Any:
    """Check a value against an argument's type; whole numbers are taken for floats, and numbers in text refused."""
    kinds = _kinds(hint)
    if type(value) is int and int not in kinds and float in kinds:
        return float(value)
    if type(value) is float and float not in kinds and int in kinds and value.is_integer():
        return int(value)
    if type(value) not in kinds and not isinstance(value, Enum):
        wanted = " or ".join(NAMES.get(kind, "null") for kind in kinds)
        if name in CHOICES:
            wanted = f"one of {one_of(CHOICES[name])}"
        raise RecipeError(f"{name} is {value!r}", where="training", mend=f"give {wanted}")
    return value


def _kinds(hint: Any) -> list[type]:
    """Return the types that YAML can give for a type hint."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds: list[type] = []
    for option in typing.get_args(hint) if union else (hint,):
        origin = typing.get_origin(option) or option
        if origin is typing.Literal:
            kinds += [type(value) for value in typing.get_args(option)]
        elif origin in NAMES or origin is type(None):
            kinds.append(origin)
        elif isinstance(origin, type) and issubclass(origin, str):  # an enumeration
            kinds.append(str)
    return list(dict.fromkeys(kinds))


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
