"""Rows of a local JSON, JSONL, CSV or Parquet file, each with the place it stands at for messages."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_forget.errors import InputError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_LONGEST_LIST = 120  # characters of column names in a message
LONGEST_CELL = 1 << 24  # characters; the csv module's own limit is shorter than a chapter of a book


@dataclass(frozen=True)
class Row:
    """``where`` names file and line (JSONL, CSV) or row (JSON, Parquet), counted from 1."""

    where: str
    values: dict[str, Any]


def listed(names: Iterable[str]) -> str:
    """Names of columns for a message, cut where there are very many."""
    return textwrap.shorten(", ".join(names), _LONGEST_LIST, placeholder=" …")


def read_rows(path: Path) -> list[Row]:
    """All rows of a file; its suffix says the format.

    A JSON file holds a list of objects, or one object whose only list (under ``data``, say) does. A CSV file
    without a header row is taken for MMLU's own: question, A, B, C, D, answer.

    Raises:
        InputError: no such file, an unknown suffix, a file that is malformed (named by line or row) or empty, or a
            Parquet file where neither pyarrow nor datasets is installed.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path} ends in {suffix or 'nothing'!r}, needed one of {', '.join(SUFFIXES)}",
            hint="convert the set to JSONL: one object a line",
        )
    if not path.is_file():
        raise InputError(f"probe file {path} does not exist", hint="give the path of a local file")
    if suffix == ".parquet":
        rows = [Row(f"{path}, row {i}", values) for i, values in enumerate(_parquet(path), start=1)]
    else:
        reader = {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv}[suffix]
        rows = list(reader(path, _text(path)))
    if not rows:
        raise InputError(f"{path} holds no row, needed at least one")
    return rows


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read", cause=str(error)) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8 ({error.reason})", hint="save the file as UTF-8") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: found a {type(value).__name__}, needed an object with named values")
    return value


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: not JSON", cause=str(error), hint="one JSON object a line") from error
            yield Row(where, _object(value, where))


def _json_list(path: Path, text: str) -> Iterator[Row]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON", cause=str(error), hint="name it .jsonl if it has an object a line") from (
            error
        )
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list)]
        if len(lists) != 1:
            raise InputError(f"{path}: an object with {len(lists)} lists, needed a list of objects or one such list")
        document = lists[0]
    if not isinstance(document, list):
        raise InputError(f"{path}: found a {type(document).__name__}, needed a list of objects")
    for number, value in enumerate(document, start=1):
        where = f"{path}, row {number}"
        yield Row(where, _object(value, where))


def _csv(path: Path, text: str) -> Iterator[Row]:
    previous = csv.field_size_limit(LONGEST_CELL)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header: list[str] | None = None
        line = 1
        for cells in reader:
            where, line = f"{path}, line {line}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                bare = len(cells) == 6 and cells[5].strip() in ("A", "B", "C", "D")
                header = ["question", "A", "B", "C", "D", "answer"] if bare else [cell.strip() for cell in cells]
                if not bare:
                    continue
            if len(cells) != len(header):
                raise InputError(f"{where}: {len(cells)} cells, needed {len(header)}: {listed(header)}")
            yield Row(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV", cause=str(error)) from error
    finally:
        csv.field_size_limit(previous)


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(
            f"{path}: reading Parquet needs the package pyarrow, which is not installed",
            hint="pip install 'gguf-forget[parquet]', or convert the file to JSONL",
        ) from error
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file", cause=str(error)) from error
    return rows
