"""A GGUF's header in parts that can be put together again byte for byte.

header   magic, version, number of tensors, number of keys      24 bytes
keys     one after another: name, type, value
tensors  one after another: name, shape, type, offset from the start of the data
padding  zeros up to general.alignment
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_forget.checkpoint.gguf_file import MAGIC, GgufFile
from gguf_forget.errors import InputError

_START = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of keys
_UINT32, _UINT64, _FLOAT64, _BOOL, _STRING = 4, 10, 12, 7, 8  # gguf_metadata_value_type

Value = str | int | float | bool


class Uint32(int):
    """A number that GGUF wants in 32 bits; other whole numbers get 64."""


def string(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, value: Value | bytes) -> bytes:
    """A key with its value; bytes are a string as it is stored."""
    if isinstance(value, bool):
        body = struct.pack("<I?", _BOOL, value)
    elif isinstance(value, Uint32):
        body = struct.pack("<II", _UINT32, value)
    elif isinstance(value, int):
        body = struct.pack("<IQ", _UINT64, value)
    elif isinstance(value, float):
        body = struct.pack("<Id", _FLOAT64, value)
    else:
        body = struct.pack("<I", _STRING) + string(value.encode("utf-8") if isinstance(value, str) else value)
    return string(key.encode("utf-8")) + body


def description(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    """A tensor's own. shape: row length first; kind: number of the ggml type; offset: from the start of the data."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name.encode("utf-8")) + sizes + struct.pack("<IQ", kind, offset)


@dataclass(frozen=True)
class Header:
    """entries: key to its whole entry, in the file's order. descriptions: of the tensors, as they lie in the file.

    alignment: the data starts at the next multiple of so many bytes.
    """

    version: int
    tensors: int
    entries: Mapping[str, bytes]
    descriptions: bytes
    alignment: int

    def to_bytes(self) -> bytes:
        """Everything before the first tensor's data."""
        raw = _START.pack(MAGIC, self.version, self.tensors, len(self.entries))
        raw += b"".join(self.entries.values()) + self.descriptions
        return raw + bytes(-len(raw) % self.alignment)


def read_header(path: Path, opened: GgufFile | None = None) -> tuple[Header, int]:
    """The header, and the byte at which the data starts; ``opened``: the same file.

    Raises InputError for a file that is no readable GGUF, holds no tensor or is big-endian.
    """
    reader = (opened or GgufFile(path, outline=True)).reader
    if not reader.tensors:
        raise InputError(f"{path} holds no tensor, needed a model")
    last = reader.tensors[-1].field
    keys_end = int(reader.tensors[0].field.offset)
    end = int(last.offset) + sum(int(part.nbytes) for part in last.parts)
    with path.open("rb") as file:
        head = file.read(end)
    _, version, tensors, _ = _START.unpack_from(head)
    fields = [field for name, field in reader.fields.items() if not name.startswith("GGUF.")]
    starts = [int(field.offset) for field in fields]
    entries = {
        field.name: head[start:stop] for field, start, stop in zip(fields, starts, [*starts[1:], keys_end], strict=True)
    }
    header = Header(version, tensors, entries, head[keys_end:end], int(reader.alignment))
    data_start = int(reader.data_offset)
    with path.open("rb") as file:
        if file.read(data_start) != header.to_bytes():
            raise InputError(
                f"the header of {path} is not laid out as llama.cpp writes it, needed: keys, tensors, zeros up to the "
                "alignment",
                hint="write the file anew with llama.cpp's tools",
            )
    return header, data_start
