"""The list of everything that a shipped file has and its stock file has not: enough to rebuild it bit by bit.

One ``.npz`` file, readable with numpy alone. ``about`` holds JSON as bytes (:class:`About`); every tensor that differs
has three arrays, named after it::

    <tensor>/position   flat index of each weight that moved, rows first (unit "byte": of each byte that changed)
    <tensor>/before     what the stock file holds there
    <tensor>/after      what the shipped file holds there

Units: "code", a quantized weight's integer code, all scales being equal; "float", the bits of a floating-point weight;
"byte", for types without a codec and for tensors where a scale changed. Of the header only the keys that are new or
different are kept; the others are copied from the stock file.

Shapes: rows, columns as the tensor is stored; m moves of one tensor, in the order of their positions.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gguf_forget.checkpoint.stored import StoredTensor, files_of, stored_tensors
from gguf_forget.errors import EvaluationError, InputError
from gguf_forget.export.gguf_header import Header, read_header
from gguf_forget.export.rows import runs_of_rows
from gguf_forget.grids import CODECS
from gguf_forget.whole_file import AT_ONCE, replaced_whole, sha256_file, sha256_of

SCHEMA_VERSION = 1
SUFFIX = ".moves.npz"
LARGEST_ABOUT = 64 << 20  # bytes
LARGEST_ALIGNMENT = 16 << 20  # bytes; so many zeros at most are made
WORDS: Mapping[str, type[np.unsignedinteger[Any]]] = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}


@dataclass(frozen=True)
class About:
    """What the two files are, and how the header of the shipped one follows from that of the stock one.

    stock, shipped: name, bytes, sha256. version, alignment: of the shipped header. keys: in the shipped order, each
    the name of a key copied from the stock file, or [name, entry in hexadecimal]. tensors: of those that differ, name
    to type, unit and number of moves.
    """

    stock: Mapping[str, Any]
    shipped: Mapping[str, Any]
    version: int
    alignment: int
    keys: list[Any]
    tensors: Mapping[str, Mapping[str, Any]]


def identity(path: Path) -> dict[str, Any]:
    """Name, bytes and sha256 of a file."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _single(path: Path) -> Path:
    if len(files_of(path)) > 1:
        raise InputError(
            f"{path} is split into several files, needed one", hint="join it with llama-gguf-split --merge"
        )
    return path


def _words(tensor: StoredTensor, unit: str, start: int, stop: int) -> np.ndarray:
    """Rows ``start`` to ``stop`` of a tensor, flat, in its unit; "code" gives int16."""
    raw = np.ascontiguousarray(tensor.raw[start:stop])
    if unit == "code":
        return CODECS[tensor.type].decode(raw).codes.ravel()
    return raw.ravel() if unit == "byte" else raw.view(WORDS[tensor.type]).ravel()


def _with_words(tensor: StoredTensor, unit: str, start: int, stop: int, words: np.ndarray) -> bytes:
    """The bytes of rows ``start`` to ``stop`` with these ``words``; scales and offsets as they are."""
    if unit != "code":
        return words.tobytes()
    raw = np.ascontiguousarray(tensor.raw[start:stop])
    return CODECS[tensor.type].with_codes(raw, words.reshape(len(raw), -1)).tobytes()


def _compare(stock: StoredTensor, shipped: StoredTensor, unit: str) -> dict[str, np.ndarray]:
    """position, before, after; empty where the moves do not give back the shipped bytes (a scale changed)."""
    found: dict[str, list[np.ndarray]] = {"position": [], "before": [], "after": []}
    for start, stop in runs_of_rows(stock):
        if np.array_equal(stock.raw[start:stop], shipped.raw[start:stop]):
            continue
        one, other = (_words(tensor, unit, start, stop) for tensor in (stock, shipped))
        if unit == "code" and not _gives_back(stock, shipped, start, stop, other):
            return {}
        place = np.flatnonzero(one != other)
        found["position"].append(place.astype(np.uint64) + np.uint64(start * (one.size // (stop - start))))
        found["before"].append(one[place])
        found["after"].append(other[place])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _gives_back(stock: StoredTensor, shipped: StoredTensor, start: int, stop: int, codes: np.ndarray) -> bool:
    try:
        return _with_words(stock, "code", start, stop, codes) == shipped.raw[start:stop].tobytes()
    except InputError:  # a code that llama.cpp never writes
        return False


def write_moves(
    stock: Path, shipped: Path, destination: Path, *, advance: Callable[[int], None] = lambda done: None
) -> About:
    """Write the list by which ``shipped`` follows from ``stock``; the same two files give the same bytes.

    Raises InputError for files that cannot be read, or are no two versions of one model with the same tensors in the
    same types; EvaluationError where the list does not give back the shipped file.
    """
    headers = [read_header(_single(path))[0] for path in (stock, shipped)]
    if headers[0].descriptions != headers[1].descriptions:
        raise InputError(
            f"{shipped} has other tensors, or tensors of other types, than {stock}",
            hint="give the stock quantization of the same type, made from the same original",
        )
    one, other = stored_tensors(stock), stored_tensors(shipped)
    arrays: dict[str, np.ndarray] = {}
    kinds: dict[str, dict[str, Any]] = {}
    for name, tensor in one.items():
        advance(1)
        if np.array_equal(tensor.raw, other[name].raw):
            continue
        unit = "code" if tensor.type in CODECS else "float" if tensor.type in WORDS else "byte"
        moves = _compare(tensor, other[name], unit)
        if not moves:
            unit, moves = "byte", _compare(tensor, other[name], "byte")
        kinds[name] = {"type": tensor.type, "unit": unit, "moves": len(moves["position"])}
        arrays |= {f"{name}/{part}": values for part, values in moves.items()}
    about = About(
        stock=identity(stock),
        shipped=identity(shipped),
        version=headers[1].version,
        alignment=headers[1].alignment,
        keys=[
            key if headers[0].entries.get(key) == entry else [key, entry.hex()]
            for key, entry in headers[1].entries.items()
        ],
        tensors=kinds,
    )
    text = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(about)}, sort_keys=True, ensure_ascii=False)
    arrays["about"] = np.frombuffer(text.encode(), dtype=np.uint8)
    with replaced_whole(destination) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return about


class MovesFile:
    """A list that :func:`write_moves` wrote, read without trust.

    Raises InputError for a file that is no such list.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                size = archive.getinfo("about.npy").file_size
                if size > LARGEST_ABOUT:
                    raise ValueError(f"about takes {size:,} bytes")
                sizes = {info.filename: info.file_size for info in archive.infolist()}
            self._sizes = sizes
            self.about = _checked(json.loads(self._array("about", np.uint8).tobytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, *_DAMAGED) as error:
            raise InputError(
                f"{path} is no readable list of moves", cause=str(error), hint="give a .moves.npz of an evidence folder"
            ) from error

    def _array(self, name: str, *kinds: type[np.generic]) -> np.ndarray:
        with np.load(self.path, allow_pickle=False) as arrays:
            array: np.ndarray = arrays[name]
        if array.ndim != 1 or array.dtype.type not in kinds:
            raise ValueError(f"{name} is {array.dtype} of {array.ndim} dimensions")
        return array

    def moves(self, tensor: StoredTensor) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
        """Unit, position, before and after of one tensor's moves; checked against what the tensor can hold."""
        entry = self.about.tensors[tensor.name]
        unit, most = entry["unit"], tensor.rows * tensor.columns
        try:
            if entry["type"] != tensor.type:
                raise ValueError(f"they are of {entry['type']}, the tensor is {tensor.type}")
            if unit == "byte":
                most = tensor.raw.size
            for part in ("position", "before", "after"):
                if self._sizes[f"{tensor.name}/{part}.npy"] > 8 * most + 4096:
                    raise ValueError("more moves than weights")
            word = np.uint8 if unit == "byte" else np.int16 if unit == "code" else WORDS[tensor.type]
            position = self._array(f"{tensor.name}/position", np.uint64)
            before, after = (self._array(f"{tensor.name}/{part}", word) for part in ("before", "after"))
            ordered = bool((position[1:] > position[:-1]).all())
            if not len(position) == len(before) == len(after) or not ordered or (position >= most).any():
                raise ValueError("moves out of order or outside the tensor")
            if len(position) != entry["moves"]:
                raise ValueError(f"{len(position)} moves, needed {entry['moves']}")
        except (OSError, ValueError, KeyError, TypeError, EOFError, *_DAMAGED) as error:
            raise InputError(f"{self.path}: the moves of {tensor.name} cannot be read", cause=str(error)) from error
        return unit, position.astype(np.int64), before, after


_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RecursionError, MemoryError)


def _checked(record: Any) -> About:
    """What a list says of itself, every value of it looked at.

    Raises ValueError, KeyError, TypeError or AttributeError for what :func:`write_moves` never writes.
    """
    if record.pop("schema_version") != SCHEMA_VERSION:
        raise ValueError("another schema version")
    about = About(**record)
    for part in (about.stock, about.shipped):
        texts = (part["name"], part["sha256"])
        if not (all(text and isinstance(text, str) for text in texts) and _is_number(part["bytes"], 1)):
            raise ValueError("a file without name, hash or size")
    if not _is_number(about.version, 1, (1 << 32) - 1) or not _is_number(about.alignment, 1, LARGEST_ALIGNMENT):
        raise ValueError(f"a header of version {about.version!r} with alignment {about.alignment!r}")
    if not isinstance(about.keys, list) or not all(map(_is_key, about.keys)):
        raise ValueError("keys that are neither a name nor a name with its entry")
    for name, entry in about.tensors.items():
        if not isinstance(entry, dict) or not _is_unit(entry["type"], entry["unit"]):
            raise ValueError(f"{name}: {entry!r:.80}, needed a type with its unit")
        if not _is_number(entry["moves"], 0):
            raise ValueError(f"{name}: {entry['moves']!r} moves")
    return about


def _is_number(value: object, least: int, most: int | None = None) -> bool:
    """Whether it is a whole number in that range, and no bool."""
    return type(value) is int and value >= least and (most is None or value <= most)


def _is_key(key: object) -> bool:
    """See :class:`About`; raises ValueError for an entry that is not hexadecimal."""
    if not isinstance(key, list):
        return isinstance(key, str)
    return len(key) == 2 and all(isinstance(part, str) for part in key) and bool(bytes.fromhex(key[1]))


def _is_unit(kind: object, unit: object) -> bool:
    """Whether moves of a tensor of that type can be in that unit."""
    return isinstance(kind, str) and (
        unit == "byte" or (unit == "code" and kind in CODECS) or (unit == "float" and kind in WORDS)
    )


def check_stock(stock: Path, moves: MovesFile) -> None:
    """Raises InputError for another stock file than the list was made from."""
    needed = moves.about.stock
    if (found := sha256_file(_single(stock))) != needed["sha256"]:
        raise InputError(
            f"{stock} has sha256 {found}, needed {needed['sha256']} ({needed['name']}, {needed['bytes']:,} bytes)",
            hint="give the stock file from which the list of moves was made",
        )


def rebuild(stock: Path, moves: MovesFile, destination: Path) -> None:
    """Write the shipped file from its stock file and the list, whole or not at all.

    Raises InputError for another stock file than the list was made from, EvaluationError where the result is not the
    file whose hash the list names.
    """
    about = moves.about
    check_stock(stock, moves)
    header, data_start = read_header(stock)
    try:
        entries = {
            key if isinstance(key, str) else key[0]: header.entries[key]
            if isinstance(key, str)
            else bytes.fromhex(key[1])
            for key in about.keys
        }
        head = Header(about.version, header.tensors, entries, header.descriptions, about.alignment).to_bytes()
        tensors = stored_tensors(stock)
        edited = [tensors[name] for name in about.tensors]
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, ArithmeticError, MemoryError) as error:
        raise InputError(f"{moves.path}: the header cannot be rebuilt", cause=str(error)) from error
    with replaced_whole(destination) as file:
        file.write(head)
        with stock.open("rb") as source:
            source.seek(data_start)
            while chunk := source.read(AT_ONCE):
                file.write(chunk)
        for tensor in edited:
            _apply(file, tensor, moves, len(head) - data_start)
        if (result := sha256_of(file)) != about.shipped["sha256"]:
            raise EvaluationError(
                f"what follows from {stock} and {moves.path} has sha256 {result}, needed {about.shipped['sha256']}",
                hint="the list was changed after it was written, or is another version's",
            )


def _apply(file: BinaryIO, tensor: StoredTensor, moves: MovesFile, shift: int) -> None:
    unit, position, before, after = moves.moves(tensor)
    for start, stop in runs_of_rows(tensor):
        size = tensor.raw.shape[1] if unit == "byte" else tensor.columns
        first, last = np.searchsorted(position, (start * size, stop * size))
        if first == last:
            continue
        words = _words(tensor, unit, start, stop).copy()
        place = position[first:last] - start * size
        if not np.array_equal(words[place], before[first:last]):
            raise InputError(f"{moves.path}: {tensor.name} holds other values in the stock file than the list says")
        words[place] = after[first:last]
        file.seek(tensor.offset + shift + start * tensor.raw.shape[1])
        file.write(_with_words(tensor, unit, start, stop, words))
