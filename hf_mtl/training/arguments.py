"""`MultiTaskTrainingArguments`: transformers' training arguments, with defaults for fine-tuning on several tasks."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, cast

import torch
from transformers import IntervalStrategy, SchedulerType, TrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.training_args import OptimizerNames

from hf_mtl.errors import SpecError, one_of
from hf_mtl.model.lora import lora_config
from hf_mtl.model.precision import PRECISIONS, best_precision
from hf_mtl.registry import SAMPLERS
from hf_mtl.training.samplers.base import check_epoch_size
from hf_mtl.training.step_checks import check_balancing, check_packed, check_perturbation

logger = logging.getLogger(__name__)

AUTO = "auto"
BATCHINGS = ("mixed", "homogeneous")
LOWER_IS_BETTER = ("loss", "rmse", "mae")
"""How the names of metrics end of which the best is the least."""
RELATIVE_GAIN = "relative_gain"
"""What evaluations call the mean gain over single-task scores."""

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
} | {
    "precision": PRECISIONS,
    "batching": BATCHINGS,
    "log_level": ("debug", "info", "warning", "error", "critical", "passive"),
}

LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "max_tokens_per_batch": 1,
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
    "log_gradient_conflict": 0,
    "freeze_layers": 0,
    "head_patience": 1,
    "early_stopping_patience": 1,
    "early_stopping_threshold": 0,
}
"""The least value of a number; those of `ABOVE_ZERO` must be more than 0."""
ABOVE_ZERO = ("layer_decay", "num_train_epochs", "logging_steps", "eval_steps", "save_steps")

DICT_ARGUMENTS = (
    "sampling_kwargs",
    "dataset_batch_size",
    "balancing_kwargs",
    "aggregation_kwargs",
    "perturbation_kwargs",
    "peft",
    "single_task_scores",
)

WITHOUT_EFFECT = {
    "label_smoothing_factor": "set label_smoothing in a task",
    "train_sampling_strategy": "set sampling; rows of like length always come together",
    "dataloader_drop_last": "leave it out, every row is trained on",
    "bf16_full_eval": "leave it out, evaluation runs in the precision of training",
    "fp16_full_eval": "leave it out, evaluation runs in the precision of training",
}
"""Arguments of transformers that this trainer would ignore, and what to do instead."""


@dataclass
class MultiTaskTrainingArguments(TrainingArguments):
    """All of transformers' `TrainingArguments`, and what several tasks need besides.

    Args:
        sampling: how datasets are sampled: `proportional`, `uniform`, `temperature`, `annealed`, `round_robin`,
            `explicit`, `adaptive` or the name of a registered sampling strategy; see `hf_mtl.training.samplers`. As
            `auto`, `adaptive` where evaluations can steer it, else `proportional`.
        sampling_kwargs: options of the sampling strategy, such as `{"temperature": 2}`.
        batching: `"mixed"`, batches with rows of any datasets, or `"homogeneous"`, each batch of one dataset.
        every_task_in_batch: whether every mixed batch (over all processes) holds its share of each dataset and a row
            labelled for each task; where there is none a row joins it, over and above the batch size. Rows of unlike
            datasets are of unlike length, so that batches hold more padding.
        dataset_batch_size: rows of a homogeneous batch per device, by dataset; for others
            `per_device_train_batch_size`.
        max_tokens_per_batch: tokens of a batch per device, padding included, in place of `per_device_train_batch_size`
            rows: batches of short rows have more of them. Only a single row may be longer.
        epoch_size: rows of an epoch; the sum of all datasets where not given. `"upsampled"`: as many as it takes for
            every row to be drawn, `max_i n_i / p_i`; `"downsampled"`: as many as can be drawn without a row coming
            twice, `min_i n_i / p_i`; where shares move, over all epochs. All epochs are of one size, and each goes on
            where the last one ended in the rows of a dataset.
        class_balanced: tasks whose dataset is drawn so that each of the task's classes comes equally often, one task of
            a dataset at most; rows without a label for it come as often as before.
        balancing: how the losses of the tasks are weighted: `constant`, `uw`, `dwa`, `famo`, `imtl_l`, `stch`,
            `geometric_mean` or `random`; where not given, each by its share of the labelled rows. `loss_weight` of a
            task multiplies its loss before.
        balancing_kwargs: options of the method; those that are a number per task as one number, or as a mapping that
            names every task, such as `{"weights": {"ner": 1.0, "topic": 0.5}}`.
        aggregation: how the gradients of the tasks' losses on the shared parameters are made one, instead of their
            sum: `upgrad`, `pcgrad`, `mgda`, `cagrad`, `nash_mtl`, `fairgrad`, `graddrop`, `gradvac`, `imtl_g`,
            `aligned_mtl`, `config` or `dualproj`.
        aggregation_kwargs: options of the method.
        perturbation: how texts, states or dropout are disturbed on purpose: `fgm`, `freelb`, `smart`, `r_drop`, `mixup`
            or the name of a registered one; see `hf_mtl.training.perturbations`. `loss_<task>` of the logs stays the
            plain loss (mixup's has none).
        perturbation_kwargs: options of the perturbation, such as `{"epsilon": 0.5}`.
        log_gradient_conflict: log the gradient norm of each task and the cosine of each pair, on the shared parameters,
            every so many steps.
        precision: `"fp32"`, `"bf16"` or `"fp16"` (mixed precision), or `"auto"`: bf16 where the device multiplies it
            faster than float32, else fp32. `bf16` and `fp16` of transformers, when true, go before it.
        packing: whether the encoder runs on real tokens alone while training, with attention within rows; for BERT and
            its relatives. Pays where batches hold much padding; see `hf_mtl.model.packing`.
        head_learning_rate: initial learning rate of the heads, which begin with random weights where the encoder is
            pretrained; ten times `learning_rate` where not given.
        layer_decay: learning rate of an encoder layer over that of the layer above it, in (0, 1]; the top layer learns
            at `learning_rate`, and the embeddings count as the lowest layer.
        freeze_embeddings: whether the encoder's embeddings (all below its first layer) stay as they are.
        freeze_layers: number of lowest encoder layers that stay as they are, with the embeddings below them.
        freeze_encoder: whether the whole encoder stays as it is; it runs without dropout then.
        cache_hidden_states: whether what a frozen encoder computes is kept in `output_dir` while training, so that only
            heads run: `"auto"`, where rows are read more than once and the states take moderate space, true or false.
        freeze_heads: tasks whose heads stay as they are; their losses still train the encoder.
        head_patience: evaluations in a row without a better primary metric after which a task's head is frozen for the
            rest of training; its loss still trains the encoder.
        peft: options of peft's `LoraConfig`, such as `{"r": 8}`: the encoder is trained through low-rank adapters, on
            all its linear layers where no `target_modules` are given; heads are trained in full.
        early_stopping_patience: evaluations in a row without a better `metric_for_best_model` after which training
            ends.
        early_stopping_threshold: by how much the metric must be better to count, in its unit.
        single_task_scores: primary metric of each task when trained alone, in (0, 1]: evaluations then report
            `relative_gain`, the mean over tasks of the relative difference in per cent (the literature's delta-m).

    Raises:
        SpecError: an argument has a value that is not allowed, or that would have no effect.
    """

    sampling: str = field(default=AUTO, metadata={"help": "Sampling strategy of the datasets."})
    sampling_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of the sampling strategy."}
    )
    batching: str = field(default="mixed", metadata={"help": "mixed or homogeneous batches."})
    every_task_in_batch: bool = field(default=False, metadata={"help": "Whether every batch holds every task."})
    dataset_batch_size: dict[str, int] | str | None = field(
        default=None, metadata={"help": "Rows of a homogeneous batch per device, by dataset."}
    )
    max_tokens_per_batch: int | None = field(
        default=None, metadata={"help": "Tokens of a batch per device, in place of a number of rows."}
    )
    epoch_size: int | str | None = field(default=None, metadata={"help": "Rows of an epoch, upsampled or downsampled."})
    class_balanced: list[str] | None = field(default=None, metadata={"help": "Tasks whose classes come equally often."})
    balancing: str | None = field(default=None, metadata={"help": "Method that weights the losses."})
    balancing_kwargs: dict[str, Any] | str | None = field(default=None, metadata={"help": "Options of balancing."})
    aggregation: str | None = field(default=None, metadata={"help": "Method that makes the gradients one."})
    aggregation_kwargs: dict[str, Any] | str | None = field(default=None, metadata={"help": "Options of aggregation."})
    perturbation: str | None = field(default=None, metadata={"help": "Method that disturbs what is trained on."})
    perturbation_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Options of the perturbation."}
    )
    log_gradient_conflict: int = field(
        default=0, metadata={"help": "Log gradient norms and cosines every so many steps."}
    )
    precision: str = field(default="auto", metadata={"help": "auto, fp32, bf16 or fp16."})
    packing: bool = field(default=False, metadata={"help": "Whether the encoder runs on real tokens alone."})
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Initial learning rate of the heads; ten times learning_rate where not given."}
    )
    layer_decay: float = field(default=1.0, metadata={"help": "Learning rate of a layer over that of the one above."})
    freeze_embeddings: bool = field(default=False, metadata={"help": "Whether to freeze the embeddings."})
    freeze_layers: int = field(default=0, metadata={"help": "Number of lowest encoder layers to freeze."})
    freeze_encoder: bool = field(default=False, metadata={"help": "Whether to freeze the encoder."})
    cache_hidden_states: bool | str = field(
        default="auto", metadata={"help": "Whether to keep what a frozen encoder computes: auto, true or false."}
    )
    freeze_heads: list[str] | None = field(default=None, metadata={"help": "Tasks whose heads to freeze."})
    head_patience: int | None = field(default=None, metadata={"help": "Evaluations until a stuck head is frozen."})
    peft: dict[str, Any] | str | None = field(default=None, metadata={"help": "Options of LoRA."})
    early_stopping_patience: int | None = field(default=None, metadata={"help": "Evaluations until training ends."})
    early_stopping_threshold: float = field(default=0.0, metadata={"help": "What counts as better."})
    single_task_scores: dict[str, float] | str | None = field(
        default=None, metadata={"help": "Primary metric of each task when trained alone."}
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
        default="average", metadata={"help": "What 'best' means: average, relative_gain or <task>_<metric>."}
    )
    report_to: str | list[str] | None = field(
        default="none", metadata={"help": "Where to report: tensorboard, wandb..."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Log every so many steps."})
    # Pushing while training would put pickles (training_args.bin) on the Hub.
    hub_strategy: HubStrategy | str = field(default="end", metadata={"help": "When to push, if push_to_hub."})

    def __post_init__(self) -> None:
        self._read_mappings()
        self._settle_sampling()
        self._check_sampling()
        self._check_values()
        self._check_best_model()
        self._check_craft()
        self._check_push()
        if self.metric_for_best_model is None:
            self.metric_for_best_model = "average"  # transformers' choice, the loss of all, is none of ours
        if self.greater_is_better is None:
            self.greater_is_better = not self.metric_for_best_model.endswith(LOWER_IS_BETTER)
        if not torch.accelerator.is_available():
            # Else transformers 5.23 refuses bf16, and accelerate 1.15 lets every process of torchrun train by itself.
            self.use_cpu = True
        self._settle_precision()
        check_balancing(self)
        check_perturbation(self)
        check_packed(self)
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
        if plain(self.lr_scheduler_type) in ("reduce_lr_on_plateau", "greedy"):
            # These follow metric_for_best_model, and would take less for better.
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs = {"mode": mode, **cast(dict[str, Any], self.lr_scheduler_kwargs or {})}
        self._check_reports()

    def _read_mappings(self) -> None:
        """Read arguments that are mappings from JSON where they were given as text, as transformers reads its own."""
        for name in DICT_ARGUMENTS:
            value = getattr(self, name)
            if isinstance(value, str):
                with contextlib.suppress(ValueError):  # refused below with what was given
                    value = json.loads(value)
                setattr(self, name, value)
            if value is not None and not isinstance(value, dict):
                raise SpecError(
                    f"{name} is {value!r}", mend="give a mapping, on the command line as '{\"key\": value}'"
                )

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
            value = plain(getattr(self, name))
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

    def _check_push(self) -> None:
        if self.push_to_hub and plain(self.hub_strategy) != "end":
            raise SpecError(
                f"hub_strategy is {plain(self.hub_strategy)!r}, which would push pickles while training",
                mend="use 'end'",
            )

    def _check_best_model(self) -> None:
        evaluates, saves = plain(self.eval_strategy), plain(self.save_strategy)
        if saves == "best" and evaluates == "no":
            raise SpecError("save_strategy is 'best', but eval_strategy is 'no'", mend="set eval_strategy")
        if self.load_best_model_at_end and saves not in ("best", evaluates):
            raise SpecError(
                f"eval_strategy is {evaluates!r} and save_strategy is {saves!r}, so the best model would not be saved",
                mend="give both the same value, or set load_best_model_at_end to false",
            )

    def _settle_sampling(self) -> None:
        """Choose the strategy where none is named: the one that follows scores, unless something is in its way."""
        if self.sampling != AUTO:
            return
        if self.sampling_kwargs:
            raise SpecError(
                f"sampling_kwargs is {self.sampling_kwargs!r}, but sampling is {AUTO!r}",
                mend=f"set sampling to the strategy that these are options of: {one_of(SAMPLERS.names())}",
            )
        steered = plain(self.eval_strategy) != "no" and not self._evaluates_after_saving()
        self.sampling = "adaptive" if steered and self.max_tokens_per_batch is None else "proportional"

    def _evaluates_after_saving(self) -> bool:
        """Whether an epoch's last checkpoint would be written before the evaluation that the next epoch goes by."""
        return (plain(self.eval_strategy), plain(self.save_strategy)) == ("epoch", "steps")

    def _check_sampling(self) -> None:
        sampler = SAMPLERS.get(self.sampling)
        try:
            sampler.check_options(cast(dict[str, Any], self.sampling_kwargs or {}))
        except SpecError as error:
            raise SpecError(f"sampling_kwargs: {error.problem}", mend=error.mend) from None
        check_epoch_size(self.epoch_size)
        if isinstance(self.class_balanced, str):
            raise SpecError(f"class_balanced is {self.class_balanced!r}", mend='give a list of tasks, as in ["topic"]')
        sizes = cast(dict[str, Any], self.dataset_batch_size or {})
        if sizes and self.batching == "mixed":
            raise SpecError(
                f"dataset_batch_size is {sizes!r}, but batching is 'mixed': a batch is of all datasets",
                mend="set batching to homogeneous, or set per_device_train_batch_size",
            )
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise SpecError(f"dataset_batch_size has {size!r} for {name!r}", mend="give a whole number above 0")
        if self.max_tokens_per_batch is not None:
            self._check_tokens(follows_scores=sampler.follows_scores)
        if sampler.follows_scores:
            self._check_scores_to_follow()

    def _check_tokens(self, *, follows_scores: bool) -> None:
        reasons = {
            "dataset_batch_size is given": ("batches have as many rows as their tokens allow", self.dataset_batch_size),
            "every_task_in_batch is set": ("rows that join a batch would be too many tokens", self.every_task_in_batch),
            f"sampling is {self.sampling!r}": ("the batches of later epochs cannot be counted", follows_scores),
        }
        for found, (reason, chosen) in reasons.items():
            if chosen:
                raise SpecError(
                    f"max_tokens_per_batch is {self.max_tokens_per_batch}, and {found}: {reason}",
                    mend="leave one of them out",
                )

    def _check_scores_to_follow(self) -> None:
        if plain(self.eval_strategy) == "no":
            raise SpecError(
                f"sampling is {self.sampling!r}, but eval_strategy is 'no', so there would be no scores to follow",
                mend="set eval_strategy",
            )
        if self._evaluates_after_saving():
            raise SpecError(
                f"sampling is {self.sampling!r}, eval_strategy 'epoch' and save_strategy 'steps', so that a run could "
                "not be resumed exactly",
                mend="give eval_strategy and save_strategy the same value",
            )

    def _check_craft(self) -> None:
        """Check what is frozen, adapted, waited for and compared with."""
        if self.layer_decay > 1.0:
            raise SpecError(f"layer_decay is {self.layer_decay!r}", mend="give a number above 0 and at most 1")
        if self.freeze_encoder and self.layer_decay != 1.0:
            raise SpecError(
                f"layer_decay is {self.layer_decay!r}, which would have no effect", mend="leave freeze_encoder out"
            )
        cached = self.cache_hidden_states  # text on the command line
        self.cache_hidden_states = {"true": True, "false": False}.get(str(cached).lower(), cached)
        if self.cache_hidden_states not in ("auto", True, False):
            raise SpecError(f"cache_hidden_states is {cached!r}", mend="use 'auto', true or false")
        if isinstance(self.freeze_heads, str):
            raise SpecError(f"freeze_heads is {self.freeze_heads!r}", mend='give a list of tasks, as in ["topic"]')
        if self.peft is not None:
            lora_config(cast(dict[str, Any], self.peft))
            if self.freeze_encoder:
                raise SpecError("peft is given, and freeze_encoder is true", mend="leave one of them out")
        for name in ("early_stopping_patience", "head_patience"):
            value = getattr(self, name)
            if value is not None and plain(self.eval_strategy) == "no":
                raise SpecError(f"{name} is {value!r}, but eval_strategy is 'no'", mend="set eval_strategy")
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise SpecError(
                f"early_stopping_threshold is {self.early_stopping_threshold!r}, which would have no effect",
                mend="set early_stopping_patience",
            )
        for task, score in cast(dict[str, Any], self.single_task_scores or {}).items():
            if not isinstance(score, int | float) or isinstance(score, bool) or not 0.0 < score <= 1.0:
                raise SpecError(
                    f"single_task_scores has {score!r} for {task!r}", mend="give a number above 0 and at most 1"
                )
        if (self.metric_for_best_model or "").removeprefix("eval_") == RELATIVE_GAIN and not self.single_task_scores:
            raise SpecError(f"metric_for_best_model is {RELATIVE_GAIN!r}", mend="set single_task_scores")

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


def plain(value: Any) -> Any:
    """Return the value of an enumeration's member, anything else as it is."""
    return value.value if isinstance(value, Enum) else value
