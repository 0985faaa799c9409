"""`MultiTaskPipeline`: `pipeline("multi-task", model=...)` answers every task from one pass over a text."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

from transformers.pipelines.base import Pipeline

from hf_mtl.configuration import select_tasks
from hf_mtl.data.encoding import Inputs
from hf_mtl.errors import DataError, SpecError
from hf_mtl.evaluation.prediction import Answers, RowReader, answer
from hf_mtl.model.modeling import MultiTaskModel

DEFAULT_BATCH_SIZE = 64


class MultiTaskPipeline(Pipeline):
    """Answers all tasks of a model, or those named in `tasks`.

    A text, or a mapping with `text` (and perhaps `text_pair`, `choices`) or `tokens`, gives one dictionary, task name
    -> answer; a list of them gives a list, and any other iterable, such as a generator or a dataset, an iterator. Tasks
    with a token graph read `heads` beside `tokens`: for each token the number of its governor from 1 on, 0 for roots.
    Answers are plain JSON values:

    - `sequence_classification`: `{"label", "score", "scores": {label: probability}}`
    - `multi_label_classification`: `{"labels": [...], "scores": {label: probability}}`
    - `regression`: `{"value"}`
    - `ordinal_regression`: as `sequence_classification`; the label is the median
    - `token_classification`: `{"spans": [{"label", "text", "start", "end", "score"}]}`, with offsets in characters of
      the text, and `"tags"`, one per token, where tokens were given; `crf_token_classification` as well
    - `span_extraction`: `{"answer", "score", "start", "end"}`, the part of `text` that answers `text_pair`; an empty
      answer at 0 where there is none
    - `masked_language_modeling`: `{"masks": [[{"score", "token", "token_str"}, ...], ...]}`, for each mask token of the
      text, such as `[MASK]`, the five most probable tokens, as the `fill-mask` pipeline has them
    - `multiple_choice`: `{"choice", "index", "score", "scores": [...]}`, of the row's `choices`, a list of texts: the
      chosen text, its number counted from 0, and the probabilities of all; `None` for a row without choices

    Args:
        model: the model.
        tokenizer: its tokenizer.
        tasks: names of the tasks to answer; all where not given. Also an argument of each call.
        batch_size: rows that are answered together, 64 where not given. Also an argument of each call.

    Raises:
        SpecError: the model has no such task.
        DataError: an input is neither text nor a mapping with text or tokens.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    def _sanitize_parameters(
        self, tasks: Sequence[str] | str | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if kwargs:
            raise TypeError(
                f"unknown argument {next(iter(kwargs))!r}: a multi-task pipeline takes tasks and batch_size"
            )
        if tasks is None:
            return {}, {}, {}
        names = [
            spec.name
            for spec in select_tasks(self._multi_task_model.specs, [tasks] if isinstance(tasks, str) else tasks)
        ]
        return {"tasks": names}, {"tasks": names}, {}

    @property
    def _multi_task_model(self) -> MultiTaskModel:
        return cast(MultiTaskModel, self.model)

    def __call__(self, inputs: Any, *args: Any, batch_size: int | None = None, **kwargs: Any) -> Any:
        kwargs.pop("num_workers", None)  # tokenizers use threads of their own
        preprocess, forward, _ = self._sanitize_parameters(*args, **kwargs)
        tasks = {**self._preprocess_params, **preprocess, **self._forward_params, **forward}.get("tasks")
        size = batch_size if batch_size is not None else self._batch_size or DEFAULT_BATCH_SIZE
        if not isinstance(cast(object, size), int) or size < 1:
            raise SpecError(f"batch_size is {size!r}", mend="give a whole number above 0")
        if hasattr(inputs, "iloc") and hasattr(inputs, "columns"):  # whose iterator gives the names of its columns
            raise DataError("a table is given", mend='give table["text"].tolist() or table.to_dict("records")')
        if isinstance(inputs, str | Mapping):
            return next(self._answers([inputs], tasks, 1))
        if isinstance(inputs, list | tuple):
            return list(self._answers(cast(Sequence[Any], inputs), tasks, size))
        iterable = hasattr(inputs, "__iter__") or hasattr(inputs, "__getitem__")
        if isinstance(inputs, bytes) or not iterable or getattr(inputs, "shape", None) == ():
            raise DataError(f"{inputs!r} is no text", mend="give a text, a mapping, or an iterable of them")
        return self._answers(inputs, tasks, size)

    def _answers(self, inputs: Iterable[Any], tasks: Sequence[str] | None, size: int) -> Iterator[Answers]:
        rows = enumerate(inputs, start=1)
        # Rows of like length are batched together, so several batches are taken in at a time.
        while chunk := list(islice(rows, size * 16 if isinstance(inputs, list | tuple) else size)):
            model_inputs = {"rows": [self._read(row, f"row {number}", tasks) for number, row in chunk]}
            answered = cast(Any, self.forward(model_inputs, tasks=tasks, batch_size=size))
            yield from answered["answers"]

    def _read(self, row: Any, where: str, tasks: Sequence[str] | None) -> Inputs:
        try:
            return self.preprocess(row, tasks=tasks)["rows"][0]
        except DataError as error:
            raise error.at(where) from None

    # The base class passes tensors between its steps; rows of any length pass as they are here.

    def preprocess(self, input_: Any, tasks: Sequence[str] | None = None, **_: Any) -> dict[str, Any]:
        return {"rows": [RowReader(self._multi_task_model, self.tokenizer, tasks).read(input_)]}

    def _forward(
        self, input_tensors: dict[str, Any], tasks: Sequence[str] | None = None, batch_size: int = 1, **_: Any
    ) -> Any:
        rows: list[Inputs] = input_tensors["rows"]
        return {"answers": answer(self._multi_task_model, self.tokenizer, rows, tasks=tasks, batch_size=batch_size)}

    def postprocess(self, model_outputs: Any, **_: Any) -> Answers:
        return model_outputs["answers"][0]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save the model and its tokenizer; what is saved with the model can rebuild the pipeline, too.

        The base class would copy this one file beside them, which is of no use without the rest of the package.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory, **kwargs)
