"""One GGUF as several files, as llama.cpp's own ``gguf-split`` divides a model.

    first file     all metadata, then split.no, split.tensors.count, split.count
    later files    those three keys (and general.alignment where the model has it)
    every file     its tensors, in the model's order, offsets counted from the start of its own data

A file is named ``STEM-00001-of-0000N.gguf``; llama.cpp is given the first and finds the others.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.stored import files_of
from gguf_forget.errors import InputError
from gguf_forget.export.gguf_header import description, string

COPY_BYTES = 16 << 20
_HEADER = struct.Struct("<4sIQQ")  # magic, version, tensors, keys
_UINT16, _UINT32, _INT32 = 2, 4, 5  # gguf_metadata_value_type
_UNITS = {"M": 1_000_000, "G": 1_000_000_000}
MOST_FILES = 99_999


def parse_size(text: str) -> int:
    """Bytes of ``300M`` or ``2G``, with the meaning that gguf-split gives them (powers of ten).

    Raises InputError for anything else.
    """
    match = re.fullmatch(r"([1-9]\d*)([MG])", text.strip().upper())
    if match is None:
        raise InputError(f"split size {text!r}, needed a number and M or G", hint="such as 300M or 2G")
    return int(match[1]) * _UNITS[match[2]]


def groups_by_size(model: Path, most: int) -> list[list[str]]:
    """Tensor names of every file: as many as go into ``most`` bytes, a larger tensor in a file of its own."""
    groups: list[list[str]] = []
    room = 0
    for tensor in GgufFile(model).reader.tensors:
        size = int(tensor.n_bytes)
        if not groups or size > room:
            groups.append([])
            room = most
        groups[-1].append(tensor.name)
        room -= size
    return groups


def groups_as_in(original: Path) -> list[list[str]]:
    """Tensor names of every file of a model that is split itself (one group where it is not)."""
    return [list(GgufFile(file).tensors) for file in files_of(original)]


def split_names(destination: Path, count: int) -> list[Path]:
    stem = destination.name.removesuffix(".gguf")
    return [destination.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


def write_split(source: Path, groups: Sequence[Sequence[str]], destination: Path) -> list[Path]:
    """Write the tensors of ``source`` into a file a group beside ``destination``, and say their names.

    Every tensor must be in one group. Raises InputError for more files than names allow, or a disk that is full.
    """
    if len(groups) > MOST_FILES:
        raise InputError(
            f"{destination.name} would be split into {len(groups)} files, at most {MOST_FILES} are allowed",
            hint="allow larger files",
        )
    model = GgufFile(source)
    names = split_names(destination, len(groups))
    for number, (file, group) in enumerate(zip(names, groups, strict=True)):
        try:
            _write_part(model, group, file, number, len(groups))
        except OSError as error:
            raise InputError(
                f"{file.name} cannot be written", cause=str(error), hint="check free space and permissions"
            ) from error
    return names


def _write_part(model: GgufFile, group: Sequence[str], file: Path, number: int, count: int) -> None:
    reader = model.reader
    tensors = [model.tensor(name) for name in group]
    keys = _split_keys(number, count, len(reader.tensors))
    with model.path.open("rb") as original, file.open("wb") as out:
        magic, version, _, key_count = _HEADER.unpack(original.read(_HEADER.size))
        if number == 0:
            own = original.read(min(int(tensor.field.offset) for tensor in reader.tensors) - _HEADER.size)
        elif reader.get_field("general.alignment") is None:
            own, key_count = b"", 0
        else:
            own, key_count = string(b"general.alignment") + struct.pack("<II", _UINT32, reader.alignment), 1
        out.write(_HEADER.pack(magic, version, len(tensors), key_count + len(keys)) + own + b"".join(keys))
        out.write(b"".join(_tensor_infos(tensors, reader.alignment)))
        for tensor in tensors:
            out.write(bytes(-out.tell() % reader.alignment))
            original.seek(int(tensor.data_offset))
            left = int(tensor.n_bytes)
            while left:
                left -= out.write(original.read(min(left, COPY_BYTES)))
        out.write(bytes(-out.tell() % reader.alignment))
        out.flush()
        os.fsync(out.fileno())


def _split_keys(number: int, count: int, tensors: int) -> list[bytes]:
    return [
        string(b"split.no") + struct.pack("<IH", _UINT16, number),
        string(b"split.tensors.count") + struct.pack("<Ii", _INT32, tensors),
        string(b"split.count") + struct.pack("<IH", _UINT16, count),
    ]


def _tensor_infos(tensors: Iterable[Any], alignment: int) -> Iterable[bytes]:
    offset = 0
    for tensor in tensors:
        shape = [int(size) for size in tensor.shape]
        yield description(tensor.name, shape, int(tensor.tensor_type), offset)
        offset += int(tensor.n_bytes)
        offset += -offset % alignment
