"""From files, or a dataset of the Hub, to raw rows that know the line they come from."""

from __future__ import annotations

import bisect
import csv
import difflib
import glob
import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import datasets
import datasets.config
import datasets.exceptions
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import InMemoryTable, MemoryMappedTable, Table

from hf_mtl.data.conll import read_conll, read_conllu
from hf_mtl.errors import DataError, SpecError, one_of

READER_VERSION = 1
"""Part of every cache key: raise it when a reader gives other rows for the same file."""

_BATCH_ROWS = 2_000
_FILE_COLUMN, _LINE_COLUMN = "_hf_mtl_file", "_hf_mtl_line"
_CONLL_ENDINGS = (".conll", ".txt", ".iob", ".bio")
_JSON_ENDINGS = (".json", ".jsonl", ".ndjson")

_NumberedRows = Iterator[tuple[int, dict[str, Any]]]


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
class RawSplit:
    """Rows as the data has them, and where each of them stands.

    Args:
        dataset: the rows, with the columns the files have.
        sources: the files the rows come from.
        origins: the columns `file` (a position in `sources`) and `line` (1-based) of the rows as read; `None` where the
            rows are those of a single source in its order.
        rows: for each row of `dataset` its position in what was read; `None` where they are the same.

    Example:
        >>> split = RawSplit(datasets.Dataset.from_dict({"text": ["a", "b"]}), sources=(Source("here"),))
        >>> split.where(1), split.select([1]).where(0)
        ('here, row 2', 'here, row 2')
    """

    dataset: datasets.Dataset
    sources: tuple[Source, ...]
    origins: tuple[pa.ChunkedArray, pa.ChunkedArray] | None = None
    rows: np.ndarray | None = None

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
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "train.csv").write_text('text,label\\n"Good,\\nvery",1\\nBad,\\n')
        ...     split = read_files("train.csv", base=Path(folder))
        ...     split.dataset[0], split.dataset[1], split.where(1)
        ({'text': 'Good,\\nvery', 'label': '1'}, {'text': 'Bad', 'label': None}, 'train.csv, line 4')
    """
    files = _find_files([pattern] if isinstance(pattern, str) else pattern, base)
    if columns is not None and not any(file.ending in _CONLL_ENDINGS for file in files):
        raise DataError(
            f"columns is given for a {files[0].ending} file, which names its own columns",
            where=files[0].name,
            mend="leave columns out",
        )
    table, key = _cached_table(files, columns)
    return RawSplit(
        datasets.Dataset(table.drop([_FILE_COLUMN, _LINE_COLUMN]), fingerprint=key),
        sources=tuple(Source(file.name, file.unit) for file in files),
        origins=(table.column(_FILE_COLUMN), table.column(_LINE_COLUMN)),
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
    folder = (base or Path()) / Path(path).expanduser()
    local = folder.is_dir()
    where = f"{path} ({split})"
    if not local and path.startswith((".", "/", "~")):
        raise DataError("there is no such folder", where=path, mend=f"looked on disk at {folder.absolute()}")
    try:
        dataset = _load_folder(folder, name, split) if local else _load_from_hub(path, name, split, revision)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        reason = _shorten(str(cause or error).split("\n")[0].rstrip("."), 300)
        if local:
            place, mend = f"in the folder {folder.absolute()}", "check the folder, the configuration and the split"
        else:
            place, mend = "on the Hub", "check the name, the network and `hf auth login`, or give files on disk"
        raise DataError(f"looked {place}: {reason}", where=where, mend=mend) from error
    if not len(dataset):
        raise DataError("the split has no rows", where=where, mend="choose another split")
    return RawSplit(dataset, sources=(Source(where),))


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
    return split.select(np.flatnonzero(~in_validation)), split.select(np.flatnonzero(in_validation))


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


def _load_from_hub(path: str, name: str | None, split: str, revision: str | None) -> datasets.Dataset:
    return datasets.load_dataset(path, name, split=split, revision=revision)


def _load_folder(folder: Path, name: str | None, split: str) -> datasets.Dataset:
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
        return datasets.load_dataset(str(folder.absolute()), name, split=split)
    finally:
        if not quiet:
            datasets.enable_progress_bars()


# ---------------------------------------------------------------------- finding files


@dataclass(frozen=True)
class _File:
    """A data file: its absolute path, its name for error messages, and its ending without `.gz`."""

    path: Path
    name: str
    ending: str

    @property
    def unit(self) -> str:
        return "row" if self.ending in (".json", *_TABLE_READERS) else "line"

    def at(self, number: int) -> str:
        return f"{self.name}, {self.unit} {number}"

    def open(self) -> IO[bytes]:
        if self.path.suffix.lower() == ".gz":
            return cast(IO[bytes], gzip.open(self.path, "rb"))
        return self.path.open("rb")


def _find_files(patterns: Sequence[str], base: Path) -> list[_File]:
    found: dict[Path, _File] = {}
    for pattern in patterns:
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
        example = next((child.name for child in sorted(path.iterdir()) if _ending(child) in _ENDINGS), "train.jsonl")
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


def _data_file(path: Path, written: str) -> _File:
    ending = _ending(path)
    # Relative to the current folder where that is shorter and plain, otherwise as the user wrote it.
    relative = os.path.relpath(path)
    name = relative if len(relative) < len(written) and not relative.startswith("..") else written
    if ending not in _ENDINGS:
        raise DataError(
            f"the ending {ending!r} is not known", where=name, mend=f"use one of {one_of(_ENDINGS)}, or any with .gz"
        )
    return _File(path.absolute(), name, ending)


def _ending(path: Path) -> str:
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix


# ---------------------------------------------------------------------- the Arrow cache


def _cached_table(files: Sequence[_File], columns: Sequence[str] | None) -> tuple[Table, str]:
    """Return the rows of the files as Arrow, read once and then memory-mapped, and their fingerprint."""
    stats = [(str(file.path.resolve()), file.path.stat()) for file in files]
    state = [(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats]
    identity = json.dumps([READER_VERSION, columns and list(columns), state])
    key = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "hf_mtl"
    target = cache / key / "data.arrow"
    if not target.exists():
        try:
            (cache / key).mkdir(parents=True, exist_ok=True)
            scratch = tempfile.TemporaryDirectory(dir=cache, prefix="tmp-")
        except OSError:
            # The cache folder cannot be written: read anew in every process, and keep the rows in memory.
            with tempfile.TemporaryDirectory() as temporary:
                return InMemoryTable.from_file(str(_write_arrow(files, columns, Path(temporary)))), key
        with scratch:
            _write_arrow(files, columns, Path(scratch.name)).replace(target)
    return MemoryMappedTable.from_file(str(target)), key


def _write_arrow(files: Sequence[_File], columns: Sequence[str] | None, folder: Path) -> Path:
    """Write the rows of all files to one Arrow file in the folder, and return its path."""
    writer = _ArrowWriter(folder)
    first: tuple[_File, list[str]] | None = None
    for index, file in enumerate(files):
        rows = 0
        for lines, table in _tables(file, columns, writer):
            names = table.column_names
            _check_names(file, names)
            if not rows and file.ending not in _JSON_ENDINGS:
                first = first or (file, names)
                _check_columns(file, names, first)
            origin = {
                _FILE_COLUMN: pa.array([index] * len(lines), pa.int32()),
                _LINE_COLUMN: pa.array(lines, pa.int64()),
            }
            writer.write(pa.table({**origin, **dict(zip(names, table.columns, strict=True))}), file)
            rows += len(lines)
        if not rows or len(writer.schema) == 2:
            raise DataError(
                "the file has no rows" if not rows else "the rows are empty",
                where=file.name,
                mend="give it rows, or leave it out",
            )
    return writer.finish()


def _check_names(file: _File, names: Sequence[str]) -> None:
    for name in names:
        if name in (_FILE_COLUMN, _LINE_COLUMN) or names.count(name) > 1:
            problem = f"the column {name!r} stands twice" if names.count(name) > 1 else f"the name {name!r} is reserved"
            raise DataError(problem, where=file.name, mend="rename the column")


def _check_columns(file: _File, found: Sequence[str], first: tuple[_File, list[str]]) -> None:
    other, wanted = first
    missing, extra = [c for c in wanted if c not in found], [c for c in found if c not in wanted]
    if missing or extra:
        lacks = f"lacks the column {missing[0]!r}" if missing else f"has the column {extra[0]!r}"
        raise DataError(
            f"the file {lacks}, unlike {other.name}",
            where=file.name,
            mend="give all files the same columns, or read them as separate datasets",
        )


class _ArrowWriter:
    """Writes tables to one Arrow file whose types are those that fit all of them.

    Types can widen while rows come in (all empty, then text; whole numbers, then fractions): tables are written in
    parts of one schema each, and only where there are several are the parts rewritten at the end.
    """

    def __init__(self, folder: Path) -> None:
        self.schema = pa.schema([])
        self._folder = folder
        self._parts: list[Path] = []
        self._part_schema = self.schema
        self._stream: Any = None

    def describe(self, features: dict[str, Any], file: _File) -> None:
        """Keep what `datasets` knows of columns (the names of class labels), the same in all files that say so."""
        metadata = self.schema.metadata or {}
        known = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        for name in known.keys() & features.keys():
            if known[name] != features[name]:
                raise DataError(
                    f"the column {name!r} is of another kind, or has other label names, than in the files before",
                    where=file.name,
                    mend="read the files as separate datasets",
                )
        if features:
            merged = {"info": {"features": {**features, **known}}}
            self.schema = self.schema.with_metadata({b"huggingface": json.dumps(merged).encode()})

    def type_of(self, column: str) -> pa.DataType:
        """Return the type of the column so far, null where it is new."""
        return self.schema.field(column).type if column in self.schema.names else pa.null()

    def write(self, table: pa.Table, file: _File) -> None:
        """Write a table; columns it lacks are null."""
        try:
            schema = pa.unify_schemas([self.schema, table.schema.remove_metadata()], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(
                f"the types of the columns differ from the files before: {error}",
                where=file.name,
                mend="give the column one type, or read the files as separate datasets",
            ) from error
        if not self._parts or not schema.equals(self._part_schema, check_metadata=True):
            self._begin(schema)
        self._stream.write_table(_conform(table, schema))

    def finish(self) -> Path:
        """Close the file and return its path."""
        self._stream.close()
        parts = self._parts
        if len(parts) > 1:
            self._begin(self.schema)
            for part in parts:
                with pa.memory_map(str(part)) as source:
                    for batch in pa.ipc.open_stream(source):
                        self._stream.write_table(_conform(pa.Table.from_batches([batch]), self.schema))
                part.unlink()
            self._stream.close()
        return self._parts[-1]

    def _begin(self, schema: pa.Schema) -> None:
        if self._parts:
            self._stream.close()
        self.schema = self._part_schema = schema
        self._parts = [*self._parts, self._folder / f"part-{len(self._parts)}.arrow"]
        self._stream = pa.ipc.new_stream(str(self._parts[-1]), schema)


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give a table the columns and types of a schema that it fits into."""
    columns: list[Any] = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        column = table.column(field.name)
        if column.type == field.type:
            columns.append(column)
        elif pa.types.is_nested(field.type):
            # Rebuilt, not cast, until apache/arrow#43838 is closed: the cast of a list of structs with a null field,
            # even to its own type, gives a broken array.
            columns.append(pa.array(column.to_pylist(), field.type))
        else:
            columns.append(column.cast(field.type, safe=False))
    return pa.table(columns, schema=schema)


# ---------------------------------------------------------------------- from a file to tables


def _tables(
    file: _File, columns: Sequence[str] | None, writer: _ArrowWriter
) -> Iterator[tuple[Sequence[int], pa.Table]]:
    """Yield a file's rows as tables, each with the lines its rows begin at."""
    if file.ending in _TABLE_READERS:
        start = 1
        for table in _TABLE_READERS[file.ending](file, writer):
            yield range(start, start + len(table)), table
            start += len(table)
        return
    rows = _conll_rows(file, columns) if file.ending in _CONLL_ENDINGS else _ROW_READERS[file.ending](file)
    while batch := list(islice(rows, _BATCH_ROWS)):
        lines = [line for line, _ in batch]
        names = dict.fromkeys(name for _, row in batch for name in row)
        yield (
            lines,
            pa.table(
                {
                    name: _column(name, [row.get(name) for _, row in batch], writer.type_of(name), file, lines)
                    for name in names
                }
            ),
        )


def _column(name: str, values: list[Any], before: pa.DataType, file: _File, lines: Sequence[int]) -> pa.Array:
    """Turn a column into the type that fits it and the rows before, or name the first line that does not fit."""
    try:
        return _fit(values, before)
    except _MISFITS:
        pass
    row = bisect.bisect_left(range(len(values)), True, key=lambda last: not _fits(values[: last + 1], before))
    value, mend = values[row], "write the same kind of value in every row"
    found = f"column {name!r} holds {_shorten(repr(value))}"
    if not _fits([value], pa.null()):
        raise DataError(f"{found}, which cannot be stored", where=file.at(lines[row]), mend="change the value")
    other = next((i for i in range(row - 1, -1, -1) if not _fits([values[i], value], pa.null())), None)
    if other is None:
        contrast = f"the rows before hold {_kind(before)}"
    else:
        contrast = f"{file.unit} {lines[other]} holds {_shorten(repr(values[other]))}"
    raise DataError(f"{found}, but {contrast}", where=file.at(lines[row]), mend=mend)


_MISFITS = (pa.ArrowException, OverflowError, UnicodeEncodeError)


def _fit(values: list[Any], before: pa.DataType) -> pa.Array:
    array = pa.array(values)
    if array.type == before:
        return array
    schemas = [pa.schema([("column", type_)]) for type_ in (before, array.type)]
    shared = pa.unify_schemas(schemas, promote_options="permissive").field("column").type
    return array if array.type == shared else pa.array(values, shared)


def _fits(values: list[Any], before: pa.DataType) -> bool:
    try:
        _fit(values, before)
    except _MISFITS:
        return False
    return True


def _kind(type_: pa.DataType) -> str:
    words = {"string": "text", "int64": "whole numbers", "double": "numbers", "bool": "true or false"}
    if pa.types.is_list(type_):
        return f"lists of {_kind(type_.value_type)}"
    return words.get(str(type_), f"{type_}")


def _shorten(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


# ---------------------------------------------------------------------- readers of rows


@contextmanager
def _reading(file: _File) -> Generator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        reason = _shorten(str(error).split("\n")[0], 200)
        raise DataError(
            f"the file cannot be read ({reason})",
            where=file.name,
            mend=f"check that it is a complete {''.join(file.path.suffixes[-2:])} file you may read",
        ) from error


def _lines(file: _File) -> Iterator[tuple[int, str]]:
    """Yield a file's lines, which end at line feeds only, with their numbers from 1."""
    with _reading(file), file.open() as stream:
        for number, raw in enumerate(stream, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(file, number, raw, error) from None
            if number == 1 and "\0" in line:
                raise DataError("the line has NUL bytes", where=f"{file.name}, line 1", mend="save the file as UTF-8")
            yield number, line


def _not_utf8(file: _File, number: int, raw: bytes, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"byte {error.start + 1} of the line, 0x{raw[error.start]:02x}, is not UTF-8",
        where=f"{file.name}, line {number}",
        mend="save the file as UTF-8",
    )


def _csv_rows(file: _File) -> _NumberedRows:
    # A process-wide limit of the csv module; its default of 131,072 characters is less than a long document.
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))
    # strict: a quote that is never closed is an error, not a field that swallows the rest of the file.
    reader = csv.reader((line for _, line in _lines(file)), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"the row is not well-formed CSV: {error}",
                where=file.at(number),
                mend='close every quoted field, write a quote inside one as "", and end lines with \\n or \\r\\n',
            ) from error
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = _header(file, number, cells)
        else:
            yield number, _csv_row(file, number, header, cells)


def _tsv_rows(file: _File) -> _NumberedRows:
    # In TSV a tab always separates and a line is a row: a quote in public data sets is mostly text, not the begin of
    # a field that may hold tabs.
    header: list[str] | None = None
    for number, line in _lines(file):
        line = line.rstrip("\r\n")
        if not line:
            continue
        cells = [_unquoted(cell) for cell in line.split("\t")]
        if header is None:
            header = _header(file, number, cells)
        else:
            yield number, _csv_row(file, number, header, cells)


def _unquoted(cell: str) -> str:
    """Undo the quotes that spreadsheets put around a TSV cell with quotes or commas in it; leave any others."""
    inner = cell[1:-1]
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else cell


def _header(file: _File, number: int, cells: list[str]) -> list[str]:
    names = [cell.strip() or f"column_{index}" for index, cell in enumerate(cells, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"the column {twice!r} stands twice in the header", where=file.at(number), mend="rename one")
    return names


def _csv_row(file: _File, number: int, header: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        raise DataError(
            f"the row has {len(cells)} {'cell' if len(cells) == 1 else 'cells'}, the header has {len(header)}: "
            f"{_shorten(repr(cells))}",
            where=file.at(number),
            mend='put text with commas or line breaks in double quotes, as in "one, two"'
            if file.ending == ".csv"
            else "take tabs and line breaks out of the text, or save it as .csv",
        )
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _jsonl_rows(file: _File) -> _NumberedRows:
    for number, line in _lines(file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{_shorten(repr(line.strip()))} is not JSON ({error})",
                where=file.at(number),
                mend="write one JSON object on each line; a file with a single list of objects ends in .json",
            ) from error
        yield number, _json_object(row, file, number)


def _json_rows(file: _File) -> _NumberedRows:
    with _reading(file), file.open() as stream:
        raw = stream.read()
    try:
        content = json.loads(raw.decode("utf-8-sig")) if raw.strip() else []
    except UnicodeDecodeError as error:
        start = raw.rfind(b"\n", 0, error.start) + 1
        error.start -= start
        raise _not_utf8(file, raw.count(b"\n", 0, start) + 1, raw[start:], error) from None
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise DataError(
            f"the file is not JSON ({error})",
            where=f"{file.name}, line {line}",
            mend="write a list of objects; a file with one object on each line ends in .jsonl",
        ) from error
    if isinstance(content, dict) and isinstance(cast(dict[str, Any], content).get("data"), list):
        content = cast(dict[str, Any], content)["data"]
    if not isinstance(content, list):
        raise DataError(
            f"the file holds {_shorten(repr(content))}",
            where=file.name,
            mend='write a list of objects, or {"data": [...]}',
        )
    for number, row in enumerate(cast(list[Any], content), start=1):
        yield number, _json_object(row, file, number)


def _json_object(row: Any, file: _File, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(
            f"{_shorten(repr(row))} is not an object",
            where=file.at(number),
            mend='write rows as objects, such as {"text": "...", "label": "..."}',
        )
    return cast(dict[str, Any], row)


def _conll_rows(file: _File, columns: Sequence[str] | None) -> _NumberedRows:
    return read_conll(lambda: _lines(file), name=file.name, columns=columns)


def _conllu_rows(file: _File) -> _NumberedRows:
    return read_conllu(_lines(file), name=file.name)


_ROW_READERS: dict[str, Callable[[_File], _NumberedRows]] = {
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".conllu": _conllu_rows,
}


# ---------------------------------------------------------------------- readers of tables


def _parquet_tables(file: _File, writer: _ArrowWriter) -> Iterator[pa.Table]:
    with _reading(file), file.open() as stream:
        source = pa.BufferReader(stream.read()) if isinstance(stream, gzip.GzipFile) else stream
        parquet = pq.ParquetFile(source)
        writer.describe(_hub_features(parquet.schema_arrow), file)
        for batch in parquet.iter_batches(_BATCH_ROWS):
            yield _plain(batch)


def _arrow_tables(file: _File, writer: _ArrowWriter) -> Iterator[pa.Table]:
    with _reading(file), file.open() as stream:
        source = pa.BufferReader(stream.read()) if isinstance(stream, gzip.GzipFile) else pa.memory_map(str(file.path))
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        writer.describe(_hub_features(reader.schema), file)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
        for batch in batches:
            yield _plain(batch)


def _hub_features(schema: pa.Schema) -> dict[str, Any]:
    """Return the features that `datasets` wrote into a schema, by column."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return (metadata.get("info") or {}).get("features") or {}


def _plain(batch: pa.RecordBatch) -> pa.Table:
    """Turn a batch into a table of nullable columns of types that `datasets` knows."""
    views = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    columns: list[Any] = []
    for column in batch.columns:
        type_ = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        type_ = views.get(type_, type_)
        columns.append(column if column.type == type_ else column.cast(type_))
    return pa.table(columns, names=batch.schema.names)


_TABLE_READERS: dict[str, Callable[[_File, _ArrowWriter], Iterator[pa.Table]]] = {
    ".parquet": _parquet_tables,
    ".arrow": _arrow_tables,
}

_ENDINGS = (*_ROW_READERS, *_CONLL_ENDINGS, *_TABLE_READERS)
