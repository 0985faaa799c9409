"""`scripts/train.py` with FSDP on the CPU; started by `test_launching.py`.

accelerate 1.15 makes an FSDP state of processes on GPUs only, and trains with DDP on CPUs without a word
(`AcceleratorState.__init__`); torch's FSDP2 itself runs on CPUs. So the state is told here what it would be on GPUs,
and all else is the real thing.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule

from hf_mtl.cli import main
from hf_mtl.training.trainer import MultiTaskTrainer

ordinary_init = AcceleratorState.__init__
ordinary_train = MultiTaskTrainer.train


def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    ordinary_init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # as that init itself does at its end


def train(self: MultiTaskTrainer, *args: Any, **kwargs: Any) -> Any:
    trained = ordinary_train(self, *args, **kwargs)
    units = sum(isinstance(module, FSDPModule) for module in self.model_wrapped.modules())
    assert units > 1, "the model was not sharded"
    assert self.args.world_size == 2
    return trained


if __name__ == "__main__":
    AcceleratorState.__init__ = init
    MultiTaskTrainer.train = train
    main(["train", *sys.argv[1:]])
