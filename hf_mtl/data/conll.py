"""CoNLL column files and CoNLL-U: from numbered lines to one row per sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hf_mtl.errors import DataError

NumberedLines = Iterator[tuple[int, str]]
"""Lines of a file with their 1-based numbers."""

_CONLLU_COLUMNS = 10


def read_conll(
    lines: Callable[[], NumberedLines], *, name: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""Read sentences from a file with one token a line and a blank line after each sentence.

    Columns stand apart by tabs where the first token line has a tab, otherwise by spaces and tabs. `-DOCSTART-` lines
    are skipped. A line that begins with `"# "` at the start of a sentence is a comment unless it reads as a token: it
    has the right number of columns and ends in a tag that other tokens have.

    Args:
        lines: opens the file and yields its lines with their numbers; called again where the file is looked over twice.
        name: the file's name for error messages.
        columns: a name for every column, `"_"` for those to leave out; `None` names the first `tokens`, the last
            `tags` and those between `column_2`, `column_3`, ...

    Returns:
        For each sentence the line of its first token, and its columns as lists of text.

    Raises:
        DataError: a line has another number of columns than the first, or the file has a single column.

    Example:
        >>> text = ["# id 1", "New B-city", "York I-city", "", "#nyc O", ""]
        >>> for row in read_conll(lambda: enumerate(text, start=1), name="a.conll"):
        ...     print(row)
        (2, {'tokens': ['New', 'York'], 'tags': ['B-city', 'I-city']})
        (5, {'tokens': ['#nyc'], 'tags': ['O']})
    """
    tabs, count = _layout(lines(), name)
    names = _column_names(columns, count, name)
    tags: frozenset[str] | None = None
    start, sentence = 0, list[list[str]]()
    for number, line in lines():
        if _is_break(line):
            if sentence:
                yield start, _by_name(names, sentence)
            sentence = []
            continue
        cells = _cells(line, tabs)
        if not sentence and line.startswith("# "):
            if len(cells) == count and tags is None:
                tags = _tags(lines(), tabs, count)
            if len(cells) != count or cells[-1] not in (tags or ()):
                continue
        if len(cells) != count:
            raise _ragged(cells, count, f"{name}, line {number}")
        if not cells[0]:
            raise DataError(f"the token of {line!r} is empty", where=f"{name}, line {number}", mend="remove the line")
        if not sentence:
            start = number
        sentence.append(cells)
    if sentence:
        yield start, _by_name(names, sentence)


def read_conllu(lines: NumberedLines, *, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""Read sentences of a CoNLL-U file (universaldependencies.org/format.html).

    The tokens are the syntactic words: lines of multiword tokens (`1-2`) and of empty nodes (`1.1`) are skipped.

    Args:
        lines: the lines of the file with their numbers.
        name: the file's name for error messages.

    Returns:
        For each sentence the line of its first word, and `tokens`, `lemmas`, `upos`, `xpos`, `feats` and `deprels` as
        lists of text (`_` where the file leaves one open), `heads` as a list of word numbers (0 is the root, `None`
        where open), and `text` and `sent_id` from the comments, `None` without them.

    Raises:
        DataError: a line has not 10 columns, a word is out of order, or a head is not a number.

    Example:
        >>> text = ["# text = No", "1\tNo\tno\tINTJ\tUH\t_\t0\troot\t_\t_"]
        >>> line, row = next(read_conllu(enumerate(text, start=1), name="a.conllu"))
        >>> line, row["tokens"], row["heads"], row["text"]
        (2, ['No'], [0], 'No')
    """
    start, sentence, comments = 0, list[list[str]](), dict[str, str]()
    for number, line in lines:
        line = line.rstrip("\r\n")
        if not line.strip():
            if sentence:
                yield start, _conllu_row(sentence, comments)
            sentence, comments = [], {}
        elif line.startswith("#") and not sentence:
            key, _, value = line[1:].partition("=")
            comments[key.strip()] = value.strip()
        else:
            cells = _word(line, len(sentence) + 1, f"{name}, line {number}")
            if cells is not None:
                start = start if sentence else number
                sentence.append(cells)
    if sentence:
        yield start, _conllu_row(sentence, comments)


def _word(line: str, position: int, where: str) -> list[str] | None:
    """Return the ten cells of a word's line, `None` for a multiword token or an empty node."""
    cells = line.split("\t")
    if len(cells) != _CONLLU_COLUMNS:
        raise DataError(
            f"{line!r} has {_plural(len(cells), 'column')}, CoNLL-U has {_CONLLU_COLUMNS}",
            where=where,
            mend="separate the columns by single tabs, and write _ where a value is open",
        )
    if re.fullmatch(r"\d+[-.]\d+", cells[0]):
        return None
    if cells[0] != str(position):
        raise DataError(
            f"the word's number is {cells[0]!r} where {position} comes next",
            where=where,
            mend="number the words of a sentence from 1, with a blank line between sentences",
        )
    if cells[6] != "_" and not cells[6].isdecimal():
        raise DataError(f"the head {cells[6]!r} is not a word's number", where=where, mend="write a number, 0 or _")
    return cells


def _conllu_row(sentence: list[list[str]], comments: dict[str, str]) -> dict[str, Any]:
    _, tokens, lemmas, upos, xpos, feats, heads, deprels, _, _ = (list(cells) for cells in zip(*sentence, strict=True))
    return {
        "tokens": tokens,
        "lemmas": lemmas,
        "upos": upos,
        "xpos": xpos,
        "feats": feats,
        "heads": [None if head == "_" else int(head) for head in heads],
        "deprels": deprels,
        "text": comments.get("text"),
        "sent_id": comments.get("sent_id"),
    }


def _layout(lines: NumberedLines, name: str) -> tuple[bool, int]:
    """Return whether tabs separate the columns, and the number of columns, both read from the first token line."""
    first = None
    for number, line in lines:
        if not _is_break(line):
            first = number, line
            if not line.startswith("# "):
                break
    if first is None:
        return False, 0
    number, line = first
    tabs = "\t" in line.rstrip("\t \r\n")
    count = len(_cells(line, tabs))
    if count < 2:
        raise DataError(
            f"{line.strip()!r} is a single column, CoNLL needs a token and at least one more",
            where=f"{name}, line {number}",
            mend="write each token on its own line with its tag after a tab",
        )
    return tabs, count


def _column_names(columns: Sequence[str] | None, count: int, name: str) -> list[str]:
    if columns is None:
        return ["tokens", *(f"column_{index}" for index in range(2, count)), "tags"]
    if count and len(columns) != count:
        raise DataError(
            f"columns gives {_plural(len(columns), 'name')} ({', '.join(columns)}), the file has {count}",
            where=name,
            mend="name every column in its order, with _ for those to leave out",
        )
    return list(columns)


def _by_name(names: list[str], sentence: list[list[str]]) -> dict[str, Any]:
    values = zip(*sentence, strict=True)
    return {name: list(column) for name, column in zip(names, values, strict=True) if name != "_"}


def _is_break(line: str) -> bool:
    return not line.strip("\t \r\n") or line.startswith("-DOCSTART-")


def _cells(line: str, tabs: bool) -> list[str]:
    # Only spaces and tabs separate: str.split() would also cut at the no-break and ideographic spaces inside tokens.
    line = line.rstrip("\t \r\n")
    return line.split("\t") if tabs else re.split(r"[ \t]+", line.lstrip(" \t"))


def _tags(lines: NumberedLines, tabs: bool, count: int) -> frozenset[str]:
    """Return the last cells of all lines that cannot be comments."""
    cells = (_cells(line, tabs) for _, line in lines if not _is_break(line) and not line.startswith("# "))
    return frozenset(row[-1] for row in cells if len(row) == count)


def _ragged(cells: list[str], count: int, where: str) -> DataError:
    return DataError(
        f"{' '.join(cells)!r} has {_plural(len(cells), 'column')}, the first token line has {count}",
        where=where,
        mend="give every token all its columns; a comment begins with '# ' and stands before its sentence",
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
