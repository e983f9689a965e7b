"""The tensors of a GGUF as they lie on the disk, over all files of a split model, a few rows at a time.

Shapes: rows, columns as the tensor is stored (one row = one output unit); a tensor of experts counts the rows of all of
them, a tensor of one dimension is one row.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.errors import InputError
from gguf_forget.grids import CODECS
from gguf_forget.whole_file import sha256_file

READABLE = ("F32", "F16", "BF16", "Q8_0")
"""Types whose weights count as full precision."""

_SPLIT = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class StoredTensor:
    """``shape``: row length first, as in llama.cpp. ``raw``: uint8 [rows, bytes per row], a view of the file."""

    name: str
    path: Path
    type: str
    shape: tuple[int, ...]
    offset: int  # of the first byte in the file
    raw: np.ndarray = field(repr=False)

    @property
    def columns(self) -> int:
        return self.shape[0]

    @property
    def rows(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def matrices(self) -> int:
        """Experts, 1 for an ordinary tensor."""
        return math.prod(self.shape[2:])

    def weights(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop`` as float32 [rows, columns]; the type must be one of ``READABLE``."""
        raw = self.raw[start:stop]
        if self.type == "F32":
            return raw.view(np.float32)
        if self.type == "F16":
            return raw.view(np.float16).astype(np.float32)
        if self.type == "BF16":
            return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        if self.type == "Q8_0":
            return CODECS["Q8_0"].decode(raw).values()
        raise InputError(
            f"{self.path}: tensor {self.name} is {self.type}, needed one of {', '.join(READABLE)}",
            hint="give the model in full precision: a coarser file has lost the edits already",
        )

    def rounding(self, start: int, stop: int) -> np.ndarray | float:
        """Bound on how far storing as this type moves a weight of these rows; [rows, columns], 0.0 for F32."""
        if self.type == "F32":
            return 0.0
        if self.type == "Q8_0":
            # Half a step; at the end codes (127) also what the float16 step itself was rounded by.
            steps = CODECS["Q8_0"].decode(self.raw[start:stop]).step_towards(np.zeros(1))
            return (0.5 + 127 * 2.0**-11) * steps
        # Half a unit in the last of 11 or 8 significant bits, and half the smallest F16.
        share, least = (2.0**-11, 2.0**-25) if self.type == "F16" else (2.0**-8, 0.0)
        return np.maximum(share * np.abs(self.weights(start, stop)), least)


def files_of(path: Path) -> list[Path]:
    """``path``, and where it is the first file of a split model the others after it."""
    return _files(GgufFile(path, outline=True))


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 of a model's file; where it is in several, of theirs joined by line ends, in their order."""
    digests = [sha256_file(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _files(first: GgufFile) -> list[Path]:
    path, count = first.path, int(first.value("split.count", 1))
    if count < 2:
        return [path]
    match = _SPLIT.fullmatch(path.name)
    if match is None or int(match["number"]) != 1 or int(match["count"]) != count:
        raise InputError(
            f"{path} is part of a model split into {count} files, needed the first of them, under its own name",
            hint=f"give the file whose name ends in -00001-of-{count:05}.gguf",
        )
    files = [path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is missing: {path} is split into {count} files")
    return files


def stored_tensors(path: Path, opened: GgufFile | None = None) -> dict[str, StoredTensor]:
    """Every tensor of a GGUF by name; ``path`` may be the first file of a split model, ``opened`` that file.

    Raises InputError for a file that is no readable GGUF, cut short, or has a part missing.
    """
    found: dict[str, StoredTensor] = {}
    first = opened or GgufFile(path, outline=True)
    for file in _files(first):
        reader = first.reader if file == path else GgufFile(file, outline=True).reader
        placed = sorted((int(tensor.data_offset), int(tensor.n_bytes), tensor.name) for tensor in reader.tensors)
        for (start, size, name), (following, _, other) in pairwise(placed):
            if start + size > following:
                raise InputError(f"{file}: tensors {name} and {other} overlap", hint="the file is damaged or made up")
        for tensor in reader.tensors:
            shape = tuple(int(size) for size in tensor.shape)
            offset, size = int(tensor.data_offset), int(tensor.n_bytes)
            raw = np.asarray(reader.data)[offset : offset + size]
            if not size or 0 in shape:
                raise InputError(f"{file}: tensor {tensor.name} is {list(shape)}, needed at least one weight")
            if raw.nbytes != size:
                raise InputError(
                    f"{file} is cut short inside {tensor.name}", hint="compare its size with the original's"
                )
            kind = str(tensor.tensor_type.name)
            found[tensor.name] = StoredTensor(
                tensor.name, file, kind, shape, offset, raw.reshape(math.prod(shape[1:]), -1)
            )
    return found
