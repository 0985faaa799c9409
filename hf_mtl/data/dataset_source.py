"""Where the rows of a dataset come from, and which columns hold what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_mtl.data.refinement_keys import DATASET_REFINEMENT, check_refinement
from hf_mtl.errors import RecipeError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """Where the rows of one dataset come from, and which columns hold their text.

    Args:
        train: file, pattern or list of them with training rows; for Hub datasets the name of the split.
        validation: the same for validation; left out, a seeded part of train is set aside (but not of a stream).
        test: the same for the test split.
        path: id of a dataset on the Hub (or a dataset folder), instead of files.
        name: configuration of a Hub dataset.
        revision: revision of a Hub dataset.
        text: column of the text.
        text_pair: column of the second text of a pair.
        tokens: column of tokens, instead of `text`.
        heads: column of the tokens' heads in a dependency graph, as CoNLL-U counts them (in such files `heads`): a list
            with the number of each token's governor, 0 for roots. For tasks with a `token_graph`.
        choices: column of each row's choices, a list of two texts or more, for `multiple_choice`.
        columns: names of the columns of CoNLL files.
        streaming: whether training reads its rows (jsonl, Parquet, Hub) as it goes, for data larger than memory.
        rows: number of training rows of a streamed Hub dataset that does not say it.
        shuffle_buffer: rows of a stream that are in memory to be shuffled; 10,000 where not given.
        cleaning: steps that clean its rows, see `hf_mtl.data.cleaning`; `None` takes the recipe's.
        deduplicate: `exact` or `near` drops training rows whose text stands in an earlier one; `None` as above.
        augmentation: operations that add training rows, see `hf_mtl.data.augmentation`.
    """

    train: str | tuple[str, ...] | None = None
    validation: str | tuple[str, ...] | None = None
    test: str | tuple[str, ...] | None = None
    path: str | None = None
    name: str | None = None
    revision: str | None = None
    text: str | None = None
    text_pair: str | None = None
    tokens: str | None = None
    heads: str | None = None
    choices: str | None = None
    columns: tuple[str, ...] | None = None
    streaming: bool = False
    rows: int | None = None
    shuffle_buffer: int | None = None
    cleaning: Any = None
    deduplicate: str | None = None
    augmentation: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        self._check_streaming()
        check_refinement({key: getattr(self, key) for key in DATASET_REFINEMENT}, streaming=self.streaming)
        for key in ("name", "revision") if self.path is None else ("columns",):
            if getattr(self, key) is not None:
                kind = "files" if self.path is None else "a Hub dataset"
                raise RecipeError(f"{key} is given for {kind}", mend=f"leave {key} out, or correct path")
        if self.path is not None:
            for split in SPLITS:
                if isinstance(getattr(self, split), tuple):
                    raise RecipeError(f"{split} is {list(getattr(self, split))!r}", mend="give the name of one split")
        if self.path is None and self.train is None and self.test is None:
            raise RecipeError(
                "there are no files", mend="name files in train, validation and test, or a Hub dataset in path"
            )
        if (self.text is None) == (self.tokens is None):
            found = "neither text nor tokens is" if self.text is None else "both text and tokens are"
            raise RecipeError(
                f"{found} given", mend="name the column that holds the text, or the one that holds tokens"
            )
        if self.tokens is not None and self.text_pair is not None:
            raise RecipeError("text_pair is given with tokens", mend="give pairs as text and text_pair")
        if self.heads is not None and self.tokens is None:
            raise RecipeError("heads is given without tokens", mend="name the column of tokens, or leave heads out")
        if self.heads is not None and self.choices is not None:
            raise RecipeError("heads is given with choices, whose words have none", mend="leave one of them out")
        if self.heads is not None and self.augmentation:
            problem = "heads is given with augmentation, which changes the words that they count"
            raise RecipeError(problem, mend="leave one of them out")

    def _check_streaming(self) -> None:
        if not self.streaming:
            for key in ("rows", "shuffle_buffer"):
                if getattr(self, key) is not None:
                    raise RecipeError(f"{key} is given without streaming", mend=f"leave {key} out, or set streaming")
        elif self.path is None and self.rows is not None:
            raise RecipeError("rows is given for files, whose rows are counted", mend="leave rows out")
        elif self.path is None and self.train is None:
            raise RecipeError("streaming is set without training files", mend="leave streaming out, or name train")
        elif self.columns is not None:
            raise RecipeError("streaming is set for CoNLL files", mend="leave streaming out, or convert them to jsonl")

    @property
    def text_columns(self) -> dict[str, str]:
        """The columns that hold what the encoder reads: `text`, `text_pair`, `tokens`, `choices` -> column name."""
        columns = {"text": self.text, "text_pair": self.text_pair, "tokens": self.tokens, "choices": self.choices}
        return {role: column for role, column in columns.items() if column is not None}

    @property
    def input_columns(self) -> dict[str, str]:
        """The columns that rows are read from: those of their text, and `heads` where there are any."""
        return self.text_columns | ({} if self.heads is None else {"heads": self.heads})
