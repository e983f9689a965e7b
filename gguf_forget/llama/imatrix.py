"""Reading an importance matrix as llama-quantize does: the GGUF form and the legacy ``.dat``.

GGUF: tensors ``NAME.in_sum2`` (sums of squares, [experts, columns]) and ``NAME.counts`` ([experts]).
Legacy: int32 number of entries; each entry: int32 length and bytes of the name, int32 calls, int32 size and that many
float32, which hold the mean square times calls; then, optionally, int32 chunks, int32 length and bytes of the dataset.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from ..checkpoint.gguf_file import GgufFile
from ..errors import InputError
from .options import Importance

_MAGIC = b"GGUF"
_LONGEST_NAME = 4096


def read_importance(path: Path) -> Importance:
    """Raises InputError for a file that cannot be read, is neither form, or holds values that are not finite."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"the importance matrix {path} cannot be read", cause=str(error)) from error
    try:
        importance = _from_gguf(path) if content.startswith(_MAGIC) else _from_legacy(path, content)
    except (ValueError, TypeError, IndexError, KeyError, struct.error) as error:
        raise InputError(
            f"{path} is no importance matrix, needed one that llama-imatrix wrote", cause=str(error)
        ) from error
    if not importance.values:
        raise InputError(f"the importance matrix {path} is empty")
    for name, values in importance.values.items():
        if broken := int(values.size - np.isfinite(values).sum()):
            raise InputError(f"{path}: the importances of {name} hold {broken} values that are not finite")
        if below := int((values < 0).sum()):
            raise InputError(f"{path}: the importances of {name} hold {below} values below 0, needed mean squares")
    if not any(values.any() for values in importance.values.values()):
        raise InputError(f"the importance matrix {path} holds nothing but zeros")
    return importance


def _from_gguf(path: Path) -> Importance:
    file = GgufFile(path)
    tensors = {name: np.asarray(tensor.data, dtype=np.float32) for name, tensor in file.tensors.items()}
    if file.value("general.type") != "imatrix":
        raise ValueError(f"general.type is {file.value('general.type')!r}, needed 'imatrix'")
    values = {}
    for name, sums in tensors.items():
        stem, _, kind = name.rpartition(".")
        if kind != "in_sum2":
            continue
        counts = tensors[f"{stem}.counts"].reshape(-1, 1)  # [experts, 1]
        sums = sums.reshape(len(counts), -1)  # [experts, columns]
        # An expert that no token reached says nothing: all its inputs count alike.
        values[stem] = np.where(counts > 0, sums / np.maximum(counts, 1), np.float32(1)).reshape(-1)
    return Importance(
        path, values, tuple(file.value("imatrix.datasets", [])), int(file.value("imatrix.chunk_count", 0))
    )


def _from_legacy(path: Path, content: bytes) -> Importance:
    position = 0

    def number() -> int:
        nonlocal position
        (found,) = struct.unpack_from("<i", content, position)
        position += 4
        return int(found)

    def taken(count: int) -> bytes:
        nonlocal position
        if count < 0 or position + count > len(content):
            raise ValueError(f"an entry of {count} bytes at byte {position} goes past the end of the file")
        position += count
        return content[position - count : position]

    entries = number()
    if entries < 1:
        raise ValueError(f"{entries} entries")
    values = {}
    for _ in range(entries):
        length = number()
        if length > _LONGEST_NAME:
            raise ValueError(f"a name of {length} bytes")
        name = taken(length).decode()
        calls, size = number(), number()
        sums = np.frombuffer(taken(4 * size), dtype="<f4").astype(np.float32)
        values[name] = sums / np.float32(calls) if calls > 0 else sums
    chunks, datasets = 0, ()  # type: tuple[int, tuple[str, ...]]
    if position < len(content):
        chunks = number()
        datasets = (taken(number()).decode(),)
    return Importance(path, values, datasets, chunks)
