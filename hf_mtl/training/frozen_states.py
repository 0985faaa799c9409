"""What a frozen encoder computes, computed once and read from disk in every epoch."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_mtl.data.collator import MultiTaskCollator
from hf_mtl.data.masking import masked_tasks
from hf_mtl.errors import OutputError, SpecError
from hf_mtl.evaluation.prediction import evaluation_mode, length_batches
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.pooling import POOLINGS
from hf_mtl.training.arguments import MultiTaskTrainingArguments
from hf_mtl.training.batching import EpochBatchSampler
from hf_mtl.training.streams import TrainingRows

logger = logging.getLogger(__name__)

FOLDER = "frozen_states"
"""Folder in the output folder while training."""
STATES = "hidden_states"
MAX_BYTES = 8 * 2**30
"""Disk space that states may take without being asked for."""
TOKENS_PER_BATCH = 8192
STORED_AS = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16, torch.bfloat16: np.int16}
"""How the encoder's numbers are stored, without loss: numpy has no bfloat16."""


@dataclass(frozen=True)
class FrozenStates:
    """The states of the last layer for all training rows, in a file that is mapped into memory.

    Where all tasks pool alike, one pooled output per row is kept instead, as a row of one token: pooled once more it
    stays what it is.

    Args:
        path: the file.
        lengths: states of each row: its tokens, or 1 `(num_rows,)`.
        hidden_size: size of a state.
        dtype: what the encoder computes in.
        pooling: the pooling of all tasks; `None` where the states of all tokens are needed.
    """

    path: Path
    lengths: np.ndarray
    hidden_size: int
    dtype: torch.dtype
    pooling: str | None

    @cached_property
    def ends(self) -> np.ndarray:
        """Where the states of each row end in the file, `(num_rows,)`."""
        return np.cumsum(self.lengths)

    @cached_property
    def values(self) -> np.ndarray:
        """The file's contents, `(states of all rows, hidden_size)`."""
        return np.load(self.path, mmap_mode="r")

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return int(self.lengths.sum()) * self.hidden_size * np.dtype(STORED_AS[self.dtype]).itemsize

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the states of a row, `(tokens or 1, hidden_size)`."""
        end = int(self.ends[row])
        return self.values[end - int(self.lengths[row]) : end]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "values"}  # mapped anew, not copied

    def write(self, model: MultiTaskModel, rows: TrainingRows, lengths: np.ndarray, collate: Any) -> None:
        """Run the encoder on all rows, batches of like length; the file is there when all of it is written.

        Args:
            model: the model.
            rows: the rows.
            lengths: their tokens, `(num_rows,)`.
            collate: makes a batch of rows.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".tmp")
        shape = int(self.lengths.sum()), self.hidden_size
        values = np.lib.format.open_memmap(unfinished, mode="w+", dtype=STORED_AS[self.dtype], shape=shape)
        for batch in length_batches(lengths, batch_size=TOKENS_PER_BATCH, max_tokens=TOKENS_PER_BATCH):
            inputs = collate(rows.__getitems__(batch.tolist()))
            states, mask = encode(model, inputs)
            if self.pooling is not None:
                states = POOLINGS[self.pooling](states, mask).unsqueeze(1)
            stored = _as_stored(states)
            for row, own in zip(batch.tolist(), stored, strict=True):
                end, count = int(self.ends[row]), int(self.lengths[row])
                values[end - count : end] = own[:count]
        values.flush()
        del values
        unfinished.replace(self.path)


@torch.inference_mode()
def encode(model: MultiTaskModel, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the states of a batch `(batch_size, seq_len, hidden_size)` and its attention mask."""
    known = ("input_ids", "attention_mask", "token_type_ids")
    given: dict[str, Any] = {name: inputs[name].to(model.device) for name in known if name in inputs}
    states = cast(Tensor, model.adapter.run(model.encoder, given).last_hidden_state)
    return states, given["attention_mask"]


def _as_stored(states: Tensor) -> np.ndarray:
    states = states.cpu()
    return (states.view(torch.int16) if states.dtype == torch.bfloat16 else states).numpy()


class CachedRows(torch.utils.data.Dataset[Any]):
    """Training rows with their states.

    Args:
        rows: the rows.
        states: the states.
    """

    def __init__(self, rows: TrainingRows, states: FrozenStates) -> None:
        self.rows = rows
        self.states = states

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Mapping[str, Any]]:
        features = self.rows.__getitems__(rows)
        return [{**own, STATES: self.states[row]} for row, own in zip(rows, features, strict=True)]


@dataclass(frozen=True)
class StatesCollator:
    """Makes batches with `hidden_states` `(batch_size, seq_len or 1, hidden_size)`, and a mask that fits them.

    Args:
        collator: makes the rest of a batch.
        states: the states of the rows.
    """

    collator: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
    states: FrozenStates

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = self.collator(features)
        if self.states.pooling is not None:
            batch["attention_mask"] = torch.ones((len(features), 1), dtype=torch.long)
        shape = (*batch["attention_mask"].shape, self.states.hidden_size)
        values = np.zeros(shape, dtype=STORED_AS[self.states.dtype])
        for place, feature in enumerate(features):
            values[place, : len(feature[STATES])] = feature[STATES]
        batch[STATES] = torch.from_numpy(values).view(self.states.dtype)
        return batch


class RemoveStates(TrainerCallback):
    """Removes the states at the end of a training; those of one that was killed are there for when it goes on.

    The process that wrote them does: a slower one must not remove what the first has begun to write for the next run.
    """

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_local_process_zero:
            shutil.rmtree(Path(cast(str, args.output_dir), FOLDER), ignore_errors=True)


def with_states(
    model: MultiTaskModel,
    args: MultiTaskTrainingArguments,
    rows: TrainingRows,
    batches: EpochBatchSampler,
    collator: MultiTaskCollator,
    accelerator: Accelerator,
) -> tuple[torch.utils.data.Dataset[Any], Callable[..., dict[str, Any]]]:
    """Return training rows and their collator, with the states of a frozen encoder where that saves time.

    Args:
        model: the model, on its device.
        args: `cache_hidden_states`, and the folder.
        rows: the training rows.
        batches: the batches of the training.
        collator: the collator.
        accelerator: knows the precision of the training, and whether the model is spread over processes.

    Raises:
        SpecError: states are to be kept, but cannot be.
        OutputError: there is no room for them.
    """
    wanted = args.cache_hidden_states
    obstacle = _obstacle(model, rows, accelerator)
    if wanted is True and obstacle is not None:
        raise SpecError(f"cache_hidden_states is true, but {obstacle}", mend="leave it out")
    drawn = float(batches.counts(0).sum()) * batches.sampler.num_epochs
    if wanted is False or obstacle is not None or (wanted == "auto" and drawn <= len(rows)):
        return rows, collator
    lengths = np.concatenate([split.lengths for split in rows.encoded.values()])
    folder = Path(cast(str, args.output_dir), FOLDER)
    # One process of each machine writes; the others find what it wrote.
    first = args.main_process_first(local=True, desc="the states of the frozen encoder")
    with first, evaluation_mode(model), accelerator.autocast():
        states = _planned(model, rows, lengths, collator, folder)
        if not states.path.exists() and _has_room(states, asked_for=wanted is True):
            logger.info("The states of the frozen encoder take %s", _size(states.num_bytes))
            states.write(model, rows, lengths, collator)
    if not states.path.exists():
        return rows, collator
    return CachedRows(rows, states), StatesCollator(collator, states)


def _obstacle(model: MultiTaskModel, rows: TrainingRows, accelerator: Accelerator) -> str | None:
    """Say why states cannot be kept, if they cannot."""
    if any(parameter.requires_grad for parameter in model.encoder.parameters()):
        return "the encoder is trained"
    if rows.streams:
        return f"the rows of dataset {next(iter(rows.streams))!r} are streamed"
    deep = next((spec.name for spec in model.specs if spec.layer_mix or spec.attention_gate), None)
    if deep is not None:
        return f"task {deep!r} reads more of the encoder than its last states"
    masked = masked_tasks([task.spec for split in rows.encoded.values() for task in split.tasks])
    if masked:
        return f"task {masked[0].name!r} masks its rows anew in each epoch"
    spread = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    return "the model is spread over processes" if spread else None


def _planned(
    model: MultiTaskModel, rows: TrainingRows, lengths: np.ndarray, collator: MultiTaskCollator, folder: Path
) -> FrozenStates:
    """Return the states as they are to be: the file's name tells all that they depend on."""
    tasks = [task.spec.name for split in rows.encoded.values() for task in split.tasks]
    if model.interaction is not None:  # all of them take part in each answer
        tasks = [spec.name for spec in model.specs]
    kinds = {model.poolings.get(task) for task in tasks}
    alike = len(kinds) == 1 and kinds <= set(POOLINGS) and not model.task_adapters and not model.token_graphs
    pooling = next(iter(kinds)) if alike else None
    probe, _ = encode(model, collator(rows.__getitems__([0])))
    if probe.dtype not in STORED_AS:
        raise SpecError(f"the encoder computes in {probe.dtype}", mend="set cache_hidden_states to false")
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    fingerprints = [split.features._fingerprint for split in rows.encoded.values()]  # pyright: ignore[reportPrivateUsage]
    digest.update(json.dumps([pooling, str(probe.dtype), str(model.dtype), model.device.type, fingerprints]).encode())
    return FrozenStates(
        folder / f"{digest.hexdigest()}.npy",
        lengths.astype(np.int64) if pooling is None else np.ones(len(lengths), dtype=np.int64),
        int(probe.shape[-1]),
        probe.dtype,
        pooling,
    )


def _has_room(states: FrozenStates, *, asked_for: bool) -> bool:
    """Tell whether states may be written; where they are asked for they must.

    Raises:
        OutputError: they are asked for, and the disk is too full.
    """
    parent = next(place for place in states.path.absolute().parents if place.exists())
    free = shutil.disk_usage(parent).free
    if asked_for and states.num_bytes > free:
        raise OutputError(
            f"the states of the frozen encoder take {_size(states.num_bytes)}, and {_size(free)} are free",
            where=str(parent),
            mend="set cache_hidden_states to false, or give another output_dir",
        )
    small = states.num_bytes <= min(MAX_BYTES, free / 2)
    if not small and not asked_for:
        logger.warning(
            "The frozen encoder runs in every epoch: its states would take %s of the %s that are free. "
            "Set cache_hidden_states to true to keep them all the same",
            _size(states.num_bytes), _size(free),
        )  # fmt: skip
    return small or asked_for


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
