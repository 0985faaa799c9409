"""`ExportedModel`: a model as a graph that other software runs, which answers as `MultiTaskModel` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.hub import cached_file

from hf_mtl.configuration import MultiTaskConfig, TaskSpec, select_tasks
from hf_mtl.errors import HfMtlError, ModelError, SpecError
from hf_mtl.inference.exporters.base import Graph, GraphExporter
from hf_mtl.model.heads.base import TaskHead
from hf_mtl.model.modeling import MultiTaskOutput
from hf_mtl.registry import EXPORTERS, HEADS


class NoWeightsError(ModelError, AttributeError):
    """Something was asked of an exported graph that only the model itself has."""


class ExportedModel:
    """A graph in the place of a model: it takes batches and gives logits, on the CPU, and cannot be trained.

    It stands where a `MultiTaskModel` answers: in `MultiTaskPipeline`, `predict_file` and `score`.

    Args:
        config: the configuration that was exported with it.
        graph: the graph.
    """

    device = torch.device("cpu")
    dtype = torch.float32
    training = False

    def __init__(self, config: MultiTaskConfig, graph: Graph) -> None:
        self.config = config
        self.graph = graph
        self.specs: tuple[TaskSpec, ...] = config.task_specs

    @classmethod
    def load(cls, name_or_path: str, *, dtype: str | None = None, **hub_kwargs: Any) -> ExportedModel:
        """Load what `export_model` wrote.

        Args:
            name_or_path: folder, or id on the Hub.
            dtype: what to compute in; what is best on this machine, of what the format knows, where not given.
            hub_kwargs: `revision`, `token`, `cache_dir` and others.

        Raises:
            MissingExtraError: the software that runs the graph is not installed.
            ModelError: a file is missing or damaged.
            SpecError: the format does not compute in this dtype.
        """
        where = f"model {name_or_path!r}"
        config = MultiTaskConfig.from_pretrained(name_or_path, **hub_kwargs)
        try:
            exporter = EXPORTERS.get(str(config.exported.get("format")))
            if not issubclass(exporter, GraphExporter):
                raise SpecError(f"the format {config.exported['format']!r} cannot be read back")
            paths = [cached_file(name_or_path, name, **hub_kwargs) for name in exporter.files]
            graph = exporter.open(Path(str(paths[0])), dtype=dtype)
        except HfMtlError as error:
            raise error.at(where) from error.__cause__
        except OSError as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise ModelError(f"its graph is missing ({reason})", where=where, mend="export it again") from error
        return cls(config, graph)

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        tasks: Sequence[str] | None = None,
    ) -> MultiTaskOutput:
        """Run the graph.

        Args:
            input_ids: token ids `(batch_size, seq_len)`.
            attention_mask: 1 for real tokens, 0 for padding, `(batch_size, seq_len)`; all real where not given.
            token_type_ids: segment ids of text pairs, `(batch_size, seq_len)`.
            tasks: names of the tasks to answer; all where not given.

        Returns:
            A `MultiTaskOutput` with `logits` alone, in float32.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            "token_type_ids": torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
        }
        names = [spec.name for spec in select_tasks(self.specs, tasks)]
        logits = self.graph.run({name: given[name].numpy() for name in self.graph.inputs}, names)
        return MultiTaskOutput(logits={name: torch.from_numpy(logits[name]) for name in names})

    def head(self, task: str) -> TaskHead:
        """Return a head that knows labels, losses and answers of a task; its weights are of no use."""
        return self._heads[task]

    @cached_property
    def _heads(self) -> dict[str, TaskHead]:
        with torch.random.fork_rng(devices=[]):
            return {spec.name: HEADS.get(spec.type)(spec, 1, dropout=0.0) for spec in self.specs}

    def eval(self) -> ExportedModel:
        """Do nothing: a graph only answers."""
        return self

    def train(self, mode: bool = True) -> ExportedModel:
        """Do nothing: a graph only answers."""
        return self

    def modules(self) -> Iterator[torch.nn.Module]:
        """Yield nothing: a graph has no modules that are in one mode or another."""
        return iter(())

    def to(self, *_: Any, **__: Any) -> ExportedModel:
        """Do nothing: a graph runs on the CPU."""
        return self

    def __getattr__(self, name: str) -> Any:
        raise NoWeightsError(
            f"an exported graph has no {name!r}", mend="load the model that it was exported from for this"
        )
