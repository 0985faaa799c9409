"""Registers configuration, model and pipeline with transformers: `import hf_mtl.auto` does just that."""

from __future__ import annotations

from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from hf_mtl.configuration import MultiTaskConfig
from hf_mtl.inference.pipeline import MultiTaskPipeline
from hf_mtl.model.modeling import MultiTaskModel
from hf_mtl.model.remote_code import PIPELINE_TASK

# The configuration registers itself where it is defined.
AutoModel.register(MultiTaskConfig, MultiTaskModel, exist_ok=True)
if PIPELINE_TASK not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline(PIPELINE_TASK, MultiTaskPipeline, pt_model=AutoModel, type="text")
