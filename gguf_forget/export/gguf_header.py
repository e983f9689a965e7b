"""A GGUF's header in parts that can be put together again byte for byte."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf_forget.checkpoint.gguf_file import MAGIC, GgufFile
from gguf_forget.errors import InputError

_START = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of keys


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


def read_header(path: Path) -> tuple[Header, int]:
    """The header, and the byte at which the data starts.

    Raises InputError for a file that is no readable GGUF, holds no tensor or is big-endian.
    """
    reader = GgufFile(path).reader
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
