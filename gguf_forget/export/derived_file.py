"""A GGUF derived from another: same header plus new keys, same tensors but for the edited ones.

header   magic, version, number of tensors, number of keys      24 bytes
keys     one after another                                       copied byte for byte, new ones appended
tensors  name, shape, type, offset from the start of the data    copied byte for byte
padding  up to general.alignment                                 recomputed, the header may have grown
data     every tensor at its offset                              copied, edited tensors overwritten
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.errors import InputError

Value = str | int | float | bool
_UINT64, _FLOAT64, _BOOL, _STRING = 10, 12, 7, 8  # gguf_metadata_value_type
_HEADER = struct.Struct("<4sIQQ")
COPY_BYTES = 16 << 20


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _entry(key: str, value: Value) -> bytes:
    if isinstance(value, bool):
        body = struct.pack("<I?", _BOOL, value)
    elif isinstance(value, int):
        body = struct.pack("<IQ", _UINT64, value)
    elif isinstance(value, float):
        body = struct.pack("<Id", _FLOAT64, value)
    else:
        body = struct.pack("<I", _STRING) + _string(value)
    return _string(key) + body


def write_derived(
    source: Path, destination: Path, *, metadata: Mapping[str, Value], tensors: Mapping[str, np.ndarray]
) -> None:
    """Write ``destination`` whole or not at all; ``tensors`` maps names to their new raw bytes (uint8).

    With nothing to add and nothing edited the result equals ``source`` byte for byte. Raises :class:`InputError` for
    a key that the source has already, bytes of the wrong length, or a full disk.
    """
    file = GgufFile(source)
    reader = file.reader
    for key in metadata:
        if reader.get_field(key) is not None:
            raise InputError(
                f"{source} has the key {key} already",
                hint="start from the original, not from an unlearned file",
            )
    for name, raw in tensors.items():
        needed = int(file.tensor(name).n_bytes)
        if raw.nbytes != needed:
            raise InputError(f"new bytes for {name}: {raw.nbytes}, needed {needed}")
    keys_end = min(int(tensor.field.offset) for tensor in reader.tensors)
    data_start = int(reader.data_offset)
    last = reader.tensors[-1].field
    infos_end = int(last.offset) + sum(int(part.nbytes) for part in last.parts)
    with source.open("rb") as original:
        head = original.read(infos_end)
    magic, version, tensor_count, key_count = _HEADER.unpack_from(head)
    header = _HEADER.pack(magic, version, tensor_count, key_count + len(metadata))
    header += head[_HEADER.size : keys_end]
    header += b"".join(_entry(key, value) for key, value in metadata.items())
    header += head[keys_end:infos_end]
    header += bytes(-len(header) % reader.alignment)
    shift = len(header) - data_start
    needed = os.path.getsize(source) + shift
    free = shutil.disk_usage(destination.parent).free
    if needed > free:
        raise InputError(
            f"{destination.parent} has {free:,} bytes free, needed {needed:,} for {destination.name}",
            hint="free some space or choose another directory",
        )
    partial = destination.with_name(f".{destination.name}.{os.getpid()}.partial")
    try:
        with source.open("rb") as original, partial.open("wb") as out:
            out.write(header)
            original.seek(data_start)
            shutil.copyfileobj(original, out, COPY_BYTES)
            for name, raw in tensors.items():
                out.seek(int(file.tensor(name).data_offset) + shift)
                out.write(np.ascontiguousarray(raw).tobytes())
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, destination)
    except OSError as error:
        raise InputError(
            f"{destination} cannot be written", cause=str(error), hint="check free space and permissions"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
