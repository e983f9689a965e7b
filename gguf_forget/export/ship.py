"""Shipping an edit: each edited tensor rounded onto the stock file's own grid, written, read back, then published.

The stock file is llama.cpp's quantization of the original. Its scales are kept, so that bins mean the same before and
after, and the difference to the stock file is exactly the list of moved codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gguf_forget.checkpoint.gguf_file import GgufFile
from gguf_forget.checkpoint.stored import StoredTensor, stored_tensors
from gguf_forget.export.derived_file import derived_copy
from gguf_forget.export.edit import NeuronEdit
from gguf_forget.export.float_types import nearest, to_bytes
from gguf_forget.export.gguf_header import Value
from gguf_forget.export.outcome import TensorOutcome, arrival
from gguf_forget.export.patch import FLOAT_TYPES, asked_for
from gguf_forget.export.rows import Check, check_fits, read_back, runs_of_rows, written_rows
from gguf_forget.grids import codec_for
from gguf_forget.llama.blocks import dequantize_rows
from gguf_forget.rounding import round_edit, update_to_step


@dataclass(frozen=True)
class _Chosen:
    """raw: the tensor's new bytes, uint8 [rows, bytes per row]. values: what they must decode to, float32 [rows,
    columns], made from the choice and not from ``raw``."""

    raw: np.ndarray
    values: np.ndarray
    outcome: TensorOutcome

    def written(self, descriptor: int, tensor: StoredTensor) -> list[Check]:
        """Write ``raw`` and decode it from the file, some rows at a time; raises as :func:`written_rows` does."""
        return [
            written_rows(descriptor, tensor, np.arange(start, stop), self.raw[start:stop], self.values[start:stop])
            for start, stop in runs_of_rows(tensor)
        ]


def _float_tensor(file: GgufFile, edit: NeuronEdit, original: np.ndarray) -> _Chosen:
    kind = file.type_name(edit.tensor)
    delta, _ = edit.dense(*original.shape)
    stock = file.weights(edit.tensor)
    wanted = np.where(delta != 0, original + delta, stock)
    with np.errstate(over="ignore"):  # which is what is looked for
        new = nearest(kind, wanted)
    check_fits(f"tensor {edit.tensor} with its edit", kind, wanted, new)
    moved = new != stock
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
    return _Chosen(to_bytes(kind, new), new, outcome)


def _quantized_tensor(file: GgufFile, edit: NeuronEdit, hessian: np.ndarray | None) -> _Chosen:
    codec = codec_for(file.type_name(edit.tensor))
    blocks = file.rows(edit.tensor)
    levels = codec.decode(blocks)
    delta, allowed = edit.dense(*levels.codes.shape)
    rounded = round_edit(levels, delta, hessian=hessian, free=allowed)
    values = asked_for(codec, blocks, levels, rounded)
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
        *arrival(delta, values - dequantize_rows(codec.name, blocks, delta.shape[1])),
    )
    return _Chosen(codec.with_codes(blocks, rounded.codes), values, outcome)


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

    Nothing appears before libggml decoded every edited tensor from the file to the very values that were chosen; until
    then ``destination`` is as it was. Raises EvaluationError where it does not, UnsupportedError for a type without a
    codec, InputError for inputs that do not fit each other, a weight that the type cannot hold, or a full disk.
    """
    source, original = GgufFile(stock), GgufFile(template)
    added = metadata if any(edit.edited for edit in edits) else {}
    outcomes: list[TensorOutcome] = []
    checks: list[Check] = []
    with derived_copy(stock, destination, metadata=added) as file:
        # Messages call the file what it is to become.
        tensors = {name: replace(one, path=destination) for name, one in stored_tensors(Path(file.name)).items()}
        for edit in edits:
            advance(1)
            if not edit.edited:
                continue
            if source.type_name(edit.tensor) in FLOAT_TYPES:
                chosen = _float_tensor(source, edit, original.weights(edit.tensor))
            else:
                chosen = _quantized_tensor(source, edit, hessians.get(edit.tensor))
            checks += chosen.written(file.fileno(), tensors[edit.tensor])
            outcomes.append(chosen.outcome)
        read_back(tensors, checks, destination, lambda done: None)
    return outcomes
