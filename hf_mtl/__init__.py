"""Multi-task learning for the Hugging Face stack: one shared encoder, one head per task.

Names are imported when they are first used; using one registers configuration, model and pipeline with transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hf_mtl.configuration import MultiTaskConfig, TaskSpec
    from hf_mtl.data.collator import MultiTaskCollator
    from hf_mtl.data.preparation import load_recipe
    from hf_mtl.data.recipe import Recipe, read_recipe
    from hf_mtl.errors import HfMtlError
    from hf_mtl.evaluation.metrics import load_metric
    from hf_mtl.evaluation.scoring import score
    from hf_mtl.explain.explainer import Explainer
    from hf_mtl.explain.methods.base import AttributionMethod
    from hf_mtl.inference.bulk import predict_file
    from hf_mtl.inference.pipeline import MultiTaskPipeline
    from hf_mtl.model.encoders.base import EncoderAdapter
    from hf_mtl.model.heads.base import TaskHead
    from hf_mtl.model.modeling import MultiTaskModel, MultiTaskOutput
    from hf_mtl.registry import ENCODERS, EXPLAINERS, HEADS, SAMPLERS
    from hf_mtl.training.arguments import MultiTaskTrainingArguments
    from hf_mtl.training.samplers.base import Sampler
    from hf_mtl.training.trainer import MultiTaskTrainer

_MODULES = {
    "AttributionMethod": "explain.methods.base",
    "ENCODERS": "registry",
    "EXPLAINERS": "registry",
    "HEADS": "registry",
    "SAMPLERS": "registry",
    "EncoderAdapter": "model.encoders.base",
    "Explainer": "explain.explainer",
    "HfMtlError": "errors",
    "MultiTaskCollator": "data.collator",
    "MultiTaskConfig": "configuration",
    "MultiTaskModel": "model.modeling",
    "MultiTaskOutput": "model.modeling",
    "MultiTaskPipeline": "inference.pipeline",
    "MultiTaskTrainer": "training.trainer",
    "MultiTaskTrainingArguments": "training.arguments",
    "Recipe": "data.recipe",
    "Sampler": "training.samplers.base",
    "TaskHead": "model.heads.base",
    "TaskSpec": "configuration",
    "load_metric": "evaluation.metrics",
    "load_recipe": "data.preparation",
    "predict_file": "inference.bulk",
    "read_recipe": "data.recipe",
    "score": "evaluation.scoring",
}

__all__ = [
    "ENCODERS",
    "EXPLAINERS",
    "HEADS",
    "SAMPLERS",
    "AttributionMethod",
    "EncoderAdapter",
    "Explainer",
    "HfMtlError",
    "MultiTaskCollator",
    "MultiTaskConfig",
    "MultiTaskModel",
    "MultiTaskOutput",
    "MultiTaskPipeline",
    "MultiTaskTrainer",
    "MultiTaskTrainingArguments",
    "Recipe",
    "Sampler",
    "TaskHead",
    "TaskSpec",
    "load_metric",
    "load_recipe",
    "predict_file",
    "read_recipe",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    import_module("hf_mtl.auto")
    value = getattr(import_module(f"hf_mtl.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
