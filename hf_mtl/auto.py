"""Registers configuration, model and pipeline with transformers: `import hf_mtl.auto` does just that."""

from __future__ import annotations

from transformers import AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from hf_mtl.inference.pipeline import MultiTaskPipeline
from hf_mtl.model.remote_code import PIPELINE_TASK

# Configuration and model register themselves where the model is defined.
if PIPELINE_TASK not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline(PIPELINE_TASK, MultiTaskPipeline, pt_model=AutoModel, type="text")
