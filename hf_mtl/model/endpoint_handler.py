"""What Hugging Face Inference Endpoints run: `EndpointHandler(path)(data)` answers with the model beside this file.

The only code it loads is the file that was saved with the model, from the folder that this file stands in: on an
endpoint both belong to whoever deployed it. Nothing else is fetched, and nobody is asked to trust anything.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

CODE = Path(__file__).parent / "modeling_hf_mtl.py"


class EndpointHandler:
    """Answers requests.

    Args:
        path: folder of the model; the one this file stands in where not given.
    """

    def __init__(self, path: str = "") -> None:
        folder = Path(path) if path else CODE.parent
        code = _load(CODE)
        model = code.MultiTaskModel.from_pretrained(folder)
        # With its configuration at hand the tokenizer looks for no code of its own.
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, config=model.config)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipeline = code.MultiTaskPipeline(model=model, tokenizer=tokenizer, device=device)

    def __call__(self, data: Any) -> list[dict[str, Any]]:
        """Answer a request.

        Args:
            data: `{"inputs": ..., "parameters": {...}}`, where the inputs are a text, a mapping with `text` (and
                perhaps `text_pair`, `choices`) or `tokens`, or a list of these; the parameters may be `tasks` and
                `batch_size`.

        Returns:
            One mapping for each input, task name to answer.

        Raises:
            ValueError: the request is not of this form; the platform sends the message back.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError('the request has no inputs; send {"inputs": "a text"} or a list of texts')
        parameters: Any = data.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ValueError(f"parameters is {parameters!r}; send a mapping, such as {{'tasks': ['topic']}}")
        for name in parameters:
            if name not in ("tasks", "batch_size"):
                raise ValueError(f"there is no parameter {name!r}; use 'tasks' or 'batch_size'")
        size = parameters.get("batch_size", 64)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"batch_size is {size!r}; send a whole number of at least 1")
        inputs: Any = data["inputs"]
        return self.pipeline(inputs if isinstance(inputs, list) else [inputs], **parameters)


def _load(path: Path) -> Any:
    """Load the model's code, once for each process."""
    name = f"{path.stem}_beside_handler"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before it runs: dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules[name]
