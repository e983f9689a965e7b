"""Shipping an edit: each edited tensor rounded onto the stock file's own grid, written, read back.

The stock file is llama.cpp's quantization of the original. Its scales are kept, so that bins mean the same before and
after, and the difference to the stock file is exactly the list of moved codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.errors import EvaluationError, UnsupportedError
from gguf_forget.export.derived_file import write_derived
from gguf_forget.export.edit import NeuronEdit
from gguf_forget.export.gguf_header import Value
from gguf_forget.export.outcome import TensorOutcome, arrival
from gguf_forget.grids import CODECS, codec_for
from gguf_forget.rounding import round_edit, update_to_step

FLOAT_TYPES = ("F32", "F16", "BF16")


def _float_tensor(file: GgufFile, edit: NeuronEdit, original: np.ndarray) -> tuple[np.ndarray, TensorOutcome]:
    kind = file.type_name(edit.tensor)
    if kind not in ("F32", "F16"):
        raise UnsupportedError(f"{edit.tensor} is {kind} in the stock file", hint="export F32, F16 or a quantized type")
    delta, _ = edit.dense(*original.shape)
    stock = file.weights(edit.tensor)
    dtype = np.float32 if kind == "F32" else np.float16
    new = np.where(delta != 0, original + delta, stock).astype(dtype)
    moved = new != stock.astype(dtype)
    landed = int((moved & (delta != 0)).sum())
    outcome = TensorOutcome(
        edit.tensor,
        kind,
        edit.edited,
        edit.edited,
        landed,
        edit.edited - landed,
        int(moved.sum()),
        0,
        None,
        *arrival(delta, new - stock),
    )
    return new.view(np.uint8).reshape(len(new), -1), outcome


def _quantized_tensor(file: GgufFile, edit: NeuronEdit, hessian: np.ndarray | None) -> tuple[np.ndarray, TensorOutcome]:
    codec = codec_for(file.type_name(edit.tensor))
    blocks = file.rows(edit.tensor)
    levels = codec.decode(blocks)
    delta, allowed = edit.dense(*levels.codes.shape)
    rounded = round_edit(levels, delta, hessian=hessian, free=allowed)
    steps = update_to_step(delta, levels.step_towards(delta))
    outcome = TensorOutcome(
        edit.tensor,
        codec.name,
        edit.edited,
        rounded.asked,
        rounded.landed,
        rounded.saturated,
        rounded.moved,
        rounded.moved_by_compensation,
        steps.median,
        *arrival(delta, replace(levels, codes=rounded.codes).values() - levels.values()),
    )
    return codec.with_codes(blocks, rounded.codes), outcome


def _read_back(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Decode every edited tensor from the written file with gguf-py and with our codec; they must agree."""
    from gguf.quants import dequantize

    file = GgufFile(path)
    for name, raw in tensors.items():
        kind = file.type_name(name)
        if not np.array_equal(file.rows(name), raw):
            raise EvaluationError(f"{path}: {name} does not read back as written", hint="check the disk, run again")
        if kind in CODECS:
            expected = CODECS[kind].decode(raw).values()
            found = dequantize(raw, file.tensor(name).tensor_type).reshape(expected.shape)
            if not np.allclose(found, expected, rtol=1e-6, atol=0.0):
                raise EvaluationError(f"{path}: {name} ({kind}) decodes to other weights than were chosen")


def ship(
    template: Path,
    stock: Path,
    destination: Path,
    edits: Sequence[NeuronEdit],
    *,
    hessians: Mapping[str, np.ndarray],
    metadata: Mapping[str, Value],
    advance: Callable[[int], None] = lambda done: None,
) -> list[TensorOutcome]:
    """Write ``destination``: ``stock`` with the edits on its own grid, ``metadata`` added.

    ``template`` holds the original in full precision; ``hessians`` maps tensor names to sum of x xT [columns, columns]
    (a tensor without one is rounded to the nearest code). An empty edit adds no metadata either, so that the result
    is the stock file byte for byte.
    """
    source, original = GgufFile(stock), GgufFile(template)
    tensors: dict[str, np.ndarray] = {}
    outcomes = []
    for edit in edits:
        advance(1)
        if not edit.edited:
            continue
        if source.type_name(edit.tensor) in FLOAT_TYPES:
            raw, outcome = _float_tensor(source, edit, original.weights(edit.tensor))
        else:
            raw, outcome = _quantized_tensor(source, edit, hessians.get(edit.tensor))
        tensors[edit.tensor] = raw
        outcomes.append(outcome)
    write_derived(stock, destination, metadata=metadata if tensors else {}, tensors=tensors)
    _read_back(destination, tensors)
    return outcomes
