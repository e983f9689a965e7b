"""Survival beyond one file: what becomes of the edits when somebody quantizes the shipped file again.

The shipped file and the original's stock file of the same types go the same way: decoded, and quantized by libggml to
the type that llama.cpp's policy names for each tensor. An edit survives if the two still differ there, in the edit's
own direction. Comparing with the same route, not with the grid before, leaves out what the second rounding does to
anybody's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.checkpoint.stored import READABLE, StoredTensor, stored_tensors
from gguf_forget.errors import InputError
from gguf_forget.export.patch import edit_of
from gguf_forget.export.rows import runs_of_rows, same_bytes
from gguf_forget.grids import CODECS
from gguf_forget.llama.blocks import dequantize_rows, quantize_rows
from gguf_forget.llama.options import Importance
from gguf_forget.llama.quantizer import plan_file

FLOATS = ("F32", "F16", "BF16")
FILE_TYPES = (
    "F16",
    "BF16",
    "Q8_0",
    "Q6_K",
    "Q5_K_M",
    "Q5_K_S",
    "Q5_1",
    "Q5_0",
    "Q4_K_M",
    "Q4_K_S",
    "Q4_1",
    "Q4_0",
    "IQ4_NL",
    "IQ4_XS",
    "Q3_K_L",
    "Q3_K_M",
    "Q3_K_S",
    "Q2_K",
)
"""All that have a codec and can be made without an importance matrix."""


@dataclass(frozen=True)
class Requantized:
    """Counts of edited weights after quantizing again to ``type``. ``edits == survived + unmoved + reversed``."""

    type: str
    edits: int
    survived: int  # still differ from the original's weight, in the edit's direction
    unmoved: int
    reversed: int

    @property
    def share(self) -> float | None:
        """None without any edit."""
        return self.survived / self.edits if self.edits else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.share}


def requantized(
    original: Path,
    shipped: Path,
    file_types: Sequence[str] = FILE_TYPES,
    *,
    importance: Importance | None = None,
    threads: int = 1,
    advance: Callable[[int], None] = lambda done: None,
) -> list[Requantized]:
    """One row for each file type: of the weights that differ from ``original`` to ``shipped``, which still do.

    original: full precision (F32, F16, BF16, Q8_0) or the stock file of the types in ``shipped``. importance: what
    ``shipped`` was quantized with, where the original is in full precision. ``advance`` is called once a tensor.
    Raises InputError for files whose tensors cannot be compared.
    """
    before, after = stored_tensors(original), stored_tensors(shipped)
    _check(before, after, original, shipped)
    plans = {kind: plan_file(shipped, kind).types for kind in file_types}
    totals = {kind: np.zeros(3, dtype=np.int64) for kind in file_types}
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for name, tensor in after.items():
            own = None if importance is None else importance.of(name, tensor.columns, tensor.matrices)
            kinds = {kind: plans[kind][name] for kind in file_types}
            for counts in _tensor(before[name], tensor, kinds, own, pool.map):
                for kind, count in counts.items():
                    totals[kind] += count
            advance(1)
    return [
        Requantized(kind, int(count.sum()), int(count[0]), int(count[1]), int(count[2]))
        for kind, count in totals.items()
    ]


def _check(
    before: Mapping[str, StoredTensor], after: Mapping[str, StoredTensor], original: Path, shipped: Path
) -> None:
    for name, tensor in after.items():
        if name not in before or before[name].shape != tensor.shape:
            found = f"is {list(before[name].shape)}" if name in before else "does not exist"
            raise InputError(
                f"tensor {name} {found} in {original}, {list(tensor.shape)} in {shipped}: one shape is needed",
                hint="give two files of the same model",
            )
        if before[name].type != tensor.type and before[name].type not in READABLE:
            raise InputError(
                f"tensor {name} is {before[name].type} in {original}, {tensor.type} in {shipped}: needed the "
                f"same type, or one of {', '.join(READABLE)} in the first",
                hint="give the original in full precision, or its stock file of the same type",
            )


def _tensor(
    before: StoredTensor,
    after: StoredTensor,
    kinds: Mapping[str, str],
    importance: np.ndarray | None,
    mapped: Callable[..., Iterable[Any]],
) -> Iterable[dict[str, np.ndarray]]:
    """Survived, unmoved, reversed by file type, for every run of rows that has an edit."""
    if same_bytes(before, after):
        return []

    def work(part: tuple[int, int]) -> dict[str, np.ndarray]:
        start, stop = part
        old, new, delta = _weights(before, after, start, stop, importance)
        rows = np.flatnonzero((delta != 0).any(axis=1))
        if not rows.size:
            return {}
        old, new, delta = old[rows], new[rows], delta[rows]
        edited = np.flatnonzero(delta)
        direction = np.sign(delta.ravel()[edited])
        by_type: dict[str, np.ndarray] = {}
        for kind in set(kinds.values()):
            pair = [_again(kind, after.type, weights).ravel()[edited] for weights in (new, old)]
            went = np.sign(pair[0] - pair[1]) * direction
            by_type[kind] = np.array([(went > 0).sum(), (went == 0).sum(), (went < 0).sum()])
        return {file_type: by_type[kind] for file_type, kind in kinds.items()}

    return mapped(work, list(runs_of_rows(after)))


def _weights(
    before: StoredTensor, after: StoredTensor, start: int, stop: int, importance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both sides' weights and the edit, float32 [rows, columns]."""
    columns = after.columns
    if after.type in FLOATS and before.type in READABLE:
        delta = edit_of(before, after, start, stop, None)
        return before.weights(start, stop), after.weights(start, stop), delta
    new = dequantize_rows(after.type, after.raw[start:stop], columns)
    if before.type == after.type:
        blocks = before.raw[start:stop]
    else:
        matrix = start // (after.rows // after.matrices)
        own = None if importance is None else importance[matrix]
        blocks = quantize_rows(after.type, before.weights(start, stop), own)
    old = dequantize_rows(after.type, blocks, columns)
    return old, new, new - old


def _again(kind: str, present: str, weights: np.ndarray) -> np.ndarray:
    """``weights`` after quantizing to ``kind``; llama.cpp copies what is of that type already."""
    if kind == present and kind in CODECS:
        return weights
    return dequantize_rows(kind, quantize_rows(kind, weights), weights.shape[1])
