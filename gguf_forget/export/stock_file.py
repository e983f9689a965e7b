"""The stock file that edits are written into: the bytes of ``llama_model_quantize``, made by all threads at once.

llama.cpp quantizes one tensor after the other, and reads, checks and writes in between with one thread. Here runs of
rows are quantized side by side, by the same function of libggml, for who writes them, edited or not. The types and the
order of the tensors are those of llama.cpp's dry run. The header lies in the file first, so that each run of rows has
its place.

What is out of the ordinary is left to llama.cpp: types that may need an importance matrix, matrices and importance of
unlike size, weights that are NaN or infinite. It then makes the file or says what is wrong. One thing differs: a string
with a NUL in the original's header is kept whole, where llama.cpp cuts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.stored import READABLE, StoredTensor
from gguf_forget.errors import InputError
from gguf_forget.export.derived_file import without_own
from gguf_forget.export.gguf_header import Header, Uint32, description, entry, read_header
from gguf_forget.export.patch import FLOAT_TYPES
from gguf_forget.export.rows import runs_of_rows
from gguf_forget.grids import CODECS
from gguf_forget.llama.blocks import quantize_rows, row_bytes, valid_rows
from gguf_forget.llama.options import QuantizeOptions, type_id
from gguf_forget.llama.quantizer import FILE_TYPES, FilePlan

ALIGNMENT = 32  # llama.cpp pads every tensor so, whatever the original says
NEEDS_IMPORTANCE = "Q2_K_S"  # its Q2_K tensors do, in no other file
_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


@dataclass(frozen=True)
class Run:
    """Rows ``start`` to ``stop`` of a tensor, to be stored as ``kind`` from byte ``place`` of the file on."""

    tensor: StoredTensor
    kind: str
    importance: np.ndarray | None  # float32 [columns]
    start: int
    stop: int
    place: int


class NotOurs(Exception):
    """llama.cpp should make this file. ``broken``: what is wrong with a tensor, should it refuse as well."""

    def __init__(self, broken: str | None = None) -> None:
        super().__init__(broken)
        self.broken = broken


def begin_stock(
    original: GgufFile,
    tensors: Mapping[str, StoredTensor],
    partial: Path,
    file_type: str,
    planned: FilePlan,
    options: QuantizeOptions,
    *,
    edited: bool,
) -> tuple[dict[str, StoredTensor], dict[str, list[Run]]]:
    """Write the header of ``original``, whose ``tensors`` these are, as ``file_type`` to ``partial``, all else empty.

    ``edited``: whether edits will be written into it; then keys that an earlier one left in ``original`` are dropped.

    Returns the tensors of ``partial``, views that show what is written later, and the runs of rows of each, in the
    file's order, for :func:`stored_run`. Raises NotOurs, see above.
    """
    header = _header(original, tensors, file_type, planned, options, edited=edited).to_bytes()
    runs: dict[str, list[Run]] = {}
    places: dict[str, int] = {}
    end = len(header)
    for name, kind in planned.types.items():
        places[name] = end
        runs[name] = list(_runs(tensors[name], kind, file_type, options, end))
        end += _padded(_size(tensors[name], kind))
    with partial.open("wb") as file:
        file.write(header)
        file.truncate(end)
    raw = np.asarray(np.memmap(partial, dtype=np.uint8, mode="r"))
    stock = {
        name: StoredTensor(
            name,
            partial,
            kind,
            tensors[name].shape,
            places[name],
            raw[places[name] : places[name] + _size(tensors[name], kind)].reshape(tensors[name].rows, -1),
        )
        for name, kind in planned.types.items()
    }
    return stock, runs


def stored_run(run: Run) -> np.ndarray:
    """Quantize a run of rows, from any thread: uint8 [rows, bytes per row], to be written at ``run.place``.

    Raises NotOurs for weights that are NaN or infinite, or come out so.
    """
    tensor, raw = run.tensor, run.tensor.raw[run.start : run.stop]
    copied = run.kind == tensor.type
    not_finite = f"tensor {tensor.name} of {tensor.path} holds weights that are NaN or infinite"
    # Of what is copied only floats are looked at as numbers.
    weights = None if copied and tensor.type not in FLOAT_TYPES else tensor.weights(run.start, run.stop)
    if weights is not None and tensor.type in FLOAT_TYPES:
        with np.errstate(all="ignore"):
            finite = np.isfinite(weights.sum())  # only if all its terms are
        if not finite and not np.isfinite(weights).all():
            raise NotOurs(not_finite)
    elif tensor.type in CODECS and not valid_rows(tensor.type, raw):
        raise NotOurs(not_finite)
    if weights is None or copied:
        return raw
    made = quantize_rows(run.kind, weights, run.importance)
    if not valid_rows(run.kind, made):
        raise NotOurs(f"tensor {tensor.name} of {tensor.path} holds weights that are too large for {run.kind}")
    return made


def _header(
    original: GgufFile,
    tensors: Mapping[str, StoredTensor],
    file_type: str,
    planned: FilePlan,
    options: QuantizeOptions,
    *,
    edited: bool,
) -> Header:
    try:
        source, _ = read_header(original.path, original)
    except InputError:  # laid out as only llama.cpp can read it
        raise NotOurs from None
    if source.alignment != ALIGNMENT or source.version != 3 or tensors.keys() != planned.types.keys():
        raise NotOurs
    entries = without_own(source.entries) if edited else dict(source.entries)

    def put(key: str, value: bytes | int) -> None:
        entries.pop(key, None)  # what is replaced goes to the end
        entries[key] = entry(key, Uint32(abs(value)) if isinstance(value, int) else value)

    put("general.quantization_version", _QUANTIZATION_VERSION)
    put("general.file_type", FILE_TYPES[file_type])
    for key in ("split.no", "split.count", "split.tensors.count"):
        entries.pop(key, None)
    for key, value in options.keys().items():
        put(key, value)
    descriptions, offset = [], 0
    for name, kind in planned.types.items():
        shape = list(tensors[name].shape)
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()
        descriptions.append(description(name, shape, type_id(kind), offset))
        offset += _padded(_size(tensors[name], kind))
    return replace(source, tensors=len(descriptions), entries=entries, descriptions=b"".join(descriptions))


def _size(tensor: StoredTensor, kind: str) -> int:
    return tensor.rows * row_bytes(kind, tensor.columns)


def _padded(size: int) -> int:
    return size + -size % ALIGNMENT


def _runs(tensor: StoredTensor, kind: str, file_type: str, options: QuantizeOptions, place: int) -> Iterator[Run]:
    importance = None
    if kind != tensor.type:
        if (kind not in CODECS and kind not in FLOAT_TYPES) or tensor.type not in READABLE:
            raise NotOurs
        if kind == "Q2_K" and file_type == NEEDS_IMPORTANCE:
            raise NotOurs
        if options.importance is not None:
            importance = options.importance.values.get(tensor.name)
        if importance is not None:
            if importance.size != tensor.columns * tensor.matrices:
                raise NotOurs
            importance = importance.reshape(tensor.matrices, tensor.columns)
    width, height = row_bytes(kind, tensor.columns), tensor.rows // tensor.matrices
    for start, stop in runs_of_rows(tensor):
        own = None if importance is None else importance[start // height]
        yield Run(tensor, kind, own, start, stop, place + start * width)
