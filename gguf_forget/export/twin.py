"""The twin: the shipped edits in half precision, so that anybody's *stock* quantization of it keeps them.

Every weight whose code moved is the original's weight plus as many steps as its code went ("Training through the
grid" needs nothing else: the weight then lies in the middle of the same part of its new bin). All other weights are the
original's. Quantizing the twin chooses scales anew, from weights that are a little different, and can then round a
weight back. So each row is quantized as llama.cpp would, looked at, and what went back is pushed a quarter of a step
further, a few times over; what remains lost is counted (ours).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gguf_forget.checkpoint.stored import StoredTensor, stored_tensors
from gguf_forget.export.derived_file import drop_earlier_keys, own_keys
from gguf_forget.export.inputs import Pair
from gguf_forget.export.patch import edit_of
from gguf_forget.export.quantize import ExportOptions
from gguf_forget.export.rows import Check, check_fits, read_back, runs_of_rows, written_rows
from gguf_forget.grids import CODECS
from gguf_forget.llama.blocks import dequantize_rows, quantize_rows
from gguf_forget.llama.options import QuantizeOptions
from gguf_forget.llama.quantizer import quantize
from gguf_forget.progress import Progress

TYPES = ("F16", "BF16")
METHOD, TWIN = "gguf_forget.method", "edits of a quantized file in half precision, for quantizing once more"
PUSHES = 8
PUSH = 0.25  # of a step


@dataclass(frozen=True)
class TwinPart:
    """A run of rows: what was written, how many weights had moved in the shipped file, how many stay moved."""

    check: Check
    moved: int
    kept: int
    pushed: int


def twin_path(shipped: Path, kind: str) -> Path:
    """``out.gguf`` to ``out.twin.F16.gguf``."""
    return shipped.with_name(f"{shipped.name.removesuffix('.gguf')}.twin.{kind}.gguf")


def export_twin(
    pair: Pair,
    edited: tuple[str, ...],
    shipped: Path,
    partial: Path,
    destination: Path,
    kind: str,
    options: ExportOptions,
    progress: Progress,
) -> dict[str, Any]:
    """Write the twin of ``shipped`` at ``partial``, to be renamed to ``destination``; ``kind`` is one of ``TYPES``.

    Counts in the result: ``moved`` weights of the shipped file, and ``kept`` of them: those that llama.cpp's own
    quantization of the twin to the type of their tensor moves at least half a step from where the original's goes, in
    the same direction. ``pushed``: weights that needed more than their steps. The twin has the keys of ``shipped``.

    Raises InputError for a weight that ``kind`` cannot hold.
    """
    importance = options.quantize.importance
    target = stored_tensors(shipped)
    parts: list[TwinPart] = []
    with progress.task(f"twin: {kind}", 1) as advance:
        keys = own_keys(shipped) if edited else {}
        if keys:
            keys |= {METHOD: TWIN, "gguf_forget.type": kind}
        quantize(
            pair.original,
            partial,
            kind,
            threads=options.threads,
            allow_requantize=True,
            options=QuantizeOptions(metadata=tuple(keys.items())),
            durable=False,
        )
        if edited:
            drop_earlier_keys(partial, keys)
        advance(1)
    twin = stored_tensors(partial)
    with (
        partial.open("rb+") as file,
        ThreadPoolExecutor(options.threads or os.cpu_count() or 1) as pool,
        progress.task("twin: edits", len(edited)) as advance,
    ):
        for name in edited:
            own = None if importance is None else importance.of(name, twin[name].columns, twin[name].matrices)
            called = f"tensor {name} of the twin {destination}"
            work = _worker(file.fileno(), twin[name], target[name], pair, options.rounding.noise, own, called)
            parts += [part for part in pool.map(work, list(runs_of_rows(target[name]))) if part is not None]
            advance(1)
        os.fsync(file.fileno())
    with progress.task("twin: read back", len(parts)) as advance:
        read_back(stored_tensors(partial), [part.check for part in parts], destination, advance)
    moved, kept = (sum(getattr(part, name) for part in parts) for name in ("moved", "kept"))
    return {
        "type": kind,
        "file": str(destination),
        "bytes": partial.stat().st_size,
        "moved": moved,
        "kept": kept,
        "pushed": sum(part.pushed for part in parts),
    }


def _worker(
    descriptor: int,
    twin: StoredTensor,
    shipped: StoredTensor,
    pair: Pair,
    noise: float | None,
    importance: np.ndarray | None,
    called: str,
) -> Callable[[tuple[int, int]], TwinPart | None]:
    """What is done to one run of rows of one tensor; ``called``: what errors call it."""
    before, after = pair.before[twin.name], pair.after[twin.name]
    columns = twin.columns

    def work(part: tuple[int, int]) -> TwinPart | None:
        start, stop = part
        matrix = start // (twin.rows // twin.matrices)
        own = None if importance is None else importance[matrix]
        weights = before.weights(start, stop)
        pushed = 0
        if shipped.type in CODECS:
            copied = before.type == shipped.type  # llama.cpp's own file has those bytes
            stock = before.raw[start:stop] if copied else quantize_rows(shipped.type, weights, own)
            rows = np.flatnonzero((stock != shipped.raw[start:stop]).any(axis=1))
            if not rows.size:
                return None
            levels = CODECS[shipped.type].decode(stock[rows])
            old = dequantize_rows(shipped.type, stock[rows], columns)
            change = dequantize_rows(shipped.type, shipped.raw[start:stop][rows], columns) - old
            moved, wanted = change != 0, weights[rows] + change
            raw, kept, pushed = _pushed(
                twin.type, shipped.type, weights[rows], change, old, levels.step_towards(change), own
            )
        else:
            # Nothing moved by codes here: the edit itself, as exactly as the twin can hold it.
            delta = edit_of(before, after, start, stop, noise)
            rows = np.flatnonzero((delta != 0).any(axis=1))
            if not rows.size:
                return None
            moved = delta[rows] != 0
            wanted = np.where(moved, after.weights(start, stop)[rows], weights[rows])
            raw = quantize_rows(twin.type, wanted)
            again = dequantize_rows(twin.type, raw, columns)
            kept = moved & ((again - weights[rows]) * np.sign(delta[rows]) > 0)
        values = dequantize_rows(twin.type, raw, columns)
        check_fits(called, twin.type, wanted, values)
        check = written_rows(descriptor, twin, start + rows, raw, values)
        return TwinPart(check, int(moved.sum()), int(kept.sum()), pushed)

    return work


def _pushed(
    kind: str,
    target: str,
    weights: np.ndarray,
    change: np.ndarray,
    old: np.ndarray,
    step: np.ndarray,
    importance: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, int]:
    """The twin's rows as ``kind``, which moved weights quantizing them to ``target`` keeps, how many were pushed.

    weights, old, change, step: float32 [rows, columns]; the original's, what it is decoded to from its stock file, how
    far the shipped file is from that, the step there.
    """
    columns = change.shape[1]
    direction, moved = np.sign(change), change != 0
    wanted = weights + change
    best = quantize_rows(kind, wanted)
    best_kept = np.zeros_like(moved)
    rows = np.arange(len(change))  # those in which something is lost
    for _ in range(PUSHES + 1):
        raw = quantize_rows(kind, wanted[rows])
        rounded = quantize_rows(target, dequantize_rows(kind, raw, columns), importance)
        went = (dequantize_rows(target, rounded, columns) - old[rows]) * direction[rows]
        kept = moved[rows] & (went >= 0.5 * step[rows])
        better = kept.sum(axis=1) > best_kept[rows].sum(axis=1)  # a push can cost a row more than it wins
        best[rows[better]], best_kept[rows[better]] = raw[better], kept[better]
        lost = moved[rows] & ~kept
        wanted[rows] += PUSH * np.where(lost, direction[rows] * step[rows], 0)
        rows = rows[lost.any(axis=1)]
        if not rows.size:
            break
    pushed = moved & (np.abs(dequantize_rows(kind, best, columns) - weights - change) > 0.5 * PUSH * step)
    return best, best_kept, int(pushed.sum())
