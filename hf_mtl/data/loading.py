"""From files, or a dataset of the Hub, to raw rows that know the line they come from."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import datasets.exceptions
import numpy as np
import pyarrow as pa

from hf_mtl.data.arrow_cache import FILE_COLUMN, LINE_COLUMN, cached_table
from hf_mtl.data.class_labels import name_class_labels
from hf_mtl.data.formats import CONLL_ENDINGS, ENDINGS, DataFile, shorten
from hf_mtl.errors import DataError, SpecError, one_of


@dataclass(frozen=True)
class Source:
    """A file or a Hub split as error messages name it.

    Args:
        name: the file's path, or the Hub dataset and its split.
        unit: what its rows are counted in, `"line"` or `"row"`.
    """

    name: str
    unit: str = "row"


@dataclass(frozen=True)
class Change:
    """What one step of a recipe did to the rows of a split.

    Args:
        step: the step, such as `"cleaning html"`.
        rows: rows that it changed, dropped or added.
        dropped: whether they were dropped.
        added: whether they were added.
        of: rows that there were before.
    """

    step: str
    rows: int
    dropped: bool = False
    added: bool = False
    of: int = 0

    def __str__(self) -> str:
        if self.added:
            return f"{self.step} added {self.rows} rows to {self.of}"
        return f"{self.step} {'dropped' if self.dropped else 'changed'} {self.rows} of {self.of} rows"


@dataclass(frozen=True)
class RawSplit:
    """Rows as the data has them, and where each of them stands.

    Args:
        dataset: the rows, with the columns the files have.
        sources: the files the rows come from.
        origins: the columns `file` (a position in `sources`) and `line` (1-based) of the rows as read; `None` where the
            rows are those of a single source in its order.
        rows: for each row of `dataset` its position in what was read; `None` where they are the same.
        classes: the names of the classes, in their order, of the columns that say so (`datasets.ClassLabel`); the rows
            hold these names, and `None` for -1.
        changes: what the recipe's steps did to the rows, before a part of them was set aside.

    Example:
        >>> split = RawSplit(datasets.Dataset.from_dict({"text": ["a", "b"]}), sources=(Source("here"),))
        >>> split.where(1), split.select([1]).where(0)
        ('here, row 2', 'here, row 2')
    """

    dataset: datasets.Dataset
    sources: tuple[Source, ...]
    origins: tuple[pa.ChunkedArray, pa.ChunkedArray] | None = None
    rows: np.ndarray | None = None
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    changes: tuple[Change, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A name of the rows: the same rows have the same in every process."""
        return self.dataset._fingerprint  # pyright: ignore[reportPrivateUsage]

    @classmethod
    def of(
        cls,
        dataset: datasets.Dataset,
        sources: tuple[Source, ...],
        origins: tuple[pa.ChunkedArray, pa.ChunkedArray] | None = None,
    ) -> RawSplit:
        """Take in a dataset as it was read: class labels become their names."""
        dataset, classes = name_class_labels(dataset, where=sources[0].name)
        return cls(dataset, sources, origins, classes=classes)

    def where(self, row: int) -> str:
        """Name the place of a row for an error message, such as `"train.jsonl, line 17"`.

        Args:
            row: position in `dataset`, from 0.

        Returns:
            The file and the line its row begins at, counted from 1; for files without lines the row, counted from 1.
        """
        read = row if self.rows is None else int(self.rows[row])
        if self.origins is None:
            return f"{self.sources[0].name}, {self.sources[0].unit} {read + 1}"
        files, lines = self.origins
        source = self.sources[files[read].as_py()]
        return f"{source.name}, {source.unit} {lines[read].as_py()}"

    def select(self, rows: Sequence[int] | np.ndarray) -> RawSplit:
        """Keep some rows, in the order given.

        Args:
            rows: positions in `dataset`, from 0.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        read = wanted if self.rows is None else self.rows[wanted]
        return replace(self, dataset=self.dataset.select(wanted), rows=read)


# ---------------------------------------------------------------------- public readers


def read_files(pattern: str | Sequence[str], *, base: Path, columns: Sequence[str] | None = None) -> RawSplit:
    """Read files of labelled text as they are: no value is guessed to mean another.

    The endings are .csv and .tsv (with a header; all values are text, an empty cell is `None`), .json (a list of
    objects, or one under `"data"`), .jsonl and .ndjson, .parquet, .arrow, .conll, .txt, .iob and .bio (CoNLL columns),
    and .conllu, each also with .gz. What was read is kept as Arrow in the cache folder of `datasets`.

    Args:
        pattern: a path, a glob pattern (`**` goes down folders), or a list of them; a pattern's files are read in the
            order of their names.
        base: the folder that relative paths start from.
        columns: names for the columns of CoNLL files, see `hf_mtl.data.conll.read_conll`.

    Returns:
        The rows of all files. Files of tables must have the same columns; keys that a JSON object lacks are `None`.

    Raises:
        DataError: a file is missing, of an unknown ending, empty, damaged or not UTF-8, or a line of it is malformed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "train.csv").write_text('text,label\\n"Good,\\nvery",1\\nBad,\\n')
        ...     split = read_files("train.csv", base=Path(folder))
        ...     split.dataset[0], split.dataset[1], split.where(1)
        ({'text': 'Good,\\nvery', 'label': '1'}, {'text': 'Bad', 'label': None}, 'train.csv, line 4')
    """
    files = find_files(pattern, base=base)
    if columns is not None and not any(file.ending in CONLL_ENDINGS for file in files):
        raise DataError(
            f"columns is given for a {files[0].ending} file, which names its own columns",
            where=files[0].name,
            mend="leave columns out",
        )
    table, key = cached_table(files, columns)
    return RawSplit.of(
        datasets.Dataset(table.drop([FILE_COLUMN, LINE_COLUMN]), fingerprint=key),
        sources=tuple(Source(file.name, file.unit) for file in files),
        origins=(table.column(FILE_COLUMN), table.column(LINE_COLUMN)),
    )


def read_hub(
    path: str, *, name: str | None = None, split: str, revision: str | None = None, base: Path | None = None
) -> RawSplit:
    """Read a split of a dataset from the Hub, or of a local folder that holds a dataset; its code is never run.

    Args:
        path: `"owner/name"` on the Hub, or a folder, which goes first.
        name: the dataset's configuration.
        split: the split, such as `"train"` or `"train[:10%]"`.
        revision: branch, tag or commit of a Hub dataset.
        base: the folder that a relative folder starts from; `None` is the current one.

    Returns:
        The rows of the split.

    Raises:
        DataError: there is no such dataset, configuration or split, it has no rows, or the Hub cannot be reached.
    """
    where = f"{path} ({split})"
    dataset = load_hub(path, name=name, split=split, revision=revision, base=base)
    if not len(dataset):
        raise DataError("the split has no rows", where=where, mend="choose another split")
    return RawSplit.of(dataset, sources=(Source(where),))


def load_hub(
    path: str, *, name: str | None, split: str, revision: str | None, base: Path | None, streaming: bool = False
) -> Any:
    """Load a split with `datasets`; arguments and errors as in `read_hub`.

    Args:
        streaming: whether to return a `datasets.IterableDataset`, of which nothing is read yet.
    """
    folder = (base or Path()) / Path(path).expanduser()
    local = folder.is_dir()
    where = f"{path} ({split})"
    if not local and path.startswith((".", "/", "~")):
        raise DataError("there is no such folder", where=path, mend=f"looked on disk at {folder.absolute()}")
    try:
        if local:
            return _load_folder(folder, name, split, streaming=streaming)
        return datasets.load_dataset(path, name, split=split, revision=revision, streaming=streaming)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        reason = shorten(str(cause or error).split("\n")[0].rstrip("."), 300)
        if local:
            place, mend = f"in the folder {folder.absolute()}", "check the folder, the configuration and the split"
        else:
            place, mend = "on the Hub", "check the name, the network and `hf auth login`, or give files on disk"
        raise DataError(f"looked {place}: {reason}", where=where, mend=mend) from error


def split_validation(
    split: RawSplit, *, fraction: float = 0.1, seed: int = 0, stratify: str | None = None
) -> tuple[RawSplit, RawSplit]:
    """Hold out validation rows, the same ones for the same seed.

    Args:
        split: the rows to divide.
        fraction: share of validation rows in (0, 1); at least one row, and one row stays.
        seed: seed of the draw.
        stratify: a column whose values are divided in proportion. Of a value with several rows one stays in training,
            and a value's only row does unless there are too few others. Columns of lists, mappings or fractional
            numbers are not stratified by.

    Returns:
        Training and validation rows, each in the order of the files; no row is in both.

    Raises:
        DataError: there are fewer than two rows, or there is no column `stratify`.
        SpecError: `fraction` is not in (0, 1).

    Example:
        >>> rows = datasets.Dataset.from_dict({"label": ["a"] * 8 + ["b"] * 2})
        >>> train, validation = split_validation(RawSplit(rows, (Source("x"),)), fraction=0.2, stratify="label")
        >>> len(train.dataset), len(validation.dataset), "b" in train.dataset["label"][:]
        (8, 2, True)
    """
    if not 0 < fraction < 1:
        raise SpecError(f"fraction is {fraction!r}", mend="give a number above 0 and below 1")
    names, total = split.dataset.column_names, len(split.dataset)
    if stratify is not None and stratify not in names:
        raise DataError(
            f"there is no column {stratify!r} to stratify by",
            where=split.sources[0].name,
            mend=f"use one of {one_of(names)}",
        )
    if total < 2:
        raise DataError("a single row cannot be split", where=split.where(0), mend="give more rows")
    groups = _groups(split.dataset, stratify)
    rng = np.random.default_rng(seed)
    quotas = _quotas(np.array([len(group) for group in groups]), round(total * fraction), rng)
    held = [rng.permutation(group)[:quota] for group, quota in zip(groups, quotas, strict=True)]
    in_validation = np.zeros(total, dtype=bool)
    in_validation[np.concatenate(held)] = True
    held_out = replace(split.select(np.flatnonzero(in_validation)), changes=())
    return split.select(np.flatnonzero(~in_validation)), held_out


def split_folds(split: RawSplit, folds: int, *, seed: int = 0, stratify: str | None = None) -> list[np.ndarray]:
    """Divide rows into folds for cross-validation, the same ones for the same seed.

    Args:
        split: the rows to divide.
        folds: number of folds, at least 2.
        seed: seed of the draw.
        stratify: a column whose values are dealt out evenly: the rows of a value in two folds differ by one at most, as
            do the folds themselves. Columns of lists, mappings or fractional numbers are not stratified by.

    Returns:
        For each fold the positions of its rows, in ascending order; every row is in exactly one.

    Raises:
        DataError: there are fewer rows than folds.
        SpecError: `folds` is less than 2.

    Example:
        >>> rows = datasets.Dataset.from_dict({"label": ["a"] * 4 + ["b"] * 2})
        >>> [len(fold) for fold in split_folds(RawSplit(rows, (Source("x"),)), 2, stratify="label")]
        [3, 3]
    """
    if folds < 2:
        raise SpecError(f"folds is {folds!r}", mend="give at least 2")
    if len(split.dataset) < folds:
        rows = f"{len(split.dataset)} row" + "s" * (len(split.dataset) > 1)
        raise DataError(f"{rows} for {folds} folds", where=split.sources[0].name, mend="give more rows or fewer folds")
    rng = np.random.default_rng(seed)
    # One deal over all groups: each begins at the fold at which the one before it ended.
    dealt = np.concatenate([rng.permutation(group) for group in _groups(split.dataset, stratify)])
    return [np.sort(dealt[fold::folds]) for fold in range(folds)]


def _groups(dataset: datasets.Dataset, stratify: str | None) -> list[np.ndarray]:
    """Return the rows of each value of the column; all rows in one group where it is not a column of classes."""
    everything = [np.arange(len(dataset))]
    if stratify is None:
        return everything
    rows: dict[Any, list[int]] = {}
    for row, value in enumerate(dataset[stratify][:]):
        if isinstance(value, list | dict) or (isinstance(value, float) and not value.is_integer()):
            return everything
        rows.setdefault(value, []).append(row)
    return [np.array(group) for group in rows.values()]


def _quotas(sizes: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Return how many rows of each group to hold out: in proportion, by largest remainder."""
    wanted = min(max(1, wanted), int(sizes.sum()) - 1)
    spare = sizes - 1
    if spare.sum() < wanted:
        spare[sizes == 1] = 1
    wanted = min(wanted, int(spare.sum()))
    shares = sizes * (wanted / sizes.sum())
    quotas = np.minimum(np.floor(shares).astype(np.int64), spare)
    # Equal remainders are ranked by lot, so that no class is favoured for standing first.
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-(shares - quotas)[order], kind="stable")]
    while quotas.sum() < wanted:
        open_groups = order[quotas[order] < spare[order]]
        quotas[open_groups[: wanted - int(quotas.sum())]] += 1
    return quotas


# ---------------------------------------------------------------------- Hub and dataset folders


def _load_folder(folder: Path, name: str | None, split: str, *, streaming: bool) -> Any:
    """Load a folder of data files, or one that `save_to_disk` wrote, without progress bars."""
    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if (folder / "dataset_dict.json").exists():
            splits = datasets.DatasetDict.load_from_disk(str(folder))
            if split not in splits:
                raise DataError(f"there is no split {split!r}", mend=f"choose from {one_of(splits)}")
            return splits[split]
        if (folder / "state.json").exists():
            return datasets.Dataset.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder.absolute()), name, split=split, streaming=streaming)
    finally:
        if not quiet:
            datasets.enable_progress_bars()


# ---------------------------------------------------------------------- finding files


def find_files(patterns: str | Sequence[str], *, base: Path) -> list[DataFile]:
    """Return the files that a path, a pattern or a list of them names, each once; as in `read_files`."""
    found: dict[Path, DataFile] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for written in _matches(pattern, base):
            path = base / Path(written).expanduser()
            found.setdefault(path.resolve(), _data_file(path, written))
    if not found:
        raise DataError("no file is named", mend="name at least one file")
    return list(found.values())


def _matches(pattern: str, base: Path) -> list[str]:
    path = base / Path(pattern).expanduser()
    if path.is_file():
        return [pattern]
    if path.is_dir():
        example = next((child.name for child in sorted(path.iterdir()) if _ending(child) in ENDINGS), "train.jsonl")
        raise DataError("this is a folder", where=pattern, mend=f"name the files in it, such as '{pattern}/{example}'")
    if not glob.has_magic(pattern):
        raise _missing(pattern, path)
    # Path.glob takes no absolute patterns.
    names = glob.glob(str(Path(pattern).expanduser()), root_dir=base, recursive=True)  # noqa: PTH207
    files = sorted(name for name in names if (base / name).is_file())
    if not files:
        raise DataError("no file matches this pattern", where=pattern, mend=f"looked from {base.absolute()}")
    return files


def _missing(written: str, path: Path) -> DataError:
    if not path.parent.is_dir():
        return DataError("there is no such file", where=written, mend=f"there is no folder {path.parent.absolute()}")
    there = sorted(child.name for child in path.parent.iterdir() if child.is_file() and not child.name.startswith("."))
    near = difflib.get_close_matches(path.name, there, n=3, cutoff=0.6)
    if near:
        mend = f"did you mean {' or '.join(repr(str(Path(written).with_name(name))) for name in near)}?"
    else:
        mend = f"the folder {path.parent.absolute()} has {one_of(there[:8])}"
    return DataError("there is no such file", where=written, mend=mend)


def _data_file(path: Path, written: str) -> DataFile:
    ending = _ending(path)
    # Relative to the current folder where that is shorter and plain, otherwise as the user wrote it.
    relative = os.path.relpath(path)
    name = relative if len(relative) < len(written) and not relative.startswith("..") else written
    if ending not in ENDINGS:
        raise DataError(
            f"the ending {ending!r} is not known", where=name, mend=f"use one of {one_of(ENDINGS)}, or any with .gz"
        )
    return DataFile(path.absolute(), name, ending)


def _ending(path: Path) -> str:
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix
